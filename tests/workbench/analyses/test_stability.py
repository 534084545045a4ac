"""Mantel tests over several seeds of permutations, against plain loops over permutations."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from models_for_tests import worded_model
from scipy import stats
from scipy.spatial.distance import squareform

import probes
from workbench.analyses.probe.concept_tests import probe
from workbench.analyses.probe.stability import stability_rows
from workbench.data.concepts import ConceptSet, read_concepts

DECADES = ConceptSet(
    name="years_decades",
    category="year",
    topology="ordinal",
    words=("1900", "1910", "1925", "1931", "1942", "1950", "1966", "1975", "1983", "1999"),
)


def spearman(x, y):
    return np.corrcoef(stats.rankdata(x), stats.rankdata(y))[0, 1]


@pytest.fixture(scope="module")
def distances():
    """Distances of ten random states at three layers, and their target."""
    rng = np.random.default_rng(3)
    points = np.arange(10)[:, None] * 0.2 + rng.normal(size=(3, 10, 4))
    return np.stack([squareform(probes.euclidean_distances(p)) for p in points]), probes.ordinal_distances(10)


def test_rows_against_plain_loops(distances):
    xs, target = distances
    rows = stability_rows({"model": "m", "seed": 4}, DECADES, xs, target, n_seeds=3, n_permutations=200, seed=5)
    upper = np.triu_indices(10, 1)
    x, y, z = squareform(xs[1]), target[upper], probes.levenshtein_distances(DECADES.words)[upper]
    assert len(rows) == 2 * 4
    assert {row["layer"] for row in rows} == {0}, "of 2 layers the one at half of the depth"

    def partial(x):
        a, b, c = spearman(x, y), spearman(x, z), spearman(y, z)
        return (a - b * c) / np.sqrt((1 - b**2) * (1 - c**2))

    for measure, statistic in (("r", lambda x: spearman(x, y)), ("partial_r", partial)):
        own = [row for row in rows if row["measure"] == measure]
        assert [row["permutation_seed"] for row in own] == [0, 1, 2, -1]
        observed = statistic(x[upper])
        np.testing.assert_allclose([row["value"] for row in own], observed, rtol=1e-10)
        n_extreme = []
        for i in range(3):
            rng = np.random.default_rng([5, zlib.crc32(b"years_decades"), i])
            drawn = probes.permutations.random_permutations(rng, 200, 10)
            n_extreme.append(sum(statistic(x[np.ix_(p, p)][upper]) >= observed - 1e-9 for p in drawn))
        assert [row["n_extreme"] for row in own] == [*n_extreme, sum(n_extreme)]
        assert [row["p"] for row in own] == [*((b + 1) / 201 for b in n_extreme), (sum(n_extreme) + 1) / 601]
        assert 0 < sum(n_extreme) < 600
        assert len(set(n_extreme)) > 1


def test_the_limits_are_those_of_the_binomial_tails(distances):
    xs, target = distances
    for row in stability_rows({}, DECADES, xs, target, n_seeds=2, n_permutations=60):
        b, m = row["n_extreme"], row["n_permutations"]
        assert row["p_low"] <= b / m <= row["p_high"]
        assert stats.binom.sf(b - 1, m, row["p_low"]) == pytest.approx(0.025 if b else 0)
        assert stats.binom.cdf(b, m, row["p_high"]) == pytest.approx(0.025)


def test_the_limits_hold_the_share_of_all_permutations():
    """Of seven items all permutations can be counted; of as many seeds 95 % of the intervals hold what they give."""
    rng = np.random.default_rng(0)
    x, y = (probes.euclidean_distances(rng.normal(size=(7, 2))) for _ in range(2))
    truth = probes.mantel(x, y).pvalue
    hits = 0
    for seed in range(100):
        drawn = probes.permutations.random_permutations(np.random.default_rng(seed), 150, 7)
        b = probes.mantel(x, y, permutations=drawn).n_extreme
        low, high = stats.binomtest(b, 150).proportion_ci(0.95, "exact")
        hits += low <= truth <= high
    assert hits / 100 >= 0.9  # exact intervals hold at least 95 %, less what 100 trials may miss


def test_few_items_are_enumerated_once():
    few = DECADES.model_copy(update={"words": DECADES.words[:5]})
    xs = np.random.default_rng(0).random((2, 10))
    rows = stability_rows({}, few, xs, probes.ordinal_distances(5), n_seeds=4, n_permutations=50)
    assert [(row["measure"], row["permutation_seed"], row["n_permutations"]) for row in rows] == [
        ("r", -1, 120),
        ("partial_r", -1, 120),
    ]
    for row in rows:
        assert row["p"] == row["p_low"] == row["p_high"] == row["n_extreme"] / 120


def test_what_is_undefined_is_nan_and_what_has_no_spelling_is_left_out():
    letters = DECADES.model_copy(update={"words": tuple("abcdefghij")})
    xs = np.ones((2, 45))
    with pytest.warns(probes.ConstantInputWarning):
        rows = stability_rows({}, letters, xs, probes.ordinal_distances(10), n_seeds=2, n_permutations=9)
    assert {row["measure"] for row in rows} == {"r"}
    for row in rows:
        assert np.isnan([row[name] for name in ("value", "p", "n_extreme", "p_low", "p_high")]).all()


@pytest.fixture(scope="module")
def subject():
    return worded_model("kotodama", n_layers=4)


def test_probe_repeats_the_tests_of_years_at_the_middle_layer(subject):
    settings = {"n_points": 0, "n_permutations": 99, "n_stability_permutations": 300, "names": ["a"], "seed": 1}
    names = ["years_1990", "seasons"]
    found = probe(subject, names, **settings)
    table = found.mantel_stability
    assert set(table["set"]) == {"years_1990"}
    assert len(table) == 2 * (5 + 1)
    assert set(table["layer"]) == {1}
    plain = found.concept_mantel.query("layer == 1").set_index("set")
    for row in table.itertuples():
        assert row.value == pytest.approx(plain.loc[row.set, row.measure], abs=1e-12)
    for _, rows in table.groupby(["set", "measure"]):
        pooled, single = rows[rows["permutation_seed"] == -1].iloc[0], rows[rows["permutation_seed"] >= 0]
        assert pooled["n_permutations"] == single["n_permutations"].sum() == 1500
        assert pooled["p"] == (single["n_extreme"].sum() + 1) / 1501
        assert single["value"].nunique() == 1
    without = probe(subject, names, **settings | {"n_stability_seeds": 0})
    assert "mantel_stability" not in without.tables()
    assert without.concept_mantel.equals(found.concept_mantel)


def test_there_are_two_sets_of_years():
    assert [one.name for one in read_concepts() if one.name.startswith("years")] == ["years_1990", "years_1800"]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"n_stability_seeds": -1}, r"n_stability_seeds: .* greater than or equal to 0 \(got -1\)"),
        (
            {"n_stability_permutations": 0},
            r"n_stability_permutations: .* greater than or equal to 1 \(got 0\)",
        ),
    ],
)
def test_settings_out_of_range(subject, setting, message):
    with pytest.raises(ValueError, match=message):
        probe(subject, ["months"], n_points=0, **setting)
