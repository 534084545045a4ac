"""Routings that share what they read of finished sums, beside routings that each read by themselves."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from models_for_tests import small_config, small_model, tokens_for

from workbench.models import AttnRes, Extensions, HookedLM
from workbench.models.attn_residuals import CommittedMeans, RoutedStream, SharedMeans, _LetIn

BOUNDARIES = [(0,), (0, 2), (0, 1, 2), (0, 1, 3, 4)]


def routed(boundaries: tuple[int, ...], seed: int = 0, **changes) -> HookedLM:
    extensions = Extensions(attn_res=AttnRes(boundaries=boundaries))
    return small_model("attn-res", seed, n_layers=5, extensions=extensions, **changes)


@pytest.mark.parametrize("boundaries", BOUNDARIES)
@pytest.mark.parametrize("seed", [0, 1])
def test_sharing_changes_neither_loss_nor_gradient(boundaries, seed):
    model = routed(boundaries, seed).double()
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
