"""Qwen 3: as Llama, with a norm of each head's queries and keys."""

from __future__ import annotations

from workbench.models.config import Extensions, ModelConfig
from workbench.models.families.llama import layout, read_llama, write
from workbench.models.families.mistral import within_window
from workbench.models.family import Described, Family


def read(config: Described) -> ModelConfig:
    """All biases of attention, or none."""
    n_ctx = config.count("max_position_embeddings")
    bias = bool(config.get("attention_bias", False))
    return read_llama(
        config,
        n_ctx=within_window(config) if config.get("use_sliding_window", False) else n_ctx,
        use_qk_norm=True,
        extensions=Extensions(qkv_bias=bias, out_bias=bias),
    )


FAMILY = Family(
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    read=read,
    write=write,
    layout=layout,
    embedding="model.embed_tokens.weight",
    defaults={"num_key_value_heads": 32, "head_dim": 128},
)
