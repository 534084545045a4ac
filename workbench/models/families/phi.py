"""Phi 1 and 2: parallel blocks under one LayerNorm, biases everywhere, rotary positions of a share of each head."""

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
    layer_norm,
    out_of_heads,
    product,
    shared,
    whole,
)
from workbench.models.rope import read_rope, write_rope


def read(config: Described) -> ModelConfig:
    """Norms of queries and keys, which are LayerNorms here, cannot be expressed."""
    config.only(qk_layernorm=False)
    width, heads = config.count("hidden_size"), config.count("num_attention_heads")
    kv_heads, d_head = config.get("num_key_value_heads") or heads, config.get("head_dim") or width // heads
    rope = read_rope(config, d_head, partial=0.5)
    own = {"qkv_bias": True, "out_bias": True, "mlp_bias": True, "unembed_bias": True, "rope": rope.pop("rope", None)}
    return ModelConfig(
        model_name=config.get("_name_or_path") or "phi",
        n_layers=config.count("num_hidden_layers"),
        d_model=width,
        n_ctx=config.count("max_position_embeddings"),
        d_vocab=config.count("vocab_size"),
        tie_word_embeddings=config.get("tie_word_embeddings", False),
        initializer_range=config.get("initializer_range", 0.02),
        n_heads=heads,
        n_key_value_heads=None if kv_heads == heads else kv_heads,
        d_head=d_head,
        d_mlp=config.count("intermediate_size"),
        act_fn=config.activation("hidden_act", "gelu_new"),
        gated_mlp=False,
        normalization_type="LN",
        eps=config.get("layer_norm_eps", 1e-5),
        positional_embedding_type="rotary",
        parallel_attn_mlp=True,
        extensions=Extensions(**own),
        **rope,
    )


def write(cfg: ModelConfig) -> dict[str, Any]:
    """Their file."""
    return {
        "hidden_size": cfg.d_model,
        "intermediate_size": cfg.d_mlp,
        "num_hidden_layers": cfg.n_layers,
        "num_attention_heads": cfg.n_heads,
        "num_key_value_heads": cfg.kv_heads,
        "head_dim": cfg.d_head,
        "hidden_act": cfg.act_fn,
        "max_position_embeddings": cfg.n_ctx,
        "layer_norm_eps": cfg.eps,
        # here the share is a half where nothing is said
        "rope_parameters": {"partial_rotary_factor": 1.0} | write_rope(cfg),
        "tie_word_embeddings": cfg.tie_word_embeddings,
        "vocab_size": cfg.d_vocab,
        "initializer_range": cfg.initializer_range,
    }


def layout(cfg: ModelConfig, config: Mapping[str, Any]) -> Iterator[Entry]:
    """Tensors under Phi's names; the one norm of a block is both of ours."""
    width, grouped = cfg.d_model, "_" if cfg.n_key_value_heads is not None else ""
    yield whole("model.embed_tokens.weight", "embed.W_E", cfg.d_vocab, width)
    if not cfg.tie_word_embeddings:
        yield product("lm_head.weight", "unembed.W_U", width, cfg.d_vocab)
    yield whole("lm_head.bias", "unembed.b_U", cfg.d_vocab)
    yield from layer_norm("model.final_layernorm", "ln_final", width)
    for layer in range(cfg.n_layers):
        src, dst = f"model.layers.{layer}.", f"blocks.{layer}."
        for leaf, own in (("weight", "w"), ("bias", "b")):
            yield shared(f"{src}input_layernorm.{leaf}", [f"{dst}ln1.{own}", f"{dst}ln2.{own}"], width)
        parts = (("Q", "", cfg.n_heads), ("K", grouped, cfg.kv_heads), ("V", grouped, cfg.kv_heads))
        for letter, prefix, heads in parts:
            theirs = f"{src}self_attn.{letter.lower()}_proj."
            yield into_heads(theirs + "weight", f"{dst}attn.{prefix}W_{letter}", heads, cfg.d_head, width)
            yield head_bias(theirs + "bias", f"{dst}attn.{prefix}b_{letter}", heads, cfg.d_head)
        yield out_of_heads(src + "self_attn.dense.weight", dst + "attn.W_O", cfg.n_heads, cfg.d_head, width)
        yield whole(src + "self_attn.dense.bias", dst + "attn.b_O", width)
        for theirs, own, n_in, n_out in (("fc1", "in", width, cfg.d_mlp), ("fc2", "out", cfg.d_mlp, width)):
            yield product(f"{src}mlp.{theirs}.weight", f"{dst}mlp.W_{own}", n_in, n_out)
            yield whole(f"{src}mlp.{theirs}.bias", f"{dst}mlp.b_{own}", n_out)


FAMILY = Family(
    model_type="phi",
    architecture="PhiForCausalLM",
    read=read,
    write=write,
    layout=layout,
    embedding="model.embed_tokens.weight",
)
