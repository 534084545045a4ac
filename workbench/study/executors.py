"""Running a study's jobs: in the order that their needs allow, in this process or by Ray.

A job that fails stops those that need it, and no other. The result does not depend on who runs a job: the work is a
function of (job, recipe, directory), and every process computes with the same number of threads, on which float32 sums
depend.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Protocol

import torch
from threadpoolctl import threadpool_limits

from workbench.runs import verify_manifest
from workbench.study import job_runners
from workbench.study.jobs import TRAIN, Context, PlannedJob
from workbench.study.reuse import (
    content_hashes,
    copy_job,
    find_elsewhere,
    read_record,
    remove_job,
    write_record,
)
from workbench.training.interrupts import Interrupted

Show = Callable[[str], AbstractContextManager[Callable[[float], None]]]


@dataclass(frozen=True)
class Task:
    """A job that is ready: what it needs is there."""

    job: PlannedJob
    label: str
    """for people: "[3/12] ablation/control-seed0" """
    is_done: bool = False
    """the directory is there and was made for this content: it is checked, not made"""
    source: Path | None = None
    """a finished job of the same content, to be copied"""


@dataclass(frozen=True)
class Ended:
    """A task that came to its end."""

    task: Task
    error: str = ""
    """one line, where it failed"""
    cause: Exception | None = None
    """the exception, where it was raised in this process"""


class Executor(Protocol):
    """Runs tasks, which are begun as they become ready, up to `n_slots` at a time; closed by the code that made it."""

    @property
    def n_slots(self) -> int:
        """Tasks that may be under way at once."""
        ...

    def begin(self, task: Task) -> None:
        """Start the task, or start it when it is waited for."""
        ...

    def wait(self) -> Ended:
        """The next task that ends. What is no failure of a job (an interrupt) is raised."""
        ...

    def close(self) -> None:
        """Stop what is still running, where it can be resumed."""
        ...


class JobsFailed(ValueError):
    """Jobs of a study failed; the others are done, and resume goes on."""


@dataclass(frozen=True)
class Outcome:
    """What became of a study's jobs."""

    done: tuple[PlannedJob, ...]
    failed: tuple[Ended, ...]
    left: tuple[PlannedJob, ...]
    """not begun: what they need failed"""

    def check(self) -> None:
        """Raise JobsFailed, in one line, unless all are done."""
        if not self.failed:
            return
        said = "; ".join(f"{ended.task.job.name}: {ended.error}" for ended in self.failed)
        n_all, n_left = len(self.done) + len(self.failed) + len(self.left), len(self.left)
        left = f" {n_left} that need{'s' if n_left == 1 else ''} them not begun," if n_left else ""
        raise JobsFailed(
            f"study: {len(self.failed)} of {n_all} jobs failed ({said});{left} the others are done, --resume goes on"
        ) from self.failed[0].cause


def run_jobs(jobs: Sequence[PlannedJob], context: Context, executor: Executor, reuse: Sequence[Path] = ()) -> Outcome:
    """Every job that can be done is done. A job that fails stops those that need it, and no other.

    Finished ones are checked and left as they are, or copied from a study in `reuse` that did the same. A directory
    that was made for something else (by another version of the package, from a text that has changed since) is removed
    and made again.

    Raises:
        ValueError: a directory in `reuse` that is no study's.
        Interrupted: someone asked to stop.
    """
    hashes = content_hashes(jobs, context)
    elsewhere = find_elsewhere(reuse, hashes)
    record = _still_true(context.directory, hashes)
    ended: dict[str, Ended] = {}
    numbers = {job.name: number for number, job in enumerate(jobs, 1)}
    assert {name for job in jobs for name in job.needs} <= numbers.keys()
    graph = TopologicalSorter({job.name: job.needs for job in jobs})
    graph.prepare()
    ready: list[str] = []
    n_under_way = 0
    # a failed job is never told to the graph as done, so that those that need it are never ready
    while (ready := sorted([*ready, *graph.get_ready()], key=numbers.__getitem__)) or n_under_way:
        n_free = max(0, executor.n_slots - n_under_way)
        for name in ready[:n_free]:
            job = jobs[numbers[name] - 1]
            path = context.directory / job.name
            source = None if path.exists() else elsewhere.get(hashes[name])
            is_done = name in record and path.is_dir()
            executor.begin(Task(job, f"[{numbers[name]}/{len(jobs)}] {name}", is_done, source))
            n_under_way += 1
        ready = ready[n_free:]
        if not n_under_way:
            continue  # no machine is there at the moment
        found = executor.wait()
        n_under_way -= 1
        name = found.task.job.name
        ended[name] = found
        if not found.error:
            graph.done(name)
            record[name] = hashes[name]
            write_record(context.directory, record)
    return Outcome(
        tuple(job for job in jobs if job.name in ended and not ended[job.name].error),
        tuple(ended[job.name] for job in jobs if job.name in ended and ended[job.name].error),
        tuple(job for job in jobs if job.name not in ended),
    )


def _still_true(directory: Path, hashes: Mapping[str, str]) -> dict[str, str]:
    """The study's record of finished jobs; the directory of one that was made for something else is removed."""
    record = read_record(directory)
    for name in [name for name, content in record.items() if hashes.get(name) != content]:
        if name in hashes:
            remove_job(directory / name)
        del record[name]
    return record


def do_task(task: Task, context: Context, tell: Callable[[float], None], *, is_shown: bool = False) -> None:
    """Run the task, so that its directory is whole."""
    path = context.directory / task.job.name
    if task.is_done:
        verify_manifest(path)
    elif task.source is not None:
        copy_job(task.source, path)
    else:
        job_runners.run_job(task.job, context, tell, is_shown=is_shown)


def describe_error(error: Exception) -> str:
    """One line for a person."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


@contextlib.contextmanager
def threads(n: int) -> Iterator[None]:
    """Inside the block every library computes with n threads."""
    before = torch.get_num_threads()
    with threadpool_limits(n):
        torch.set_num_threads(n)
        try:
            yield
        finally:
            torch.set_num_threads(before)


class InProcess:
    """One task after another, here.

    show: gives a context manager for a label, whose function is told the share done.
    """

    n_slots = 1

    def __init__(self, context: Context, show: Show | None = None) -> None:
        self._context, self._show = context, show
        self._tasks: list[Task] = []

    def begin(self, task: Task) -> None:
        """Keep the task, which runs when it is waited for."""
        self._tasks.append(task)

    def wait(self) -> Ended:
        """The task, ended. Raises Interrupted, and what is no Exception."""
        task = self._tasks.pop(0)
        # training draws a bar of its own
        show = None if task.job.kind == TRAIN else self._show
        bar = contextlib.nullcontext(_tell_nobody) if show is None else show(task.label)
        with threads(self._context.n_threads), bar as tell:
            try:
                do_task(task, self._context, tell, is_shown=self._show is not None)
            except Interrupted:
                raise
            except Exception as error:
                return Ended(task, describe_error(error), error)
        return Ended(task)

    def close(self) -> None:
        """Nothing is left to stop."""


def _tell_nobody(share: float) -> None:
    """Nobody watches."""
