"""A micro-batch's loss with VSM against the cache and by finite differences; the monitor against direct computation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from workbench.models import AttnRes, Extensions, HookedLM, ModelConfig, geometry
from workbench.training.monitor import MonitorConfig, measure, monitor_columns, weight_ranks
from workbench.training.objective import Batch, autocast_dtype, held_out_loss, objective
from workbench.training.recipe import Phase
from workbench.training.vsm import Proportional, Vsm, attention_entropy, head_gram, pattern_gram, sigma, vsm_loss

CFG = ModelConfig(n_layers=3, d_model=16, n_ctx=12, d_vocab=40, n_heads=4, n_key_value_heads=2, d_head=4, d_mlp=24)
ROUTED = CFG.model_copy(update={"extensions": Extensions(attn_res=AttnRes(boundaries=(0, 2)))})


def phase(**settings) -> Phase:
    return Phase(n_steps=1, batch_size=2, **settings)


def tokens(seed: int = 0, rows: int = 3) -> torch.Tensor:
    return torch.randint(0, 40, (rows, 12), generator=torch.Generator().manual_seed(seed))


def rough_model(cfg: ModelConfig, seed: int = 0) -> HookedLM:
    """Weights ten times as large as at the start, so that attention is far from uniform."""
    return HookedLM(cfg.model_copy(update={"initializer_range": 0.2}), seed=seed).double()


@pytest.mark.parametrize("cfg", [CFG, ROUTED], ids=["plain", "routed"])
@pytest.mark.parametrize("seed", [0, 1])
def test_vsm_on_z_is_what_the_cache_gives(cfg, seed):
    model, x = rough_model(cfg, seed), tokens(seed)
    found = objective(model, Batch(x), phase(vsm=Vsm(steering=3.0)), weight=0.7)
    loss, cache = model.run_with_cache(x, return_type="loss")
    grams = [head_gram(cache[f"blocks.{layer}.attn.hook_z"]) for layer in range(3)]
    assert found.vsm is not None
    assert found.sigma is not None
    assert float(found.loss) == pytest.approx(float(loss.detach()), abs=1e-12)
    assert float(found.vsm) == pytest.approx(0.7 * float(vsm_loss(grams, 3.0).detach()), abs=1e-12)
    assert float(found.sigma) == pytest.approx(np.mean([float(sigma(g).detach()) for g in grams]), abs=1e-12)
    assert float(found.total.detach()) == pytest.approx(float(found.loss + found.vsm), abs=1e-12)


def test_vsm_on_patterns_with_coherence_is_what_the_cache_gives():
    model, x = rough_model(CFG), tokens()
    vsm = Vsm(on="pattern", coherence=0.05, group_size=2)
    found = objective(model, Batch(x), phase(vsm=vsm), weight=0.15)
    _, cache = model.run_with_cache(x, return_type="loss")
    patterns = [cache[f"blocks.{layer}.attn.hook_pattern"] for layer in range(3)]
    expected = 0.15 * vsm_loss([pattern_gram(p, 2) for p in patterns], 3.0)
    entropy = torch.stack([attention_entropy(p) for p in patterns]).mean()
    assert found.vsm is not None
    assert float(found.vsm) == pytest.approx(float(expected.detach()), abs=1e-12)
    total = float((found.loss + expected + 0.05 * entropy).detach())
    assert float(found.total.detach()) == pytest.approx(total, abs=1e-10)


@pytest.mark.parametrize("vsm", [Vsm(), Vsm(on="pattern", coherence=0.05)], ids=["z", "pattern"])
def test_gradient_agrees_with_finite_differences(vsm):
    model, batch, p = rough_model(CFG), Batch(tokens()), phase(vsm=vsm)
    objective(model, batch, p, weight=0.5).total.backward()
    generator, h = torch.Generator().manual_seed(1), 1e-5
    for name in ("blocks.0.attn.W_Q", "blocks.1.attn._W_V", "blocks.2.attn.W_O", "embed.W_E", "blocks.0.mlp.W_in"):
        weight = model.get_parameter(name)
        direction = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
        assert weight.grad is not None
        slope = float((weight.grad * direction).sum())
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                weight += sign * h * direction
                values.append(float(objective(model, batch, p, weight=0.5).total))
                weight -= sign * h * direction
        # central differences: error h² times the third derivative, far below the tolerance
        assert (values[0] - values[1]) / (2 * h) == pytest.approx(slope, rel=1e-5, abs=1e-7), name


def test_maps_are_formed_only_while_they_weigh_something():
    model, x = HookedLM(CFG), Batch(tokens())
    idle = objective(model, x, phase(vsm=Vsm(on="pattern")), weight=0.0)
    assert idle.vsm is None
    assert idle.sigma is None
    assert objective(model, x, phase(vsm=Vsm(on="pattern")), weight=0.1).sigma is not None
    # the σ that a controller needs is there at λ = 0 too: else λ would never leave it
    assert objective(model, x, phase(vsm=Vsm(on="z")), weight=0.0).sigma is not None
    followed = objective(model, x, phase(vsm=Vsm(on="pattern", controller=Proportional())), weight=0.0)
    assert followed.sigma is not None
    assert float(followed.total.detach()) == float(idle.total.detach())
    assert objective(model, x, phase(), weight=0.0).vsm is None
    assert not any(point._forward_hooks for point in model.hook_dict.values())


def test_masked_predictions_do_not_count():
    model, x = rough_model(CFG), tokens()
    mask = torch.zeros(3, 11, dtype=torch.bool)
    mask[:, 5:] = True
    per_token = model(x, return_type="loss", loss_per_token=True).detach()
    want = float(per_token[:, 5:].mean())
    assert float(objective(model, Batch(x, mask), phase(), 0.0).loss) == pytest.approx(want, abs=1e-12)
    assert held_out_loss(model, Batch(x, mask), batch_size=2) == pytest.approx(want, abs=1e-12)
    assert held_out_loss(model, Batch(x), batch_size=2) == pytest.approx(float(per_token.mean()), abs=1e-12)


def test_precision_by_name():
    assert autocast_dtype("cpu", "float32") is None
    assert autocast_dtype("cpu", "float64") is None
    assert autocast_dtype("cpu", "bfloat16") is torch.bfloat16
    assert autocast_dtype("cpu", "auto") in (None, torch.bfloat16)
    with pytest.raises(ValueError, match="dtype: got 'int8'; expected auto, float32"):
        autocast_dtype("cpu", "int8")


@pytest.mark.parametrize("cfg", [CFG, ROUTED], ids=["plain", "routed"])
def test_the_monitor_measures_what_geometry_defines(cfg, monkeypatch):
    model, x = rough_model(cfg), tokens(rows=5)
    monkeypatch.setattr("workbench.training.monitor.MAP_ELEMENTS", 2 * 4 * 12 * 12)  # two sequences at a time
    found = measure(model, x, MonitorConfig())
    _, cache = model.run_with_cache(x)
    for layer in range(3):
        z, pattern = cache[f"blocks.{layer}.attn.hook_z"], cache[f"blocks.{layer}.attn.hook_pattern"]
        W_O = model.blocks[layer].attn.W_O
        heads = geometry.HeadRedundancy()
        heads.add(z, pattern)
        for basis in geometry.BASES:
            sigma = geometry.mean_abs_cos(heads.cosines(basis, W_O))
            assert found[f"sigma_{basis}.{layer}"] == pytest.approx(sigma, abs=1e-12)
        entropy = geometry.head_entropy(pattern)
        assert found[f"head_entropy.{layer}"] == pytest.approx(float(entropy.mean()), abs=1e-12)
        assert found[f"head_entropy_std.{layer}"] == pytest.approx(float(entropy.std(correction=0)), abs=1e-12)
        assert found[f"bos_mass.{layer}"] == pytest.approx(float(geometry.bos_mass(pattern).mean()), abs=1e-12)
    for basis in ("z", "pattern", "residual"):
        layers = [found[f"sigma_{basis}.{layer}"] for layer in range(3)]
        assert found[f"sigma_{basis}"] == pytest.approx(sum(layers) / 3, abs=1e-14)


def test_weight_ranks_equal_those_of_an_svd():
    model = HookedLM(CFG)
    with torch.no_grad():
        model.blocks[1].mlp.W_out[4:] = 0  # rank 4: the Gram matrix alone would not do
    ranks = weight_ranks(model)
    assert len(ranks) == 3 * 7 * 3
    for layer, block in enumerate(model.blocks):
        attn, mlp = block.attn, block.mlp
        matrices = {
            "W_Q": torch.cat(list(attn.W_Q), dim=1),
            "W_K": torch.cat(list(attn.stored("W_K")), dim=1),
            "W_O": torch.cat(list(attn.W_O), dim=0),
            "W_out": mlp.W_out,
        }
        for name, matrix in matrices.items():
            s = np.linalg.svd(matrix.detach().double().numpy(), compute_uv=False)
            p = s[s > 0] / s.sum()
            expected = {
                "nuclear_rank": s.sum() ** 2 / (s**2).sum(),
                "stable_rank": (s**2).sum() / s.max() ** 2,
                "effective_rank": math.exp(-(p * np.log(p)).sum()),
            }
            for rank, value in expected.items():
                assert ranks[f"{rank}.{name}.{layer}"] == pytest.approx(value, rel=1e-9), (rank, name, layer)


@pytest.mark.parametrize("use_attention", [True, False])
@pytest.mark.parametrize("use_ranks", [True, False])
def test_columns_name_exactly_what_is_measured(use_attention, use_ranks):
    monitor = MonitorConfig(use_attention=use_attention, use_ranks=use_ranks)
    columns = set(monitor_columns(CFG, monitor)) | {"sigma_z", "sigma_pattern", "sigma_residual"}
    found = set(measure(HookedLM(CFG), tokens(), monitor))
    assert found <= columns
    if use_attention:
        assert found == columns
    assert monitor_columns(CFG, MonitorConfig(every=0)) == ()
