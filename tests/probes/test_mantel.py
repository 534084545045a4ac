"""Mantel tests against loops, scikit-bio, SciPy and vegan; ties, enumeration, invariances, bad input."""

from __future__ import annotations

import csv
import dataclasses
import inspect
from itertools import permutations
from math import factorial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.spatial.distance import pdist, squareform
from skbio import DistanceMatrix
from skbio.stats.distance import mantel as skbio_mantel

import probes
from probes import mantel, mantel_many, partial_mantel, partial_mantel_many
from probes.condensed import condensed
from probes.permutations import PermutationGrid

GOLDEN = Path(__file__).parent / "golden"
ALTERNATIVES = ("greater", "less", "two-sided")
WEEKDAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]


def random_distances(rng, n, d=3, count=2):
    """`count` related distance matrices between n items."""
    shared = rng.normal(size=(n, d))
    return [squareform(pdist(shared + rng.normal(size=(n, d)))) for _ in range(count)]


def random_permutations(rng, n, m):
    return np.array([rng.permutation(n) for _ in range(m)])


def naive_correlation(x, y, method):
    upper = np.triu_indices(len(x), 1)
    correlate = stats.spearmanr if method == "spearman" else stats.pearsonr
    return correlate(x[upper], y[upper])[0]


def naive_pvalue(r, null, alternative, is_exact):
    count = 0
    for value in null:
        if alternative == "greater":
            count += value >= r - 1e-9
        elif alternative == "less":
            count += value <= r + 1e-9
        else:
            count += abs(value) >= abs(r) - 1e-9
    return count / len(null) if is_exact else (count + 1) / (len(null) + 1)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("method", ["spearman", "pearson"])
@pytest.mark.parametrize("alternative", ALTERNATIVES)
def test_agrees_with_a_loop_over_fixed_permutations(seed, method, alternative):
    rng = np.random.default_rng(seed)
    n = 9
    x, y = random_distances(rng, n)
    y = np.round(y)  # ties
    given_permutations = random_permutations(rng, n, 60)
    result = mantel(x, y, method=method, alternative=alternative, permutations=given_permutations)
    r = naive_correlation(x, y, method)
    null = [naive_correlation(x[np.ix_(p, p)], y, method) for p in given_permutations]
    assert result.statistic == pytest.approx(r, abs=1e-12)
    assert result.pvalue == naive_pvalue(r, null, alternative, is_exact=False)
    assert (result.n, result.n_resamples, result.exact, result.method, result.alternative) == (
        n, 60, False, method, alternative
    )  # fmt: skip
    condensed = mantel(squareform(x), y, method=method, alternative=alternative, permutations=given_permutations)
    assert condensed.pvalue == result.pvalue


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("n", [5, 12, 35, 70])
@pytest.mark.parametrize("method", ["spearman", "pearson"])
def test_agrees_with_scikit_bio(seed, n, method):
    rng = np.random.default_rng(100 + seed)
    x, y = random_distances(rng, n)
    alternative = ALTERNATIVES[seed % 3]
    r, p, _ = skbio_mantel(
        DistanceMatrix(x), DistanceMatrix(y), method=method, permutations=99, alternative=alternative, seed=seed
    )
    theirs = random_permutations(np.random.default_rng(seed), n, 99)  # drawn one by one from this generator
    result = mantel(x, y, method=method, alternative=alternative, permutations=theirs)
    assert result.statistic == pytest.approx(r, abs=1e-12)
    if method == "spearman" and n == 5:
        # Ten ranks tie often, and without a tolerance the order of summation decides whether a tie counts.
        assert result.pvalue == _spearman_pvalue_in_integers(x, y, alternative, theirs) >= p
    else:
        assert result.pvalue == pytest.approx(p, abs=1e-12)


def _spearman_pvalue_in_integers(x, y, alternative, given_permutations):
    """The p-value without a rounding error: twice the centred ranks are integers."""
    upper = np.triu_indices(len(x), 1)
    n_pairs = len(upper[0])
    a = np.zeros(x.shape, dtype=int)
    a[upper] = np.rint(2 * stats.rankdata(x[upper])) - n_pairs - 1
    b = (np.rint(2 * stats.rankdata(y[upper])) - n_pairs - 1).astype(int)
    a = a + a.T
    null = np.array([a[np.ix_(q, q)][upper] @ b for q in given_permutations])
    r = a[upper] @ b
    is_extreme = {"greater": null >= r, "less": null <= r, "two-sided": abs(null) >= abs(r)}[alternative]
    return (is_extreme.sum() + 1) / (len(null) + 1)


@pytest.mark.parametrize("alternative", ALTERNATIVES)
@pytest.mark.parametrize("method", ["spearman", "pearson"])
def test_exact_against_full_enumeration_of_tied_weekdays(method, alternative):
    """A cyclic target against Levenshtein distances: many ties of both kinds."""
    cyclic = probes.cyclic_distances(7)
    spelling = probes.levenshtein_distances(WEEKDAYS)
    result = mantel(spelling, cyclic, method=method, alternative=alternative)
    upper = np.triu_indices(7, 1)
    rank = stats.rankdata if method == "spearman" else np.asarray
    a, b = np.zeros((7, 7)), rank(cyclic[upper])
    a[upper] = rank(spelling[upper])
    a = a + a.T
    null = [np.corrcoef(a[np.ix_(p, p)][upper], b)[0, 1] for p in map(list, permutations(range(7)))]
    r = np.corrcoef(a[upper], b)[0, 1]
    assert result.exact
    assert result.n_resamples == factorial(7)
    assert result.pvalue == naive_pvalue(r, null, alternative, is_exact=True)
    signed = np.array(null) * {"greater": 1, "less": -1}.get(alternative, np.sign(null))
    assert result.min_pvalue == np.sum(signed >= signed.max() - 1e-9) / factorial(7)
    observed = {"greater": r, "less": -r}.get(alternative, abs(r))
    assert result.n_ties == np.sum(np.abs(signed - observed) <= 1e-9)
    assert result.n_ties >= 14  # the automorphisms of a seven-cycle


@pytest.mark.parametrize("n", [5, 6, 7, 8])
def test_a_cycle_against_itself_has_2n_automorphisms(n):
    cyclic = probes.cyclic_distances(n)
    for method in ("spearman", "pearson"):
        result = mantel(cyclic, cyclic * 3.7 + 0.1 * (cyclic > 0), method=method)
        assert result.statistic == pytest.approx(1, abs=1e-12)
        assert result.n_extreme == result.n_ties == 2 * n
        assert result.pvalue == result.min_pvalue == 2 * n / factorial(n)


def test_ties_in_pearson_survive_summation_order():
    """A regular polygon's chord lengths tie only in exact arithmetic; every automorphism must still count."""
    n = 8
    angle = 2 * np.pi * np.arange(n) / n
    circle = probes.euclidean_distances(np.stack([np.cos(angle), np.sin(angle)], axis=1))
    assert mantel(circle, probes.cyclic_distances(n), method="pearson").n_ties == 2 * n


def test_exact_settings():
    rng = np.random.default_rng(0)
    x, y = random_distances(rng, 6)
    assert mantel(x, y).n_resamples == 720
    forbidden = mantel(x, y, exact=False, n_resamples=199, rng=0)
    assert (forbidden.exact, forbidden.n_resamples) == (False, 199)
    assert forbidden.min_pvalue == 1 / 200
    assert mantel(x, y, exact=False, n_resamples=4999, rng=0).min_pvalue == 1 / 720
    x, y = random_distances(rng, 9)
    assert not mantel(x, y, n_resamples=9).exact
    assert mantel(x, y, exact=True).n_resamples == factorial(9)
    no_test = mantel(x, y, n_resamples=0)
    assert np.isnan(no_test.pvalue)
    assert np.isfinite(no_test.statistic)
    for true in (np.True_, 1):  # no other object than True, but equal to it
        assert inspect.unwrap(mantel)(*random_distances(rng, 5), exact=true, n_resamples=9).exact


def test_sampled_p_nears_the_exact_one():
    rng = np.random.default_rng(4)
    x, y = random_distances(rng, 7)
    exact = mantel(x, y)
    sampled = mantel(x, y, exact=False, n_resamples=20_000, rng=1)
    assert abs(sampled.pvalue - exact.pvalue) < 4 * np.sqrt(exact.pvalue / 20_000) + 1 / 20_000  # four standard errors


def test_generator_decides_everything():
    x, y = random_distances(np.random.default_rng(0), 12)
    first, again = (mantel(x, y, n_resamples=99, rng=7) for _ in range(2))
    assert first == again
    assert first.confidence_interval == again.confidence_interval == first.confidence_interval
    generator = np.random.default_rng(7)
    assert mantel(x, y, n_resamples=99, rng=generator) == first
    later = [mantel(x, y, n_resamples=99, rng=generator).n_extreme for _ in range(3)]
    assert later != [first.n_extreme] * 3  # the generator moves on
    with pytest.raises(dataclasses.FrozenInstanceError):
        first.pvalue = 0.0  # type: ignore[misc]


@pytest.mark.parametrize("method", ["spearman", "pearson"])
@pytest.mark.parametrize("alternative", ALTERNATIVES)
@pytest.mark.parametrize("n", [7, 11, 35])
def test_many_equals_one_by_one(method, alternative, n):
    rng = np.random.default_rng(n)
    *xs, y = random_distances(rng, n, count=6)
    shared = None if n == 7 else random_permutations(rng, n, 150)
    many = mantel_many(np.stack(xs), y, method=method, alternative=alternative, permutations=shared)
    for k, x in enumerate(xs):
        one = mantel(x, y, method=method, alternative=alternative, permutations=shared)
        assert many.statistic[k] == pytest.approx(one.statistic, abs=1e-12)
        fields = ("pvalue", "n_ties", "n_extreme", "min_pvalue")
        assert [getattr(many, f)[k] for f in fields] == [getattr(one, f) for f in fields]
    assert (many.n, many.n_resamples, many.exact) == (one.n, one.n_resamples, one.exact)
    condensed = mantel_many([squareform(x) for x in xs], y, method=method, alternative=alternative, permutations=shared)
    np.testing.assert_array_equal(condensed.pvalue_westfall_young, many.pvalue_westfall_young)
    assert np.all(many.pvalue_westfall_young >= many.pvalue)


def test_many_with_random_permutations_equals_one_by_one():
    rng = np.random.default_rng(5)
    x, y = random_distances(rng, 40)
    # few columns multiply the sides of the grid, many walk through its products; both see the same permutations
    once = mantel_many([x], y, n_resamples=99, rng=3)
    many = mantel_many([x] * 10, y, n_resamples=99, rng=3)
    assert many.pvalue.tolist() == [once.pvalue[0]] * 10


def test_many_leaves_constant_layers_out_of_the_family():
    rng = np.random.default_rng(6)
    x, y = random_distances(rng, 10)
    constant = 1.0 - np.eye(10)
    shared = random_permutations(rng, 10, 99)
    with pytest.warns(probes.ConstantInputWarning, match=r"xs\[1\] constant"):
        many = mantel_many([x, constant], y, permutations=shared)
    assert np.isnan(many.statistic).tolist() == [False, True]
    assert np.isnan(many.pvalue_westfall_young).tolist() == [False, True]
    assert np.isnan(many.confidence_interval).tolist() == [[False] * 2, [True] * 2]
    assert many.pvalue_westfall_young[0] == many.pvalue[0]
    assert "xs[1]" in many.warnings[0]
    with pytest.warns(probes.ConstantInputWarning, match="y constant"):
        assert np.isnan(mantel_many([x, x], constant, permutations=shared).pvalue).all()


def test_many_intervals_equal_single_ones():
    *xs, y = random_distances(np.random.default_rng(8), 10, count=4)
    many = mantel_many(xs, y, n_resamples=19, rng=5)
    assert many.confidence_interval.shape == (3, 2)
    one = mantel(xs[0], y, n_resamples=19, rng=5)  # same draws before the interval's seed
    assert many.confidence_interval[0] == pytest.approx(one.confidence_interval, abs=1e-9)


@pytest.mark.parametrize("method", ["spearman", "pearson"])
@pytest.mark.parametrize("alternative", ALTERNATIVES)
def test_partial_agrees_with_a_loop(method, alternative):
    rng = np.random.default_rng(11)
    n = 10
    x, y, z = random_distances(rng, n, count=3)
    shared = random_permutations(rng, n, 80)

    def partial(a, b, c):
        ab, ac, bc = (naive_correlation(*pair, method) for pair in ((a, b), (a, c), (b, c)))
        return (ab - ac * bc) / np.sqrt((1 - ac**2) * (1 - bc**2))

    result = partial_mantel(x, y, z, method=method, alternative=alternative, permutations=shared)
    r = partial(x, y, z)
    null = [partial(x[np.ix_(p, p)], y, z) for p in shared]
    assert result.statistic == pytest.approx(r, abs=1e-12)
    assert result.r2 == pytest.approx(r**2, abs=1e-12)
    assert result.r_xz == pytest.approx(naive_correlation(x, z, method), abs=1e-12)
    assert result.pvalue == naive_pvalue(r, null, alternative, is_exact=False)
    assert result.statistic == pytest.approx(_partial_by_residuals(x, y, z, method), abs=1e-12)


def _partial_by_residuals(x, y, z, method):
    """The partial correlation as the correlation of least-squares residuals: another road to the same number."""
    upper = np.triu_indices(len(x), 1)
    a, b, c = (stats.rankdata(m[upper]) if method == "spearman" else m[upper] for m in (x, y, z))
    design = np.stack([np.ones_like(c), c], axis=1)
    a, b = (v - design @ np.linalg.lstsq(design, v, rcond=None)[0] for v in (a, b))
    return np.corrcoef(a, b)[0, 1]


def test_partial_exact_on_weekdays():
    """Spelling given the cycle against a numeral's spelling: enumerated, undefined permutations cautiously extreme."""
    cyclic = probes.cyclic_distances(7)
    spelling = probes.levenshtein_distances(WEEKDAYS)
    states = random_distances(np.random.default_rng(0), 7, count=1)[0]
    result = partial_mantel(states, cyclic, spelling)
    assert result.exact
    assert result.n_resamples == 5040
    relabelled = [0, 2, 4, 6, 1, 3, 5]
    z = cyclic[np.ix_(relabelled, relabelled)]
    mirrored = partial_mantel(cyclic, spelling, z)
    moved = [cyclic[np.ix_(p, p)] for p in permutations(range(7))]
    is_undefined = np.array([np.array_equal(x, z) for x in moved])
    assert is_undefined.sum() == 14
    null = np.where(is_undefined, np.inf, [naive_partial(x, spelling, z) for x in moved])
    assert mirrored.pvalue == np.mean(null >= mirrored.statistic - 1e-9)
    # what the most extreme observation would get: the undefined count as extreme for it too
    assert mirrored.min_pvalue == np.mean(null >= null[~is_undefined].max() - 1e-9)


def naive_partial(x, y, z):
    r_xy, r_xz, r_yz = (naive_correlation(a, b, "spearman") for a, b in ((x, y), (x, z), (y, z)))
    with np.errstate(all="ignore"):
        return (r_xy - r_xz * r_yz) / np.sqrt((1 - r_xz**2) * (1 - r_yz**2))


def test_partial_undefined():
    x, y = random_distances(np.random.default_rng(0), 6)
    with pytest.warns(probes.ConstantInputWarning, match="z mirrors x or y"):
        assert np.isnan(partial_mantel(x, y, x * 2).statistic)
    with pytest.warns(probes.ConstantInputWarning, match="z constant"):
        result = partial_mantel(x, y, 1 - np.eye(6))
    assert np.isnan([result.statistic, result.pvalue, result.r2, *result.confidence_interval]).all()


@pytest.mark.parametrize("row", list(csv.DictReader((GOLDEN / "vegan.csv").read_text().splitlines())), ids=str)
def test_agrees_with_vegan(row):
    """R 4.2.2, vegan 2.6-4; the script golden/vegan.R wrote the file from the same closed forms."""
    n, m = 12, 199
    i = np.arange(1, n + 1)

    def points(a):
        return np.stack([np.sin(a * i), np.cos(a * a * i), np.sin(3 * a + i**2)], axis=1)

    x, y, z = (pdist(p) for p in (points(0.7), points(0.7) + 3 * points(1.9), points(2.3) + 0.5 * points(0.7)))
    given_permutations = np.array([np.argsort(np.sin(i * k * 0.7391)) for k in range(1, m + 1)])
    test, others = (mantel, [y]) if row["test"] == "mantel" else (partial_mantel, [y, z])
    result = test(x, *others, method=row["method"], permutations=given_permutations)
    assert result.statistic == pytest.approx(float(row["statistic"]), abs=1e-12)
    assert result.pvalue == pytest.approx(float(row["pvalue"]), abs=1e-12)


@given(st.integers(0, 10_000), st.integers(5, 9), st.sampled_from(["spearman", "pearson"]))
@settings(max_examples=40, deadline=None)
def test_invariances(seed, n, method):
    rng = np.random.default_rng(seed)
    X, Y = rng.normal(size=(2, n, 3))
    base = mantel(probes.euclidean_distances(X), probes.euclidean_distances(Y), method=method, n_resamples=0)
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    moved = probes.euclidean_distances(X @ rotation * -2.5 + rng.normal(size=3) * 10)
    order = rng.permutation(n)
    target = probes.euclidean_distances(Y)
    assert mantel(moved, target, method=method, n_resamples=0).statistic == pytest.approx(base.statistic, abs=1e-9)
    assert mantel(target, moved, method=method, n_resamples=0).statistic == pytest.approx(base.statistic, abs=1e-9)
    relabelled = mantel(moved[np.ix_(order, order)], target[np.ix_(order, order)], method=method, n_resamples=0)
    assert relabelled.statistic == pytest.approx(base.statistic, abs=1e-9)
    negative = mantel(-moved, target, method=method, alternative="less", n_resamples=0)
    assert negative.statistic == pytest.approx(-base.statistic, abs=1e-9)


@given(st.integers(0, 1000))
@settings(max_examples=15, deadline=None)
def test_spearman_sees_order_only(seed):
    x, y = random_distances(np.random.default_rng(seed), 6)
    plain, warped = mantel(x, y), mantel(np.exp(x) - 1, y**3)
    assert plain.statistic == pytest.approx(warped.statistic, abs=1e-12)
    assert plain.pvalue == warped.pvalue


def test_slight_asymmetry_is_averaged_away():
    x, y = random_distances(np.random.default_rng(0), 6)
    noisy = x.copy()
    noisy[0, 1] *= 1 + 1e-12
    assert mantel(noisy, y, method="pearson").statistic == pytest.approx(mantel(x, y, method="pearson").statistic)


@pytest.mark.parametrize("offset", [0.0, 2.0**20, 2.0**38])
def test_a_large_mean_takes_no_digit_of_a_small_spread(offset):
    rng = np.random.default_rng(0)
    x, y = rng.integers(1, 4096, size=(2, 66)) / 1024  # dyadic: offset + x is exact
    wanted, got = (mantel(values, y, method="pearson", rng=0) for values in (x, offset + x))
    assert got.statistic == pytest.approx(wanted.statistic, abs=1e-14)
    np.testing.assert_allclose(got.confidence_interval, wanted.confidence_interval, atol=1e-12)


@pytest.mark.parametrize("method", ["spearman", "pearson"])
@pytest.mark.parametrize("scale", [1e-300, 1e300])
def test_a_unit_changes_neither_correlation_nor_interval(method, scale):
    x, y = random_distances(np.random.default_rng(0), 9)
    wanted, got = (mantel(values, y, method=method, n_resamples=99, rng=0) for values in (x, scale * x))
    assert (got.statistic, got.pvalue) == pytest.approx((wanted.statistic, wanted.pvalue), abs=1e-12)
    np.testing.assert_allclose(got.confidence_interval, wanted.confidence_interval, atol=1e-12)


def test_constant_is_nan_and_named():
    x, _ = random_distances(np.random.default_rng(0), 5)
    constant = 2.0 * (1 - np.eye(5))
    with pytest.warns(probes.ConstantInputWarning, match="mantel: y constant"):
        result = mantel(x, constant)
    assert np.isnan([result.statistic, result.pvalue, result.min_pvalue, *result.confidence_interval]).all()
    assert result.warnings == ("mantel: y constant; the correlation is undefined (nan)",)
    with pytest.warns(probes.ConstantInputWarning, match="x, y constant"):
        mantel(constant + 1e-15 * (x > 0), np.zeros((5, 5)))  # rounding noise is no spread; all points equal


GOOD = squareform(pdist(np.random.default_rng(0).normal(size=(5, 2))))


def altered(place, value):
    matrix = GOOD.copy()
    matrix[place] = value
    return matrix


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.ones((12, 11)), r"mantel: x has shape \(12, 11\); expected a square matrix, n ≥ 3"),
        (np.zeros((2, 2)), r"shape \(2, 2\); expected a square matrix, n ≥ 3"),
        (np.zeros((5, 5, 5)), r"shape \(5, 5, 5\)"),
        (np.ones(7), r"7 condensed distances"),
        (np.ones(1), r"1 condensed distances"),
        (altered((0, 1), 9.0), r"x is asymmetric by"),
        (altered((0, 1), np.nan), r"1 values that are NaN or inf"),
        (altered((2, 2), np.inf), r"NaN or inf"),
        (GOOD + np.eye(5), r"on its diagonal"),
        (GOOD.astype(str), r"expected real numbers"),
        (GOOD * 1j, r"expected real numbers"),
        (GOOD[:4, :4], r"x has 4 items and y 5"),
        (np.empty((0, 0)), r"at least one value"),
        (np.ma.masked_greater(GOOD, 2.0), r"x has masked values"),
        (torch.tensor(GOOD, requires_grad=True), r"mantel: x is a Tensor \(.*detach.*expected an array"),
        (torch.tensor(GOOD, dtype=torch.bfloat16), r"mantel: x is a Tensor \(.*BFloat16.*expected an array"),
    ],
)
def test_bad_matrices(x, message):
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(mantel)(x, GOOD)


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"method": "kendall"}, "method is 'kendall'"),
        ({"alternative": "both"}, "alternative is 'both'"),
        ({"exact": "yes"}, "exact is 'yes'"),
        ({"n_resamples": -1}, "n_resamples is -1"),
        ({"n_resamples": 9.5}, "n_resamples is 9.5"),
        ({"permutations": np.zeros((3, 5), dtype=int)}, "row 0 of permutations is no permutation"),
        ({"permutations": np.zeros((3, 4), dtype=int)}, r"shape \(3, 4\)"),
        ({"permutations": np.zeros((3, 5))}, "expected integers"),
        ({"permutations": np.arange(5)[None], "exact": True}, "exact=True beside given permutations"),
    ],
)
def test_bad_settings(settings_, message):
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(mantel)(GOOD, GOOD, **settings_)
    if "permutations" not in settings_:
        with pytest.raises(ValueError, match=message):
            inspect.unwrap(mantel_many)([GOOD], GOOD, **settings_)
        with pytest.raises(ValueError, match=message):
            inspect.unwrap(partial_mantel)(GOOD, GOOD, GOOD, **settings_)


def test_other_bad_input():
    with pytest.raises(ValueError, match="exact=True at n = 11"):
        mantel(probes.ordinal_distances(11), probes.ordinal_distances(11), exact=True)
    with pytest.raises(ValueError, match="xs is empty"):
        mantel_many([], GOOD)
    with pytest.raises(ValueError, match=r"xs\[1\] has 4 items and y 5"):
        mantel_many([GOOD, GOOD[:4, :4]], GOOD)
    with pytest.raises(ValueError, match="y has 5 items and z 4; expected the same items in all"):
        partial_mantel(GOOD, GOOD, GOOD[:4, :4])


@pytest.mark.parametrize("method", ["spearman", "pearson"])
@pytest.mark.parametrize("alternative", ALTERNATIVES)
@pytest.mark.parametrize("n", [7, 10])
def test_many_partials_equal_single_ones(method, alternative, n):
    rng = np.random.default_rng(n)
    *xs, y, z = random_distances(rng, n, count=5)
    shared = None if n == 7 else random_permutations(rng, n, 120)
    many = partial_mantel_many(xs, y, np.round(z), method=method, alternative=alternative, permutations=shared)
    for k, x in enumerate(xs):
        one = partial_mantel(x, y, np.round(z), method=method, alternative=alternative, permutations=shared)
        found = [many.statistic[k], many.r2[k], many.r_xz[k], many.r_yz]
        assert found == pytest.approx([one.statistic, one.r2, one.r_xz, one.r_yz], abs=1e-12)
        fields = ("pvalue", "n_ties", "n_extreme", "min_pvalue")
        assert [getattr(many, f)[k] for f in fields] == [getattr(one, f) for f in fields]
    assert (many.n, many.n_resamples, many.exact) == (one.n, one.n_resamples, one.exact)


def test_many_partials_see_the_same_random_permutations_of_target_and_confound():
    *xs, y, z = random_distances(np.random.default_rng(3), 12, count=5)
    many = partial_mantel_many(xs, y, z, n_resamples=3000, rng=4)
    drawn = PermutationGrid.draw(np.random.default_rng(4), 3000, 12).products(0, 3000)
    again = partial_mantel_many(xs, y, z, permutations=np.argsort(drawn, axis=1))
    np.testing.assert_array_equal(many.n_extreme, again.n_extreme)
    low, high = many.confidence_interval.T
    assert np.all((low < many.statistic) & (many.statistic < high))


def test_exact_partial_against_full_enumeration_of_tied_weekdays():
    """A cyclic target given Levenshtein distances, both full of ties, all 5,040 permutations one by one."""
    cyclic, spelling = probes.cyclic_distances(7), probes.levenshtein_distances(WEEKDAYS)
    states = np.round(random_distances(np.random.default_rng(0), 7, count=1)[0])
    result = partial_mantel(states, cyclic, spelling)
    upper = np.triu_indices(7, 1)
    ranked = np.zeros((7, 7))
    ranked[upper] = stats.rankdata(states[upper])
    ranked = ranked + ranked.T
    b, c = stats.rankdata(cyclic[upper]), stats.rankdata(spelling[upper])
    r_bc = np.corrcoef(b, c)[0, 1]

    def partial(p):
        r_ab, r_ac = (np.corrcoef(ranked[np.ix_(p, p)][upper], other)[0, 1] for other in (b, c))
        return (r_ab - r_ac * r_bc) / np.sqrt((1 - r_ac**2) * (1 - r_bc**2))

    null = [partial(list(p)) for p in permutations(range(7))]
    assert result.n_resamples == factorial(7)
    assert result.pvalue == naive_pvalue(partial(list(range(7))), null, "greater", is_exact=True)
    assert partial_mantel_many([states], cyclic, spelling).pvalue[0] == result.pvalue


def test_undefined_partials_are_named_and_leave_the_others_alone():
    x, y, z = random_distances(np.random.default_rng(0), 9, count=3)
    shared = random_permutations(np.random.default_rng(1), 9, 50)
    with pytest.warns(probes.ConstantInputWarning) as caught:
        many = partial_mantel_many([x, 1 - np.eye(9), 2 * z], y, z, permutations=shared)
    assert [str(w.message).split(";")[0] for w in caught] == [
        "partial_mantel_many: xs[1] constant", "partial_mantel_many: z mirrors xs[2] or y"
    ]  # fmt: skip
    assert np.isnan(many.statistic).tolist() == np.isnan(many.pvalue).tolist() == [False, True, True]
    assert many.pvalue[0] == partial_mantel(x, y, z, permutations=shared).pvalue
    assert np.isnan(many.confidence_interval).all(axis=1).tolist() == [False, True, True]
    with pytest.raises(ValueError, match="y has 9 items and z 8"):
        partial_mantel_many([x], y, z[:8, :8])
    with pytest.raises(ValueError, match="xs is empty"):
        partial_mantel_many([], y, z)


def regular(n, d, rng, dtype=np.float64):
    """Points on a circle of d dimensions, coordinates in an order of their own: many distances tie but for rounding."""
    angle = 2 * np.pi * np.arange(n) / n
    plane = np.linalg.qr(np.random.default_rng(3).normal(size=(d, d)))[0][:2]
    points = (np.c_[np.cos(angle), np.sin(angle)] @ plane)[:, rng.permutation(d)].astype(dtype)
    difference = points[:, None] - points[None]
    return np.sqrt((difference**2).sum(axis=-1))


@pytest.mark.parametrize(
    ("method", "dtype"), [("spearman", np.float64), ("spearman", np.float32), ("pearson", np.float64)]
)
@pytest.mark.parametrize("n", [6, 12, 35])
def test_distances_equal_but_for_rounding_tie_in_statistic_p_and_interval(n, dtype, method):
    target = probes.ordinal_distances(n)
    other = np.random.default_rng(1).uniform(1, 2, size=(n, n))
    other = np.triu(other, 1) + np.triu(other, 1).T
    steps = probes.cyclic_distances(n)
    clean = np.where(np.eye(n, dtype=bool), 0.0, 2 * np.sin(np.pi * steps / n))
    for i, j in zip(*np.triu_indices(n, 1), strict=True):  # exactly one value for each number of steps
        clean[i, j] = clean[j, i] = 2 * np.sin(np.pi * int(steps[i, j]) / n)
    settings = {"method": method, "n_resamples": 199, "rng": 0}

    def of(x):
        one, many = mantel(x, target, **settings), mantel_many([x, x], target, **settings)
        part, parts = partial_mantel(x, target, other, **settings), partial_mantel_many([x], target, other, **settings)
        swapped = mantel(target, x, **settings)
        counts = [one.n_ties, one.n_extreme, *many.n_ties, part.n_ties, *parts.n_ties, swapped.n_ties]
        numbers = [one.statistic, one.pvalue, *many.pvalue_westfall_young, part.statistic, part.pvalue, parts.r_xz[0]]
        limits = [*one.confidence_interval, *many.confidence_interval.reshape(-1), *part.confidence_interval]
        return list(map(int, counts)), [*numbers, *limits, swapped.statistic, swapped.pvalue]

    counts, numbers = of(clean)
    distinct = []
    for seed in range(5):
        noisy = regular(n, 40, np.random.default_rng(seed), dtype)
        distinct.append(np.unique(noisy[np.triu_indices(n, 1)]).size)
        found = of(noisy)
        assert found[0] == counts
        np.testing.assert_allclose(found[1], numbers, rtol=0, atol={"spearman": 0, "pearson": 1e-12}[method])
    assert max(distinct) > n // 2  # so that rounding did split ties


def test_zero_among_noise_ties_and_far_items_do_not_tie_the_rest():
    rng = np.random.default_rng(0)
    n = 12
    blocks = np.kron(1 - np.eye(3), np.ones((4, 4)))
    noise = np.abs(rng.normal(size=(n, n))) * 1e-16
    noise = (noise + noise.T) * (1 - np.eye(n))
    x = random_distances(rng, n)[0]
    assert mantel(x, blocks + noise, rng=0).statistic == mantel(x, blocks, rng=0).statistic
    points = rng.normal(size=(n, 3))
    points[0] = 1e10
    far = squareform(pdist(points))
    assert mantel(far, x, rng=0).statistic == pytest.approx(naive_correlation(far, x, "spearman"), abs=1e-14)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_only_what_differs_by_rounding_is_moved_and_never_far(dtype):
    rng = np.random.default_rng(0)
    for scale in (1e-300, 1.0, 1e300) if dtype is np.float64 else (1e-30, 1.0):
        apart = (rng.permutation(1225) + 1.0) * dtype(scale)
        assert condensed("test", "x", apart, tied=True)[0].tobytes() == apart.astype(np.float64).tobytes()
        crowded = (1 + np.sort(rng.uniform(size=1225)) * {np.float64: 1e-10, np.float32: 1e-4}[dtype]).astype(dtype)
        moved, _ = condensed("test", "x", crowded * dtype(scale), tied=True)
        tolerance = {np.float64: 1e-12, np.float32: 1e-6}[dtype]
        assert 50 < np.unique(moved).size < 1225  # a chain of near-ties is cut, not merged
        np.testing.assert_allclose(moved, crowded * dtype(scale), rtol=1.1 * tolerance)
