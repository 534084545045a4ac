"""What a model takes by formula, against real models, torch's own count of operations, and files."""

from __future__ import annotations

import pytest
import torch
from models_for_tests import ARCHITECTURES, small_model
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from workbench.models import HookedLM
from workbench.models.checks import run_watched
from workbench.models.costs import (
    block_width,
    cache_bytes,
    forward_flops,
    hook_shapes,
    hooked_tensors,
    loading_bytes,
    on_meta,
    weights_bytes,
    without_numbers,
)
from workbench.models.layers import KeyValueCache

KINDS = sorted(ARCHITECTURES)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_weights_are_those_of_the_model(kind, dtype):
    model = small_model(kind).to(dtype)
    real = sum(p.numel() * p.element_size() for p in model.parameters())
    assert weights_bytes(model.cfg) == real
    assert {p.device.type for p in on_meta(model.cfg).parameters()} == {"meta"}
    # models are loaded one after another, and of each one tensor after another
    largest = max(p.numel() * p.element_size() for p in model.parameters())
    assert loading_bytes([model.cfg] * 3) == 3 * real + largest


@pytest.mark.parametrize("kind", KINDS)
def test_operations_are_those_that_torch_counts(kind):
    cfg = small_model(kind).cfg
    tokens = torch.zeros(3, 24, dtype=torch.long)
    # torch counts no fused attention
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        small_model(kind)(tokens)
    causal = 2 * cfg.n_layers * cfg.n_heads * cfg.d_head * 3 * 24 * (24 + 1)
    full = (
        4 * cfg.n_layers * cfg.n_heads * cfg.d_head * 3 * 24 * 24
    )  # of all keys, which the mask leaves out afterwards
    # gains and norms are weights that do not multiply; the mechanisms of a recurrent model, products without weights
    close = {"janus-small": 0.035, "parallel": 0.035, "recurrent": 0.05}.get(kind, 0.012)
    assert forward_flops(cfg, 3, 24) - causal + full == pytest.approx(counter.get_total_flops(), rel=close)
    unembedding = 2 * 3 * 24 * cfg.d_model * cfg.d_vocab
    assert forward_flops(cfg, 3, 24) - forward_flops(cfg, 3, 24, unembedded=0) == unembedding


@pytest.mark.parametrize("kind", KINDS)
def test_hooks_pass_what_they_pass_in_a_real_forward(kind):
    model = small_model(kind)
    names = ["hook_embed", "blocks.0.attn.hook_z", "blocks.1.attn.hook_pattern", "blocks.1.hook_mlp_out"]
    found = hook_shapes(model.cfg, names, 7)
    with torch.no_grad():
        real = run_watched(model, torch.zeros(1, 7, dtype=torch.long), names, 2)
    assert found == {name: tuple(x.shape[1 if "pattern" in name else 2 :]) for name, x in real.items()}
    with pytest.raises(ValueError, match="hook_zz"):
        hook_shapes(model.cfg, ["blocks.0.attn.hook_zz"])


@pytest.mark.parametrize("kind", KINDS)
def test_every_hook_is_shown_with_its_real_shape_and_dtype(kind):
    model, tokens = small_model(kind), torch.zeros(1, 7, dtype=torch.long)
    _, real = model.run_with_cache(tokens, return_cache_object=False)
    _, apart = model.run_with_cache(tokens, names_filter=lambda name: name not in real, return_cache_object=False)
    for stands_in in (on_meta(model.cfg), without_numbers(model.cfg)):
        found = hooked_tensors(stands_in, 7)
        assert list(found) == list(model.hook_dict)
        for name, x in (apart | real).items():
            assert (found[name].shape, found[name].dtype) == (x.shape, x.dtype), name


def test_keys_and_values_are_those_of_a_cache():
    model = small_model("janus-v3")
    cache = KeyValueCache(9)
    with torch.no_grad():
        model(torch.zeros(2, 9, dtype=torch.long), return_type=None, past_kv_cache=cache)
    real = sum(t.numel() * t.element_size() for pair in cache.pairs.values() for t in pair)
    assert cache_bytes(model.cfg, 2 * 9) == real


def test_a_block_of_a_wide_model_is_as_wide_as_its_widest_part():
    cfg = HookedLM(small_model("janus-v3").cfg).cfg
    wide = cfg.model_copy(update={"d_mlp": 100 * cfg.d_model})
    assert block_width(wide) == 4 * cfg.d_model + 300 * cfg.d_model
