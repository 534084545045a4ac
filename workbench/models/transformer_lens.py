"""The one place that knows TransformerLens's `HookedTransformer`: to it, from it, and its files."""

from __future__ import annotations

import copy
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor

from workbench.models.config import ModelConfig, features_of_our_own
from workbench.models.tokenizer_files import begin_ids
from workbench.models.transformer import HookedLM, check_ours
from workbench.runs.records import describe_errors

CONFIG, WEIGHTS = "hooked_transformer_config.json", "model.safetensors"
# fields of ours that the class would act upon at building time (fetch a tokenizer) or that belong to the machine
_NOT_EXPORTED = {"extensions", "tokenizer_name", "device", "dtype"}
_NOT_EXPRESSED = ("embed_scale", "norm_plus_one", "post_norm", "wide_qk_norm", "rope", "unrotated_layers")
_LAYER_NORMS = {"LN": "LN", "LNPre": "LN", "RMS": "RMS", "RMSPre": "RMS"}


def _classes() -> tuple[Any, Any]:
    """(HookedTransformer, HookedTransformerConfig).

    Raises:
        ValueError: a version of TransformerLens that has them no longer.
    """
    try:
        from transformer_lens import HookedTransformer, HookedTransformerConfig
    except ImportError as error:
        raise ValueError(
            f"TransformerLens {version('transformer-lens')} has no HookedTransformer; expected transformer-lens<4"
        ) from error
    return HookedTransformer, HookedTransformerConfig


def to_config(cfg: ModelConfig) -> dict[str, Any]:
    """The fields of a HookedTransformerConfig that builds this architecture, JSON-ready.

    Raises:
        ValueError: attention residuals, depth recurrence, low-rank keys or query gains, which the class cannot express.
    """
    for feature in features_of_our_own(cfg):
        raise ValueError(f"export to TransformerLens: the model has {feature}; HookedTransformer cannot express it")
    if cfg.extensions.attn_res is not None:
        raise ValueError(
            "export to TransformerLens: the model has attention residuals; HookedTransformer has only the plain stream"
        )
    for name in _NOT_EXPRESSED:
        if getattr(cfg.extensions, name):
            raise ValueError(f"export to TransformerLens: the model has {name}; HookedTransformer has no field for it")
    fields = cfg.model_dump(mode="json", exclude=_NOT_EXPORTED, exclude_none=True)
    if cfg.window_size is not None:
        types = ["local" if cfg.is_local(layer) else "global" for layer in range(cfg.n_layers)]
        fields |= {"use_local_attn": True, "attn_types": types}
    return fields | {"init_weights": False, "seed": None}


def to_state_dict(model: HookedLM) -> dict[str, Tensor]:
    """The parameters under HookedTransformer's names, contiguous; biases that the model lacks are zeros."""
    cfg = model.cfg
    tensors = {n: p.detach().contiguous() for n, p in model.named_parameters()}
    tensors.setdefault("unembed.W_U", model.W_U.detach().contiguous())
    prefix = "_" if cfg.n_key_value_heads is not None else ""
    zeros = {"unembed.b_U": (cfg.d_vocab,)}
    for layer in range(cfg.n_layers):
        block = f"blocks.{layer}."
        zeros |= {
            block + "attn.b_Q": (cfg.n_heads, cfg.d_head),
            block + f"attn.{prefix}b_K": (cfg.kv_heads, cfg.d_head),
            block + f"attn.{prefix}b_V": (cfg.kv_heads, cfg.d_head),
            block + "attn.b_O": (cfg.d_model,),
            block + "mlp.b_in": (cfg.d_mlp,),
            block + "mlp.b_out": (cfg.d_model,),
        }
    for name, shape in zeros.items():
        if name not in tensors:
            tensors[name] = model.W_E.new_zeros(shape)
    return tensors


def _set_tokenizer(hooked: Any, tokenizer: Any) -> None:
    """What the class's own set_tokenizer leaves; that one fetches the tokenizer by name, and a local one has none."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.padding_side = "right"
    for name in ("pad_token", "bos_token"):
        if getattr(tokenizer, name) is None and tokenizer.eos_token is not None:
            setattr(tokenizer, name, tokenizer.eos_token)
    hooked.tokenizer = tokenizer
    begins = bool(begin_ids(tokenizer))
    hooked.cfg.default_prepend_bos = hooked.cfg.tokenizer_prepends_bos = begins


def to_hooked_transformer(model: HookedLM) -> Any:
    """A `transformer_lens.HookedTransformer` with this model's weights, dtype, device and tokenizer.

    Raises:
        ValueError: no `HookedLM`, or one with attention residuals.
    """
    check_ours("to_hooked_transformer", model)
    HookedTransformer, HookedTransformerConfig = _classes()
    fields = to_config(model.cfg) | {"device": model.cfg.device, "dtype": model.cfg.dtype}
    hooked = HookedTransformer(HookedTransformerConfig.from_dict(fields), move_to_device=True)
    # buffers (masks, rotary tables) stay as the class built them
    hooked.load_state_dict(hooked.state_dict() | to_state_dict(model), strict=True)
    if model.tokenizer is not None:
        _set_tokenizer(hooked, model.tokenizer)
    return hooked.train(model.training)


def from_hooked_transformer(hooked: Any) -> HookedLM:
    """Our model with the weights of a `HookedTransformer`, also one whose norms were folded (LNPre, RMSPre).

    Raises:
        ValueError: another class, a bridge too; or naming the first feature that `ModelConfig` cannot express.
    """
    HookedTransformer, _ = _classes()
    if not isinstance(hooked, HookedTransformer):
        raise ValueError(f"from TransformerLens: got a {type(hooked).__name__}; expected a HookedTransformer")
    theirs: Any = hooked.cfg
    _refuse_inexpressible(theirs)
    parameters = {n: p.detach() for n, p in hooked.named_parameters()}
    kept = {n: p for n, p in parameters.items() if not _is_bias(n) or bool(p.any())}
    has = lambda *leaves: any(n.rsplit(".", 1)[-1] in leaves for n in kept)  # noqa: E731
    tied = torch.equal(parameters["unembed.W_U"], parameters["embed.W_E"].T)
    names = set(ModelConfig.model_fields) - {"extensions", "device", "dtype", "tokenizer_name"}
    fields = {n: getattr(theirs, n) for n in names if getattr(theirs, n, None) is not None}
    fields |= {
        "normalization_type": _LAYER_NORMS[theirs.normalization_type],
        "tie_word_embeddings": tied,
        "attn_scale": theirs.attn_scale if theirs.use_attn_scale else 1.0,
        "dtype": theirs.dtype,
        "device": str(parameters["embed.W_E"].device),
        "extensions": {
            "qkv_bias": has("b_Q", "b_K", "b_V", "_b_K", "_b_V"),
            "out_bias": has("b_O"),
            "mlp_bias": has("b_in", "b_out"),
            "unembed_bias": has("b_U"),
        },
    }
    try:
        cfg = ModelConfig(**fields)
    except ValidationError as error:
        raise ValueError(f"from TransformerLens: {describe_errors(error)}") from error
    model = HookedLM(cfg, seed=None)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in parameters:
                parameter.copy_(parameters[name])
            else:  # a norm whose weight was folded into what follows
                parameter.fill_(1.0 if name.endswith(".w") else 0.0)
    model.tokenizer = hooked.tokenizer
    return model.train(hooked.training)


def _is_bias(name: str) -> bool:
    return name.rsplit(".", 1)[-1].lstrip("_").startswith("b_")


def _refuse_inexpressible(theirs: Any) -> None:
    """Raise ValueError for a HookedTransformerConfig feature that would change the function we compute."""
    must_be = {
        "attn_only": (False,),
        "attention_dir": ("causal",),
        "parallel_attn_mlp": (False,),
        "use_local_attn": (False,),
        "num_experts": (None,),
        "post_embedding_ln": (False,),
        "use_normalization_before_and_after": (False,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "use_yarn_rope": (False,),
        "use_attention_sinks": (False,),
        "clip_qkv": (None,),
        "use_logn_attn": (False,),
        "use_dynamic_ntk_rope": (False,),
        "final_rms": (False, theirs.normalization_type in ("RMS", "RMSPre")),
        "normalization_type": tuple(_LAYER_NORMS),
        "positional_embedding_type": ("standard", "rotary"),
        "d_vocab_out": (theirs.d_vocab,),
    }
    for field, allowed in must_be.items():
        value = getattr(theirs, field, allowed[0])
        if value not in allowed:
            raise ValueError(
                f"from TransformerLens: {field} = {value!r}; expected {' or '.join(repr(a) for a in allowed)}"
            )


def write_folder(model: HookedLM, directory: Path) -> None:
    """Write hooked_transformer_config.json and model.safetensors into an existing directory."""
    (directory / CONFIG).write_text(json.dumps(to_config(model.cfg), indent=2) + "\n", encoding="utf-8")
    save_file({n: t.cpu() for n, t in to_state_dict(model).items()}, directory / WEIGHTS, metadata={"format": "pt"})


def read_folder(directory: Path) -> Any:
    """The `HookedTransformer` that `write_folder` wrote, in float32 or float64: narrower, the class rounds its rotary
    tables too.

    Raises:
        ValueError: a damaged file.
    """
    from workbench.models.weights import open_tensors

    HookedTransformer, HookedTransformerConfig = _classes()

    fields = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
    hooked = HookedTransformer(HookedTransformerConfig.from_dict(fields | {"device": "cpu"}))
    tensors = {name: stored.read() for name, stored in open_tensors(directory / WEIGHTS).items()}
    dtype = torch.promote_types(tensors["embed.W_E"].dtype, torch.float32)
    hooked.to(dtype, print_details=False)  # stdout is for what a verb says
    hooked.load_state_dict(hooked.state_dict() | tensors, strict=True)
    return hooked
