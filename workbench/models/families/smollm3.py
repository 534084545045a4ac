"""SmolLM3: as Llama, with layers, by default every fourth, whose queries and keys are not rotated."""

from __future__ import annotations

from workbench.models.config import ModelConfig
from workbench.models.families.llama import layout, read_llama, write
from workbench.models.families.qwen2 import write_windows
from workbench.models.family import Described, Family, read_layer_types


def read(config: Described) -> ModelConfig:
    """Windows, where it has them, are those of the layers that are not rotated."""
    n_layers, every = config.count("num_hidden_layers"), config.get("no_rope_layer_interval", 4)
    turned = config.get("no_rope_layers") or [int((layer + 1) % every != 0) for layer in range(n_layers)]
    unrotated = tuple(layer for layer in range(n_layers) if not turned[layer])
    window = config.get("sliding_window") if config.get("use_sliding_window") else None
    own = Described({**config.values, "sliding_window": window or None}, config.source)
    windows = read_layer_types(own, ["full_attention" if own else "sliding_attention" for own in turned])
    bias = bool(config.get("attention_bias", False))
    extensions = {"qkv_bias": bias, "out_bias": bias, "unrotated_layers": unrotated or None}
    return read_llama(config, **windows, extensions=extensions)


def own_write(cfg: ModelConfig) -> dict[str, Any]:
    """Their file."""
    unrotated = cfg.extensions.unrotated_layers or ()
    turned = [int(layer not in unrotated) for layer in range(cfg.n_layers)]
    # the class's own padding id is beyond a small vocabulary
    return write(cfg) | {"no_rope_layers": turned, "pad_token_id": None} | write_windows(cfg)


FAMILY = Family(
    model_type="smollm3",
    architecture="SmolLM3ForCausalLM",
    read=read,
    write=own_write,
    layout=layout,
    embedding="model.embed_tokens.weight",
    defaults={"num_key_value_heads": 4, "tie_word_embeddings": True},
)
