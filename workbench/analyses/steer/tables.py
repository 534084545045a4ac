"""The tables of `steer`: dose curves with intervals beside their controls, and what a bounded loss buys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float64

from probes.bootstrap import LEVEL, ratio_limits
from workbench.analyses.steer.arms import Arm

N_BOOTSTRAP = 2000
# measure -> columns of its interval
MEASURES = {
    "target_rate": ("target_low", "target_high"),
    "delta_loss": ("loss_low", "loss_high"),
    "continuation_loss": ("continuation_low", "continuation_high"),
    "loop_rate": ("loop_low", "loop_high"),
}
HEADLINE = (
    "target_rate", "target_low", "target_high", "gain", "gain_low", "gain_high", "p", "delta_loss", "loss_high",
    "continuation_loss", "loop_rate",
)  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """Of every arm, the first of which is the prompt alone: a value for each prompt, or for each held-out window."""

    arms: Sequence[Arm]
    target_rate: Float64[np.ndarray, "arm prompt"]
    delta_loss: Float64[np.ndarray, "arm window"]
    continuation_loss: Float64[np.ndarray, "arm prompt"]
    loop_rate: Float64[np.ndarray, "arm prompt"]


def means_and_limits(values: Float64[np.ndarray, "row unit"], seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(mean, lower, upper 95 % limit) of each row over its units that are no nan; nan where there are none."""
    found = np.full((3, len(values)), np.nan)
    known = np.isfinite(values)
    groups = [np.flatnonzero(known.all(axis=1)), *([i] for i in np.flatnonzero(~known.all(axis=1) & known.any(axis=1)))]
    for rows in groups:
        if len(rows):
            weights = known[rows[0]].astype(float)
            own = np.where(known[rows], values[rows], 0)
            found[0, rows] = own.sum(axis=1) / weights.sum()
            found[1:, rows] = ratio_limits(own, weights, np.random.default_rng(seed), N_BOOTSTRAP)
    return found[0], found[1], found[2]


def summarize(measured: Measured, seed: int) -> pd.DataFrame:
    """A row an arm: every measure's mean and interval."""
    columns: dict[str, Any] = {name: [getattr(arm, name) for arm in measured.arms] for name in ("form", "alpha")}
    columns |= {name: [getattr(arm, name) for arm in measured.arms] for name in ("control", "direction")}
    for name, limits in MEASURES.items():
        mean, low, high = means_and_limits(getattr(measured, name), seed)
        columns |= {name: mean, limits[0]: low, limits[1]: high}
    gained = measured.target_rate - measured.target_rate[:1]
    columns |= dict(zip(("gain", "gain_low", "gain_high"), means_and_limits(gained, seed), strict=True))
    return pd.DataFrame(columns)


def dose_curves(summary: pd.DataFrame) -> pd.DataFrame:
    """The rows of steering.csv: those of `summary`, the random directions of a dose as one row: mean and range."""
    rows = []
    for (form, alpha), own in summary.groupby(["form", "alpha"], sort=False):
        random = own[own["control"] == "random"]
        for row in own[own["control"] != "random"].to_dict("records"):
            is_judged = row["control"] in ("feature", "difference_of_means") and len(random) > 0
            rows.append(row | {"p": _p(row["target_rate"], random["target_rate"]) if is_judged else np.nan})
            rows[-1]["n_directions"] = int(form != "none")
        if len(random):
            rows.append({"form": form, "alpha": alpha, "control": "random", "p": np.nan, **_range_of(random, MEASURES)})
    return pd.DataFrame(rows).drop(columns=["direction", "gain", "gain_low", "gain_high"])


def headline(summary: pd.DataFrame, budget: float) -> pd.DataFrame:
    """The rows of steering_headline.csv: of each form and direction its largest dose whose Δ held-out loss has an upper
    limit of at most `budget`, and α = 0, the prompt alone, where none has."""
    nothing = summary[summary["form"] == "none"]
    alone = nothing[nothing["control"] == "prompt"].iloc[0]
    rows = [{**own, "p": np.nan, "n_directions": 0} for own in nothing.to_dict("records")]
    pushed = summary[summary["form"] != "none"]
    for form, own in pushed.groupby("form", sort=False):
        best = [_within(dose, alone, budget) for _, dose in own.groupby(["control", "direction"], sort=False)]
        found = pd.DataFrame(best)
        random = found[found["control"] == "random"]
        for row in found[found["control"] != "random"].to_dict("records"):
            p = _p(row["target_rate"], random["target_rate"]) if len(random) else np.nan
            rows.append({**row, "form": form, "p": p, "n_directions": 1})
        if len(random):
            ranges = {**MEASURES, "gain": ("gain_low", "gain_high"), "alpha": ("", "")}
            rows.append({"form": form, "control": "random", "p": np.nan, **_range_of(random, ranges)})
    return pd.DataFrame(rows)[["form", "control", "alpha", *HEADLINE, "n_directions"]].assign(budget=budget)


def _within(dose: pd.DataFrame, alone: pd.Series, budget: float) -> dict[str, Any]:
    """The row of the largest dose of one direction within the budget; of a negative and a positive one the positive."""
    allowed: Any = dose[dose["loss_high"] <= budget]
    if allowed.empty:
        first = dose.iloc[0]
        nothing: dict[str, Any] = {str(name): value for name, value in alone.items()}
        return nothing | {"control": first["control"], "direction": first["direction"]}
    order: list[dict[str, Any]] = sorted(allowed.to_dict("records"), key=lambda row: (abs(row["alpha"]), row["alpha"]))
    return order[-1]


def _p(own: float, random: pd.Series) -> float:
    """(1 + number of random directions that reach as much) / (1 + number of them)."""
    return (1 + int((random >= own).sum())) / (1 + len(random))


def _range_of(random: pd.DataFrame, measures: dict[str, tuple[str, str]]) -> dict[str, Any]:
    """Mean over directions, and the range of 95 % of them, of each measure."""
    found: dict[str, Any] = {"n_directions": len(random)}
    for name, (low, high) in measures.items():
        found[name] = random[name].mean()
        if low:
            found[low], found[high] = random[name].quantile([(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return found
