"""The four soft ranks: published values, naive loops, the order between them, invariances, bad input."""

from __future__ import annotations

import inspect
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import probes
from probes import ranks

RANKS = [probes.stable_rank, probes.participation_ratio, probes.nuclear_rank, probes.effective_rank]


def naive_ranks(W: np.ndarray, center: bool) -> list[float]:
    """stable, participation, nuclear, effective by plain loops over an SVD."""
    W = W.astype(np.float64)
    if center:
        W = W - W.mean(axis=0)
    sigma = [float(s) for s in np.linalg.svd(W, compute_uv=False)]
    sum1, sum2, sum4 = (sum(s**k for s in sigma) for k in (1, 2, 4))
    entropy = -sum(s / sum1 * np.log(s / sum1) for s in sigma if s > 0)
    return [sum2 / sigma[0] ** 2, sum2**2 / sum4, sum1**2 / sum2, float(np.exp(entropy))]


def test_diagonal_of_the_definition():
    values = [rank(np.diag([3.0, 2.0, 1.0]), center=False) for rank in RANKS]
    np.testing.assert_allclose(values, [1.5556, 2.0, 2.5714, 2.7495], atol=5e-5)  # four decimals printed there


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("shape", [(5, 5), (40, 7), (6, 30), (1, 4), (300, 64)])
@pytest.mark.parametrize("center", [False, True])
def test_agree_with_naive_loops(seed, shape, center):
    if center and shape[0] == 1:
        pytest.skip("one row has no centred spread")
    W = np.random.default_rng(seed).normal(1.0, 2.0, shape)
    got = [rank(W, center=center) for rank in RANKS]
    np.testing.assert_allclose(got, naive_ranks(W, center), rtol=1e-8)  # GRAM_TOLERANCE
    record = probes.matrix_ranks(W, center=center)
    together = [record.stable_rank, record.participation_ratio, record.nuclear_rank, record.effective_rank]
    np.testing.assert_allclose(together, got, rtol=1e-8)
    assert record.n_singular_values == min(shape)
    spectrum = probes.matrix_spectrum(W, center=center)
    assert spectrum.ranks == record
    np.testing.assert_array_equal(spectrum.singular_values, probes.singular_values(W, center=center))


def test_defaults_are_uncentred_but_for_participation():
    W = np.random.default_rng(0).normal(5.0, 1.0, (20, 4))
    for rank in RANKS:
        is_participation = rank is probes.participation_ratio
        assert rank(W) == rank(W, center=is_participation) != rank(W, center=not is_participation)


@pytest.mark.parametrize("log_condition", [0, 2, 3, 4, 6, 8, 12])
def test_gram_path_is_left_before_a_digit_is_lost(log_condition):
    rng = np.random.default_rng(log_condition)
    n_tokens, width = 512, 32
    left = np.linalg.qr(rng.normal(size=(n_tokens, width)))[0]
    right = np.linalg.qr(rng.normal(size=(width, width)))[0]
    sigma = np.geomspace(1, 10.0**-log_condition, width)
    W = (left * sigma) @ right.T
    # W itself is rounded: its small singular values are off by ε·σ₁, harmless to Σσ.
    np.testing.assert_allclose(probes.nuclear_rank(W), sigma.sum() ** 2 / (sigma**2).sum(), rtol=ranks.GRAM_TOLERANCE)
    p = sigma / sigma.sum()
    np.testing.assert_allclose(probes.effective_rank(W), np.exp(-(p * np.log(p)).sum()), rtol=10 * ranks.GRAM_TOLERANCE)
    took_gram = ranks._gram_singular_values(W) is not None
    assert took_gram == (log_condition <= 6)


def test_exactly_low_rank_matrix():
    rng = np.random.default_rng(3)
    W = rng.integers(-3, 4, (200, 2)) @ rng.integers(-3, 4, (2, 24))
    assert all(rank(W, center=False) <= 2 + 1e-12 for rank in RANKS)
    np.testing.assert_allclose([r(W, center=False) for r in RANKS], naive_ranks(W, False), rtol=1e-12)


@given(st.integers(0, 10_000), st.integers(2, 12), st.integers(1, 12), st.floats(-150, 150), st.booleans())
@settings(max_examples=60, deadline=None)
def test_order_bounds_and_invariances(seed, n_rows, n_cols, log_scale, center):
    rng = np.random.default_rng(seed)
    W = rng.standard_t(2, (n_rows, n_cols))
    values = [rank(W, center=center) for rank in RANKS]
    ceiling = min(n_rows - center, n_cols)
    assert values[0] >= 1 - 1e-9
    assert values[-1] <= ceiling * (1 + 1e-9)
    assert all(a <= b * (1 + 1e-9) for a, b in zip(values, values[1:], strict=False))
    rotation = np.linalg.qr(rng.normal(size=(n_cols, n_cols)))[0]
    moved = -(10.0**log_scale) * W[rng.permutation(n_rows)] @ rotation
    np.testing.assert_allclose([rank(moved, center=center) for rank in RANKS], values, rtol=1e-7)


@given(st.integers(0, 10_000), st.floats(-100, 100))
@settings(max_examples=30, deadline=None)
def test_centred_ranks_do_not_see_a_translation(seed, shift):
    W = np.random.default_rng(seed).normal(size=(9, 4))
    for rank in RANKS:
        assert rank(W + shift, center=True) == pytest.approx(rank(W, center=True), rel=1e-9)


def test_participation_of_concept_means_reaches_its_ceiling():
    n = 7  # a regular simplex spreads evenly over n − 1 dimensions
    assert probes.participation_ratio(np.eye(n)) == pytest.approx(n - 1, rel=1e-12)


def test_utilization_and_spectrum():
    W = np.eye(8)[:, :6] * 3
    assert probes.rank_utilization(W) == pytest.approx(1.0)
    np.testing.assert_allclose(probes.singular_values(W), 3.0)
    np.testing.assert_allclose(probes.singular_values(np.zeros((3, 2))), 0.0)
    assert probes.ranks_of_spectrum(np.array([1.0, 3.0, 2.0])).nuclear_rank == pytest.approx(36 / 14)


def test_integers_and_half_precision_are_taken():
    W = np.arange(12).reshape(4, 3)
    assert probes.nuclear_rank(W.astype(np.float16)) == pytest.approx(probes.nuclear_rank(W))


@pytest.mark.parametrize("rank", [*RANKS, probes.rank_utilization])
def test_no_spread_is_nan_and_warned(rank):
    with pytest.warns(probes.ConstantInputWarning, match="undefined"):
        assert np.isnan(rank(np.zeros((4, 3)), center=False))
    with pytest.warns(probes.ConstantInputWarning):  # 0.1 has no exact mean: only the shift makes this exactly zero
        assert np.isnan(rank(np.full((7, 3), 0.1), center=True))
    with pytest.warns(probes.ConstantInputWarning):
        assert np.isnan(probes.matrix_ranks(np.zeros((3, 3))).nuclear_rank)
    with pytest.warns(probes.ConstantInputWarning):
        assert np.isnan(probes.ranks_of_spectrum(np.zeros(3)).effective_rank)


@pytest.mark.parametrize("rank", [*RANKS, probes.matrix_ranks, probes.matrix_spectrum, probes.singular_values])
@pytest.mark.parametrize(
    ("W", "center", "message"),
    [
        (np.ones(3), False, r"W has shape \(3,\)"),
        (np.ones((2, 2, 2)), False, r"shape \(2, 2, 2\)"),
        (np.ones((0, 3)), False, "at least one value"),
        (np.ones((1, 3)), True, "rows ≥ 2"),
        (np.array([[1.0, np.nan]]), False, "1 values that are NaN or inf"),
        (np.array([[1.0, np.inf]]), False, "NaN or inf"),
        (np.array([["a", "b"]]), False, "expected real numbers"),
        (np.array([[1j, 2.0]]), False, "expected real numbers"),
    ],
)
def test_bad_input(rank, W, center, message):
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(rank)(W, center=center)


def test_bad_spectrum():
    for sigma in (np.array([-1.0]), np.array([]), np.array([np.nan]), np.ones((2, 2))):
        with pytest.raises(ValueError, match="ranks_of_spectrum"):
            inspect.unwrap(probes.ranks_of_spectrum)(sigma)


def test_extremes_do_not_overflow():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for scale in (1e-300, 1e300):
            assert probes.stable_rank(np.diag([3.0, 2.0, 1.0]) * scale) == pytest.approx(14 / 9)
