"""Mistral: as Llama, without biases, and with sliding windows."""

from __future__ import annotations

from workbench.models.config import ModelConfig
from workbench.models.families.llama import layout, read_llama, write
from workbench.models.family import Described, Family

_WINDOW = 4096  # of sliding attention where config.json does not name it


def within_window(config: Described) -> int:
    """Context of a model with sliding attention: within one window, that is plain causal attention."""
    n_ctx = config.count("max_position_embeddings")
    if not config.get("sliding_window", _WINDOW):
        return n_ctx
    return min(n_ctx, Described({"sliding_window": _WINDOW} | config.values, config.source).count("sliding_window"))


def read(config: Described) -> ModelConfig:
    """The class asks no configuration about biases: it has none."""
    return read_llama(config, n_ctx=within_window(config))


FAMILY = Family(
    model_type="mistral",
    architecture="MistralForCausalLM",
    read=read,
    write=lambda cfg: write(cfg) | {"sliding_window": None},
    layout=layout,
    embedding="model.embed_tokens.weight",
    defaults={"num_key_value_heads": 8},
)
