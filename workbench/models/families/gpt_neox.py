"""GPT-NeoX and Pythia: LayerNorm, rotary positions of a share of each head, biases, and, mostly, parallel blocks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from workbench.models.config import Extensions, ModelConfig
from workbench.models.family import (
    Described,
    Entry,
    Family,
    interleaved,
    interleaved_bias,
    layer_norm,
    out_of_heads,
    product,
    whole,
)
from workbench.models.rope import read_rope, write_rope


def read(config: Described) -> ModelConfig:
    """Biases of attention all or none; the MLP always has them."""
    width, heads = config.count("hidden_size"), config.count("num_attention_heads")
    bias = bool(config.get("attention_bias", True))
    rope = read_rope(config, width // heads, partial=0.25)
    return ModelConfig(
        model_name=config.get("_name_or_path") or "gpt_neox",
        n_layers=config.count("num_hidden_layers"),
        d_model=width,
        n_ctx=config.count("max_position_embeddings"),
        d_vocab=config.count("vocab_size"),
        tie_word_embeddings=config.get("tie_word_embeddings", False),
        initializer_range=config.get("initializer_range", 0.02),
        n_heads=heads,
        d_head=width // heads,
        d_mlp=config.count("intermediate_size"),
        act_fn=config.activation("hidden_act", "gelu"),
        gated_mlp=False,
        normalization_type="LN",
        eps=config.get("layer_norm_eps", 1e-5),
        positional_embedding_type="rotary",
        parallel_attn_mlp=bool(config.get("use_parallel_residual", True)),
        extensions=Extensions(qkv_bias=bias, out_bias=bias, mlp_bias=True, rope=rope.pop("rope", None)),
        **rope,
    )


def write(cfg: ModelConfig) -> dict[str, Any]:
    """Their file."""
    return {
        "hidden_size": cfg.d_model,
        "intermediate_size": cfg.d_mlp,
        "num_hidden_layers": cfg.n_layers,
        "num_attention_heads": cfg.n_heads,
        "hidden_act": cfg.act_fn,
        "max_position_embeddings": cfg.n_ctx,
        "layer_norm_eps": cfg.eps,
        # here the share is a quarter where nothing is said
        "rope_parameters": {"partial_rotary_factor": 1.0} | write_rope(cfg),
        "tie_word_embeddings": cfg.tie_word_embeddings,
        "vocab_size": cfg.d_vocab,
        "attention_bias": cfg.extensions.qkv_bias,
        "use_parallel_residual": cfg.parallel_attn_mlp,
        "initializer_range": cfg.initializer_range,
    }


def layout(cfg: ModelConfig, config: Mapping[str, Any]) -> Iterator[Entry]:
    """Tensors under GPT-NeoX's names."""
    width, shape, ext = cfg.d_model, (cfg.n_heads, cfg.d_head), cfg.extensions
    yield whole("gpt_neox.embed_in.weight", "embed.W_E", cfg.d_vocab, width)
    yield from layer_norm("gpt_neox.final_layer_norm", "ln_final", width)
    if not cfg.tie_word_embeddings:
        yield product("embed_out.weight", "unembed.W_U", width, cfg.d_vocab)
    for layer in range(cfg.n_layers):
        src, dst = f"gpt_neox.layers.{layer}.", f"blocks.{layer}."
        yield from layer_norm(src + "input_layernorm", dst + "ln1", width)
        yield from layer_norm(src + "post_attention_layernorm", dst + "ln2", width)
        names = [f"{dst}attn.W_{letter}" for letter in "QKV"]
        yield interleaved(src + "attention.query_key_value.weight", names, *shape, width)
        yield out_of_heads(src + "attention.dense.weight", dst + "attn.W_O", *shape, width)
        if ext.qkv_bias:
            biases = [f"{dst}attn.b_{letter}" for letter in "QKV"]
            yield interleaved_bias(src + "attention.query_key_value.bias", biases, *shape)
        if ext.out_bias:
            yield whole(src + "attention.dense.bias", dst + "attn.b_O", width)
        for theirs, own, n_in, n_out in (("h_to_4h", "in", width, cfg.d_mlp), ("4h_to_h", "out", cfg.d_mlp, width)):
            yield product(f"{src}mlp.dense_{theirs}.weight", f"{dst}mlp.W_{own}", n_in, n_out)
            yield whole(f"{src}mlp.dense_{theirs}.bias", f"{dst}mlp.b_{own}", n_out)


FAMILY = Family(
    model_type="gpt_neox",
    architecture="GPTNeoXForCausalLM",
    read=read,
    write=write,
    layout=layout,
    embedding="gpt_neox.embed_in.weight",
    head="embed_out.weight",
    base="gpt_neox.",
    passed_over=(".rotary_emb.inv_freq", ".attention.bias", ".attention.masked_bias"),
)
