"""The executor that runs a study's jobs in processes of this machine, several at once.

A process that dies is replaced, and its job goes on from what it left. When the study is stopped, running jobs save
their state first.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import multiprocessing
import os
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from workbench.study.executors import Ended, Show, Task
from workbench.study.jobs import Context
from workbench.study.worker import GRACE_S, N_RETRIES, do_in_worker
from workbench.training.interrupts import Interrupted, raising_on_sigterm


class ProcessPool:
    """Tasks in processes of this machine, each with n_threads CPU threads.

    A process that dies breaks its whole pool, so each slot has a pool of its own, of one process.

    n_slots: tasks at once; by default as many as there are CPUs for, and one where the device is a GPU.
    """

    def __init__(self, context: Context, n_jobs: int, n_slots: int | None = None, show: Show | None = None) -> None:
        self._context, self._n_jobs = context, n_jobs
        self.n_slots = n_slots or _count_slots(context)
        self._idle: list[ProcessPoolExecutor] = []
        self._running: dict[Future[tuple[str, bool]], tuple[Task, ProcessPoolExecutor]] = {}
        self._n_deaths: Counter[str] = Counter()
        self._n_ended = 0
        self._stack = contextlib.ExitStack()
        self._stack.enter_context(raising_on_sigterm())
        self._tell: Callable[[float], None] = self._stack.enter_context(show("jobs")) if show else lambda share: None

    def begin(self, task: Task) -> None:
        """Give the task to a process that is idle, or to a new one."""
        spawn = multiprocessing.get_context("spawn")  # a fork would share the locks of torch's threads
        pool = self._idle.pop() if self._idle else ProcessPoolExecutor(1, spawn, _prepare_process)
        self._running[pool.submit(_work, task, self._context, str(Path.cwd()))] = task, pool

    def wait(self) -> Ended:
        """The next task that ends. Raises Interrupted where a job was asked to stop."""
        while True:
            done, _ = concurrent.futures.wait(self._running, return_when=concurrent.futures.FIRST_COMPLETED)
            future = done.pop()
            task, pool = self._running.pop(future)
            try:
                error, is_interrupt = future.result()
            except BrokenProcessPool:
                pool.shutdown()
                self._n_deaths[task.job.name] += 1
                if self._n_deaths[task.job.name] <= N_RETRIES:
                    self.begin(task)
                    continue
                error, is_interrupt = f"its process died, after {N_RETRIES} retries", False
            else:
                self._idle.append(pool)
            if is_interrupt:
                raise Interrupted(error)
            self._n_ended += 1
            self._tell(self._n_ended / self._n_jobs)
            return Ended(task, error)

    def close(self) -> None:
        """Ask running tasks to save their state, and end every process."""
        busy = [process for _, pool in self._running.values() for process in pool._processes.values()]
        for process in busy:
            process.terminate()
        concurrent.futures.wait(self._running, timeout=GRACE_S)
        for process in busy:
            process.kill()
        for pool in (*self._idle, *(pool for _, pool in self._running.values())):
            pool.shutdown(cancel_futures=True)
        self._stack.close()


def _count_slots(context: Context) -> int:
    if context.device.startswith("cuda"):
        return 1
    return max(1, (os.cpu_count() or 1) // context.n_threads)


def _work(task: Task, context: Context, directory: str) -> tuple[str, bool]:
    with raising_on_sigterm():  # where a training does not note it itself
        return do_in_worker(task, context, directory)


def _prepare_process() -> None:
    """Leave Ctrl-C to the study, which asks for a state to be saved, and end with the study, however it ends."""
    os.setpgid(0, 0)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)  # no clean-up: a study that was killed may already be resumed, and its files are another's
