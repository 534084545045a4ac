"""Sparse probing: how well a few features tell labelled text apart, beside as many neurons, and the whole activation.

Gurnee et al. 2023; Karvonen et al. 2025, "SAEBench". Features are chosen, and probes fitted, on training documents.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Float64, Int

from probes.bootstrap import ratio_limits
from probes.classification import auroc, auroc_limits, fit_logistic
from workbench.analyses.sae_scores.core import Scored, Tell
from workbench.analyses.sae_scores.readings import CHARACTERS_A_TOKEN, PASSAGE_TOKENS, Readings, read_examples
from workbench.data.probing_tasks import Family, passage_family, word_families

N_FEATURES = (1, 5, 20)  # k
NEURONS, ACTIVATION = "neurons", "activation"
WORD_LEAD = "The word is"


@dataclass(frozen=True)
class Task:
    """One label of a family against all others."""

    name: str
    label: Bool[np.ndarray, " example"]
    group: Int[np.ndarray, " example"]
    is_train: Bool[np.ndarray, " example"]


def tasks_of(family: Family) -> list[Task]:
    """The tasks of a family, by the names that tables have: family_label."""
    labels = np.array([example.label for example in family.examples])
    _, group = np.unique([example.group for example in family.examples], return_inverse=True)
    is_train = family.is_train()
    return [Task(f"{family.name}_{label}", labels == label, group, is_train) for label in family.tasks]


def mean_differences(X: Float[np.ndarray, "n d"], is_positive: Bool[np.ndarray, " n"]) -> Float64[np.ndarray, " d"]:
    """(mean of the positives − mean of the others) / standard deviation of all, of each column; 0 for one that is
    constant. No scale of a feature changes it."""
    X = X.astype(np.float64)
    spread = X.std(axis=0)
    difference = X[is_positive].mean(axis=0) - X[~is_positive].mean(axis=0)
    return np.divide(difference, spread, out=np.zeros_like(spread), where=spread > 0)


def probe_row(
    X: Float[np.ndarray, "n d"], task: Task, k: int | None, rng: np.random.Generator, n_bootstrap: int
) -> dict[str, Any]:
    """What a probe of the k columns that differ most between the classes in training, or of all, does on the test
    part: accuracy and AUROC with 95 % intervals over its documents."""
    train, y = task.is_train, task.label
    if k is not None:
        size = np.abs(mean_differences(X[train], y[train]))
        X = X[:, np.argsort(-size, kind="stable")[:k]]
    scores = fit_logistic(X[train], y[train]).scores(X[~train])
    truth, group = y[~train], task.group[~train]
    is_right = (scores > 0) == truth
    _, place = np.unique(group, return_inverse=True)
    low, high = ratio_limits(np.bincount(place, is_right)[None], np.bincount(place).astype(float), rng, n_bootstrap)
    area = auroc_limits(scores, truth, group, rng, n_bootstrap)
    return {
        "k": X.shape[1], "accuracy": is_right.mean(), "ci_low": low[0], "ci_high": high[0],
        "auroc": auroc(scores, truth), "auroc_low": area.low, "auroc_high": area.high,
        "base_rate": max(truth.mean(), 1 - truth.mean()), "n_train": int(train.sum()), "n_test": int((~train).sum()),
        "n_test_groups": int(place.max()) + 1,
    }  # fmt: skip


def probe_rows(
    readings: Readings, k_sae: int, tasks: list[Task], rng: np.random.Generator, n_bootstrap: int
) -> list[dict[str, Any]]:
    """The rows of SAE `k_sae`, task by task: k features of each dictionary, k neurons, the whole activation."""
    x = readings.x[k_sae]
    inputs = {name: own[k_sae] for name, own in readings.acts.items()} | {NEURONS: x}
    rows = []
    for task in tasks:
        for probe, X in inputs.items():
            for k in sorted({min(k, X.shape[1]) for k in N_FEATURES}):
                rows.append({"task": task.name, "probe": probe, **probe_row(X, task, k, rng, n_bootstrap)})
        rows.append({"task": task.name, "probe": ACTIVATION, **probe_row(x, task, None, rng, n_bootstrap)})
    return rows


def probing_table(
    scored: Scored, *, n_passages: int, n_bootstrap: int, name: str, seed: int, bootstrap_seed: int, tell: Tell
) -> pd.DataFrame:
    """sae_probing's rows, SAE by SAE."""
    families = [passage_family(n_passages, CHARACTERS_A_TOKEN * PASSAGE_TOKENS), *word_families()]
    n_saes = len(scored.slots)
    of_sae: list[list[dict[str, Any]]] = [[] for _ in range(n_saes)]
    rng = np.random.default_rng(bootstrap_seed)
    for number, family in enumerate(families):
        share = lambda own, number=number: tell((number + own) / len(families))  # noqa: E731
        readings = read_examples(scored, family, WORD_LEAD, lambda own: share(own / 2))  # noqa: B023 - called at once
        for k in range(n_saes):
            of_sae[k] += probe_rows(readings, k, tasks_of(family), rng, n_bootstrap)
            share(0.5 + 0.5 * (k + 1) / n_saes)
    return repeat_keys(scored, of_sae, name, seed)


def repeat_keys(scored: Scored, of_sae: list[list[dict[str, Any]]], name: str, seed: int) -> pd.DataFrame:
    """The rows of every SAE between what begins and what ends them."""
    at = np.repeat(np.arange(len(of_sae)), [len(rows) for rows in of_sae])
    keys, about = (own.iloc[at].reset_index(drop=True) for own in (scored.keys(name, seed), scored.about()))
    return pd.concat([keys, pd.DataFrame([row for rows in of_sae for row in rows]), about], axis=1)
