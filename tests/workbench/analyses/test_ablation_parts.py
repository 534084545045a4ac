"""Whole layers, MLPs and pairs of heads against hooks in whole forwards; linear estimates against finite differences;
narrower dtypes."""

from __future__ import annotations

import copy

import numpy as np
import pandas as pd
import pytest
import torch
from models_for_tests import ARCHITECTURES, small_model, tokens_for

from workbench.analyses.ablate import ablation
from workbench.analyses.ablate import engine as ablation_engine
from workbench.analyses.ablate import losses as ablation_losses
from workbench.analyses.ablate import pairs as ablation_pairs
from workbench.analyses.ablate.ablation import ablate, iterate_ablation, stand_ins
from workbench.analyses.ablate.pairs import ablate_pairs, iterate_pairs, join_pairs, pairs_within_layers
from workbench.analyses.ablate.precision import N_CHECKED
from workbench.analyses.ablate.records import Part, join
from workbench.models.transformer_lens import to_hooked_transformer

pytestmark = pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated:DeprecationWarning")
KINDS = sorted(ARCHITECTURES)
WAYS = ["zero", "mean", "resample"]


def whole_forward(model, tokens, hooks):
    """(losses, KL from the clean prediction) of each sequence, everything spelled out."""
    with torch.no_grad():
        clean, log_p = (
            torch.log_softmax(model.run_with_hooks(tokens, fwd_hooks=own)[:, :-1].double(), -1) for own in ([], hooks)
        )
    losses = -log_p.gather(-1, tokens[:, 1:, None]).squeeze(-1).mean(1)
    return losses, (clean.exp() * (clean - log_p)).sum(-1).mean(1)


def activations(model, tokens, kind, seed, n_resamples=1):
    """What takes the place of every z and MLP output, by hook name, one mapping a resample."""
    names = [f"blocks.{y}.{n}" for y in range(model.cfg.n_layers) for n in ("attn.hook_z", "hook_mlp_out")]
    _, cache = model.run_with_cache(tokens, names_filter=names)
    if kind == "zero":
        return [{name: torch.zeros_like(cache[name]) for name in names}]
    if kind == "mean":
        return [{name: cache[name].mean((0, 1)).expand_as(cache[name]) for name in names}]
    donors = ablation.draw_donors(len(tokens), n_resamples, seed)
    return [{name: cache[name][of_step] for name in names} for of_step in donors]


def hook_of(part, stand_in):
    """A hook that puts a head's z, a layer's z or an MLP's output from `stand_in` in its place."""

    def replace(tensor, hook):
        changed = tensor.clone()
        if part.component == "head":
            changed[:, :, part.head] = stand_in[part.hook][:, :, part.head]
        else:
            changed[:] = stand_in[part.hook]
        return changed

    return part.hook, replace


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", WAYS)
def test_layers_and_mlps_equal_whole_forwards(kind, way):
    model, tokens = small_model(kind).double(), tokens_for(small_model(kind), 5)
    options = {"kind": way, "seed": 1, "n_resamples": 2, "has_estimate": False, "components": ("layer", "mlp", "head")}
    losses = join(list(iterate_ablation(model, tokens, None, [1], **options)))
    ways = activations(model, tokens, way, 1, 2)
    names = ["head", "layer", "mlp"] * model.cfg.n_layers
    assert [part.component for part in losses.parts] == names, "heads first, whatever the order asked for"
    for row, part in enumerate(losses.parts):
        runs = [whole_forward(model, tokens, [hook_of(part, stand_in)]) for stand_in in ways]
        loss, kl = (torch.stack(values).mean(0) for values in zip(*runs, strict=True))
        # float64: only the order of additions differs
        torch.testing.assert_close(losses.ablated[row], loss, atol=1e-11, rtol=0)
        torch.testing.assert_close(losses.kl[row], kl, atol=1e-11, rtol=0)
    assert losses.estimate.isnan().all()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "recurrent"])
@pytest.mark.parametrize("way", WAYS)
def test_estimates_are_slopes(kind, way):
    # a recurrent model stops gradients on purpose: there the estimate is what its backward pass says
    model, tokens = small_model(kind).double(), tokens_for(small_model(kind), 4)
    options = {"kind": way, "seed": 2, "components": ("head", "layer", "mlp")}
    losses = join(list(iterate_ablation(model, tokens, [0, 2], [0, 3], **options)))
    stand_in = activations(model, tokens, way, 2)[0]
    for row, part in enumerate(losses.parts):

        def at(step, part=part):
            name, replace = hook_of(part, stand_in)
            hook = (name, lambda tensor, hook: tensor + step * (replace(tensor, hook) - tensor))
            return whole_forward(model, tokens, [hook])[0]

        slope = (at(1e-5) - at(-1e-5)) / 2e-5
        torch.testing.assert_close(losses.estimate[row], slope, atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_estimates_of_every_architecture_are_those_of_one_backward_pass(kind):
    from workbench.analyses.ablate.generic import ablate_batch_generic, plan_generic

    model, tokens = small_model(kind).double(), tokens_for(small_model(kind), 3)
    found = join(list(iterate_ablation(model, tokens, components=("head", "layer", "mlp"))))
    sizes = plan_generic(model.cfg, tokens.shape[1], model.cfg.n_layers, 6, 1 << 30)
    with torch.no_grad():
        replacements = stand_ins(model, tokens, found.parts, "zero", 0, 1, 3)(slice(0, 3))
        whole = ablate_batch_generic(model, tokens, found.parts, replacements, sizes, True, lambda n: None)
    torch.testing.assert_close(found.estimate, whole.estimate, atol=1e-12, rtol=1e-9)
    torch.testing.assert_close(found.ablated, whole.ablated, atol=1e-11, rtol=0)


def test_the_parts_of_a_transformer_lens_model_give_the_same_table():
    model, tokens = small_model("janus-small"), tokens_for(small_model("janus-small"), 4)
    options = {"components": ("head", "layer", "mlp"), "kind": "mean", "n_bootstrap": 200}
    ours, theirs = (ablate(subject, tokens, **options) for subject in (model, to_hooked_transformer(model)))
    assert list(ours["component"]) == list(theirs["component"])
    for column in ("ablated_loss", "impact_pct", "ci_low", "ci_high", "kl", "estimate_pct"):
        # two implementations in float32; impacts are up to tens of per cent
        np.testing.assert_allclose(ours[column], theirs[column], atol=2e-4, err_msg=column)


# --- pairs


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", WAYS)
def test_pairs_equal_whole_forwards(kind, way):
    model, tokens = small_model(kind).double(), tokens_for(small_model(kind), 4)
    last = model.cfg.n_layers - 1
    pairs = [((0, 1), (0, 3)), ((last, 2), (0, 1)), ((1, 0), (2, 2)), ((0, 1), (1, 0)), ((last, 0), (last, 3))]
    options = {"kind": way, "seed": 3, "n_resamples": 2}
    losses = join_pairs(list(iterate_pairs(model, tokens, pairs, **options)))
    assert [((a, b), (c, d)) for a, b, c, d in losses.pairs.tolist()] == sorted(min(p, p[::-1]) for p in pairs)
    ways = activations(model, tokens, way, 3, 2)
    torch.testing.assert_close(losses.base, whole_forward(model, tokens, [])[0], atol=1e-11, rtol=0)
    for row, (a, b, c, d) in enumerate(losses.pairs.tolist()):
        first, second = Part(a, "head", b), Part(c, "head", d)
        for of, heads in ((losses.first, [first]), (losses.second, [second]), (losses.both, [first, second])):
            runs = [whole_forward(model, tokens, [hook_of(part, own) for part in heads]) for own in ways]
            loss, kl = (torch.stack(values).mean(0) for values in zip(*runs, strict=True))
            torch.testing.assert_close(of[row], loss, atol=1e-11, rtol=0)
        torch.testing.assert_close(losses.kl[row], kl, atol=1e-11, rtol=0)


def test_the_interaction_is_what_the_pair_adds():
    model, tokens = small_model("kotodama"), tokens_for(small_model("kotodama"), 6)
    with torch.no_grad():
        model.blocks[0].attn.W_O[2] = 0  # a head that writes nothing
    table = ablate_pairs(model, tokens, seed=4, name="a")
    sums = table["joint_pct"] - table["impact_a_pct"] - table["impact_b_pct"]
    np.testing.assert_allclose(table["interaction_pct"], sums, atol=1e-9)
    assert len(table) == 3 * 6
    with_idle = (table["layer_a"] == 0) & ((table["head_a"] == 2) | (table["head_b"] == 2))
    assert with_idle.sum() == 3
    assert (table[with_idle]["interaction_pct"].abs() < 1e-4).all()
    assert (table[~with_idle]["interaction_pct"].abs() > 1e-3).all(), "the others do interact"
    assert (table["ci_low"] <= table["interaction_pct"]).all()
    assert (table["interaction_pct"] <= table["ci_high"]).all()
    singles = ablate(model, tokens, seed=4).set_index(["layer", "head"])["impact_pct"]
    for end in ("a", "b"):
        keys = list(zip(table[f"layer_{end}"], table[f"head_{end}"], strict=True))
        np.testing.assert_allclose(table[f"impact_{end}_pct"], singles.loc[keys], atol=1e-4)


def test_pairs_of_a_transformer_lens_model_and_any_cut_give_the_same_table(monkeypatch):
    model, tokens = small_model("janus-v3").double(), tokens_for(small_model("janus-v3"), 5)
    pairs = pairs_within_layers(model, [0], [0, 1, 3]) + [((0, 0), (2, 1))]
    whole = ablate_pairs(model, tokens, pairs, n_bootstrap=100)
    theirs = ablate_pairs(to_hooked_transformer(model.float()), tokens, pairs, n_bootstrap=100, name="custom")
    cut = ablation_engine.Sizes(batch_size=2, n_together=2, logits_held=61 * 7)
    monkeypatch.setattr(ablation_pairs, "plan_sizes", lambda *args, **options: cut)
    parts = ablate_pairs(model.double(), tokens, pairs, n_bootstrap=100)
    pd.testing.assert_frame_equal(parts, whole, rtol=1e-9)
    numbers = [column for column in whole if column not in ("model", "kind")]
    np.testing.assert_allclose(theirs[numbers], whole[numbers], atol=2e-4)


# --- rounding


@pytest.mark.parametrize("kind", ["janus-v3", "kotodama", "janus-small"])
@pytest.mark.parametrize("large", [0.0, 0.02, 1e9])
def test_rounded_changes_of_logits_leave_the_impacts(kind, large, monkeypatch):
    """Errors of first order would be 2⁻⁹ of the change of the loss at a position; those that are left, of its KL."""
    if not hasattr(getattr(torch.backends.mkldnn, "matmul", None), "fp32_precision"):
        pytest.skip("this torch has no setting for rounded products")
    tokens = tokens_for(small_model(kind), 8, 24)
    wide = ablate(small_model(kind).double(), tokens, n_bootstrap=100)
    monkeypatch.setattr(ablation_losses, "rounds_faster", lambda W: True)
    monkeypatch.setattr(ablation_losses, "LARGE_KL", large)
    found = ablate(small_model(kind), tokens, n_bootstrap=100)
    # the KL of these heads is up to some nats: where all are rounded, 2⁻⁹ of it; averaged over no more than 184
    # predictions among 61 tokens, of which one often has nearly all the probability
    tolerance = {0.0: 1e-4, 0.02: 3e-4, 1e9: 2e-2}[large]
    np.testing.assert_allclose(found["impact_pct"], wide["impact_pct"], atol=tolerance)
    np.testing.assert_allclose(found["kl"], wide["kl"], rtol=2**-8, atol=1e-6)


def test_rounding_leaves_the_setting_of_products_alone(monkeypatch):
    setting = getattr(torch.backends.mkldnn, "matmul", None)
    if not hasattr(setting, "fp32_precision"):
        pytest.skip("this torch has no setting for rounded products")
    monkeypatch.setattr(ablation_losses, "rounds_faster", lambda W: True)
    before = setting.fp32_precision, torch.get_float32_matmul_precision()
    ablate(small_model("kotodama"), tokens_for(small_model("kotodama"), 2), layers=[0])
    assert (setting.fp32_precision, torch.get_float32_matmul_precision()) == before


@pytest.mark.parametrize("size", [1e-1, 1e-2, 1e-3])
def test_rounding_costs_a_share_of_the_kl_however_small_the_change(size, monkeypatch):
    model, tokens = small_model("kotodama").double(), tokens_for(small_model("kotodama"), 8, 24)
    monkeypatch.setattr(ablation_losses, "rounds_faster", lambda W: True)
    monkeypatch.setattr(ablation_losses, "_products_of_rounded_numbers", torch.no_grad)
    final = model(tokens, return_type=None)
    with torch.no_grad():
        clean = ablation_losses.reference(model, final, tokens, 1 << 12)
        change = size * torch.randn(3, *clean.x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        found = ablation_losses.compare(model, clean.x + change, clean, 1 << 12)
        assert clean.linear is not None
        log_p, log_q = (torch.log_softmax(x @ model.W_U, -1) for x in (clean.x, clean.x + change))
    kl = (log_p.exp() * (log_p - log_q)).sum(-1)
    assert float(((found[1] - kl).abs() / kl).max()) < 2**-6
    assert float((found[1] - kl).sum() / kl.sum()) == pytest.approx(0, abs=2**-10)
    loss = -log_q.gather(-1, clean.targets.expand(3, -1)[..., None]).squeeze(-1)
    torch.testing.assert_close(found[0], loss, atol=2**-6 * float(kl.max()), rtol=0)


def test_a_narrow_dtype_comes_with_its_error():
    model, tokens = small_model("janus-v3"), tokens_for(small_model("janus-v3"), 12, 20)
    wide, narrow = (ablate(model, tokens, dtype=dtype, n_bootstrap=100) for dtype in (None, "bfloat16"))
    assert set(wide["dtype"]) == {"float32"}
    assert wide["error_pct"].isna().all()
    assert set(narrow["dtype"]) == {"bfloat16"}
    runs = [join(list(iterate_ablation(subject, tokens))) for subject in (model, copy.deepcopy(model).bfloat16())]
    assert len(tokens) > N_CHECKED, "these fit into a batch, and a batch is compared whole"
    bases, ablated = zip(*((run.base.mean(), run.ablated.mean(1)) for run in runs), strict=True)
    impacts = [100 * (with_part / base - 1) for base, with_part in zip(bases, ablated, strict=True)]
    np.testing.assert_allclose(narrow["error_pct"], (impacts[0] - impacts[1]).abs(), atol=1e-9)
    assert (narrow["error_pct"] > 1e-4).any(), "it is not exact"
    assert (narrow["error_pct"] < 2).all()
    half = small_model("janus-v3").bfloat16()
    pd.testing.assert_frame_equal(ablate(half, tokens), ablate(small_model("janus-v3").bfloat16().float(), tokens))
    assert half.cfg.dtype == torch.bfloat16, "the model given stays as it is"


# --- bad input

GOOD = torch.zeros(3, 8, dtype=torch.long)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"components": ()}, r"components: got \(\); expected some of head, layer, mlp"),
        ({"components": "head"}, r"components: got 'head'"),
        ({"components": ["heads"]}, r"components: got \['heads'\]"),
        ({"dtype": "int8"}, r"dtype: got 'int8'; expected one of"),
    ],
)
def test_bad_parts_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ablate(small_model("janus-v3"), GOOD, **arguments)


def test_a_model_without_mlps_has_none_to_ablate():
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    shape = {"n_layers": 2, "d_model": 16, "n_ctx": 8, "d_head": 8, "n_heads": 2, "d_vocab": 11, "seed": 0}
    model = HookedTransformer(HookedTransformerConfig(**shape, attn_only=True))
    assert len(ablate(model, GOOD, components=["head", "layer"])) == 6
    with pytest.raises(ValueError, match="components: got 'mlp' for a model of attention alone"):
        ablate(model, GOOD, components=["head", "mlp"])


def test_a_transformer_lens_model_takes_no_dtype():
    with pytest.raises(ValueError, match="dtype: got 'bfloat16' for a HookedTransformer; expected none, or a HookedLM"):
        ablate(to_hooked_transformer(small_model("janus-v3")), GOOD, dtype="bfloat16")


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pairs": []}, "pairs: got none"),
        ({"pairs": [((0, 1), (0, 1))]}, "pairs: got head 0.1 with itself; expected two heads"),
        ({"pairs": [((0, 1), (0, 2)), ((0, 2), (0, 1))]}, "pairs: got one twice"),
        ({"pairs": [((0, 1), (3, 2))]}, "pairs: got head 3.2; expected 0…2.0…3"),
        ({"pairs": [((0, 1), (1, 4))]}, "pairs: got head 1.4"),
        ({"kind": "median"}, "kind: got 'median'"),
        ({"kind": "resample", "n_resamples": 3}, "n_resamples: got 3 with 3 sequences"),
        ({"memory_budget_bytes": 1000}, "memory_budget_bytes: got 1000"),
        ({"n_bootstrap": 10}, "n_bootstrap: got 10"),
        ({"tokens": GOOD[:, :1]}, "windows of 1 tokens"),
    ],
)
@pytest.mark.parametrize("is_ours", [True, False])
def test_bad_pairs_are_refused(arguments, message, is_ours):
    model = small_model("janus-v3")
    model = model if is_ours else to_hooked_transformer(model)
    with pytest.raises(ValueError, match=message):
        ablate_pairs(model, **{"tokens": GOOD} | arguments)


def test_the_least_budget_that_is_named_is_enough():
    model, tokens = small_model("janus-v3"), tokens_for(small_model("janus-v3"), 3)
    whole = ablate(model, tokens)
    with pytest.raises(ValueError, match="expected at least") as refused:
        ablate(model, tokens, memory_budget_bytes=1)
    least = int(str(refused.value).split("at least ")[1].split()[0])
    found = ablate(model, tokens, memory_budget_bytes=least)
    np.testing.assert_allclose(found["impact_pct"], whole["impact_pct"], atol=1e-4)
    with pytest.raises(ValueError, match=f"got {least - 1}; expected at least {least}"):
        ablate(model, tokens, memory_budget_bytes=least - 1)
