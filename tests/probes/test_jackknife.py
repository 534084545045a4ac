"""The delete-a-group jackknife: known values, and how often its intervals hold the truth."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from probes.jackknife import jackknife_interval, jackknife_stderr
from probes.ranks import nuclear_rank

GROUPS, DRAWS = 16, 1500


def without(parts: np.ndarray) -> np.ndarray:
    """Sums over groups, the first axis, without each one."""
    return parts.sum(0) - parts


@pytest.mark.parametrize("seed", range(3))
def test_the_error_of_a_mean_is_that_of_the_means_of_equal_groups(seed) -> None:
    x = np.random.default_rng(seed).normal(size=(GROUPS, 5))
    left_out = without(x.sum(1)) / (x.size - 5)
    assert jackknife_stderr(left_out) == pytest.approx(x.mean(1).std(ddof=1) / GROUPS**0.5, rel=1e-12)
    low, high = jackknife_interval(float(x.mean()), left_out)
    wanted = scipy.stats.t.interval(0.95, GROUPS - 1, x.mean(), scipy.stats.sem(x.mean(1)))
    np.testing.assert_allclose((low, high), wanted, rtol=1e-12)


def test_rows_are_alone_and_what_is_undefined_stays_so() -> None:
    rows = np.random.default_rng(0).normal(size=(2, 3, 9))
    found = jackknife_stderr(rows)
    assert found.shape == (2, 3)
    assert found[1, 2] == jackknife_stderr(rows[1, 2])
    assert np.isnan(jackknife_interval(1.0, np.array([1.0, np.nan, 2.0]))).all()
    assert jackknife_interval(0.0, np.zeros(9)) == (0.0, 0.0)
    with pytest.raises(ValueError, match="got 1 groups; expected at least 2"):
        jackknife_stderr(np.zeros(1))


def coverage(estimates: np.ndarray, left_out: np.ndarray, truth: float) -> float:
    """Share of intervals that hold the truth."""
    half = scipy.stats.t.ppf(0.975, GROUPS - 1) * jackknife_stderr(left_out)
    return float(np.mean(np.abs(estimates - truth) <= half))


def test_coverage_of_a_mean_and_of_a_ratio_of_means_that_share_their_text() -> None:
    """Sequences of unlike difficulty, gamma-distributed, read by two models."""
    rng = np.random.default_rng(1)
    text = rng.gamma(4.0, 1.0, size=(DRAWS, GROUPS, 8))
    a, b = (text * factor + rng.gamma(2.0, 0.5, size=text.shape) for factor in (1.0, 0.8))
    sums = [x.sum(2) for x in (a, b)]
    left_out = [x.sum(1, keepdims=True) - x for x in sums]
    assert 0.93 <= coverage(a.mean((1, 2)), left_out[0] / (8 * (GROUPS - 1)), 5.0) <= 0.97
    ratios = np.log(sums[1].sum(1) / sums[0].sum(1))
    assert 0.93 <= coverage(ratios, np.log(left_out[1] / left_out[0]), np.log(4.2 / 5.0)) <= 0.97


def test_coverage_of_a_rank() -> None:
    """The ratio of two models' nuclear ranks, of z whose covariance the text has a part in: what the estimate of the
    same number of tokens tends to, since the rank of few tokens is biased and both models' alike."""
    rng = np.random.default_rng(2)
    width, n = 12, 24
    scales = [np.linspace(1, low, width) for low in (0.2, 0.4)]
    estimates, left_out = np.empty(DRAWS), np.empty((DRAWS, GROUPS))
    for draw in range(DRAWS):
        shared = rng.normal(size=(GROUPS, n, width))
        moments = []
        for scale in scales:
            z = (shared + rng.normal(size=shared.shape)) * scale
            moments.append(z.swapaxes(1, 2) @ z)
        ranks = [np.sqrt(np.linalg.eigvalsh(np.concatenate([own.sum(0)[None], without(own)]))) for own in moments]
        logs = [np.log(sigma.sum(1) ** 2 / (sigma**2).sum(1)) for sigma in ranks]
        effects = logs[1] - logs[0]
        estimates[draw], left_out[draw] = effects[0], effects[1:]
    z = np.random.default_rng(3).normal(size=(200_000, width))
    truth = float(np.log(nuclear_rank(z * scales[1]) / nuclear_rank(z * scales[0])))
    assert 0.93 <= coverage(estimates, left_out, truth) <= 0.97
