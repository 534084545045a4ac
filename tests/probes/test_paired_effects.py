"""Shares of a gap and their intervals over clusters, against formulas by hand and simulated sets of pairs."""

from __future__ import annotations

import math

import numpy as np
import pytest

from probes import mean_gap, recovery, sign_flip_test


def test_the_share_is_a_ratio_of_sums_with_the_gap_beside_it():
    gaps, effects = np.array([3.0, 3.0, 6.0, 4.0]), np.array([[1.5, 1.5, 3.0, 2.0], [1.0, 0.0, 0.0, 3.0]])
    found = recovery(effects, gaps, np.random.default_rng(0))
    assert found.share.tolist() == [0.5, 0.25]
    assert found.low[0] == found.high[0] == 0.5, "a share that every pair has alone has no spread"
    assert found.low[1] < 0.25 < found.high[1]
    assert found.gap.mean == 4.0
    assert found.gap.stderr == pytest.approx(gaps.std(ddof=1) / 2)


def test_pairs_of_one_cluster_are_one_unit():
    rng = np.random.default_rng(0)
    gaps = rng.normal(2, 1, 12)
    doubled = mean_gap(np.repeat(gaps, 5), np.random.default_rng(1), np.repeat(np.arange(12), 5))
    alone = mean_gap(gaps, np.random.default_rng(1))
    assert doubled.mean == pytest.approx(alone.mean)
    assert doubled.stderr == pytest.approx(alone.stderr)
    assert doubled.interval == pytest.approx(alone.interval)
    assert (doubled.n_pairs, doubled.n_clusters) == (60, 12)


def test_a_gap_within_three_errors_of_zero_defines_no_share():
    gaps = np.array([1.0, -1.0, 2.0, -1.5])
    found = recovery(gaps[None] / 2, gaps, np.random.default_rng(0))
    assert not found.gap.is_defined
    assert np.isnan([found.share[0], found.low[0], found.high[0]]).all()
    assert math.isfinite(found.gap.mean)


def test_a_cell_that_was_not_measured_stays_nan():
    effects = np.array([[np.nan, np.nan, np.nan], [1.0, 2.0, 3.0]])
    found = recovery(effects, np.array([2.0, 4.0, 6.0]), np.random.default_rng(0))
    assert math.isnan(found.share[0])
    assert found.share[1] == 0.5
    p = sign_flip_test(effects, np.random.default_rng(0))
    assert math.isnan(p[0])
    assert p[1] > 0.05, "three clusters have eight signs"
    with pytest.raises(ValueError, match="nan in some pairs only"):
        recovery(np.array([[np.nan, 1.0, 2.0]]), np.array([2.0, 4.0, 6.0]), np.random.default_rng(0))


def simulated(rng: np.random.Generator, n_clusters: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Effects [1 pair], gaps, clusters: gaps of mean 2, effects .4 of them and noise, both shared within clusters."""
    cluster = np.repeat(np.arange(n_clusters), size)
    gaps = 2 + rng.normal(0, 0.7, n_clusters)[cluster] + rng.normal(0, 0.7, len(cluster))
    own = rng.normal(0, 0.5, n_clusters)[cluster] + rng.normal(0, 0.5, len(cluster))
    return (0.4 * gaps + own)[None], gaps, cluster


def test_intervals_hold_the_truth_as_often_as_they_say():
    """600 sets of 128 pairs in 32 clusters: the standard error of a coverage of .95 is .009."""
    rng, held, unclustered = np.random.default_rng(3), 0, 0
    for _ in range(600):
        effects, gaps, cluster = simulated(rng, 32, 4)
        found = recovery(effects, gaps, rng, cluster, n_draws=400)
        held += found.low[0] <= 0.4 <= found.high[0]
        naive = recovery(effects, gaps, rng, n_draws=400)
        unclustered += naive.low[0] <= 0.4 <= naive.high[0]
    assert 0.93 <= held / 600 <= 0.97, held / 600
    assert unclustered / 600 < 0.90, "pairs that share fillers are no independent ones"


def test_one_test_for_all_cells_holds_its_error():
    """400 maps of 20 cells without effect, correlated: at .05 one in twenty maps has any cell below."""
    rng, n_false = np.random.default_rng(4), 0
    for _ in range(400):
        noise = rng.normal(size=(20, 48)) + rng.normal(size=48)
        n_false += bool((sign_flip_test(noise, rng, n_draws=300) < 0.05).any())
    assert 0.03 <= n_false / 400 <= 0.075, n_false / 400
    strong = rng.normal(size=(20, 48))
    strong[7] += 1.5
    p = sign_flip_test(strong, rng)
    assert p[7] < 0.01
    assert (np.delete(p, 7) > 0.05).all()
