"""The record of `tasks`: which tasks of prompt pairs a model does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from workbench.analyses.tasks.columns import GAP_LIMITS
from workbench.analyses.tasks.cost import cost
from workbench.analyses.tasks.figures import draw_tasks
from workbench.analyses.tasks.settings import PairCounts
from workbench.extend import Analysis, Column, Job, Names, Table

if TYPE_CHECKING:
    import pandas as pd


class TasksSettings(PairCounts):
    """Which tasks, and on how many pairs of prompts."""

    tasks: Names | None = Field(
        default=None, description="built-in tasks or TOML files, such as induction,ioi; by default all built-in ones"
    )
    n_bootstrap: int = Field(default=2000, description="draws of the intervals over clusters of pairs", ge=100)


def check(job: Job) -> None:
    """Raise ValueError for a task that does not exist, or a file that is not of a task's form."""
    _read(job.settings)


def measure(job: Job) -> Mapping[str, pd.DataFrame]:
    """The table."""
    from workbench.analyses.tasks.measuring import task_rows

    own, subject = job.settings, job.subject
    settings = own.model_dump(include={"n_pairs", "pairs_seed", "n_bootstrap"})
    given = {"seed": job.seed, "cache": job.cache, "on_progress": job.progress}
    table = task_rows(subject.model, _read(own), **settings, **given)
    table.insert(0, "model", subject.name)
    table.insert(1, "seed", subject.seed)
    return {"tasks": table}


def say(directory: Path) -> dict[str, Any]:
    """How many tasks the model does."""
    from reports.tables import read_table

    table: Any = read_table(directory, "tasks")
    return {"n_present": int((table["status"] == "present").sum()), "n_tasks": len(table)}


def _read(own: TasksSettings) -> list[Any]:
    from workbench.data.tasks import read_task, task_names

    return [read_task(name) for name in own.tasks or task_names()]


tasks = Analysis(
    name="tasks",
    summary="Which tasks of prompt pairs a model does: accuracy and gap with intervals over clusters of pairs.",
    settings=TasksSettings,
    tables=[
        Table(
            "tasks",
            key=("model", "seed", "task"),
            columns=[
                Column("accuracy", "share of pairs with m > 0 behind the clean prompt, ties counted half", unit="1"),
                Column("accuracy_low", unit="1"),
                Column("accuracy_high", unit="1"),
                Column("gap", "m behind the clean prompt − m behind the corrupt one"),
                *GAP_LIMITS,
                Column("status", "present, task_absent, or why there are no pairs", kind="text"),
            ],
            trailing=[
                Column("chance", "accuracy of a model that does not look at the prompt", unit="1"),
                Column("corrupt_accuracy", "share of pairs with m > 0 behind the corrupt prompt", unit="1"),
                Column("logprob", "mean log-probability of the answer behind the clean prompt", unit="nats"),
                Column("n_pairs", kind="integer"),
                Column("n_clusters", "what the intervals are over", kind="integer"),
                Column("measure", "m: logit_difference or probability_difference, answer − foil", kind="text"),
            ],
            meaning="One task of prompt pairs; m is the answer's logit, or probability, less the foil's. _low and "
            "_high are 95 % bootstrap intervals over clusters of pairs that share fillers. present: the "
            "lower bound of accuracy is above chance and that of the gap above 0.",
        )
    ],
    measure=measure,
    figures=(draw_tasks,),
    cost=cost,
    check=check,
    facts=say,
    over_training=True,
    notes=lambda settings: (
        "A task that a model does not pass is not to be patched in it: what moves is then no part of doing the task.",
    ),
)
