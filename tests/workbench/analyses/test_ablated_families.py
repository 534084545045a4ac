"""Ablation, estimates and residual cosines of families whose blocks are not Llama's, beside transformers by hand."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from workbench.analyses.ablate.ablation import ablate
from workbench.analyses.topology.heads import head_cosines
from workbench.models.direct_attribution import direct_logit_attribution
from workbench.models.load import load

SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 97,
    "max_position_embeddings": 32, "initializer_range": 0.4, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None,
}  # fmt: skip
KINDS = {
    "Gemma2Config": {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 5},
    "Gemma3TextConfig": {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 5, "sliding_window_pattern": 2},
    "Olmo2Config": {"num_key_value_heads": 2},
    "GPTNeoXConfig": {"rotary_pct": 0.5},
    "PhiConfig": {"num_key_value_heads": 2},
}
N_HEADS, D_HEAD, N_LAYERS = 4, 8, 3
TOKENS = torch.randint(2, 97, (4, 16), generator=torch.Generator().manual_seed(3))
POST_NORMED = ("Gemma2Config", "Gemma3TextConfig", "Olmo2Config")
NORMS = {"Gemma2Config": "post_attention_layernorm", "Olmo2Config": "post_attention_layernorm"}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    import transformers

    made: dict[str, Any] = {}

    def make(kind: str) -> Any:
        if kind not in made:
            config = getattr(transformers, kind)(**SIZES | KINDS[kind])
            with torch.random.fork_rng():
                torch.manual_seed(0)
                theirs = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
                with torch.no_grad():
                    for parameter in theirs.parameters():
                        parameter.add_(torch.randn_like(parameter) * 0.1)
            folder = tmp_path_factory.mktemp(kind)
            theirs.save_pretrained(folder)
            made[kind] = theirs.double(), load(folder, dtype="float64")
        return made[kind]

    return make


def layers_of(theirs: Any) -> Any:
    return theirs.base_model.layers


def writer(layer: Any) -> torch.nn.Module:
    """The module whose input is z, all heads side by side."""
    attention = layer.attention if hasattr(layer, "attention") else layer.self_attn
    return attention.dense if hasattr(attention, "dense") else attention.o_proj


@contextmanager
def editing(theirs: Any, layer: int, edit: Any):
    handle = writer(layers_of(theirs)[layer]).register_forward_pre_hook(
        lambda module, inputs: (edit(inputs[0].unflatten(-1, (N_HEADS, D_HEAD))).flatten(-2), *inputs[1:])
    )
    try:
        yield
    finally:
        handle.remove()


def loss(theirs: Any) -> float:
    logits = theirs(TOKENS).logits[:, :-1]
    return float(F.cross_entropy(logits.flatten(0, 1), TOKENS[:, 1:].flatten()))


def z_of(theirs: Any, layer: int) -> torch.Tensor:
    found: list[torch.Tensor] = []
    with editing(theirs, layer, lambda z: found.append(z) or z):
        theirs(TOKENS)
    return found[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["zero", "mean"])
@torch.no_grad()
def test_heads_are_taken_out_as_by_hand(kind, way, pair):
    theirs, ours = pair(kind)
    table = ablate(ours, TOKENS, kind=way, n_bootstrap=100)
    heads = table[table["component"] == "head"].set_index(["layer", "head"])
    assert len(heads) == N_LAYERS * N_HEADS
    base = loss(theirs)
    assert heads["base_loss"].iloc[0] == pytest.approx(base, abs=1e-6)
    for (layer, head), row in heads.iterrows():
        stand_in = 0.0 if way == "zero" else z_of(theirs, layer)[:, :, head].mean((0, 1))

        def edit(z, head=head, stand_in=stand_in):
            z = z.clone()
            z[:, :, head] = stand_in
            return z

        with editing(theirs, layer, edit):
            assert row["ablated_loss"] == pytest.approx(loss(theirs), abs=1e-6), (layer, head)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_heads_take_another_sequence_s_z_as_by_hand(kind, pair):
    theirs, ours = pair(kind)
    table = ablate(ours, TOKENS, kind="resample", seed=5, n_resamples=2, n_bootstrap=100)
    heads = table[table["component"] == "head"].set_index(["layer", "head"])
    cycle = np.random.default_rng([5, 1]).permutation(len(TOKENS))  # followed one step, and two
    for (layer, head), row in heads.iterrows():
        z, losses = z_of(theirs, layer), []
        for step in (1, 2):
            donors = torch.empty(len(TOKENS), dtype=torch.long)
            donors[cycle] = torch.from_numpy(np.roll(cycle, -step))

            def edit(own, head=head, stand_in=z[donors][:, :, head]):
                own = own.clone()
                own[:, :, head] = stand_in
                return own

            with editing(theirs, layer, edit):
                losses.append(loss(theirs))
        assert row["ablated_loss"] == pytest.approx(sum(losses) / 2, abs=1e-6), (layer, head)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_direct_attribution_is_that_by_hand_and_adds_up(kind, pair):
    theirs, ours = pair(kind)
    text, answers, foils = TOKENS[:, :-1], TOKENS[:, -1], TOKENS[:, 0]
    found = direct_logit_attribution(ours, text, answers, foils)
    effects = dict(zip(found.parts, found.effects, strict=True))
    stream, final, head = stream_before_norm(theirs, text)[:, -1], final_norm(theirs), theirs.get_output_embeddings()
    logits = head(final(stream))  # ahead of any soft cap
    picked = [logits.gather(1, ids[:, None])[:, 0] for ids in (answers, foils)]
    torch.testing.assert_close(found.effects.sum(0), picked[0] - picked[1], atol=1e-5, rtol=0)
    u = head.weight[answers] - head.weight[foils]
    for layer in range(N_LAYERS):
        own, z = layers_of(theirs)[layer], z_of(theirs, layer)[:, -2]  # what follows changes nothing before it
        W = writer(own).weight.unflatten(1, (N_HEADS, D_HEAD))
        for h in range(N_HEADS):
            written = z[:, h] @ W[:, h].T
            if kind in POST_NORMED:
                together = torch.einsum("bhe,dhe->bd", z, W)
                written = written * (own.post_attention_layernorm(together) / together)
            wanted = (u * frozen(final, stream, written)).sum(1)
            torch.testing.assert_close(effects["head", layer, h], wanted, atol=1e-5, rtol=0)


def final_norm(theirs: Any) -> torch.nn.Module:
    base = theirs.base_model
    return next(getattr(base, name) for name in ("norm", "final_layer_norm", "final_layernorm") if hasattr(base, name))


def stream_before_norm(theirs: Any, tokens: torch.Tensor) -> torch.Tensor:
    found: list[torch.Tensor] = []
    handle = final_norm(theirs).register_forward_pre_hook(lambda module, inputs: found.append(inputs[0]))
    theirs(tokens)
    handle.remove()
    return found[0]


def frozen(norm: torch.nn.Module, stream: torch.Tensor, written: torch.Tensor) -> torch.Tensor:
    """What a norm makes of a part of a stream, with the scale of the stream."""
    if isinstance(norm, torch.nn.LayerNorm):
        scale = (stream.var(-1, unbiased=False, keepdim=True) + norm.eps).sqrt()
        return norm.weight * (written - written.mean(-1, keepdim=True)) / scale
    return written * (norm(stream) / stream)


@pytest.mark.parametrize("kind", KINDS)
def test_estimates_are_the_slope_towards_zero(kind, pair):
    theirs, ours = pair(kind)
    table = ablate(ours, TOKENS, n_bootstrap=100)
    heads = table[table["component"] == "head"].set_index(["layer", "head"])
    step = 3e-3  # transformers keeps softmax and norms in float32: smaller steps show its rounding
    with torch.no_grad():
        for (layer, head), row in heads.iterrows():
            ends = []
            for sign in (1, -1):

                def shrink(z, head=head, sign=sign):
                    z = z.clone()
                    z[:, :, head] *= 1 - sign * step
                    return z

                with editing(theirs, layer, shrink):
                    ends.append(loss(theirs))
            slope = (ends[0] - ends[1]) / (2 * step)
            assert row["estimate_pct"] == pytest.approx(100 * slope / row["base_loss"], rel=5e-3, abs=5e-3)


@pytest.mark.filterwarnings("ignore::probes.SmallSampleWarning")
@pytest.mark.parametrize("kind", NORMS)
@torch.no_grad()
def test_residual_cosines_are_of_what_the_norm_makes_of_each_head(kind, pair):
    theirs, ours = pair(kind)
    table = head_cosines(ours, TOKENS)
    for layer in range(N_LAYERS):
        own = layers_of(theirs)[layer]
        z, W = z_of(theirs, layer), writer(own).weight
        norm = getattr(own, NORMS[kind])
        written = torch.stack([z[:, :, h] @ W[:, h * D_HEAD : (h + 1) * D_HEAD].T for h in range(N_HEADS)])
        together = written.sum(0)
        # what the norm multiplies by at each position and coordinate, by what it does to the sum
        entered = written * (norm(together) / together)
        flat = F.normalize(entered.flatten(1), dim=1)
        found = table[(table["layer"] == layer) & (table["basis"] == "residual")].sort_values(["head_i", "head_j"])
        wanted = (flat @ flat.T).flatten().tolist()
        assert found["cos"].tolist() == pytest.approx(wanted, abs=1e-7)  # the norm of transformers is in float32
