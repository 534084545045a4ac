"""Distances to the nearest neighbours, exact to float64, at the price of float32 products.

‖x − y‖² = ‖x‖² + ‖y‖² − 2xᵀy lets a matrix product find neighbours fast, but loses the digits that near neighbours
need, all the more the further the cloud lies from the origin. So the points are centred, a blocked float32 product
picks a few candidates a point, their distances are recomputed from differences in float64, and a bound on the
product's error certifies that no other point can be nearer. Points without certificate are searched again in float64.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Real
from scipy.spatial import KDTree

from probes.checks import near_one

TREE_UP_TO = 8  # dimensions up to which a k-d tree beats products
SLACK = 2  # candidates beyond k: what the certificate compares against
TILE = 1000  # not a power of two: columns of such a tile would share their cache lines
REFINED_VALUES = 1 << 22  # differences held at once: 32 MiB of float64


def nearest_distances(X: Real[np.ndarray, "n d"], k: int) -> Float[np.ndarray, "n k"]:
    """Euclidean distances [n, k] from each row of X to its k nearest other rows, ascending, float64.

    Memory: a float32 copy of X and blocks of a few MiB. Float64 input keeps its digits in the result.

    Raises ValueError where there are not k other rows.
    """
    n, d = X.shape
    if not 1 <= k < n:
        raise ValueError(f"nearest_distances: k is {k} for {n} points; want 1 ≤ k ≤ n − 1")
    if d <= TREE_UP_TO:
        points, exponent = near_one(X)
        return np.ldexp(np.asarray(KDTree(points).query(points, k=k + 1)[0])[:, 1:], exponent)
    mean = X.mean(axis=0, dtype=np.float64)
    scale = max(float(np.abs(X - mean).max(initial=0.0)), np.finfo(np.float64).tiny)
    search = _Search(X, mean, scale, k)
    distances, is_certain = search.by_float32_products()
    doubtful = np.flatnonzero(~is_certain)
    if doubtful.size:
        distances[doubtful] = search.by_float64_products(doubtful)
    return distances * scale


class _Search:
    """Candidates and refined distances of one cloud, in units of its largest centred coordinate."""

    def __init__(self, X: np.ndarray, mean: np.ndarray, scale: float, k: int) -> None:
        self.X, self.mean, self.scale, self.k = X, mean, scale, k
        self.n, self.d = X.shape
        self.n_candidates = min(k + SLACK, self.n - 1)
        self.tiles = [slice(start, min(start + TILE, self.n)) for start in range(0, self.n, TILE)]

    def _centred(self, rows: slice | np.ndarray) -> np.ndarray:
        return (self.X[rows] - self.mean) / self.scale

    def by_float32_products(self) -> tuple[np.ndarray, np.ndarray]:
        """Distances [n, k] and whether each row is certain, by one product for each pair of tiles."""
        Z = np.empty((self.n, self.d), dtype=np.float32)
        square = np.empty(self.n)
        for tile in self.tiles:
            centred = self._centred(tile)
            Z[tile] = centred
            square[tile] = np.einsum("nd,nd->n", centred, centred)
        square32 = square.astype(np.float32)
        best = _Best(self.n, self.n_candidates, np.float32)
        for a, rows in enumerate(self.tiles):
            for columns in self.tiles[a:]:
                product = Z[rows] @ Z[columns].T
                product *= -2
                if rows == columns:
                    np.fill_diagonal(product, np.inf)
                else:
                    best.offer(columns, rows, (product + square32[rows, None]).T)
                product += square32[columns]
                best.offer(rows, columns, product)
        distances = self._refined(np.arange(self.n), best.index)
        if self.n_candidates == self.n - 1:
            return distances, np.ones(self.n, dtype=bool)
        # Only a point within reach, ‖y‖ ≤ ‖x‖ + r, could be nearer. Its product is off by at most γ_d‖x‖‖y‖
        # (Higham 2002, §3.1); twelve units more cover the rounding of coordinates, squares and sums.
        furthest = distances[:, -1]
        reach = square + (np.sqrt(square) + furthest) ** 2
        error = (self.d + 12) * 2.0**-24 * reach
        return distances, best.value[:, -1] + square - error >= furthest**2

    def by_float64_products(self, rows: np.ndarray) -> np.ndarray:
        """Distances [len(rows), k] by float64 products; what these confuse is equal to 1e-13 of the norms."""
        distances = np.empty((rows.size, self.k))
        for start in range(0, rows.size, TILE):
            part = rows[start : start + TILE]
            best = _Best(part.size, self.n_candidates, np.float64)
            centred = self._centred(part)
            for columns in self.tiles:
                others = self._centred(columns)
                values = np.einsum("nd,nd->n", others, others) - 2 * centred @ others.T
                own = np.flatnonzero((part >= columns.start) & (part < columns.stop))
                values[own, part[own] - columns.start] = np.inf
                best.offer(slice(0, part.size), columns, values)
            distances[start : start + part.size] = self._refined(part, best.index)
        return distances

    def _refined(self, rows: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        """The k smallest distances [len(rows), k] to the candidates, from float64 differences, ascending."""
        distances = np.empty(candidates.shape)
        size = max(1, REFINED_VALUES // (candidates.shape[1] * self.d))
        for start in range(0, rows.size, size):
            block = slice(start, start + size)
            own = self.X[rows[block], None].astype(np.float64)
            difference = (self.X[candidates[block]] - own) / self.scale
            distances[block] = np.sqrt(np.einsum("rcd,rcd->rc", difference, difference))
        distances.sort(axis=1)
        return distances[:, : self.k]


class _Best:
    """The smallest few values seen so far in each row, ascending, with their columns."""

    def __init__(self, n_rows: int, size: int, dtype: type[np.floating]) -> None:
        self.size = size
        self.value = np.full((n_rows, size), np.inf, dtype=dtype)
        self.index = np.zeros((n_rows, size), dtype=np.intp)

    def offer(self, rows: slice, columns: slice, values: np.ndarray) -> None:
        """Take in `values` [rows, columns]. Rows that offer nothing better cost one minimum."""
        better = np.flatnonzero(values.min(axis=1) < self.value[rows, -1])
        if better.size == 0:
            return
        chosen = np.ascontiguousarray(values[better])
        new_value, new_index = _smallest(chosen, min(self.size, values.shape[1]))
        target = better + rows.start
        value = np.concatenate([self.value[target], new_value], axis=1)
        index = np.concatenate([self.index[target], new_index + columns.start], axis=1)
        order = np.argsort(value, axis=1, kind="stable")[:, : self.size]
        self.value[target] = np.take_along_axis(value, order, axis=1)
        self.index[target] = np.take_along_axis(index, order, axis=1)


def _smallest(values: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The `size` smallest of each row and their columns; `values` is overwritten.

    Few are faster by repeated minima, which numpy vectorises, than by partition, which it does not.
    """
    if size > 12:
        index = np.argpartition(values, size - 1, axis=1)[:, :size]
        return np.take_along_axis(values, index, axis=1), index
    index = np.empty((len(values), size), dtype=np.intp)
    value = np.empty((len(values), size), dtype=values.dtype)
    every = np.arange(len(values))
    for place in range(size):
        index[:, place] = np.argmin(values, axis=1)
        value[:, place] = values[every, index[:, place]]
        values[every, index[:, place]] = np.inf
    return value, index
