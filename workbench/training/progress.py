"""A progress bar on stderr: steps, loss, tokens a second, time left."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from workbench.training.recipe import Recipe
from workbench.training.state import Position


class Meter:
    """What the trainer reports to; without a bar it stays silent."""

    def __init__(self, bar: Progress | None, task: TaskID | None) -> None:
        self._bar, self._task = bar, task

    def advance(self, position: Position, rate: float) -> None:
        """Show that `position` is reached at `rate` tokens a second."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=position.step, rate=f"{rate:,.0f}")

    def show(self, loss: float) -> None:
        """Show the newest mean loss in nats."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, loss=f"{loss:.3f}")


@contextlib.contextmanager
def progress_meter(recipe: Recipe, *, enabled: bool) -> Iterator[Meter]:
    """A `Meter` over all steps of a recipe, drawn while the context lasts."""
    if not enabled:
        yield Meter(None, None)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn(
            "step {task.completed:,.0f}/{task.total:,.0f}  loss {task.fields[loss]}  {task.fields[rate]} tokens/s"
        ),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(elapsed_when_finished=False),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        total = sum(phase.n_steps for phase in recipe.phases)
        try:
            yield Meter(bar, bar.add_task(recipe.name, total=total, loss="–", rate="–"))
        except BaseException:
            bar.live.transient = bar.tasks[0].completed == 0  # what failed before it began says one line, and no bar
            raise
