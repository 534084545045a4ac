"""Running a study's jobs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager

from workbench.experiments.study import work
from workbench.experiments.study.jobs import Context, Job

Show = Callable[[str], AbstractContextManager[Callable[[float], None]]]


def run_jobs(jobs: Sequence[Job], context: Context, show: Show | None = None) -> None:
    """Run the jobs in their order; a finished one is checked and left as it is.

    show: gives a context manager for a label, whose function is told the share done.
    """
    done: set[str] = set()
    for number, job in enumerate(jobs):
        assert done.issuperset(job.needs), (job.name, job.needs)
        label = f"[{number + 1}/{len(jobs)}] {job.name}"
        # training draws a bar of its own
        with (show or _quietly)(label) if job.kind != "train" else contextlib.nullcontext(_tell_nobody) as tell:
            work.run_job(job, context, tell, is_shown=show is not None)
        done.add(job.name)


def _tell_nobody(share: float) -> None:
    """Nobody watches."""


@contextlib.contextmanager
def _quietly(label: str) -> Iterator[Callable[[float], None]]:
    yield _tell_nobody
