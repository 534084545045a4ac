"""Progress bars on stderr: what was done, the time taken and the time left."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn


@contextlib.contextmanager
def progress_bar(*middle: ProgressColumn) -> Iterator[Progress]:
    """A bar with these columns between it and its times, drawn while the context lasts.

    Work that fails before it has made any progress leaves no trace of a bar, so that its error is one line.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        *middle,
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(elapsed_when_finished=False),
    )
    bar = Progress(*columns, console=Console(stderr=True))
    bar.start()
    try:
        yield bar
    except BaseException:
        if any(task.completed for task in bar.tasks):
            bar.stop()
        else:
            bar.live.transient = True
            bar.live.stop()  # bar.stop() would leave an empty line where stderr is no terminal
        raise
    bar.stop()
