"""A TransformerLens bridge around a Hugging Face model as the subject of every experiment."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from workbench.experiments.ablation.ablate import ablate
from workbench.experiments.attention import attention
from workbench.experiments.harvest import harvest, read_shards, stream
from workbench.experiments.topology import topology
from workbench.models.load import load

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:topology. 48 tokens:probes.SmallSampleWarning"),
]
Z, RESID = "blocks.0.attn.hook_z", "blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A small random GPT-2 as a bridge, and as our model."""
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(n_layer=2, n_head=4, n_embd=32, n_positions=24, vocab_size=61, initializer_range=0.3)
    folder = tmp_path_factory.mktemp("gpt2")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = GPT2LMHeadModel(config).eval()
    model.save_pretrained(folder)
    return load(folder), TransformerBridge.boot_transformers(str(folder), hf_model=model)


@pytest.fixture(scope="module")
def tokens():
    return torch.randint(0, 61, (4, 12), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", ["zero", "mean", "resample"])
def test_ablation(pair, tokens, kind):
    ours, theirs = (ablate(model, tokens, kind=kind, n_bootstrap=100) for model in pair)
    for column in ("layer", "head", "base_loss", "impact_pct", "stderr", "ci_low", "ci_high", "kl"):
        # two implementations in float32; impacts are some per cent
        np.testing.assert_allclose(ours[column], theirs[column], atol=2e-4, err_msg=column)


def test_topology_and_attention(pair, tokens):
    ours, theirs = (topology(model, tokens) for model in pair)
    np.testing.assert_allclose(ours[["max_cos", "mean_cos"]], theirs[["max_cos", "mean_cos"]], atol=1e-5)
    ours, theirs = (attention(model, tokens, n_repeated=0) for model in pair)
    np.testing.assert_allclose(ours[["entropy", "bos_mass"]], theirs[["entropy", "bos_mass"]], atol=1e-5)


def test_stream_and_harvest(pair, tokens, tmp_path):
    ours, theirs = (next(stream(model, tokens, [Z, RESID])) for model in pair)
    for name in (Z, RESID):
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-4, rtol=1e-4)
    harvest(pair[1], tokens, [Z], tmp_path / "h")
    part = next(read_shards(tmp_path / "h"))
    torch.testing.assert_close(part[Z], ours[Z][part["sequence"], part["position"]], atol=1e-4, rtol=1e-4)
