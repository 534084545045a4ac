"""OLMo: as Llama, with LayerNorms that have no weights, and queries, keys and values that may be clipped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from workbench.models.config import ModelConfig
from workbench.models.families.llama import attention, ends, gated_mlp, read_llama, write
from workbench.models.family import Described, Entry, Family, given

_EPS = 1e-5  # in the class, not in the file


def read(config: Described) -> ModelConfig:
    """All biases of attention, or none."""
    bias = bool(config.get("attention_bias", False))
    norms = {"normalization_type": "LN", "eps": _EPS, "clip_qkv": config.get("clip_qkv")}
    return read_llama(config, **norms, extensions={"qkv_bias": bias, "out_bias": bias})


def own_write(cfg: ModelConfig) -> dict[str, Any]:
    """Their file."""
    fields = write(cfg) | {"clip_qkv": cfg.clip_qkv}
    del fields["rms_norm_eps"]
    return fields


def layout(cfg: ModelConfig, config: Mapping[str, Any]) -> Iterator[Entry]:
    """Llama's tensors without norms."""
    yield from ends(cfg)
    yield from _norm("ln_final", cfg)
    for layer in range(cfg.n_layers):
        src, dst = f"model.layers.{layer}.", f"blocks.{layer}."
        for norm in ("ln1", "ln2"):
            yield from _norm(dst + norm, cfg)
        yield from attention(cfg, src + "self_attn.", dst + "attn.")
        yield from gated_mlp(cfg, src + "mlp.", dst + "mlp.")


def _norm(ours: str, cfg: ModelConfig) -> Iterator[Entry]:
    yield given(ours + ".w", 1.0, cfg.d_model)
    yield given(ours + ".b", 0.0, cfg.d_model)


FAMILY = Family(
    model_type="olmo",
    architecture="OlmoForCausalLM",
    read=read,
    write=own_write,
    layout=layout,
    embedding="model.embed_tokens.weight",
)
