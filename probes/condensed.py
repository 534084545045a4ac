"""Distance matrices as the statistics take them: upper triangles, checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from probes.checks import as_real

# Relative to the largest distance: float64 products of either order differ by less, float32 distances by more.
ASYMMETRY_TOLERANCE = 1e-9
CONSTANT_TOLERANCE = 1e-12


def condensed(who: str, name: str, distances: object) -> tuple[np.ndarray, int]:
    """The upper triangle [n(n − 1)/2] and n, from square or condensed distances."""
    d = as_real(who, name, distances)
    if d.ndim not in (1, 2):
        raise ValueError(f"{who}: {name} has shape {d.shape}; want a square matrix, n ≥ 3")
    pairs, n = _upper_triangles(who, (name,), d[None])
    return pairs[0], n


def condensed_stack(who: str, xs: Any, n: int) -> np.ndarray:
    """The upper triangles [k, n(n − 1)/2] of k sets of distances between n items."""
    if isinstance(xs, np.ndarray):
        stack = list(as_real(who, "xs", xs))
    else:
        stack = [as_real(who, f"xs[{k}]", x) for k, x in enumerate(xs)]
    for k, x in enumerate(stack):
        if x.shape != stack[0].shape or x.ndim not in (1, 2):
            _, n_x = condensed(who, f"xs[{k}]", x)  # a fault of its own is named first
            if n_x != n:
                raise ValueError(f"{who}: xs[{k}] has {n_x} items and y {n}; want the same items in all")
    if len({x.shape for x in stack}) > 1:  # squares and condensed ones side by side
        return np.stack([condensed(who, f"xs[{k}]", x)[0] for k, x in enumerate(stack)])
    pairs, n_x = _upper_triangles(who, [f"xs[{k}]" for k in range(len(stack))], np.stack(stack))
    if n_x != n:
        raise ValueError(f"{who}: xs[0] has {n_x} items and y {n}; want the same items in all")
    return pairs


def _upper_triangles(who: str, names: Sequence[str], d: np.ndarray) -> tuple[np.ndarray, int]:
    """Upper triangles [k, n(n − 1)/2] and n of k squares or condensed sets; `ValueError` for what is no distance."""
    if d.ndim == 2:
        n = (1 + int(np.sqrt(1 + 8 * d.shape[1]))) // 2
        if n * (n - 1) // 2 != d.shape[1] or n < 3:
            raise ValueError(f"{who}: {names[0]} has {d.shape[1]} condensed distances; want n(n − 1)/2 of them, n ≥ 3")
        return d, n
    if d.shape[1] != d.shape[2] or d.shape[1] < 3:
        raise ValueError(f"{who}: {names[0]} has shape {d.shape[1:]}; want a square matrix, n ≥ 3")
    allowed = ASYMMETRY_TOLERANCE * np.abs(d).max(axis=(1, 2))
    transposed = d.transpose(0, 2, 1)
    asymmetry = np.abs(d - transposed).max(axis=(1, 2))
    diagonal = np.abs(np.diagonal(d, axis1=1, axis2=2)).max(axis=1)
    for k in np.flatnonzero(asymmetry > allowed):
        raise ValueError(f"{who}: {names[int(k)]} is asymmetric by {asymmetry[k]:.3g}; want at most {allowed[k]:.3g}")
    for k in np.flatnonzero(diagonal > allowed):
        raise ValueError(
            f"{who}: {names[int(k)]} has {diagonal[k]:.3g} on its diagonal; want distances, 0 there (similarities?)"
        )
    i, j = np.triu_indices(d.shape[1], 1)
    return (d[:, i, j] + d[:, j, i]) / 2, d.shape[1]


def spread(pairs: np.ndarray) -> np.ndarray:
    """The values along the last axis less the first, in units of the largest such difference; zeros where constant.

    A correlation of these keeps the digits of a small spread upon a large mean, and no square over- or underflows.
    """
    shifted = pairs - pairs[..., :1]
    largest = np.abs(shifted).max(axis=-1, keepdims=True)
    return shifted / np.where(largest > 0, largest, 1.0)


def is_constant(pairs: np.ndarray) -> np.ndarray | np.bool_:
    """Whether the values along the last axis are one value but for rounding."""
    low, high = pairs.min(axis=-1), pairs.max(axis=-1)
    return high - low <= CONSTANT_TOLERANCE * np.maximum(np.abs(low), np.abs(high))
