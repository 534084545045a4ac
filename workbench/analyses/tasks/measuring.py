"""The rows of the table of tasks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from workbench.analyses.tasks.columns import ABSENT, gap_values
from workbench.analyses.tasks.gate import gate
from workbench.data.tasks import Task, TaskUnavailable, make_pairs
from workbench.data.tasks.vocabulary import vocabulary_of

PRESENT = "present"
MEASURED = (
    "accuracy", "accuracy_low", "accuracy_high", "gap", "gap_low", "gap_high", "chance", "corrupt_accuracy", "logprob",
)  # fmt: skip


def task_rows(
    model: Any,
    tasks: Sequence[Task],
    *,
    n_pairs: int = 128,
    pairs_seed: int = 0,
    n_bootstrap: int = 2000,
    seed: int = 0,
    cache: str | Path | None = None,
    on_progress: Callable[[float], None] = lambda share: None,
) -> pd.DataFrame:
    """A row for each task: what `gate` says, or why the model's vocabulary has no pairs for it.

    Raises:
        ValueError: as `make_pairs`, but for what only this vocabulary lacks.
    """
    vocabulary, rows = vocabulary_of(model, cache), []
    for done, task in enumerate(tasks):
        row: dict[str, Any] = {"task": task.name, "measure": task.measure} | dict.fromkeys(MEASURED, math.nan)
        try:
            pairs = make_pairs(model, task, n_pairs, pairs_seed, vocabulary=vocabulary)
        except TaskUnavailable as error:
            rows.append(row | {"status": f"not available: {error}", "n_pairs": 0, "n_clusters": 0})
            continue
        found = gate(model, pairs, np.random.default_rng(seed), n_bootstrap)
        row |= {"accuracy": found.accuracy, **gap_values(found.gap), "chance": found.chance, "logprob": found.logprob}
        row |= {"accuracy_low": found.accuracy_interval.low, "accuracy_high": found.accuracy_interval.high}
        row |= {"corrupt_accuracy": found.corrupt_accuracy, "n_pairs": len(pairs), "n_clusters": found.gap.n_clusters}
        rows.append(row | {"status": PRESENT if found.is_passed else ABSENT})
        on_progress((done + 1) / len(tasks))
    return pd.DataFrame(rows)
