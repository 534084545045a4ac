"""StableLM: as Llama, with LayerNorms and rotary positions of a quarter of each head.

workbench --plugin docs/plugins/stablelm.py topology --ckpt stabilityai/stablelm-2-1_6b
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from workbench.models.config import ModelConfig
from workbench.models.families.llama import attention, ends, gated_mlp, read_llama, write
from workbench.models.family import Described, Entry, Family, whole


def read(config: Described) -> ModelConfig:
    """Our configuration of their file."""
    config.only(use_parallel_residual=False, qk_layernorm=False)
    return read_llama(
        config,
        partial=0.25,
        normalization_type="LN",
        eps=config.get("layer_norm_eps", 1e-5),
        extensions={"qkv_bias": bool(config.get("use_qkv_bias", False))},
    )


def own_write(cfg: ModelConfig) -> dict[str, Any]:
    """Their file of our configuration."""
    fields = write(cfg) | {"layer_norm_eps": cfg.eps, "use_qkv_bias": cfg.extensions.qkv_bias}
    return fields | {"rope_parameters": {"partial_rotary_factor": 1.0} | fields["rope_parameters"]}


def layout(cfg: ModelConfig, config: Mapping[str, Any]) -> Iterator[Entry]:
    """Their tensors beside our parameters."""
    yield from ends(cfg)
    yield from norm("model.norm", "ln_final", cfg.d_model)
    for layer in range(cfg.n_layers):
        src, dst = f"model.layers.{layer}.", f"blocks.{layer}."
        yield from norm(src + "input_layernorm", dst + "ln1", cfg.d_model)
        yield from norm(src + "post_attention_layernorm", dst + "ln2", cfg.d_model)
        yield from attention(cfg, src + "self_attn.", dst + "attn.")
        yield from gated_mlp(cfg, src + "mlp.", dst + "mlp.")


def norm(theirs: str, ours: str, n: int) -> Iterator[Entry]:
    """Weight and bias of one."""
    yield whole(theirs + ".weight", ours + ".w", n)
    yield whole(theirs + ".bias", ours + ".b", n)


stablelm = Family(
    model_type="stablelm",
    architecture="StableLmForCausalLM",
    read=read,
    write=own_write,
    layout=layout,
    embedding="model.embed_tokens.weight",
)
