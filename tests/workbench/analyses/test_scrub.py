"""Scrubbing circuits: the engine against a naive loop under hooks, a model whose circuit is known, controls, faults."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from generic_for_tests import ARCHITECTURES as FAMILIES
from generic_for_tests import write_folder
from induction_for_tests import INDUCTION, PREVIOUS, induction_model, swapped_pairs
from models_for_tests import small_model, tokens_for, worded_model

import workbench
from reports.tables import read_table
from workbench.analyses import figures_of_tables, find_analysis
from workbench.analyses.scrub import analysis as record
from workbench.analyses.scrub import scrubbing
from workbench.analyses.scrub.circuits import Circuit, Node, every_node, parse_head, parse_mlp, read_circuits
from workbench.analyses.scrub.engine import (
    Exchange,
    Prompts,
    check_model,
    exchanged_effects,
    keeping,
    plan_sizes,
    row_bytes,
)
from workbench.analyses.scrub.scrubbing import Ends, Options, Scrubber
from workbench.analyses.scrub.search import lenders, random_circuits, split_clusters, tried_sizes
from workbench.analyses.scrub.tables import circuit_row, head_rows, member_rows
from workbench.data.pairs import PairTokens
from workbench.study import measuring

KINDS = ["janus-v3", "janus-small", "kotodama", "parallel", "attn-res", "attn-res-learned-attention", "recurrent"]
KINDS += ["normed-twice", "post-normed"]


def pairs_for(model, n=6, n_pos=9, seed=0):
    """Pairs of random prompts of one or two lengths and one last token, filled up behind."""
    generator = torch.Generator().manual_seed(seed)
    clean, corrupt = (tokens_for(model, n, n_pos, seed + i) for i in range(2))
    lengths = torch.tensor([n_pos, n_pos - 2]).repeat(n)[:n]
    if model.cfg.extensions.recurrence is not None:
        lengths[:] = n_pos
    rows = torch.arange(n)
    corrupt[rows, lengths - 1] = clean[rows, lengths - 1]
    ids = torch.stack([torch.randperm(model.cfg.d_vocab, generator=generator)[:2] for _ in range(n)])
    some = torch.randint(1, n_pos - 3, (n,), generator=generator)
    is_token = torch.arange(n_pos) < lengths[:, None]
    positions = {"some": some, "end": lengths - 1}
    return PairTokens("random", clean, corrupt, is_token, ids[:, :1], ids[:, 1:], rows // 2, positions)


def naive(model, prompts, exchange):
    """m of each pair by itself, every replaced activation put in place by a hook of its own."""
    every = every_node(model.cfg)
    found = []
    for row in range(len(prompts.base)):
        own = prompts.pairs.take([row])
        length = int(own.last) + 1
        base, source = prompts.base[row : row + 1, :length], prompts.source[row : row + 1, :length]
        _, cache = model.run_with_cache(source)
        named = {(node.layer, node.head, p) for node in exchange.nodes for p in places(node, own, length)}
        all_places = {(node.layer, node.head, p) for node in every for p in range(length)}
        replaced = all_places - named if exchange.is_complement else named

        def put(layer, head, p, name, cache=cache):
            def hook(x, hook):
                x = x.clone()
                if head < 0:
                    x[:, p] = cache[name][:, p]
                else:
                    x[:, p, head] = cache[name][:, p, head]
                return x

            return name, hook

        hooks = [
            put(layer, head, p, f"blocks.{layer}.hook_mlp_out" if head < 0 else f"blocks.{layer}.attn.hook_z")
            for layer, head, p in sorted(replaced)
        ]
        logits = model.run_with_hooks(base, fwd_hooks=hooks)
        found.append(own.effect(logits[:, -1]))
    return torch.cat(found)


def places(node, pair, length):
    return [int(pair.positions[node.position])] if node.position else range(length)


@pytest.mark.parametrize("kind", KINDS)
def test_effects_equal_the_naive_loop(kind):
    model = small_model(kind).double()
    pairs = pairs_for(model)
    circuit = frozenset([Node(0, 1), Node(1, 2, "some"), Node(1, 3, "end"), Node(2, -1), Node(0, -1, "some")])
    nothing, everything = frozenset(), frozenset(every_node(model.cfg))
    sets = [Exchange(nothing), keeping(circuit), Exchange(circuit), Exchange(frozenset([Node(2, 0)])),
            Exchange(frozenset([Node(1, -1, "end"), Node(1, 0)])), keeping(nothing), keeping(everything)]  # fmt: skip
    for base, source in ((pairs.clean, pairs.corrupt), (pairs.corrupt, pairs.clean)):
        prompts = Prompts(base, source, pairs)
        found = exchanged_effects(model, prompts, sets, 1 << 30)
        with torch.no_grad():
            wanted = torch.stack([naive(model, prompts, own) for own in sets])
        assert found == pytest.approx(wanted, abs=1e-10)  # float64: rounding of another batch alone


def generic(name, folder):
    own = FAMILIES[name]
    with pytest.warns(UserWarning, match="generic path"):
        return workbench.load(str(write_folder(folder, own.config, own.settings)))


def test_a_bridge_is_scrubbed_by_whole_forwards(tmp_path):
    model = generic("mixtral", tmp_path)
    pairs = pairs_for(model)
    sets = [
        Exchange(frozenset()),
        keeping(frozenset([Node(0, 1), Node(1, -1)])),
        Exchange(frozenset([Node(1, 2, "some")])),
    ]
    prompts = Prompts(pairs.clean, pairs.corrupt, pairs)
    found = exchanged_effects(model, prompts, sets, 1 << 30)
    with torch.no_grad():
        wanted = torch.stack([naive(model.bridge, prompts, own) for own in sets]).double()
    assert found == pytest.approx(wanted, abs=1e-4)  # float32 logits of size 10, in other batches


def test_a_model_whose_mlps_have_no_hook_is_refused(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        check_model(generic("granitemoehybrid", tmp_path))


def test_everything_keeps_all_and_nothing_keeps_none():
    # the last token is the same on both sides, so that nothing but heads and MLPs tells them apart behind it
    for kind in ("janus-v3", "kotodama", "attn-res", "normed-twice"):
        model = small_model(kind).double()
        scrubber = Scrubber(model, pairs_for(model), Options())
        everything, nothing = scrubber.controls()
        assert everything.kept == pytest.approx(scrubber.ends.clean, abs=1e-12)
        assert nothing.kept == pytest.approx(scrubber.ends.base, abs=1e-12)


def test_little_memory_gives_the_same():
    model = small_model("kotodama").double()
    pairs = pairs_for(model, n=8)
    sets = [Exchange(frozenset([node])) for node in every_node(model.cfg)]
    prompts, least = Prompts(pairs.clean, pairs.corrupt, pairs), sum(row_bytes(model.cfg, 9))
    small = plan_sizes(model.cfg, 8, 9, len(sets), least)
    assert (small.n_pairs, small.n_rows) == (1, 1)
    wide, narrow = (exchanged_effects(model, prompts, sets, budget) for budget in (1 << 30, least))
    assert narrow == pytest.approx(wide, abs=1e-12)
    with pytest.raises(ValueError, match=r"memory_budget_bytes: got 1000; expected at least"):
        exchanged_effects(model, prompts, sets, 1000)


@pytest.fixture(scope="module")
def scrubber():
    return Scrubber(induction_model(), swapped_pairs(), Options())


def test_the_search_finds_the_known_circuit_and_each_half_of_it_is_needed(scrubber):
    found, held = scrubber.search()
    assert found.nodes == {Node(*PREVIOUS), Node(*INDUCTION)}
    tested = scrubber.test(found, held)
    row = circuit_row(tested, 0, 500)
    assert row["kept_share"] >= 0.99
    assert row["ci_low"] >= 0.99
    assert abs(row["complement_share"]) < 1e-3  # other weights are noise of .01
    assert abs(row["random_mean"]) < 1e-3  # without both heads none does the task
    assert row["random_max"] < 1e-3
    assert row["p"] == 1 / 21
    assert (row["n_pairs"], row["n_clusters"], row["pairs"]) == (16, 8, "held out")
    members = member_rows(tested, 0, 500)
    assert [own["member"] for own in members] == ["0.1", "1.2"]
    for own in members:
        assert own["contribution"] > 0.99
        assert abs(own["share_without"]) < 1e-3
        assert own["p"] <= 0.05


def test_no_pair_that_chose_a_circuit_tests_it(scrubber):
    train, held = split_clusters(scrubber.pairs, np.random.default_rng([0, 3]))
    clusters = scrubber.pairs.clusters
    assert not set(clusters[train].tolist()) & set(clusters[held].tolist())
    assert sorted([*train.tolist(), *held.tolist()]) == list(range(32))
    assert scrubber.search()[1].tolist() == held.tolist()


def test_a_circuit_by_position_is_found_and_kept(scrubber):
    by_position = Scrubber(scrubber.model, scrubber.pairs, Options(by_position=True))
    found, _ = by_position.search()
    assert sorted(map(str, found.nodes)) == ["0.1@b", "0.1@other", "1.2@end"]
    elsewhere = Circuit("elsewhere", frozenset([Node(0, 1, "end"), Node(1, 2, "end")]))
    row = circuit_row(by_position.test(elsewhere), 0, 500)
    assert abs(row["kept_share"]) < 1e-3


def test_one_of_two_heads_in_series_is_not_alone_load_bearing(scrubber):
    heads = [node for node in every_node(scrubber.model.cfg) if not node.is_mlp]
    rows = head_rows(heads, scrubber.without_heads(heads), scrubber.ends, 0, 500)
    verdicts = {(row["layer"], row["head"]): row["verdict"] for row in rows}
    assert {head for head, said in verdicts.items() if said == "one of several"} == {PREVIOUS, INDUCTION}
    assert set(verdicts.values()) == {"one of several", "not needed"}
    for row in rows:
        is_needed = (row["layer"], row["head"]) in (PREVIOUS, INDUCTION)
        assert row["necessity"] == pytest.approx(float(is_needed), abs=1e-3)


def test_a_head_above_all_others_is_load_bearing():
    rng = np.random.default_rng(0)
    clusters, heads = np.arange(40) // 2, [Node(0, head) for head in range(4)]
    clean = rng.normal(3, 0.3, 40)
    without = clean - np.stack([rng.normal(mean, 0.3, 40) for mean in (2.0, 1.0, 0.0, -1.0)])
    rows = head_rows(heads, without, Ends(clean, np.zeros(40), clusters), 0, 500)
    assert [row["verdict"] for row in rows] == ["load-bearing", "one of several", "not needed", "not needed"]
    assert [np.isnan(row["p_above"]) for row in rows] == [False, True, True, True]


@pytest.mark.parametrize("seed", range(3))
def test_equal_heads_are_seldom_told_apart(seed):
    # two heads of one necessity: of 60 draws 5 % may be called above the other, 10 at most with probability .9999
    rng, n_wrong = np.random.default_rng(seed), 0
    for _ in range(60):
        clean = rng.normal(3, 0.3, 24)
        without = clean - rng.normal([[1.0], [1.0], [0.0]], 0.5, (3, 24))
        rows = head_rows([Node(0, i) for i in range(3)], without, Ends(clean, np.zeros(24), np.arange(24)), 0, 100)
        n_wrong += any(row["verdict"] == "load-bearing" for row in rows)
    assert n_wrong <= 10


def test_random_circuits_are_of_equal_size_and_none_is_the_circuit():
    model = small_model("kotodama")
    nodes = frozenset([Node(0, 1), Node(1, 2), Node(1, 3, "end"), Node(2, -1, "end"), Node(0, -1)])
    drawn = random_circuits(nodes, model.cfg, 50, np.random.default_rng(0))
    assert len(set(drawn)) == 50
    for own in drawn:
        assert own != nodes
        for position, is_mlp in itertools.product(("", "end"), (True, False)):
            counts = [sum((n.position, n.is_mlp) == (position, is_mlp) for n in some) for some in (own, nodes)]
            assert counts[0] == counts[1]
    assert random_circuits(frozenset(every_node(model.cfg)), model.cfg, 5, np.random.default_rng(0)) == []


def test_another_pair_of_equal_length_lends():
    pairs = pairs_for(small_model("kotodama"), n=8)
    own = lenders(pairs, "corrupt", np.random.default_rng(0))
    assert own.tolist() == list(range(8))
    other = lenders(pairs, "other", np.random.default_rng(0))
    assert sorted(other.tolist()) == list(range(8))
    assert (other != own).all()
    assert (pairs.last[other] == pairs.last).all()
    with pytest.raises(ValueError, match="kind: got other with one pair of 7 tokens"):
        lenders(pairs.take([0, 1, 2]), "other", np.random.default_rng(0))


def test_sizes_of_a_search_end_with_all_nodes():
    for n in (1, 5, 16, 17, 100):
        sizes = tried_sizes(n)
        assert sizes[-1] == n
        assert sizes == sorted(set(sizes))


# --- the record


def request_for(model, pairs, monkeypatch, **settings):
    monkeypatch.setattr(record, "open_pairs", lambda job: pairs)
    analysis = find_analysis("scrub")
    own = analysis.settings.model_validate({"n_random": 5, "n_bootstrap": 200} | settings)
    return measuring.Request(analysis, own, sources=(model,), device="cpu")


CIRCUITS = """
[[circuits]]
name = "both"
heads = ["0.1", "1.2@end"]
[[circuits]]
name = "half"
heads = ["0.1@b"]
mlps = ["1", "0@end"]
"""


def test_tables_and_figures(monkeypatch, tmp_path):
    model, pairs = induction_model(), swapped_pairs()
    (tmp_path / "circuits.toml").write_text(CIRCUITS)
    request = request_for(model, pairs, monkeypatch, circuits=tmp_path / "circuits.toml")
    out = measuring.measure(request, tmp_path / "out")
    circuits, members, heads = (read_table(out, f"scrubbing{name}") for name in ("", "_members", "_heads"))
    assert circuits["circuit"].tolist() == ["both", "half", "everything", "nothing"]
    assert circuits["kept_share"].tolist() == pytest.approx([1, 0, 1, 0], abs=1e-3)
    assert circuits["kept_share"].tolist()[2:] == pytest.approx([1, 0], abs=1e-12)
    assert circuits["complement_share"].tolist()[2:] == pytest.approx([0, 1], abs=1e-12)
    assert circuits["random_mean"].isna().tolist() == [False, False, True, True]
    assert circuits["pairs"].tolist() == ["all"] * 4
    assert circuits["members"].tolist()[:2] == ["0.1 1.2@end", "0.mlp@end 0.1@b 1.mlp"]
    assert members["member"].tolist() == ["0.1", "1.2@end", "0.mlp@end", "0.1@b", "1.mlp"]
    assert len(heads) == 8
    tables = {"scrubbing": circuits, "scrubbing_members": members, "scrubbing_heads": heads}
    for name, table in tables.items():
        for draw in figures_of_tables()[name]:
            drawn: Any = draw(table)
            assert len(drawn.data) > 0
    drawn = figures_of_tables()["scrubbing"][0](circuits)
    assert list(drawn.data[0].x) == circuits["kept_share"].tolist()


def test_a_task_that_the_model_does_not_do_is_said(monkeypatch, tmp_path):
    model = small_model("kotodama")
    pairs = dataclasses.replace(pairs_for(model, n=32), clusters=torch.arange(32) // 2)
    out = measuring.measure(request_for(model, pairs, monkeypatch), tmp_path / "out")
    circuits = read_table(out, "scrubbing")
    assert circuits["status"].tolist() == ["task_absent"] * 3
    assert circuits[["kept_share", "random_mean", "p", "n_heads"]].isna().all(axis=None)
    assert circuits["gap"].notna().all()
    drawn: Any = figures_of_tables()["scrubbing"][0](circuits)
    assert [text for text in drawn.layout.yaxis.ticktext if "task_absent" in text] == list(drawn.layout.yaxis.ticktext)
    assert len(drawn.layout.yaxis.ticktext) == 1, "the whole model and none of it say nothing more"
    assert len(read_table(out, "scrubbing_members")) == len(read_table(out, "scrubbing_heads")) == 0


def test_a_killed_job_goes_on_to_the_same_tables(monkeypatch, tmp_path):
    model, pairs = induction_model(), swapped_pairs()
    request = request_for(model, pairs, monkeypatch)
    whole, run = measuring.measure(request, tmp_path / "whole"), scrubbing.exchanged_effects
    for n_parts in (0, 4):
        calls, made, out = itertools.count(), [], tmp_path / f"killed{n_parts}"

        def dies(*given, n_parts=n_parts, calls=calls):
            if next(calls) == n_parts:
                raise MemoryError("killed")
            return run(*given)

        monkeypatch.setattr(scrubbing, "exchanged_effects", dies)
        with pytest.raises(MemoryError):
            measuring.measure(request, out)
        monkeypatch.setattr(scrubbing, "exchanged_effects", lambda *given, made=made: made.append(1) or run(*given))
        measuring.measure(request, out, resume=True)
        monkeypatch.setattr(scrubbing, "exchanged_effects", run)
        assert len(made) == 8 - n_parts
        for name in ("scrubbing", "scrubbing_members", "scrubbing_heads"):
            assert (out / f"{name}.csv").read_bytes() == (whole / f"{name}.csv").read_bytes()
        assert not list(out.glob("*.safetensors"))


def test_the_python_function_measures_a_task_by_name():
    model = worded_model("janus-v3", n_layers=2, n_ctx=40)
    found = workbench.scrub(model, n_pairs=32, n_random=2, n_bootstrap=100)
    assert found["scrubbing"]["task"].tolist() == ["induction"] * 3
    assert found["scrubbing"]["status"].tolist() == ["task_absent"] * 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "circuits"),
        ("circuits = []", "circuits"),
        ("circuits = 3", "circuits"),
        ("[[circuits]]\nname = 'a'", "a has no nodes; expected heads or mlps"),
        ("[[circuits]]\nname = 'a'\nheads = ['1']", "got '1'; expected LAYER.HEAD"),
        ("[[circuits]]\nname = 'a'\nheads = ['1.-2']", "got '1.-2'; expected LAYER.HEAD"),
        ("[[circuits]]\nname = 'a'\nheads = ['1.2@']", "got '1.2@'; expected LAYER.HEAD"),
        ("[[circuits]]\nname = 'a'\nheads = '1.2'", "heads"),
        ("[[circuits]]\nname = 'a'\nmlps = ['1.2']", "got '1.2'; expected LAYER or LAYER@POSITION"),
        ("[[circuits]]\nname = 'a'\nmlps = [1]", "mlps"),
        ("[[circuits]]\nname = 'nothing'\nmlps = ['1']", "got 'nothing', the name of a row of our own"),
        ("[[circuits]]\nname = '../x'\nmlps = ['1']", "name"),
        ("[[circuits]]\nname = 'a'\nsites = ['1']", "sites"),
        ("[[circuits]]\nname = 'a'\nmlps = ['1']\n" * 2, "got the name a twice"),
        ("[[circuits]\nname", "circuits"),
    ],
)
def test_bad_files_are_refused_in_one_line(text, message, tmp_path):
    file = tmp_path / "circuits.toml"
    file.write_text(text)
    with pytest.raises(ValueError, match=r".") as caught:
        read_circuits(file)
    said = str(caught.value)
    assert message in said
    assert "circuits" in said
    assert "\n" not in said


def test_bad_circuits_and_heads_are_refused(scrubber, monkeypatch, tmp_path):
    model, pairs = scrubber.model, scrubber.pairs
    for nodes, message in (
        ([Node(2, 0)], r"circuits: x: got 2.0; expected a layer of 0…1"),
        ([Node(1, 4)], r"circuits: x: got 1.4; expected a head of 0…3"),
        (
            [Node(1, -1, "start")],
            r"circuits: x: got 1.mlp@start; expected no position, or one of the pairs': b, end",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            scrubber.test(Circuit("x", frozenset(nodes)))
    with pytest.raises(ValueError, match=r"heads: got 7.0; expected a layer of 0…1"):
        scrubber.without_heads([Node(7, 0)])
    few = pairs.take(slice(0, 6))
    with pytest.raises(ValueError, match="scrub: got pairs in 3 clusters; expected 4 or more"):
        Scrubber(model, few, Options()).search()
    for settings, message in (
        ({"circuits": tmp_path / "none.toml"}, "circuits: no file .*none.toml'; expected a TOML file"),
        ({"heads": ("9.0",)}, r"heads: got 9.0; expected a layer"),
        ({"memory_gib": 1e-9}, "memory_budget_bytes: got 1; expected at least"),
    ):
        with pytest.raises(ValueError, match=message):
            measuring.measure(request_for(model, pairs, monkeypatch, **settings), tmp_path / "out")
    validate = find_analysis("scrub").settings.model_validate
    for bad in ({"heads": "1"}, {"heads": "1.2,1.2"}, {"share": 0}, {"kind": "zero"}, {"n_random": -1}, {"n_pairs": 7}):
        with pytest.raises(ValueError, match="validation error"):
            validate(bad)
    for parse, text in ((parse_head, "x"), (parse_mlp, "")):
        with pytest.raises(ValueError, match="expected LAYER"):
            parse(text)
