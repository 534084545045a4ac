"""Tasks by name or from a TOML file."""

from __future__ import annotations

from pathlib import Path

from workbench.data.tasks.induction import Induction
from workbench.data.tasks.records import Task
from workbench.runs.records import nearest

HERE = Path(__file__).parent
_OF_CODE: dict[str, Task] = {own.name: own for own in (Induction(),)}


def task_names() -> list[str]:
    """The names of the built-in tasks."""
    return [*_OF_CODE]


def read_task(source: str | Path) -> Task:
    """The built-in task of that name, or that of a TOML file.

    Raises:
        ValueError: no such task, the nearest being named; a file that is missing or not of a task's form.
    """
    name = str(source)
    if name in task_names():
        return _OF_CODE[name]
    raise ValueError(
        f"task: got {name!r:.60}; expected a TOML file or a built-in task{nearest(name, set(task_names()))}"
    )
