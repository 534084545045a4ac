"""Distance matrices as the statistics take them: upper triangles, checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from probes.checks import as_real

# Relative to the largest distance: float64 products of either order differ by less, float32 distances by more.
ASYMMETRY_TOLERANCE = 1e-9
# Equal distances that were summed in different orders differ by less: some √d units in the last place.
EQUAL_TOLERANCE = 1e-12
EQUAL_TOLERANCE_SINGLE = 1e-6  # of distances held in float32 or less


def condensed(who: str, name: str, distances: object, *, tied: bool = False) -> tuple[np.ndarray, int]:
    """The upper triangle [n(n − 1)/2] and n, from square or condensed distances; `tied`: as ranks need them, distances
    that differ by rounding made equal."""
    d = as_real(who, name, distances)
    if d.ndim not in (1, 2):
        raise ValueError(f"{who}: {name} has shape {d.shape}; expected a square matrix, n ≥ 3")
    pairs, n = _upper_triangles(who, (name,), d[None])
    return _tied(pairs[0], distances) if tied else pairs[0], n


def condensed_stack(who: str, names: Sequence[str], xs: Any, n: int, *, tied: bool = False) -> np.ndarray:
    """The upper triangles [k, n(n − 1)/2] of k sets of distances between n items, each as `condensed` gives it."""
    if isinstance(xs, np.ndarray):
        stack = list(as_real(who, "xs", xs))
    else:
        stack = [as_real(who, name, x) for name, x in zip(names, xs, strict=True)]
    for name, x in zip(names, stack, strict=True):
        if x.shape != stack[0].shape or x.ndim not in (1, 2):
            _, n_x = condensed(who, name, x)  # a fault of its own is named first
            if n_x != n:
                raise ValueError(f"{who}: {name} has {n_x} items and y {n}; expected the same items in all")
    if len({x.shape for x in stack}) > 1:  # squares and condensed ones side by side
        return np.stack([condensed(who, name, x, tied=tied)[0] for name, x in zip(names, xs, strict=True)])
    pairs, n_x = _upper_triangles(who, names, np.stack(stack))
    if n_x != n:
        raise ValueError(f"{who}: {names[0]} has {n_x} items and y {n}; expected the same items in all")
    return np.stack([_tied(row, x) for row, x in zip(pairs, xs, strict=True)]) if tied else pairs


def _tied(pairs: np.ndarray, source: object) -> np.ndarray:
    """The distances, those equal but for rounding replaced by the smallest of them; the others to the bit as they are.

    Neighbours in order are equal that differ by at most the tolerance, relative to the larger of the distance and the
    median distance (the largest would tie everything beside one far item). A chain of them that is longer than the
    tolerance is cut into stretches of that length, so that nothing moves by more.
    """
    dtype = np.asarray(source).dtype
    is_single = dtype.kind not in "iub" and dtype.itemsize < np.dtype(np.float64).itemsize
    order = np.argsort(pairs, kind="stable")
    values, sizes = pairs[order], np.abs(pairs[order])
    tolerance = (EQUAL_TOLERANCE_SINGLE if is_single else EQUAL_TOLERANCE) * np.maximum(sizes, np.median(sizes))
    begins = np.append(True, np.diff(values) > tolerance[1:])
    above = values - values[begins][np.cumsum(begins) - 1]
    stretch = np.floor_divide(above, tolerance, out=np.zeros_like(above), where=above > 0)
    begins[1:] |= np.diff(stretch) != 0
    tied = np.empty_like(pairs)
    tied[order] = values[begins][np.cumsum(begins) - 1]
    return tied


def _upper_triangles(who: str, names: Sequence[str], d: np.ndarray) -> tuple[np.ndarray, int]:
    """Upper triangles [k, n(n − 1)/2] and n of k squares or condensed sets; `ValueError` for what is no distance."""
    if d.ndim == 2:
        n = (1 + int(np.sqrt(1 + 8 * d.shape[1]))) // 2
        if n * (n - 1) // 2 != d.shape[1] or n < 3:
            raise ValueError(
                f"{who}: {names[0]} has {d.shape[1]} condensed distances; expected n(n − 1)/2 of them, n ≥ 3"
            )
        return d, n
    if d.shape[1] != d.shape[2] or d.shape[1] < 3:
        raise ValueError(f"{who}: {names[0]} has shape {d.shape[1:]}; expected a square matrix, n ≥ 3")
    allowed = ASYMMETRY_TOLERANCE * np.abs(d).max(axis=(1, 2))
    transposed = d.transpose(0, 2, 1)
    asymmetry = np.abs(d - transposed).max(axis=(1, 2))
    diagonal = np.abs(np.diagonal(d, axis1=1, axis2=2)).max(axis=1)
    for k in np.flatnonzero(asymmetry > allowed):
        raise ValueError(
            f"{who}: {names[int(k)]} is asymmetric by {asymmetry[k]:.3g}; expected at most {allowed[k]:.3g}"
        )
    for k in np.flatnonzero(diagonal > allowed):
        raise ValueError(
            f"{who}: {names[int(k)]} has {diagonal[k]:.3g} on its diagonal; expected distances, 0 there (similarities?)"
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
    return high - low <= EQUAL_TOLERANCE * np.maximum(np.abs(low), np.abs(high))
