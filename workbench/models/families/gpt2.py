"""GPT-2: LayerNorm, learned positions, biases everywhere; weights lie input first, queries, keys and values in one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from workbench.models.config import Extensions, ModelConfig
from workbench.models.family import (
    Described,
    Entry,
    Family,
    head_bias,
    into_heads,
    joined,
    layer_norm,
    out_of_heads,
    product,
    transposed,
    whole,
)


def read(config: Described) -> ModelConfig:
    """Scores divided by √d_head, or not at all."""
    config.only(scale_attn_by_inverse_layer_idx=False, add_cross_attention=False)
    width, heads = config.count("n_embd"), config.count("n_head")
    return ModelConfig(
        model_name=config.get("_name_or_path") or "gpt2",
        n_layers=config.count("n_layer"),
        d_model=width,
        n_ctx=config.count("n_positions"),
        d_vocab=config.count("vocab_size"),
        tie_word_embeddings=config.get("tie_word_embeddings", True),
        initializer_range=config.get("initializer_range", 0.02),
        n_heads=heads,
        d_head=width // heads,
        attn_scale=-1.0 if config.get("scale_attn_weights", True) else 1.0,
        d_mlp=config.get("n_inner") or 4 * width,
        act_fn=config.activation("activation_function", "gelu_new"),
        gated_mlp=False,
        normalization_type="LN",
        eps=config.get("layer_norm_epsilon", 1e-5),
        positional_embedding_type="standard",
        extensions=Extensions(qkv_bias=True, out_bias=True, mlp_bias=True),
    )


def write(cfg: ModelConfig) -> dict[str, Any]:
    """Their file."""
    return {
        "n_embd": cfg.d_model,
        "n_head": cfg.n_heads,
        "n_layer": cfg.n_layers,
        "n_positions": cfg.n_ctx,
        "n_inner": cfg.d_mlp,
        "vocab_size": cfg.d_vocab,
        "activation_function": cfg.act_fn,
        "layer_norm_epsilon": cfg.eps,
        "scale_attn_weights": abs(cfg.scale - cfg.d_head**0.5) <= 1e-9,
        "tie_word_embeddings": cfg.tie_word_embeddings,
        "initializer_range": cfg.initializer_range,
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
    }


def frame(cfg: ModelConfig) -> Iterator[Entry]:
    """Embeddings, norms and unembedding under GPT-2's names."""
    yield whole("transformer.wte.weight", "embed.W_E", cfg.d_vocab, cfg.d_model)
    yield whole("transformer.wpe.weight", "pos_embed.W_pos", cfg.n_ctx, cfg.d_model)
    yield from layer_norm("transformer.ln_f", "ln_final", cfg.d_model)
    if not cfg.tie_word_embeddings:
        yield product("lm_head.weight", "unembed.W_U", cfg.d_model, cfg.d_vocab)
    for layer in range(cfg.n_layers):
        for norm in "12":
            yield from layer_norm(f"transformer.h.{layer}.ln_{norm}", f"blocks.{layer}.ln{norm}", cfg.d_model)


def layout(cfg: ModelConfig, config: Mapping[str, Any]) -> Iterator[Entry]:
    """Tensors under GPT-2's names."""
    width, shape = cfg.d_model, (cfg.n_heads, cfg.d_head)
    yield from frame(cfg)
    for layer in range(cfg.n_layers):
        src, dst = f"transformer.h.{layer}.", f"blocks.{layer}."
        weights = [into_heads("", f"{dst}attn.W_{letter}", *shape, width) for letter in "QKV"]
        yield transposed(joined(src + "attn.c_attn.weight", weights))
        yield joined(src + "attn.c_attn.bias", [head_bias("", f"{dst}attn.b_{letter}", *shape) for letter in "QKV"])
        yield transposed(out_of_heads(src + "attn.c_proj.weight", dst + "attn.W_O", *shape, width))
        yield whole(src + "attn.c_proj.bias", dst + "attn.b_O", width)
        for theirs, own, n_in, n_out in (("c_fc", "in", width, cfg.d_mlp), ("c_proj", "out", cfg.d_mlp, width)):
            yield whole(f"{src}mlp.{theirs}.weight", f"{dst}mlp.W_{own}", n_in, n_out)
            yield whole(f"{src}mlp.{theirs}.bias", f"{dst}mlp.b_{own}", n_out)


FAMILY = Family(
    model_type="gpt2",
    architecture="GPT2LMHeadModel",
    read=read,
    write=write,
    layout=layout,
    embedding="transformer.wte.weight",
    base="transformer.",
    passed_over=(".attn.bias", ".attn.masked_bias"),
)
