"""Intrinsic dimension of a point cloud from ratios of nearest-neighbour distances: TwoNN and Gride."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy
from jaxtyping import Float, Integer, Real

from probes.checks import (
    ConstantInputWarning,
    DuplicatePointsWarning,
    LowPrecisionWarning,
    as_array,
    as_numbers,
    near_one,
    warn,
)
from probes.neighbours import NEAR_DUPLICATE, cloud_size, nearest_distances

Fit = Literal["regression", "mle", "mle_censored"]
FITS = ("regression", "mle", "mle_censored")
Duplicates = Literal["unique", "drop", "raise"]
DUPLICATES = ("unique", "drop", "raise")


@dataclass(frozen=True)
class TwoNNResult:
    """A TwoNN dimension with its standard error (dimensionless).

    `n` points were given, `n_duplicates` of them left out as duplicates, `n_used` ratios enter the fit.
    `n_near_duplicates` of those kept have another within 1e-9 of the cloud's size: their ratios are mostly rounding.
    """

    dimension: float
    stderr: float
    n: int
    n_used: int
    n_duplicates: int
    n_near_duplicates: int
    fit: Fit
    discard_fraction: float
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class TwoNNCurve:
    """TwoNN dimension against sample size: for each of n, n/2, n/4 … points the mean over disjoint subsamples.

    `spread` is the standard deviation over the subsamples (nan for the whole set), `n_subsamples` their number.
    `whole` is what `two_nn` gives for all points.
    """

    n_points: Integer[np.ndarray, " levels"]
    dimension: Float[np.ndarray, " levels"]
    spread: Float[np.ndarray, " levels"]
    n_subsamples: Integer[np.ndarray, " levels"]
    n_duplicates: int
    n_near_duplicates: int
    whole: TwoNNResult


@dataclass(frozen=True)
class GrideResult:
    """Gride dimensions by scale: for ranks (n₁, 2n₁) the estimate, its standard error and the mean distance r₂ₙ₁."""

    n1: Integer[np.ndarray, " scales"]
    n2: Integer[np.ndarray, " scales"]
    dimension: Float[np.ndarray, " scales"]
    stderr: Float[np.ndarray, " scales"]
    distance: Float[np.ndarray, " scales"]
    n: int
    n_duplicates: int
    n_near_duplicates: int
    warnings: tuple[str, ...]


def two_nn(
    X: Real[np.ndarray, "n d"],
    *,
    fit: Fit = "regression",
    discard_fraction: float = 0.1,
    duplicates: Duplicates = "unique",
) -> TwoNNResult:
    """The intrinsic dimension of the rows of X from each point's two nearest neighbours.

    With μ = r₂/r₁, ln μ is exponential with rate the dimension (for a density constant over the two neighbours).

    Args:
        X: points [n, d], any unit; float32 and float64 keep all their digits, distances are computed in float64.
        fit: "regression" is the slope through the origin of −ln(1 − i/N) on the i-th smallest ln μ, the largest
            `discard_fraction` dropped (the last always: its 1 − F is 0). "mle" is (N − 1)/Σ ln μ over all points, free
            of bias. "mle_censored" knows of the discarded ratios only that they are larger (type-II censoring):
            (r − 1)/(Σ_{i ≤ r} ln μᵢ + (N − r) ln μᵣ), r the number kept.
        discard_fraction: in [0, 1).
        duplicates: identical rows have r₁ = 0. "unique" keeps one of each, "drop" none, "raise" forbids them.

    The standard error takes the ratios for independent; that neighbours share distances adds up to 15 % in simulation
    (dimensions 2 to 20, n 100 to 2,000). Edges and curvature bias high dimensions down (16 for 20 at n = 500). The
    estimate depends on n and on noise at the scale of neighbours: see `two_nn_curve` and `gride`.

    Warnings: `DuplicatePointsWarning` with the number of duplicates, and with that of near-duplicates, which are kept:
    points with another within 1e-9 of the cloud's size, the median distance of the points from the coordinates'
    medians over up to 128 of them; `LowPrecisionWarning` where all values fit in bfloat16 or
    float16 (rounded activations: distances of neighbours are then rounding); `ConstantInputWarning` and nan where
    fewer than 3 distinct points remain or all ratios are 1.

    Raises ValueError for fewer than 3 rows, NaN or inf, and settings out of range. Source: Facco et al. 2017; the
    regression of published code with an intercept is not this estimator.

    >>> line = np.random.default_rng(0).uniform(size=(500, 1)) @ np.ones((1, 3))
    >>> round(two_nn(line).dimension)
    1
    """
    _check_fit("two_nn", fit, discard_fraction)
    points, n_duplicates, notes = _prepared("two_nn", X, duplicates)
    result, n_near = None, 0
    if len(points) >= 3:
        r1, r2 = nearest_distances(points, 2).T
        n_near, near_notes = _near_duplicates("two_nn", r1, cloud_size(points))
        notes = (*notes, *near_notes)
        result = _fitted(_log_ratio(r1, r2), fit, discard_fraction)
    if result is None:
        message = f"two_nn: {len(points)} distinct points give no spread of ratios; the dimension is undefined (nan)"
        notes = (*notes, warn(ConstantInputWarning, message))
        result = np.nan, np.nan, 0
    dimension, stderr, n_used = result
    return TwoNNResult(dimension, stderr, len(X), n_used, n_duplicates, n_near, fit, discard_fraction, notes)


def two_nn_from_distances(
    r1: Real[np.ndarray, " n"], r2: Real[np.ndarray, " n"], *, fit: Fit = "regression", discard_fraction: float = 0.1
) -> TwoNNResult:
    """The TwoNN dimension from first and second neighbour distances that were computed elsewhere (on a GPU, say).

    Points with r₁ = 0 are left out and counted as duplicates; near-duplicates have r₁ below 1e-9 of the median r₂,
    since the size of the cloud is not known. Rest as in `two_nn`. Raises ValueError for fewer than 3 points and for
    distances that are not finite, 0 ≤ r₁ ≤ r₂.

    >>> two_nn_from_distances(np.ones(4), np.exp(np.arange(1.0, 5.0)), fit="mle").dimension
    0.3
    """
    _check_fit("two_nn_from_distances", fit, discard_fraction)
    first, second = as_numbers("two_nn_from_distances", "r1", r1), as_numbers("two_nn_from_distances", "r2", r2)
    if first.ndim != 1 or first.shape != second.shape or first.size < 3:
        raise ValueError(f"two_nn_from_distances: r1 {first.shape}, r2 {second.shape}; expected both [n], n ≥ 3")
    if not (np.isfinite(second).all() and (first >= 0).all() and (second >= first).all()):
        raise ValueError("two_nn_from_distances: distances are not finite, 0 ≤ r1 ≤ r2; expected them so")
    apart = first > 0
    n_near, notes = _near_duplicates("two_nn_from_distances", first[apart], float(np.median(second)))
    result = _fitted(_log_ratio(first[apart], second[apart]), fit, discard_fraction)
    if result is None:
        message = "two_nn_from_distances: the ratios have no spread; the dimension is undefined (nan)"
        notes, result = (*notes, warn(ConstantInputWarning, message)), (np.nan, np.nan, 0)
    n_duplicates = int(first.size - apart.sum())
    return TwoNNResult(result[0], result[1], first.size, result[2], n_duplicates, n_near, fit, discard_fraction, notes)


def two_nn_curve(
    X: Real[np.ndarray, "n d"],
    *,
    fit: Fit = "regression",
    discard_fraction: float = 0.1,
    duplicates: Duplicates = "unique",
    min_points: int = 50,
    rng: np.random.Generator | int | None = None,
) -> TwoNNCurve:
    """TwoNN dimensions of n, n/2, n/4 … points, down to `min_points`: each the mean over disjoint random subsamples.

    A dimension that holds its value as points thin out belongs to the cloud; one that grows with n is noise at small
    scale, one that falls with thinning is curvature or too few points. Duplicates go first; costs twice `two_nn`.
    Warnings and errors as in `two_nn`. Source: Facco et al. 2017, "decimation".

    >>> two_nn_curve(np.random.default_rng(0).random((200, 2)), rng=0).n_points.tolist()
    [200, 100, 50]
    """
    _check_fit("two_nn_curve", fit, discard_fraction)
    if min_points < 3:
        raise ValueError(f"two_nn_curve: min_points is {min_points}; expected ≥ 3")
    points, n_duplicates, notes = _prepared("two_nn_curve", X, duplicates)
    order = np.random.default_rng(rng).permutation(len(points))
    levels, whole, n_near = [], (np.nan, np.nan, 0), 0
    n_subsamples = 1
    while not levels or len(points) // n_subsamples >= min_points:
        size = len(points) // n_subsamples
        estimates = []
        for start in range(0, n_subsamples * size, size) if size >= 3 else ():
            r1, r2 = nearest_distances(points[order[start : start + size]], 2).T
            fitted = _fitted(_log_ratio(r1, r2), fit, discard_fraction)
            estimates.append(np.nan if fitted is None else fitted[0])
            if n_subsamples == 1:
                n_near, near_notes = _near_duplicates("two_nn_curve", r1, cloud_size(points))
                notes, whole = (*notes, *near_notes), fitted or whole
        dimension = float(np.mean(estimates)) if estimates else np.nan
        spread = float(np.std(estimates, ddof=1)) if len(estimates) > 1 else np.nan
        levels.append((size, dimension, spread, n_subsamples))
        n_subsamples *= 2
    if np.isnan(levels[0][1]):
        message = f"two_nn_curve: {len(points)} distinct points; the dimension is undefined (nan)"
        notes = (*notes, warn(ConstantInputWarning, message))
    size, dimension, spread, count = (np.array(column) for column in zip(*levels, strict=True))
    result = TwoNNResult(whole[0], whole[1], len(X), whole[2], n_duplicates, n_near, fit, discard_fraction, notes)
    return TwoNNCurve(size, dimension, spread, count, n_duplicates, n_near, result)


def gride(X: Real[np.ndarray, "n d"], *, max_rank: int = 64, duplicates: Duplicates = "unique") -> GrideResult:
    """Intrinsic dimension by scale, from ratios μ = r₂ₙ₁/rₙ₁ for n₁ = 1, 2, 4 … with 2n₁ ≤ `max_rank`.

    Maximises Σ ln f(μ) with f(μ) = d (μᵈ − 1)^(n₂−n₁−1) μ^(−(n₂−1)d−1) / B(n₂ − n₁, n₁), n₂ = 2n₁, the leading N
    replaced by N − 1, which makes n₁ = 1 the unbiased TwoNN maximum likelihood. Larger ranks look at larger scales: the
    plateau, not the first value, is the dimension of a noisy manifold. The standard error is from the observed
    information and takes points for independent; overlapping neighbourhoods make it too small for large ranks.

    Duplicates, warnings and errors as in `two_nn`; ranks stop short where there are too few points. Source: Denti,
    Doimo, Laio & Mira 2022. DADApy drops ratios above 20 (q₉₅ − q₅₀) + q₅₀ first; nothing is dropped here.

    >>> gride(np.random.default_rng(0).random((500, 2)), max_rank=8).dimension.round(2).tolist()
    [2.03, 1.89, 1.95]
    """
    if max_rank < 2:
        raise ValueError(f"gride: max_rank is {max_rank}; expected ≥ 2")
    points, n_duplicates, notes = _prepared("gride", X, duplicates)
    first_ranks = 2 ** np.arange(int(np.log2(max_rank)))
    first_ranks = first_ranks[2 * first_ranks < len(points)]
    if first_ranks.size == 0:
        message = f"gride: {len(points)} distinct points; the dimension is undefined (nan)"
        notes = (*notes, warn(ConstantInputWarning, message))
        empty, ranks = np.full(1, np.nan), np.ones(1, dtype=np.int64)
        return GrideResult(ranks, 2 * ranks, empty, empty, empty, len(X), n_duplicates, 0, notes)
    distances = nearest_distances(points, int(2 * first_ranks[-1]))
    n_near, near_notes = _near_duplicates("gride", distances[:, 0], cloud_size(points))
    notes = (*notes, *near_notes)
    near, far = distances[:, first_ranks - 1], distances[:, 2 * first_ranks - 1]
    fits = [_gride_maximum(_log_ratio(near[:, s], far[:, s]), int(n1)) for s, n1 in enumerate(first_ranks)]
    dimension, stderr = np.array(fits).T
    scaled, exponent = near_one(far)  # a sum of the largest floats overflows
    mean = np.ldexp(scaled.mean(axis=0), exponent)
    return GrideResult(
        first_ranks, 2 * first_ranks, dimension, stderr, mean, len(X), n_duplicates, n_near, notes
    )  # fmt: skip


def _check_fit(who: str, fit: str, discard_fraction: float) -> None:
    if fit not in FITS:
        raise ValueError(f"{who}: fit is {fit!r}; expected one of {FITS}")
    if not 0 <= discard_fraction < 1:
        raise ValueError(f"{who}: discard_fraction is {discard_fraction}; expected a number in [0, 1)")


def _prepared(who: str, X: object, duplicates: str) -> tuple[np.ndarray, int, tuple[str, ...]]:
    """Distinct points in float32 or float64, the number of rows left out, and warnings."""
    if duplicates not in DUPLICATES:
        raise ValueError(f"{who}: duplicates is {duplicates!r}; expected one of {DUPLICATES}")
    points = as_array(who, "X", X)
    is_half = points.dtype.name in ("float16", "bfloat16")
    if points.dtype.kind not in "fiub" and not is_half:
        raise ValueError(f"{who}: X has dtype {points.dtype}; expected real numbers")
    if points.ndim != 2 or points.shape[0] < 3 or points.shape[1] < 1:
        raise ValueError(f"{who}: X has shape {points.shape}; expected points [n, d], n ≥ 3")
    if is_half:
        points = points.astype(np.float32)
    elif points.dtype not in (np.float32, np.float64):
        points = points.astype(np.float64)
    if not np.isfinite(points).all():
        n_bad = int((~np.isfinite(points)).sum())
        raise ValueError(f"{who}: X has {n_bad} values that are NaN or inf; expected finite ones")
    notes = []
    if points.dtype.kind == "f" and np.asarray(X).dtype.kind not in "iub" and _fits_half(points):
        message = f"{who}: all values of X fit in bfloat16 or float16; distances of near neighbours are mostly rounding"
        notes.append(warn(LowPrecisionWarning, message, stacklevel=4))
    kept = _distinct_rows(points, keep_one=duplicates != "drop")
    n_duplicates = len(points) - kept.size
    if n_duplicates and duplicates == "raise":
        raise ValueError(f"{who}: X has {n_duplicates} rows that repeat another; expected distinct points")
    if n_duplicates:
        message = f"{who}: {n_duplicates} of {len(points)} points are duplicates and were left out ({duplicates})"
        notes.append(warn(DuplicatePointsWarning, message, stacklevel=4))
        points = points[kept]
    return points, n_duplicates, tuple(notes)


def _near_duplicates(who: str, nearest: np.ndarray, size: float) -> tuple[int, tuple[str, ...]]:
    """How many distances to the nearest other point are next to nothing beside the cloud's size, and a warning."""
    n_near = int(np.count_nonzero(nearest < NEAR_DUPLICATE * size))
    if n_near == 0:
        return 0, ()
    message = (
        f"{who}: {n_near} of {nearest.size} points are near-duplicates, nearer to another than {NEAR_DUPLICATE:g} of "
        f"the cloud's size ({size:.3g}); the ratios of their distances are mostly rounding"
    )
    return n_near, (warn(DuplicatePointsWarning, message, stacklevel=4),)


def _fits_half(points: np.ndarray) -> bool:
    """Whether every value is one of bfloat16 (the upper 16 bits of a float32) or every value one of float16."""
    for sample in (points[:64], points):  # a few rows settle nearly every case
        with np.errstate(over="ignore"):
            single = sample.astype(np.float32)
            if not np.array_equal(single, sample):
                return False
            is_bfloat16 = not np.any(np.ascontiguousarray(single).view(np.uint32) & np.uint32(0xFFFF))
            if not is_bfloat16 and not np.array_equal(single.astype(np.float16), single):
                return False
    return True


def _distinct_rows(points: np.ndarray, *, keep_one: bool) -> np.ndarray:
    """Indices of the first of each set of identical rows, or of rows that have no twin, in order.

    By 128-bit digests of the rows: sorting whole rows, as np.unique does, costs a copy and n log n long comparisons.
    """
    zeros_alike = points + points.dtype.type(0)  # −0 becomes 0, which has other bytes
    digests = [hashlib.blake2b(row, digest_size=16).digest() for row in np.ascontiguousarray(zeros_alike)]
    first: dict[bytes, int] = {}
    count: dict[bytes, int] = {}
    for index, digest in enumerate(digests):
        first.setdefault(digest, index)
        count[digest] = count.get(digest, 0) + 1
    return np.array([index for digest, index in first.items() if keep_one or count[digest] == 1], dtype=np.intp)


def _log_ratio(near: np.ndarray, far: np.ndarray) -> np.ndarray:
    """ln(far/near) of distances above 0, also where the quotient is more than a float64 holds."""
    with np.errstate(over="ignore"):
        ratio = far / near
    return np.where(np.isfinite(ratio), np.log(ratio), np.log(far) - np.log(near))


def _fitted(log_mu: np.ndarray, fit: Fit, discard_fraction: float) -> tuple[float, float, int] | None:
    """Dimension, standard error and number of ratios used; None where they do not determine a slope."""
    x = np.sort(log_mu[np.isfinite(log_mu)])
    n = x.size
    n_kept = n if fit == "mle" else int(n * (1 - discard_fraction) + 1e-9)
    if fit == "regression":
        n_kept = min(n_kept, n - 1)
    if n_kept < 2 or x[n_kept - 1] <= 0:
        return None
    kept = x[:n_kept]
    if fit == "regression":
        y = -np.log1p(-np.arange(1, n_kept + 1) / n)
        dimension = float(kept @ y / (kept @ kept))
        return dimension, dimension * _regression_relative_error(y, n), n_kept
    total = kept.sum() + (n - n_kept) * kept[-1]  # Gamma(n_kept, rate dimension)
    dimension = float((n_kept - 1) / total)
    return dimension, float(dimension / np.sqrt(max(n_kept - 2, 1))), n_kept


def _regression_relative_error(y: np.ndarray, n: int) -> float:
    """Relative standard deviation of the slope through the origin, to first order in 1/n.

    The i-th smallest of n exponentials is Σ_{k ≤ i} E_k/(n − k + 1) with independent E_k (Rényi 1953), and
    ∂(Σxy/Σx²)/∂xᵢ = −yᵢ/Σy² at x = y. The ordinary least-squares error would take sorted values for independent.
    """
    weight_of_gap = np.cumsum(y[::-1])[::-1] / (n - np.arange(y.size))
    return float(np.sqrt(np.sum(weight_of_gap**2)) / np.sum(y**2))


def _gride_maximum(log_mu: np.ndarray, n1: int) -> tuple[float, float]:
    """Maximum-likelihood dimension and its standard error for ranks n₁ and 2n₁; nan where all ratios are 1."""
    n2 = 2 * n1
    n, total = log_mu.size, float(log_mu.sum())
    if total <= 0:
        return np.nan, np.nan

    def ratio_term(d: float) -> np.ndarray:
        """ln μ · μᵈ/(μᵈ − 1), with its limit 1/d at μ = 1."""
        z = d * log_mu
        return np.divide(z, -np.expm1(-z), out=np.ones_like(z), where=z > 0) / d

    def score(d: float) -> float:
        return (n - 1) / d + (n2 - n1 - 1) * float(ratio_term(d).sum()) - (n2 - 1) * total

    low = high = (n - 1) / total
    while score(low) < 0:
        low /= 2
    while score(high) > 0:
        high *= 2
    d = float(scipy.optimize.root_scalar(score, bracket=(low, high), rtol=1e-14).root) if low < high else low
    curvature = float(np.sum(ratio_term(d) ** 2 * np.exp(-d * log_mu)))  # −∂²/∂d² of ln(μᵈ − 1)
    information = n / d**2 + (n2 - n1 - 1) * curvature
    return d, float(1 / np.sqrt(information))
