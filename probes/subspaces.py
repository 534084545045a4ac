"""How alike two sets of states of the same items are: directions, subspaces, and geometry in item space.

Rows are the same n items (sequences, concepts) in both, in the same order. Two models share no basis, so a cosine of
their directions compares coordinates that mean different things; principal angles, CKA and Procrustes are taken in item
space, where both live.
"""

from __future__ import annotations

import numpy as np
import scipy
from jaxtyping import Float, Real

from probes.checks import ConstantInputWarning, as_matrix, centered, warn

# Singular values closer than this, relative, share one plane: no single direction in it is a principal component.
DEGENERACY = 1e-9


def _pair(who: str, A: object, B: object, *, min_rows: int) -> tuple[np.ndarray, np.ndarray]:
    a, b = as_matrix(who, "A", A, min_rows=min_rows), as_matrix(who, "B", B, min_rows=min_rows)
    if a.shape[0] != b.shape[0]:
        raise ValueError(f"{who}: A has {a.shape[0]} rows and B {b.shape[0]}; expected the same items in both")
    return a, b


def _unit_scale(matrix: np.ndarray) -> np.ndarray:
    """The matrix with largest entry 1, so that no product over- or underflows; zeros stay."""
    largest = np.abs(matrix).max()
    return matrix / largest if largest > 0 else matrix


def pc_abs_cosine(A: Real[np.ndarray, "n d"], B: Real[np.ndarray, "m d"], component: int = 1) -> float:
    """|cos| in [0, 1] between the k-th principal directions of A and B (`component` k = 1 for PC1).

    A [n, d] and B [m, d] are states, each centred by its own mean; items need not be the same. The baseline for
    unrelated directions is `random_pc_cosine(d)`, not 0. **Two models share no basis**: between different models the
    value tells about coordinates, not about content; see `principal_angles`, `linear_cka` and `procrustes_disparity`.

    nan with a `ConstantInputWarning` where the component does not exist or ties with a neighbour (σ within 1e-9), for
    then its direction is arbitrary. Raises ValueError for unequal d, fewer than 2 rows, NaN or inf, component < 1.

    >>> round(pc_abs_cosine(np.outer([0.0, 1.0], [1.0, 0.0]), np.outer([0.0, 1.0], [3.0, 4.0])), 12)
    0.6
    """
    a, b = as_matrix("pc_abs_cosine", "A", A, min_rows=2), as_matrix("pc_abs_cosine", "B", B, min_rows=2)
    if a.shape[1] != b.shape[1]:
        raise ValueError(
            f"pc_abs_cosine: A has {a.shape[1]} dimensions and B {b.shape[1]}; expected one basis for both"
        )
    if component < 1:
        raise ValueError(f"pc_abs_cosine: component is {component}; expected ≥ 1")
    directions = [_principal_direction(matrix, component - 1) for matrix in (a, b)]
    if directions[0] is None or directions[1] is None:
        which = " and ".join(name for name, v in zip("AB", directions, strict=True) if v is None)
        warn(ConstantInputWarning, f"pc_abs_cosine: PC{component} of {which} is not determined; the cosine is nan")
        return float("nan")
    return float(min(abs(directions[0] @ directions[1]), 1.0))


def _principal_direction(matrix: np.ndarray, index: int) -> np.ndarray | None:
    """The unit principal direction [d], or None where it is not determined."""
    _, sigma, directions = np.linalg.svd(_unit_scale(centered(matrix)), full_matrices=False)
    spectrum = np.append(sigma, 0.0)
    if index >= sigma.size or spectrum[index] <= DEGENERACY * spectrum[0]:
        return None
    neighbours = spectrum[[i for i in (index - 1, index + 1) if i >= 0]]
    if np.any(np.abs(neighbours - spectrum[index]) <= DEGENERACY * spectrum[0]):
        return None
    return directions[index]


def random_pc_cosine(d: int) -> float:
    """The mean |cos| of two independent isotropic directions in d dimensions, Γ(d/2)/(√π Γ((d+1)/2)).

    About √(2/(πd)), which is low by a quarter of a part in d. It is the null of directions without preference;
    residual streams have a few large coordinates and lie above it without any kinship. Raises ValueError for d < 1.

    >>> random_pc_cosine(1), round(random_pc_cosine(2), 6)
    (1.0, 0.63662)
    """
    if d < 1:
        raise ValueError(f"random_pc_cosine: d is {d}; expected ≥ 1")
    return float(np.exp(scipy.special.gammaln(d / 2) - scipy.special.gammaln((d + 1) / 2)) / np.sqrt(np.pi))


def principal_angles(
    A: Real[np.ndarray, "n d_a"],
    B: Real[np.ndarray, "n d_b"],
    n_components: int | None = None,
    center: bool = False,
) -> Float[np.ndarray, " k"]:
    """Principal angles [k] in radians between the column spaces of A and B, descending, k the smaller dimension.

    The columns span subspaces of item space [n], so A and B may be of different models. With `n_components` each is
    first reduced to its leading left singular vectors; without, any d ≥ n spans everything and all angles are 0.
    `center=True` removes column means first, as one wants for states: else the mean is a shared direction.

    Cosines give the large angles and sines the small ones, so that both keep their digits (Björck & Golub 1973;
    Knyazev & Argentati 2002). Rank-deficient columns count once. A zero matrix spans nothing: no
    angles and a `ConstantInputWarning`. Raises ValueError for different numbers of rows,
    NaN or inf, and n_components above either rank.

    >>> np.rad2deg(principal_angles(np.eye(3)[:, :1], np.ones((3, 1)))).round(3).tolist()
    [54.736]
    """
    a, b = _pair("principal_angles", A, B, min_rows=2 if center else 1)
    bases = [_column_basis(name, m, n_components, center) for name, m in (("A", a), ("B", b))]
    if min(basis.shape[1] for basis in bases) == 0:
        warn(ConstantInputWarning, "principal_angles: a matrix without spread spans nothing; there are no angles")
        return np.zeros(0)
    wide, narrow = sorted(bases, key=lambda basis: -basis.shape[1])
    left, cosines, right = np.linalg.svd(wide.T @ narrow)
    del left
    cosines = np.clip(cosines, 0, 1)
    directions = narrow @ right.T  # principal vectors of the narrower space, angles ascending
    sines = np.clip(np.linalg.norm(directions - wide @ (wide.T @ directions), axis=0), 0, 1)
    angles = np.where(cosines**2 < 0.5, np.arccos(cosines), np.arcsin(sines))
    return np.sort(angles)[::-1]


def _column_basis(name: str, matrix: np.ndarray, n_components: int | None, center: bool) -> np.ndarray:
    """Orthonormal columns that span those of the matrix, or its leading left singular vectors."""
    left, sigma, _ = np.linalg.svd(_unit_scale(centered(matrix) if center else matrix), full_matrices=False)
    rank = int(np.sum(sigma > max(matrix.shape) * np.finfo(np.float64).eps * sigma[0])) if sigma[0] > 0 else 0
    if n_components is None:
        return left[:, :rank]
    if not 1 <= n_components <= max(rank, 1):
        raise ValueError(
            f"principal_angles: n_components is {n_components}; expected 1 ≤ k ≤ {rank}, the rank of {name}"
        )
    return left[:, : min(n_components, rank)]


def linear_cka(A: Real[np.ndarray, "n d_a"], B: Real[np.ndarray, "n d_b"], unbiased: bool = True) -> float:
    """Linear centred kernel alignment of A and B over the same n items, 1 for equal geometry.

    HSIC(K, L)/√(HSIC(K, K) HSIC(L, L)) of the Gram matrices K = AAᵀ, L = BBᵀ. Unbiased by default (Song et al. 2012,
    eq. 5): near 0 for independent data whatever the dimensions, and possibly a little below; the biased form, in
    [0, 1], rises towards 1 by itself as d grows past n. Does not change under rotation, translation and common scaling.

    With K̃ = K less its diagonal and centred A, the sums reduce to ‖AᵀB‖_F², the diagonals and n, at O(n d²) or O(n² d).

    nan with a `ConstantInputWarning` where HSIC of a matrix with itself is 0: no spread, and for the unbiased form also
    a single item apart from all others, or all items equally far from each other. Raises ValueError for
    different numbers of rows, n < 4 (unbiased) or n < 2, NaN or inf. Source: Kornblith et al. 2019.

    >>> states = np.random.default_rng(0).random((6, 3))
    >>> round(linear_cka(states, 3 * states[:, ::-1] + 1), 12)
    1.0
    """
    a, b = _pair("linear_cka", A, B, min_rows=4 if unbiased else 2)
    a, b = _unit_scale(centered(a)), _unit_scale(centered(b))
    hsic = _unbiased_hsic if unbiased else _product_norm
    cross, own_a, own_b = hsic(a, b), hsic(a, a), hsic(b, b)
    # Below these the value is what rounding leaves of a difference.
    floors = [1e-14 * _product_norm(m, m) for m in (a, b)]
    if own_a <= floors[0] or own_b <= floors[1]:
        message = "linear_cka: HSIC of A or B with itself is 0 (no spread between items that it would see)"
        warn(ConstantInputWarning, f"{message}; the alignment is undefined (nan)")
        return float("nan")
    return float(cross / np.sqrt(own_a * own_b))


def _product_norm(a: np.ndarray, b: np.ndarray) -> float:
    """‖AᵀB‖_F² = tr(AAᵀBBᵀ), by the smaller of the two products."""
    n = a.shape[0]
    if n * n < a.shape[1] * b.shape[1]:
        return float(np.sum((a @ a.T) * (b @ b.T)))
    return float(np.sum((a.T @ b) ** 2))


def _unbiased_hsic(a: np.ndarray, b: np.ndarray) -> float:
    """Song et al.'s unbiased HSIC for centred a, b: then K̃1 = −diag K, and every sum is one of diagonals."""
    n = a.shape[0]
    k, ell = np.einsum("nd,nd->n", a, a), np.einsum("nd,nd->n", b, b)
    trace = _product_norm(a, b) - k @ ell
    means = k.sum() * ell.sum() / ((n - 1) * (n - 2))
    return float((trace + means - 2 * (k @ ell) / (n - 2)) / (n * (n - 3)))


def procrustes_disparity(A: Real[np.ndarray, "n d_a"], B: Real[np.ndarray, "n d_b"]) -> float:
    """The share of B's spread that no rotation, shift and scaling of A explains, in [0, 1]; 0 is equal shape.

    1 − (Σσ)² with σ the singular values of AᵀB, both centred and scaled to unit Frobenius norm; reflections count as
    rotations. Symmetric; the dimensions may differ, and for equal ones it is SciPy's `procrustes` disparity.

    nan with a `ConstantInputWarning` where a matrix has no spread. Raises ValueError for different numbers of rows,
    fewer than 2, NaN or inf. Source: Gower 1975.

    >>> round(procrustes_disparity(np.eye(3), 2 * np.eye(3)[:, ::-1] + 1), 12)
    0.0
    """
    a, b = (_unit_scale(centered(m)) for m in _pair("procrustes_disparity", A, B, min_rows=2))
    norms = np.linalg.norm(a), np.linalg.norm(b)
    if min(norms) == 0:
        warn(ConstantInputWarning, "procrustes_disparity: A or B has no spread; the disparity is undefined (nan)")
        return float("nan")
    n = a.shape[0]
    if n < min(a.shape[1], b.shape[1]):  # the same singular values from n × n factors
        a, b = (np.linalg.qr(m.T, mode="r").T for m in (a, b))
    explained = np.linalg.svd(a.T @ b, compute_uv=False).sum() / (norms[0] * norms[1])
    return float(np.clip(1 - explained**2, 0, 1))
