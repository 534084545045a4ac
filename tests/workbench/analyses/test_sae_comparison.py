"""Seeds, sweeps and models compared: against loops over the definition, and the nulls they are read against."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from models_for_tests import small_model, tokens_for

from reports.tables import COLUMNS, read_table, write_table
from sae import SAEConfig, SAESource, StackedSAE, StackInfo, match_l0
from workbench.analyses.sae_train.comparison import compare_at_matched_l0, pareto_table, stability_table
from workbench.analyses.sae_train.head_saes import sae_train

QUICK = {"batch_size": 32, "buffer_tokens": 64, "lr": 1e-2, "expansion": 3, "n_ce_tokens": 32}
QUICK |= {"normalize": "none", "n_train_tokens": None}


def stack_of(seeds, heads=(0, 3), l1=(1.0,), d_in=8, d_sae=20, seed=0) -> StackedSAE:
    sources = tuple(
        SAESource(hook_name="blocks.2.attn.hook_z", layer=2, head=h, l1=c, seed=s)
        for h in heads for c in l1 for s in seeds
    )  # fmt: skip
    config = SAEConfig(n_saes=len(sources), d_in=d_in, d_sae=d_sae)
    return StackedSAE(config, torch.Generator().manual_seed(seed), info=StackInfo(sources=sources))


def naive_max_cosines(a, b):
    return [max(float(x @ y / x.norm() / y.norm()) for y in b.double()) for x in a.double()]


def test_stability_is_the_definition_for_every_ordered_pair_of_seeds():
    stack = stack_of([0, 4, 7], l1=[1.0, 2.0])
    density = torch.rand(stack.config.n_saes, 20, generator=torch.Generator().manual_seed(1)).round()
    table = stability_table(stack, density)
    assert len(table) == 2 * 2 * 6
    sources = stack.info.sources
    for row in table.itertuples():
        k, other = (
            next(
                i for i, s in enumerate(sources) if (s.head, s.l1, s.seed) == (row.head, row.l1, seed)
            ) for seed in (row.sae_seed, row.other_seed)
        )  # fmt: skip
        want = naive_max_cosines(stack.W_dec[k].detach(), stack.W_dec[other].detach())
        assert row.stability == pytest.approx(np.mean(want), abs=1e-12)
        assert row.share_above == pytest.approx(np.mean(np.array(want) > 0.7))
        alive = density[k].bool().numpy()
        assert row.n_alive == alive.sum()
        assert row.stability_alive == pytest.approx(np.mean(np.array(want)[alive]), abs=1e-12)


def test_untrained_seeds_are_no_more_stable_than_chance():
    table = stability_table(stack_of([0, 1, 2], heads=[0], d_in=16, d_sae=200))
    assert table["stability"].mean() == pytest.approx(table["stability_random"].mean(), abs=0.01)
    assert table["stability_random"].mean() > 0.5, "which is far from 0 in 16 dimensions"


def test_a_permuted_copy_is_stable_and_one_seed_has_no_partner():
    stack = stack_of([0, 1], heads=[0])
    with torch.no_grad():
        stack.W_dec[1] = 3 * stack.W_dec[0].flip(0)
    table = stability_table(stack)
    assert table["stability"].tolist() == pytest.approx([1, 1])
    assert table["share_above"].tolist() == [1, 1]
    assert "n_alive" not in table
    assert (table["stability_random"] < 0.9).all()
    assert stability_table(stack_of([3])).empty
    with pytest.raises(ValueError, match="does not say its SAEs' layers and seeds"):
        stability_table(StackedSAE(SAEConfig(n_saes=1, d_in=4, d_sae=8), torch.Generator()))


def results(points, model="a", seed=0, head=0) -> pd.DataFrame:
    """Rows of trained SAEs of one layer from (l1, l0, fvu)."""
    table = pd.DataFrame(points, columns=["l1", "l0", "fvu"])
    columns = {"model": model, "seed": seed, "layer": 1, "head": head, "dictionary": "trained", "dead_fraction": 0.0}
    losses = {"ce_base": 3.0, "ce_zero": 3.5, "ce_spliced": 3 + table["fvu"] / 2}
    return table.assign(**columns, **losses, ce_recovered=1 - table["fvu"], sae_seed=0)


def test_the_front_leaves_out_what_another_point_beats():
    rows = results([(1, 9.0, 0.1), (2, 5.0, 0.3), (3, 6.0, 0.3), (4, 2.0, 0.5), (5, 0.0, np.nan)])
    noise = rows.assign(dictionary="random", l0=0.1, fvu=0.01)
    table = pareto_table(pd.concat([rows, noise]))
    assert dict(zip(table["l1"], table["on_front"], strict=True)) == {1: True, 2: True, 3: False, 4: True, 5: False}
    assert table["l0"].is_monotonic_increasing
    # seeds of the SAEs are one point
    again = rows.assign(sae_seed=1, l0=rows["l0"] + 2)
    assert pareto_table(pd.concat([rows, again]))["l0"].tolist() == [1, 3, 6, 7, 10]
    two_heads = pareto_table(pd.concat([rows, results([(1, 1.0, 0.01)], head=1)]))
    assert two_heads.set_index(["head", "l1"])["on_front"].to_dict()[0, 4] is True


def test_matched_l0_reads_two_curves_where_both_are():
    # fvu = 1 − log10 l0 / 2 in a and .1 less in b, on other l1
    a = results([(c, l0, 1 - np.log10(l0) / 2) for c, l0 in ((1, 1.0), (2, 4.0), (3, 20.0))], "a")
    b = results([(c, l0, 0.9 - np.log10(l0) / 2) for c, l0 in ((1, 2.0), (2, 9.0), (3, 50.0))], "b")
    (row,) = compare_at_matched_l0(pd.concat([a, b]), "a", "b").itertuples()
    assert (row.l0_low, row.l0_high) == (2, 20)
    assert row.fvu_difference == pytest.approx(-0.1)
    assert row.fvu_a - row.fvu_b == pytest.approx(0.1)
    assert row.ce_recovered_difference == pytest.approx(0.1)
    middle = np.log10(np.geomspace(2, 20, 16)).mean()
    assert row.fvu_a == pytest.approx(1 - middle / 2)
    # equal l1 would have said something else: this is what matching is for
    assert float((b["fvu"] - a["fvu"]).mean()) != pytest.approx(-0.1, abs=0.05)


def test_matched_l0_averages_heads_and_is_nan_where_curves_do_not_meet():
    a = pd.concat([results([(1, 2.0, 0.4), (2, 1.0, 0.6)], "a", head=h) for h in (0, 1)])
    b = pd.concat([results([(1, 3.0 - h, 0.4), (2, 2.0 - h, 0.6)], "b", head=h) for h in (0, 1)])
    row = compare_at_matched_l0(pd.concat([a, b]), "a", "b").iloc[0]
    want = match_l0([2, 1], [0.4, 0.6], [2.5, 1.5], [0.4, 0.6])
    assert row["fvu_difference"] == pytest.approx(want.mean_difference)
    one = compare_at_matched_l0(pd.concat([a, b[b["l1"] == 2]]), "a", "b").iloc[0]
    assert (one["l0_low"], one["l0_high"], one["fvu_b"]) == (1.5, 1.5, pytest.approx(0.6))
    assert one["fvu_a"] == pytest.approx(0.6 - 0.2 * np.log2(1.5))
    far = b.assign(l0=b["l0"] + 100)
    row = compare_at_matched_l0(pd.concat([a, far]), "a", "b").iloc[0]
    assert row[["l0_low", "l0_high", "fvu_a", "fvu_b", "fvu_difference"]].isna().all()
    assert row["reason"] == "no common l0 for fvu and loss recovered: 1 to 2 in a and 101.5 to 102.5 in b"
    assert one["reason"] == ""
    with pytest.raises(ValueError, match="the table has no model 'c'; expected two of a, b"):
        compare_at_matched_l0(pd.concat([a, b]), "a", "c")


def test_matched_l0_pools_what_heads_recover():
    """A head whose removal costs nothing has a ratio of any size, and no weight."""
    points = [(1, 1.0, 0.6), (2, 10.0, 0.2)]
    heads = [results(points, model, head=h) for model in "ab" for h in (0, 1)]
    for table, kept in ((heads[0], [0.2, 0.3]), (heads[2], [0.1, 0.4])):  # of 0.5 nats
        table["ce_spliced"] = 3.5 - np.array(kept)
    for table, kept in ((heads[1], [-0.02, 0.001]), (heads[3], [0.03, -0.04])):  # of 0.004
        table["ce_zero"] = 3.004
        table["ce_spliced"] = 3.004 - np.array(kept)
        table["ce_recovered"] = np.array(kept) / 0.004
    row = compare_at_matched_l0(pd.concat(heads), "a", "b").iloc[0]
    a, b = np.array([0.18, 0.301]) / 0.504, np.array([0.13, 0.36]) / 0.504
    assert row["ce_recovered_a"] == pytest.approx(a.mean())  # both ends of a line, at equal weight
    assert row["ce_recovered_difference"] == pytest.approx((b - a).mean())
    free = pd.concat(heads).assign(ce_zero=3.0)
    row = compare_at_matched_l0(free, "a", "b").iloc[0]
    assert row[["ce_recovered_a", "ce_recovered_difference"]].isna().all()
    assert row["fvu_difference"] == 0
    assert row["reason"] == "no common l0 for loss recovered: undefined in a and undefined in b"


@pytest.fixture(scope="module")
def model():
    return small_model("janus-v3", n_layers=2)


def test_a_sweep_writes_what_the_functions_return(model, tmp_path):
    tokens, held_out = tokens_for(model, batch=20, pos=16), tokens_for(model, batch=6, pos=16, seed=9)
    arguments = {"l1": [0.5, 2.0], "seeds": [0, 3], "held_out": held_out, "name": "m", "model_seed": 7} | QUICK
    stack, table = sae_train(model, tokens, [1], out=tmp_path / "run", **arguments)
    for name, own in (("sae_pareto", pareto_table(table)), ("sae_stability", stability_table(stack))):
        written = read_table(tmp_path / "run", name)
        assert tuple(written.columns[: len(COLUMNS[name])]) == COLUMNS[name]
        assert set(written["model"]) == {"m"}
        assert set(written["seed"]) == {7}
        shared = [column for column in own if column in COLUMNS[name]]
        pd.testing.assert_frame_equal(written[shared], own[shared], check_dtype=False)
    matched = compare_at_matched_l0(pd.concat([table, table.assign(model="n")]), "m", "n")
    assert matched["fvu_difference"].abs().max() == 0
    write_table(matched, tmp_path, "sae_matched_l0")


def test_precisions_start_alike_and_are_told_apart(model, monkeypatch):
    monkeypatch.setenv("WORKBENCH_ALLOCATOR", "off")  # the benchmarks set it for their process when they are imported
    from benchmarks.sae_precision import compare_precisions, precision_summary

    tokens, held_out = tokens_for(model, batch=20, pos=16), tokens_for(model, batch=6, pos=16, seed=9)
    table = compare_precisions(model, tokens, [1], l1=1.0, seeds=[0, 1, 2], held_out=held_out, **QUICK)
    assert table["precision"].value_counts().to_dict() == {"float32": 12, "bfloat16": 12}
    full = sae_train(model, tokens, [1], l1=1.0, seeds=[0, 1, 2], held_out=held_out, **QUICK)[1]
    pd.testing.assert_frame_equal(
        table[table["precision"] == "float32"].drop(columns="precision"), full[full["dictionary"] == "trained"]
    )
    half = table[table["precision"] == "bfloat16"]
    assert not np.array_equal(half["fvu"], table[table["precision"] == "float32"]["fvu"])
    summary = precision_summary(table).set_index(["measure", "sae_seed"])
    assert len(summary) == 4 * 3
    by_hand = half[half["sae_seed"] == 1]["fvu"].mean()
    assert summary.loc[("fvu", 1), "bfloat16"] == pytest.approx(by_hand)
    row = summary.loc[("l0", 2)]
    assert row["mean_difference"] == pytest.approx(row["bfloat16"] - row["float32"])
    assert row["largest_difference"] >= abs(row["mean_difference"])
    one_seed = precision_summary(table[table["sae_seed"] == 0])
    assert one_seed["between_seeds"].isna().all()
