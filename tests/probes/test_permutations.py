"""The grid of random permutations: what it holds, its law, and the sums under it."""

from itertools import permutations

import numpy as np
import pytest
from scipy import stats
from scipy.spatial.distance import squareform

from probes.permutations import PermutationGrid, PermutationPlan, permuted_sums, plan_permutations


@pytest.mark.parametrize("n_resamples", [0, 1, 2, 99, 100, 999, 1008, 5000])
def test_a_grid_holds_as_many_as_are_asked_for(n_resamples):
    grid = PermutationGrid.draw(np.random.default_rng(0), n_resamples, 9)
    products = grid.products(0, n_resamples)
    assert products.shape == (n_resamples, 9)
    assert np.all(np.sort(products, axis=1) == np.arange(9))
    assert len(grid.left) * len(grid.right) == n_resamples + 1
    assert len(grid.left) >= len(grid.right)
    np.testing.assert_array_equal(grid.products(n_resamples // 3, n_resamples), products[n_resamples // 3 :])


@pytest.mark.parametrize(("n", "k", "m"), [(3, 1, 1), (4, 1, 35), (7, 2, 99), (12, 1, 1008), (11, 30, 99), (9, 3, 22)])
def test_sums_under_the_grid_equal_a_loop_over_its_products(n, k, m):
    rng = np.random.default_rng(n)
    square = squareform(rng.normal(size=n * (n - 1) // 2))
    weights = rng.normal(size=(n * (n - 1) // 2, k))
    plan = plan_permutations("test", n, n_resamples=m, exact=False, permutations=None, rng=5)
    first, second = np.triu_indices(n, 1)
    products = PermutationGrid.draw(np.random.default_rng(5), m, n).products(0, m)
    expected = np.stack([square[p[first], p[second]] @ weights for p in products], axis=1)
    np.testing.assert_allclose(permuted_sums(square, weights, plan), expected, atol=1e-12)
    listed = PermutationPlan(n, m, exact=False, given=products)
    np.testing.assert_allclose(permuted_sums(square, weights, listed), expected, atol=1e-12)


def test_a_grid_is_uniform_and_any_two_of_it_are_independent():
    """Over 6,000 grids of 3 × 2 permutations of three items: each of six equally likely, each pair of 36."""
    place = {p: k for k, p in enumerate(permutations(range(3)))}
    rng = np.random.default_rng(0)
    drawn = np.array([[place[tuple(p)] for p in PermutationGrid.draw(rng, 5, 3).products(0, 5)] for _ in range(6000)])
    pvalues = [stats.chisquare(np.bincount(column, minlength=6)).pvalue for column in drawn.T]
    pvalues += [
        stats.chisquare(np.bincount(6 * drawn[:, i] + drawn[:, j], minlength=36)).pvalue
        for i in range(5)
        for j in range(i)
    ]
    assert min(pvalues) > 0.001 / len(pvalues)


def test_the_count_of_extreme_permutations_has_the_variance_of_independent_ones():
    """2,000 grids of 99 on one pair of matrices: the variance of the share above r is p(1 − p)/m, within 15 %."""
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(2, 45))
    x, y = (x - x.mean()) / np.linalg.norm(x - x.mean()), (y - y.mean()) / np.linalg.norm(y - y.mean())
    square, weights = squareform(x), y[:, None]
    sums = np.stack([
        permuted_sums(square, weights, plan_permutations("test", 10, n_resamples=99, exact=False, permutations=None,
                                                         rng=seed))[0]
        for seed in range(2000)
    ])  # fmt: skip
    above = (sums > np.quantile(sums, 0.8)).mean(axis=1)
    assert above.var(ddof=1) == pytest.approx(0.8 * 0.2 / 99, rel=0.15)  # its own error: .03
