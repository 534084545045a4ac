"""Four soft ranks of a matrix, all from one set of singular values.

On one spectrum always stable ≤ participation ≤ nuclear ≤ effective ≤ rank; diag(3, 2, 1) gives 1.5556, 2.0, 2.5714,
2.7495. All are free of scale. Rows are observations (tokens) and columns are dimensions wherever `center=True` is
asked for. Names differ between papers: see each docstring.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Real

from probes.checks import ConstantInputWarning, as_matrix, as_numbers, centered, warn

# Singular values come from the Gram matrix where the bound on the relative error of Σσ that this causes is below this:
# two digits past the six that any table prints.
GRAM_TOLERANCE = 1e-8


@dataclass(frozen=True)
class MatrixRanks:
    """The four soft ranks of one spectrum (dimensionless; all nan for a zero matrix)."""

    stable_rank: float
    participation_ratio: float
    nuclear_rank: float
    effective_rank: float
    n_singular_values: int


@dataclass(frozen=True)
class MatrixSpectrum:
    """All singular values of one matrix, in its unit and descending, and the soft ranks that were taken of them."""

    singular_values: Float[np.ndarray, " k"]
    ranks: MatrixRanks


def _scaled(who: str, W: object, center: bool) -> tuple[np.ndarray, float]:
    """W as a float64 matrix, centred if asked and divided by its largest |entry| (so that no square over- or
    underflows), and that entry; a zero matrix as it is, and 0."""
    matrix = as_matrix(who, "W", W, min_rows=2 if center else 1)
    if center:
        matrix = centered(matrix)
    scale = float(np.abs(matrix).max())
    return (matrix / scale if scale > 0 else matrix), scale


def _prepared(who: str, W: object, center: bool) -> np.ndarray:
    return _scaled(who, W, center)[0]


def _gram(matrix: np.ndarray) -> np.ndarray:
    """The Gram matrix of the shorter side."""
    return matrix @ matrix.T if matrix.shape[0] < matrix.shape[1] else matrix.T @ matrix


def _gram_singular_values(matrix: np.ndarray) -> np.ndarray | None:
    """Singular values through the Gram matrix, or None where that would cost a reported digit.

    An eigenvalue is off by about δ·λ₁, with δ = ε·(√longer side + shorter side) of the product and the eigensolver;
    hence σᵢ by δ·λ₁/(2σᵢ) while λᵢ ≫ δ·λ₁, and Σσ by the sum of these.
    """
    eigenvalues = np.linalg.eigvalsh(_gram(matrix))[::-1]
    delta = np.finfo(np.float64).eps * (np.sqrt(max(matrix.shape)) + min(matrix.shape))
    if eigenvalues[-1] <= 10 * delta * eigenvalues[0]:
        return None
    sigma = np.sqrt(eigenvalues)
    error = 0.5 * delta * eigenvalues[0] * np.sum(1 / sigma) / np.sum(sigma)
    return sigma if error < GRAM_TOLERANCE else None


def _singular_values(matrix: np.ndarray) -> np.ndarray:
    longer, shorter = max(matrix.shape), min(matrix.shape)
    sigma = _gram_singular_values(matrix) if longer >= 2 * shorter else None
    return np.linalg.svd(matrix, compute_uv=False) if sigma is None else sigma


def singular_values(W: Real[np.ndarray, "rows cols"], center: bool = False) -> Float[np.ndarray, " k"]:
    """Singular values of W in descending order, float64, [min(rows, cols)].

    Through the Gram matrix of the shorter side where its error bound stays below 1e-8 of Σσ, else by SVD.
    `center=True` subtracts the column means first.

    Raises ValueError for what is not a finite real matrix (or has one row when centred).

    >>> singular_values(np.array([[3.0, 0.0], [0.0, -4.0]])).tolist()
    [4.0, 3.0]
    """
    matrix, scale = _scaled("singular_values", W, center)
    return _singular_values(matrix) * scale if scale > 0 else np.zeros(min(matrix.shape))


def ranks_of_spectrum(sigma: Real[np.ndarray, " k"]) -> MatrixRanks:
    """The four soft ranks of the singular values `sigma` (any order, ≥ 0).

    Participation is taken of λ = σ² as given: centre the data first if its "effective dimensionality" is meant.
    All nan, with a `ConstantInputWarning`, where every σ is 0. Raises ValueError for negative or non-finite values.

    >>> round(ranks_of_spectrum(np.array([2.0, 1.0])).stable_rank, 12)
    1.25
    """
    values = as_numbers("ranks_of_spectrum", "sigma", sigma)
    if values.ndim != 1 or values.size == 0 or not np.isfinite(values).all() or (values < 0).any():
        raise ValueError(f"ranks_of_spectrum: sigma has shape {values.shape}; expected finite values ≥ 0 of shape [k]")
    if values.max() == 0:
        warn(ConstantInputWarning, "ranks_of_spectrum: every singular value is 0; the ranks are undefined (nan)")
        return MatrixRanks(np.nan, np.nan, np.nan, np.nan, values.size)
    values = values / values.max()
    return MatrixRanks(
        stable_rank=float(np.sum(values**2)),
        participation_ratio=float(np.sum(values**2) ** 2 / np.sum(values**4)),
        nuclear_rank=float(np.sum(values) ** 2 / np.sum(values**2)),
        effective_rank=_exp_entropy(values),
        n_singular_values=values.size,
    )


def _exp_entropy(sigma: np.ndarray) -> float:
    p = sigma / sigma.sum()
    p = p[p > 0]
    return float(np.exp(-np.sum(p * np.log(p))))


def matrix_ranks(W: Real[np.ndarray, "rows cols"], center: bool = False) -> MatrixRanks:
    """All four soft ranks of W from one decomposition, centred or not alike.

    Where a table wants the participation ratio of centred data beside uncentred ranks, as the definitions do for
    activations, take it from `participation_ratio(W)`. nan and errors as in the single functions.

    >>> round(matrix_ranks(np.eye(3)).nuclear_rank, 12)
    3.0
    """
    return _spectrum("matrix_ranks", W, center).ranks


def matrix_spectrum(W: Real[np.ndarray, "rows cols"], center: bool = False) -> MatrixSpectrum:
    """All singular values of W, as `singular_values`, and its soft ranks, as `matrix_ranks`, from one decomposition.

    Of a matrix without spread the singular values are 0 and the ranks nan, with a `ConstantInputWarning`. Errors as in
    the single functions.

    >>> matrix_spectrum(np.diag([3.0, 2.0, 1.0])).singular_values.round(4).tolist()
    [3.0, 2.0, 1.0]
    """
    return _spectrum("matrix_spectrum", W, center)


def _spectrum(who: str, W: object, center: bool) -> MatrixSpectrum:
    matrix, scale = _scaled(who, W, center)
    if scale == 0:
        warn(ConstantInputWarning, f"{who}: W has no spread; the ranks are undefined (nan)", stacklevel=4)
        k = min(matrix.shape)
        return MatrixSpectrum(np.zeros(k), MatrixRanks(np.nan, np.nan, np.nan, np.nan, k))
    sigma = _singular_values(matrix)
    return MatrixSpectrum(sigma * scale, ranks_of_spectrum(sigma))


def stable_rank(W: Real[np.ndarray, "rows cols"], center: bool = False) -> float:
    """Stable rank ‖W‖_F² / σ₁², in [1, rank] (Rudelson & Vershynin 2007).

    W is [rows, cols], any unit; `center=True` subtracts the column means first. nan with a `ConstantInputWarning`
    for a matrix without spread. Raises ValueError for what is not a finite real matrix. Not what the first paper
    calls "stable rank": that is `nuclear_rank`.

    >>> round(stable_rank(np.diag([3.0, 2.0, 1.0])), 4)
    1.5556
    """
    matrix = _prepared("stable_rank", W, center)
    if not matrix.any():
        warn(ConstantInputWarning, "stable_rank: W has no spread; the rank is undefined (nan)")
        return float("nan")
    gram = _gram(matrix)  # σ₁² is the best-conditioned eigenvalue: nothing is lost here
    return float(np.trace(gram) / np.linalg.eigvalsh(gram)[-1])


def nuclear_rank(W: Real[np.ndarray, "rows cols"], center: bool = False) -> float:
    """Nuclear rank (Σσ)² / Σσ², in [1, rank].

    Concatenated head outputs z are taken uncentred, over ≥ 4,096 tokens. nan and errors as in `stable_rank`. The
    first paper calls this "stable rank" and, in its Table 1, "effective rank"; the second calls it the participation
    ratio of weights.

    >>> round(nuclear_rank(np.diag([3.0, 2.0, 1.0])), 4)
    2.5714
    """
    matrix = _prepared("nuclear_rank", W, center)
    if not matrix.any():
        warn(ConstantInputWarning, "nuclear_rank: W has no spread; the rank is undefined (nan)")
        return float("nan")
    sigma = _singular_values(matrix)
    return float(np.sum(sigma) ** 2 / np.sum(sigma**2))


def effective_rank(W: Real[np.ndarray, "rows cols"], center: bool = False) -> float:
    """Effective rank exp(−Σ p ln p) with p = σ/Σσ, in [1, rank] (Roy & Vetterli 2007).

    The entropy is of singular values, not of their squares. nan and errors as in `stable_rank`.

    >>> round(effective_rank(np.diag([3.0, 2.0, 1.0])), 4)
    2.7495
    """
    matrix = _prepared("effective_rank", W, center)
    if not matrix.any():
        warn(ConstantInputWarning, "effective_rank: W has no spread; the rank is undefined (nan)")
        return float("nan")
    return _exp_entropy(_singular_values(matrix))


def participation_ratio(W: Real[np.ndarray, "rows cols"], center: bool = True) -> float:
    """Participation ratio (Σλ)² / Σλ² of the covariance spectrum λ = σ², in [1, rank].

    Centred by default, as the definition is of covariance eigenvalues (the second paper's "effective dimensionality");
    of n concept means it is at most n − 1. Pass `center=False` for weights. Taken as tr(G)² / ‖G‖_F² of the Gram matrix
    G, which loses nothing. nan and errors as in `stable_rank`.

    >>> round(participation_ratio(np.diag([3.0, 2.0, 1.0]), center=False), 4)
    2.0
    """
    matrix = _prepared("participation_ratio", W, center)
    if not matrix.any():
        warn(ConstantInputWarning, "participation_ratio: W has no spread; the ratio is undefined (nan)")
        return float("nan")
    gram = _gram(matrix)
    return float(np.trace(gram) ** 2 / np.sum(gram**2))


def rank_utilization(W: Real[np.ndarray, "rows cols"], center: bool = False) -> float:
    """`nuclear_rank(W, center)` as a share of the number of columns, in (0, 1].

    >>> round(rank_utilization(np.eye(3)[:2]), 4)
    0.6667
    """
    return nuclear_rank(W, center) / np.asarray(W).shape[1]
