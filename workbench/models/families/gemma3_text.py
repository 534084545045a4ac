"""Gemma 3, its text model: as Gemma 2 without caps, with norms of queries and keys, and a rotary base for windows."""

from __future__ import annotations

from typing import Any

from workbench.models.config import ModelConfig
from workbench.models.families.gemma import read_gemma
from workbench.models.families.gemma2 import NORMS, own_write, read_normed
from workbench.models.families.llama import layout
from workbench.models.family import Described, Family, read_layer_types
from workbench.models.rope import read_one_rope, write_rope

_LOCAL, _GLOBAL = "sliding_attention", "full_attention"
_BASES = {_LOCAL: 1e4, _GLOBAL: 1e6}


def read(config: Described) -> ModelConfig:
    """Every sixth layer is global, where `layer_types` says nothing else."""
    n_layers, pattern = config.count("num_hidden_layers"), config.get("sliding_window_pattern", 6)
    types = [_LOCAL if (layer + 1) % pattern else _GLOBAL for layer in range(n_layers)]
    parts = config.get("rope_parameters") or {}
    scaling = config.get("rope_scaling") or parts.get(_GLOBAL) or {}
    wide = read_one_rope(config, {"rope_theta": config.get("rope_theta", _BASES[_GLOBAL])} | scaling)
    local = parts.get(_LOCAL) or {}
    if local.get("rope_type", "default") != "default":
        raise ValueError(f"{config.source}: rope_type of {_LOCAL} is {local['rope_type']!r}; expected default")
    base = local.get("rope_theta", config.get("rope_local_base_freq", _BASES[_LOCAL]))
    changes = read_normed(config) | read_layer_types(config, types) | {"use_qk_norm": True}
    plain = Described({k: v for k, v in config.values.items() if not k.startswith("rope")}, config.source)
    scaled = {"rope": wide.pop("rope")} if "rope" in wide else {}
    local_base = {"rotary_base_local": base} if "window_size" in changes else {}
    return read_gemma(plain, activation="hidden_activation", **changes | wide | local_base, extensions=scaled)


def write(cfg: ModelConfig) -> dict[str, Any]:
    """Their file."""
    local = {"rope_type": "default", "rope_theta": cfg.rotary_base_local or _BASES[_LOCAL]}
    return own_write(cfg) | {"rope_parameters": {_GLOBAL: write_rope(cfg), _LOCAL: local}}


FAMILY = Family(
    model_type="gemma3_text",
    architecture="Gemma3ForCausalLM",
    read=read,
    write=write,
    layout=lambda cfg, config: layout(cfg, config, NORMS),
    embedding="model.embed_tokens.weight",
    defaults={
        "num_key_value_heads": 4,
        "head_dim": 256,
        "tie_word_embeddings": True,
        "sliding_window": 4096,
        "query_pre_attn_scalar": 256,
    },
)
