"""The optimizer against the published formulas and torch's own, and which weights each part takes."""

from __future__ import annotations

import math

import pytest
import torch

from workbench.models import AttnRes, Extensions, HookedLM, ModelConfig
from workbench.training.optimizers import (
    AdamW,
    Muon,
    Optimizer,
    OptimizerConfig,
    decays,
    from_matrix,
    momentum,
    to_matrix,
)

TINY = ModelConfig(n_layers=2, d_model=12, n_ctx=8, d_vocab=32, n_heads=4, n_key_value_heads=2, d_head=6, d_mlp=20)
ROUTED = TINY.model_copy(update={"extensions": Extensions(attn_res=AttnRes(boundaries=(0, 1))), "use_qk_norm": True})
MUON = OptimizerConfig(adamw=AdamW(lr=1e-2, weight_decay=0.1), muon=Muon(lr=0.02, weight_decay=0.01))


def tokens(seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 32, (4, 8), generator=torch.Generator().manual_seed(seed))


def train_steps(model: HookedLM, optimizer: Optimizer, n: int, first: int = 0) -> None:
    for step in range(first, first + n):
        optimizer.start(step, 1.0)
        model(tokens(step), return_type="loss").backward()
        optimizer.step()
        optimizer.zero_grad()


def test_adamw_is_the_published_update_in_float64():
    cfg = AdamW(lr=3e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    model = HookedLM(TINY).double()
    optimizer = Optimizer(model, OptimizerConfig(adamw=cfg))
    expected = {n: p.detach().clone() for n, p in model.named_parameters()}
    m = {n: torch.zeros_like(p) for n, p in expected.items()}
    v = {n: torch.zeros_like(p) for n, p in expected.items()}
    for t in range(1, 4):
        rate = optimizer.start(t - 1, 0.5)
        assert rate == 1.5e-3
        model(tokens(t), return_type="loss").backward()
        for name, p in model.named_parameters():
            g = p.grad
            assert g is not None
            m[name] = 0.9 * m[name] + 0.1 * g
            v[name] = 0.95 * v[name] + 0.05 * g * g
            step = (m[name] / (1 - 0.9**t)) / ((v[name] / (1 - 0.95**t)).sqrt() + 1e-8)
            shrink = 1 - rate * 0.1 if name.rsplit(".", 1)[-1].lstrip("_").startswith("W_") else 1.0
            expected[name] = expected[name] * shrink - rate * step
        optimizer.step()
        optimizer.zero_grad()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), expected[name], rtol=1e-12, atol=1e-13, msg=name)


def test_muon_is_torchs_on_hand_made_matrices():
    """Head by head, without einops: q of all heads side by side is one [out, in] matrix."""
    model, twin = HookedLM(TINY, seed=3), HookedLM(TINY, seed=3)
    optimizer = Optimizer(model, MUON)

    def by_hand(name: str, t: torch.Tensor) -> torch.Tensor:
        leaf = name.rsplit(".", 1)[-1]
        if leaf in ("W_Q", "_W_K", "_W_V"):
            return torch.cat([head.T for head in t], dim=0)
        if leaf == "W_O":
            return torch.cat(list(t), dim=0).T
        return t.T

    hidden = [n for n, _ in twin.named_parameters() if n.startswith("blocks.") and "W_" in n]
    assert len(hidden) == 2 * 7
    matrices = {n: torch.nn.Parameter(by_hand(n, twin.get_parameter(n).detach()).contiguous()) for n in hidden}
    oracle = torch.optim.Muon(matrices.values(), lr=0.02, weight_decay=0.01)
    for step in range(3):
        optimizer.start(step, 1.0)
        model(tokens(step), return_type="loss").backward()
        for name in hidden:
            gradient = model.get_parameter(name).grad
            assert gradient is not None
            matrices[name].grad = by_hand(name, gradient).contiguous()
        oracle.step()
        optimizer.step()
        optimizer.zero_grad()
    for name in hidden:
        assert torch.equal(by_hand(name, model.get_parameter(name).detach()), matrices[name].detach()), name


def test_a_muon_update_has_singular_values_near_one():
    model = HookedLM(TINY)
    optimizer = Optimizer(model, MUON.model_copy(update={"muon": Muon(lr=1.0, weight_decay=0.0)}))
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.start(0, 1.0)
    optimizer.step()
    for name in (
        "blocks.0.attn.W_Q",
        "blocks.1.attn._W_V",
        "blocks.0.attn.W_O",
        "blocks.1.mlp.W_gate",
        "blocks.0.mlp.W_out",
    ):
        update = to_matrix(name, model.get_parameter(name).detach() - before[name])
        d_out, d_in = update.shape
        singular = torch.linalg.svdvals(update / math.sqrt(max(1, d_out / d_in)))
        # five quintic steps in bfloat16 leave the singular values between about .6 and 1.3 (Jordan 2024)
        assert singular.min() > 0.5, name
        assert singular.max() < 1.4, name


@pytest.mark.parametrize("name", ["attn.W_Q", "attn._W_K", "attn.W_O", "mlp.W_in", "mlp.W_out"])
def test_layout_round_trip(name):
    weight = HookedLM(TINY).get_parameter(f"blocks.0.{name}").detach()
    assert torch.equal(from_matrix(name, to_matrix(name, weight), weight.shape), weight)


def test_groups_take_what_they_should():
    model = HookedLM(ROUTED)
    optimizer = Optimizer(model, MUON)
    train_steps(model, optimizer, 1)
    state = optimizer.state_dict()
    of_muon = {key.split("/")[1] for key in state if key.startswith("muon/")}
    of_adamw = {key.split("/")[1] for key in state if key.startswith("adamw/")}
    assert of_muon | of_adamw == {n for n, _ in model.named_parameters()}
    assert not of_muon & of_adamw
    assert all(".W_" in n or "._W_" in n for n in of_muon)
    assert not any("route" in n or "norm" in n or "embed" in n or "ln" in n for n in of_muon)
    assert {n for n in of_muon | of_adamw if decays(n)} - of_muon == {"embed.W_E", "unembed.W_U"}


def test_embeddings_may_have_their_own_rate():
    model = HookedLM(TINY)
    before = model.W_E.detach().clone()
    optimizer = Optimizer(model, OptimizerConfig(adamw=AdamW(lr=1e-3, embed_lr=1e-1)))
    train_steps(model, optimizer, 1)
    # Adam's first step moves each weight that has a gradient by the rate
    assert float((model.W_E.detach() - before).abs().max()) == pytest.approx(0.1, rel=1e-3)
    assert float((model.blocks[0].ln1.w.detach() - 1).abs().max()) == pytest.approx(1e-3, rel=1e-2)


@pytest.mark.parametrize("cfg", [OptimizerConfig(), MUON], ids=["adamw", "muon"])
def test_state_round_trip_is_exact(cfg):
    whole, first, second = (HookedLM(ROUTED) for _ in range(3))
    optimizer = Optimizer(whole, cfg)
    train_steps(whole, optimizer, 5)
    begun = Optimizer(first, cfg)
    train_steps(first, begun, 2)
    state = {n: t.clone().contiguous() for n, t in begun.state_dict().items()}  # as safetensors gives it back
    second.load_state_dict(first.state_dict())
    resumed = Optimizer(second, cfg)
    resumed.load_state_dict(state)
    train_steps(second, resumed, 3, first=2)
    for (name, a), (_, b) in zip(whole.named_parameters(), second.named_parameters(), strict=True):
        assert torch.equal(a, b), name


def test_momentum_rises():
    cfg = Muon(momentum=0.95, momentum_start=0.85, n_momentum_steps=500)
    assert [momentum(cfg, s) for s in (0, 250, 500, 900)] == pytest.approx([0.85, 0.9, 0.95, 0.95])
    assert momentum(Muon(momentum=0.9), 0) == 0.9


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("adamw/blocks.7.ln1.w/exp_avg", torch.zeros(12), "which the model has not"),
        ("adamw/ln_final.w/exp_avg", torch.zeros(13), r"has shape \(13,\); expected \(12,\)"),
        ("muon/blocks.0.mlp.W_in/momentum_buffer", torch.zeros(20, 12), "got tensors of muon"),
    ],
)
def test_foreign_state_is_refused(key, value, message):
    optimizer = Optimizer(HookedLM(TINY), OptimizerConfig())
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict({key: value})


def test_learned_boundaries_have_a_rate_of_their_own_where_it_is_set():
    attn_res = AttnRes(boundaries="learned", n_blocks=2)
    model = HookedLM(TINY.model_copy(update={"extensions": Extensions(attn_res=attn_res)}))
    for rate in (None, 0.5):
        groups = Optimizer(model, OptimizerConfig(adamw=AdamW(lr=1e-3, weight_decay=0.1, boundary_lr=rate)))._adamw
        of = {id(p): (g["lr"], g["weight_decay"]) for g in groups.param_groups for p in g["params"]}
        assert len(of) == sum(len(g["params"]) for g in groups.param_groups) == len(list(model.parameters()))
        assert of[id(model.boundaries.increments)] == (rate or 1e-3, 0.0)
        assert of[id(model.route_final.query)] == (1e-3, 0.0)
    assert "boundary_lr" not in AdamW().model_dump()
