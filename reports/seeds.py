"""Means over seeds and their intervals: the one statistic that the pages compute.

Each seed counts once: rows of one seed (its heads, its layers) are averaged first. From three seeds on a mean carries
the 95 % interval of Student's t,

    mean ± t(.975, n − 1) · s / √n,    s² = Σ (xᵢ − mean)² / (n − 1),

over the n seeds with a finite value; below three it has none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
import pandas as pd

MIN_SEEDS = 3
FORMULA = "mean ± t(.975, n − 1) · s / √n over n ≥ 3 seeds (Student’s t, s their standard deviation)"


def over_seeds(df: pd.DataFrame, by: Sequence[str], value: str) -> pd.DataFrame:
    """Return one row a group of `by`: the columns `by`, mean, low, high, n (seeds); nan where there is no interval.

    A table without the column `seed` is one seed. Groups come in the order of their first rows; one without a finite
    value is left out.
    """
    known = df[np.isfinite(df[value])]
    if "seed" not in known:
        known = known.assign(seed=0)
    each = known.groupby([*by, "seed"], sort=False)[value].mean().reset_index()
    found = each.groupby(list(by), sort=False)[value].agg(["mean", "std", "count"]).reset_index()
    half = [factor(int(n)) * s for n, s in zip(found["count"], found["std"], strict=True)]
    low, high = found["mean"] - half, found["mean"] + half
    return found.assign(low=low, high=high, n=found["count"])[[*by, "mean", "low", "high", "n"]]


def paired_difference(values: pd.Series, reference: str, treated: str) -> tuple[float, float, float, int]:
    """Return mean, low, high and n of treated − reference over the seeds that both have; `values` by (model, seed)."""
    both = pd.DataFrame({name: of_model(values, name) for name in (reference, treated)}).dropna()
    if both.empty:
        return math.nan, math.nan, math.nan, 0
    change = (both[treated] - both[reference]).tolist()
    rows = pd.DataFrame({"model": treated, "seed": both.index.tolist(), "value": change})
    row = over_seeds(rows, ["model"], "value").iloc[0]
    return float(row["mean"]), float(row["low"]), float(row["high"]), int(row["n"])


def of_model(values: pd.Series, model: str) -> pd.Series:
    """Return one model's values by seed; empty for a model that has none."""
    return values[values.index.get_level_values("model") == model].droplevel("model")


def factor(n: int) -> float:
    """Return t(.975, n − 1)/√n; nan for fewer seeds than an interval takes."""
    return student_quantile(n - 1) / math.sqrt(n) if n >= MIN_SEEDS else math.nan


@cache
def student_quantile(degrees: int) -> float:
    """Return the 97.5 % quantile of Student's t for a whole number of degrees of freedom, by bisection.

    >>> round(student_quantile(2), 4)
    4.3027
    """
    low, high = 0.0, 13.0  # the quantile of one degree of freedom is 12.71
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if central_mass(middle, degrees) < 0.95 else (low, middle)
    return (low + high) / 2


def central_mass(t: float, degrees: int) -> float:
    """Return P(|T| < t) as a finite sum (Abramowitz & Stegun 1964, 26.7.3 and 26.7.4)."""
    theta = math.atan(t / math.sqrt(degrees))
    cosine, sine = math.cos(theta), math.sin(theta)
    is_odd = degrees % 2
    term, total = (cosine, 0.0) if is_odd else (1.0, 0.0)
    for k in range(1 + is_odd, degrees, 2):
        total += term
        term *= cosine**2 * k / (k + 1)
    return (theta + sine * total) * 2 / math.pi if is_odd else sine * total
