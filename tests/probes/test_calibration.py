"""Do the p-values and intervals mean what they say? Simulations, run with the slow tests.

Seeds are fixed and thresholds lie four standard errors from the nominal value, or at the figure a docstring states.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from scipy.spatial.distance import pdist, squareform

import probes

pytestmark = pytest.mark.slow

ALPHA = 0.05


def independent_distances(rng, n, count=2):
    return [pdist(rng.normal(size=(n, 3))) for _ in range(count)]


def smoothed(pvalue, n_tied, n_all, rng):
    """A permutation p-value made exactly uniform under the null: less a uniform share of its ties (and itself)."""
    return pvalue - rng.random() * n_tied / n_all


@pytest.mark.parametrize("method", ["spearman", "pearson"])
@pytest.mark.parametrize("alternative", ["greater", "less", "two-sided"])
def test_sampled_p_is_uniform_under_the_null(method, alternative):
    rng = np.random.default_rng(0)
    p = []
    for _ in range(3000):
        x, y = independent_distances(rng, 12)
        result = probes.mantel(x, y, method=method, alternative=alternative, n_resamples=99, rng=rng)
        p.append(smoothed(result.pvalue, result.n_ties + 1, 100, rng))
    assert stats.kstest(p, "uniform").pvalue > 0.001


@pytest.mark.parametrize("alternative", ["greater", "two-sided"])
def test_exact_p_is_uniform_under_the_null_with_ties(alternative):
    cyclic = probes.cyclic_distances(6)  # 12 automorphisms: every value of r ties with eleven others at least
    rng = np.random.default_rng(1)
    p = []
    for _ in range(3000):
        result = probes.mantel(independent_distances(rng, 6)[0], cyclic, alternative=alternative)
        assert result.n_ties >= 12
        p.append(smoothed(result.pvalue, result.n_ties, 720, rng))
    assert stats.kstest(p, "uniform").pvalue > 0.001


def test_many_p_is_uniform_and_its_family_wise_error_holds():
    rng = np.random.default_rng(2)
    n_runs, p, family, raw = 2000, [], 0, 0
    for _ in range(n_runs):
        shared = rng.normal(size=(10, 3))
        layers = [pdist(shared + rng.normal(size=(10, 3))) for _ in range(8)]  # layers of a model resemble each other
        result = probes.mantel_many(layers, independent_distances(rng, 10)[0], n_resamples=99, rng=rng)
        p.append(smoothed(result.pvalue[3], result.n_ties[3] + 1, 100, rng))
        family += result.pvalue_westfall_young.min() <= ALPHA
        raw += result.pvalue.min() <= ALPHA
    assert stats.kstest(p, "uniform").pvalue > 0.001
    assert family / n_runs < ALPHA + 4 * np.sqrt(ALPHA * (1 - ALPHA) / n_runs)
    assert raw / n_runs > 2 * ALPHA


def test_parallelism_p_is_uniform_under_the_null():
    rng = np.random.default_rng(3)
    p = []
    for _ in range(2000):
        a, b = rng.normal(size=(2, 9, 5))
        result = probes.pair_parallelism(a, b + 1, n_resamples=99, rng=rng)
        p.append(smoothed(result.pvalue, result.n_ties + 1, 100, rng))
    assert stats.kstest(p, "uniform").pvalue > 0.001


def latent_pair(rng, n, kinship):
    """Distances of n normal latents in the plane, and of noisy copies of them."""
    u = rng.normal(size=(n, 2))
    return pdist(u), pdist(kinship * u + np.sqrt(1 - kinship**2) * rng.normal(size=(n, 2)))


def population_correlation(kinship, method):
    """The correlation over independent pairs of items, from a million of them."""
    rng = np.random.default_rng(99)
    u, v = (rng.normal(size=(1_000_000, 2, 2)) for _ in range(2))
    v = kinship * u + np.sqrt(1 - kinship**2) * v
    x, y = (np.linalg.norm(w[:, 0] - w[:, 1], axis=1) for w in (u, v))
    return (stats.spearmanr if method == "spearman" else stats.pearsonr)(x, y)[0]


@pytest.mark.parametrize("kinship", [0.0, 0.6, 0.9])
@pytest.mark.parametrize("method", ["spearman", "pearson"])
@pytest.mark.parametrize("n", [12, 35])
def test_coverage_of_the_interval(n, method, kinship):
    """At least .90 of nominally 95 % intervals hold the population value, in 400 runs (standard error .011)."""
    rng = np.random.default_rng(4)
    truth = population_correlation(kinship, method)
    held = 0
    for _ in range(400):
        x, y = latent_pair(rng, n, kinship)
        low, high = probes.mantel(x, y, method=method, n_resamples=0, rng=rng).confidence_interval
        held += low <= truth <= high
    assert held / 400 > 0.90


def curves(rng, n, d, roughness):
    """d independent paths over n equally spaced times, covariance exp(−(|Δt|/.3)^roughness): 1 rough, 2 smooth."""
    times = np.arange(n) / n
    covariance = np.exp(-((np.abs(np.subtract.outer(times, times)) / 0.3) ** roughness))
    return np.linalg.cholesky(covariance + 1e-8 * np.eye(n)) @ rng.normal(size=(n, d))


def rejection_rates(d, roughness, n_runs=400):
    """Rejections at .05 of independent curves: plain, partial given time, and with permuted residuals."""
    rng = np.random.default_rng(5)
    n = 35
    z = squareform(probes.ordinal_distances(n))
    rejected = np.zeros(3)
    for _ in range(n_runs):
        x, y = (pdist(curves(rng, n, d, roughness)) for _ in range(2))
        residual_x, residual_y = (_residual(stats.rankdata(v), stats.rankdata(z)) for v in (x, y))
        tests = (
            probes.mantel(x, y, n_resamples=99, rng=rng),
            probes.partial_mantel(x, y, z, n_resamples=99, rng=rng),
            probes.mantel(residual_x, residual_y, method="pearson", n_resamples=99, rng=rng),
        )
        rejected += [test.pvalue <= ALPHA for test in tests]
    return rejected / n_runs


def _residual(values, given):
    given = given - given.mean()
    return values - values.mean() - given * (values @ given) / (given @ given)


def test_partial_mantel_rejects_true_nulls_under_autocorrelation_as_its_docstring_says():
    plain, partial, residual = rejection_rates(d=8, roughness=1)
    assert plain > 0.95
    assert 0.35 < partial < 0.50
    assert residual > 0.30  # permuting residuals does not repair it
    plain, partial, _ = rejection_rates(d=1, roughness=1)
    assert 0.15 < partial < 0.30 < plain


def test_partial_mantel_holds_its_level_without_autocorrelation():
    rng = np.random.default_rng(6)
    rejected = [
        probes.partial_mantel(*independent_distances(rng, 20, 3), n_resamples=99, rng=rng).pvalue <= ALPHA
        for _ in range(1500)
    ]
    assert abs(np.mean(rejected) - ALPHA) < 4 * np.sqrt(ALPHA * (1 - ALPHA) / 1500)


def test_two_nn_errors_on_real_clouds():
    """The stated error is at most a fifth too small for shared neighbours."""
    rng = np.random.default_rng(7)
    for d in (2, 5):
        for fit in ("regression", "mle", "mle_censored"):
            results = [probes.two_nn(rng.uniform(size=(400, d)), fit=fit) for _ in range(200)]
            spread = np.std([result.dimension for result in results])
            stated = np.mean([result.stderr for result in results])
            assert 0.9 < spread / stated < 1.3
