"""GPT-Neo: as GPT-2 with scores that are not scaled, layers with windows by turns, and no biases before attention."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from workbench.models.config import Extensions, ModelConfig
from workbench.models.families.gpt2 import frame
from workbench.models.family import Described, Entry, Family, into_heads, out_of_heads, product, whole


def read(config: Described) -> ModelConfig:
    """attention_types are pairs (kinds, how often they follow each other)."""
    width, heads, n_layers = config.count("hidden_size"), config.count("num_heads"), config.count("num_layers")
    types = [
        kind for kinds, times in config.get("attention_types", [[["global", "local"], 12]]) for kind in kinds * times
    ]
    if len(types) != n_layers or not set(types) <= {"global", "local"}:
        raise config.wrong("attention_types", f"global or local for each of num_layers = {n_layers}")
    windows: dict[str, Any] = {}
    if "local" in types:
        windows = {"window_size": config.count("window_size"), "attn_types": tuple(types)}
    return ModelConfig(
        model_name=config.get("_name_or_path") or "gpt_neo",
        n_layers=n_layers,
        d_model=width,
        n_ctx=config.count("max_position_embeddings"),
        d_vocab=config.count("vocab_size"),
        tie_word_embeddings=config.get("tie_word_embeddings", True),
        initializer_range=config.get("initializer_range", 0.02),
        n_heads=heads,
        d_head=width // heads,
        attn_scale=1.0,
        d_mlp=config.get("intermediate_size") or 4 * width,
        act_fn=config.activation("activation_function", "gelu_new"),
        gated_mlp=False,
        normalization_type="LN",
        eps=config.get("layer_norm_epsilon", 1e-5),
        positional_embedding_type="standard",
        extensions=Extensions(out_bias=True, mlp_bias=True),
        **windows,
    )


def write(cfg: ModelConfig) -> dict[str, Any]:
    """Their file."""
    types = ["local" if cfg.is_local(layer) else "global" for layer in range(cfg.n_layers)]
    return {
        "hidden_size": cfg.d_model,
        "num_heads": cfg.n_heads,
        "num_layers": cfg.n_layers,
        "attention_types": [[[kind], 1] for kind in types],
        "window_size": cfg.window_size or 256,
        "max_position_embeddings": cfg.n_ctx,
        "intermediate_size": cfg.d_mlp,
        "vocab_size": cfg.d_vocab,
        "activation_function": cfg.act_fn,
        "layer_norm_epsilon": cfg.eps,
        "tie_word_embeddings": cfg.tie_word_embeddings,
        "initializer_range": cfg.initializer_range,
    }


def layout(cfg: ModelConfig, config: Mapping[str, Any]) -> Iterator[Entry]:
    """Tensors under GPT-Neo's names."""
    width, shape = cfg.d_model, (cfg.n_heads, cfg.d_head)
    yield from frame(cfg)
    for layer in range(cfg.n_layers):
        src, dst = f"transformer.h.{layer}.", f"blocks.{layer}."
        for letter in "QKV":
            yield into_heads(
                f"{src}attn.attention.{letter.lower()}_proj.weight", f"{dst}attn.W_{letter}", *shape, width
            )
        yield out_of_heads(src + "attn.attention.out_proj.weight", dst + "attn.W_O", *shape, width)
        yield whole(src + "attn.attention.out_proj.bias", dst + "attn.b_O", width)
        for theirs, own, n_in, n_out in (("c_fc", "in", width, cfg.d_mlp), ("c_proj", "out", cfg.d_mlp, width)):
            yield product(f"{src}mlp.{theirs}.weight", f"{dst}mlp.W_{own}", n_in, n_out)
            yield whole(f"{src}mlp.{theirs}.bias", f"{dst}mlp.b_{own}", n_out)


FAMILY = Family(
    model_type="gpt_neo",
    architecture="GPTNeoForCausalLM",
    read=read,
    write=write,
    layout=layout,
    embedding="transformer.wte.weight",
    base="transformer.",
    passed_over=(".attn.attention.bias", ".attn.attention.masked_bias"),
)
