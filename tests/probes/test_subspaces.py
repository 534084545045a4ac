"""Directions, subspaces, CKA and Procrustes: SciPy, loops over the definitions, invariances, bad input."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate
from scipy.linalg import subspace_angles
from scipy.spatial import procrustes
from sklearn.decomposition import PCA

import probes
from probes import linear_cka, pc_abs_cosine, principal_angles, procrustes_disparity, random_pc_cosine


def orthogonal(rng, d):
    return np.linalg.qr(rng.normal(size=(d, d)))[0]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("component", [1, 2, 4])
def test_pc_cosine_against_scikit_learn(seed, component):
    rng = np.random.default_rng(seed)
    A, B = rng.normal(2.0, 1.0, (40, 7)), rng.normal(size=(25, 7)) * np.arange(1, 8)
    a, b = (PCA(svd_solver="full").fit(m).components_[component - 1] for m in (A, B))
    assert pc_abs_cosine(A, B, component) == pytest.approx(abs(a @ b), abs=1e-10)
    rotation = orthogonal(rng, 7)
    moved = pc_abs_cosine(-3 * A @ rotation + 1, B @ rotation - 5, component)
    assert moved == pytest.approx(abs(a @ b), abs=1e-9)


def test_pc_cosine_of_itself_is_one():
    A = np.random.default_rng(0).normal(size=(30, 5))
    assert pc_abs_cosine(A, A) == pytest.approx(1.0, abs=1e-12)
    assert pc_abs_cosine(A * 1e200, A * 1e-200) == pytest.approx(1.0, abs=1e-12)


def test_pc_cosine_undetermined():
    A = np.random.default_rng(0).normal(size=(30, 4))
    tied = np.concatenate([np.eye(4), -np.eye(4)])  # all components tie
    for bad, component in ((tied, 1), (np.full((5, 4), 0.1), 1), (A[:3], 3)):
        with pytest.warns(probes.ConstantInputWarning, match="PC.* of B is not determined"):
            assert np.isnan(pc_abs_cosine(A, bad, component))


@pytest.mark.parametrize("d", [1, 2, 3, 10, 512, 4096])
def test_random_cosine_baseline(d):
    if d > 1:  # |cos| has density ∝ (1 − c²)^((d−3)/2); in the angle it is ∝ sinᵈ⁻², without a singularity
        peak = np.sqrt(10 / d) if d > 10 else 0.5  # where the mass is, in cos
        numerator = integrate.quad(lambda t: np.cos(t) * np.sin(t) ** (d - 2), 0, np.pi / 2, points=[np.pi / 2 - peak])
        mass = integrate.quad(lambda t: np.sin(t) ** (d - 2), 0, np.pi / 2, points=[np.pi / 2 - peak])
        assert random_pc_cosine(d) == pytest.approx(numerator[0] / mass[0], rel=1e-8)
    assert random_pc_cosine(d) == pytest.approx(np.sqrt(2 / (np.pi * d)), rel=0.3 / d + 1e-9)


def test_random_cosine_against_draws():
    rng = np.random.default_rng(0)
    unit = rng.normal(size=(2, 20_000, 16))
    unit /= np.linalg.norm(unit, axis=-1, keepdims=True)
    cosines = np.abs(np.einsum("nd,nd->n", *unit))
    assert cosines.mean() == pytest.approx(random_pc_cosine(16), abs=4 * cosines.std() / np.sqrt(20_000))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("n", "d_a", "d_b"), [(20, 3, 3), (20, 2, 6), (9, 5, 1), (6, 4, 4)])
def test_angles_against_scipy(seed, n, d_a, d_b):
    rng = np.random.default_rng(seed)
    A, B = rng.normal(size=(n, d_a)), rng.normal(size=(n, d_b))
    # Where spaces meet (4 + 4 > 6) SciPy leaves √ε for an angle of 0.
    np.testing.assert_allclose(principal_angles(A, B), subspace_angles(A, B), atol=3e-8 if d_a + d_b > n else 1e-12)
    mixed = principal_angles(A @ rng.normal(size=(d_a, d_a)), B @ orthogonal(rng, d_b))
    np.testing.assert_allclose(mixed, subspace_angles(A, B), atol=3e-8)  # a span has no basis
    rotation = orthogonal(rng, n)
    np.testing.assert_allclose(principal_angles(rotation @ A, rotation @ B), principal_angles(A, B), atol=1e-12)


@pytest.mark.parametrize("angle", [1e-12, 1e-8, 1e-3, np.pi / 4, 1.0, np.pi / 2 - 1e-9, np.pi / 2])
def test_angles_keep_their_digits(angle):
    A, B = np.array([[1.0], [0.0], [0.0]]), np.array([[np.cos(angle)], [np.sin(angle)], [0.0]])
    assert principal_angles(A, B)[0] == pytest.approx(angle, rel=1e-12, abs=1e-15)


def test_angles_of_leading_components_and_means():
    rng = np.random.default_rng(0)
    A, B = rng.normal(5.0, 1.0, (30, 8)), rng.normal(5.0, 1.0, (30, 60))
    np.testing.assert_allclose(principal_angles(A, B), 0, atol=1e-10)  # 60 ≥ 30 spans everything
    left = [np.linalg.svd(m - m.mean(0))[0][:, :3] for m in (A, B)]
    expected = np.arccos(np.linalg.svd(left[0].T @ left[1])[1])[::-1]
    np.testing.assert_allclose(principal_angles(A, B, n_components=3, center=True), expected, atol=1e-9)
    assert principal_angles(A, B, n_components=1)[0] < 0.3 < principal_angles(A, B, n_components=1, center=True)[0]


def test_angles_of_deficient_and_empty_spans():
    rng = np.random.default_rng(0)
    A, B = rng.normal(size=(10, 2)), rng.normal(size=(10, 3))
    doubled = np.concatenate([A, A], axis=1)
    np.testing.assert_allclose(principal_angles(doubled, B), principal_angles(A, B), atol=1e-9)
    with pytest.warns(probes.ConstantInputWarning, match="spans nothing"):
        assert principal_angles(np.zeros((10, 2)), B).size == 0
    with pytest.raises(ValueError, match="n_components is 3; expected 1 ≤ k ≤ 2, the rank of A"):
        principal_angles(doubled, B, n_components=3)


def naive_cka(A, B, unbiased):
    """Song et al.'s estimator, sum by sum over the full Gram matrices."""

    def hsic(K, L):
        n = len(K)
        if not unbiased:
            H = np.eye(n) - 1 / n
            return np.trace(K @ H @ L @ H)
        K, L = K - np.diag(np.diag(K)), L - np.diag(np.diag(L))
        one = np.ones(n)
        means = (one @ K @ one) * (one @ L @ one) / ((n - 1) * (n - 2))
        return (np.trace(K @ L) + means - 2 / (n - 2) * (one @ K @ L @ one)) / (n * (n - 3))

    K, L = A @ A.T, B @ B.T
    return hsic(K, L) / np.sqrt(hsic(K, K) * hsic(L, L))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("n", "d_a", "d_b"), [(4, 3, 2), (12, 40, 30), (50, 4, 6), (20, 20, 20)])
@pytest.mark.parametrize("unbiased", [True, False])
def test_cka_against_the_definition(seed, n, d_a, d_b, unbiased):
    rng = np.random.default_rng(seed)
    A = rng.normal(1.0, 1.0, (n, d_a))
    B = np.concatenate([A, rng.normal(size=(n, d_b))], axis=1)[:, -d_b:] * rng.uniform(0.5, 2, d_b)
    expected = naive_cka(A, B, unbiased)
    assert linear_cka(A, B, unbiased=unbiased) == pytest.approx(expected, rel=1e-8, abs=1e-10)
    moved = linear_cka(-2 * A @ orthogonal(rng, d_a) + 3, 1e150 * B @ orthogonal(rng, d_b), unbiased=unbiased)
    assert moved == pytest.approx(expected, rel=1e-6, abs=1e-8)


def test_cka_known_truths():
    rng = np.random.default_rng(0)
    A = rng.normal(size=(30, 10))
    assert linear_cka(A, A) == pytest.approx(1.0, abs=1e-12)
    values = [[linear_cka(*rng.normal(size=(2, 20, 200)), unbiased=u) for u in (True, False)] for _ in range(60)]
    unbiased, biased = np.mean(values, axis=0)
    assert abs(unbiased) < 0.02  # independent data of many dimensions, mean of 60
    assert biased > 0.8
    with pytest.warns(probes.ConstantInputWarning):
        assert np.isnan(linear_cka(A, np.full((30, 3), 0.1)))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("n", "d"), [(10, 3), (6, 20), (3, 2)])
def test_procrustes_against_scipy(seed, n, d):
    rng = np.random.default_rng(seed)
    A = rng.normal(3.0, 1.0, (n, d))
    B = A @ orthogonal(rng, d) * 4 + rng.normal(size=(n, d))
    assert procrustes_disparity(A, B) == pytest.approx(procrustes(A, B)[2], abs=1e-12)
    padded = procrustes_disparity(A, np.pad(B, ((0, 0), (0, 5))))
    assert padded == pytest.approx(procrustes(A, B)[2], abs=1e-12)
    assert procrustes_disparity(B, A) == pytest.approx(procrustes(A, B)[2], abs=1e-12)


@given(st.integers(0, 10_000), st.integers(3, 10), st.integers(1, 12))
@settings(max_examples=40, deadline=None)
def test_equal_shapes_have_no_disparity(seed, n, d):
    rng = np.random.default_rng(seed)
    A = rng.normal(size=(n, d))
    B = -0.01 * A @ orthogonal(rng, d) + rng.normal(size=d)
    assert procrustes_disparity(A, B) == pytest.approx(0, abs=1e-9)
    if n >= 4:
        assert linear_cka(A, B) == pytest.approx(1, abs=1e-6)
    noise = rng.normal(size=(n, d))
    order = rng.permutation(n)
    assert procrustes_disparity(A[order], noise[order]) == pytest.approx(procrustes_disparity(A, noise), abs=1e-9)
    assert 0 <= procrustes_disparity(A, noise) <= 1


def test_procrustes_undefined():
    with pytest.warns(probes.ConstantInputWarning, match="no spread"):
        assert np.isnan(procrustes_disparity(np.full((4, 2), 0.1), np.eye(4)))


A5, B5 = np.random.default_rng(1).normal(size=(2, 5, 3))


@pytest.mark.parametrize("compare", [pc_abs_cosine, principal_angles, linear_cka, procrustes_disparity])
@pytest.mark.parametrize(
    ("A", "B", "message"),
    [
        (A5[0], B5, r"A has shape \(3,\)"),
        (A5, np.where(B5 > 1, np.nan, B5), "NaN or inf"),
        (A5, B5 + np.inf, "NaN or inf"),
        (A5.astype(str), B5, "expected real numbers"),
        (np.empty((0, 3)), B5, "at least one value"),
    ],
)
def test_bad_states(compare, A, B, message):
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(compare)(A, B)


@pytest.mark.parametrize(
    ("compare", "args", "message"),
    [
        (pc_abs_cosine, (A5, B5[:, :2]), "A has 3 dimensions and B 2"),
        (pc_abs_cosine, (A5, B5, 0), "component is 0"),
        (pc_abs_cosine, (A5[:1], B5), "rows ≥ 2"),
        (random_pc_cosine, (0,), "d is 0"),
        (principal_angles, (A5, B5[:4]), "A has 5 rows and B 4"),
        (linear_cka, (A5, B5[:4]), "A has 5 rows and B 4"),
        (linear_cka, (A5[:3], B5[:3]), "rows ≥ 4"),
        (procrustes_disparity, (A5, B5[:4]), "A has 5 rows and B 4"),
        (procrustes_disparity, (A5[:1], B5[:1]), "rows ≥ 2"),
    ],
)
def test_bad_pairs(compare, args, message):
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(compare)(*args)
