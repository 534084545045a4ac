"""Layers over several devices: on fake GPUs where every operation checks its devices, and on real ones where there are
two."""

from __future__ import annotations

import pytest
import torch
from models_for_tests import small_config, small_model, tokens_for
from torch._subclasses.fake_tensor import FakeTensorMode

from workbench.analyses.ablate.ablation import ablate
from workbench.analyses.topology.heads import topology_tables
from workbench.models import KeyValueCache, transformer
from workbench.models.checks import run_watched
from workbench.models.costs import on_meta
from workbench.models.load import load, resolve_devices
from workbench.models.masks import Padding
from workbench.models.spread import assign, spread

PLAIN = ["janus-small", "janus-v3", "untied-softcap", "parallel", "normed-twice", "post-normed"]


def move_fake(part: torch.nn.Module, device: str) -> None:
    """What `Module.to` does, which cannot replace fake parameters."""
    for module in part.modules():
        for name, p in module._parameters.items():
            if p is not None:
                fake = torch.empty_strided(p.shape, p.stride(), dtype=p.dtype, device=device)
                module._parameters[name] = torch.nn.Parameter(fake, requires_grad=False)


def plain_cross_entropy(x, W_U, targets, *, b_U, **_):
    logits = x @ W_U if b_U is None else x @ W_U + b_U
    return torch.nn.functional.cross_entropy(logits, targets)


@pytest.mark.parametrize("kind", PLAIN)
@torch.no_grad()
def test_every_operation_finds_its_tensors_on_one_device(kind, monkeypatch):
    cfg = small_config(kind)
    model = on_meta(cfg)
    monkeypatch.setattr(torch.nn.Module, "to", move_fake)
    # autocast, which the loss leaves, knows no meta
    monkeypatch.setattr(transformer, "linear_cross_entropy", plain_cross_entropy)
    with FakeTensorMode(allow_non_fake_inputs=True):
        spread(model, ["meta:0", "meta:1"])
        assert model.is_spread
        assert {str(p.device) for p in model.blocks[0].parameters()} == {"meta:0"}
        assert {str(p.device) for p in model.blocks[-1].parameters()} == {"meta:1"}
        tokens = torch.zeros(2, 8, dtype=torch.long, device="meta:0")
        for kind_of_output in ("logits", "loss"):
            assert str(model(tokens, return_type=kind_of_output).device) == "meta:0"
        _, cache = model.run_with_cache(tokens, return_cache_object=False)
        assert {str(cache[f"blocks.{layer}.hook_resid_post"].device) for layer in range(cfg.n_layers)} == {
            "meta:0", "meta:1"
        }  # fmt: skip
        past = KeyValueCache(capacity=16)
        for _ in range(2):
            assert model(tokens, past_kv_cache=past).shape == (2, 8, cfg.d_vocab)
        padding = Padding(torch.ones(2, 8, dtype=torch.bool, device="meta:0"), 8)
        state = model.embed_state(tokens, 0, padding)
        for block in model.blocks:
            state = block(state, None, model.read_out, padding)
        assert str(model.to_logits(state).device) == "meta:0"
        name = f"blocks.{cfg.n_layers - 1}.attn.hook_z"
        assert str(run_watched(model, tokens, [name], None)[name].device) == "meta:0"


def test_what_cannot_be_spread_is_refused(tmp_path):
    with pytest.raises(ValueError, match="device: got several for a model whose layers read more than one stream"):
        spread(small_model("attn-res"), ["cpu", "cpu"])
    with pytest.raises(ValueError, match="device: got 9 for 3 layers; expected a layer for each"):
        spread(small_model("janus-v3", n_layers=3), ["cpu"] * 9)
    with pytest.raises(ValueError, match="device: got 'cpu,cpu'; expected different devices"):
        resolve_devices("cpu,cpu")
    assert resolve_devices("cpu") == ["cpu"]


@pytest.mark.parametrize("n_devices", [1, 2, 3, 5, 8])
def test_layers_are_shared_out_in_order_and_about_evenly(n_devices):
    for sizes in ([7] * 8, [40, 7, 7, 7, 7, 7, 7, 7], [7, 7, 7, 7, 7, 7, 7, 90], [1, 2, 3, 4, 5, 6, 7, 8]):
        places = assign(sizes, n_devices)
        assert places == sorted(places)
        assert set(places) == set(range(n_devices))
        held = [sum(size for size, place in zip(sizes, places, strict=True) if place == own) for own in set(places)]
        assert max(held) <= sum(sizes) / n_devices + max(sizes)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.filterwarnings("ignore::probes.SmallSampleWarning")
def test_two_gpus_give_what_one_gives(tmp_path):
    model = small_model("janus-v3")
    from workbench.models.checkpoint import save

    save(model, tmp_path)
    one, two = load(tmp_path, "cuda:0"), load(tmp_path, "cuda:0,cuda:1")
    tokens = tokens_for(model).cuda()
    torch.testing.assert_close(one(tokens), two(tokens))
    for of in (topology_tables, ablate):
        found = [of(own, tokens.cpu()) for own in (one, two)]
        frames = [own if isinstance(own, tuple) else (own,) for own in found]
        for a, b in zip(*frames, strict=True):
            values = [frame.select_dtypes("number").to_numpy() for frame in (a, b)]
            torch.testing.assert_close(*map(torch.from_numpy, values), equal_nan=True, rtol=1e-4, atol=1e-5)
