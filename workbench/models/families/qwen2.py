"""Qwen 2 and 2.5: as Llama, with biases of queries, keys and values alone."""

from __future__ import annotations

from workbench.models.config import Extensions, ModelConfig
from workbench.models.families.llama import MARK_ZERO_BIAS, layout, read_llama, write
from workbench.models.families.mistral import within_window
from workbench.models.family import Described, Family


def read(config: Described) -> ModelConfig:
    """The class asks no configuration about biases: it has these."""
    n_ctx = config.count("max_position_embeddings")
    return read_llama(
        config,
        n_ctx=within_window(config) if config.get("use_sliding_window", False) else n_ctx,
        extensions=Extensions(qkv_bias=True),
    )


FAMILY = Family(
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    read=read,
    write=write,
    layout=layout,
    embedding="model.embed_tokens.weight",
    defaults={"num_key_value_heads": 32},
    # transformers' tokenizer class for Qwen 2 splits texts by rules of its own, whatever tokenizer.json says
    stand_in=("llama", {MARK_ZERO_BIAS: True}),
)
