"""What a process that works for a study does, whoever began it: a job, in one line what went wrong, and no more."""

from __future__ import annotations

import contextlib
from pathlib import Path

from workbench.runs.allocator import keep_large_blocks
from workbench.study.executors import Task, describe_error, do_task, threads
from workbench.study.jobs import Context
from workbench.training.interrupts import Interrupted

N_RETRIES = 3  # times that a job whose worker died is begun again
GRACE_S = 60  # seconds that jobs have to save their state when the study is stopped


def do_in_worker(task: Task, context: Context, directory: str) -> tuple[str, bool]:
    """(what went wrong in one line, or nothing; whether someone asked to stop), after the task was done here.

    directory: where the study was begun, from which relative paths of recipes and texts are.
    """
    keep_large_blocks()
    place = Path(directory)
    with contextlib.chdir(place) if place.is_dir() else contextlib.nullcontext(), threads(context.n_threads):
        try:
            do_task(task, context, lambda share: None)
        except Interrupted as error:
            return str(error), True
        except Exception as error:
            return describe_error(error), False
    return "", False
