"""What every probe asks of its input, and the warnings it may give.

A user's fault is a `ValueError` that reads "what: got X; expected Y". What can be computed but should not be trusted
blindly is a warning of a class below, so that a caller can filter by class. Messages also travel in the `warnings`
field of the result objects.
"""

from __future__ import annotations

import warnings

import numpy as np


class ProbeWarning(UserWarning):
    """Parent of every warning of this package."""


class ConstantInputWarning(ProbeWarning):
    """The input has no spread, so the statistic is undefined and `nan` comes back."""


class DuplicatePointsWarning(ProbeWarning):
    """Identical points were found and merged or dropped, or points that differ by next to nothing were kept."""


class LowPrecisionWarning(ProbeWarning):
    """The values hold no more digits than bfloat16 or float16: nearest-neighbour distances are not to be trusted."""


class SmallSampleWarning(ProbeWarning):
    """The sample is too small for the interval or p-value to mean much."""


def warn(category: type[ProbeWarning], message: str, *, stacklevel: int = 3) -> str:
    """The message, after it has been issued as a warning at the caller's caller."""
    warnings.warn(message, category, stacklevel=stacklevel)
    return message


def as_array(who: str, name: str, values: object) -> np.ndarray:
    """An array of `values`, of whatever they are; `ValueError` for rows of unequal length, for masked values, and for a
    tensor that NumPy cannot hold (with a gradient, on a GPU, in bfloat16)."""
    if np.ma.is_masked(values):
        raise ValueError(
            f"{who}: {name} has masked values; expected an array without (left out, or NaN where it may be)"
        )
    try:
        return np.asarray(values)
    except ValueError as error:
        raise ValueError(f"{who}: {name} is ragged; expected an array of real numbers") from error
    except (TypeError, RuntimeError) as error:
        raise ValueError(
            f"{who}: {name} is a {type(values).__name__} ({error}); expected an array of real numbers"
        ) from error


def as_numbers(who: str, name: str, values: object) -> np.ndarray:
    """A float64 array of `values`, NaN and inf as they are; `ValueError` where they are not real numbers."""
    array = as_array(who, name, values)
    if array.dtype.name == "bfloat16":  # ml_dtypes registers it with kind "V"
        array = array.astype(np.float32)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{who}: {name} has dtype {array.dtype}; expected real numbers")
    return array.astype(np.float64, copy=False)


def as_real(who: str, name: str, values: object) -> np.ndarray:
    """A float64 array of `values`; `ValueError` where they are not real numbers, are empty, or hold NaN or inf."""
    array = as_numbers(who, name, values)
    if array.size == 0:
        raise ValueError(f"{who}: {name} has shape {array.shape}; expected at least one value")
    if not np.isfinite(array).all():
        n_bad = int(np.size(array) - np.isfinite(array).sum())
        raise ValueError(f"{who}: {name} has {n_bad} values that are NaN or inf; expected finite numbers")
    return array


def as_matrix(who: str, name: str, values: object, *, min_rows: int = 1, wanted: str = "[rows, cols]") -> np.ndarray:
    """A finite float64 matrix of at least `min_rows` rows, else `ValueError`."""
    matrix = as_real(who, name, values)
    if matrix.ndim != 2 or matrix.shape[0] < min_rows:
        raise ValueError(f"{who}: {name} has shape {matrix.shape}; expected {wanted}, rows ≥ {min_rows}")
    return matrix


def centered(X: np.ndarray) -> np.ndarray:
    """X less its column means, float64; exactly 0 where a column is constant.

    The first row goes first: equal rows then leave exact zeros, where subtracting a rounded mean would leave noise
    that a scale-free statistic takes for signal.
    """
    shifted = np.subtract(X, X[..., :1, :], dtype=np.float64)
    return shifted - shifted.mean(axis=-2, keepdims=True)


def near_one(X: np.ndarray) -> tuple[np.ndarray, int]:
    """(X·2⁻ᵉ in float64 with its largest entry in [½, 1), e): exact, so that squares can be summed at any scale."""
    exponent = int(np.frexp(np.abs(X).max(initial=0.0))[1])
    return np.ldexp(X.astype(np.float64, copy=False), -exponent), exponent
