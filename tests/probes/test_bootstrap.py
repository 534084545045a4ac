"""The bootstraps against plain loops: of items, with self-pairs dropped and ranks anew, and of units of ratios."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from scipy.spatial.distance import pdist, squareform

import probes
from probes import bootstrap
from probes.bootstrap import ItemBootstrap, ratio_limits


def naive_replicates(x, y, z, n, method, seed):
    """Each resample written out as a list of pairs of distinct items, pairs repeated as often as drawn."""
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(n, np.full(n, 1 / n), size=bootstrap.N_BOOTSTRAP)
    squares = [squareform(v) for v in (x, y) + (() if z is None else (z,))]
    out = []
    for row in counts[:40]:
        items = np.repeat(np.arange(n), row)
        pairs = [(a, b) for i, a in enumerate(items) for b in items[i + 1 :] if a != b]
        values = [np.array([s[p] for p in pairs]) for s in squares]
        if method == "spearman":
            values = [stats.rankdata(v) for v in values]
        r = np.corrcoef(values)
        if z is not None:
            r[0, 1] = (r[0, 1] - r[0, 2] * r[1, 2]) / np.sqrt((1 - r[0, 2] ** 2) * (1 - r[1, 2] ** 2))
        out.append(r[0, 1])
    return np.array(out)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("method", ["spearman", "pearson"])
@pytest.mark.parametrize("is_partial", [False, True])
def test_replicates_against_a_loop(seed, method, is_partial):
    rng = np.random.default_rng(seed)
    n = 10
    x, y, z = (np.round(pdist(rng.normal(size=(n, 2))), 1) for _ in range(3))  # one decimal: ties
    z = z if is_partial else None
    got = ItemBootstrap(x[None], y, z, n, method == "spearman", seed).replicates()[:40, 0]
    np.testing.assert_allclose(got, naive_replicates(x, y, z, n, method, seed), atol=1e-10)


def test_batches_do_not_change_the_draws(monkeypatch):
    rng = np.random.default_rng(0)
    x, y = pdist(rng.normal(size=(12, 2))), pdist(rng.normal(size=(12, 2)))
    drawn = ItemBootstrap(np.stack([x, y]), y, None, 12, True, 3)
    whole = drawn.replicates()
    monkeypatch.setattr(bootstrap, "BATCH_VALUES", 66 * 100)
    np.testing.assert_array_equal(drawn.replicates(), whole)
    assert whole.shape == (bootstrap.N_BOOTSTRAP, 2)
    np.testing.assert_allclose(whole[:, 1], 1.0)


def test_interval_holds_the_statistic_and_narrows_with_n():
    widths = []
    for n in (12, 40):
        X = np.random.default_rng(n).normal(size=(n, 2))
        noisy = X + 0.5 * np.random.default_rng(n + 1).normal(size=X.shape)
        result = probes.mantel(probes.euclidean_distances(X), probes.euclidean_distances(noisy), n_resamples=19, rng=0)
        low, high = result.confidence_interval
        assert -1 <= low < result.statistic < high <= 1
        widths.append(high - low)
    assert widths[1] < widths[0]


def test_too_few_items_have_no_interval():
    x = probes.ordinal_distances(4)
    assert np.isnan(probes.mantel(x, x**2).confidence_interval).all()


def test_partial_correlation_undefined_at_one():
    got = bootstrap.partial_correlation(np.full(3, 0.5), np.array([0.2, 1.0, -1.0]), np.full(3, 0.1))
    assert np.isnan(got).tolist() == [False, True, True]


def expanded_percentile(numerator, denominator, seed):
    """The bootstrap as it reads: units drawn with replacement, one draw after the other."""
    rng, n = np.random.default_rng(seed), len(numerator)
    replicates = []
    for _ in range(2000):
        chosen = np.repeat(np.arange(n), rng.multinomial(n, np.full(n, 1 / n)))
        if denominator[chosen].sum():
            replicates.append(numerator[chosen].sum() / denominator[chosen].sum())
    alpha = stats.norm.cdf(np.sqrt(n / (n - 1)) * stats.t.ppf(0.025, n - 1))
    return np.quantile(replicates, [alpha, 1 - alpha])


def test_the_interval_of_a_ratio_is_the_bootstrap_over_units():
    rng = np.random.default_rng(1)
    denominator = rng.integers(0, 4, 12).astype(float)
    numerator = rng.binomial(denominator.astype(int), 0.4).astype(float)
    rows = np.stack([numerator, denominator - numerator])
    found = np.stack(ratio_limits(rows, denominator, np.random.default_rng(7), 2000), axis=1)
    for limits, row in zip(found, rows, strict=True):
        np.testing.assert_allclose(limits, expanded_percentile(row, denominator, 7), rtol=1e-12)
    scaled = ratio_limits(rows, denominator, np.random.default_rng(7), 2000, 100)
    np.testing.assert_allclose(np.stack(scaled, axis=1), 100 * found, rtol=1e-12)


def test_the_interval_of_a_ratio_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        denominator = rng.poisson(8, 32) + 1
        rate = rng.beta(2, 6, 32)  # prompts differ, samples of one share its rate
        numerator = rng.binomial(denominator, rate)
        low, high = ratio_limits(numerator[None] * 1.0, denominator * 1.0, np.random.default_rng(trial), 2000)
        hits += low[0] <= 0.25 <= high[0]
    assert 0.9 <= hits / 200 <= 0.99  # .95 ± three standard errors of 200 trials
