"""Permutations of items, and sums over item pairs under each of them: the engine of the Mantel tests."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import factorial
from typing import Any

import numpy as np
from scipy.sparse import csr_array

EXACT_UP_TO = 8  # 8! = 40,320: what `exact="auto"` enumerates
EXACT_LIMIT = 10  # 10! = 3,628,800: what `exact=True` may still ask for
SPARSE_PAIRS = 1 << 20  # pairs gathered at once; large, for each batch costs n calls
DENSE_PAIRS = 1 << 17  # 1 MiB of float64, which stays in the second-level cache for the product that follows


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
                yield self.rng.random((min(size, self.n_resamples - start), self.n)).argsort(axis=1)
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


def permuted_sums(
    square: np.ndarray, weights: np.ndarray, plan: PermutationPlan, *, inverse: bool = False
) -> np.ndarray:
    """Σ over pairs i < j of square[pᵢ, pⱼ]·weights[pair, k], for every permutation p of the plan, [m, k].

    `square` is symmetric [n, n], `weights` [n(n − 1)/2, k] in the order of `scipy.spatial.distance.squareform`. With
    `inverse` each p is replaced by its inverse: permuting one matrix by p is permuting the other one by p⁻¹.
    """
    n, n_pairs = plan.n, weights.shape[0]
    sums = np.empty((plan.n_resamples, weights.shape[1]))
    is_single = weights.shape[1] == 1
    size = max(1, min((SPARSE_PAIRS if is_single else DENSE_PAIRS) // n_pairs, plan.n_resamples))
    gather_sum = (_sparse_gather if is_single else _dense_gather)(square, weights, size)
    flat = np.zeros((size, n_pairs), dtype=np.int32 if is_single else np.intp)
    start = 0
    for batch in plan.batches(size):
        p = np.argsort(batch, axis=1) if inverse else batch
        rows = len(p)
        _fill_pair_index(p.astype(flat.dtype), n, flat[:rows])  # the last batch leaves old, valid indices behind it
        sums[start : start + rows] = gather_sum(flat)[:rows]
        start += rows
    assert start == plan.n_resamples
    return sums


def _fill_pair_index(p: np.ndarray, n: int, out: np.ndarray) -> None:
    """Write pᵢ·n + pⱼ for all pairs i < j into `out` [m, n(n − 1)/2], row of pairs by row of pairs."""
    first = p * p.dtype.type(n)
    column = 0
    for i in range(n - 1):
        width = n - 1 - i
        np.add(first[:, i, None], p[:, i + 1 :], out=out[:, column : column + width])
        column += width


def _sparse_gather(square: np.ndarray, weights: np.ndarray, size: int):
    """Gather and sum in one compiled pass: a CSR product whose column indices are the permuted pairs.

    Row r of the sparse matrix holds the weights at the places that permutation r takes its pairs from, so that the
    product with the flat square is the sum. Twice as fast as `take` and a dot product, for one column of weights.
    """
    n_pairs = weights.shape[0]
    table = np.ascontiguousarray(square, dtype=np.float64).reshape(-1)
    indptr = np.arange(0, (size + 1) * n_pairs, n_pairs, dtype=np.int32)
    data = np.tile(weights[:, 0], size)

    def gather_sum(flat: np.ndarray) -> np.ndarray:
        matrix = csr_array((data, flat.reshape(-1), indptr), shape=(size, table.size))
        return (matrix @ table)[:, None]

    return gather_sum


def _dense_gather(square: np.ndarray, weights: np.ndarray, size: int):
    """Gather once and share it: one matrix product for all columns of weights."""
    table = np.ascontiguousarray(square, dtype=np.float64).reshape(-1)
    gathered = np.empty((size, weights.shape[0]))

    def gather_sum(flat: np.ndarray) -> np.ndarray:
        np.take(table, flat, out=gathered, mode="clip")  # "clip" skips numpy's buffering; the indices are in range
        return gathered @ weights

    return gather_sum
