"""Impacts, their errors and intervals, against loops; coverage of the interval; shares among heads."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from probes import ConstantInputWarning
from workbench.experiments.impacts import impact_gini, impacts, specialization


def sample(seed, n=64, rows=3):
    """Base losses that differ from text to text, and ablated ones that rise with them and a noise of their own."""
    rng = np.random.default_rng(seed)
    base = rng.lognormal(1.2, 0.3, n)
    difference = 0.02 * base + rng.normal(0, 0.05, (rows, n)) + 0.02 * rng.exponential(1.0, (rows, n))
    return base, base + difference


@pytest.mark.parametrize("seed", range(3))
def test_the_bootstrap_equals_a_loop_over_draws(seed):
    base, ablated = sample(seed, n=12)
    found = impacts(base, ablated, np.random.default_rng(seed), n_bootstrap=300)
    counts = np.random.default_rng(seed).multinomial(12, np.full(12, 1 / 12), size=300)
    for row in range(3):
        draws = []
        for draw in counts:
            which = np.repeat(np.arange(12), draw)
            draws.append(100 * (ablated[row, which].mean() - base[which].mean()) / base[which].mean())
        # Hesterberg's tail for n = 12: Φ(√(12/11)·t₁₁(.025)) with t₁₁(.025) = −2.2010 (any t table) gives Φ(−2.2988)
        tail = 0.010757
        low, high = np.quantile(draws, [tail, 1 - tail])
        np.testing.assert_allclose([found.ci_low[row], found.ci_high[row]], [low, high], rtol=1e-4, atol=1e-5)
        mean = 100 * (ablated[row].sum() - base.sum()) / base.sum()
        np.testing.assert_allclose(found.impact_pct[row], mean, rtol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_stderr_is_the_spread_of_the_bootstrap(seed):
    base, ablated = sample(seed, n=400)
    found = impacts(base, ablated, np.random.default_rng(0), n_bootstrap=4000)
    width = (found.ci_high - found.ci_low) / (2 * 1.96)
    # two estimates of one spread from 400 sequences and 4,000 draws
    np.testing.assert_allclose(found.stderr, width, rtol=0.1)


def test_the_interval_holds_the_truth_as_often_as_it_says():
    truth = 100 * (0.02 + 0.02 / np.exp(1.2 + 0.3**2 / 2))
    hits = []
    for seed in range(500):
        base, ablated = sample(seed, n=64, rows=1)
        found = impacts(base, ablated, np.random.default_rng(seed), n_bootstrap=400)
        hits.append(found.ci_low[0] <= truth <= found.ci_high[0])
    # 95 % nominal; two standard errors of 500 draws are 2 points, and the percentile interval is good to O(1/√n)
    assert 0.92 <= np.mean(hits) <= 0.98


def test_gini_is_taken_within_each_layer():
    table = pd.DataFrame(
        {"model": "a", "seed": 0, "kind": "zero", "layer": [0] * 4 + [1] * 4, "impact_pct": [1.0] * 4 + [0, 0, 0, 2]}
    )
    found = impact_gini(table)
    assert list(found.columns) == ["model", "seed", "kind", "layer", "gini"]
    np.testing.assert_allclose(found["gini"], [0.0, 0.75], atol=1e-12)
    with pytest.warns(ConstantInputWarning):
        assert np.isnan(impact_gini(table.assign(impact_pct=-1.0))["gini"]).all()


def results(model, impact, kind="zero"):
    frame = {"model": model, "seed": 0, "kind": kind, "layer": [0, 0, 1, 1], "impact_pct": impact}
    return pd.DataFrame(frame)


def test_specialization_is_the_ratio_of_the_largest_impacts():
    found = specialization(results("a", [1.0, 3.0, 0.5, 0.2]), results("b", [2.0, 1.0, -0.5, -1.0]))
    assert found["layer"].tolist() == [0, 1]
    np.testing.assert_allclose(found["specialization"], [1.5, np.nan])


@pytest.mark.parametrize(
    ("b", "message"),
    [
        (results("b", 1.0, kind="mean"), "specialization: kinds zero and mean"),
        (results("b", 1.0).assign(layer=[0, 0, 2, 2]), r"specialization: layers \[0, 1\] and \[0, 2\]"),
        (results("b", 1.0).assign(seed=[0, 0, 1, 1]), "specialization: b has 2 values of seed"),
    ],
)
def test_tables_that_do_not_match_are_refused(b, message):
    with pytest.raises(ValueError, match=message):
        specialization(results("a", 1.0), b)
