"""Phi 3 and 4: as Llama, with queries, keys and values in one tensor, and both inputs of the MLP in another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from workbench.models.config import ModelConfig
from workbench.models.families.llama import NORMS, ends, read_llama, write
from workbench.models.families.mistral import read_window
from workbench.models.family import Described, Entry, Family, into_heads, joined, out_of_heads, product, whole

_AS_LONGROPE = ("su", "yarn")  # older names of what the class computes


def read(config: Described) -> ModelConfig:
    """Windows of all layers; rotary positions of a share of each head, and for long contexts."""
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    kind = rope.get("rope_type", rope.get("type")) if isinstance(rope, dict) else None
    values = dict(config.values)
    if kind in _AS_LONGROPE:
        values |= {"rope_scaling": dict(rope) | {"rope_type": "longrope"}}
    own = Described(values, config.source)
    return read_llama(own, partial=1.0, **read_window(own))


def own_write(cfg: ModelConfig) -> dict[str, Any]:
    """Their file."""
    # the class's own padding id is beyond a small vocabulary
    fields = write(cfg) | {"sliding_window": cfg.window_size, "pad_token_id": None}
    rope = cfg.extensions.rope
    if rope is not None:
        fields["original_max_position_embeddings"] = rope.original_max_position_embeddings
    return fields


def layout(cfg: ModelConfig, config: Mapping[str, Any]) -> Iterator[Entry]:
    """Tensors under Phi 3's names."""
    grouped = "_" if cfg.n_key_value_heads is not None else ""
    yield from ends(cfg)
    yield whole("model.norm.weight", "ln_final.w", cfg.d_model)
    for layer in range(cfg.n_layers):
        src, dst = f"model.layers.{layer}.", f"blocks.{layer}."
        for theirs, ours in NORMS.items():
            yield whole(f"{src}{theirs}.weight", f"{dst}{ours}.w", cfg.d_model)
        parts = (("Q", "", cfg.n_heads), ("K", grouped, cfg.kv_heads), ("V", grouped, cfg.kv_heads))
        weights = [
            into_heads(
                "", f"{dst}attn.{prefix}W_{own}", n, cfg.d_head, cfg.d_model, cfg.rotary_adjacent_pairs and own != "V"
            )
            for own, prefix, n in parts
        ]
        yield joined(src + "self_attn.qkv_proj.weight", weights)
        yield out_of_heads(src + "self_attn.o_proj.weight", dst + "attn.W_O", cfg.n_heads, cfg.d_head, cfg.d_model)
        inner = [product("", f"{dst}mlp.{own}", cfg.d_model, cfg.d_mlp) for own in ("W_gate", "W_in")]
        yield joined(src + "mlp.gate_up_proj.weight", inner)
        yield product(src + "mlp.down_proj.weight", dst + "mlp.W_out", cfg.d_mlp, cfg.d_model)


FAMILY = Family(
    model_type="phi3",
    architecture="Phi3ForCausalLM",
    read=read,
    write=own_write,
    layout=layout,
    embedding="model.embed_tokens.weight",
    defaults={"rms_norm_eps": 1e-5, "sliding_window": None},
)
