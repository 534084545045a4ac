"""Transcoders in the forward pass: what is read and what is replaced, by hand, on models of two libraries."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from models_for_tests import ARCHITECTURES, small_model, tokens_for, worded_model
from saes_for_tests import stack_for, transcoders_for

from sae import SAESource, StackedSAE
from workbench.analyses.atlas.features import atlas_features
from workbench.analyses.feature_effects.effects import feature_effects
from workbench.models import generate as generation
from workbench.models.activations import Slot, choose_slots
from workbench.models.attached import attached
from workbench.models.layers import KeyValueCache
from workbench.models.steering import measure_constants, steered

IN, OUT = "blocks.1.ln2.hook_normalized", "blocks.1.hook_mlp_out"
INPUTS = ("ln2.hook_normalized", "hook_mlp_in", "hook_resid_mid")


def double(kind="janus-v3", **changes):
    return small_model(kind, **changes).double()


def lens_model() -> Any:
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # said at every HookedTransformer
        cfg = HookedTransformerConfig(
            n_layers=2, d_model=32, n_ctx=16, d_head=8, n_heads=4, d_vocab=50, act_fn="relu", d_mlp=48, seed=0
        )
        return HookedTransformer(cfg).double()


@pytest.fixture(scope="module")
def model():
    return double()


@pytest.fixture(scope="module")
def tokens(model):
    return tokens_for(model)


def reconstruct(sae: StackedSAE, k: int, x: torch.Tensor, value: tuple[int, float] | None = None) -> torch.Tensor:
    """ŷ of every position by the formula, with a feature set where value says so."""
    w = {name: tensor[k] for name, tensor in sae.tensors.items()}
    pre = x @ w["W_enc"] + w["b_enc"]
    acts = torch.where(pre > w.get("threshold", torch.zeros(())), pre, 0).relu()
    if value is not None:
        acts[..., value[0]] = value[1]
    recon = acts @ w["W_dec"] + w["b_dec"]
    return recon + x @ w["W_skip"].T if "W_skip" in w else recon


def by_hand(model, tokens, sae, change, **run) -> torch.Tensor:
    """Logits with y of every layer but position 0 replaced by change(k, x, y), x being what the transcoder reads."""
    read: dict[int, torch.Tensor] = {}
    hooks = []
    for k, source in enumerate(sae.info.sources):

        def keep(x, hook, k=k):
            read[k] = x

        def put(y, hook, k=k):
            return torch.cat([y[:, :1], change(k, read[k], y)[:, 1:]], dim=1)

        hooks += [(source.hook_name, keep), (source.hook_name_out, put)]
    return model.run_with_hooks(tokens, fwd_hooks=hooks, **run)


# --- values


@pytest.mark.parametrize("hook", INPUTS)
@pytest.mark.parametrize("architecture", ["transcoder", "skip_transcoder"])
@pytest.mark.parametrize("library", ["ours", "TransformerLens"])
def test_what_is_named_is_read_and_the_output_replaced(library, architecture, hook) -> None:
    """In SAELens the encoder of a hook_mlp_in transcoder reads the MLP's output, and W_skip is lost."""
    model = double() if library == "ours" else lens_model()
    tokens = tokens_for(model, pos=10)
    layers = list(range(model.cfg.n_layers))
    sae = transcoders_for(model, layers, hook, architecture=architecture)
    shown = getattr(model.cfg, "use_hook_mlp_in", None)
    # a norm whose inside is watched is not fused, and rounds otherwise
    watched = [(f"blocks.{layer}.{hook}", lambda x, hook: None) for layer in layers if hook == INPUTS[0]]
    plain = model.run_with_hooks(tokens, fwd_hooks=watched)
    with torch.no_grad():
        with attached(model, sae, error=False) as inside:
            found = model(tokens)
            assert inside is model
        assert getattr(model.cfg, "use_hook_mlp_in", None) == shown
        streams = {"ln2.hook_normalized": None}.get(hook, "hook_resid_mid")  # of which hook_mlp_in is the copy
        named = sae if streams is None else transcoders_for(model, layers, streams, architecture=architecture)
        expected = by_hand(model, tokens, named, lambda k, x, y: reconstruct(sae, k, x))
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
        assert not torch.allclose(found, plain)
        with attached(model, sae, features={(1, -1, 5): 1.5}):
            found = model(tokens)

        def edited(k, x, y):
            return y + (reconstruct(sae, k, x, (5, 1.5)) - reconstruct(sae, k, x) if k == 1 else 0)

        torch.testing.assert_close(found, by_hand(model, tokens, named, edited), rtol=1e-10, atol=1e-10)
    with attached(model, sae):
        assert torch.equal(model(tokens), plain)
        with torch.no_grad():
            assert torch.equal(model(tokens), plain)
    assert not any(point.has_hooks() for point in model.hook_dict.values())
    assert not model._forward_pre_hooks


@pytest.mark.parametrize("kind", sorted(ARCHITECTURES))
def test_every_kind_of_model_is_read_and_written(kind) -> None:
    model = double(kind)
    tokens = tokens_for(model)
    sae = transcoders_for(model, list(range(model.cfg.n_layers)), activation="jumprelu")
    with torch.no_grad():
        expected = by_hand(model, tokens, sae, lambda k, x, y: reconstruct(sae, k, x))
        with attached(model, sae, error=False):
            torch.testing.assert_close(model(tokens), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("order", ["the SAE around", "the SAE within"])
def test_it_reads_what_an_earlier_sae_left(model, tokens, order) -> None:
    """Of the same forward: a stream changed ahead of the transcoder changes what it reads."""
    stream = stack_for(model, [Slot("blocks.1.hook_resid_pre", 1)])
    sae = transcoders_for(model, [1])
    contexts = [attached(model, stream, error=False), attached(model, sae, error=False)]
    first, second = contexts if order == "the SAE around" else contexts[::-1]

    def splice(x, hook):
        return torch.cat([x[:, :1], stream(x[:, 1:].flatten(0, 1))[1].view(x[:, 1:].shape)], dim=1)

    with torch.no_grad():
        with model.hooks(fwd_hooks=[("blocks.1.hook_resid_pre", splice)]):
            expected = by_hand(model, tokens, sae, lambda k, x, y: reconstruct(sae, k, x))
        with first, second:
            torch.testing.assert_close(model(tokens), expected, rtol=1e-10, atol=1e-10)


def test_one_transcoder_reads_what_another_wrote(model, tokens) -> None:
    """From hook_mlp_out of layer 0, which the first has replaced, into hook_mlp_out of layer 1."""
    sae = transcoders_for(model, [0, 1])
    first, second = sae.info.sources
    chained = second.model_copy(update={"hook_name": first.hook_name_out, "layer": 0})
    sae.info = sae.info.model_copy(update={"sources": (first, chained)})
    written = {}

    def change(k, x, y):
        written[k] = torch.cat([y[:, :1], reconstruct(sae, k, written.get(0, x) if k else x)[:, 1:]], dim=1)
        return written[k]

    with torch.no_grad():
        expected = by_hand(model, tokens, sae, change)
        with attached(model, sae, error=False):
            torch.testing.assert_close(model(tokens), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("error", [True, False])
@pytest.mark.parametrize("hook", INPUTS[:2])
def test_with_a_cache_and_from_a_layer_tokens_are_treated_alike(model, tokens, error, hook) -> None:
    sae = transcoders_for(model, [0, 1, 2], hook)
    with torch.no_grad(), attached(model, sae, error=error, features={(0, -1, 1): 2.0}):
        expected = model(tokens)
        cache = KeyValueCache(tokens.shape[1])
        parts = [model(part, past_kv_cache=cache) for part in tokens.split([3, 1, 5, 7], dim=1)]
        torch.testing.assert_close(torch.cat(parts, dim=1), expected, rtol=1e-10, atol=1e-10)
        again = model(model(tokens, stop_at_layer=1), start_at_layer=1, tokens=tokens)
        torch.testing.assert_close(again, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("use_cache", [True, False])
def test_generation_is_that_of_whole_forwards(use_cache) -> None:
    model = worded_model("kotodama", n_layers=2).double()
    tokens, sae = tokens_for(model, pos=5), transcoders_for(model, [1])
    with torch.no_grad(), attached(model, sae, error=False, features={(1, -1, 3): 4.0}):
        grown = generation.generate(model, tokens, 8, temperature=0, use_cache=use_cache)
        for n in range(5, 13):
            assert torch.equal(model(grown[:, :n])[:, -1].argmax(-1), grown[:, n])


def test_the_gradient_flows_to_what_is_read(model, tokens) -> None:
    """With the error kept: by hand, and none flows through the MLP itself."""
    sae = transcoders_for(model, [1])
    leaves = {}

    def as_leaf(name):
        def put(x, hook):
            leaves[name] = x.detach().requires_grad_()
            return leaves[name]

        return (name, put)

    with model.hooks(fwd_hooks=[as_leaf(IN)]), attached(model, sae):
        found = torch.autograd.grad(model(tokens, return_type="loss"), leaves[IN])[0]

    def with_error(k, x, y):
        recon = reconstruct(sae, k, x)
        return recon + (y - recon).detach()

    with model.hooks(fwd_hooks=[as_leaf(IN)]):
        loss = by_hand(model, tokens, sae, with_error, return_type="loss")
    expected = torch.autograd.grad(loss, leaves[IN])[0]
    torch.testing.assert_close(found[:, 1:], expected[:, 1:], rtol=1e-9, atol=1e-14)
    with model.hooks(fwd_hooks=[as_leaf(IN)]):
        through_mlp = torch.autograd.grad(model(tokens, return_type="loss"), leaves[IN])[0]
    assert not torch.allclose(found, through_mlp)


# --- features


@pytest.mark.parametrize("how", ["norm", "max_act", "clamp", "remove"])
@pytest.mark.parametrize("hook", INPUTS[:2])
@pytest.mark.parametrize("library", ["ours", "TransformerLens"])
def test_steering_pushes_the_output_along_the_row(library, hook, how) -> None:
    model = double() if library == "ours" else lens_model()
    tokens, sae = tokens_for(model, pos=10), transcoders_for(model, [1], hook)
    max_act, mean_norm = measure_constants(model, sae, (1, -1, 4), tokens)
    named = transcoders_for(model, [1], "hook_resid_mid") if hook == "hook_mlp_in" else sae
    row, seen = sae.W_dec[0, 4], {}
    unit = row / row.norm()

    def push(k, x, y):
        acts = (x @ sae.W_enc[0] + sae.b_enc[0]).relu()[..., 4]
        seen["acts"], seen["norms"] = acts[:, 1:], y[:, 1:].norm(dim=-1)
        return {
            "norm": y + 2 * mean_norm * unit,
            "max_act": y + 2 * max_act * row,
            "clamp": y + (2 * max_act - acts)[..., None] * row,
            "remove": y - (y @ unit)[..., None] * unit,
        }[how]

    with torch.no_grad():
        expected = by_hand(model, tokens, named, push)
        assert max_act == pytest.approx(float(seen["acts"].max()))
        assert mean_norm == pytest.approx(float(seen["norms"].mean()))
        with steered(model, sae, (1, -1, 4), how, 2.0, max_act=max_act, mean_norm=mean_norm):
            torch.testing.assert_close(model(tokens), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", ["zero", "mean"])
@pytest.mark.parametrize("hook", INPUTS[:2])
def test_effects_are_those_of_ablation_at_the_output(model, tokens, hook, kind) -> None:
    sae = transcoders_for(model, [0, 1], hook)
    table = feature_effects(model, sae, tokens, n_exact=4, kind=kind, n_bootstrap=100)
    base = float(model(tokens, return_type="loss").detach())
    exact = table[table["delta_loss"].notna()]
    assert len(exact) == 8
    for k, j, estimate, delta_loss in exact[["layer", "feature", "estimate", "delta_loss"]].to_numpy():
        k, j = int(k), int(j)
        source = f"blocks.{k}.{hook}".replace("hook_mlp_in", "hook_resid_mid")
        x = model.run_with_cache(tokens, names_filter=source, return_cache_object=False)[1][source]
        acts = (x @ sae.W_enc[k] + sae.b_enc[k]).relu()[..., j]
        value = 0.0 if kind == "zero" else acts[:, 1:].mean()
        change = (value - acts)[..., None] * sae.W_dec[k, j]
        change[:, 0] = 0
        point = f"blocks.{k}.hook_mlp_out"
        with torch.no_grad():
            loss = model.run_with_hooks(
                tokens, return_type="loss", fwd_hooks=[(point, lambda y, hook, c=change: y + c)]
            )  # fmt: skip
        assert delta_loss == pytest.approx(float(loss) - base, rel=1e-6, abs=1e-10)
        sides = []
        for step in (1e-4, -1e-4):
            put = (point, lambda y, hook, c=change, step=step: y + step * c)
            with torch.no_grad():
                sides.append(float(model.run_with_hooks(tokens, return_type="loss", fwd_hooks=[put])))
        assert estimate == pytest.approx((sides[0] - sides[1]) / 2e-4, rel=1e-4, abs=1e-9)


def test_the_atlas_promotes_what_is_written(model, tokens) -> None:
    sae = transcoders_for(model, [1])
    as_sae = stack_for(model, [Slot(OUT, 1)], d_sae=24)
    as_sae.W_dec.copy_(sae.W_dec)
    found, expected = (atlas_features(model, own, tokens) for own in (sae, as_sae))
    for column in ("logit_promoted", "logit_suppressed"):
        assert list(found[column]) == list(expected[column])
        assert found[column].str.len().min() > 2


# --- what is refused


def test_bad_places_are_refused(model, tokens) -> None:
    good = transcoders_for(model, [0, 1])

    def sources(sae, *given):
        info = sae.info.model_copy(update={"sources": given})
        return StackedSAE.from_tensors(sae.config, sae.state_dict(), info)

    one = good.select(1)
    of = lambda name, out, **more: SAESource(hook_name=name, hook_name_out=out, layer=1, **more)  # noqa: E731
    plain = stack_for(model, choose_slots(model.cfg, [1], [0]))
    cases: Any = (
        (sources(one, of("blocks.1.hook_mlpin", OUT)), {}, "hook 'blocks.1.hook_mlpin' does not exist; nearest:"),
        (sources(one, of(IN, "blocks.1.hook_mlpout")), {}, "hook 'blocks.1.hook_mlpout' does not exist; nearest:"),
        (sources(good, of(IN, OUT), of("blocks.0.ln2.hook_normalized", OUT)), {},
         f"SAEs: got 2 for {OUT}; expected one (StackedSAE.select"),
        (sources(one, SAESource(hook_name=IN, layer=1)), {},
         f"SAEs: got no hook_name_out for a skip_transcoder of {IN}; expected one"),
        (sources(plain, of("blocks.1.attn.hook_z", OUT, head=0)), {},
         f"SAEs: got hook_name_out {OUT} for a relu of blocks.1.attn.hook_z, head 0; expected none"),
        (sources(one, of("blocks.1.attn.hook_z", OUT, head=0)), {},
         "SAEs: got a skip_transcoder of blocks.1.attn.hook_z, head 0; expected one of a whole hook"),
        (sources(one, of(IN, "blocks.1.mlp.hook_post")), {"error": False},
         "SAEs: blocks.1.mlp.hook_post is 86 wide; expected 32, what they reconstruct"),
        (sources(one, of("blocks.1.mlp.hook_post", OUT)), {"error": False},
         "SAEs: blocks.1.mlp.hook_post is 86 wide; expected 32, what they read"),
        (transcoders_for(model, [1], d_out=8), {}, f"SAEs: got one that writes 8 numbers of {OUT}; expected 32"),
        (sources(one, of(OUT, IN)), {"error": False},
         f"attached: {IN} is passed without {OUT}, which its transcoder reads; expected a forward"),
        (good, {"features": {(1, 0, 1): 0.0}}, "features: got 1.0.1; expected LAYER.HEAD.FEATURE of the stack"),
    )  # fmt: skip
    for sae, options, message in cases:
        with pytest.raises(ValueError) as caught, attached(model, sae, **options), torch.no_grad():  # noqa: PT011
            model(tokens)
        assert str(caught.value).startswith(message)
        assert len(str(caught.value).splitlines()) == 1
    assert not model.list_hooks()
    assert not model._forward_pre_hooks


def test_a_forward_that_begins_behind_what_is_read_is_refused(model, tokens) -> None:
    """Also where an earlier forward stopped in between: what it read is not of this one."""
    sae = transcoders_for(model, [0])
    across = sae.info.sources[0].model_copy(update={"hook_name_out": OUT})
    sae.info = sae.info.model_copy(update={"sources": (across,)})
    with torch.no_grad(), attached(model, sae, error=False):
        state = model(tokens, stop_at_layer=1)
        with pytest.raises(
            ValueError, match="attached: blocks.1.hook_mlp_out is passed without blocks.0.ln2.hook_norm"
        ):
            model(state, start_at_layer=1, tokens=tokens)
        assert model(tokens).isfinite().all()
