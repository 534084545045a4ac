"""Permutations of items, and sums over item pairs under each of them: the engine of the Mantel tests."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import factorial
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy.sparse import csr_array

EXACT_UP_TO = 8  # 8! = 40,320: what `exact="auto"` enumerates
EXACT_LIMIT = 10  # 10! = 3,628,800: what `exact=True` may still ask for
# A batch is small enough to stay in the second-level cache, and its rows long enough to be vectorised.
PAIRS_A_BATCH = 1 << 19
PERMUTATIONS_A_BATCH = 512


@dataclass(frozen=True)
class PermutationPlan:
    """Which permutations to walk through: all, given ones, or random ones."""

    n: int
    n_resamples: int
    exact: bool
    given: np.ndarray | None = None
    rng: np.random.Generator | None = None

    def batches(self, size: int) -> Iterator[np.ndarray]:
        """Permutations [≤ size, n] in turn; random ones do not depend on `size`."""
        if self.given is None and not self.exact:
            assert self.rng is not None
            for start in range(0, self.n_resamples, size):
                yield random_permutations(self.rng, min(size, self.n_resamples - start), self.n)
            return
        permutations = all_permutations(self.n) if self.given is None else self.given
        for start in range(0, self.n_resamples, size):
            yield permutations[start : start + size].astype(np.int64)


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
        raise ValueError(f'{who}: exact is {exact!r}; want "auto", True or False')
    if permutations is not None:
        if exact is True:
            raise ValueError(f"{who}: exact=True beside given permutations; want one of the two")
        return PermutationPlan(n, len(permutations), exact=False, given=_checked(who, n, permutations))
    if exact is True and n > EXACT_LIMIT:
        raise ValueError(f"{who}: exact=True at n = {n}; want n ≤ {EXACT_LIMIT}, or random permutations")
    if n_resamples < 0 or n_resamples != int(n_resamples):
        raise ValueError(f"{who}: n_resamples is {n_resamples}; want an integer ≥ 0")
    if n_resamples and (exact is True or (exact == "auto" and n <= EXACT_UP_TO)):
        return PermutationPlan(n, factorial(n), exact=True)
    return PermutationPlan(n, int(n_resamples), exact=False, rng=np.random.default_rng(rng))


def _checked(who: str, n: int, permutations: np.ndarray) -> np.ndarray:
    array = np.asarray(permutations)
    if array.ndim != 2 or array.shape[1] != n or array.dtype.kind not in "iu":
        raise ValueError(f"{who}: permutations has shape {array.shape} of {array.dtype}; want integers [m, {n}]")
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

    `square` is symmetric [n, n], `weights` [n(n − 1)/2, k] in the order of `scipy.spatial.distance.squareform`. Pairs
    are walked as (i, i + 1 … i + n//2 around the circle): every row of pairs is a window of the permutation, equally
    long, and looks into one row of the square. For even n opposite items meet twice, at half weight.
    """
    n, half = plan.n, plan.n // 2
    doubled = np.ones((n, half, 1))
    if n % 2 == 0:
        doubled[:, -1] = 0.5
    around = weights[_pairs_around(n)] * doubled.reshape(-1, 1)
    table = np.ascontiguousarray(square, dtype=np.float64).reshape(-1)
    size = max(1, min(PAIRS_A_BATCH // len(around), PERMUTATIONS_A_BATCH, plan.n_resamples))
    sums = np.empty((weights.shape[1], plan.n_resamples))
    start = 0
    for batch in (_single_sums if weights.shape[1] == 1 else _shared_sums)(table, around, plan, size):
        sums[:, start : start + batch.shape[1]] = batch
        start += batch.shape[1]
    assert start == plan.n_resamples
    return sums


def _pairs_around(n: int) -> np.ndarray:
    """Condensed indices of the pairs (i, i + k mod n), k = 1 … n//2, row by row, [n·(n//2)]."""
    i = np.arange(n)[:, None]
    j = (i + np.arange(1, n // 2 + 1)) % n
    low, high = np.minimum(i, j), np.maximum(i, j)
    return (low * (2 * n - low - 1) // 2 + high - low - 1).reshape(-1)


def _single_sums(table: np.ndarray, weights: np.ndarray, plan: PermutationPlan, size: int) -> Iterator[np.ndarray]:
    """Batches of sums [1, ≤ size] for one column of weights: gathered and summed in one compiled pass.

    Row r of a sparse matrix holds the weights at the places that permutation r takes its pairs from, so that its
    product with the flat square is the sum. The matrix is built once around the index array, which each batch refills.
    """
    n, half, n_pairs = plan.n, plan.n // 2, len(weights)
    index = np.zeros((size, n, half), dtype=np.int32)
    indptr = np.arange(0, (size + 1) * n_pairs, n_pairs, dtype=np.int32)
    matrix = csr_array((np.tile(weights[:, 0], size), index.reshape(-1), indptr), shape=(size, table.size))
    assert np.shares_memory(matrix.indices, index)
    circle = np.zeros((size, n + half), dtype=np.int32)
    windows = sliding_window_view(circle, half, axis=1)[:, 1 : n + 1]
    for p in plan.batches(size):
        circle[: len(p), :n] = p  # a short last batch leaves old, valid entries behind it
        circle[: len(p), n:] = p[:, :half]
        np.add((circle[:, :n] * n)[:, :, None], windows, out=index)
        yield (matrix @ table)[None, : len(p)]


def _shared_sums(table: np.ndarray, weights: np.ndarray, plan: PermutationPlan, size: int) -> Iterator[np.ndarray]:
    """Batches of sums [k, ≤ size]: one gather a permutation, shared by all columns through one matrix product.

    Permutations run along the last axis, so that few items still make long rows.
    """
    n, half = plan.n, plan.n // 2
    columns = np.ascontiguousarray(weights.T)
    index = np.zeros((n, half, size), dtype=np.intp)
    gathered = np.empty((len(weights), size))
    circle = np.zeros((n + half, size), dtype=np.intp)
    windows = sliding_window_view(circle, half, axis=0)[1 : n + 1].transpose(0, 2, 1)
    for p in plan.batches(size):
        circle[:n, : len(p)] = p.T
        circle[n:, : len(p)] = p.T[:half]
        np.add((circle[:n] * n)[:, None], windows, out=index)
        np.take(table, index.reshape(-1, size), out=gathered, mode="clip")  # in range; "clip" skips a buffer
        yield (columns @ gathered)[:, : len(p)]
