"""Attribution against naive loops and finite differences in float64, TransformerLens, a hand-built circuit; the job."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from induction_for_tests import INDUCTION, PREVIOUS, induction_model, swapped_pairs
from models_for_tests import ARCHITECTURES, small_config, small_model
from random_pairs_for_tests import pairs_for

from workbench.analyses.attribute.attribution import agreement, attribute, logit_lens
from workbench.analyses.attribute.estimates import estimate
from workbench.analyses.attribute.exact import exchange
from workbench.analyses.attribute.figures import (
    draw_direct_attribution,
    draw_estimates_and_exact_values,
    draw_exchanges,
    draw_logit_lens,
)
from workbench.analyses.attribute.sites import cells_of
from workbench.analyses.patch.sites import hook_of, places_of
from workbench.models.transformer_lens import to_hooked_transformer

ATOL = 1e-10  # float64: sums of some hundred terms of size 1
STEP = 1e-5  # of central differences, whose error is its square and rounding's 1e-16/STEP, both about 1e-10
KINDS = [
    "janus-small",
    "kotodama",
    "parallel",
    "normed-twice",
    "post-normed",
    "attn-res",
    "attn-res-learned",
    "recurrent",
]
SITES = ["z", "q", "k", "v", "mlp_out", "attn_out", "resid_pre"]


def effects_under(model, pairs, base, hooks: list[Any]) -> torch.Tensor:
    rows = torch.arange(len(pairs))
    with torch.no_grad(), model.hooks(fwd_hooks=hooks):
        return pairs.effect(model(base)[rows, pairs.last])


def exchanged(x, source, mask, head):
    """Entry by entry: x with another prompt's activation where the mask is True, of one head or (−1) of all."""
    out = x.clone()
    for row, pos in mask.nonzero().tolist():
        which = slice(None) if head < 0 else head
        out[row, pos, which] = source[row, pos, which]
    return out


def cached(model, tokens, names) -> Any:
    with torch.no_grad():
        return model.run_with_cache(tokens, names_filter=lambda name: name in names, return_cache_object=False)[1]


# --- exact


@pytest.mark.parametrize("kind", sorted(ARCHITECTURES))
def test_an_exchange_is_the_naive_loops(kind) -> None:
    """Each cell by itself, in a whole forward pass from the tokens."""
    model = small_model(kind).double()
    pairs, direction = pairs_for(model), "noise" if kind == "parallel" else "denoise"
    base, source = (pairs.clean, pairs.corrupt) if direction == "noise" else (pairs.corrupt, pairs.clean)
    cells, places = cells_of(model.cfg, SITES, [0, 1]), places_of(pairs, ["all", "changed"])
    found = exchange(model, pairs, direction, cells, places)
    lent = cached(model, source, {hook_of(c.site, c.layer) for c in cells})
    before = effects_under(model, pairs, base, [])
    for i in torch.randperm(len(cells), generator=torch.Generator().manual_seed(1)).tolist()[:14]:
        name = hook_of(cells[i].site, cells[i].layer)
        for n, place in enumerate(places):
            hook = (
                name,
                lambda x, hook, i=i, p=place, name=name: exchanged(x, lent[name], p.mask(pairs), cells[i].head),
            )
            after = effects_under(model, pairs, base, [hook])
            torch.testing.assert_close(
                found[n, i], after - before, atol=ATOL, rtol=ATOL, msg=lambda m, i=i: f"{cells[i]} {m}"
            )
    assert (found.abs() > 1e-4).double().mean() > 0.5


@pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated:DeprecationWarning")
def test_heads_are_patched_as_by_transformer_lens() -> None:
    """z of every head at all positions, beside transformer_lens.patching in float32: 1e-5 of logits of size 1."""
    from transformer_lens import patching

    model = small_model("janus-v3")
    pairs = pairs_for(model, n=4)
    pairs = pairs.take(pairs.is_token.all(1))  # theirs reads the last position of all
    theirs = to_hooked_transformer(model)
    _, cache = theirs.run_with_cache(pairs.clean)
    metric = lambda logits: pairs.effect(logits[:, -1]).mean()  # noqa: E731
    expected = patching.get_act_patch_attn_head_out_all_pos(theirs, pairs.corrupt, cache, metric)
    cells = cells_of(model.cfg, ["z"], range(3))
    found = exchange(model, pairs, "denoise", cells, places_of(pairs, ["all"]))[0].mean(1).view(3, -1)
    base = metric(theirs(pairs.corrupt)).detach()
    torch.testing.assert_close(found, (expected.detach() - base).double(), atol=1e-5, rtol=1e-4)


# --- estimates


def differentiable(kind: str):
    """The small model; of the recurrent one without the mechanisms that stop gradients."""
    if kind != "recurrent":
        return small_model(kind).double()
    own = small_config(kind).extensions
    assert own.recurrence is not None
    kept = own.recurrence.model_copy(update={"confidence": False, "memory": False})
    return small_model(kind, extensions=own.model_copy(update={"recurrence": kept})).double()


@pytest.mark.parametrize("kind", KINDS)
def test_atp_is_the_derivative_along_the_exchange(kind) -> None:
    """d/dε m(base; a + ε (a_source − a)) at ε = 0: of the hooked forward to rounding, and by central differences."""
    model = differentiable(kind)
    pairs, cells = pairs_for(model), cells_of(model.cfg, SITES, [0, 1])
    places = places_of(pairs, ["all", "end"])
    found = estimate(model, pairs, "denoise", cells, places, ["atp"])["atp"]
    names = {hook_of(c.site, c.layer) for c in cells}
    lent, own = cached(model, pairs.clean, names), cached(model, pairs.corrupt, names)
    for i in torch.randperm(len(cells), generator=torch.Generator().manual_seed(2)).tolist()[:10]:
        name = hook_of(cells[i].site, cells[i].layer)
        for n, place in enumerate(places):
            epsilon = torch.zeros(len(pairs), requires_grad=True, dtype=torch.float64)
            moved = own[name] + epsilon.view(-1, *[1] * (own[name].ndim - 1)) * (lent[name] - own[name])
            hook = (name, lambda x, hook, i=i, p=place, m=moved: exchanged(x, m, p.mask(pairs), cells[i].head))
            with model.hooks(fwd_hooks=[hook]):
                logits = model(pairs.corrupt)[torch.arange(len(pairs)), pairs.last]
            [slope] = torch.autograd.grad(pairs.effect(logits).sum(), epsilon)
            torch.testing.assert_close(found[n, i], slope, atol=ATOL, rtol=ATOL)
            ends = []
            for step in (STEP, -STEP):
                part = own[name] + step * (lent[name] - own[name])
                hook = (name, lambda x, hook, i=i, p=place, part=part: exchanged(x, part, p.mask(pairs), cells[i].head))
                ends.append(effects_under(model, pairs, pairs.corrupt, [hook]))
            torch.testing.assert_close(found[n, i], (ends[0] - ends[1]) / (2 * STEP), atol=1e-6, rtol=1e-6)


def test_atp_is_exact_where_what_follows_is_linear() -> None:
    """A model without MLPs, its last heads' z and the final norm's scale all but fixed: eps far above the stream."""
    model = small_model("janus-v3", eps=1e8).double()
    with torch.no_grad():
        for block in model.blocks:
            block.mlp.W_out.zero_()
    pairs, cells = pairs_for(model), cells_of(model.cfg, ["z"], [2])
    place = places_of(pairs, ["all"])
    exact = exchange(model, pairs, "denoise", cells, place)
    found = estimate(model, pairs, "denoise", cells, place, ["atp", "atp_ig"], n_steps=3)
    for method in ("atp", "atp_ig"):  # what is left of the norm is of order |stream|²/eps
        torch.testing.assert_close(found[method], exact, atol=0, rtol=1e-5)


def test_integrated_gradients_are_means_over_embeddings() -> None:
    model = small_model("kotodama").double()
    pairs, cells, n_steps = pairs_for(model), cells_of(model.cfg, ["z", "k"], [1]), 3
    places = places_of(pairs, ["all"])
    found = estimate(model, pairs, "denoise", cells, places, ["atp_ig"], n_steps=n_steps)["atp_ig"][0]
    names = {hook_of(c.site, 1) for c in cells}
    lent, own = cached(model, pairs.clean, names), cached(model, pairs.corrupt, names)
    ends = [model.embed(t).detach() for t in (pairs.corrupt, pairs.clean)]
    for i, cell in enumerate(cells):
        name, total = hook_of(cell.site, 1), 0.0
        moved = lent[name] - own[name]
        for k in range(1, n_steps + 1):
            between = ends[0] + (k - 0.5) / n_steps * (ends[1] - ends[0])
            two = []
            for step in (STEP, -STEP):
                change = lambda x, hook, s=step, d=moved, h=cell.head: exchanged(x, x + s * d, places[0].mask(pairs), h)  # noqa: E731
                hooks = [("hook_embed", lambda x, hook, b=between: b), (name, change)]
                two.append(effects_under(model, pairs, pairs.corrupt, hooks))
            total = total + (two[0] - two[1]) / (2 * STEP) / n_steps
        torch.testing.assert_close(found[i], total, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", ["janus-small", "kotodama", "normed-twice"])
def test_pattern_estimates_follow_the_softmax(kind) -> None:
    """The derivative along pattern + ε (patched pattern − pattern), the patched one read off a patched forward."""
    model = small_model(kind).double()
    pairs, cells = pairs_for(model), cells_of(model.cfg, ["q", "k", "z"], [1])
    places = places_of(pairs, ["all", "changed"])
    found = estimate(model, pairs, "denoise", cells, places, ["atp", "atp_qk"])["atp_qk"]
    pattern = "blocks.1.attn.hook_pattern"
    names = {hook_of(c.site, 1) for c in cells} | {pattern}
    lent, own = cached(model, pairs.clean, names), cached(model, pairs.corrupt, names)
    groups = model.cfg.n_heads // model.cfg.kv_heads
    for i, cell in enumerate(cells):
        if cell.site == "z":
            assert found[:, i].isnan().all()
            continue
        heads = [cell.head] if cell.site == "q" else list(range(cell.head * groups, (cell.head + 1) * groups))
        for n, place in enumerate(places):
            name, kept = hook_of(cell.site, 1), {}
            change = (name, lambda x, hook, p=place, c=cell, name=name: exchanged(x, lent[name], p.mask(pairs), c.head))
            effects_under(model, pairs, pairs.corrupt, [change, (pattern, lambda x, hook, k=kept: k.update(x=x))])
            moved = torch.zeros_like(own[pattern])
            moved[:, heads] = (kept["x"] - own[pattern])[:, heads]
            two = [
                effects_under(model, pairs, pairs.corrupt, [(pattern, lambda x, hook, s=s, d=moved: x + s * d)])
                for s in (STEP, -STEP)
            ]
            torch.testing.assert_close(found[n, i], (two[0] - two[1]) / (2 * STEP), atol=1e-6, rtol=1e-6)


# --- lens


@pytest.mark.parametrize("kind", sorted(ARCHITECTURES))
def test_the_lens_reads_each_layer_and_ends_at_the_logits(kind) -> None:
    model = small_model(kind).double()
    pairs, rows = pairs_for(model), torch.arange(3)
    cells, found = logit_lens(model, pairs, "clean")
    assert [(c.site, c.layer) for c in cells] == [
        ("resid_pre", 0),
        *(("resid_post", i) for i in range(model.cfg.n_layers)),
    ]
    with torch.no_grad():
        torch.testing.assert_close(found[-1], pairs.effect(model(pairs.clean)[rows, pairs.last]), atol=ATOL, rtol=ATOL)
        for i, layer in enumerate((0, 1, 2)):
            state = model(pairs.clean, stop_at_layer=layer, return_type=None)
            x = model.read_out(state)[rows, pairs.last]
            if model.cfg.normalization_type == "LN":
                x = x - x.mean(-1, keepdim=True)
            x = x / (x.square().mean(-1, keepdim=True) + model.cfg.eps).sqrt() * model.ln_final.gain
            x = x + model.ln_final.b if model.cfg.normalization_type == "LN" else x
            logits = x @ model.W_U + (0 if model.b_U is None else model.b_U)
            cap = model.cfg.output_logits_soft_cap
            logits = cap * torch.tanh(logits / cap) if cap > 0 else logits
            torch.testing.assert_close(found[i], pairs.effect(logits), atol=ATOL, rtol=ATOL)


# --- tables


def test_the_induction_circuit_is_found_by_exchanges_and_direct_attribution() -> None:
    model, pairs = induction_model(), swapped_pairs()
    found = attribute(model, pairs, ["dla", "lens", "atp", "exact"], top_k=1)
    table = found["attribution"]
    exact = table[table["method"] == "exact"].set_index(["layer", "head"])["recovery"]
    # all but what the circuit's own change of a norm's scale makes: 1.00 and 0.00 to two figures
    assert (exact.loc[[PREVIOUS, INDUCTION]] - 1).abs().max() < 0.02
    assert exact.drop([PREVIOUS, INDUCTION]).abs().max() < 0.02
    direct = table[(table["method"] == "dla") & (table["direction"] == "clean-corrupt")]
    direct = direct.set_index(["site", "layer", "head"])["recovery"]
    assert abs(direct.loc[("z", *INDUCTION)] - 1) < 0.02
    assert direct.drop(("z", *INDUCTION)).abs().max() < 0.02
    lens = table[(table["method"] == "lens") & (table["direction"] == "clean")].set_index("layer")["recovery"]
    assert lens.iloc[-1] == pytest.approx(1)
    assert lens.iloc[:2].abs().max() < 0.02
    # a saturated softmax has no gradient: the estimate misses the previous-token head, and the table says so
    assert found["attribution_agreement"].loc[0, "n_cells"] == 8


def capless(model, tokens):
    """Logits before any soft cap."""
    with torch.no_grad():
        final = model.ln_final(model.read_out(model(tokens, return_type=None)))
        return final @ model.W_U + (0 if model.b_U is None else model.b_U)


@pytest.mark.parametrize("kind", ["kotodama", "normed-twice", "attn-res"])
def test_direct_attribution_rows_add_up_and_are_means_with_intervals(kind) -> None:
    model = small_model(kind).double()
    pairs = pairs_for(model, n=12)
    table = attribute(model, pairs, ["dla"])["attribution"]
    rows = torch.arange(12)
    clean, corrupt = (capless(model, own)[rows, pairs.last] for own in (pairs.clean, pairs.corrupt))
    whole = {"clean": pairs.effect(clean), "clean-corrupt": pairs.effect(clean) - pairs.effect(corrupt)}
    for direction, own in table.groupby("direction"):
        assert own["effect"].sum() == pytest.approx(float(whole[str(direction)].mean()), abs=ATOL), direction
        assert own["gap"].iloc[0] == pytest.approx(float(whole[str(direction)].mean()), abs=ATOL)
        assert (own["effect_low"] <= own["effect"]).all()
        assert (own["effect"] <= own["effect_high"]).all()


def test_agreement_is_of_ranks_and_of_the_strongest() -> None:
    exact, of = [5.0, -4.0, 1.0, 0.5, 0.2, 0.1], [0.0, -4.0, 3.0, 2.0, 0.2, 0.1]
    rows = [("exact", "denoise", "z", 0, i, "all", v) for i, v in enumerate(exact)]
    rows += [("atp", "denoise", "z", 0, i, "all", v) for i, v in enumerate(of)]
    table = pd.DataFrame(rows, columns=["method", "direction", "site", "layer", "head", "position", "effect"])
    found = agreement(table, 1).iloc[0]
    a, b = (np.argsort(np.argsort(v)) for v in (exact, of))
    assert found["spearman"] == pytest.approx(float(np.corrcoef(a, b)[0, 1]))
    assert found["missed"] == 1.0  # the largest exact is the smallest estimate
    assert agreement(table, 2).iloc[0]["missed"] == 0.5
    assert np.isnan(agreement(table, 3).iloc[0]["missed"])  # six cells: none can be missed


# --- figures


def test_every_figure_draws_what_is_there_and_says_what_is_not() -> None:
    model = small_model("janus-v3")
    pairs = pairs_for(model, n=12)
    both = []
    for name in ("one", "two"):
        methods = ["dla", "lens", "atp", "exact"]
        both.append(attribute(model, pairs, methods, ["z", "mlp_out"], n_bootstrap=100, name=name)["attribution"])
    table = pd.concat(both, ignore_index=True)
    for draw in (draw_direct_attribution, draw_logit_lens, draw_exchanges, draw_estimates_and_exact_values):
        assert len(draw(table).data) >= 4
        assert "asked for" in str(draw(table[table["method"] == "none"]).layout.annotations) or draw not in (
            draw_direct_attribution, draw_logit_lens,
        )  # fmt: skip


# --- what is refused


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (
            "recurrent",
            {"methods": ["dla", "lens"]},
            "methods: got dla, which is of models whose parts .* recurrence; .* lens",
        ),
        ("attn-res-learned", {"methods": ["dla"]}, "methods: got dla, .* attention residuals of learned blocks"),
        ("janus-v3", {"methods": ["atp"], "metric": "kl"}, "methods: got atp, whose gradient of kl from the base is 0"),
        (
            "janus-v3",
            {"methods": ["dla"], "metric": "prob"},
            "methods: got dla, which is of a difference of two logits",
        ),
        ("post-normed", {"methods": ["atp_qk"], "site": ["q"]}, "methods: got atp_qk, which takes heads' scores"),
        ("janus-v3", {"methods": ["atp_qk"]}, "methods: got atp_qk with site z; expected q or k among them"),
        ("recurrent", {"methods": ["atp"]}, "methods: got atp, whose gradients stop where a pass's confidence"),
        (
            "parallel",
            {"methods": ["exact"], "site": ["resid_mid"]},
            "site: got resid_mid of .*, whose attention and MLP are parallel",
        ),
        (
            "attn-res",
            {"methods": ["exact"], "site": ["resid_post"]},
            "site: got resid_post of .*, where nothing reads it",
        ),
        ("janus-v3", {"site": ["neurons"]}, "site: got 'neurons'; expected some of resid_pre"),
        ("janus-v3", {"methods": ["magic"]}, "methods: got 'magic'; expected some of dla"),
        ("janus-v3", {"methods": "exact"}, "methods: got the string 'exact'; expected a list"),
        ("janus-v3", {"layers": [9]}, "layers: got 9; expected 0…2"),
        ("janus-v3", {"position": ["subject"]}, "position: got 'subject'; expected all, each, a number or one of end"),
        ("janus-v3", {"n_steps": 0}, "n_steps: got 0"),
        ("janus-v3", {"top_k": 0}, "top_k: got 0"),
        ("janus-v3", {"direction": []}, "direction: got ''; expected some of denoise"),
    ],
)
def test_what_is_no_attribution_is_refused_in_one_line(kind, options, message) -> None:
    model = small_model(kind)
    with pytest.raises(ValueError, match=message) as caught:
        attribute(model, pairs_for(model), **options)
    assert len(str(caught.value).splitlines()) == 1
