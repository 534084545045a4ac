"""Gemma: as Llama, with norms by 1 + w, an embedding times √d_model, and a gated MLP of gelu."""

from __future__ import annotations

from typing import Any

from workbench.models.config import ModelConfig
from workbench.models.families.llama import layout, read_llama, write
from workbench.models.family import Described, Family


def read(config: Described) -> ModelConfig:
    """All biases of attention, or none."""
    return read_gemma(config)


def read_gemma(config: Described, *, activation: str = "hidden_act", **changes: Any) -> ModelConfig:
    """The fields that the three Gemmas share; `changes` are a family's own."""
    if config.get("use_bidirectional_attention"):
        raise config.wrong("use_bidirectional_attention", "false: attention here is causal")
    bias = bool(config.get("attention_bias", False))
    extensions = {"qkv_bias": bias, "out_bias": bias, "norm_plus_one": True}
    extensions |= {"embed_scale": config.count("hidden_size") ** 0.5} | changes.pop("extensions", {})
    act_fn = config.activation(activation, "gelu_pytorch_tanh")
    return read_llama(config, **{"act_fn": act_fn} | changes, extensions=extensions)


FAMILY = Family(
    model_type="gemma",
    architecture="GemmaForCausalLM",
    read=read,
    write=lambda cfg: write(cfg) | {"hidden_act": gelu(cfg)},
    layout=layout,
    embedding="model.embed_tokens.weight",
    defaults={
        "num_key_value_heads": 16,
        "head_dim": 256,
        "tie_word_embeddings": True,
        "hidden_act": "gelu_pytorch_tanh",
    },
)


def gelu(cfg: ModelConfig) -> str:
    """The activation under the name that these classes know."""
    return "gelu_pytorch_tanh" if cfg.act_fn == "gelu_new" else cfg.act_fn
