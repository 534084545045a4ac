"""False discovery rate, max-T, pooling of seeds, Gini: oracles, loops and bad input."""

from __future__ import annotations

import inspect
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import false_discovery_control

import probes


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40))
@settings(max_examples=80, deadline=None)
def test_benjamini_hochberg_against_scipy(values):
    p = np.array(values)
    q = probes.benjamini_hochberg(p)
    np.testing.assert_allclose(q, false_discovery_control(p), atol=1e-12)
    assert (q >= p - 1e-12).all()


def test_benjamini_hochberg_shape_and_nan():
    p = np.array([[0.01, np.nan], [0.04, 0.03]])
    q = probes.benjamini_hochberg(p)
    np.testing.assert_allclose(q, [[0.03, np.nan], [0.04, 0.04]])
    assert np.isnan(probes.benjamini_hochberg(np.array([np.nan]))).all()
    with pytest.raises(ValueError, match="expected values in"):
        probes.benjamini_hochberg(np.array([1.2]))


def naive_step_down(observed, null, exact):
    order = np.argsort(-observed, kind="stable")
    adjusted, running = np.empty(len(observed)), 0.0
    for position, index in enumerate(order):
        remaining = order[position:]
        count = sum(max(row[remaining]) >= observed[index] - 1e-9 for row in null)
        running = max(running, count / len(null) if exact else (count + 1) / (len(null) + 1))
        adjusted[index] = running
    return adjusted


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("exact", [False, True])
def test_westfall_young_against_a_loop(seed, exact):
    rng = np.random.default_rng(seed)
    null = rng.normal(size=(80, 5)) + rng.normal(size=(80, 1))
    observed = rng.normal(1, 1, 5)
    if exact:
        null[0] = observed
    for alternative, turned in (("greater", lambda v: v), ("less", np.negative), ("two-sided", np.abs)):
        got = probes.westfall_young(observed, null, alternative=alternative, exact=exact)
        np.testing.assert_array_equal(got, naive_step_down(turned(observed), turned(null), exact))


def test_westfall_young_leaves_nan_out():
    rng = np.random.default_rng(0)
    observed, null = rng.normal(size=4), rng.normal(size=(50, 4))
    holed, holed_null = np.insert(observed, 2, np.nan), np.insert(null, 2, np.nan, axis=1)
    got = probes.westfall_young(holed, holed_null)
    assert np.isnan(got[2])
    np.testing.assert_array_equal(np.delete(got, 2), probes.westfall_young(observed, null))


def test_westfall_young_holds_the_family_wise_error():
    """Ten correlated true nulls: some adjusted p ≤ .05 in about 5 % of runs, where raw p gives far more."""
    rng = np.random.default_rng(1)
    n_runs, family, raw = 600, 0, 0
    for _ in range(n_runs):
        draws = rng.normal(size=(100, 10)) + rng.normal(size=(100, 1))
        observed, null = draws[0], draws[1:]
        family += probes.westfall_young(observed, null).min() <= 0.05
        raw += ((np.sum(null >= observed, axis=0) + 1) / 100).min() <= 0.05
    assert family / n_runs < 0.05 + 4 * np.sqrt(0.05 * 0.95 / n_runs)
    assert raw / n_runs > 0.15


def test_pooling_of_seeds():
    x, y = (probes.euclidean_distances(X) for X in np.random.default_rng(0).normal(size=(2, 12, 3)))
    runs = [probes.mantel(x, y, n_resamples=99, rng=seed) for seed in range(4)]
    pooled = probes.pool_permutations(runs)
    assert pooled == (sum(run.n_extreme for run in runs) + 1) / (4 * 99 + 1)
    exact = probes.mantel(x[:6, :6], y[:6, :6])
    assert probes.pool_permutations([exact, exact]) == exact.pvalue
    with pytest.warns(probes.ConstantInputWarning):
        undefined = probes.mantel(np.zeros((9, 9)), y[:9, :9], n_resamples=99)
    assert np.isnan(probes.pool_permutations([undefined, undefined]))
    for bad in ([], [SimpleNamespace(pvalue=np.nan, n_extreme=0, n_resamples=0, exact=False)]):
        with pytest.raises(ValueError, match="without permutations"):
            inspect.unwrap(probes.pool_permutations)(bad)


@pytest.mark.parametrize(
    ("observed", "null", "alternative", "message"),
    [
        (np.ones(2), np.ones((3, 3)), "greater", r"expected \[k\] and"),
        (np.ones(2), np.ones((0, 2)), "greater", r"expected \[k\] and"),
        (np.ones(2), np.ones((3, 2)), "up", "alternative is 'up'"),
    ],
)
def test_bad_families(observed, null, alternative, message):
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(probes.westfall_young)(observed, null, alternative=alternative)


@given(st.lists(st.floats(0, 1e6).map(lambda v: round(v, 3)), min_size=1, max_size=30), st.floats(1e-3, 1e3))
@settings(max_examples=80, deadline=None)
def test_gini_against_the_double_sum(values, scale):
    x = np.array(values)
    if x.sum() == 0:
        return
    double_sum = np.abs(np.subtract.outer(x, x)).sum() / (2 * len(x) ** 2 * x.mean())
    assert probes.gini(x) == pytest.approx(double_sum, abs=1e-9)
    assert probes.gini(x[::-1] * scale) == pytest.approx(double_sum, abs=1e-9)
    assert -1e-12 <= double_sum <= (len(x) - 1) / len(x) + 1e-12


def test_gini_known_and_undefined():
    assert probes.gini(np.full(5, 0.3)) == pytest.approx(0, abs=1e-15)
    assert probes.gini(np.eye(10)[0]) == pytest.approx(0.9)
    assert probes.gini(np.array([-1.0, 3.0])) == pytest.approx(1.0)
    assert probes.gini(np.full(3, 1e308)) == pytest.approx(0, abs=1e-15)  # whose sum no float holds
    for values in (np.zeros(3), np.array([-1.0, 0.5]), np.array([0.1, 0.2, -0.3])):  # the last sum to 6e-17
        with pytest.warns(probes.ConstantInputWarning, match="undefined"):
            assert np.isnan(probes.gini(values))
    with pytest.raises(ValueError, match="expected"):
        inspect.unwrap(probes.gini)(np.ones((2, 2)))
