"""Distances to the nearest neighbours, exact to float64, at the price of float32 products.

‖x − y‖² = ‖x‖² + ‖y‖² − 2xᵀy lets a matrix product find neighbours fast, but loses the digits that near neighbours
need, all the more the further the cloud lies from the origin. So the points are centred at a median, which far points
do not move, a blocked float32 product picks a few candidates per point, and a bound on the product's error certifies
that no other point can be nearer. For points without certificate, float64 products exclude the points that their own
bound proves to be further away. Every distance returned is computed from differences in float64.
"""

from __future__ import annotations

import numpy as np
import scipy
from jaxtyping import Float, Real

from probes.checks import near_one

TREE_UP_TO = 8  # dimensions up to which a k-d tree beats products
SLACK = 2  # candidates beyond k: what the certificate compares against
TILE = 1000  # not a power of two: columns of such a tile would share their cache lines
HELD_VALUES = 1 << 22  # values held at once: 32 MiB of float64
CENTRE_ROWS = 128  # at most so many rows give the centre: any centre gives exact distances, a good one certifies more
NEAR_DUPLICATE = 1e-9  # of `cloud_size`


def nearest_distances(X: Real[np.ndarray, "n d"], k: int) -> Float[np.ndarray, "n k"]:
    """Euclidean distances [n, k] from each row of X to its k nearest other rows, ascending, float64.

    Memory: a float32 copy of X and blocks of a few MiB. Float64 input keeps its digits in the result.

    Raises ValueError where there are not k other rows.
    """
    n, d = X.shape
    if not 1 <= k < n:
        raise ValueError(f"nearest_distances: k is {k} for {n} points; expected 1 ≤ k ≤ n − 1")
    X, exponent = _in_range(X)
    search = _Search(X, k)
    distances, is_certain = search.by_tree() if d <= TREE_UP_TO else search.by_float32_products()
    doubtful = np.flatnonzero(~is_certain)
    size = max(1, HELD_VALUES // n)
    for start in range(0, doubtful.size, size):
        part = doubtful[start : start + size]
        distances[part] = search.by_exclusion(part)
    return np.ldexp(distances, exponent)


def cloud_size(X: Real[np.ndarray, "n d"]) -> float:
    """The median distance of the rows of X from their centre: a length that a few far points do not change."""
    X, exponent = _in_range(X)
    centre = _centre(X)
    norms = np.concatenate([_norms(X[start : start + TILE] - centre) for start in range(0, len(X), TILE)])
    return float(np.ldexp(np.median(norms), exponent))


def _centre(X: np.ndarray) -> np.ndarray:
    """The median of each coordinate over rows spread evenly through X, float64."""
    return np.median(X[:: -(-len(X) // CENTRE_ROWS)].astype(np.float64), axis=0)


def _in_range(X: np.ndarray) -> tuple[np.ndarray, int]:
    """(X·2⁻ᵉ, e), e 0 unless differences of its values would overflow; float32 values are held as they are."""
    if X.dtype == np.float32 or np.abs(X).max(initial=0.0) < np.finfo(np.float64).max / 4:
        return X, 0
    return np.ldexp(X, -2), 2


def _norms(vectors: np.ndarray) -> np.ndarray:
    """Euclidean norms along the last axis, float64; those whose squares over- or underflow are summed in scale."""
    with np.errstate(over="ignore", under="ignore"):
        squares = np.einsum("...d,...d->...", vectors, vectors)
    norms = np.sqrt(squares)
    extreme = ~((squares > 1e-280) & (squares < 1e280))
    scaled = vectors[extreme]
    exponent = np.frexp(np.abs(scaled).max(axis=-1, initial=0.0))[1]
    scaled = np.ldexp(scaled, -exponent[:, None])
    norms[extreme] = np.ldexp(np.sqrt(np.einsum("nd,nd->n", scaled, scaled)), exponent)
    return norms


class _Search:
    """Candidates, bounds and refined distances of one cloud; products are in units of its largest centred value."""

    def __init__(self, X: np.ndarray, k: int) -> None:
        self.X, self.k = X, k
        self.n, self.d = X.shape
        self.centre = _centre(X)
        largest = max(float(np.abs(X[rows] - self.centre).max(initial=0.0)) for rows in self._tiles())
        self.unit = 2.0 ** min(-int(np.frexp(largest)[1]), 1000)  # a power of two: exact
        self.n_candidates = min(k + SLACK, self.n - 1)

    def _tiles(self) -> list[slice]:
        return [slice(start, min(start + TILE, self.n)) for start in range(0, self.n, TILE)]

    def _centred(self, rows: slice | np.ndarray, centre: np.ndarray) -> np.ndarray:
        return (self.X[rows] - centre) * self.unit

    def by_tree(self) -> tuple[np.ndarray, np.ndarray]:
        """Distances [n, k] and whether each row is certain, from a k-d tree: certain where no square underflows."""
        points, exponent = near_one(self.X)
        distances = np.asarray(scipy.spatial.KDTree(points).query(points, k=self.k + 1)[0])[:, 1:]
        return np.ldexp(distances, exponent), distances[:, 0] > 1e-140

    def by_float32_products(self) -> tuple[np.ndarray, np.ndarray]:
        """Distances [n, k] and whether each row is certain, by one product for each pair of tiles."""
        Z = np.empty((self.n, self.d), dtype=np.float32)
        square = np.empty(self.n)
        tiles = self._tiles()
        for tile in tiles:
            centred = self._centred(tile, self.centre)
            Z[tile] = centred
            square[tile] = np.einsum("nd,nd->n", centred, centred)
        square32 = square.astype(np.float32)
        best = _Best(self.n, self.n_candidates, np.float32)
        for a, rows in enumerate(tiles):
            for columns in tiles[a:]:
                product = Z[rows] @ Z[columns].T
                product *= -2
                if rows == columns:
                    np.fill_diagonal(product, np.inf)
                else:
                    best.offer(columns, rows, (product + square32[rows, None]).T)
                product += square32[columns]
                best.offer(rows, columns, product)
        distances = self._between(np.arange(self.n).repeat(self.n_candidates), best.index.reshape(-1))
        distances = np.sort(distances.reshape(self.n, -1), axis=1)[:, : self.k]
        if self.n_candidates == self.n - 1:
            return distances, np.ones(self.n, dtype=bool)
        # Only a point within reach, ‖y‖ ≤ ‖x‖ + r, could be nearer. Its product is off by at most γ_d‖x‖‖y‖
        # (Higham 2002, §3.1); twelve units more cover the rounding of coordinates, squares and sums, and the last term
        # what underflows.
        furthest = distances[:, -1] * self.unit
        reach = square + (np.sqrt(square) + furthest) ** 2
        error = (self.d + 12) * (2.0**-24 * reach + 2.0**-122)
        return distances, best.value[:, -1] + square - error >= furthest**2

    def by_exclusion(self, rows: np.ndarray) -> np.ndarray:
        """Distances [len(rows), k], whatever the cloud: from differences to all points that could be among the nearest.

        Float64 products, centred at the median of the rows, bound every squared distance from both sides: products and
        squares are each off by γ_d(‖x‖² + ‖y‖²), and twelve units more cover the rest, as above. A point whose lower
        bound passes the k-th smallest upper bound is excluded.
        """
        centre = _centre(self.X[rows])
        own = self._centred(rows, centre)
        own_square = np.einsum("nd,nd->n", own, own)[:, None]
        squared, error = np.empty((rows.size, self.n)), np.empty((rows.size, self.n))
        for columns in self._tiles():
            others = self._centred(columns, centre)
            norms = own_square + np.einsum("nd,nd->n", others, others)
            squared[:, columns] = norms - 2 * (own @ others.T)
            error[:, columns] = (2 * self.d + 12) * (2.0**-53 * norms + 2.0**-1000)
        squared[np.arange(rows.size), rows] = np.inf
        limit = np.partition(squared + error, self.k - 1, axis=1)[:, self.k - 1, None]
        first, second = np.nonzero(squared - error <= limit)
        exact = np.full(squared.shape, np.inf)
        exact[first, second] = self._between(rows[first], second)
        return np.sort(np.partition(exact, self.k - 1, axis=1)[:, : self.k], axis=1)

    def _between(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Distances between the paired rows `first` and `second` of X, from float64 differences."""
        distances = np.empty(first.size)
        size = max(1, HELD_VALUES // self.d)
        for start in range(0, first.size, size):
            pair = slice(start, start + size)
            distances[pair] = _norms(np.subtract(self.X[second[pair]], self.X[first[pair]], dtype=np.float64))
        return distances


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
