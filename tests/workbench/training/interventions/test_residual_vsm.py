"""VSM on what heads write, against the form that forms it; what a rotation of heads' bases changes, and what not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models_for_tests import small_model, tokens_for
from torch import Tensor

from workbench.models import HookedLM
from workbench.training.head_grams import head_gram, orthogonality, residual_gram
from workbench.training.interventions import parse_interventions
from workbench.training.objective import Batch, objective
from workbench.training.prescription import Moment, Prescription

SEEDS = [0, 1, 2]
GROUPS = [None, 2]


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def naive_gram(z: Tensor, W_O: Tensor, group_size: int | None) -> Tensor:
    """Cosines of z_h W_O[h], each formed and flattened."""
    rows = torch.stack([(z[:, :, h] @ W_O[h]).flatten() for h in range(len(W_O))])
    rows = (rows / rows.norm(dim=1, keepdim=True)).unflatten(0, (-1, group_size or len(W_O)))
    return rows @ rows.mT


@pytest.mark.parametrize("group_size", GROUPS)
@pytest.mark.parametrize("seed", SEEDS)
def test_the_gram_equals_that_of_what_is_formed(seed, group_size):
    z, W_O = draw(seed, 3, 7, 4, 5), draw(seed + 5, 4, 5, 11)
    found = residual_gram(z, W_O, group_size)
    assert found.shape == ((1, 4, 4) if group_size is None else (2, 2, 2))
    torch.testing.assert_close(found, naive_gram(z, W_O, group_size), rtol=0, atol=1e-12)


@pytest.mark.parametrize("group_size", GROUPS)
@pytest.mark.parametrize("seed", SEEDS)
def test_its_gradient_equals_that_of_what_is_formed(seed, group_size):
    z, W_O = draw(seed, 3, 7, 4, 5).requires_grad_(), draw(seed + 5, 4, 5, 11).requires_grad_()
    for weigh in (orthogonality, lambda gram: (gram * draw(seed + 9, *gram.shape)).sum()):
        found, want = (
            torch.autograd.grad(weigh(of(z, W_O, group_size)), (z, W_O)) for of in (residual_gram, naive_gram)
        )
        for own, other in zip(found, want, strict=True):
            torch.testing.assert_close(own, other, rtol=0, atol=1e-10)


@pytest.mark.parametrize("group_size", GROUPS)
def test_its_gradient_agrees_with_finite_differences(group_size):
    z, W_O = draw(0, 2, 3, 4, 2).requires_grad_(), draw(1, 4, 2, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda *own: residual_gram(*own, group_size), (z, W_O))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_narrow_outputs_are_compared_in_float32_also_under_autocast(dtype):
    z, W_O = draw(0, 2, 64, 4, 8).to(dtype).requires_grad_(), draw(1, 4, 8, 32).float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        gram = residual_gram(z, W_O)
    assert gram.dtype == torch.float32
    want = naive_gram(z.detach().double(), W_O.detach().double(), None)
    torch.testing.assert_close(gram.double(), want, rtol=0, atol=1e-5)
    orthogonality(gram).backward()
    assert (z.grad.dtype, W_O.grad.dtype) == (dtype, torch.float32)
    assert z.grad.isfinite().all()


def test_a_head_that_writes_nothing_has_no_gradient():
    z, W_O = draw(0, 2, 3, 4, 2), draw(1, 4, 2, 5)
    z[:, :, 1] = 0
    z.requires_grad_()
    (gradient,) = torch.autograd.grad(orthogonality(residual_gram(z, W_O)), z)
    assert gradient.isfinite().all()
    assert float(gradient[:, :, 1].abs().max()) == 0


# --- in a model


def pressure(model: HookedLM, on: str) -> tuple[float, float]:
    """The term of VSM, and the next-token loss."""
    settings: dict[str, Any] = {"kind": "vsm", "on": on, "controller": {"kind": "fixed", "weight": 1.0}}
    prescription = Prescription(parse_interventions([settings]), model.cfg, n_steps=1)
    found = objective(model, Batch(tokens_for(model)), prescription, Moment(0, prescription.start(0)))
    return float(found.telemetry["vsm.loss"]), float(found.loss)


@torch.no_grad()
def rotate_values(model: HookedLM, seed: int) -> None:
    """Turn every key/value head's basis at random: the columns of W_V (and b_V), the rows of W_O of the heads that
    read it."""
    cfg = model.cfg
    for layer in range(cfg.n_layers):
        attn = model.blocks[layer].attn
        turns = torch.linalg.qr(draw(seed + layer, cfg.kv_heads, cfg.d_head, cfg.d_head))[0]
        attn.stored("W_V").copy_(attn.stored("W_V") @ turns)
        if cfg.extensions.qkv_bias:
            attn.stored("b_V").copy_(torch.einsum("he,hef->hf", attn.stored("b_V"), turns))
        of_heads = turns.repeat_interleave(cfg.n_heads // cfg.kv_heads, dim=0)
        attn.W_O.copy_(of_heads.mT @ attn.W_O)


@pytest.mark.parametrize("kind", ["janus-v3", "janus-small", "kotodama"])
@pytest.mark.parametrize("seed", SEEDS)
def test_no_rotation_of_a_value_basis_changes_what_is_pressed(kind, seed):
    model = small_model(kind, seed).double()
    before = {on: pressure(model, on) for on in ("residual", "z", "pattern")}
    rotate_values(model, 100 * (seed + 1))
    after = {on: pressure(model, on) for on in before}
    assert after["residual"] == pytest.approx(before["residual"], abs=1e-12)
    assert after["pattern"] == pytest.approx(before["pattern"], abs=1e-12)
    assert after["z"][1] == pytest.approx(before["z"][1], abs=1e-12), "the model computes what it did"
    changed = abs(after["z"][0] - before["z"][0])
    assert changed > 1e-3


@pytest.mark.parametrize("kind", ["janus-v3", "kotodama", "recurrent"])
def test_the_term_is_what_the_cache_gives(kind):
    model = small_model(kind).double()
    _, cache = model.run_with_cache(tokens_for(model), return_type="loss")
    n, loss = model.cfg.n_layers, 0.0
    for layer in range(n):
        z, W_O = cache[f"blocks.{layer}.attn.hook_z"].detach(), model.blocks[layer].attn.W_O.detach()
        loss += ((layer + 1) / n) ** 3 * float(orthogonality(naive_gram(z, W_O, None)))
        assert not torch.allclose(head_gram(z), naive_gram(z, W_O, None), atol=1e-3)
    assert pressure(model, "residual")[0] == pytest.approx(loss, abs=1e-12)
