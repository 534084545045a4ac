"""Llama, and what is built as it is: RMSNorm, rotary positions, a gated MLP; biases of attention all or none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from workbench.models.config import Extensions, ModelConfig
from workbench.models.family import (
    Described,
    Entry,
    Family,
    head_bias,
    head_norm,
    into_heads,
    out_of_heads,
    product,
    whole,
)
from workbench.models.rope import read_rope, write_rope

# written beside the standard keys so that a round trip gives back the very weights: which rotary pairing they had here
MARK = "workbench_rotary_adjacent_pairs"
# likewise: whether the output biases are zeros that were added to have this class of transformers for another
MARK_ZERO_BIAS = "workbench_zero_output_bias"


def read_llama(config: Described, *, partial: float | None = None, **changes: Any) -> ModelConfig:
    """The fields that the families built like Llama share; `changes` are a family's own."""
    heads, width = config.count("num_attention_heads"), config.count("hidden_size")
    kv_heads = config.get("num_key_value_heads") or heads
    if config.get("mlp_bias"):
        raise ValueError(f"{config.source}: mlp_bias = true; a gated MLP's inner biases cannot be expressed")
    fields = {
        "model_name": config.get("_name_or_path") or config.need("model_type"),
        "n_layers": config.count("num_hidden_layers"),
        "d_model": width,
        "n_ctx": config.count("max_position_embeddings"),
        "d_vocab": config.count("vocab_size"),
        "tie_word_embeddings": config.get("tie_word_embeddings", False),
        "initializer_range": config.get("initializer_range", 0.02),
        "n_heads": heads,
        "n_key_value_heads": None if kv_heads == heads else kv_heads,
        "d_head": config.get("head_dim") or width // heads,
        "d_mlp": config.count("intermediate_size"),
        "act_fn": config.activation("hidden_act", "silu"),
        "gated_mlp": True,
        "normalization_type": "RMS",
        "eps": config.get("rms_norm_eps", 1e-6),
        "positional_embedding_type": "rotary",
        "rotary_adjacent_pairs": bool(config.get(MARK, False)),
    }
    rope = read_rope(config, fields["d_head"], partial=partial)
    extensions = {"rope": rope.pop("rope", None)} | changes.pop("extensions", {})
    return ModelConfig(**fields | rope | changes, extensions=Extensions(**extensions))


def read(config: Described) -> ModelConfig:
    """Biases of queries, keys and values, and, unless it is zeros that were added, of the output."""
    bias = bool(config.get("attention_bias", False))
    return read_llama(config, extensions={"qkv_bias": bias, "out_bias": bias and not config.get(MARK_ZERO_BIAS)})


def write(cfg: ModelConfig) -> dict[str, Any]:
    """The keys that these families share."""
    return {
        "hidden_size": cfg.d_model,
        "intermediate_size": cfg.d_mlp,
        "num_hidden_layers": cfg.n_layers,
        "num_attention_heads": cfg.n_heads,
        "num_key_value_heads": cfg.kv_heads,
        "head_dim": cfg.d_head,
        "hidden_act": cfg.act_fn,
        "max_position_embeddings": cfg.n_ctx,
        "rms_norm_eps": cfg.eps,
        "rope_parameters": write_rope(cfg),
        "tie_word_embeddings": cfg.tie_word_embeddings,
        "vocab_size": cfg.d_vocab,
        "attention_bias": cfg.extensions.qkv_bias,
        "initializer_range": cfg.initializer_range,
        MARK: cfg.rotary_adjacent_pairs,
    }


NORMS = {"input_layernorm": "ln1", "post_attention_layernorm": "ln2"}


def layout(cfg: ModelConfig, config: Mapping[str, Any], norms: Mapping[str, str] = NORMS) -> Iterator[Entry]:
    """Tensors under Llama's names; of queries, keys and values as many heads as there are, and norms and biases."""
    yield from ends(cfg)
    yield whole("model.norm.weight", "ln_final.w", cfg.d_model)
    for layer in range(cfg.n_layers):
        src, dst = f"model.layers.{layer}.", f"blocks.{layer}."
        for theirs, ours in norms.items():
            yield whole(f"{src}{theirs}.weight", f"{dst}{ours}.w", cfg.d_model)
        yield from attention(cfg, src + "self_attn.", dst + "attn.")
        if config.get(MARK_ZERO_BIAS):
            yield _zeros(src + "self_attn.o_proj.bias", cfg.d_model)
        yield from gated_mlp(cfg, src + "mlp.", dst + "mlp.")


def ends(cfg: ModelConfig) -> Iterator[Entry]:
    """Embedding, and the unembedding where it is not the same."""
    yield whole("model.embed_tokens.weight", "embed.W_E", cfg.d_vocab, cfg.d_model)
    if not cfg.tie_word_embeddings:
        yield product("lm_head.weight", "unembed.W_U", cfg.d_model, cfg.d_vocab)


def gated_mlp(cfg: ModelConfig, src: str, dst: str) -> Iterator[Entry]:
    """gate_proj, up_proj, down_proj of one layer."""
    for theirs, ours in (("gate", "W_gate"), ("up", "W_in")):
        yield product(f"{src}{theirs}_proj.weight", dst + ours, cfg.d_model, cfg.d_mlp)
    yield product(src + "down_proj.weight", dst + "W_out", cfg.d_mlp, cfg.d_model)


def attention(cfg: ModelConfig, src: str, dst: str) -> Iterator[Entry]:
    """q_proj, k_proj, v_proj, o_proj, q_norm, k_norm of one layer."""
    grouped = "_" if cfg.n_key_value_heads is not None else ""
    for letter, prefix, heads in (("Q", "", cfg.n_heads), ("K", grouped, cfg.kv_heads), ("V", grouped, cfg.kv_heads)):
        theirs, turned = f"{src}{letter.lower()}_", cfg.rotary_adjacent_pairs and letter != "V"
        yield into_heads(f"{theirs}proj.weight", f"{dst}{prefix}W_{letter}", heads, cfg.d_head, cfg.d_model, turned)
        if cfg.extensions.qkv_bias:
            yield head_bias(f"{theirs}proj.bias", f"{dst}{prefix}b_{letter}", heads, cfg.d_head, turned)
        if cfg.use_qk_norm and letter != "V":
            n_normed = heads if cfg.extensions.wide_qk_norm else 1
            yield head_norm(f"{theirs}norm.weight", f"{dst}{letter.lower()}_norm.w", n_normed, cfg.d_head, turned)
    yield out_of_heads(src + "o_proj.weight", dst + "W_O", cfg.n_heads, cfg.d_head, cfg.d_model)
    if cfg.extensions.out_bias:
        yield whole(src + "o_proj.bias", dst + "b_O", cfg.d_model)


def _zeros(theirs: str, n: int) -> Entry:
    def split(t: torch.Tensor) -> list[torch.Tensor]:
        if bool(t.any()):
            raise ValueError(f"{theirs} is not zero; expected zeros where {MARK_ZERO_BIAS} is true")
        return []

    return Entry(theirs, (), (n,), split, lambda: torch.zeros(n))


FAMILY = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    read=read,
    write=write,
    layout=layout,
    embedding="model.embed_tokens.weight",
)
