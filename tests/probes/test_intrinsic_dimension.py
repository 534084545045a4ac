"""TwoNN and Gride against DADApy, scikit-dimension and loops; known dimensions, duplicates, precision, bad input."""

from __future__ import annotations

import csv
import inspect
import runpy
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

import probes
from probes import gride, intrinsic_dimension, two_nn, two_nn_curve, two_nn_from_distances

GOLDEN = Path(__file__).parent / "golden"
CLOUDS = runpy.run_path(str(GOLDEN / "clouds.py"))["CLOUDS"]
REFERENCE = list(csv.DictReader((GOLDEN / "intrinsic_dimension.csv").read_text().splitlines()))
FIT_OF = {
    "dadapy_base": "regression",
    "dadapy_ml": "mle",
    "skdim_linear": "regression",
    "skdim_mle": "mle_censored",
}


@pytest.mark.parametrize("cloud", sorted(CLOUDS))
def test_agrees_with_dadapy_and_scikit_dimension(cloud):
    rows = [row for row in REFERENCE if row["cloud"] == cloud]
    assert {row["estimator"] for row in rows} >= set(FIT_OF)
    X = CLOUDS[cloud]
    scales = gride(X, max_rank=64)
    by_rank = dict(zip(scales.n1.tolist(), scales.dimension.tolist(), strict=True))
    for row in rows:
        if row["estimator"] == "dadapy_gride":
            got = by_rank[int(row["n1"])]
        else:
            got = two_nn(X, fit=FIT_OF[row["estimator"]]).dimension
        assert got == pytest.approx(float(row["value"]), rel=1e-6), row  # DADApy's own solvers stop near 1e-7


def naive_ratios(X):
    mu = []
    for i in range(len(X)):
        distances = sorted(np.sqrt(((X[i] - X[j]) ** 2).sum()) for j in range(len(X)) if j != i)
        mu.append(distances[1] / distances[0])
    return np.sort(mu)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("discard", [0.0, 0.1, 0.35])
def test_fits_against_their_formulas(seed, discard):
    X = np.random.default_rng(seed).normal(size=(60, 4))
    log_mu = np.log(naive_ratios(X))
    n, r = 60, round(60 * (1 - discard))
    kept = min(r, n - 1)
    F = np.arange(1, kept + 1) / n
    slope = np.linalg.lstsq(log_mu[:kept, None], -np.log(1 - F), rcond=None)[0][0]
    expected = {
        "regression": (slope, kept),
        "mle": ((n - 1) / log_mu.sum(), n),
        "mle_censored": ((r - 1) / (log_mu[:r].sum() + (n - r) * log_mu[r - 1]), r),
    }
    for fit, (dimension, n_used) in expected.items():
        result = two_nn(X, fit=fit, discard_fraction=discard)
        assert result.dimension == pytest.approx(dimension, rel=1e-9)
        assert (result.n_used, result.n, result.n_duplicates, result.fit) == (n_used, n, 0, fit)
    r1, r2 = probes.neighbours.nearest_distances(X, 2).T
    assert two_nn_from_distances(r1, r2, discard_fraction=discard).dimension == pytest.approx(slope, rel=1e-9)


@pytest.mark.parametrize(
    ("name", "dimension"), [("line", 1), ("square", 2), ("cube5", 5), ("sphere4", 4), ("torus", 2)]
)
def test_known_dimensions(name, dimension):
    for fit in ("regression", "mle", "mle_censored"):
        result = two_nn(CLOUDS[name], fit=fit)
        # three standard errors, and the few per cent that edges cost a cube
        assert abs(result.dimension - dimension) < 3 * result.stderr + 0.05 * dimension


def test_standard_errors_of_independent_ratios():
    """The stated error is the spread of estimates from exponential ln μ, to the noise of 1,500 draws and O(1/n)."""
    rng = np.random.default_rng(0)
    for fit in ("regression", "mle", "mle_censored"):
        draws = [intrinsic_dimension._fitted(rng.exponential(1 / 6, 400), fit, 0.1) for _ in range(1500)]
        dimension, stderr, _ = np.array(draws).T
        assert stderr.mean() == pytest.approx(dimension.std(), rel=0.07)
        assert dimension.mean() == pytest.approx(6, rel=0.01)


@given(st.integers(0, 10_000), st.integers(9, 12))
@settings(max_examples=25, deadline=None)
def test_invariances(seed, d):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(40, d))
    rotation = np.linalg.qr(rng.normal(size=(d, d)))[0]
    moved = -7.5 * X[rng.permutation(40)] @ rotation + rng.normal(size=d)
    for fit in ("regression", "mle", "mle_censored"):
        assert two_nn(moved, fit=fit).dimension == pytest.approx(two_nn(X, fit=fit).dimension, rel=1e-8)
    np.testing.assert_allclose(gride(moved, max_rank=8).dimension, gride(X, max_rank=8).dimension, rtol=1e-8)


def test_far_from_the_origin_in_float32_storage():
    X = CLOUDS["gauss20_in_64"]
    assert two_nn(X + 1e4).dimension == pytest.approx(two_nn(X).dimension, rel=1e-6)


def test_duplicates():
    X = np.random.default_rng(0).normal(size=(100, 10))
    doubled = np.concatenate([X, X[:7], X[:3]])
    doubled[-1, 0] += 0.0
    with pytest.warns(probes.DuplicatePointsWarning, match="10 of 110"):
        unique = two_nn(doubled)
    assert unique.dimension == pytest.approx(two_nn(X).dimension, rel=1e-12)
    assert (unique.n, unique.n_duplicates) == (110, 10)
    assert "10 of 110" in unique.warnings[0]
    with pytest.warns(probes.DuplicatePointsWarning, match="17 of 110"):
        dropped = two_nn(doubled, duplicates="drop")
    assert dropped.dimension == pytest.approx(two_nn(X[7:]).dimension, rel=1e-12)
    assert dropped.n_duplicates == 17
    with pytest.raises(ValueError, match="10 rows that repeat"):
        two_nn(doubled, duplicates="raise")
    signed_zero = np.concatenate([X, np.zeros((1, 10)), np.full((1, 10), -0.0)])
    with pytest.warns(probes.DuplicatePointsWarning, match="1 of 102"):
        two_nn(signed_zero)


def test_half_precision_is_warned_about_however_it_is_stored():
    X = np.random.default_rng(0).normal(size=(50, 12)).astype(np.float32)
    bfloat16 = (X.view(np.uint32) & 0xFFFF0000).view(np.float32)
    for rounded in (
        X.astype(np.float16),
        X.astype(np.float16).astype(np.float64),
        bfloat16,
        bfloat16.astype(np.float64),
    ):
        with pytest.warns(probes.LowPrecisionWarning, match="two_nn"):
            assert two_nn(rounded).warnings
    assert two_nn(X).warnings == ()
    mostly = bfloat16.copy()
    mostly[-1, -1] = X[-1, -1]  # one value of full precision clears the rest of suspicion
    assert two_nn(mostly).warnings == ()
    assert two_nn(np.random.default_rng(0).integers(0, 1000, (50, 12))).warnings == ()  # integers are exact


def test_undefined_is_nan_and_named():
    constant = np.full((6, 3), 0.1)
    with pytest.warns(probes.ConstantInputWarning), pytest.warns(probes.DuplicatePointsWarning):
        result = two_nn(constant)
    assert np.isnan([result.dimension, result.stderr]).all()
    assert result.n_duplicates == 5
    triangle = np.eye(3) + 0.1  # all ratios are 1
    with pytest.warns(probes.ConstantInputWarning, match="no spread of ratios"):
        assert np.isnan(two_nn(triangle).dimension)
    with pytest.warns(probes.ConstantInputWarning):
        assert np.isnan(two_nn_from_distances(np.ones(5), np.ones(5)).dimension)
    with pytest.warns(probes.ConstantInputWarning), pytest.warns(probes.DuplicatePointsWarning):
        assert np.isnan(two_nn_curve(constant).dimension).all()
    with pytest.warns(probes.ConstantInputWarning), pytest.warns(probes.DuplicatePointsWarning):
        assert np.isnan(gride(constant).dimension).all()


def test_curve_is_the_mean_over_disjoint_subsamples():
    X = CLOUDS["gauss3"]
    curve = two_nn_curve(X, rng=5, min_points=100)
    order = np.random.default_rng(5).permutation(len(X))
    assert curve.n_points.tolist() == [600, 300, 150]
    assert curve.n_subsamples.tolist() == [1, 2, 4]
    assert curve.dimension[0] == two_nn(X).dimension
    assert curve.whole == two_nn(X)
    assert np.isnan(curve.spread[0])
    quarters = [two_nn(X[order[s : s + 150]]).dimension for s in range(0, 600, 150)]
    assert curve.dimension[2] == pytest.approx(np.mean(quarters), rel=1e-12)
    assert curve.spread[2] == pytest.approx(np.std(quarters, ddof=1), rel=1e-12)
    np.testing.assert_array_equal(two_nn_curve(X, rng=5, min_points=100).dimension, curve.dimension)


def naive_gride_log_likelihood(d, mu, n1, n2):
    log_density = (
        np.log(d)
        + (n2 - n1 - 1) * np.log(mu**d - 1)
        - ((n2 - 1) * d + 1) * np.log(mu)
        - np.log(special.beta(n2 - n1, n1))
    )
    return log_density.sum() - np.log(d)  # N − 1 in place of N


@pytest.mark.parametrize("seed", range(3))
def test_gride_maximises_its_likelihood(seed):
    X = np.random.default_rng(seed).normal(size=(150, 3))
    result = gride(X, max_rank=16)
    sorted_distances = probes.neighbours.nearest_distances(X, 16)
    for scale, n1 in enumerate((1, 2, 4, 8)):
        mu = sorted_distances[:, 2 * n1 - 1] / sorted_distances[:, n1 - 1]
        d = result.dimension[scale]
        step = 1e-4 * d
        below, at, above = (naive_gride_log_likelihood(v, mu, n1, 2 * n1) for v in (d - step, d, d + step))
        assert at >= max(below, above)
        assert abs(above - below) < abs(above - 2 * at + below)  # the top lies within half a step
        curvature = -(above - 2 * at + below) / step**2  # of N − 1; stderr uses N
        assert result.stderr[scale] == pytest.approx(1 / np.sqrt(curvature), rel=0.01)
        assert result.distance[scale] == pytest.approx(sorted_distances[:, 2 * n1 - 1].mean())
    assert result.dimension[0] == pytest.approx(two_nn(X, fit="mle").dimension, rel=1e-9)


def test_gride_stops_where_points_run_out():
    assert gride(np.random.default_rng(0).normal(size=(9, 3)), max_rank=64).n2.tolist() == [2, 4, 8]


def test_gride_sees_through_noise_where_two_nn_does_not():
    rng = np.random.default_rng(0)
    plane = np.zeros((2000, 12))
    plane[:, :2] = rng.uniform(size=(2000, 2))
    noisy = plane + 0.005 * rng.normal(size=plane.shape)
    scales = gride(noisy).dimension
    assert two_nn(noisy).dimension > 4
    assert scales[-1] < 2.6


GOOD = np.random.default_rng(0).normal(size=(10, 3))


def test_one_far_point_hardly_moves_the_dimension():
    rng = np.random.default_rng(0)
    cloud = rng.normal(size=(400, 3)) @ rng.normal(size=(3, 20))
    for far in (1e6, 1e10, 1e14, 1e100):
        with_far = np.vstack([cloud, np.full(20, far)])
        assert two_nn(with_far).dimension == pytest.approx(two_nn(cloud).dimension, rel=0.01)
        assert gride(with_far, max_rank=4).dimension == pytest.approx(gride(cloud, max_rank=4).dimension, rel=0.02)


@pytest.mark.parametrize("shift", [0.0, 1e3])
@pytest.mark.parametrize("far", [False, True])
@pytest.mark.parametrize("d", [3, 20])
def test_near_duplicates_are_kept_counted_and_warned_of(d, far, shift):
    rng = np.random.default_rng(1)
    cloud = rng.normal(size=(300, d)) * 10 + shift
    twins = cloud[:7] + 1e-10 * rng.normal(size=(7, d))
    points = np.vstack([cloud, twins, np.full((int(far), d), 1e12)])
    for estimate in (two_nn, two_nn_curve, gride):
        assert estimate(cloud).n_near_duplicates == 0
        with pytest.warns(probes.DuplicatePointsWarning, match=f"14 of {len(points)} points are near-duplicates"):
            result = estimate(points)
        assert (result.n_near_duplicates, result.n_duplicates) == (14, 0)
        assert "near-duplicates" in (result.whole if estimate is two_nn_curve else result).warnings[0]
    r1, r2 = probes.neighbours.nearest_distances(cloud, 2).T
    r1[:5] = 1e-10
    with pytest.warns(probes.DuplicatePointsWarning, match="5 of 300 points are near-duplicates"):
        assert two_nn_from_distances(r1, r2).n_near_duplicates == 5


def test_ratios_and_distances_at_the_ends_of_float64():
    cloud = np.random.default_rng(3).normal(size=(60, 12))
    largest = cloud / np.abs(cloud).max() * np.finfo(np.float64).max / 16
    assert two_nn(largest).dimension == pytest.approx(two_nn(cloud).dimension, rel=1e-12)
    assert gride(largest).distance[0] == pytest.approx(
        gride(cloud).distance[0] * (largest[0, 0] / cloud[0, 0]), rel=1e-9
    )
    pair = np.vstack([cloud[:2] * 1e-310, cloud[2:4]])  # the second neighbour is 1e310 times as far as the first
    with pytest.warns(probes.DuplicatePointsWarning):
        assert np.isfinite(gride(pair, max_rank=2).dimension).all()


def test_a_cloud_all_of_whose_points_have_a_near_duplicate():
    cloud = np.random.default_rng(2).normal(size=(100, 12))
    with pytest.warns(probes.DuplicatePointsWarning, match="200 of 200 points"):
        assert two_nn(np.vstack([cloud, cloud * (1 + 1e-13)])).n_near_duplicates == 200
    tight = cloud * 1e-12  # small is not near: the size is the cloud's own
    assert two_nn(tight).n_near_duplicates == two_nn(tight * 1e30).n_near_duplicates == 0


@pytest.mark.parametrize("estimate", [two_nn, gride, two_nn_curve])
@pytest.mark.parametrize(
    ("X", "message"),
    [
        (GOOD[:2], r"shape \(2, 3\); expected points \[n, d\], n ≥ 3"),
        (GOOD[0], r"shape \(3,\)"),
        (np.ones((5, 0)), r"shape \(5, 0\)"),
        (np.where(GOOD > 1, np.nan, GOOD), "NaN or inf"),
        (np.where(GOOD > 1, np.inf, GOOD), "NaN or inf"),
        (GOOD.astype(str), "expected real numbers"),
    ],
)
def test_bad_points(estimate, X, message):
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(estimate)(X)


@pytest.mark.parametrize(
    ("estimate", "args", "settings_", "message"),
    [
        (two_nn, (GOOD,), {"fit": "ols"}, "fit is 'ols'"),
        (two_nn, (GOOD,), {"discard_fraction": 1.0}, "discard_fraction is 1.0"),
        (two_nn, (GOOD,), {"duplicates": "keep"}, "duplicates is 'keep'"),
        (two_nn_curve, (GOOD,), {"min_points": 2}, "min_points is 2"),
        (gride, (GOOD,), {"max_rank": 1}, "max_rank is 1"),
        (two_nn_from_distances, (np.ones(4), np.ones(3)), {}, "expected both"),
        (two_nn_from_distances, (np.ones(4), np.full(4, 0.5)), {}, "0 ≤ r1 ≤ r2"),
        (two_nn_from_distances, (np.ones(4), np.full(4, np.inf)), {}, "not finite"),
    ],
)
def test_bad_settings(estimate, args, settings_, message):
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(estimate)(*args, **settings_)
