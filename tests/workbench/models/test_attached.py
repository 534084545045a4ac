"""SAEs in the forward pass: values and gradients against plain formulas, what is passed by, what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models_for_tests import ARCHITECTURES, small_model, tokens_for, worded_model
from saes_for_tests import stack_for

import workbench
from sae import SAEConfig, SAESource, StackedSAE, StackInfo
from workbench.models import generate as generation
from workbench.models.activations import Positions, Slot, choose_slots, special_ids
from workbench.models.attached import attached
from workbench.models.layers import KeyValueCache

Z1 = "blocks.1.attn.hook_z"


def double(kind="janus-v3", **changes):
    return small_model(kind, **changes).double()


@pytest.fixture(scope="module")
def model():
    return double()


@pytest.fixture(scope="module")
def tokens(model):
    return tokens_for(model)


def by_hand(model, tokens, edits) -> torch.Tensor:
    """Logits with hooks that replace whole activations."""
    return model.run_with_hooks(tokens, fwd_hooks=[(name, lambda x, hook, f=f: f(x)) for name, f in edits.items()])


def spliced(sae, layers, n_heads):
    """Functions of z, by hook, that put every head's reconstruction in its place behind position 0."""

    def of(layer):
        def splice(z):
            out = z.clone()
            for head in range(n_heads):
                own = sae.select(layers.index(layer) * n_heads + head)
                rows = z[:, 1:, head].reshape(-1, z.shape[-1])
                out[:, 1:, head] = own.decode(own.encode(rows)).view(z[:, 1:, head].shape)
            return out

        return splice

    return {f"blocks.{layer}.attn.hook_z": of(layer) for layer in layers}


# --- values


@pytest.mark.parametrize("kind", sorted(ARCHITECTURES))
def test_with_the_error_nothing_changes_and_without_it_the_reconstructions_stand(kind) -> None:
    model = double(kind)
    tokens, slots = tokens_for(model), choose_slots(model.cfg)
    sae = stack_for(model, slots)
    plain = model(tokens)
    with attached(model, sae):
        assert torch.equal(model(tokens), plain)
        with torch.no_grad():
            assert torch.equal(model(tokens), plain)
    with torch.no_grad():
        expected = by_hand(model, tokens, spliced(sae, list(range(model.cfg.n_layers)), model.cfg.n_heads))
        with attached(model, sae, error=False) as inside:
            assert inside is model
            torch.testing.assert_close(model(tokens), expected, rtol=1e-10, atol=1e-10)
    assert not torch.allclose(expected, plain)


@pytest.mark.parametrize("hook", ["hook_resid_pre", "hook_mlp_out", "z_concat", "mlp.hook_post"])
def test_hooks_that_are_read_whole(model, tokens, hook) -> None:
    slots = choose_slots(model.cfg, [1], hook=hook)
    x = model.run_with_cache(tokens, names_filter=slots[0].hook_name, return_cache_object=False)[1][slots[0].hook_name]
    sources = (SAESource(hook_name=slots[0].hook_name, layer=1),)
    config = SAEConfig(n_saes=1, d_in=x.flatten(2).shape[-1], d_sae=9, decoder_init_norm=1.0)
    sae = StackedSAE(config, torch.Generator().manual_seed(0), info=StackInfo(sources=sources), dtype=torch.float64)

    def splice(own):
        flat = own.flatten(2)
        recon = sae(flat[:, 1:].flatten(0, 1))[1].view(flat[:, 1:].shape)
        return torch.cat([flat[:, :1], recon], dim=1).view(own.shape)

    with torch.no_grad():
        expected = by_hand(model, tokens, {slots[0].hook_name: splice})
        with attached(model, sae, error=False):
            torch.testing.assert_close(model(tokens), expected, rtol=1e-10, atol=1e-10)


def test_special_tokens_and_position_0_are_passed_by() -> None:
    model = worded_model("janus-v3", n_layers=2).double()
    special = sorted(special_ids(model))
    tokens = tokens_for(model)
    tokens[0, 5] = tokens[1, 0] = special[0]
    sae = stack_for(model, choose_slots(model.cfg, [0], [2]))
    seen = {}

    def note(acts, slot):
        seen[slot] = acts

    with torch.no_grad(), attached(model, sae, error=False, edit=note):
        _, cache = model.run_with_cache(tokens, names_filter="blocks.0.attn.hook_z", return_cache_object=False)
    z = model.run_with_cache(tokens, names_filter="blocks.0.attn.hook_z", return_cache_object=False)[1]
    same = (cache["blocks.0.attn.hook_z"] == z["blocks.0.attn.hook_z"]).all(-1)
    is_counted = Positions(frozenset(special)).of(tokens)
    assert not is_counted[0, 5]
    assert torch.equal(same[:, :, 2], ~is_counted)
    assert bool(same[:, :, [0, 1, 3]].all())
    assert not bool(seen[Slot("blocks.0.attn.hook_z", 0, 2)][~is_counted].any())
    for sae_knows, told, expected in ((True, None, False), (None, True, False), (True, False, True)):
        own = stack_for(model, choose_slots(model.cfg, [0], [2]), include_special=sae_knows)
        with torch.no_grad(), attached(model, own, error=False, include_special=told):
            found = model.run_with_cache(tokens, names_filter="blocks.0.attn.hook_z", return_cache_object=False)[1]
        is_kept = (found["blocks.0.attn.hook_z"] == z["blocks.0.attn.hook_z"])[0, 0, 2].all()
        assert bool(is_kept) is expected


def test_features_are_set_with_the_error_kept(model, tokens) -> None:
    slots = choose_slots(model.cfg, [1, 2])
    sae = stack_for(model, slots)
    k = slots.index(Slot(Z1, 1, 3))
    for value in (0.0, 1.7):

        def move(z, value=value):
            out = z.clone()
            acts = sae.select(k).encode(z[:, 1:, 3].flatten(0, 1))[:, 5].view(z[:, 1:, 3, 0].shape)
            out[:, 1:, 3] -= (acts - value)[..., None] * sae.W_dec[k, 5]
            return out

        with torch.no_grad():
            expected = by_hand(model, tokens, {Z1: move})
            with attached(model, sae, features={(1, 3, 5): value}):
                torch.testing.assert_close(model(tokens), expected, rtol=1e-10, atol=1e-10)
            edit = lambda acts, slot, value=value: (  # noqa: E731
                acts.index_fill(-1, torch.tensor([5]), value) if slot == Slot(Z1, 1, 3) else None
            )
            with attached(model, sae, edit=edit):
                torch.testing.assert_close(model(tokens), expected, rtol=1e-10, atol=1e-10)


def test_contexts_nest(model, tokens) -> None:
    whole = stack_for(model, choose_slots(model.cfg, [0, 1]))
    first, second = whole.select([0, 1, 2, 3]), whole.select([4, 5, 6, 7])
    with torch.no_grad():
        with attached(model, whole, error=False):
            expected = model(tokens)
        with attached(model, first, error=False), attached(model, second, error=False):
            assert torch.equal(model(tokens), expected)


@pytest.mark.parametrize("error", [True, False])
def test_with_a_cache_and_from_a_layer_tokens_are_treated_alike(model, tokens, error) -> None:
    sae = stack_for(model, choose_slots(model.cfg))
    with torch.no_grad(), attached(model, sae, error=error, features={(0, 0, 1): 2.0}):
        expected = model(tokens)
        cache = KeyValueCache(tokens.shape[1])
        parts = [model(part, past_kv_cache=cache) for part in tokens.split([3, 1, 5, 7], dim=1)]
        torch.testing.assert_close(torch.cat(parts, dim=1), expected, rtol=1e-10, atol=1e-10)
        state = model(tokens, stop_at_layer=1)
        again = model(state, start_at_layer=1, tokens=tokens)
        torch.testing.assert_close(again, expected, rtol=1e-10, atol=1e-10)
        hooked = model.run_with_hooks(tokens, fwd_hooks=[("hook_embed", lambda x, hook: None)])
        assert torch.equal(hooked, expected)
        padded = torch.cat([tokens[:, :3], tokens], dim=1)
        mask = torch.ones_like(padded)
        mask[:, :3] = 0
        left = model(padded, attention_mask=mask)[:, 3:]
        torch.testing.assert_close(left, expected, rtol=1e-9, atol=1e-9)
        with pytest.raises(ValueError, match="of their tokens none are known; expected tokens="):
            model(state, start_at_layer=1)


@pytest.mark.parametrize("use_cache", [True, False])
def test_generation_is_that_of_whole_forwards(use_cache) -> None:
    model = worded_model("kotodama", n_layers=2).double()
    tokens = tokens_for(model, pos=5)
    sae = stack_for(model, choose_slots(model.cfg, [1]))
    with torch.no_grad(), attached(model, sae, error=False, features={(1, 2, 3): 4.0}):
        grown = generation.generate(model, tokens, 8, temperature=0, use_cache=use_cache)
        for n in range(5, 13):
            assert torch.equal(model(grown[:, :n])[:, -1].argmax(-1), grown[:, n])
    assert not torch.equal(grown, generation.generate(model, tokens, 8, temperature=0))


# --- gradients


def test_the_gradient_flows_through_the_features(model, tokens) -> None:
    """With the error kept, d loss/d x is that by x̂ times d x̂/d x, by hand and by finite differences of x̂ + e."""
    sae = stack_for(model, choose_slots(model.cfg, [1], [2]))
    z = model.run_with_cache(tokens, names_filter=Z1, return_cache_object=False)[1][Z1]

    def loss_of(own, put):
        return model.run_with_hooks(tokens, return_type="loss", fwd_hooks=[(Z1, lambda x, hook: put(own))])

    leaf = z.clone().requires_grad_()
    own = leaf * 1.0
    rows = own[:, 1:, 2].flatten(0, 1)
    recon = sae.decode(sae.encode(rows)).view(own[:, 1:, 2].shape)
    spliced = own.clone()
    spliced[:, 1:, 2] = recon + (own[:, 1:, 2] - recon).detach()
    expected = torch.autograd.grad(loss_of(spliced, lambda x: x), leaf)[0]

    held = z.clone().requires_grad_()
    with model.hooks(fwd_hooks=[(Z1, lambda x, hook: held)]), attached(model, sae):
        loss = model(tokens, return_type="loss")
    found = torch.autograd.grad(loss, held)[0]
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)
    assert not torch.allclose(found, torch.autograd.grad(loss_of(held, lambda x: x), held)[0])
    error = (z[:, 1:, 2] - sae(z[:, 1:, 2].flatten(0, 1))[1].view(z[:, 1:, 2].shape)).detach()
    direction = torch.randn(z.shape, dtype=z.dtype, generator=torch.Generator().manual_seed(3))

    def value_at(step):
        own = z + step * direction
        own[:, 1:, 2] = sae(own[:, 1:, 2].flatten(0, 1))[1].view(error.shape) + error
        return float(loss_of(own, lambda x: x).detach())

    slope = (value_at(1e-6) - value_at(-1e-6)) / 2e-6
    assert slope == pytest.approx(float((found * direction).sum()), rel=1e-6)


# --- what is left behind, and what is refused


def test_hooks_go_also_by_an_exception(model, tokens) -> None:
    sae = stack_for(model, choose_slots(model.cfg))
    plain = model(tokens)

    def fails(acts, slot):
        raise RuntimeError("in an edit")

    with pytest.raises(RuntimeError, match="in an edit"), attached(model, sae, edit=fails):
        model(tokens)
    assert not model.list_hooks()
    assert not model._forward_pre_hooks
    assert not model.embed._forward_pre_hooks
    assert torch.equal(model(tokens), plain)


def test_bad_stacks_and_features_are_refused(model, tokens) -> None:
    good = stack_for(model, choose_slots(model.cfg, [1]))
    wide = stack_for(model, [Slot("blocks.1.hook_mlp_out", 1)])
    other = double(seed=5)

    def sources(sae, *given):
        info = sae.info.model_copy(update={"sources": given})
        return StackedSAE.from_tensors(sae.config, sae.state_dict(), info)

    one = good.select(0)
    of = lambda name, **more: SAESource(hook_name=name, layer=1, **more)  # noqa: E731
    features: Any = lambda key, value=0.0: {"features": {key: value}}  # noqa: E731
    cases: Any = (
        (sources(one), {}, "SAEs: the stack does not say which hooks it reads; expected one saved"),
        (sources(one, of("blocks.1.hook_zz")), {}, "hook 'blocks.1.hook_zz' does not exist; nearest:"),
        (sources(one, of("blocks.1.hook_mlp_out")), {}, "SAEs: got one that reads 8 numbers of blocks.1.hook_mlp"),
        (sources(one, of(Z1)), {}, "SAEs: got one that reads 8 numbers of blocks.1.attn.hook_z; expected 32"),
        (sources(one, of(Z1, head=4)), {}, "SAEs: got blocks.1.attn.hook_z, head 4; expected hook_z and a head"),
        (sources(wide, of("blocks.1.mlp.hook_post")), {"error": False}, "SAEs: blocks.1.mlp.hook_post is 86 wide"),
        (sources(good.select([0, 1]), of(Z1, head=1), of(Z1, head=1)), {}, "SAEs: got 2 for blocks.1.attn.ho"),
        (stack_for(other, choose_slots(other.cfg)), {}, "check_model: the SAEs belong to a model with sha256"),
        (good, features((2, 0, 0)), "features: got 2.0.0; expected LAYER.HEAD.FEATURE of the stack, with (layer, head"),
        (good, features((1, 0, 12)), "features: got 1.0.12; expected LAYER.HEAD.FEATURE"),
        (good, features((1, 0, 1), float("nan")), "features: got nan for 1.0.1; expected a finite number"),
        (good, {"edit": lambda acts, slot: acts[:, :2]}, "edit: got activations of shape [2, 2, 12] at"),
    )  # fmt: skip
    for sae, options, message in cases:
        with pytest.raises(ValueError) as caught, attached(model, sae, **options):  # noqa: PT011
            model(tokens)
        assert str(caught.value).startswith(message)
        assert len(str(caught.value).splitlines()) == 1
    with (
        pytest.raises(ValueError, match="attached: got a Linear, on which no hook stays"),
        attached(torch.nn.Linear(2, 2), good),
    ):
        pass
    assert not model.list_hooks()


def test_transformer_lens_models_are_read_too() -> None:
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    with torch.random.fork_rng():
        cfg = HookedTransformerConfig(
            n_layers=2, d_model=32, n_ctx=16, d_head=8, n_heads=4, d_vocab=50, act_fn="relu", d_mlp=48, seed=0
        )
        model: Any = HookedTransformer(cfg).double()
    tokens = tokens_for(model, pos=10)
    slots = choose_slots(cfg)
    sae = stack_for(model, slots)
    with torch.no_grad():
        expected = by_hand(model, tokens, spliced(sae, [0, 1], 4))
        with attached(model, sae, error=False):
            torch.testing.assert_close(model(tokens), expected, rtol=1e-10, atol=1e-10)
            torch.testing.assert_close(model.run_with_hooks(tokens), expected, rtol=1e-10, atol=1e-10)
    assert not any(point.fwd_hooks for point in model.hook_dict.values())


def test_it_is_a_function_of_the_workbench() -> None:
    assert workbench.attached is attached
