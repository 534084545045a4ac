"""Hugging Face folders of the Llama and GPT-2 families: read without running any of their code, and written."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor

from workbench.models.auto_tokenizer import different_reading, load_tokenizer
from workbench.models.config import DTYPES, Extensions, ModelConfig, features_of_our_own
from workbench.models.tokenizer_files import read_generation, write_generation, write_tokenizer
from workbench.models.transformer import HookedLM
from workbench.models.weights import fill, open_tensors, widest_dtype
from workbench.runs import shorten
from workbench.runs.foreign_files import read_object
from workbench.runs.records import describe_errors, join_faults

LLAMA_FAMILY = ("llama", "mistral", "qwen2", "qwen3")
# written beside the standard keys so that a round trip gives back the very weights: which rotary pairing they had here
MARK = "workbench_rotary_adjacent_pairs"
# likewise: whether the output biases are zeros that were added to have a class of transformers for the others
MARK_ZERO_BIAS = "workbench_zero_output_bias"
_AS_LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], MARK_ZERO_BIAS: True}
# what the configuration classes of transformers take where config.json is silent, unlike Llama's
_CLASS_DEFAULTS: dict[str, dict[str, Any]] = {
    "mistral": {"num_key_value_heads": 8},
    "qwen2": {"num_key_value_heads": 32},
    "qwen3": {"num_key_value_heads": 32, "head_dim": 128},
}
_ACTIVATIONS = {"gelu_pytorch_tanh": "gelu_new", "swish": "silu", "gelu_fast": "gelu_new"}
_WINDOW = 4096  # of sliding attention where config.json does not name it


def find_folder(name: str) -> Path:
    """The local folder that `name` means: itself, or a hub repository's files (safetensors, JSON, tokenizer only).

    Raises:
        ValueError: no such folder, and no such repository within reach.
    """
    path = Path(name)
    if name and path.is_dir():
        if not (path / "config.json").is_file():
            raise ValueError(f"{name}: holds neither latest, hooked_config.json nor config.json; expected a checkpoint")
        return path
    if path.exists() or name.count("/") != 1 or name.startswith((".", "/", "~")):
        shown = name if name.isprintable() and name else repr(name)
        raise ValueError(
            f"{shown}: not there; expected a run directory, a Hugging Face folder or hub name, or a .gguf file"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    wanted = ["model*.safetensors", "*.json", "tokenizer.model", "*.txt", "*.jinja"]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        raise ValueError(f"{name}: no such folder, and the hub did not give it ({type(error).__name__})") from error


def load_folder(folder: Path) -> HookedLM:
    """The model of a Hugging Face folder in the dtype of its weights, with its tokenizer where one is there.

    Raises:
        ValueError: another family, a setting `ModelConfig` cannot express, no safetensors, damaged or missing tensors.
    """
    config, cfg = _read_configs(folder)
    tensors = _open_all(folder)
    if cfg.tie_word_embeddings:
        tensors = _both_ends(tensors, config["model_type"])
    _check_names(tensors, cfg, config["model_type"], str(folder), bool(config.get(MARK_ZERO_BIAS)))
    convert = _from_gpt2 if config["model_type"] == "gpt2" else _from_llama
    weights = convert(tensors, cfg, str(folder), config.get(MARK, False))
    model = HookedLM(cfg.model_copy(update={"dtype": widest_dtype(weights.values())}), seed=None)
    fill(model, weights, str(folder))
    model.tokenizer, model.generation = load_tokenizer(folder), read_generation(folder)
    return model


def read_folder_config(folder: Path) -> ModelConfig:
    """The configuration of a folder's model, its dtype as the file says; errors as `load_folder`."""
    config, cfg = _read_configs(folder)
    name = str(config.get("dtype", config.get("torch_dtype")))
    return cfg.model_copy(update={"dtype": DTYPES.get(name, cfg.dtype)})


def _read_configs(folder: Path) -> tuple[dict[str, Any], ModelConfig]:
    config_file = folder / "config.json"
    config = read_object(config_file)
    try:
        return config, read_config(config, str(config_file))
    except ValidationError as error:
        raise ValueError(f"{config_file}: {describe_errors(error)}") from error


def read_config(config: dict[str, Any], source: str) -> ModelConfig:
    """Our configuration from the contents of a config.json.

    Raises:
        ValueError: naming the key and value that cannot be expressed.
    """
    kind = config.get("model_type")
    if kind == "gpt2":
        return _gpt2_config(config, source)
    if kind not in LLAMA_FAMILY:
        raise ValueError(
            f"{source}: model_type = {shorten(repr(kind))}; expected one of {', '.join((*LLAMA_FAMILY, 'gpt2'))}"
        )
    config = _CLASS_DEFAULTS.get(kind, {}) | config
    heads, width = _count(config, "num_attention_heads", source), _count(config, "hidden_size", source)
    kv_heads = config.get("num_key_value_heads") or heads
    d_head = config.get("head_dim") or width // heads
    if config.get("mlp_bias"):
        raise ValueError(f"{source}: mlp_bias = true; a gated MLP's inner biases cannot be expressed")
    n_ctx = _count(config, "max_position_embeddings", source)
    is_sliding = kind == "mistral" or (kind != "llama" and config.get("use_sliding_window", False))
    if is_sliding and config.get("sliding_window", _WINDOW):
        # within one window, sliding attention is plain causal attention
        n_ctx = min(n_ctx, _count({"sliding_window": _WINDOW} | config, "sliding_window", source))
    # the classes of Qwen2 and Mistral ask no configuration: one always has them, the other never
    bias = {"qwen2": True, "mistral": False}.get(kind, bool(config.get("attention_bias", False)))
    return ModelConfig(
        model_name=config.get("_name_or_path") or kind,
        n_layers=_count(config, "num_hidden_layers", source),
        d_model=width,
        n_ctx=n_ctx,
        d_vocab=_count(config, "vocab_size", source),
        tie_word_embeddings=config.get("tie_word_embeddings", False),
        initializer_range=config.get("initializer_range", 0.02),
        n_heads=heads,
        n_key_value_heads=None if kv_heads == heads else kv_heads,
        d_head=d_head,
        use_qk_norm=kind == "qwen3",
        d_mlp=_count(config, "intermediate_size", source),
        act_fn=_activation(config.get("hidden_act", "silu"), source),
        gated_mlp=True,
        normalization_type="RMS",
        eps=config.get("rms_norm_eps", 1e-6),
        positional_embedding_type="rotary",
        rotary_adjacent_pairs=bool(config.get(MARK, False)),
        extensions=Extensions(qkv_bias=bias, out_bias=bias and kind != "qwen2" and not config.get(MARK_ZERO_BIAS)),
        **_rotary_fields(config, source),
    )


def _rotary_fields(config: dict[str, Any], source: str) -> dict[str, Any]:
    """RoPE's settings, in the form of transformers 5 (`rope_parameters`) or 4 (`rope_theta`, `rope_scaling`)."""
    # as in transformers 5: a rope_scaling beside rope_parameters (added by hand, say) takes their place
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(rope, dict) or any(isinstance(value, dict) for value in rope.values()):
        raise ValueError(f"{source}: rope_parameters are {shorten(repr(rope))}; expected one object for all layers")
    base = rope.get("rope_theta", config.get("rope_theta", 10000.0))
    kind = rope.get("rope_type", rope.get("type", "default"))
    fields: dict[str, Any] = {"rotary_base": base}
    partial = rope.get("partial_rotary_factor", config.get("partial_rotary_factor"))
    if partial not in (None, 1.0):  # transformers passes it over, or fails, in these families
        raise ValueError(f"{source}: partial_rotary_factor = {shorten(repr(partial))}; expected 1, or none")
    if kind == "linear":
        fields["rotary_scaling_factor"] = _need(rope, "factor", source)
    elif kind == "llama3":
        fields |= {
            "use_NTK_by_parts_rope": True,
            "NTK_by_parts_factor": _need(rope, "factor", source),
            "NTK_by_parts_low_freq_factor": _need(rope, "low_freq_factor", source),
            "NTK_by_parts_high_freq_factor": _need(rope, "high_freq_factor", source),
            "NTK_original_ctx_len": _need(rope, "original_max_position_embeddings", source),
        }
    elif kind != "default":
        raise ValueError(f"{source}: rope_type = {shorten(repr(kind))}; expected default, linear or llama3")
    return fields


def _gpt2_config(config: dict[str, Any], source: str) -> ModelConfig:
    for key, wanted in {"scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False}.items():
        if config.get(key, wanted) != wanted:
            raise ValueError(f"{source}: {key} = {shorten(repr(config[key]))}; expected {wanted!r}")
    width, heads = _count(config, "n_embd", source), _count(config, "n_head", source)
    return ModelConfig(
        model_name=config.get("_name_or_path") or "gpt2",
        n_layers=_count(config, "n_layer", source),
        d_model=width,
        n_ctx=_count(config, "n_positions", source),
        d_vocab=_count(config, "vocab_size", source),
        tie_word_embeddings=config.get("tie_word_embeddings", True),
        initializer_range=config.get("initializer_range", 0.02),
        n_heads=heads,
        d_head=width // heads,
        attn_scale=-1.0 if config.get("scale_attn_weights", True) else 1.0,
        d_mlp=config.get("n_inner") or 4 * width,
        act_fn=_activation(config.get("activation_function", "gelu_new"), source),
        gated_mlp=False,
        normalization_type="LN",
        eps=config.get("layer_norm_epsilon", 1e-5),
        positional_embedding_type="standard",
        extensions=Extensions(qkv_bias=True, out_bias=True, mlp_bias=True),
    )


def _need(config: dict[str, Any], key: str, source: str) -> Any:
    if config.get(key) is None:
        raise ValueError(f"{source}: {key} is missing")
    return config[key]


def _count(config: dict[str, Any], key: str, source: str) -> int:
    value = _need(config, key, source)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{source}: {key} is {shorten(repr(value))}; expected a whole number, 1 or more")
    return value


def _activation(name: Any, source: str) -> Any:
    name = _ACTIVATIONS.get(name, name) if isinstance(name, str) else name
    if name not in ("silu", "gelu", "gelu_new", "relu", "relu2"):
        raise ValueError(
            f"{source}: activation {shorten(repr(name))}; "
            f"expected silu, gelu, gelu_new, gelu_pytorch_tanh, relu or relu2"
        )
    return name


def _open_all(folder: Path) -> dict[str, Callable[[], Tensor]]:
    """Readers of every tensor in the folder's safetensors files, by name without a leading `transformer.`.

    As in transformers: model.safetensors alone, else the files that the index lists (beside them may lie an adapter, or
    the same weights in the maker's own form); without either, all.
    """
    files, index = sorted(folder.glob("*.safetensors")), folder / "model.safetensors.index.json"
    listed: dict[str, Any] = {}
    if index.is_file():
        listed = read_object(index).get("weight_map")  # type: ignore[assignment]
        if not isinstance(listed, dict):
            raise ValueError(f"{index}: weight_map is missing; expected names of tensors and their files")
    if (whole := folder / "model.safetensors").is_file():
        files = [whole]
    elif listed:
        files = [file for file in files if file.name in listed.values()]
    if not files and not listed:
        raise ValueError(
            f"{folder}: no .safetensors file; expected weights in that form (pickled weights are never opened)"
        )
    readers: dict[str, Callable[[], Tensor]] = {}
    for file in files:
        for name, tensor in open_tensors(file).items():
            readers[name.removeprefix("transformer.")] = lambda tensor=tensor: tensor
    absent = [n for n in listed if n.removeprefix("transformer.") not in readers]
    if absent:
        raise ValueError(
            f"{index}: lists {shorten(repr(absent[0]))} in {shorten(str(listed[absent[0]]))}, which is not there"
        )
    return readers


def _expected(cfg: ModelConfig, kind: str) -> Iterator[str]:
    if kind == "gpt2":
        yield from ("wte.weight", "wpe.weight", "ln_f.weight", "ln_f.bias")
        parts = ["ln_1", "ln_2", "attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]
        for layer in range(cfg.n_layers):
            yield from (f"h.{layer}.{p}.{leaf}" for p in parts for leaf in ("weight", "bias"))
    else:
        yield from ("model.embed_tokens.weight", "model.norm.weight")
        parts = ["input_layernorm", "post_attention_layernorm", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
        parts += [f"self_attn.{n}_proj" for n in "qkvo"]
        parts += ["self_attn.q_norm", "self_attn.k_norm"] if cfg.use_qk_norm else []
        biased = ["q", "k", "v"] if cfg.extensions.qkv_bias else []
        biased += ["o"] if cfg.extensions.out_bias else []
        for layer in range(cfg.n_layers):
            yield from (f"model.layers.{layer}.{p}.weight" for p in parts)
            yield from (f"model.layers.{layer}.self_attn.{n}_proj.bias" for n in biased)
    if not cfg.tie_word_embeddings:
        yield "lm_head.weight"


def _embedding(kind: str) -> str:
    return "wte.weight" if kind == "gpt2" else "model.embed_tokens.weight"


def _both_ends(tensors: dict[str, Any], kind: str) -> dict[str, Any]:
    """Readers of a tied model, its embedding among them where its one matrix is stored as lm_head.weight alone, the
    name that safetensors' save_model keeps of the two."""
    lone = "lm_head.weight" in tensors and _embedding(kind) not in tensors
    return tensors | {_embedding(kind): tensors["lm_head.weight"]} if lone else tensors


def _check_names(tensors: dict[str, Any], cfg: ModelConfig, kind: str, source: str, zero_bias: bool = False) -> None:
    """Raise ValueError naming missing and unknown tensors, and an unembedding of its own in a tied model; buffers that
    old exports carry are passed over."""
    expected = set(_expected(cfg, kind))
    passed_over = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")
    if zero_bias:
        passed_over += (".o_proj.bias",)
        wrong = [n for n in tensors if n.endswith(".o_proj.bias") and bool(tensors[n]().any())]
        if wrong:
            raise ValueError(f"{source}: {wrong[0]} is not zero; expected zeros where {MARK_ZERO_BIAS} is true")
    extra = {n for n in tensors if n not in expected and not n.endswith(passed_over)}
    if cfg.tie_word_embeddings and "lm_head.weight" in extra:
        extra -= {"lm_head.weight"}
        embedding = _embedding(kind)
        if embedding in tensors and not torch.equal(tensors["lm_head.weight"](), tensors[embedding]()):
            raise ValueError(
                f"{source}: lm_head.weight is not the tied {embedding}; expected tie_word_embeddings = false"
            )
    wrong = [f"{n} is missing" for n in sorted(expected - set(tensors))] + [
        f"{shorten(n)} is unknown" for n in sorted(extra)
    ]
    if wrong:
        raise ValueError(f"{source}: {join_faults(wrong)}")


def swap_pairing(W: Tensor, to_halves: bool) -> Tensor:
    """W with its last axis reordered from adjacent rotary pairs to halves, or back: the same function under the other
    convention."""
    if to_halves:
        return rearrange(W, "... (pair two) -> ... (two pair)", two=2)
    return rearrange(W, "... (two pair) -> ... (pair two)", two=2)


def _from_llama(
    tensors: dict[str, Callable[[], Tensor]], cfg: ModelConfig, source: str, adjacent: bool
) -> dict[str, Tensor]:
    out = {"embed.W_E": tensors["model.embed_tokens.weight"](), "ln_final.w": tensors["model.norm.weight"]()}
    if not cfg.tie_word_embeddings:
        out["unembed.W_U"] = tensors["lm_head.weight"]().T
    grouped = "_" if cfg.n_key_value_heads is not None else ""
    turn = (lambda W: swap_pairing(W, to_halves=False)) if adjacent else (lambda W: W)
    for layer in range(cfg.n_layers):
        src, dst = f"model.layers.{layer}.", f"blocks.{layer}."
        out[dst + "ln1.w"] = tensors[src + "input_layernorm.weight"]()
        out[dst + "ln2.w"] = tensors[src + "post_attention_layernorm.weight"]()
        for letter, prefix in (("Q", ""), ("K", grouped), ("V", grouped)):
            heads = cfg.n_heads if letter == "Q" else cfg.kv_heads
            name = f"{src}self_attn.{letter.lower()}_proj."
            fix = (lambda W: W) if letter == "V" else turn
            W = rearrange(
                _shaped(tensors, name + "weight", (heads * cfg.d_head, cfg.d_model), source),
                "(h e) d -> h d e",
                h=heads,
            )
            out[f"{dst}attn.{prefix}W_{letter}"] = fix(W)
            if cfg.extensions.qkv_bias:
                b = _shaped(tensors, name + "bias", (heads * cfg.d_head,), source)
                out[f"{dst}attn.{prefix}b_{letter}"] = fix(b.unflatten(0, (heads, -1)))
            if cfg.use_qk_norm and letter != "V":
                out[f"{dst}attn.{letter.lower()}_norm.w"] = fix(
                    tensors[f"{src}self_attn.{letter.lower()}_norm.weight"]()
                )
        W = _shaped(tensors, src + "self_attn.o_proj.weight", (cfg.d_model, cfg.n_heads * cfg.d_head), source)
        out[dst + "attn.W_O"] = rearrange(W, "d (h e) -> h e d", h=cfg.n_heads)
        if cfg.extensions.out_bias:
            out[dst + "attn.b_O"] = tensors[src + "self_attn.o_proj.bias"]()
        for theirs, ours in (("gate", "W_gate"), ("up", "W_in"), ("down", "W_out")):
            out[f"{dst}mlp.{ours}"] = tensors[f"{src}mlp.{theirs}_proj.weight"]().T
    return out


def _shaped(tensors: dict[str, Callable[[], Tensor]], name: str, shape: tuple[int, ...], source: str) -> Tensor:
    tensor = tensors[name]()
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{source}: {name} has shape {list(tensor.shape)}; expected {list(shape)}")
    return tensor


def _from_gpt2(tensors: dict[str, Callable[[], Tensor]], cfg: ModelConfig, source: str, _: bool) -> dict[str, Tensor]:
    out = {"embed.W_E": tensors["wte.weight"](), "pos_embed.W_pos": tensors["wpe.weight"]()}
    out |= {"ln_final.w": tensors["ln_f.weight"](), "ln_final.b": tensors["ln_f.bias"]()}
    if not cfg.tie_word_embeddings:
        out["unembed.W_U"] = tensors["lm_head.weight"]().T
    width = cfg.n_heads * cfg.d_head
    for layer in range(cfg.n_layers):
        src, dst = f"h.{layer}.", f"blocks.{layer}."
        for norm, ours in (("ln_1", "ln1"), ("ln_2", "ln2")):
            out[f"{dst}{ours}.w"], out[f"{dst}{ours}.b"] = (
                tensors[f"{src}{norm}.weight"](),
                tensors[f"{src}{norm}.bias"](),
            )
        joint = _shaped(tensors, src + "attn.c_attn.weight", (cfg.d_model, 3 * width), source).split(width, dim=1)
        biases = _shaped(tensors, src + "attn.c_attn.bias", (3 * width,), source).split(width)
        for letter, W, b in zip("QKV", joint, biases, strict=True):
            out[f"{dst}attn.W_{letter}"] = rearrange(W, "d (h e) -> h d e", h=cfg.n_heads)
            out[f"{dst}attn.b_{letter}"] = b.unflatten(0, (cfg.n_heads, -1))
        W = _shaped(tensors, src + "attn.c_proj.weight", (width, cfg.d_model), source)
        out[dst + "attn.W_O"] = rearrange(W, "(h e) d -> h e d", h=cfg.n_heads)
        out[dst + "attn.b_O"] = tensors[src + "attn.c_proj.bias"]()
        for theirs, ours in (("c_fc", "in"), ("c_proj", "out")):
            out[f"{dst}mlp.W_{ours}"] = tensors[f"{src}mlp.{theirs}.weight"]()
            out[f"{dst}mlp.b_{ours}"] = tensors[f"{src}mlp.{theirs}.bias"]()
    return out


def write_folder(model: HookedLM, directory: Path) -> None:
    """Write config.json, model.safetensors, and the tokenizer's and generation's files into an existing directory.

    A model with biases of queries, keys and values alone is written as Qwen2, whose tokenizer class in transformers
    builds its own splitting of texts; where that reads texts otherwise, as a Llama with an output bias of zeros.

    Raises:
        ValueError: naming what the Llama, Qwen and GPT-2 classes cannot express, and a text that transformers would
            read otherwise than the model's tokenizer.
    """
    cfg = model.cfg
    is_gpt2 = cfg.normalization_type == "LN"
    config = _to_gpt2_config(cfg) if is_gpt2 else _to_llama_config(cfg)
    tensors = dict(_to_gpt2(model) if is_gpt2 else _to_llama(model))
    config |= {"dtype": str(cfg.dtype).removeprefix("torch."), "_name_or_path": cfg.model_name}
    if model.tokenizer is not None:
        config |= {"bos_token_id": model.tokenizer.bos_token_id, "eos_token_id": model.tokenizer.eos_token_id}
        write_tokenizer(model.tokenizer, directory)
    write_generation(model.generation, directory)
    forms = [config, config | _AS_LLAMA] if config["model_type"] == "qwen2" else [config]
    for form in forms:
        (directory / "config.json").write_text(json.dumps(form, indent=2) + "\n", encoding="utf-8")
        difference = None if model.tokenizer is None else different_reading(directory, model.tokenizer)
        if difference is None:
            break
    else:
        raise ValueError(f"export to Hugging Face: {difference}")
    if form is not config:
        zeros = model.W_E.new_zeros(cfg.d_model)
        tensors |= {f"model.layers.{layer}.self_attn.o_proj.bias": zeros.clone() for layer in range(cfg.n_layers)}
    save_file(
        {n: t.detach().cpu().contiguous() for n, t in tensors.items()},
        directory / "model.safetensors",
        metadata={"format": "pt"},
    )


def _is_near(a: float, b: float) -> bool:
    return abs(a - b) <= 1e-9


def _refuse(cfg: ModelConfig, pairs: dict[str, bool]) -> None:
    ext = cfg.extensions
    common = {
        "attention residuals": ext.attn_res is not None,
        "a softcap on logits": cfg.output_logits_soft_cap > 0,
        "a softcap on scores": cfg.attn_scores_soft_cap > 0,
        "an unembedding bias": ext.unembed_bias,
    }
    for what, present in (dict.fromkeys(features_of_our_own(cfg), True) | common | pairs).items():
        if present:
            raise ValueError(f"export to Hugging Face: the model has {what}; its Llama, Qwen and GPT-2 classes do not")


def _to_llama_config(cfg: ModelConfig) -> dict[str, Any]:
    ext = cfg.extensions
    _refuse(
        cfg,
        {
            "an attn_scale other than √d_head with RMSNorm": not _is_near(cfg.scale, cfg.d_head**0.5),
            "an ungated MLP with RMSNorm": not cfg.gated_mlp,
            "MLP biases": ext.mlp_bias,
            "learned positions with RMSNorm": cfg.positional_embedding_type != "rotary",
            "a rotary_dim below d_head": (cfg.rotary_dim or cfg.d_head) != cfg.d_head,
            "QK-norm with q, k, v biases alone": cfg.use_qk_norm and ext.qkv_bias and not ext.out_bias,
            "an output bias without q, k, v biases": ext.out_bias and not ext.qkv_bias,
        },
    )
    kind = "qwen3" if cfg.use_qk_norm else "qwen2" if ext.qkv_bias and not ext.out_bias else "llama"
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": cfg.rotary_base}
    if cfg.use_NTK_by_parts_rope:
        rope |= {
            "rope_type": "llama3",
            "factor": cfg.NTK_by_parts_factor,
            "low_freq_factor": cfg.NTK_by_parts_low_freq_factor,
            "high_freq_factor": cfg.NTK_by_parts_high_freq_factor,
            "original_max_position_embeddings": cfg.NTK_original_ctx_len,
        }
    elif cfg.rotary_scaling_factor != 1.0:
        rope |= {"rope_type": "linear", "factor": cfg.rotary_scaling_factor}
    config = {
        "model_type": kind,
        "architectures": [{"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}[kind] + "ForCausalLM"],
        "hidden_size": cfg.d_model,
        "intermediate_size": cfg.d_mlp,
        "num_hidden_layers": cfg.n_layers,
        "num_attention_heads": cfg.n_heads,
        "num_key_value_heads": cfg.kv_heads,
        "head_dim": cfg.d_head,
        "hidden_act": cfg.act_fn,
        "max_position_embeddings": cfg.n_ctx,
        "rms_norm_eps": cfg.eps,
        "rope_parameters": rope,
        "tie_word_embeddings": cfg.tie_word_embeddings,
        "vocab_size": cfg.d_vocab,
        "attention_bias": ext.qkv_bias,
        "initializer_range": cfg.initializer_range,
        MARK: cfg.rotary_adjacent_pairs,
    }
    if kind == "qwen2" and cfg.d_head * cfg.n_heads != cfg.d_model:
        _refuse(cfg, {"q, k, v biases and n_heads·d_head ≠ d_model": True})
    return config


def _to_llama(model: HookedLM) -> Iterator[tuple[str, Tensor]]:
    cfg = model.cfg
    turn = (lambda W: swap_pairing(W, to_halves=True)) if cfg.rotary_adjacent_pairs else (lambda W: W)
    yield "model.embed_tokens.weight", model.W_E
    yield "model.norm.weight", model.ln_final.w
    if not cfg.tie_word_embeddings:
        yield "lm_head.weight", model.W_U.T
    for layer, block in enumerate(model.blocks):
        dst, attn = f"model.layers.{layer}.", block.attn
        yield dst + "input_layernorm.weight", block.ln1.w
        yield dst + "post_attention_layernorm.weight", block.ln2.w
        weights = {"q": attn.W_Q, "k": attn.stored("W_K"), "v": attn.stored("W_V")}
        for letter, W in weights.items():
            fix = (lambda W: W) if letter == "v" else turn
            yield f"{dst}self_attn.{letter}_proj.weight", rearrange(fix(W), "h d e -> (h e) d")
            if cfg.extensions.qkv_bias:
                b = attn.b_Q if letter == "q" else attn.stored(f"b_{letter.upper()}")
                yield f"{dst}self_attn.{letter}_proj.bias", fix(b).flatten()
            if cfg.use_qk_norm and letter != "v":
                yield f"{dst}self_attn.{letter}_norm.weight", fix(getattr(attn, f"{letter}_norm").w)
        yield dst + "self_attn.o_proj.weight", rearrange(attn.W_O, "h e d -> d (h e)")
        if cfg.extensions.out_bias:
            yield dst + "self_attn.o_proj.bias", attn.b_O
        for theirs, ours in (("gate", "W_gate"), ("up", "W_in"), ("down", "W_out")):
            yield f"{dst}mlp.{theirs}_proj.weight", getattr(block.mlp, ours).T


def _to_gpt2_config(cfg: ModelConfig) -> dict[str, Any]:
    ext = cfg.extensions
    is_scaled = _is_near(cfg.scale, cfg.d_head**0.5)
    _refuse(
        cfg,
        {
            "an attn_scale other than √d_head and 1": not (is_scaled or _is_near(cfg.scale, 1.0)),
            "rotary positions with LayerNorm": cfg.positional_embedding_type != "standard",
            "a gated MLP with LayerNorm": cfg.gated_mlp,
            "grouped keys with LayerNorm": cfg.n_key_value_heads is not None,
            "QK-norm with LayerNorm": cfg.use_qk_norm,
            "n_heads·d_head ≠ d_model with LayerNorm": cfg.n_heads * cfg.d_head != cfg.d_model,
            "LayerNorm and no biases": not (ext.qkv_bias and ext.out_bias and ext.mlp_bias),
        },
    )
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "n_embd": cfg.d_model,
        "n_head": cfg.n_heads,
        "n_layer": cfg.n_layers,
        "n_positions": cfg.n_ctx,
        "n_inner": cfg.d_mlp,
        "vocab_size": cfg.d_vocab,
        "activation_function": cfg.act_fn,
        "layer_norm_epsilon": cfg.eps,
        "scale_attn_weights": is_scaled,
        "tie_word_embeddings": cfg.tie_word_embeddings,
        "initializer_range": cfg.initializer_range,
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
    }


def _to_gpt2(model: HookedLM) -> Iterator[tuple[str, Tensor]]:
    yield "transformer.wte.weight", model.W_E
    yield "transformer.wpe.weight", model.pos_embed.W_pos
    yield "transformer.ln_f.weight", model.ln_final.w
    yield "transformer.ln_f.bias", model.ln_final.b
    if not model.cfg.tie_word_embeddings:
        yield "lm_head.weight", model.W_U.T
    for layer, block in enumerate(model.blocks):
        dst, attn = f"transformer.h.{layer}.", block.attn
        for theirs, norm in (("ln_1", block.ln1), ("ln_2", block.ln2)):
            yield f"{dst}{theirs}.weight", norm.w
            yield f"{dst}{theirs}.bias", norm.b
        joint: list[Tensor] = [rearrange(W, "h d e -> d (h e)") for W in (attn.W_Q, attn.W_K, attn.W_V)]
        yield dst + "attn.c_attn.weight", torch.cat(joint, dim=1)
        yield dst + "attn.c_attn.bias", torch.cat([b.flatten() for b in (attn.b_Q, attn.b_K, attn.b_V)])
        yield dst + "attn.c_proj.weight", attn.W_O.flatten(0, 1)
        yield dst + "attn.c_proj.bias", attn.b_O
        for theirs, ours in (("c_fc", "in"), ("c_proj", "out")):
            yield f"{dst}mlp.{theirs}.weight", getattr(block.mlp, f"W_{ours}")
            yield f"{dst}mlp.{theirs}.bias", getattr(block.mlp, f"b_{ours}")
