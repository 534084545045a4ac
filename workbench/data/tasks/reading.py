"""Tasks by name or from a TOML file."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

from pydantic import ValidationError

from workbench.data.tasks.colour_binding import colour_binding
from workbench.data.tasks.greater_than import GreaterThan
from workbench.data.tasks.induction import Induction, induction_swap
from workbench.data.tasks.records import Task
from workbench.data.tasks.template_task import TemplateTask
from workbench.data.tasks.templates import TaskForm
from workbench.runs import read_toml, shorten
from workbench.runs.records import describe_errors, nearest

HERE = Path(__file__).parent
_OF_CODE: dict[str, Callable[[], Task]] = {
    "induction": Induction,
    "induction_swap": induction_swap,
    "greater_than": GreaterThan,
    "colour_binding": colour_binding,
    "colour_binding_query": lambda: colour_binding("colour_binding_query"),
}
_OF_FILES = {file.stem: file for file in sorted(HERE.glob("*.toml"))}


def task_names() -> list[str]:
    """The names of the built-in tasks."""
    return [*_OF_CODE, *_OF_FILES]


def read_task(source: str | Path) -> Task:
    """The built-in task of that name, or that of a TOML file, which is called as the file is.

    Raises:
        ValueError: no such task, the nearest being named; a file that is missing, too large, no TOML, or not of a
            task's form.
    """
    name = str(source)
    if name in task_names():
        return _built_in(name)
    path = Path(source).expanduser()
    if path.suffix != ".toml":
        near = nearest(name, set(task_names()))
        raise ValueError(f"task: got {shorten(repr(name))}; expected a TOML file or a built-in task{near}")
    if not path.is_file():
        raise ValueError(f"task: no file {str(path)!r}; expected a TOML file")
    return _read(path)


@cache
def _built_in(name: str) -> Task:
    return _OF_CODE[name]() if name in _OF_CODE else _read(_OF_FILES[name])


def _read(path: Path) -> Task:
    try:
        form = TaskForm.model_validate(read_toml(path, "task"))
        words = {} if form.words_of is None else _words_of(form.words_of)
        return TemplateTask.of_form(path.stem, form, words)
    except ValidationError as error:
        raise ValueError(f"task: {path}: {describe_errors(error, TaskForm)}") from None
    except ValueError as error:
        if str(error).startswith("task: "):
            raise
        raise ValueError(f"task: {path}: {error}") from None


def _words_of(name: str) -> dict:
    if name not in task_names():
        raise ValueError(
            f"words_of: got {shorten(repr(name))}; expected a built-in task{nearest(name, set(task_names()))}"
        )
    task = _built_in(name)
    if not isinstance(task, TemplateTask):
        raise ValueError(f"words_of: the task {name} has no lists of words; expected one of templates")
    return dict(task.words)
