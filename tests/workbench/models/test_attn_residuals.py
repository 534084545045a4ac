"""Routings that share what they read of finished sums, beside routings that each read by themselves."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from models_for_tests import small_config, small_model, tokens_for

from workbench.models import AttnRes, Extensions, HookedLM
from workbench.models.attn_residuals import CommittedMeans, RoutedStream, SharedMeans, _LetIn
from workbench.models.learned_blocks import Boundaries

BOUNDARIES = [(0,), (0, 2), (0, 1, 2), (0, 1, 3, 4)]


def routed(boundaries: tuple[int, ...], seed: int = 0, streams: str = "both", **changes) -> HookedLM:
    extensions = Extensions(attn_res=AttnRes(boundaries=boundaries, streams=streams))
    return small_model("attn-res", seed, n_layers=5, extensions=extensions, **changes)


def mixture(routing, sources: list[torch.Tensor], eps: float, logits: list[float] | None = None) -> torch.Tensor:
    """Σ_i α_i v_i, α = softmax_i(w · RMSNorm(v_i) + logit_i), source by source."""
    direction = routing.query * routing.w
    scores = [(v / (v.square().mean(-1, keepdim=True) + eps).sqrt()) @ direction for v in sources]
    scores = [score + logit for score, logit in zip(scores, logits or [0.0] * len(sources), strict=True)]
    alpha = torch.softmax(torch.stack(scores), 0)
    return sum(a[..., None] * v for a, v in zip(alpha, sources, strict=True))


@pytest.mark.parametrize("streams", ["both", "attention"])
@pytest.mark.parametrize("boundaries", BOUNDARIES)
@pytest.mark.parametrize("seed", [0, 1])
def test_sharing_changes_neither_loss_nor_gradient(boundaries, seed, streams):
    model = routed(boundaries, seed, streams).double()
    found = []
    for shares in (True, False):
        model.shares_routing = shares
        loss = model(tokens_for(model, seed=seed), return_type="loss")
        loss.backward()
        found.append([loss.detach()] + [p.grad for p in model.parameters() if p.grad is not None])
        model.zero_grad()
    assert len(found[0]) == 1 + len(list(model.parameters()))
    for shared, alone in zip(*found, strict=True):
        torch.testing.assert_close(shared, alone, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_gradients_agree_with_finite_differences(seed):
    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator, requires_grad=True)

    generator = torch.Generator().manual_seed(seed)
    assert torch.autograd.gradcheck(CommittedMeans.apply, (draw(4, 5), 1e-5, draw(2, 3, 5), draw(2, 3, 5)))
    assert torch.autograd.gradcheck(_LetIn.apply, (draw(2, 3, 5), draw(2, 3), draw(2, 3, 5), draw(5), 1e-5))


def test_bfloat16_streams_are_mixed_in_float32():
    generator = torch.Generator().manual_seed(0)
    sources = [torch.randn(2, 3, 16, generator=generator).bfloat16() for _ in range(3)]
    directions = torch.randn(4, 16, generator=generator)
    with torch.autocast("cpu", torch.bfloat16):
        means, logsumexps = CommittedMeans.apply(directions, 1e-5, *sources)
    wanted, logs = CommittedMeans.apply(directions.double(), 1e-5, *(v.double() for v in sources))
    assert means.dtype == torch.bfloat16
    torch.testing.assert_close(logsumexps.double(), logs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(means.double(), wanted, rtol=2**-8, atol=2**-8)  # the rounding of the result alone


def test_all_routings_of_a_block_share_one_reading(monkeypatch):
    n_calls, real = [], CommittedMeans.forward

    def counted(ctx, directions, eps, *sources):
        n_calls.append((len(directions), len(sources)))
        return real(ctx, directions, eps, *sources)

    monkeypatch.setattr(CommittedMeans, "forward", staticmethod(counted))
    model = routed((0, 1, 3))
    model(tokens_for(model))
    # layer 0's MLP and layer 1's attention; layers 1 to 3; layers 3 to 4 and the last routing
    assert n_calls == [(2, 1), (4, 2), (4, 3)]


def test_a_state_whose_sums_were_replaced_is_read_anew():
    model = routed((0, 2))
    state = model(tokens_for(model), stop_at_layer=4)
    assert isinstance(state, RoutedStream)
    assert isinstance(state.shared, SharedMeans)
    doubled = dataclasses.replace(state, committed=tuple(2 * v for v in state.committed))
    block = model.blocks[4]
    found = block.route_attn(doubled, block.hook_route_attn)
    alone = block.route_attn(dataclasses.replace(doubled, shared=None), block.hook_route_attn)
    torch.testing.assert_close(found, alone, rtol=1e-5, atol=1e-6)
    assert (found - block.route_attn(state, block.hook_route_attn)).abs().max() > 0.1


def test_another_models_state_is_read_by_each_routing_itself():
    model, other = routed((0, 2)), routed((0, 2), seed=5)
    state = model(tokens_for(model), stop_at_layer=4)
    block = other.blocks[4]
    found = block.route_attn(state, block.hook_route_attn)
    torch.testing.assert_close(found, block.route_attn(dataclasses.replace(state, shared=None), block.hook_route_attn))


def test_what_a_watcher_puts_in_place_of_alpha_is_used():
    model = HookedLM(small_config("attn-res"))
    tokens = tokens_for(model)

    def first_only(alpha, hook):
        return torch.zeros_like(alpha).index_fill(-1, torch.tensor([0]), 1.0)

    _, cache = model.run_with_cache(tokens)
    with model.hooks(fwd_hooks=[("blocks.2.hook_route_mlp", first_only)]):
        _, changed = model.run_with_cache(tokens)
    torch.testing.assert_close(changed["blocks.2.hook_resid_mid"], cache["hook_embed"])


# --- attention in a channel of its own


@pytest.mark.parametrize("boundaries", BOUNDARIES)
def test_a_channel_of_attention_is_the_equations(boundaries):
    model = routed(boundaries, streams="attention").double()
    tokens, eps = tokens_for(model), model.cfg.eps
    main, sums = model.embed.W_E[tokens], []
    with torch.no_grad():
        for layer, block in enumerate(model.blocks):
            read = main + mixture(block.route_attn, sums, eps) if layer else main
            out = block.attn(block.ln1(read))
            if layer in boundaries:
                sums.append(out)
            else:
                sums[-1] = sums[-1] + out
            main = main + block.mlp(block.ln2(main + mixture(block.route_mlp, sums, eps)))
        wanted = model.ln_final(main + mixture(model.route_final, sums, eps)) @ model.W_U
        torch.testing.assert_close(model(tokens), wanted, rtol=1e-10, atol=1e-10)


def test_a_channel_of_one_block_is_the_plain_transformer():
    model = routed((0,), streams="attention").double()
    plain = small_model("kotodama", n_layers=5).double()
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            parameter.copy_(model.get_parameter(name))
    tokens = tokens_for(model)
    logits, cache = model.run_with_cache(tokens)
    wanted, plain_cache = plain.run_with_cache(tokens)
    torch.testing.assert_close(logits, wanted, rtol=1e-10, atol=1e-10)
    for name in plain_cache:
        if "hook_resid" in name:
            torch.testing.assert_close(cache[name], plain_cache[name], rtol=1e-10, atol=1e-10)


def test_the_first_attention_of_a_channel_has_no_routing():
    model = HookedLM(small_config("attn-res-attention"))
    with_routing, plain = model.n_parameters(), HookedLM(small_config("kotodama")).n_parameters()
    assert with_routing - plain == 4 * 3 * 32  # (4 L + 2) d without the two vectors of layer 0's attention
    assert "blocks.0.hook_route_attn" not in model.hook_dict
    _, cache = model.run_with_cache(tokens_for(model))
    assert torch.equal(cache["blocks.0.hook_resid_pre"], cache["hook_embed"])
    assert cache["blocks.2.hook_route_mlp"].shape == (2, 16, 2)  # the first block's sum and the current one
    assert cache["blocks.1.hook_route_mlp"].shape == (2, 16, 1)
    # nothing of the channel has been written at the embedding: the unembedding would read the main stream
    torch.testing.assert_close(model.read_out(model.embed_state(tokens_for(model))), cache["hook_embed"])


@pytest.mark.parametrize("kind", ["attn-res", "attn-res-attention", "attn-res-learned"])
def test_a_state_of_another_kind_is_refused(kind):
    model = small_model(kind)
    with pytest.raises(ValueError, match=r"start_at_layer: got a Tensor; expected a state .*attention residuals route"):
        model(torch.zeros(1, 4, 32), start_at_layer=1)


# --- learned boundaries


def learned(n_blocks: int, streams: str = "both", seed: int = 0, n_layers: int = 5) -> HookedLM:
    extensions = Extensions(attn_res=AttnRes(boundaries="learned", n_blocks=n_blocks, streams=streams))
    return small_model("attn-res", seed, n_layers=n_layers, extensions=extensions)


@torch.no_grad()
def step_at(model: HookedLM, layers: tuple[int, ...]) -> None:
    """Give all of the way from the first block to the last to the steps into these layers, in equal parts."""
    model.boundaries.increments.fill_(-1e4)
    for layer in layers:
        model.boundaries.increments[layer - 1] = 0.0


def same_weights(model: HookedLM, other: HookedLM) -> None:
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            parameter.copy_(model.get_parameter(name))


@pytest.mark.parametrize("streams", ["both", "attention"])
@pytest.mark.parametrize("boundaries", [(0, 2), (0, 1, 2), (0, 1, 3, 4), (0, 1, 2, 3, 4)])
def test_whole_steps_give_the_blocks_of_a_list(boundaries, streams):
    model = learned(len(boundaries), streams).double()
    step_at(model, boundaries[1:])
    listed = routed(boundaries, streams=streams).double()
    same_weights(model, listed)
    tokens = tokens_for(model)
    torch.testing.assert_close(model(tokens), listed(tokens), rtol=1e-9, atol=1e-9)
    losses = []
    for one in (model, listed):
        loss = one(tokens, return_type="loss")
        loss.backward()
        losses.append(loss.detach())
    for name, parameter in listed.named_parameters():
        torch.testing.assert_close(model.get_parameter(name).grad, parameter.grad, rtol=1e-7, atol=1e-10)


def test_a_block_that_is_stepped_over_is_no_source():
    model = learned(3).double()
    step_at(model, (3,))  # from block 0 to block 2 at once
    listed = routed((0, 3)).double()
    same_weights(model, listed)
    tokens = tokens_for(model)
    logits, cache = model.run_with_cache(tokens)
    torch.testing.assert_close(logits, listed(tokens), rtol=1e-9, atol=1e-9)
    assert (cache["blocks.4.hook_route_mlp"][..., 2] == 0).all()


@pytest.mark.parametrize("streams", ["both", "attention"])
@pytest.mark.parametrize("seed", [0, 1])
def test_degrees_of_membership_are_the_equations(streams, seed):
    model = learned(3, streams, seed).double()
    tokens, eps = tokens_for(model), model.cfg.eps
    x = model.embed.W_E[tokens]
    has_embedding = streams == "both"
    with torch.no_grad():
        steps = 2 * torch.softmax(model.boundaries.increments, 0)
        positions = [float(steps[:i].sum()) for i in range(5)]
        w = [[max(0.0, 1 - abs(s - k)) for k in range(3)] for s in positions]
        main, sums, begun = (0 * x if has_embedding else x), [0 * x] * 3, [0.0] * 3

        def read(routing):
            sources = [(v, g) for v, g in zip(sums, begun, strict=True) if g > 0]
            sources = [(x, 1.0), *sources] if has_embedding else sources
            if not sources:
                return main
            logits = [math.log(g) for _, g in sources]
            return main + mixture(routing, [v for v, _ in sources], eps, logits)

        for layer, block in enumerate(model.blocks):
            out = block.attn(block.ln1(read(block.route_attn)))
            sums = [v + w[layer][k] * out for k, v in enumerate(sums)]
            begun = [min(1.0, sum(w[j][k] for j in range(layer + 1))) for k in range(3)]
            out = block.mlp(block.ln2(read(block.route_mlp)))
            main = main if has_embedding else main + out
            sums = [v + w[layer][k] * out for k, v in enumerate(sums)] if has_embedding else sums
        wanted = model.ln_final(read(model.route_final)) @ model.W_U
        torch.testing.assert_close(model(tokens), wanted, rtol=1e-9, atol=1e-9)


def test_equal_steps_at_first_and_memberships_add_up_to_one():
    extensions = Extensions(attn_res=AttnRes(boundaries="learned", n_blocks=4))
    model = HookedLM(small_config("attn-res", n_layers=6, extensions=extensions))
    torch.testing.assert_close(model.boundaries.positions(), torch.tensor([0.0, 0.6, 1.2, 1.8, 2.4, 3.0]))
    drawn = learned(4, seed=3, n_layers=6).boundaries.memberships()
    assert (drawn >= 0).all()
    torch.testing.assert_close(drawn.sum(1), torch.ones(6))
    assert isinstance(model.boundaries, Boundaries)
    assert model.boundaries.increments.shape == (5,)


def test_autocast_keeps_scores_and_sums_in_float32():
    model = learned(3)
    tokens = tokens_for(model)
    with torch.autocast("cpu", torch.bfloat16):
        _, cache = model.run_with_cache(tokens, names_filter=lambda name: "route" in name)
        loss = model(tokens, return_type="loss")
        state = model(tokens, stop_at_layer=3)
    assert state.sums.dtype == torch.float32
    assert all(alpha.dtype == torch.float32 for alpha in cache.values())
    torch.testing.assert_close(loss, model(tokens, return_type="loss"), rtol=2e-2, atol=0)


def test_settings_that_contradict_each_other():
    for settings, message in (
        ({"boundaries": "learned"}, "with n_blocks = None; expected a list"),
        ({"boundaries": (0, 2), "n_blocks": 3}, "with n_blocks = 3; expected a list"),
        ({"boundaries": "learned", "n_blocks": 1}, "greater than or equal to 2"),
    ):
        with pytest.raises(ValueError, match=message):
            AttnRes(**settings)
    with pytest.raises(ValueError, match="n_blocks: got 6; expected at most n_layers = 5"):
        learned(6)


def test_what_older_configurations_say_is_written_as_before():
    assert AttnRes(boundaries=(0, 2)).model_dump() == {"boundaries": (0, 2)}
    written = AttnRes(boundaries="learned", n_blocks=3, streams="attention").model_dump()
    assert written == {"boundaries": "learned", "n_blocks": 3, "streams": "attention"}
    assert AttnRes(**written).n_sums == 3
