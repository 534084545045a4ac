"""Distances: known places, naive loops, ties that hold, bad input."""

from __future__ import annotations

import inspect
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import pairwise

import probes
from probes import distances


def check_is_distance(matrix, n):
    assert matrix.shape == (n, n)
    assert matrix.dtype == np.float64
    np.testing.assert_array_equal(matrix, matrix.T)
    np.testing.assert_array_equal(np.diagonal(matrix), 0)
    assert (matrix >= 0).all()


def naive_levenshtein(a, b):
    """Wagner & Fischer's table."""
    table = [[i + j if i * j == 0 else 0 for j in range(len(b) + 1)] for i in range(len(a) + 1)]
    for i in range(1, len(a) + 1):
        for j in range(1, len(b) + 1):
            replaced = table[i - 1][j - 1] + (a[i - 1] != b[j - 1])
            table[i][j] = min(table[i - 1][j] + 1, table[i][j - 1] + 1, replaced)
    return table[-1][-1]


def test_ordinal_and_cyclic_against_loops():
    for n in (1, 2, 7, 12, 35):
        line, circle = probes.ordinal_distances(n), probes.cyclic_distances(n)
        check_is_distance(line, n)
        check_is_distance(circle, n)
        for i in range(n):
            for j in range(n):
                assert line[i, j] == abs(i - j)
                assert circle[i, j] == min(abs(i - j), n - abs(i - j))
    years = np.array([1990, 1995, 2010])
    np.testing.assert_array_equal(probes.ordinal_distances(years)[0], [0, 5, 20])


def test_part_of_a_cycle_keeps_its_period():
    january, march, december = 0, 2, 11
    part = probes.cyclic_distances(np.array([january, march, december]), period=12.0)
    np.testing.assert_array_equal(part, [[0, 2, 1], [2, 0, 3], [1, 3, 0]])
    np.testing.assert_array_equal(probes.cyclic_distances(np.array([0.0, 30.0, 359.0]), 360.0)[0], [0, 30, 1])


@pytest.mark.parametrize(
    ("here", "there", "km"),
    [
        ((0, 0), (0, 180), np.pi * 6371.0088),  # antipodes
        ((90, 0), (-90, 77), np.pi * 6371.0088),
        ((0, 0), (0, 90), np.pi / 2 * 6371.0088),
        ((12.5, 45), (12.5, 45), 0.0),
        ((0, -180), (0, 180), 0.0),  # one meridian
        ((0, -170), (0, 190), 0.0),
        ((36.12, -86.67), (33.94, -118.40), 2886.4484),  # Nashville to Los Angeles airport, Rosetta Code's 2886.444
    ],
)
def test_known_great_circles(here, there, km):
    latitudes, longitudes = np.array([here, there], dtype=float).T
    matrix = probes.great_circle_km(latitudes, longitudes)
    check_is_distance(matrix, 2)
    # Rosetta Code uses R = 6372.8: its figure is scaled to our radius by hand, to four decimals.
    assert matrix[0, 1] == pytest.approx(km, abs=0.9 if km == 2886.4484 else 1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_great_circle_against_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    lat, lon = np.degrees(np.arcsin(rng.uniform(-1, 1, 50))), rng.uniform(-180, 180, 50)
    theirs = pairwise.haversine_distances(np.radians(np.stack([lat, lon], axis=1))) * distances.EARTH_RADIUS_KM
    # Their arcsine form loses half its digits towards antipodes.
    np.testing.assert_allclose(probes.great_circle_km(lat, lon), theirs, rtol=1e-9, atol=1e-6)


def test_great_circle_keeps_small_and_antipodal_digits():
    km_a_degree = np.pi / 180 * distances.EARTH_RADIUS_KM
    near = probes.great_circle_km(np.array([10.0, 10.0 + 1e-6]), np.zeros(2))[0, 1]
    assert near == pytest.approx(1e-6 * km_a_degree, rel=1e-8)  # 10 + 1e-6 itself is rounded to 2e-16 of 10
    far = probes.great_circle_km(np.array([0.0, 0.0]), np.array([0.0, 180.0 - 1e-6]))[0, 1]
    assert far == pytest.approx((180 - 1e-6) * km_a_degree, abs=1e-7)  # 12 digits of 20,000 km


@given(st.lists(st.text(max_size=8), min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_levenshtein_against_a_table(words):
    matrix = probes.levenshtein_distances(words)
    check_is_distance(matrix, len(words))
    normal = [unicodedata.normalize("NFC", w) for w in words]
    assert matrix.tolist() == [[naive_levenshtein(a, b) for b in normal] for a in normal]


def test_levenshtein_known_and_normalised():
    assert probes.levenshtein_distances(["kitten", "sitting"])[0, 1] == 3
    assert probes.levenshtein_distances(["café", unicodedata.normalize("NFD", "café")])[0, 1] == 0
    assert probes.levenshtein_distances(["May", "may"])[0, 1] == 1


@pytest.mark.parametrize("seed", range(3))
def test_states_against_loops(seed):
    X = np.random.default_rng(seed).normal(3.0, 1.0, (8, 5)).astype(np.float32)
    euclidean, cosine = probes.euclidean_distances(X), probes.cosine_distances(X)
    check_is_distance(euclidean, 8)
    check_is_distance(cosine, 8)
    for i in range(8):
        for j in range(8):
            a, b = X[i].astype(np.float64), X[j].astype(np.float64)
            assert euclidean[i, j] == pytest.approx(np.sqrt(np.sum((a - b) ** 2)), abs=1e-11)
            assert cosine[i, j] == pytest.approx(1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-11)


def test_far_from_the_origin_no_digit_is_lost():
    X = np.random.default_rng(0).normal(size=(6, 4))
    np.testing.assert_allclose(probes.euclidean_distances(X + 1e6), probes.euclidean_distances(X), rtol=1e-8)
    scaled = X * np.geomspace(1e-200, 1e200, 6)[:, None]
    np.testing.assert_allclose(probes.cosine_distances(scaled), probes.cosine_distances(X), atol=1e-11)


@pytest.mark.parametrize("scale", [1e-290, 1e-9, 1.0, 7.3, 1e5, 1e290])
def test_ties_survive_rounding_noise(scale):
    angle = 2 * np.pi * np.arange(12) / 12
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    assert len(np.unique(distances.rounded(probes.euclidean_distances(circle) * scale))) == 7


@pytest.mark.parametrize("scale", [2.0**-1000, 2.0**-600, 2.0**1000])
def test_no_square_over_or_underflows(scale):
    X = np.random.default_rng(0).normal(size=(6, 3))
    np.testing.assert_allclose(probes.euclidean_distances(X * scale) / scale, probes.euclidean_distances(X), rtol=1e-10)
    np.testing.assert_array_equal(
        probes.ordinal_distances(np.arange(4) * 2.0**-1040), probes.ordinal_distances(4) * 2.0**-1040
    )


def test_rounding_leaves_integers_and_zeros_alone():
    values = np.arange(100_000.0)
    np.testing.assert_array_equal(distances.rounded(values), values)
    np.testing.assert_array_equal(distances.rounded(np.zeros(3)), 0)


@pytest.mark.parametrize(
    ("function", "args", "message"),
    [
        (probes.ordinal_distances, (0,), "n is 0"),
        (probes.ordinal_distances, (np.ones((2, 2)),), r"shape \(2, 2\); expected \[n\]"),
        (probes.ordinal_distances, (np.array([1.0, np.nan]),), "NaN or inf"),
        (probes.cyclic_distances, (np.array([0.0, 1.0]),), "period is None"),
        (probes.cyclic_distances, (np.array([0.0, 1.0]), -2.0), "period is -2.0"),
        (probes.great_circle_km, (np.zeros(2), np.zeros(3)), "expected both"),
        (probes.great_circle_km, (np.array([91.0]), np.zeros(1)), r"latitudes span \[91, 91\]"),
        (probes.great_circle_km, (np.zeros(1), np.array([-181.0])), "longitudes span"),
        (probes.great_circle_km, (np.array([np.inf]), np.zeros(1)), "NaN or inf"),
        (probes.levenshtein_distances, ([],), "at least one string"),
        (probes.levenshtein_distances, ("word",), "expected a list"),
        (probes.levenshtein_distances, (["a", 3],), "expected a list"),
        (probes.euclidean_distances, (np.ones(3),), r"shape \(3,\)"),
        (probes.euclidean_distances, (np.array([[np.nan]]),), "NaN or inf"),
        (probes.cosine_distances, (np.array([[1.0, 0], [0, 0]]),), "row 1 of X is all zero"),
    ],
)
def test_bad_input(function, args, message):
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(function)(*args)
