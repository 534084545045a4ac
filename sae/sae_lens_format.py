"""SAELens's folder form, written and read without SAELens: one folder per SAE, cfg.json and sae_weights.safetensors.

Fields as of SAELens 6.54 (`SAE.load_from_disk`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor

from sae.architecture import SAELensForm
from sae.architectures import architecture_names, architecture_of, find_architecture
from sae.checkpoint import Stored, describe_validation, new_directory, read_json, read_tensors, shorten
from sae.config import SAEConfig, SAESource, StackInfo
from sae.tensors import check_finite, check_tensors

WEIGHTS_FILE = "sae_weights.safetensors"
CONFIG_FILE = "cfg.json"
# the release whose form this is; SAELens rewrites the fields of anything it takes to be older than 6.0
FORMAT_VERSION = "6.54.12"

_DTYPES = {
    torch.float64: "float64",
    torch.float32: "float32",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
}


def save_sae_lens(
    directory: str | Path, config: SAEConfig, tensors: Mapping[str, Tensor], info: StackInfo, *, overwrite: bool = False
) -> list[Path]:
    """Paths of the folders written, `directory`/sae_000 …, one per SAE, in the stack's order.

    `sae_lens.SAE.load_from_disk` opens each; its encode and decode then give the same bits as the stack's on a CPU. A
    SAE of all heads' hook_z takes them as the hook gives them, [… n_heads d_head], as SAELens's own of that hook do.
    relu is SAELens's standard; batchtopk and matryoshka become jumprelu with one threshold for all features, as in
    SAELens's own training. A skip transcoder's bits are those of SAELens's `forward`, whose decode leaves W_skip out.
    cfg.json's metadata has the hook's name, the head, the model's name and sha256, l1 and seed.

    Raises ValueError if the directory exists and is not to be overwritten, if a parameter is not finite, or for a topk
    transcoder, which SAELens does not have.
    """
    check_finite("to_sae_lens", tensors)
    names = [f"sae_{k:03d}" for k in range(config.n_saes)]
    with new_directory(directory, overwrite=overwrite) as partial:
        for k, name in enumerate(names):
            folder = partial / name
            folder.mkdir()
            own = {key: tensor[k].detach().cpu().contiguous().clone() for key, tensor in tensors.items()}
            form = architecture_of(config).to_sae_lens(config, own)
            save_file(form.tensors, folder / WEIGHTS_FILE)
            text = json.dumps(_describe(config, form, tensors["W_dec"].dtype, info, k), indent=1)
            (folder / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")
    return [Path(directory) / name for name in names]


def load_sae_lens(directory: str | Path) -> Stored:
    """Config, tensors and info of a SAELens folder, or of all SAELens folders directly in a directory, by name.

    standard, topk, jumprelu and gated SAEs are taken, in their dtype (all of one); a folder written before SAELens 6
    too. A jumprelu threshold is read as SAELens's own encoder reads it: in the weights' dtype, where training kept it
    in float32, and as 0 where the last step of training left it below. A topk SAE with rescale_acts_by_decoder_norm has
    its decoder norms folded into the encoder, which changes its activations by rounding only; all others keep their
    bits. Transcoders are taken too, with a skip connection and without, of relu and of jumprelu.

    Raises ValueError naming the file, and the tensor or field, for what is missing, altered, of another architecture,
    normalised (normalize_activations) or not alike within one directory.
    """
    directory = Path(directory)
    if (directory / CONFIG_FILE).is_file():
        folders = [directory]
    else:
        inside = sorted(directory.iterdir()) if directory.is_dir() else []
        folders = [path for path in inside if (path / CONFIG_FILE).is_file()]
    if not folders:
        raise ValueError(f"{directory}: holds no {CONFIG_FILE}, nor does a folder in it; expected SAELens folders")
    loaded = [_load_one(folder) for folder in folders]
    first, first_tensors, first_info = loaded[0]
    first_dtype = first_tensors["W_dec"].dtype
    for folder, (config, tensors, info) in zip(folders, loaded, strict=True):
        if config != first or tensors["W_dec"].dtype != first_dtype:
            raise ValueError(
                f"{folder}: is {config} in {tensors['W_dec'].dtype}; "
                f"expected the like of {folders[0]}, {first} in {first_dtype}"
            )
        if (info.model_sha256, info.model_name) != (first_info.model_sha256, first_info.model_name):
            raise ValueError(
                f"{folder}: belongs to {info.model_name} {info.model_sha256}; "
                f"expected {first_info.model_name} {first_info.model_sha256} as {folders[0]}"
            )
    joined = {name: torch.stack([tensors[name] for _, tensors, _ in loaded]) for name in first_tensors}
    info = first_info.model_copy(update={"sources": tuple(info.sources[0] for _, _, info in loaded)})
    return first.model_copy(update={"n_saes": len(loaded)}), joined, info


def _describe(config: SAEConfig, form: SAELensForm, dtype: torch.dtype, info: StackInfo, k: int) -> dict[str, Any]:
    """cfg.json of SAE k."""
    source = info.sources[k] if info.sources else SAESource()
    metadata: dict[str, Any] = {
        "sae_lens_version": FORMAT_VERSION,
        "sae_lens_training_version": None,
        "model_name": info.model_name,
        "hook_name": source.hook_name,
        "hook_head_index": source.head,
        "context_size": info.context_size,
        "prepend_bos": info.prepend_bos,
        "model_from_pretrained_kwargs": {},
        "model_sha256": info.model_sha256,
        "layer": source.layer,
        "l1": source.l1,
        "seed": source.seed,
        "dictionary": source.dictionary,
        "n_train_tokens": info.n_train_tokens,
        "include_special": info.include_special,
    }
    if source.hook_name_out is not None:
        metadata["hook_name_out"] = source.hook_name_out
    description: dict[str, Any] = {
        "architecture": form.architecture,
        "d_in": config.d_in,
        "d_sae": config.d_sae,
        "dtype": _DTYPES[dtype],
        "device": "cpu",
        "apply_b_dec_to_input": config.apply_b_dec_to_input,
        "normalize_activations": "none",
        "reshape_activations": _reshaping(source),
        "metadata": metadata,
    }
    return description | form.fields


def _reshaping(source: SAESource) -> str:
    """SAELens's name of what lies between the hook and the SAE: with hook_z, the heads are laid side by side and the
    reconstruction is parted again, so that the SAE can stand in the hook's place in a model."""
    is_of_all_heads = source.head is None and source.hook_name is not None and source.hook_name.endswith("hook_z")
    is_of_all_heads = is_of_all_heads and source.hook_name_out is None  # their transcoders reshape nothing
    return "hook_z" if is_of_all_heads else "none"


def _load_one(folder: Path) -> Stored:
    """Config, tensors without the leading axis, and info of one SAE."""
    path = folder / CONFIG_FILE
    fields = read_json(path)
    metadata = fields.get("metadata")
    # before SAELens 6 the metadata's fields stood beside the others
    metadata = metadata if isinstance(metadata, dict) else fields
    config = _read_config(path, fields)
    own = architecture_of(config)
    shapes = {name: spec.shape(config) for name, spec in own.tensors(config).items()}
    tensors = read_tensors(folder / WEIGHTS_FILE, shapes, optional=frozenset({"scaling_factor"}))
    scaling = tensors.pop("scaling_factor", torch.ones(()))
    if not bool((scaling == 1).all()):
        raise ValueError(
            f"{folder / WEIGHTS_FILE}: tensor scaling_factor is not all 1; expected it folded into the weights"
        )
    tensors = own.tensors_from_sae_lens(fields, tensors)
    try:
        info = StackInfo(
            sources=(_read_source(metadata),),
            model_name=metadata.get("model_name"),
            model_sha256=metadata.get("model_sha256"),
            context_size=metadata.get("context_size"),
            prepend_bos=metadata.get("prepend_bos"),
            n_train_tokens=metadata.get("n_train_tokens"),
            include_special=metadata.get("include_special"),
        )
    except ValidationError as error:
        raise ValueError(f"{path}: metadata {describe_validation(error)}") from error
    check_tensors(config, {name: t.unsqueeze(0) for name, t in tensors.items()}, f"{folder / WEIGHTS_FILE}: ")
    return config, tensors, info


def _read_config(path: Path, fields: dict[str, Any]) -> SAEConfig:
    architecture = fields.get("architecture", "standard")
    activation = fields.get("activation_fn", fields.get("activation_fn_str", "relu"))
    if (architecture, activation) == ("standard", "topk"):  # before SAELens 6
        architecture = "topk"
    elif architecture == "standard" and activation != "relu":
        raise ValueError(f"{path}: activation_fn: got {shorten(repr(activation))}; expected 'relu' or 'topk'")
    named = [find_architecture(name) for name in architecture_names()]
    every = [form for own in named for form in own.forms.values() or (own,)]
    readers = {own.read_from: own for own in every if own.read_from is not None}
    if not isinstance(architecture, str) or architecture not in readers:
        raise ValueError(f"{path}: architecture: got {shorten(repr(architecture))}; expected one of {sorted(readers)}")
    own = readers[architecture]
    normalisation = fields.get("normalize_activations", "none")
    if normalisation not in ("none", None, False):
        raise ValueError(
            f"{path}: normalize_activations: got {shorten(repr(normalisation))}; "
            f"expected 'none' (SAELens folds an average "
            "or a whitening into the weights; what depends on each token cannot be)"
        )
    try:
        return SAEConfig(
            n_saes=1,
            d_in=fields.get("d_in"),  # pyright: ignore[reportArgumentType]
            d_sae=fields.get("d_sae"),  # pyright: ignore[reportArgumentType]
            architecture=own.name,
            apply_b_dec_to_input=fields.get("apply_b_dec_to_input", not own.reads_pair),
            **own.options_from_sae_lens(fields),
        )
    except ValidationError as error:
        raise ValueError(f"{path}: {describe_validation(error)}") from error


def _read_source(metadata: dict[str, Any]) -> SAESource:
    hook_name = metadata.get("hook_name", metadata.get("hook_point"))
    layer = metadata.get("layer", metadata.get("hook_layer", metadata.get("hook_point_layer")))
    # from SAELens 6 on the layer stands in the hook's name alone
    if layer is None and isinstance(hook_name, str) and (found := re.match(r"blocks\.(\d+)\.", hook_name)):
        layer = int(found[1])
    return SAESource(
        hook_name=hook_name,
        hook_name_out=metadata.get("hook_name_out"),
        layer=layer,
        head=metadata.get("hook_head_index", metadata.get("hook_point_head_index")),
        l1=metadata.get("l1"),
        seed=metadata.get("seed"),
        dictionary=metadata.get("dictionary") or "trained",
    )
