"""Nearest-neighbour distances: exact against brute force, in every path, far from the origin, with outliers."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors

from probes import neighbours
from probes.neighbours import nearest_distances


def brute(X, k):
    X = X.astype(np.float64)
    squared = ((X[:, None] - X[None]) ** 2).sum(axis=-1)
    np.fill_diagonal(squared, np.inf)
    return np.sqrt(np.sort(squared, axis=1)[:, :k])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("n", "d", "k"), [(3, 20, 2), (5, 9, 4), (60, 2, 3), (120, 40, 2), (90, 12, 30), (45, 1, 2)])
@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_against_brute_force(n, d, k, dtype, offset):
    X = (np.random.default_rng(n).normal(size=(n, d)) + offset).astype(dtype)
    np.testing.assert_allclose(nearest_distances(X, k), brute(X, k), rtol=1e-13)  # differences of the same floats


@pytest.mark.parametrize("tile", [7, 16, 1000])
def test_tiles_do_not_matter(monkeypatch, tile):
    monkeypatch.setattr(neighbours, "TILE", tile)
    monkeypatch.setattr(neighbours, "HELD_VALUES", 500)
    X = np.random.default_rng(0).normal(size=(101, 15))
    for k in (1, 2, 20):
        np.testing.assert_allclose(nearest_distances(X, k), brute(X, k), rtol=1e-13)


def test_several_real_tiles_against_scikit_learn():
    rng = np.random.default_rng(1)
    X = (rng.normal(size=(2300, 6)) @ rng.normal(size=(6, 48)) + 0.1 * rng.normal(size=(2300, 48)) + 30).astype(
        np.float32
    )
    theirs = NearestNeighbors(n_neighbors=4, algorithm="kd_tree").fit(X.astype(np.float64))
    expected = theirs.kneighbors(X.astype(np.float64))[0][:, 1:]
    np.testing.assert_allclose(nearest_distances(X, 3), expected, rtol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_what_float32_confuses_is_searched_again(seed):
    """Tight clusters far apart: a float32 product cannot order the neighbours, and says so."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(30, 16)).repeat(10, axis=0) * 100 + 1e-4 * rng.normal(size=(300, 16))
    by_float32, is_certain = neighbours._Search(X, 2).by_float32_products()
    assert not is_certain.all()
    assert not np.allclose(by_float32, brute(X, 2), rtol=1e-9)  # so the second search is needed
    np.testing.assert_allclose(nearest_distances(X, 2), brute(X, 2), rtol=1e-13)


def test_certificates_are_true_and_common():
    rng = np.random.default_rng(2)
    X = rng.normal(size=(1500, 32))
    X[0] *= 1e3  # one outlier must not spoil the bound of the others
    distances, is_certain = neighbours._Search(X, 2).by_float32_products()
    np.testing.assert_allclose(distances[is_certain], brute(X, 2)[is_certain], rtol=1e-12)
    assert neighbours._Search(X[1:], 2).by_float32_products()[1].mean() > 0.9


def exact(X, k):
    """Every pair in extended precision, whose exponents hold the square of any float64."""
    X = X.astype(np.longdouble)
    squared = np.empty((len(X), len(X)), dtype=np.longdouble)
    for i, row in enumerate(X):
        squared[i] = ((X - row) ** 2).sum(axis=1)
        squared[i, i] = np.inf
    return np.sqrt(np.sort(squared, axis=1)[:, :k])


def hostile(kind, rng, n, d):
    X = rng.normal(size=(n, 3)) @ rng.normal(size=(3, d)) + 0.01 * rng.normal(size=(n, d))
    match kind:
        case "one far point":
            X[-1] = 10.0 ** rng.integers(5, 300)
        case "few far points":
            X[rng.integers(0, n, 3)] *= 10.0 ** rng.integers(5, 150, (3, 1))
        case "offset":
            X += 10.0 ** rng.integers(3, 13)
        case "two lumps":
            X[: n // 2] += 10.0 ** rng.integers(3, 13)
        case "spread of rows":
            X *= 10.0 ** rng.uniform(-150, 150, (n, 1))
        case "spread of columns":
            X *= 10.0 ** rng.uniform(-150, 150, d)
        case "all copied":
            X[n // 2 :] = X[: n - n // 2] * (1 + 1e-13 * rng.normal(size=(n - n // 2, 1)))
        case "duplicates":
            X[rng.integers(0, n, n // 2)] = X[0]
        case "subnormal":
            X *= 1e-310
        case "subnormal beside ordinary":
            X[: n // 2] *= 1e-310
        case "largest floats":
            X = X / np.abs(X).max() * (np.finfo(np.float64).max / 16)
        case "lattice":
            X = rng.integers(0, 3, (n, d)) * 1e8
    return X


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(
    "kind",
    [
        "one far point", "few far points", "offset", "two lumps", "spread of rows", "spread of columns", "all copied",
        "duplicates", "subnormal", "subnormal beside ordinary", "largest floats", "lattice",
    ],
)  # fmt: skip
def test_hostile_clouds(kind, dtype):
    """No digit is lost to what else is in the cloud: every distance equals that in extended precision."""
    for seed, (n, d) in enumerate([(3, 1), (4, 2), (7, 8), (11, 9), (40, 50), (130, 20), (130, 5), (90, 33)]):
        X = hostile(kind, np.random.default_rng(seed), n, d)
        with np.errstate(over="ignore"):
            X = np.clip(X.astype(dtype), np.finfo(dtype).min / 16, np.finfo(dtype).max / 16)
        for k in {1, 2, min(n - 1, 9)}:
            found, expected = nearest_distances(X, k), exact(X, k)
            smallest = np.finfo(np.float64).smallest_subnormal  # what float64 itself can tell apart
            np.testing.assert_allclose(found.astype(np.longdouble), expected, rtol=1e-14, atol=d * smallest)


def test_one_far_point_costs_no_digit_in_two_thousand():
    X = np.random.default_rng(0).normal(size=(2000, 12))
    X[77] = 1e10
    np.testing.assert_allclose(nearest_distances(X, 2), brute(X, 2), rtol=1e-13)


@given(st.integers(0, 10_000), st.integers(4, 40), st.integers(1, 14), st.integers(-990, 990))
@settings(max_examples=30, deadline=None)
def test_motion_and_scale(seed, n, d, log2_scale):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d))
    rotation = np.linalg.qr(rng.normal(size=(d, d)))[0]
    order = rng.permutation(n)
    moved = (X @ rotation + 3 * rng.normal(size=d))[order] * 2.0**log2_scale
    expected = nearest_distances(X, 3)[order] * 2.0**log2_scale
    np.testing.assert_allclose(nearest_distances(moved, 3), expected, rtol=1e-11)


def test_coincident_points_are_at_zero():
    X = np.zeros((4, 10))
    np.testing.assert_array_equal(nearest_distances(X, 2), 0)
    lattice = np.stack(np.meshgrid(*[np.arange(3.0)] * 3), axis=-1).reshape(-1, 3).repeat(4, axis=1)  # many ties
    np.testing.assert_allclose(nearest_distances(lattice, 2), 2.0)


@pytest.mark.parametrize("k", [0, 5, 6])
def test_bad_k(k):
    with pytest.raises(ValueError, match=f"k is {k} for 5 points"):
        inspect.unwrap(nearest_distances)(np.ones((5, 3)), k)
