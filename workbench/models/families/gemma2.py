"""Gemma 2: as Gemma, with norms behind sub-layers too, soft caps, and windows in every other layer."""

from __future__ import annotations

from typing import Any

from workbench.models.config import ModelConfig
from workbench.models.families.gemma import gelu, read_gemma
from workbench.models.families.llama import layout, write
from workbench.models.family import Described, Family, layer_types, read_layer_types

NORMS = {
    "input_layernorm": "ln1",
    "post_attention_layernorm": "ln1_post",
    "pre_feedforward_layernorm": "ln2",
    "post_feedforward_layernorm": "ln2_post",
}
_DEFAULTS: dict[str, Any] = {
    "num_key_value_heads": 4,
    "head_dim": 256,
    "tie_word_embeddings": True,
    "sliding_window": 4096,
    "query_pre_attn_scalar": 256,
}


def read(config: Described) -> ModelConfig:
    """Layers are local and global by turns, where `layer_types` says nothing else."""
    n_layers = config.count("num_hidden_layers")
    turns = ["full_attention" if layer % 2 else "sliding_attention" for layer in range(n_layers)]
    return read_gemma(config, activation="hidden_activation", **read_normed(config), **read_layer_types(config, turns))


def read_normed(config: Described) -> dict[str, Any]:
    """Norms on both sides, the scale of scores, and caps."""
    return {
        "use_normalization_before_and_after": True,
        "attn_scale": float(config.need("query_pre_attn_scalar")) ** 0.5,
        "attn_scores_soft_cap": config.get("attn_logit_softcapping") or -1.0,
        "output_logits_soft_cap": config.get("final_logit_softcapping") or -1.0,
    }


def own_write(cfg: ModelConfig) -> dict[str, Any]:
    """Their file."""
    fields = write(cfg)
    del fields["hidden_act"]
    cap = {"attn_logit_softcapping": cfg.attn_scores_soft_cap, "final_logit_softcapping": cfg.output_logits_soft_cap}
    return fields | {
        "hidden_activation": gelu(cfg),
        "query_pre_attn_scalar": _whole(cfg.scale**2),
        "sliding_window": cfg.window_size or cfg.n_ctx,
        "layer_types": layer_types(cfg),
        **{key: value if value > 0 else None for key, value in cap.items()},
    }


def _whole(value: float) -> int | float:
    return round(value) if abs(value - round(value)) < 1e-6 else value


FAMILY = Family(
    model_type="gemma2",
    architecture="Gemma2ForCausalLM",
    read=read,
    write=own_write,
    layout=lambda cfg, config: layout(cfg, config, NORMS),
    embedding="model.embed_tokens.weight",
    defaults=_DEFAULTS | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
)
