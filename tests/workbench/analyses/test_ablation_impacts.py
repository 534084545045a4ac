"""Impacts, their errors and intervals, against loops; coverage of the interval; shares among heads."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from models_for_tests import small_model
from scipy import stats

from probes import ConstantInputWarning
from workbench.analyses.ablate.ablation import ablation_table, iterate_ablation, summary_table
from workbench.analyses.ablate.impacts import attribution_agreement, impact_gini, impacts, top_margin
from workbench.analyses.ablate.load_bearing import load_bearing, load_bearing_over_models, standing_apart
from workbench.analyses.ablate.records import join


def sample(seed, n=64, rows=3):
    """Base losses that differ from text to text, and ablated ones that rise with them and a noise of their own."""
    rng = np.random.default_rng(seed)
    base = rng.lognormal(1.2, 0.3, n)
    difference = 0.02 * base + rng.normal(0, 0.05, (rows, n)) + 0.02 * rng.exponential(1.0, (rows, n))
    return base, base + difference


@pytest.mark.parametrize("seed", range(3))
def test_the_bootstrap_equals_a_loop_over_draws(seed):
    base, ablated = sample(seed, n=12)
    found = impacts(base, ablated, np.random.default_rng(seed), n_bootstrap=300)
    counts = np.random.default_rng(seed).multinomial(12, np.full(12, 1 / 12), size=300)
    for row in range(3):
        draws = []
        for draw in counts:
            which = np.repeat(np.arange(12), draw)
            draws.append(100 * (ablated[row, which].mean() - base[which].mean()) / base[which].mean())
        # Hesterberg's tail for n = 12: Φ(√(12/11)·t₁₁(.025)) with t₁₁(.025) = −2.2010 (any t table) gives Φ(−2.2988)
        tail = 0.010757
        low, high = np.quantile(draws, [tail, 1 - tail])
        np.testing.assert_allclose([found.ci_low[row], found.ci_high[row]], [low, high], rtol=1e-4, atol=1e-5)
        mean = 100 * (ablated[row].sum() - base.sum()) / base.sum()
        np.testing.assert_allclose(found.impact_pct[row], mean, rtol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_stderr_is_the_spread_of_the_bootstrap(seed):
    base, ablated = sample(seed, n=400)
    found = impacts(base, ablated, np.random.default_rng(0), n_bootstrap=4000)
    width = (found.ci_high - found.ci_low) / (2 * 1.96)
    # two estimates of one spread from 400 sequences and 4,000 draws
    np.testing.assert_allclose(found.stderr, width, rtol=0.1)


def test_the_interval_holds_the_truth_as_often_as_it_says(record_property):
    truth = 100 * (0.02 + 0.02 / np.exp(1.2 + 0.3**2 / 2))
    hits = []
    for seed in range(500):
        base, ablated = sample(seed, n=64, rows=1)
        found = impacts(base, ablated, np.random.default_rng(seed), n_bootstrap=400)
        hits.append(found.ci_low[0] <= truth <= found.ci_high[0])
    record_property("share of intervals that hold the truth", float(np.mean(hits)))
    # 95 % nominal; two standard errors of 500 draws are 2 points, and the percentile interval is good to O(1/√n)
    assert 0.92 <= np.mean(hits) <= 0.98


@pytest.mark.parametrize(("n", "share"), [(2, 0.50), (3, 0.75), (5, 0.91), (8, 0.93)])
def test_of_few_sequences_it_holds_the_truth_as_often_as_is_documented(n, share):
    rng, hits = np.random.default_rng(0), []
    for _ in range(600):
        base = rng.gamma(20, 0.2, n)
        found = impacts(base, base * (1 + rng.normal(0.05, 0.1, (1, n))), rng, n_bootstrap=200)
        hits.append(found.ci_low[0] <= 5 <= found.ci_high[0])
    # three standard errors of 600 draws are 6 points at most
    assert np.mean(hits) == pytest.approx(share, abs=0.06)


@pytest.fixture(scope="module")
def pool():
    """Losses of 3,000 sequences of a made-up text, of all heads of a small model.

    Each sequence repeats a phrase of its own among random words, more or less often, so that sequences differ much.
    """
    model, rng = small_model("kotodama"), np.random.default_rng(0)
    tokens = rng.integers(0, 61, (3000, 12))
    for row in tokens:
        period = rng.integers(1, 12)
        row[:] = np.where(rng.random(12) < rng.random(), np.resize(row[:period], 12), row)
    found = iterate_ablation(model, torch.from_numpy(tokens), [0, 2], kind="mean", has_estimate=False)
    return join(list(found))


def test_the_interval_holds_the_large_sample_impact_on_resampled_text(pool, record_property):
    base, ablated = pool.base.numpy(), pool.ablated.numpy()
    truth = 100 * (ablated.sum(1) - base.sum()) / base.sum()
    assert np.std(base) / np.mean(base) > 0.05, "sequences differ"
    rng = np.random.default_rng(1)
    hits = []
    for _ in range(400):
        which = rng.integers(0, len(base), 48)
        found = impacts(base[which], ablated[:, which], rng, n_bootstrap=400)
        hits.append((found.ci_low <= truth) & (truth <= found.ci_high))
    record_property("share of intervals that hold the truth", float(np.mean(hits)))
    # 95 % nominal; heads share their sequences, so that one standard error of the mean is about a point
    assert 0.92 <= np.mean(hits) <= 0.98
    # of one head, two points more for two standard errors of 400 draws
    assert (np.mean(hits, axis=0) > 0.90).all()
    assert (np.mean(hits, axis=0) < 0.995).all()


def test_gini_is_taken_within_each_layer():
    table = pd.DataFrame(
        {"model": "a", "seed": 0, "kind": "zero", "layer": [0] * 4 + [1] * 4, "impact_pct": [1.0] * 4 + [0, 0, 0, 2]}
    ).assign(head=[0, 1, 2, 3] * 2)
    whole = table.iloc[[0, 4]].assign(head=-1, impact_pct=50.0)  # a layer's and an MLP's rows are no heads
    found = impact_gini(pd.concat([table, whole]))
    assert list(found.columns) == ["model", "seed", "kind", "layer", "gini"]
    np.testing.assert_allclose(found["gini"], [0.0, 0.75], atol=1e-12)
    with pytest.warns(ConstantInputWarning):
        assert np.isnan(impact_gini(table.assign(impact_pct=-1.0))["gini"]).all()


def results(model, impact, kind="zero"):
    frame = {"model": model, "seed": 0, "kind": kind, "layer": [0, 0, 1, 1], "head": [0, 1] * 2, "impact_pct": impact}
    return pd.DataFrame(frame)


# --- the gradient's estimates beside the impacts


def test_agreement_is_the_rank_correlation_over_heads():
    rng = np.random.default_rng(0)
    table = results("a", rng.normal(size=4)).assign(estimate_pct=rng.normal(size=4))
    table = pd.concat([table, table.assign(seed=1, impact_pct=[1, 2, 3, 4], estimate_pct=[1, 2, 4, 3])])
    whole = table.assign(head=-1, impact_pct=rng.normal(size=8))  # no heads
    found = attribution_agreement(pd.concat([table, whole]))
    assert found["n"].tolist() == [4, 4]
    ranks = [stats.rankdata(table[table["seed"] == 0][name]) for name in ("estimate_pct", "impact_pct")]
    # ρ = 1 − 6 Σ d² / (n (n² − 1)) without ties
    want = [1 - 6 * ((ranks[0] - ranks[1]) ** 2).sum() / 60, 1 - 6 * 2 / 60]
    np.testing.assert_allclose(found["rank_correlation"], want)
    assert attribution_agreement(table.assign(estimate_pct=np.nan))["rank_correlation"].isna().all()


# --- load-bearing heads


def naive_p(d, n, seed):
    """max-T p-values by loops over permutations, replicates and layers."""
    rng = np.random.default_rng(seed)

    def statistic(x):
        out = np.empty(x.shape[1:])
        for layer in range(x.shape[1]):
            spread = sum(np.var(own[layer]) for own in x) ** 0.5
            out[layer] = sum(own[layer] - own[layer].mean() for own in x) / spread
        return out

    found = statistic(d)
    reached = np.zeros(found.shape)
    for _ in range(n):
        permuted = np.array([[rng.permutation(heads) for heads in own] for own in d])
        reached += statistic(permuted).max() >= found - 1e-9
    return found, (1 + reached) / (1 + n)


@pytest.mark.parametrize("seed", range(3))
def test_the_permutation_test_equals_loops(seed):
    rng = np.random.default_rng(seed)
    d = rng.exponential(size=(6, 3, 4)) * [[[1], [10], [0.1]]]
    d[:, 2, 1] += 0.15
    statistic, p = standing_apart(d, np.random.default_rng(0), 4000)
    want, p_loop = naive_p(d, 2000, 1)
    np.testing.assert_allclose(statistic, want, rtol=1e-9)
    # two sets of random permutations: three standard errors of their difference at p = .5
    np.testing.assert_allclose(p, p_loop, atol=3 * 0.5 * np.sqrt(1 / 4000 + 1 / 2000))


@pytest.mark.parametrize("n_replicates", [3, 20])
def test_p_is_uniform_where_heads_are_exchangeable(n_replicates):
    """Layers of different scale whose heads depend on each other and on other layers, with heavy tails: the smallest p
    of all heads falls below α in a share α of cases."""
    smallest = []
    for seed in range(400):
        rng = np.random.default_rng(seed)
        common = rng.standard_t(3, (n_replicates, 1, 1))
        d = (common + rng.standard_t(3, (n_replicates, 3, 4))) * [[[1], [5], [0.2]]]
        smallest.append(standing_apart(d, rng, 199)[1].min())
    for level in (0.05, 0.2, 0.5):
        share, error = np.mean(np.array(smallest) <= level), 3 * (level * (1 - level) / 400) ** 0.5
        assert share < level + error, level
        # the tops of 3 replicates meet in one head once in 4² permutations, and no p is below that: fewer, not more
        assert n_replicates == 3 or share > level - error, level


def test_a_head_that_carries_its_layer_is_found_and_alone():
    rng = np.random.default_rng(0)
    d = rng.normal(size=(12, 3, 4))
    d[:, 1, 2] += 2.0
    _, p = standing_apart(d, rng)
    assert p[1, 2] < 0.01
    p[1, 2] = 1
    assert (p > 0.05).all()


def test_relabelling_heads_relabels_their_p_and_scale_does_not_matter():
    rng = np.random.default_rng(0)
    d = rng.normal(size=(8, 2, 5))
    order = [3, 0, 4, 1, 2]
    first, p = standing_apart(d, np.random.default_rng(1), 3000)
    again, p_again = standing_apart(7 * d[:, :, order] + 3, np.random.default_rng(2), 3000)
    np.testing.assert_allclose(again, first[:, order], rtol=1e-9)
    np.testing.assert_allclose(p_again, p[:, order], atol=0.04)


def test_a_layer_whose_heads_never_differ_has_no_p():
    d = np.random.default_rng(0).normal(size=(5, 2, 3))
    d[:, 0] = 0.5
    statistic, p = standing_apart(d, np.random.default_rng(0), 199)
    assert np.isnan(p[0]).all()
    assert np.isnan(statistic[0]).all()
    assert np.isfinite(p[1]).all()


@pytest.mark.parametrize(
    ("d", "n", "message"),
    [
        (np.zeros((1, 2, 3)), 999, "replicate ≥ 2"),
        (np.zeros((3, 2, 1)), 999, "head ≥ 2"),
        (np.zeros((3, 2)), 999, r"shape \(3, 2\)"),
        (np.full((3, 2, 2), np.nan), 999, "inf or nan"),
        (np.zeros((3, 2, 2)), 9, "n_permutations: got 9"),
    ],
)
def test_bad_impacts_are_refused(d, n, message):
    with pytest.raises(ValueError, match=message):
        standing_apart(d, np.random.default_rng(0), n)


def test_sequences_and_models_as_replicates(pool):
    found = load_bearing(pool, n_permutations=199)
    change = 100 * (pool.ablated - pool.base).numpy() / pool.base.mean().item()
    np.testing.assert_allclose(found["impact_pct"], change.mean(1))
    d = change.reshape(2, 4, -1).transpose(2, 0, 1)
    np.testing.assert_allclose(found["statistic"], standing_apart(d, np.random.default_rng(0), 199)[0].ravel())
    assert list(zip(found["layer"], found["head"], strict=True)) == [(y, h) for y in (0, 2) for h in range(4)]

    rng = np.random.default_rng(0)
    tables = [ablation_table(pool, 12, kind="mean", seed=seed, name="m", n_bootstrap=100) for seed in range(3)]
    for table in tables:
        table["impact_pct"] = rng.normal(size=len(table))
    merged = pd.concat(tables).sample(frac=1, random_state=0)
    whole = merged.assign(head=-1)
    over = load_bearing_over_models(pd.concat([merged, whole.drop_duplicates("seed")]), n_permutations=199)
    d = np.stack([table["impact_pct"].to_numpy().reshape(2, 4) for table in tables])
    np.testing.assert_allclose(over["statistic"], standing_apart(d, np.random.default_rng(0), 199)[0].ravel())
    np.testing.assert_allclose(over["impact_pct"], d.mean(0).ravel())
    with pytest.raises(ValueError, match="the table has the kinds mean, zero; expected one"):
        load_bearing_over_models(pd.concat([merged, merged.assign(kind="zero")]))
    with pytest.raises(ValueError, match="models or layers with different heads"):
        load_bearing_over_models(merged.iloc[1:])


def test_the_summary_holds_each_measure_once(pool):
    table = ablation_table(pool, 12, kind="mean", seed=7, name="m", n_bootstrap=100)
    found = summary_table(table, pool)
    columns = ["model", "seed", "kind", "layer", "measure", "value", "n", "ci_low", "ci_high", "n_permutations"]
    assert list(found.columns) == columns
    assert set(found.loc[found["measure"] == "load_bearing_p", "n_permutations"]) == {1999}
    assert not found.duplicated(["layer", "measure"]).any()
    value = found.set_index(["measure", "layer"])["value"]
    p = load_bearing(pool).set_index(["layer", "head"])["p"]
    top = table.loc[table["impact_pct"].idxmax()]
    assert value["load_bearing_p", -1] == p[top["layer"], top["head"]]
    for layer in (0, 2):
        own = table[table["layer"] == layer]
        assert value["load_bearing_p", layer] == p[layer, own.loc[own["impact_pct"].idxmax(), "head"]]
    positive = table.assign(impact_pct=table["impact_pct"].abs())
    ginis = summary_table(positive, pool).query("measure == 'gini'")
    np.testing.assert_allclose(ginis["value"], impact_gini(positive)["gini"])
    assert np.isnan(value["rank_correlation", -1]), "no estimate was taken"
    impact = table.sort_values("impact_pct", ascending=False)
    assert value["top_margin", -1] == pytest.approx(impact["impact_pct"].iloc[0] - impact["impact_pct"].iloc[1])


def test_the_margin_of_the_top_head_is_paired_over_sequences() -> None:
    """Of two heads that share what a sequence costs, the difference is known far better than either impact."""
    rng = np.random.default_rng(0)
    base, shared = rng.normal(4, 0.3, 400), rng.normal(0, 1, 400)
    first = base + 1.0 + shared + rng.normal(0, 0.01, 400)
    second = base + 0.9 + shared + rng.normal(0, 0.01, 400)
    ablated = np.stack([second, first, base])
    margin, low, high = top_margin(base, ablated, np.random.default_rng(1))
    assert margin == pytest.approx(100 * (first.sum() - second.sum()) / base.sum(), rel=1e-12)
    # the standard error of a mean of differences of two independent parts of .01 each, by the mean base loss
    spread = 1.96 * 100 * np.sqrt(2) * 0.01 / np.sqrt(400) / base.mean()
    assert (high - low) / 2 == pytest.approx(spread, rel=0.15)
    of_one = impacts(base, ablated, np.random.default_rng(2))
    assert of_one.ci_high[1] - of_one.ci_low[1] > 20 * (high - low)
    assert (low, high) == top_margin(base, ablated[::-1], np.random.default_rng(1))[1:]  # whichever row comes first


def test_a_margin_takes_two_heads_and_an_interval_two_sequences() -> None:
    with pytest.raises(ValueError, match=r"top_margin: got 1 ablations; expected at least 2"):
        top_margin(np.ones(3), np.ones((1, 3)), np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"n_bootstrap: got 5; expected at least 100"):
        top_margin(np.ones(3), np.ones((2, 3)), np.random.default_rng(0), 5)
    margin, low, high = top_margin(np.array([2.0]), np.array([[3.0], [2.5]]), np.random.default_rng(0))
    assert (margin, np.isnan(low), np.isnan(high)) == (25.0, True, True)
