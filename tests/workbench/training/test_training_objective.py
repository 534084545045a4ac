"""A micro-batch's loss and its mask; the monitor against direct computation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from interventions_for_tests import objective_under

from workbench.models import AttnRes, Extensions, HookedLM, ModelConfig, geometry
from workbench.training.monitor import MonitorConfig, measure, monitor_columns, weight_ranks
from workbench.training.objective import Batch, autocast_dtype, held_out_loss

CFG = ModelConfig(n_layers=3, d_model=16, n_ctx=12, d_vocab=40, n_heads=4, n_key_value_heads=2, d_head=4, d_mlp=24)
ROUTED = CFG.model_copy(update={"extensions": Extensions(attn_res=AttnRes(boundaries=(0, 2)))})


def tokens(seed: int = 0, rows: int = 3) -> torch.Tensor:
    return torch.randint(0, 40, (rows, 12), generator=torch.Generator().manual_seed(seed))


def rough_model(cfg: ModelConfig, seed: int = 0) -> HookedLM:
    """Weights ten times as large as at the start, so that attention is far from uniform."""
    return HookedLM(cfg.model_copy(update={"initializer_range": 0.2}), seed=seed).double()


def test_masked_predictions_do_not_count():
    model, x = rough_model(CFG), tokens()
    mask = torch.zeros(3, 11, dtype=torch.bool)
    mask[:, 5:] = True
    per_token = model(x, return_type="loss", loss_per_token=True).detach()
    want = float(per_token[:, 5:].mean())
    assert float(objective_under(model, Batch(x, mask)).loss) == pytest.approx(want, abs=1e-12)
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
