"""A progress bar on stderr: steps, loss, perplexity of the held-out text, tokens per second, time left."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from rich.progress import Progress, TaskID, TextColumn

from workbench.progress import progress_bar
from workbench.training.recipe import Recipe
from workbench.training.state import Position


class Meter:
    """What the trainer reports to; without a bar it stays silent."""

    def __init__(self, bar: Progress | None, task: TaskID | None) -> None:
        self._bar, self._task = bar, task

    def advance(self, position: Position, rate: float) -> None:
        """Show that `position` is reached at `rate` tokens per second."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=position.step, rate=f"{rate:,.0f}")

    def show(self, loss: float, perplexity: float | None = None) -> None:
        """Show the newest mean loss of training in nats, and the held-out perplexity where it was measured anew."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, loss=f"{loss:.3f}")
            if perplexity is not None:
                self._bar.update(self._task, perplexity=f"{perplexity:.4g}")


@contextlib.contextmanager
def progress_meter(recipe: Recipe, *, enabled: bool) -> Iterator[Meter]:
    """A `Meter` over all steps of a recipe, drawn while the context lasts."""
    if not enabled:
        yield Meter(None, None)
        return
    counts = (
        "step {task.completed:,.0f}/{task.total:,.0f}  loss {task.fields[loss]}  "
        "held-out PPL {task.fields[perplexity]}  {task.fields[rate]} tokens/s"
    )
    with progress_bar(TextColumn(counts)) as bar:
        total = sum(phase.n_steps for phase in recipe.phases)
        yield Meter(bar, bar.add_task(recipe.name, total=total, loss="–", perplexity="–", rate="–"))
