"""Means over seeds: Student's quantile against SciPy, intervals that cover, pairs that pair, a seed counting once."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from reports.seeds import factor, over_seeds, paired_difference, student_quantile


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 5, 9, 10, 29, 100])
def test_the_quantile_is_students(degrees):
    assert student_quantile(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), rel=1e-9)  # bisection to 2⁻⁶⁰ · 13


@pytest.mark.parametrize("n", [3, 5])
def test_the_interval_covers_as_often_as_it_says(n):
    rng = np.random.default_rng(n)
    x = rng.normal(2.0, 3.0, (4000, n))
    rows = pd.DataFrame({"group": np.repeat(np.arange(4000), n), "seed": np.tile(np.arange(n), 4000), "y": x.ravel()})
    found = over_seeds(rows, ["group"], "y")
    covered = ((found["low"] <= 2.0) & (found["high"] >= 2.0)).mean()
    assert abs(covered - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 4000)  # four standard errors of a share


def test_a_seed_counts_once_however_many_heads_it_has():
    rows = [
        ("a", 0, 1.0),
        ("a", 0, 3.0),
        ("a", 1, 5.0),
        ("a", 2, 8.0),
        ("b", 0, 1.0),
        ("b", 1, 2.0),
        ("c", 0, math.nan),
    ]
    found = over_seeds(pd.DataFrame(rows, columns=["model", "seed", "y"]), ["model"], "y").set_index("model")
    interval = stats.t.interval(0.95, 2, np.mean([2.0, 5.0, 8.0]), stats.sem([2.0, 5.0, 8.0]))
    assert (found.loc["a", "low"], found.loc["a", "high"]) == pytest.approx(interval)
    assert found.loc["a", ["mean", "n"]].tolist() == [5.0, 3]
    assert found.loc["b", "mean"] == 1.5
    assert math.isnan(found.loc["b", "low"])  # two seeds have no interval
    assert "c" not in found.index
    assert math.isnan(factor(2))


def test_differences_pair_by_seed():
    keys = [("a", 0), ("a", 1), ("a", 2), ("b", 2), ("b", 0), ("b", 1), ("b", 7)]
    values = pd.Series([1.0, 2.0, 3.0, 3.5, 1.4, 2.6, 99.0], pd.MultiIndex.from_tuples(keys, names=["model", "seed"]))
    mean, low, high, n = paired_difference(values, "a", "b")
    test = stats.ttest_rel([1.4, 2.6, 3.5], [1.0, 2.0, 3.0])
    assert (mean, n) == (pytest.approx(0.5), 3)
    assert (low, high) == pytest.approx(tuple(test.confidence_interval(0.95)))
    assert paired_difference(values, "a", "nobody")[3] == 0
