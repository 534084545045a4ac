"""Qwen 2 and 2.5: as Llama, with biases of queries, keys and values alone, and windows in its later layers."""

from __future__ import annotations

from typing import Any

from workbench.models.config import ModelConfig
from workbench.models.families.llama import MARK_ZERO_BIAS, layout, read_llama, write
from workbench.models.family import Described, Family, layer_types, read_layer_types

WINDOW = 4096
_FIRST_LOCAL = 28  # max_window_layers where config.json does not name it


def read(config: Described) -> ModelConfig:
    """The class asks no configuration about biases: it has these."""
    return read_llama(config, **read_windows(config), extensions={"qkv_bias": True})


def read_windows(config: Described) -> dict[str, Any]:
    """Windows of the layers that `layer_types` names, or from max_window_layers on."""
    window = config.get("sliding_window", WINDOW) if config.get("use_sliding_window", False) else None
    own = Described({**config.values, "sliding_window": window or None}, config.source)
    n_layers, first = own.count("num_hidden_layers"), own.get("max_window_layers", _FIRST_LOCAL)
    default = ["full_attention" if layer < first else "sliding_attention" for layer in range(n_layers)]
    return read_layer_types(own, default)


def write_windows(cfg: ModelConfig) -> dict[str, Any]:
    """Their keys of windows; none of a model without."""
    if cfg.window_size is None:
        return {}
    return {"use_sliding_window": True, "sliding_window": cfg.window_size, "layer_types": layer_types(cfg)}


FAMILY = Family(
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    read=read,
    write=lambda cfg: write(cfg) | write_windows(cfg),
    layout=layout,
    embedding="model.embed_tokens.weight",
    defaults={"num_key_value_heads": 32},
    # transformers' tokenizer class for Qwen 2 splits texts by rules of its own, whatever tokenizer.json says
    stand_in=("llama", {MARK_ZERO_BIAS: True}),
)
