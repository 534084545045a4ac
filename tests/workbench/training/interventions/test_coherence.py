"""Coherence against the cache and by finite differences, alone and beside VSM on the same maps."""

from __future__ import annotations

import pytest
import torch
from interventions_for_tests import objective_under

from workbench.models import HookedLM, ModelConfig
from workbench.training.head_grams import pattern_gram
from workbench.training.interventions.coherence import attention_entropy
from workbench.training.interventions.vsm import vsm_loss
from workbench.training.objective import Batch

CFG = ModelConfig(n_layers=3, d_model=16, n_ctx=12, d_vocab=40, n_heads=4, n_key_value_heads=2, d_head=4, d_mlp=24)
TOKENS = torch.randint(0, 40, (3, 12), generator=torch.Generator().manual_seed(0))


def rough_model() -> HookedLM:
    """Weights ten times as large as at the start, so that attention is far from uniform."""
    return HookedLM(CFG.model_copy(update={"initializer_range": 0.2}), seed=0).double()


@pytest.mark.parametrize("weight", [0.05, 2.0])
def test_it_is_what_the_cache_gives(weight):
    model = rough_model()
    found = objective_under(model, Batch(TOKENS), {"kind": "coherence", "weight": weight})
    loss, cache = model.run_with_cache(TOKENS, return_type="loss")
    patterns = [cache[f"blocks.{layer}.attn.hook_pattern"] for layer in range(3)]
    entropy = sum(float(-(p.clamp_min(1e-300).log() * p).sum(-1).mean()) for p in patterns) / 3
    assert float(found.telemetry["coherence.entropy"]) == pytest.approx(entropy, abs=1e-10)
    assert float(found.telemetry["coherence.loss"]) == pytest.approx(weight * entropy, abs=1e-10)
    assert float(found.total.detach()) == pytest.approx(float(loss.detach()) + weight * entropy, abs=1e-10)


def test_beside_vsm_on_maps_both_are_added():
    model = rough_model()
    tables = {"kind": "vsm", "on": "pattern", "group_size": 2}, {"kind": "coherence", "weight": 0.05}
    found = objective_under(model, Batch(TOKENS), *tables, vsm={"lambda": 0.15})
    _, cache = model.run_with_cache(TOKENS, return_type="loss")
    patterns = [cache[f"blocks.{layer}.attn.hook_pattern"] for layer in range(3)]
    pressure = 0.15 * vsm_loss([pattern_gram(p, 2) for p in patterns], 3.0)
    entropy = torch.stack([attention_entropy(p) for p in patterns]).mean()
    assert float(found.telemetry["vsm.loss"]) == pytest.approx(float(pressure.detach()), abs=1e-12)
    total = float((found.loss + pressure + 0.05 * entropy).detach())
    assert float(found.total.detach()) == pytest.approx(total, abs=1e-10)


def test_without_weight_no_map_is_formed():
    model = rough_model()
    found = objective_under(model, Batch(TOKENS), {"kind": "coherence", "weight": 0.0})
    assert not found.telemetry
    assert torch.equal(found.total.detach(), found.loss)


def test_the_gradient_agrees_with_finite_differences_also_where_maps_are_masked():
    scores = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: attention_entropy(torch.softmax(s, dim=-1)), (scores,))
    mask = torch.full((3, 3), -torch.inf, dtype=torch.float64).triu(1)
    entropy = attention_entropy(torch.softmax(scores + mask, dim=-1))
    assert torch.autograd.grad(entropy, scores)[0].isfinite().all()


def test_the_gradient_reaches_the_weights_that_make_the_maps():
    model, h = rough_model(), 1e-5
    own = {"kind": "coherence", "weight": 1.0}
    objective_under(model, Batch(TOKENS), own).total.backward()
    weight = model.get_parameter("blocks.1.attn.W_Q")
    direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert weight.grad is not None
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            weight += sign * h * direction
            values.append(float(objective_under(model, Batch(TOKENS), own).total))
            weight -= sign * h * direction
    slope = float((weight.grad * direction).sum())
    assert (values[0] - values[1]) / (2 * h) == pytest.approx(slope, rel=1e-5, abs=1e-7)
