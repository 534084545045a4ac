"""Patching against the naive loop: a whole forward a cell with a hook written out; against TransformerLens; truths."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from generic_for_tests import ARCHITECTURES as FAMILIES
from generic_for_tests import Plain, write_folder
from induction_for_tests import INDUCTION, PREVIOUS, induction_model, swapped_pairs
from models_for_tests import ARCHITECTURES, small_model, worded_model

import workbench
from workbench.analyses.patch import patching
from workbench.analyses.patch.analysis import PatchSettings, measure
from workbench.analyses.patch.figures import draw_heads, draw_positions
from workbench.analyses.patch.sites import SITES, check_sites, places_of
from workbench.data.pairs import PairTokens
from workbench.extend import Job, Subject
from workbench.models.prefix import KeptKeys
from workbench.models.transformer_lens import to_hooked_transformer

pytestmark = pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated:DeprecationWarning")
KINDS = sorted(ARCHITECTURES)
T, N = 9, 4


def pairs_of(d_vocab: int, n: int = N, is_even: bool = False, seed: int = 0) -> PairTokens:
    """Random prompts that differ at positions 3 to 5; unless is_even, two of them shorter."""
    g = torch.Generator().manual_seed(seed)
    clean = torch.randint(0, d_vocab, (n, T), generator=g)
    corrupt = clean.clone()
    corrupt[:, 3:6] = torch.randint(0, d_vocab, (n, 3), generator=g)
    is_token = torch.ones(n, T, dtype=torch.bool)
    if not is_even:
        is_token[0, -2:] = is_token[2, -1:] = False
    answers = torch.randint(0, d_vocab, (n, 1), generator=g)
    named = {"mid": torch.arange(n) % 3 + 3}
    return PairTokens("made", clean, corrupt, is_token, answers, (answers + 1) % d_vocab, torch.arange(n) // 2, named)


def sites_of(model) -> list[str]:
    found = []
    for site in SITES:
        try:
            found += check_sites(model, [site])
        except ValueError:
            continue
    return found


def readings(pairs, logits, clean):
    log_p = logits.log_softmax(-1)
    picked = logits.gather(1, pairs.answers)[:, 0] - logits.gather(1, pairs.foils)[:, 0]
    kl = (clean.exp() * (clean - log_p)).sum(-1)
    return torch.stack([picked, log_p.gather(1, pairs.answers)[:, 0], kl])


def at_end(pairs, logits):
    return torch.stack([row[n - 1] for row, n in zip(logits, pairs.is_token.sum(1).tolist(), strict=True)])


@torch.no_grad()
def naive(model, pairs, direction, layer, cell):
    """The three readings of each pair under one exchange, by one run_with_hooks."""
    name = f"blocks.{layer}.{SITES[cell.site].hook}"
    base, source = (pairs.corrupt, pairs.clean) if direction == "denoise" else (pairs.clean, pairs.corrupt)
    kept = {}
    model.run_with_hooks(source, fwd_hooks=[(name, lambda x, hook: kept.update(x=x.clone()))])

    def hook(x, hook):
        x = x.clone()
        for i in range(len(x)):
            at = {"all": slice(None), "mid": i % 3 + 3}.get(cell.place)
            at = int(cell.place) if at is None else at
            index = (i, at) if cell.head < 0 else (i, cell.head, at) if cell.site == "pattern" else (i, at, cell.head)
            x[index] = kept["x"][index]
        return x

    clean = at_end(pairs, model(pairs.clean)).log_softmax(-1)
    return readings(pairs, at_end(pairs, model.run_with_hooks(base, fwd_hooks=[(name, hook)])), clean)


def measured(model, pairs, sites, positions, layers=None, **options):
    """(readings, pairs), by direction, layer and cell."""
    plan = patching.make_plan(model, pairs, sites, positions, ["denoise", "noise"], layers=layers, **options)
    found = patching.joined(plan, list(patching.iterate_patching(model, pairs, plan)))
    keys = [(layer, cell) for layer in plan.layers for cell in plan.cells]
    return {
        (direction, *key): torch.stack([own.effect[i], own.logprob[i], own.kl[i]])
        for direction, own in found.items()
        for i, key in enumerate(keys)
    }


def check_all(model, pairs, found, atol=1e-10):
    """float64: the order of additions alone differs."""
    n = 0
    for (direction, layer, cell), values in found.items():
        if cell.site != "sources":
            expected = naive(model, pairs, direction, layer, cell).double()
            torch.testing.assert_close(values, expected, atol=atol, rtol=0)
            n += 1
    assert n > 30


@pytest.mark.parametrize("kind", KINDS)
def test_every_site_is_the_naive_loop(kind):
    model, pairs = small_model(kind).double(), pairs_of(61)
    last = model.cfg.n_layers - 1
    found = measured(model, pairs, sites_of(model), ["all", "mid"], layers=[0, last], heads=[1])
    assert {key[2].site for key in found} >= {"resid_pre", "attn_out", "mlp_out", "z", "q", "k", "v", "pattern"}
    check_all(model, pairs, found)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_site_is_the_naive_loop_at_each_position_of_every_layer(kind):
    model, pairs = small_model(kind).double(), pairs_of(61, is_even=True)
    check_all(model, pairs, measured(model, pairs, sites_of(model), ["each"]))


@pytest.mark.parametrize("kind", ["attn-res", "attn-res-attention", "attn-res-learned", "attn-res-learned-attention"])
@pytest.mark.parametrize("position", ["all", "mid", "5"])
def test_sources_are_all_that_flows_on(kind, position):
    model, pairs = small_model(kind).double(), pairs_of(61, is_even=True)
    found = measured(model, pairs, ["sources", "resid_pre"], [position])
    at = {"all": [range(T)] * N, "mid": [[i % 3 + 3] for i in range(N)], "5": [[5]] * N}[position]

    def mixed(base, source, is_sums=False):
        if base is None or not isinstance(base, torch.Tensor):
            return base
        base = base.clone()
        for i, places in enumerate(at):
            for t in places:
                if is_sums:
                    base[:, i, t] = source[:, i, t]
                else:
                    base[i, t] = source[i, t]
        return base

    for (direction, layer, cell), values in found.items():
        if cell.site != "sources":
            continue
        base, source = (pairs.corrupt, pairs.clean) if direction == "denoise" else (pairs.clean, pairs.corrupt)
        with torch.no_grad():
            own, other = (replace(model(ids, stop_at_layer=layer)) for ids in (base, source))
            new = {}
            for field in fields(own):
                a, b = getattr(own, field.name), getattr(other, field.name)
                is_tuple = isinstance(a, tuple)
                new[field.name] = tuple(map(mixed, a, b)) if is_tuple else mixed(a, b, field.name == "sums")
            new |= {"shared": None} if "shared" in new else {}
            logits = at_end(pairs, model(replace(own, **new), start_at_layer=layer))
            clean = at_end(pairs, model(pairs.clean)).log_softmax(-1)
        torch.testing.assert_close(values, readings(pairs, logits, clean), atol=1e-10, rtol=0)


def test_only_sources_cut_a_model_with_attention_residuals():
    model, pairs = small_model("attn-res").double(), pairs_of(61)
    table = workbench.patch(model, pairs, ["resid_pre", "sources"], n_bootstrap=100)
    by_site = table.pivot_table(index="layer", columns="site", values="effect")
    # everything that flows on is exchanged: the base answers as the source does
    np.testing.assert_allclose(by_site["sources"], float(table["gap"].iloc[0]), atol=1e-10)
    assert (by_site["resid_pre"] - table["gap"].iloc[0]).abs().min() > 1e-3


@pytest.mark.parametrize("kind", ["kotodama", "recurrent", "normed-twice", "parallel"])
def test_how_the_work_is_cut_changes_nothing(kind):
    model, pairs = small_model(kind).double(), pairs_of(61, is_even=True)
    sites, places = ["resid_pre", "mlp_out", "z", "q", "k"], ["1", "4", "all"]
    whole = patching.make_plan(model, pairs, sites, places, layers=[0, 2], heads=[0, 1])
    small = replace(whole, sizes=replace(whole.sizes, n_pairs=3, n_tokens=20, logits_held=61))
    tables = [
        patching.patching_table(plan, list(patching.iterate_patching(model, pairs, plan)), pairs, name="m", seed=0)
        for plan in (whole, small)
    ]
    for name in ("effect", "kl", "delta_logprob", "recovery"):
        np.testing.assert_allclose(tables[0][name], tables[1][name], atol=1e-9)


def test_numbered_positions_have_the_names_that_the_task_gives_them_in_every_pair():
    pairs = replace(pairs_of(61, is_even=True), positions={"mid": torch.arange(N) % 3 + 3, "b": torch.full((N,), 4)})
    table = workbench.patch(small_model("janus-v3"), pairs, ["resid_pre"], ["each", "all"], n_bootstrap=100)
    found = table.groupby("position")["stands_there"].first()
    assert found.to_dict() == {str(i): {4: "b", T - 1: "end"}.get(i, "") for i in range(T)} | {"all": ""}


def test_maps_of_two_models_are_side_by_side_on_one_scale():
    """Drawn of shares, and of effects where no gap defines a share; every cell says what the table says of it."""
    pairs = pairs_of(61, is_even=True)
    parts = [workbench.patch(small_model("janus-v3"), pairs, ["z", "resid_pre"], n_bootstrap=100, name=n) for n in "ab"]
    table = pd.concat(parts, ignore_index=True).assign(recovery=float("nan"))
    table["gap"] = 0.5
    shares = table.assign(recovery=2 * table["effect"], ci_low=-1.0, ci_high=1.0)
    for own, column, said in ((table, "effect", "recovery not defined"), (shares, "recovery", "[−1.000, 1.000]")):
        for draw, across in ((draw_heads, "head"), (draw_positions, "position")):
            fig: Any = draw(own)
            rows = own[(own["head"] >= 0) == (across == "head")]
            assert len(fig.data) == 2
            assert {trace.coloraxis for trace in fig.data} == {"coloraxis"}
            assert fig.layout.coloraxis.cmax == -fig.layout.coloraxis.cmin == rows[column].abs().max()
            assert [note.text.partition(":")[0] for note in fig.layout.annotations] == ["a", "b"]
            for name, trace in zip("ab", fig.data, strict=True):
                values = rows[rows["model"] == name].sort_values(["layer", "head"])[column]
                np.testing.assert_array_equal(np.ravel(trace.z), values)
                assert all(
                    said in text and "gap of 0.5 [" in text and "adjusted p" in text for text in np.ravel(trace.text)
                )


# --- TransformerLens


@pytest.mark.parametrize("kind", ["janus-v3", "janus-small"])
def test_transformer_lens_gives_the_same_maps(kind):
    from transformer_lens import patching as theirs

    model, pairs = small_model(kind), pairs_of(61, is_even=True)
    hooked = to_hooked_transformer(model)
    _, cache = hooked.run_with_cache(pairs.clean)
    base = pairs.effect(model(pairs.corrupt)[:, -1]).mean()

    def metric(logits):
        return pairs.effect(logits[:, -1]).mean() - base

    functions = {
        ("resid_pre", "each"): theirs.get_act_patch_resid_pre,
        ("resid_mid", "each"): theirs.get_act_patch_resid_mid,
        ("attn_out", "each"): theirs.get_act_patch_attn_out,
        ("mlp_out", "each"): theirs.get_act_patch_mlp_out,
        ("z", "all"): theirs.get_act_patch_attn_head_out_all_pos,
        ("q", "all"): theirs.get_act_patch_attn_head_q_all_pos,
        ("k", "all"): theirs.get_act_patch_attn_head_k_all_pos,
        ("v", "all"): theirs.get_act_patch_attn_head_v_all_pos,
        ("pattern", "all"): theirs.get_act_patch_attn_head_pattern_all_pos,
        ("v", "each"): theirs.get_act_patch_attn_head_v_by_pos,
    }
    with torch.no_grad():
        for (site, place), function in functions.items():
            expected = function(hooked, pairs.corrupt, cache, metric)
            table = workbench.patch(model, pairs, [site], [place], n_bootstrap=100)
            # float32; effects are of size 1
            np.testing.assert_allclose(table["effect"], expected.flatten().numpy(), atol=2e-5, err_msg=site)


# --- models by the generic path


@pytest.fixture(scope="module")
def generic(tmp_path_factory) -> tuple[Path, Any]:
    folder = write_folder(tmp_path_factory.mktemp("mixtral"), FAMILIES["mixtral"].config, FAMILIES["mixtral"].settings)
    with pytest.warns(UserWarning, match="generic path"):
        return folder, workbench.load(str(folder))


def test_a_bridge_is_patched_by_whole_forwards(generic):
    folder, model = generic
    pairs, sites = pairs_of(300), [site for site in sites_of(model) if "rot" not in site]
    assert sites == ["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "z", "q", "k", "v", "pattern"]
    found = measured(model, pairs, ["resid_pre", "mlp_out", "z", "k"], ["all", "mid"], heads=[0, 1])
    # float32 logits of size 10 by the same kernels
    check_all(model.bridge, pairs, found, atol=1e-5)
    plain = Plain(folder, FAMILIES["mixtral"])
    [z] = plain.seen(pairs.clean, ("z", 1))
    head = next(values for key, values in found.items() if key[:2] == ("denoise", 1) and key[2].head == 1)

    def edit(x):
        x = x.clone()
        x[:, :, 1] = z[:, :, 1]
        return x

    clean = at_end(pairs, plain.logits(pairs.clean)).detach().log_softmax(-1)
    with torch.no_grad(), plain.editing({("z", 1): edit}):
        expected = readings(pairs, at_end(pairs, plain.logits(pairs.corrupt)), clean)
    assert next(key[2].site for key in found if key[2].head == 1) == "z"
    torch.testing.assert_close(head.float(), expected, atol=1e-4, rtol=0)


def test_what_needs_the_weights_names_refuses_a_bridge(generic):
    for verb in (workbench.paths, workbench.attribute):
        with pytest.raises(ValueError, match=r"^(paths|attribute): got .*, a model by the generic path"):
            verb(generic[1], pairs_of(300))


# --- known truths


@pytest.mark.parametrize("kind", ["janus-v3", "parallel", "post-normed"])
@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_the_whole_stream_carries_the_whole_gap(kind, direction):
    model, pairs = small_model(kind).double(), pairs_of(61, n=12)
    table = workbench.patch(model, pairs, ["resid_pre"], ["all", "end"], [direction], n_bootstrap=200)
    whole = table[table["position"] == "all"]
    np.testing.assert_allclose(whole["effect"], whole["gap"], atol=1e-10)
    np.testing.assert_allclose(whole["kl"], 0 if direction == "denoise" else whole["kl"], atol=1e-10)
    early = table[(table["position"] == "end") & (table["layer"] == 0)]
    assert early["effect"].abs().max() < 1e-10, "the last token is the same in both prompts"
    # 12 random pairs of an untrained model: the gap is no multiple of its error, and a share of it is no number
    is_defined = abs(table["gap"]) >= 3 * (table["gap_high"] - table["gap_low"])
    assert not is_defined.any()
    assert table["recovery"].isna().all()


def test_shares_of_a_gap_that_is_there():
    model, pairs = small_model("janus-v3").double(), pairs_of(61, n=32)
    with torch.no_grad():
        sign = pairs.effect(at_end(pairs, model(pairs.clean))) < pairs.effect(at_end(pairs, model(pairs.corrupt)))
    # answer and foil exchanged where the gap was negative
    turned = replace(
        pairs,
        answers=torch.where(sign[:, None], pairs.foils, pairs.answers),
        foils=torch.where(sign[:, None], pairs.answers, pairs.foils),
    )
    table = workbench.patch(model, turned, ["resid_pre", "z"], ["all"], ["denoise", "noise"], n_bootstrap=500)
    whole = table[table["site"] == "resid_pre"]
    for name in ("recovery", "ci_low", "ci_high"):
        np.testing.assert_allclose(whole[name], 1, atol=1e-9)
    heads = table[table["site"] == "z"]
    np.testing.assert_allclose(heads["recovery"], heads["effect"] / heads["gap"], atol=1e-12)
    assert ((heads["ci_low"] <= heads["recovery"]) & (heads["recovery"] <= heads["ci_high"])).all()
    assert heads["p"].between(0, 1).all()
    assert (whole["p"] < 0.05).all()
    gap = table.groupby("direction")["gap"].first()
    assert gap["denoise"] == -gap["noise"] > 0
    assert set(table["head"]) == {-1, *range(4)}
    assert (table["n_clusters"] == 16).all()


def test_grouped_keys_have_a_cell_a_key_head():
    table = workbench.patch(small_model("kotodama"), pairs_of(61), ["k", "v", "q"], n_bootstrap=100)
    assert table.groupby("site")["head"].nunique().to_dict() == {"k": 2, "v": 2, "q": 4}
    assert table["effect"].notna().all()


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_a_known_circuit_is_found_and_nothing_else(direction):
    """Patched alone, of eight heads: the previous-token head does all where B and B′ stand together and nothing at the
    end, the induction head does all at the end and nothing elsewhere."""
    pairs = swapped_pairs()
    table = workbench.patch(induction_model(), pairs, ["z"], ["all", "b", "other", "end"], [direction], n_bootstrap=200)
    by_place = table.set_index(["position", "layer", "head"])["recovery"]
    for place, full in (("all", {PREVIOUS, INDUCTION}), ("end", {INDUCTION})):
        found = by_place[place]
        assert {key for key, share in found.items() if abs(share) > 0.02} == full
        np.testing.assert_allclose([found[key] for key in full], 1, atol=0.02)
    # either place alone leaves two predecessors alike, or none: the induction head's attention is torn between them
    for place in ("b", "other"):
        assert {key for key, share in by_place[place].items() if abs(share) > 0.02} == {PREVIOUS}
    p = table.set_index(["position", "layer", "head"])["p"]
    assert (p[[("all", *PREVIOUS), ("end", *INDUCTION)]] < 0.05).all()


# --- kills


@pytest.mark.parametrize("stop", [1, 4, 5])
def test_a_killed_run_goes_on_to_the_same_table(stop, tmp_path, monkeypatch):
    model = worded_model("janus-v3").eval()
    settings = PatchSettings(n_pairs=32, site=("z", "resid_pre"), direction=("denoise", "noise"), n_bootstrap=100)
    job = Job((Subject(model, "m", 0),), settings, tmp_path / "a")
    (tmp_path / "config.toml").write_text("")  # of the run that the parts belong to
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole = measure(replace(job, directory=tmp_path / "b"))["patching"]
    iterate = patching.iterate_patching

    def killed(*args, start, **kwargs):
        for i, part in enumerate(iterate(*args, start=start, **kwargs), start):
            if i == stop:
                raise KeyboardInterrupt
            yield part

    monkeypatch.setattr(patching, "iterate_patching", killed)
    with pytest.raises(KeyboardInterrupt):
        measure(job)
    assert len(list((tmp_path / "a").iterdir())) == stop
    monkeypatch.setattr(patching, "iterate_patching", iterate)
    again = measure(job)["patching"]
    assert again.to_csv() == whole.to_csv()
    assert not list((tmp_path / "a").iterdir())
    assert (whole["status"] == "task_absent").all(), "an untrained model does nothing"


# --- what cannot be


MODEL = small_model("kotodama")


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"site": ["nope"]}, "site: got 'nope'; expected some of resid_pre"),
        ({"site": ["z", "z"]}, "each once"),
        ({"site": ["sources"]}, "which has no attention residuals; expected resid_pre"),
        ({"layers": [3]}, "layers: got 3; expected 0…2"),
        ({"heads": [4]}, "heads: got 4; expected 0…3"),
        ({"site": ["k"], "heads": [2]}, "heads of k: got 2; expected 0…1"),
        ({"site": ["mlp_out"], "heads": [0]}, "heads: got site = mlp_out, where nothing reads them"),
        ({"position": ["subject"]}, "position: got 'subject'; expected all, each, a number or one of end, mid"),
        ({"position": ["9"]}, "position: got 9; expected 0…8"),
        ({"position": ["each", "3"]}, "3 twice"),
        ({"position": []}, "position: got none"),
        ({"direction": ["both"]}, "direction: got 'both'"),
        ({"memory_budget_bytes": 1000}, "memory_budget_bytes: got 1000; expected at least"),
        ({"n_bootstrap": 5}, "n_bootstrap"),
    ],
)
def test_a_wrong_setting_is_one_line(changes, line):
    with pytest.raises(ValueError, match=line.replace("(", r"\(")) as caught:
        workbench.patch(MODEL, pairs_of(61, is_even=True), **changes)
    assert "\n" not in str(caught.value)


def test_sites_that_a_model_has_not():
    for kind, site, line in [
        ("parallel", "resid_mid", "parallel, with no stream between"),
        ("attn-res", "resid_post", "where nothing reads it"),
        ("janus-small", "rot_q", "not rotated"),
    ]:
        with pytest.raises(ValueError, match=line):
            workbench.patch(small_model(kind), pairs_of(61), [site])


@pytest.mark.usefixtures("unchecked_shapes")
def test_prompts_of_unequal_length():
    pairs = pairs_of(61)
    with pytest.raises(ValueError, match=r"each for pairs of 7 to 9 tokens; expected all or a named one: end, mid"):
        places_of(pairs, ["each"])
    with pytest.raises(ValueError, match="expected prompts of one length, pair by pair"):
        workbench.patch(MODEL, replace(pairs, corrupt=pairs.corrupt[:, :-1]))
    with pytest.raises(ValueError, match="filling"):
        workbench.patch(MODEL, replace(pairs, is_token=pairs.is_token.flip(1)))


def test_kept_keys_before_nothing_are_none():
    assert KeptKeys().before(0, 3) is None
