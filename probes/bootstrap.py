"""Intervals of distance correlations by resampling items, self-pairs dropped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

N_BOOTSTRAP = 999
LEVEL = 0.95
MIN_ITEMS = 5  # below, a resample of items seldom holds the three distinct ones that a correlation needs
BATCH_VALUES = 1 << 17  # weights held at once: 1 MiB, so that passes over them stay in cache


class ConfidenceInterval(NamedTuple):
    """Lower and upper limit of an interval; nan where it is undefined."""

    low: float
    high: float


@dataclass(frozen=True)
class ItemBootstrap:
    """Percentile bootstrap over items of the correlation of condensed distances, ready to be drawn.

    n items are drawn with replacement; a pair of two copies of one item (distance 0 in every matrix, so a spurious
    agreement) is dropped, a pair of distinct items counts as often as it was drawn. For Spearman the resampled pairs
    are ranked anew. `x` [k, n_pairs] are k matrices against one target `y` [n_pairs], given `z` [n_pairs] if not None.

    Simulated coverage of the nominal 95 % (two-dimensional normal latents, population correlations 0 to .76; noisy
    curves to .97): n = 12: Spearman .95–1.00, Pearson .92–.98; n = 35: Spearman .93–.98, Pearson .92–.95. Pearson under
    heavy tails (t, 3 degrees of freedom) .91 and .85. Bias-corrected, accelerated, basic and jackknife intervals
    covered no better. It treats the items as a sample: for a closed set (the twelve months) read it as sensitivity to
    the choice of items.
    """

    x: np.ndarray
    y: np.ndarray
    z: np.ndarray | None
    n: int
    is_spearman: bool
    seed: int

    def replicates(self) -> np.ndarray:
        """Resampled statistics [N_BOOTSTRAP, k]; nan where a resample leaves them undefined."""
        rng = np.random.default_rng(self.seed)
        first, second = np.triu_indices(self.n, 1)
        size = max(1, min(BATCH_VALUES // self.y.size, N_BOOTSTRAP))
        batches = []
        for start in range(0, N_BOOTSTRAP, size):
            rows = min(size, N_BOOTSTRAP - start)
            counts = rng.multinomial(self.n, np.full(self.n, 1 / self.n), size=rows).astype(np.float64)
            batches.append(self._correlations(counts[:, first] * counts[:, second]))
        return np.concatenate(batches)

    def _correlations(self, weights: np.ndarray) -> np.ndarray:
        scores = _weighted_ranks if self.is_spearman else _weighted_deviations
        y = scores(weights, self.y)
        x_scores = (scores(weights, row) for row in self.x)
        if self.z is None:
            return np.stack([_cosine(weights, x, y) for x in x_scores], axis=1)
        z = scores(weights, self.z)
        r_yz = _cosine(weights, y, z)
        partials = [partial_correlation(_cosine(weights, x, y), _cosine(weights, x, z), r_yz) for x in x_scores]
        return np.stack(partials, axis=1)

    def interval(self) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper limits [k]; nan for n < 5 items or where fewer than half the resamples are defined."""
        if self.n < MIN_ITEMS:
            undefined = np.full(len(self.x), np.nan)
            return undefined, undefined.copy()
        return percentile_limits(self.replicates())


def percentile_limits(replicates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper 95 % limits [k] of replicates [m, k]; nan where fewer than half of a column are defined."""
    k = replicates.shape[1]
    low, high = np.full(k, np.nan), np.full(k, np.nan)
    for column, values in enumerate(replicates.T):
        defined = values[np.isfinite(values)]
        if 2 * defined.size >= values.size:
            low[column], high[column] = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return low, high


def partial_correlation(r_xy: np.ndarray | float, r_xz: np.ndarray | float, r_yz: np.ndarray | float) -> np.ndarray:
    """(r_xy − r_xz r_yz)/√((1 − r_xz²)(1 − r_yz²)), elementwise; nan where |r_xz| or |r_yz| is 1 to ten digits."""
    left_of_x, left_of_y = 1 - np.square(r_xz), 1 - np.square(r_yz)
    is_defined = (left_of_x > 1e-10) & (left_of_y > 1e-10)
    scale = np.sqrt(np.where(is_defined, left_of_x * left_of_y, 1.0))
    return np.where(is_defined, (r_xy - r_xz * r_yz) / scale, np.nan)


def _weighted_deviations(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Values less their weighted mean, [m, n_pairs]; a zero total (no pair left) leaves them as they are."""
    total = weights.sum(axis=1, keepdims=True)
    return values - (weights @ values)[:, None] / np.where(total > 0, total, 1)


def _weighted_ranks(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Average ranks of values counted `weights` times, less their mean, [m, n_pairs].

    A value's rank is (number of smaller ones) + (number of equal ones + 1)/2, from one cumulative sum in sorted order.
    """
    order = np.argsort(values, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(values[order]) != 0, True))
    up_to = np.cumsum(weights[:, order], axis=1)[:, ends]
    before = np.concatenate([np.zeros((len(weights), 1)), up_to[:, :-1]], axis=1)
    group = np.empty(values.size, dtype=np.intp)
    group[order] = np.repeat(np.arange(ends.size), np.diff(ends, prepend=-1))
    return ((before + up_to - up_to[:, -1:]) / 2)[:, group]


def _cosine(weights: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Weighted correlation [m] of centred values; nan where one has no spread."""
    products = [np.einsum("mp,mp,mp->m", weights, a, b) for a, b in ((x, y), (x, x), (y, y))]
    scale = np.sqrt(products[1] * products[2])
    tiny = 1e-12 * np.einsum("mp->m", weights) * np.max(np.abs(x), axis=1) * np.max(np.abs(y), axis=1)
    is_defined = scale > tiny
    return np.where(is_defined, products[0] / np.where(is_defined, scale, 1.0), np.nan)
