"""Qwen 3: as Llama, with a norm of each head's queries and keys, and Qwen 2's windows."""

from __future__ import annotations

from workbench.models.config import ModelConfig
from workbench.models.families.llama import layout, read_llama, write
from workbench.models.families.qwen2 import read_windows, write_windows
from workbench.models.family import Described, Family


def read(config: Described) -> ModelConfig:
    """All biases of attention, or none."""
    bias = bool(config.get("attention_bias", False))
    biases = {"qkv_bias": bias, "out_bias": bias}
    return read_llama(config, **read_windows(config), use_qk_norm=True, extensions=biases)


FAMILY = Family(
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    read=read,
    write=lambda cfg: write(cfg) | write_windows(cfg),
    layout=layout,
    embedding="model.embed_tokens.weight",
    defaults={"num_key_value_heads": 32, "head_dim": 128},
)
