"""Mistral: as Llama, without biases, and with sliding windows."""

from __future__ import annotations

from typing import Any

from workbench.models.config import ModelConfig
from workbench.models.families.llama import layout, read_llama, write
from workbench.models.family import Described, Family

WINDOW = 4096  # of sliding attention where config.json does not name it


def read(config: Described) -> ModelConfig:
    """The class asks no configuration about biases: it has none."""
    return read_llama(config, **read_window(config))


def read_window(config: Described) -> dict[str, Any]:
    """The window of every layer, unless it is as long as the context: then it is none."""
    if not config.get("sliding_window", WINDOW):
        return {}
    window = Described({"sliding_window": WINDOW} | config.values, config.source).count("sliding_window")
    return {"window_size": window} if window < config.count("max_position_embeddings") else {}


FAMILY = Family(
    model_type="mistral",
    architecture="MistralForCausalLM",
    read=read,
    write=lambda cfg: write(cfg) | {"sliding_window": cfg.window_size},
    layout=layout,
    embedding="model.embed_tokens.weight",
    defaults={"num_key_value_heads": 8},
)
