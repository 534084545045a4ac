"""Trajectories, crystallisation and parallel pairs: loops, both nulls, enumeration, bad input."""

from __future__ import annotations

import inspect
from itertools import permutations
from math import factorial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import probes
from probes import crystallisation, lag_decay, pair_parallelism, trajectory_consistency, trajectory_nulls


def naive_cosine(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True)) / (
        np.sqrt(sum(x * x for x in a)) * np.sqrt(sum(y * y for y in b))
    )


@pytest.mark.parametrize("seed", range(4))
def test_lag_decay_against_a_loop(seed):
    states = np.random.default_rng(seed).normal(size=(3, 7, 5))
    for lag in range(1, 6):
        cosines = []
        for concept in states:
            steps = [concept[i + 1] - concept[i] for i in range(6)]
            cosines += [naive_cosine(steps[i], steps[i + lag]) for i in range(6 - lag)]
        assert lag_decay(states)[lag - 1] == pytest.approx(np.mean(cosines), abs=1e-12)
    assert lag_decay(states).shape == (5,)
    assert lag_decay(states, 2).tolist() == lag_decay(states)[:2].tolist()
    assert trajectory_consistency(states) == lag_decay(states)[0]
    alone = [trajectory_consistency(concept) for concept in states]
    assert trajectory_consistency(states) == pytest.approx(np.mean(alone), abs=1e-12)


def test_known_trajectories():
    line = np.outer(np.arange(6.0) ** 2, [3.0, -4.0])
    np.testing.assert_allclose(lag_decay(line), 1)
    there_and_back = np.array([[0.0, 0], [1, 2], [0, 0], [1, 2]])
    np.testing.assert_allclose(lag_decay(there_and_back), [-1, 1])
    turn = 2 * np.pi * np.arange(9) / 8
    circle = np.stack([np.cos(turn), np.sin(turn)], axis=1)
    np.testing.assert_allclose(lag_decay(circle, 4), np.cos(np.arange(1, 5) * np.pi / 4), atol=1e-12)


@given(st.integers(0, 10_000), st.integers(-200, 200))
@settings(max_examples=30, deadline=None)
def test_trajectories_do_not_see_motion(seed, log10_scale):
    rng = np.random.default_rng(seed)
    states = rng.normal(size=(5, 4))
    rotation = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    moved = (states @ rotation + rng.normal(size=4)) * 10.0**log10_scale
    np.testing.assert_allclose(lag_decay(moved), lag_decay(states), atol=1e-9)


def test_nulls_are_what_theory_says():
    nulls = trajectory_nulls(8, 256, n_concepts=4, n_draws=60, rng=0)
    assert nulls.independent_states.shape == nulls.random_walk.shape == (60, 6)
    error = 4 * nulls.independent_states.std(axis=0) / np.sqrt(60)
    np.testing.assert_array_less(np.abs(nulls.independent_states.mean(axis=0) - [-0.5, 0, 0, 0, 0, 0]), error + 2e-3)
    error = 4 * nulls.random_walk.std(axis=0) / np.sqrt(60)
    np.testing.assert_array_less(np.abs(nulls.random_walk.mean(axis=0)), error + 1e-4)
    one = trajectory_nulls(3, 1, n_draws=4000, rng=1).independent_states.mean()
    assert one == pytest.approx(-1 / 3, abs=4 / np.sqrt(4000))  # (2/π) arcsin(−½)
    np.testing.assert_array_equal(
        trajectory_nulls(5, 3, n_draws=4, rng=2).random_walk, trajectory_nulls(5, 3, n_draws=4, rng=2).random_walk
    )


def test_a_state_at_rest_is_left_out_and_named():
    states = np.array([[0.0, 0], [1, 0], [1, 0], [2, 0], [3, 0]])
    with pytest.warns(probes.ConstantInputWarning, match="1 displacements are 0"):
        np.testing.assert_allclose(lag_decay(states), [1, 1, 1])
    with pytest.warns(probes.ConstantInputWarning):
        assert np.isnan(trajectory_consistency(np.ones((4, 2))))


def test_crystallisation_layer():
    result = crystallisation(np.array([-0.2, 0.5, np.nan, 0.91, 1.0, 0.95]))
    assert (result.layer, result.maximum, result.layer_of_maximum, result.share) == (3, 1.0, 4, 0.9)
    assert crystallisation(np.array([0.1, 0.5, 1.0]), share=0.5).layer == 1
    assert crystallisation(np.array([0.7])).layer == 0
    for empty in (np.array([np.nan, np.nan]), np.array([-0.3, 0.0]), np.array([-1e-17, 2e-17])):  # ± rounding of 0
        with pytest.warns(probes.ConstantInputWarning, match="no correlation is above 0"):
            assert np.isnan(crystallisation(empty).layer)


def naive_parallelism(a, b):
    differences = [y - x for x, y in zip(a, b, strict=True)]
    return np.mean([naive_cosine(differences[i], differences[j]) for i in range(len(a)) for j in range(i)])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("k", "d"), [(0, 6), (1, 6), (2, 6), (1, 4)])  # fewer dimensions than pairs: another way
def test_parallelism_against_enumeration(seed, k, d):
    rng = np.random.default_rng(seed)
    n = 5
    a = rng.normal(size=(n, d))
    b = a + rng.normal(size=d) + rng.normal(size=(n, d))
    result = pair_parallelism(a, b, n_removed_components=k)
    together = np.concatenate([a, b]) - np.concatenate([a, b]).mean(axis=0)
    values, vectors = np.linalg.eigh(together.T @ together)
    projector = np.eye(d) - vectors[:, values.argsort()[::-1][:k]] @ vectors[:, values.argsort()[::-1][:k]].T
    a, b = a @ projector, b @ projector
    observed = naive_parallelism(a, b)
    null = np.array([naive_parallelism(a, b[list(p)]) for p in permutations(range(n))])
    assert result.statistic == pytest.approx(observed, abs=1e-10)
    assert result.pvalue == np.sum(null >= observed - 1e-9) / factorial(n)
    assert (result.null_mean, result.null_std) == pytest.approx((null.mean(), null.std()), abs=1e-10)
    assert (result.exact, result.n_resamples, result.n, result.n_removed_components) == (True, 120, n, k)
    assert result.min_pvalue <= result.pvalue


def test_parallel_pairs_are_found_and_common_shift_is_not():
    rng = np.random.default_rng(0)
    direction = rng.normal(size=32)
    a = rng.normal(size=(12, 32))
    parallel = pair_parallelism(a, a + 0.5 * direction, rng=0, n_resamples=999)
    assert parallel.statistic == pytest.approx(1.0)
    assert parallel.pvalue == parallel.min_pvalue == 1 / 1000
    elsewhere = pair_parallelism(a, rng.normal(size=(12, 32)) + 10 * direction, rng=0, n_resamples=999)
    assert elsewhere.statistic > 0.9  # any pairing shows the shift
    assert elsewhere.null_mean > 0.9
    assert elsewhere.pvalue > 0.01
    again = pair_parallelism(a, a + 0.5 * direction, rng=0, n_resamples=999)
    assert again == parallel


def test_parallelism_without_resamples_or_direction():
    a, b = np.random.default_rng(0).normal(size=(2, 9, 4))
    assert np.isnan(pair_parallelism(a, b, n_resamples=0).pvalue)
    b[3] = a[3]
    with pytest.warns(probes.ConstantInputWarning, match="coincide"):
        result = pair_parallelism(a, b)
    assert np.isnan([result.statistic, result.pvalue]).all()
    b[3], b[4] = b[4].copy(), a[3]  # now some permutations pair coinciding states
    assert np.isfinite(pair_parallelism(a, b, n_resamples=199, rng=0).pvalue)


def test_the_least_p_counts_undefined_pairings():
    a, b = np.random.default_rng(0).normal(size=(2, 5, 4))
    b[0] = a[1]  # 4! of the 5! pairings put the coinciding states together
    result = pair_parallelism(a, b)
    pairings = [list(p) for p in permutations(range(5))]
    null = np.array([np.inf if p[1] == 0 else naive_parallelism(a, b[p]) for p in pairings])
    assert result.pvalue == np.mean(null >= result.statistic - 1e-9)
    assert result.min_pvalue == np.mean(null >= null[np.isfinite(null)].max() - 1e-9)


@pytest.mark.parametrize("scale", [1e-150, 1.0, 1e150])
@pytest.mark.parametrize("seed", range(4))
def test_what_a_removed_component_leaves_of_equal_pairs_is_no_direction(seed, scale):
    rng = np.random.default_rng(seed)
    axis = rng.normal(size=64)
    first = rng.normal(size=(8, 64))
    first -= np.outer(first @ axis, axis) / (axis @ axis)
    cases = [(first, first + 100 * axis, 1)]  # all that the pairs differ by is the first component
    points = rng.normal(size=(16, 2)) @ rng.normal(size=(2, 64))
    cases.append((points[:8], points[8:], 3))  # more components than the states have
    for a, b, k in cases:
        with pytest.warns(probes.ConstantInputWarning, match="members coincide"):
            result = pair_parallelism(scale * a, scale * b, n_removed_components=k, n_resamples=99, rng=0)
        assert np.isnan([result.statistic, result.pvalue]).all()
    kept = pair_parallelism(scale * points[:8], scale * points[8:], n_removed_components=1)
    assert np.isfinite([kept.statistic, kept.pvalue]).all()


A, B = np.random.default_rng(0).normal(size=(2, 4, 3))


@pytest.mark.parametrize(
    ("function", "args", "settings_", "message"),
    [
        (trajectory_consistency, (A[:2],), {}, r"shape \(2, 3\); expected"),
        (trajectory_consistency, (A[0],), {}, r"shape \(3,\)"),
        (trajectory_consistency, (np.where(A > 1, np.nan, A),), {}, "NaN or inf"),
        (lag_decay, (A, 3), {}, "max_lag is 3; expected 1 … 2"),
        (lag_decay, (A, 0), {}, "max_lag is 0"),
        (trajectory_nulls, (2, 3), {}, "n_states 2"),
        (trajectory_nulls, (4, 3), {"n_draws": 0}, "n_draws 0"),
        (trajectory_nulls, (4, 3), {"max_lag": 5}, "max_lag is 5"),
        (crystallisation, (A,), {}, "expected correlations"),
        (crystallisation, (np.array([np.inf]),), {}, "expected correlations"),
        (crystallisation, (np.array([0.5]), 1.5), {}, "share is 1.5"),
        (pair_parallelism, (A, B[:3]), {}, r"first is \(4, 3\) and second \(3, 3\)"),
        (pair_parallelism, (A[:2], B[:2]), {}, "rows ≥ 3"),
        (pair_parallelism, (A, np.where(B > 1, np.inf, B)), {}, "NaN or inf"),
        (pair_parallelism, (A, B), {"n_removed_components": 3}, "n_removed_components is 3; expected 0 … 2"),
        (pair_parallelism, (A, B), {"n_resamples": -3}, "n_resamples is -3"),
    ],
)
def test_bad_input(function, args, settings_, message):
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(function)(*args, **settings_)
