"""OLMo 2: as Llama, with norms behind sub-layers in place of before, and norms of all queries and of all keys."""

from __future__ import annotations

from workbench.models.config import ModelConfig
from workbench.models.families.llama import layout, read_llama, write
from workbench.models.family import Described, Family

NORMS = {"post_attention_layernorm": "ln1", "post_feedforward_layernorm": "ln2"}


def read(config: Described) -> ModelConfig:
    """All biases of attention, or none."""
    bias = bool(config.get("attention_bias", False))
    extensions = {"qkv_bias": bias, "out_bias": bias, "post_norm": True, "wide_qk_norm": True}
    return read_llama(config, use_qk_norm=True, extensions=extensions)


FAMILY = Family(
    model_type="olmo2",
    architecture="Olmo2ForCausalLM",
    read=read,
    write=write,
    layout=lambda cfg, config: layout(cfg, config, NORMS),
    embedding="model.embed_tokens.weight",
    defaults={"rms_norm_eps": 1e-5},
)
