"""Distances between concepts: by position, on a circle, on the globe, by spelling, and between their states.

Every function gives a symmetric float64 matrix [n, n] with a zero diagonal, as `mantel` takes it. Distances that should
tie do tie: they are integers, or rounded to 12 digits of the largest.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import numpy as np
import scipy
from jaxtyping import Float, Real
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cdist

from probes.checks import as_matrix, as_real, near_one

EARTH_RADIUS_KM = 6371.0088  # mean radius (2a + b)/3 of the GRS 80 ellipsoid
N_DIGITS = 12


def rounded(distances: Real[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """Distances rounded to 12 digits of the largest, so that rounding noise cannot break a tie."""
    values = np.asarray(distances, dtype=np.float64)
    largest = np.abs(values).max(initial=0.0)
    if largest == 0:
        return values
    decimals = N_DIGITS - 1 - int(np.floor(np.log10(largest)))
    if decimals > 300:  # 10ᵈ would soon be infinite
        return np.ldexp(rounded(np.ldexp(values, 1000)), -1000)
    return np.round(values, decimals)


def _positions(who: str, positions: object) -> np.ndarray:
    if isinstance(positions, int | np.integer):
        if positions < 1:
            raise ValueError(f"{who}: n is {positions}; expected n ≥ 1")
        return np.arange(int(positions), dtype=np.float64)
    values = as_real(who, "positions", positions)
    if values.ndim != 1:
        raise ValueError(f"{who}: positions has shape {values.shape}; expected [n]")
    return values


def ordinal_distances(positions: int | Real[np.ndarray, " n"]) -> Float[np.ndarray, "n n"]:
    """|pᵢ − pⱼ| [n, n] for positions on a line; an int n stands for positions 0 … n − 1.

    Raises ValueError for positions that are not finite or not one-dimensional.

    >>> ordinal_distances(3)[0].tolist()
    [0.0, 1.0, 2.0]
    """
    p = _positions("ordinal_distances", positions)
    return rounded(np.abs(p[:, None] - p[None, :]))


def cyclic_distances(positions: int | Real[np.ndarray, " n"], period: float | None = None) -> Float[np.ndarray, "n n"]:
    """min(|pᵢ − pⱼ|, period − |pᵢ − pⱼ|) [n, n] on a circle of `period`; an int n stands for 0 … n − 1 of period n.

    A subset of a cycle (five of twelve months) needs its positions and the whole cycle's period. A full cycle has 2n
    automorphisms, so that as many permutations tie with the observed correlation.

    Raises ValueError for positions as in `ordinal_distances`, for a missing period and for one ≤ 0.

    >>> cyclic_distances(7)[0].tolist()
    [0.0, 1.0, 2.0, 3.0, 3.0, 2.0, 1.0]
    """
    p = _positions("cyclic_distances", positions)
    if period is None:
        if not isinstance(positions, int | np.integer):
            raise ValueError("cyclic_distances: period is None; expected the length of the cycle the positions are on")
        period = float(positions)
    if not (np.isfinite(period) and period > 0):
        raise ValueError(f"cyclic_distances: period is {period}; expected a finite number > 0")
    difference = np.mod(np.abs(p[:, None] - p[None, :]), period)
    return rounded(np.minimum(difference, period - difference))


def great_circle_km(latitudes: Real[np.ndarray, " n"], longitudes: Real[np.ndarray, " n"]) -> Float[np.ndarray, "n n"]:
    """Great-circle distances [n, n] in kilometres on a sphere of radius 6371.0088 km.

    Latitudes in [−90, 90] and longitudes in [−180, 360], degrees. The haversine near 0, written with atan2 so that
    antipodes keep their digits too: 2R·atan2(√h, √(1 − h)), h = sin²(Δφ/2) + cos φᵢ cos φⱼ sin²(Δλ/2), where 1 − h is
    computed without cancellation as sin²((φᵢ + φⱼ)/2) + cos φᵢ cos φⱼ cos²(Δλ/2).

    Raises ValueError for unequal lengths and for degrees out of range.

    >>> great_circle_km(np.array([0.0, 0.0]), np.array([0.0, 90.0]))[0].round(1).tolist()
    [0.0, 10007.6]
    """
    lat = as_real("great_circle_km", "latitudes", latitudes)
    lon = as_real("great_circle_km", "longitudes", longitudes)
    if lat.ndim != 1 or lat.shape != lon.shape:
        raise ValueError(f"great_circle_km: latitudes {lat.shape} and longitudes {lon.shape}; expected both [n]")
    for name, values, low, high in (("latitudes", lat, -90, 90), ("longitudes", lon, -180, 360)):
        if values.min() < low or values.max() > high:
            raise ValueError(
                f"great_circle_km: {name} span [{values.min():g}, {values.max():g}]; "
                f"expected degrees in [{low}, {high}]"
            )
    phi, lam = np.radians(lat), np.radians(lon)
    cosines = np.cos(phi[:, None]) * np.cos(phi[None, :])
    half_difference = (lam[:, None] - lam[None, :]) / 2
    near = np.sin((phi[:, None] - phi[None, :]) / 2) ** 2 + cosines * np.sin(half_difference) ** 2
    far = np.sin((phi[:, None] + phi[None, :]) / 2) ** 2 + cosines * np.cos(half_difference) ** 2
    km = rounded(2 * EARTH_RADIUS_KM * np.arctan2(np.sqrt(near), np.sqrt(far)))
    np.fill_diagonal(km, 0.0)
    return km


def levenshtein_distances(words: Sequence[str]) -> Float[np.ndarray, "n n"]:
    """Levenshtein distances [n, n] of the strings after Unicode NFC: insertions, deletions, substitutions, each 1.

    Case counts. Without NFC, "é" as one code point and as two would be 1–2 apart while they look the same.

    Raises ValueError for an empty list and for what is not a string.

    >>> levenshtein_distances(["Monday", "Sunday"])[0].tolist()
    [0.0, 2.0]
    """
    if len(words) == 0 or isinstance(words, str) or not all(isinstance(word, str) for word in words):
        raise ValueError(f"levenshtein_distances: words is {words!r:.80}; expected a list of at least one string")
    normal = [unicodedata.normalize("NFC", word) for word in words]
    return cdist(normal, normal, scorer=Levenshtein.distance, dtype=np.int32).astype(np.float64)


def euclidean_distances(X: Real[np.ndarray, "n d"]) -> Float[np.ndarray, "n n"]:
    """Euclidean distances [n, n] of the rows of X, by differences in float64.

    The default between concept means, uncentred (a translation would change nothing). Never by ‖x‖² + ‖y‖² − 2xᵀy in
    float32, which leaves no digit of the distance of near neighbours far from the origin.

    Raises ValueError for what is not a finite matrix.

    >>> euclidean_distances(np.array([[0.0, 0.0], [3.0, 4.0]]))[0].tolist()
    [0.0, 5.0]
    """
    points, exponent = near_one(as_matrix("euclidean_distances", "X", X))
    return rounded(np.ldexp(scipy.spatial.distance.squareform(scipy.spatial.distance.pdist(points)), exponent))


def cosine_distances(X: Real[np.ndarray, "n d"]) -> Float[np.ndarray, "n n"]:
    """1 − cosine [n, n] of the rows of X, in [0, 2], float64.

    As ‖x̂ᵢ − x̂ⱼ‖²/2 of the unit rows, which keeps the digits of small angles that 1 − x̂ᵢᵀx̂ⱼ cancels.

    Raises ValueError for what is not a finite matrix, and for a row of zeros, whose angle is undefined.

    >>> cosine_distances(np.array([[1.0, 0.0], [0.0, 2.0], [-1.0, 0.0]]))[0].tolist()
    [0.0, 1.0, 2.0]
    """
    matrix = as_matrix("cosine_distances", "X", X)
    largest = np.abs(matrix).max(axis=1, keepdims=True)
    if (largest == 0).any():
        raise ValueError(f"cosine_distances: row {np.argmin(largest)} of X is all zero; expected rows with a direction")
    unit = matrix / largest
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    return rounded(scipy.spatial.distance.squareform(scipy.spatial.distance.pdist(unit, "sqeuclidean") / 2))
