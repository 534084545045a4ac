"""Where the words of a set lie: their mean states in the plane of their first two principal components."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64

from probes.checks import centered
from workbench.data.concepts import ConceptSet

TOPOLOGIES = ("ordinal", "cyclic")  # whose shape a plane can show: a line, a ring
N_DIGITS = 4  # significant, of the largest coordinate: points of a picture, of which a study has thousands


def point_rows(
    key: Mapping[str, Any], one: ConceptSet, means: Float64[np.ndarray, "word state d_model"], r: Sequence[float]
) -> list[dict[str, Any]]:
    """concept_points' rows of one model and set: one row per word at the embedding, at the layer with the largest
    Mantel r (of equal ones the first; none where every r is nan), and at the last layer.

    Args:
        key: the columns model and seed.
        one: an ordinal or cyclic set.
        means: the words' mean states, state 0 the embedding's.
        r: Mantel correlation of each state.
    """
    known = np.where(np.isnan(r), -np.inf, r)
    best = int(np.argmax(known)) if np.isfinite(known).any() else -1
    rows = []
    for state in sorted({0, best, means.shape[1] - 1} - {-1}):
        points, shares = principal_plane(means[:, state])
        for place, (word, point) in enumerate(zip(one.words, points, strict=True)):
            row = {"set": one.name, "n": len(one.words), "topology": one.topology, "layer": state - 1}
            row |= {"item": word, "place": place, "pc1": point[0], "pc2": point[1]}
            row |= {"share_pc1": shares[0], "share_pc2": shares[1], "is_best": int(state == best)}
            rows.append({**key, **row})
    return rows


def principal_plane(
    states: Float64[np.ndarray, "word d_model"],
) -> tuple[Float64[np.ndarray, "word 2"], Float64[np.ndarray, "2"]]:
    """(coordinates on the first two principal components, their shares of the variance).

    The sign of a component is arbitrary: the first is turned so that it does not fall with the words' order, the second
    so that its largest coordinate is positive. Coordinates are rounded to 4 digits of the largest. Shares are nan where
    all states are equal.

    >>> principal_plane(np.array([[0.0, 4.0], [0.0, 2.0], [0.0, 0.0]]))[0].tolist()
    [[-2.0, 0.0], [0.0, 0.0], [2.0, 0.0]]
    """
    u, sigma, _ = np.linalg.svd(centered(states), full_matrices=False)
    n = min(2, len(sigma))
    points = np.zeros((len(states), 2))
    points[:, :n] = u[:, :n] * sigma[:n]
    if points[:, 0] @ (np.arange(len(states)) - (len(states) - 1) / 2) < 0:
        points[:, 0] *= -1
    if points[np.argmax(np.abs(points[:, 1])), 1] < 0:
        points[:, 1] *= -1
    total = float(sigma @ sigma)
    shares = np.full(2, np.nan) if total == 0 else np.append(sigma, 0.0)[:2] ** 2 / total
    largest = np.abs(points).max()
    if largest == 0:
        return points, shares
    decimals = N_DIGITS - 1 - int(np.floor(np.log10(largest)))
    return np.round(points, decimals) + 0.0, np.round(shares, N_DIGITS)  # + 0.0: no negative zeros
