"""Permutations of items, and sums over item pairs under each of them: the engine of the Mantel tests.

Random permutations come as a grid: all products of two short lists that each begin with the identity. A sum over pairs
under a product is the inner product of one set of distances permuted by the first factor with the other permuted by the
second, so that m permutations cost about 2√m gathers and a matrix product instead of m gathers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import factorial, isqrt
from typing import Any

import numpy as np
import scipy
from numpy.lib.stride_tricks import sliding_window_view

EXACT_UP_TO = 8  # 8! = 40,320: what `exact="auto"` enumerates
EXACT_LIMIT = 10  # 10! = 3,628,800: what `exact=True` may still ask for
# A batch is small enough to stay in the second-level cache, and its rows long enough to be vectorised.
ENTRIES_A_BATCH = 1 << 19
PERMUTATIONS_A_BATCH = 512
ENTRIES_A_GRID_BLOCK = 1 << 17  # both sides, their indices and the columns they are taken from share the cache


@dataclass(frozen=True)
class PermutationGrid:
    """Permutations a∘c⁻¹ for every a in `left` and c in `right`, the first of either the identity, [A, n] and [B, n].

    All but the identity are uniform and any two independent, so that the number of extreme ones has the mean and the
    variance it has for independent permutations; and since a uniformly chosen member may be divided out of the grid
    without changing its law, (b + 1)/(A·B) is an exactly valid p-value (Ramdas, Barber, Candès & Tibshirani 2023,
    Theorem 2). Independent permutations are the grid of A = 1.
    """

    left: np.ndarray
    right: np.ndarray

    @classmethod
    def draw(cls, rng: np.random.Generator, n_resamples: int, n: int) -> PermutationGrid:
        """A grid of `n_resamples` permutations beside the identity, as near to square as its divisors allow."""
        short = next(d for d in range(isqrt(n_resamples + 1), 0, -1) if (n_resamples + 1) % d == 0)
        sides = ((n_resamples + 1) // short, short)
        left, right = (np.vstack([np.arange(n), random_permutations(rng, side - 1, n)]) for side in sides)
        return cls(left, right)

    def products(self, start: int, stop: int) -> np.ndarray:
        """Permutations `start` … `stop` − 1 of the grid row by row, the identity left out, int64 [stop − start, n]."""
        a, c = np.divmod(np.arange(start + 1, stop + 1), len(self.right))
        return np.take_along_axis(self.left[a], self._right_inverses[c], axis=1)

    @cached_property
    def _right_inverses(self) -> np.ndarray:
        return np.argsort(self.right, axis=1)


@dataclass(frozen=True)
class PermutationPlan:
    """Which permutations to walk through: all, given ones, or a grid of random ones."""

    n: int
    n_resamples: int
    exact: bool
    given: np.ndarray | None = None
    grid: PermutationGrid | None = None

    def batches(self, size: int) -> Iterator[np.ndarray]:
        """Permutations [≤ size, n] in turn."""
        permutations = all_permutations(self.n) if self.exact else self.given
        for start in range(0, self.n_resamples, size):
            stop = min(start + size, self.n_resamples)
            if self.grid is not None:
                yield self.grid.products(start, stop)
            else:
                assert permutations is not None
                yield permutations[start:stop].astype(np.int64)


def plan_permutations(
    who: str,
    n: int,
    *,
    n_resamples: Any,
    exact: Any,
    permutations: np.ndarray | None,
    rng: np.random.Generator | int | None,
) -> PermutationPlan:
    """The permutations that the arguments of a test ask for; `ValueError` where they contradict each other."""
    if exact not in ("auto", True, False):
        raise ValueError(f'{who}: exact is {exact!r}; expected "auto", True or False')
    exact = exact if exact == "auto" else bool(exact)  # a NumPy bool is not the object True
    if permutations is not None:
        if exact is True:
            raise ValueError(f"{who}: exact=True beside given permutations; expected one of the two")
        return PermutationPlan(n, len(permutations), exact=False, given=_checked(who, n, permutations))
    if exact is True and n > EXACT_LIMIT:
        raise ValueError(f"{who}: exact=True at n = {n}; expected n ≤ {EXACT_LIMIT}, or random permutations")
    if n_resamples < 0 or n_resamples != int(n_resamples):
        raise ValueError(f"{who}: n_resamples is {n_resamples}; expected an integer ≥ 0")
    if n_resamples and (exact is True or (exact == "auto" and n <= EXACT_UP_TO)):
        return PermutationPlan(n, factorial(n), exact=True)
    n_resamples = int(n_resamples)
    grid = PermutationGrid.draw(np.random.default_rng(rng), n_resamples, n)
    return PermutationPlan(n, n_resamples, exact=False, grid=grid)


def _checked(who: str, n: int, permutations: np.ndarray) -> np.ndarray:
    array = np.asarray(permutations)
    if array.ndim != 2 or array.shape[1] != n or array.dtype.kind not in "iu":
        raise ValueError(f"{who}: permutations has shape {array.shape} of {array.dtype}; expected integers [m, {n}]")
    is_permutation = np.all(np.sort(array, axis=1) == np.arange(n), axis=1)
    if not is_permutation.all():
        row = int(np.argmin(is_permutation))
        raise ValueError(f"{who}: row {row} of permutations is no permutation of 0 … {n - 1}")
    return array


def all_permutations(n: int) -> np.ndarray:
    """All n! permutations of 0 … n − 1, int8 [n!, n], the identity among them."""
    assert n <= EXACT_LIMIT
    rows = np.zeros((1, 1), dtype=np.int8)
    for item in range(1, n):
        rows = np.concatenate([np.insert(rows, place, item, axis=1) for place in range(item + 1)])
    return rows


def random_permutations(rng: np.random.Generator, m: int, n: int) -> np.ndarray:
    """m uniform permutations of 0 … n − 1, int64 [m, n]: random keys with the item in their low bits, sorted.

    Sorting values is vectorised where argsort is not. Keys differ in 64 − log₂ n bits, so that ties are out of reach.
    """
    mask = np.uint64((1 << max(1, (n - 1).bit_length())) - 1)
    keys = rng.integers(0, 2**64, size=(m, n), dtype=np.uint64)
    keys &= ~mask
    keys |= np.arange(n, dtype=np.uint64)
    keys.sort(axis=1)
    keys &= mask
    return keys.view(np.int64)


def permuted_sums(square: np.ndarray, weights: np.ndarray, plan: PermutationPlan) -> np.ndarray:
    """Σ over pairs i < j of square[pᵢ, pⱼ]·weights[pair, k], for every permutation p of the plan, [k, m].

    `square` is symmetric [n, n], `weights` [n(n − 1)/2, k] in the order of `scipy.spatial.distance.squareform`.
    """
    square = np.ascontiguousarray(square, dtype=np.float64)
    if plan.grid is not None:
        n_gathers = len(plan.grid.left) + weights.shape[1] * len(plan.grid.right)
        if n_gathers <= plan.n_resamples:
            return _grid_sums(square, weights, plan.grid)
    return _listed_sums(square, weights, plan)


def _grid_sums(square: np.ndarray, weights: np.ndarray, grid: PermutationGrid) -> np.ndarray:
    """The sums under a∘c⁻¹ as products of `square` permuted by a and the weights permuted by c, block by block."""
    (n_left, n), (n_right, k) = grid.left.shape, (len(grid.right), weights.shape[1])
    columns = np.stack([scipy.spatial.distance.squareform(column).reshape(-1) for column in weights.T])
    first, second = np.triu_indices(n, 1)
    sums = np.zeros((n_left, k * n_right))
    size = max(1, ENTRIES_A_GRID_BLOCK // (n_left + k * n_right))
    for start in range(0, len(first), size):
        i, j = first[start : start + size], second[start : start + size]
        left = square.reshape(-1).take(grid.left[:, i] * n + grid.left[:, j])
        right = columns.take(grid.right[:, i] * n + grid.right[:, j], axis=1)
        sums += left @ right.reshape(k * n_right, -1).T
    return sums.reshape(n_left, k, n_right).transpose(1, 0, 2).reshape(k, -1)[:, 1:]


def _listed_sums(square: np.ndarray, weights: np.ndarray, plan: PermutationPlan) -> np.ndarray:
    """The sums one gather a permutation, shared by all columns of weights through one matrix product.

    Pairs are walked as (i, i + 1 … i + n//2 around the circle): every row of pairs is a window of the permutation,
    equally long, and looks into one row of the square. For even n opposite items meet twice, at half weight.
    Permutations run along the last axis, so that few items still make long rows.
    """
    n, half = plan.n, plan.n // 2
    doubled = np.ones((n, half, 1))
    if n % 2 == 0:
        doubled[:, -1] = 0.5
    around = np.ascontiguousarray((weights[_pairs_around(n)] * doubled.reshape(-1, 1)).T)
    size = max(1, min(ENTRIES_A_BATCH // around.shape[1], PERMUTATIONS_A_BATCH, plan.n_resamples))
    index = np.zeros((n, half, size), dtype=np.intp)
    gathered = np.empty((around.shape[1], size))
    circle = np.zeros((n + half, size), dtype=np.intp)
    windows = sliding_window_view(circle, half, axis=0)[1 : n + 1].transpose(0, 2, 1)
    sums = np.empty((weights.shape[1], plan.n_resamples))
    start = 0
    for p in plan.batches(size):
        circle[:n, : len(p)] = p.T  # a short last batch leaves old, valid entries behind it
        circle[n:, : len(p)] = p.T[:half]
        np.add((circle[:n] * n)[:, None], windows, out=index)
        np.take(square.reshape(-1), index.reshape(-1, size), out=gathered, mode="clip")  # in range; no buffer
        sums[:, start : start + len(p)] = (around @ gathered)[:, : len(p)]
        start += len(p)
    assert start == plan.n_resamples
    return sums


def _pairs_around(n: int) -> np.ndarray:
    """Condensed indices of the pairs (i, i + k mod n), k = 1 … n//2, row by row, [n·(n//2)]."""
    i = np.arange(n)[:, None]
    j = (i + np.arange(1, n // 2 + 1)) % n
    low, high = np.minimum(i, j), np.maximum(i, j)
    return (low * (2 * n - low - 1) // 2 + high - low - 1).reshape(-1)
