"""GGUF files of the Llama family: one tensor at a time is dequantised straight into the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from pydantic import ValidationError
from torch import Tensor

from workbench.models.config import Extensions, ModelConfig
from workbench.models.gguf_tokenizer import read_gguf_generation, read_gguf_tokenizer
from workbench.models.transformer import HookedLM
from workbench.models.weights import check_numbers
from workbench.runs import shorten
from workbench.runs.foreign_files import refuse_pointer
from workbench.runs.records import describe_errors, join_faults

# architectures whose llama.cpp converter stores q and k with adjacent rotary pairs
_PERMUTED = ("llama",)
_SUPPORTED = ("llama", "qwen2", "qwen3")
# settings that llama.cpp follows in every architecture, with the value at which they do nothing
_PLAIN = {
    "expert_count": (0, "a dense model, not a mixture of experts"),
    "attention.causal": (True, "causal attention"),
    "rope.scaling.attn_factor": (1.0, "queries and keys as long as rotation leaves them, 1"),
}


def load_gguf(file: Path) -> HookedLM:
    """The float32 model of a GGUF file, with its tokenizer where one is there; peak memory is the model and one tensor.

    Raises:
        ValueError: a damaged file, another architecture, a setting `ModelConfig` cannot express, missing or extra
            tensors.
    """
    fields, tensors = _open(file)
    cfg, kind = _read_checked(fields, tensors, file)
    model = HookedLM(cfg, seed=None)
    _fill(model, tensors, kind, file)
    values = {key: field.contents() for key, field in fields.items() if key.startswith("tokenizer.")}
    if values:
        model.tokenizer, model.generation = read_gguf_tokenizer(values, file), read_gguf_generation(values)
    return model


def read_gguf_config(file: Path) -> ModelConfig:
    """The configuration of a GGUF file's model; errors as `load_gguf`."""
    return _read_checked(*_open(file), file)[0]


def _open(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(fields, tensors) by name."""
    try:
        import gguf
    except ImportError as error:
        raise ValueError(
            f"{file}: reading GGUF needs the gguf package; expected pip install 'prescriptive-workbench[gguf]'"
        ) from error
    refuse_pointer(file)
    try:
        reader = gguf.GGUFReader(str(file))
    except (ValueError, IndexError, KeyError, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: cannot be read as GGUF ({error})") from error
    fields = dict(reader.fields)
    if "split.count" in fields and (n := fields["split.count"].contents()) > 1:
        part = fields["split.no"].contents() + 1 if "split.no" in fields else "?"
        raise ValueError(
            f"{file}: part {part} of {n}; expected one file: join the parts with `llama-gguf-split --merge`"
        )
    return fields, {t.name: t for t in reader.tensors}


def _read_checked(fields: dict[str, Any], tensors: dict[str, Any], file: Path) -> tuple[ModelConfig, str]:
    try:
        return _read_config(fields, tensors, file)
    except ValidationError as error:
        raise ValueError(f"{file}: {describe_errors(error)}") from error


def _read_config(fields: dict[str, Any], tensors: dict[str, Any], file: Path) -> tuple[ModelConfig, str]:
    def get(key: str, default: Any = None, required: bool = True) -> Any:
        if key in fields:
            return fields[key].contents()
        if required and default is None:
            raise ValueError(f"{file}: {key} is missing")
        return default

    def number(key: str, default: Any = None) -> Any:
        value = get(f"{kind}.{key}", default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise ValueError(f"{file}: {kind}.{key} is {shorten(repr(value))}; expected a number above 0")
        return value

    kind = get("general.architecture")
    if kind not in _SUPPORTED:
        raise ValueError(f"{file}: architecture {shorten(repr(kind))}; expected one of {', '.join(_SUPPORTED)}")
    # as in llama.cpp: a factor without a type stretches linearly; the second key is its older name
    factor = next((k for k in ("rope.scaling.factor", "rope.scale_linear") if f"{kind}.{k}" in fields), None)
    scaling = get(f"{kind}.rope.scaling.type", "none" if factor is None else "linear")
    if "rope_freqs.weight" in tensors or scaling not in ("none", "linear"):
        raise ValueError(
            f"{file}: stretched rotary frequencies; expected a file without rope scaling, or linear scaling"
        )
    for key, (plain, what) in _PLAIN.items():
        if (found := get(f"{kind}.{key}", plain, required=False)) != plain:
            raise ValueError(f"{file}: {kind}.{key} is {shorten(repr(found))}; expected {what}")
    heads, width = number("attention.head_count"), number("embedding_length")
    kv_heads = number("attention.head_count_kv", heads)
    d_head = number("attention.key_length", width // heads)
    for key in ("rope.dimension_count", "attention.value_length"):
        if (found := get(f"{kind}.{key}", d_head)) != d_head:
            raise ValueError(f"{file}: {kind}.{key} is {shorten(repr(found))}; expected a head's {d_head} dimensions")
    if "token_embd.weight" not in tensors:
        raise ValueError(f"{file}: token_embd.weight is missing")
    cfg = ModelConfig(
        model_name=file.stem,
        n_layers=get(f"{kind}.block_count"),
        d_model=width,
        n_ctx=get(f"{kind}.context_length"),
        d_vocab=int(tensors["token_embd.weight"].shape[-1]),
        tie_word_embeddings="output.weight" not in tensors,
        n_heads=heads,
        n_key_value_heads=None if kv_heads == heads else kv_heads,
        d_head=d_head,
        use_qk_norm="blk.0.attn_q_norm.weight" in tensors,
        d_mlp=get(f"{kind}.feed_forward_length"),
        # stored as float32: 1e-5 comes back as 9.9999997e-06
        eps=float(np.format_float_positional(np.float32(number("attention.layer_norm_rms_epsilon")), trim="-")),
        rotary_base=number("rope.freq_base", 10000.0),
        rotary_scaling_factor=number(factor or "rope.scaling.factor") if scaling == "linear" else 1.0,
        extensions=Extensions(qkv_bias="blk.0.attn_q.bias" in tensors, out_bias="blk.0.attn_output.bias" in tensors),
    )
    return cfg, kind


def _names(cfg: ModelConfig) -> dict[str, str]:
    """GGUF tensor name of every parameter of the model."""
    grouped = "_" if cfg.n_key_value_heads is not None else ""
    names = {"embed.W_E": "token_embd.weight", "ln_final.w": "output_norm.weight"}
    if not cfg.tie_word_embeddings:
        names["unembed.W_U"] = "output.weight"
    parts = {"ln1.w": "attn_norm.weight", "ln2.w": "ffn_norm.weight", "attn.W_O": "attn_output.weight"}
    parts |= {"mlp.W_gate": "ffn_gate.weight", "mlp.W_in": "ffn_up.weight", "mlp.W_out": "ffn_down.weight"}
    for letter, prefix in (("Q", ""), ("K", grouped), ("V", grouped)):
        parts[f"attn.{prefix}W_{letter}"] = f"attn_{letter.lower()}.weight"
        if cfg.extensions.qkv_bias:
            parts[f"attn.{prefix}b_{letter}"] = f"attn_{letter.lower()}.bias"
    if cfg.extensions.out_bias:
        parts["attn.b_O"] = "attn_output.bias"
    if cfg.use_qk_norm:
        parts |= {"attn.q_norm.w": "attn_q_norm.weight", "attn.k_norm.w": "attn_k_norm.weight"}
    for layer in range(cfg.n_layers):
        names |= {f"blocks.{layer}.{ours}": f"blk.{layer}.{theirs}" for ours, theirs in parts.items()}
    return names


@torch.no_grad()
def _fill(model: HookedLM, tensors: dict[str, Any], kind: str, file: Path) -> None:
    import gguf

    names, parameters = _names(model.cfg), dict(model.named_parameters())
    wrong = [f"{n} is missing" for n in names.values() if n not in tensors]
    wrong += [f"{shorten(n)} is unknown" for n in tensors if n not in names.values()]
    if wrong:
        raise ValueError(f"{file}: {join_faults(wrong)}")
    for ours, theirs in names.items():
        try:
            stored = torch.from_numpy(
                np.array(gguf.quants.dequantize(tensors[theirs].data, tensors[theirs].tensor_type))
            )
        except (NotImplementedError, ValueError) as error:
            raise ValueError(f"{file}: {theirs} cannot be dequantised ({error})") from error
        try:
            value = _arrange(stored, ours, model.cfg, kind)
        except RuntimeError:  # an axis that the heads do not divide
            value = stored
        if value.shape != parameters[ours].shape:
            raise ValueError(
                f"{file}: {theirs} has shape {list(stored.shape)}; does not fit {ours} {list(parameters[ours].shape)}"
            )
        check_numbers(value, theirs, str(file))
        parameters[ours].copy_(value)


def _arrange(stored: Tensor, name: str, cfg: ModelConfig, kind: str) -> Tensor:
    """A GGUF tensor (Hugging Face's [out in] order) in our parameter's shape."""
    leaf = name.rsplit(".", 1)[-1].lstrip("_")
    heads = cfg.n_heads if leaf.endswith(("_Q", "_O")) else cfg.kv_heads
    if leaf in ("W_Q", "W_K", "W_V"):
        W = rearrange(stored, "(h e) d -> h d e", h=heads)
        # adjacent pairs back to halves, the pairing that the family's rotation has here
        return rearrange(W, "h d (pair two) -> h d (two pair)", two=2) if kind in _PERMUTED and leaf != "W_V" else W
    if leaf in ("b_Q", "b_K", "b_V"):
        b = stored.unflatten(0, (heads, -1))
        return rearrange(b, "h (pair two) -> h (two pair)", two=2) if kind in _PERMUTED and leaf != "b_V" else b
    if leaf == "W_O":
        return rearrange(stored, "d (h e) -> h e d", h=heads)
    return stored.T if leaf in ("W_U", "W_gate", "W_in", "W_out") else stored
