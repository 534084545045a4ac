"""SAELens's folder form, written and read without SAELens: one folder per SAE, cfg.json and sae_weights.safetensors.

Fields as of SAELens 6.54 (`SAE.load_from_disk`).
"""

from __future__ import annotations

import json
import math
import re
import warnings
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
from sae.token_norms import TOKEN_NORMS

WEIGHTS_FILE = "sae_weights.safetensors"
CONFIG_FILE = "cfg.json"
# the release whose form this is; SAELens rewrites the fields of anything it takes to be older than 6.0
FORMAT_VERSION = "6.54.12"
SCALER_FILE = "activation_scaler.json"
AVERAGE = "expected_average_only_in"
# what TransformerLens does to weights at loading, by which some activations change
_PROCESSING = ("fold_ln", "center_writing_weights", "fold_value_biases", "refactor_factored_attn_matrices")

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


def load_sae_lens(
    directory: str | Path, *, norm_scale: float | None = None, overrides: Mapping[str, Any] | None = None
) -> Stored:
    """Config, tensors and info of a SAELens folder, or of all SAELens folders directly in a directory, by name.

    standard, topk, jumprelu and gated SAEs and SAELens's four kinds of transcoders are taken, in the dtype that
    cfg.json names (all of one); a folder written before SAELens 6 too. A jumprelu threshold is read as SAELens's own
    encoder reads it: in the weights' dtype, where training kept it in float32, and as 0 where the last step of training
    left it below. What changes activations or reconstructions by rounding only, for it is folded into the weights:
    rescale_acts_by_decoder_norm (topk), the factor of normalize_activations = expected_average_only_in, and a
    finetuning_scaling_factor, of reconstructions alone. All others keep their bits, layer_norm and
    constant_norm_rescale among them (`sae.token_norms`).

    Args:
        norm_scale: √d_in / E‖x‖, the factor of expected_average_only_in, where neither activation_scaler.json beside
            cfg.json nor a norm_scaling_factor in it has it.
        overrides: fields of cfg.json that a registry knows better.

    Raises ValueError naming the file, and the tensor or field, for what is missing, altered, of another architecture,
    whitened (covariance_whitening), scaled by a factor that is not known, or not alike within one directory.
    """
    directory = Path(directory)
    folders = sae_lens_folders(directory)
    if not folders:
        raise ValueError(f"{directory}: holds no {CONFIG_FILE}, nor does a folder in it; expected SAELens folders")
    loaded = [_load_one(folder, norm_scale, overrides or {}) for folder in folders]
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


def sae_lens_folders(directory: Path) -> list[Path]:
    """The directory itself if it is a SAELens folder, else those in it, by name."""
    if (directory / CONFIG_FILE).is_file():
        return [directory]
    inside = sorted(directory.iterdir()) if directory.is_dir() else []
    return [path for path in inside if (path / CONFIG_FILE).is_file()]


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
        "normalize_activations": config.normalize_inputs or "none",
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


def _load_one(folder: Path, norm_scale: float | None, overrides: Mapping[str, Any]) -> Stored:
    """Config, tensors without the leading axis, and info of one SAE."""
    path, weights = folder / CONFIG_FILE, folder / WEIGHTS_FILE
    fields = read_json(path) | dict(overrides)
    # before SAELens 6 the metadata's fields stood beside the others
    is_old = not isinstance(fields.get("metadata"), dict)
    metadata = fields if is_old else fields["metadata"]
    config = _read_config(path, fields)
    dtype = _read_dtype(path, fields)
    own = architecture_of(config)
    shapes = {name: spec.shape(config) for name, spec in own.tensors(config).items()}
    tensors = read_tensors(weights, shapes, optional=frozenset({"scaling_factor"}))
    tensors = {name: t.to(dtype) if dtype and t.is_floating_point() else t for name, t in tensors.items()}
    tensors = _fold_finetuning(tensors, fields, weights)
    if (normalisation := _normalisation(fields)) != AVERAGE and norm_scale is not None:
        raise ValueError(
            f"{path}: got norm_scale {norm_scale} with normalize_activations {normalisation!r}; expected None"
        )
    if normalisation == AVERAGE:
        tensors = _fold_average(config, tensors, _read_norm_scale(folder, fields, metadata, norm_scale))
    tensors = own.tensors_from_sae_lens(fields, tensors)
    _warn_of_loading(path, fields, metadata)
    try:
        info = StackInfo(
            sources=(_read_source(metadata),),
            model_name=metadata.get("model_name"),
            model_sha256=metadata.get("model_sha256"),
            context_size=metadata.get("context_size"),
            prepend_bos=metadata.get("prepend_bos", True if is_old else None),
            n_train_tokens=metadata.get("n_train_tokens"),
            include_special=_read_positions(metadata),
        )
    except ValidationError as error:
        raise ValueError(f"{path}: metadata {describe_validation(error)}") from error
    check_tensors(config, {name: t.unsqueeze(0) for name, t in tensors.items()}, f"{weights}: ")
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
    normalisation = _normalisation(fields)
    if normalisation not in ("none", AVERAGE, *TOKEN_NORMS):
        raise ValueError(
            f"{path}: normalize_activations: got {shorten(repr(normalisation))}; expected none, {AVERAGE}, "
            f"{' or '.join(TOKEN_NORMS)} (SAELens folds a whitening into the weights at the end of training)"
        )
    if own.reads_pair and normalisation != "none":
        raise ValueError(
            f"{path}: normalize_activations: got {normalisation!r} with {architecture}; expected 'none': what it "
            "reconstructs has another scale"
        )
    if (reshaping := fields.get("reshape_activations", "none")) not in ("none", "hook_z"):
        raise ValueError(f"{path}: reshape_activations: got {shorten(repr(reshaping))}; expected 'none' or 'hook_z'")
    for key in ("d_in", "d_sae", "d_out"):
        if isinstance(fields.get(key), str | bool):
            raise ValueError(f"{path}: {key}: got {shorten(repr(fields[key]))}; expected a whole number")
    try:
        return SAEConfig(
            n_saes=1,
            d_in=fields.get("d_in"),  # pyright: ignore[reportArgumentType]
            d_sae=fields.get("d_sae"),  # pyright: ignore[reportArgumentType]
            architecture=own.name,
            apply_b_dec_to_input=fields.get("apply_b_dec_to_input", not own.reads_pair),
            normalize_inputs=normalisation if normalisation in TOKEN_NORMS else None,  # pyright: ignore[reportArgumentType]
            **own.options_from_sae_lens(fields),
        )
    except ValidationError as error:
        raise ValueError(f"{path}: {describe_validation(error)}") from error


def _normalisation(fields: Mapping[str, Any]) -> Any:
    """normalize_activations; before SAELens 4 it was whether the average is taken."""
    given = fields.get("normalize_activations", "none")
    return (
        {None: "none", False: "none", True: AVERAGE}.get(given, given) if not isinstance(given, list | dict) else given
    )


def _read_dtype(path: Path, fields: Mapping[str, Any]) -> torch.dtype | None:
    """What SAELens casts the tensors to; None: they stay as they are."""
    given = fields.get("dtype")
    if given is None:
        return None
    named = {name: dtype for dtype, name in _DTYPES.items()}
    dtype = named.get(given.removeprefix("torch.")) if isinstance(given, str) else None
    if dtype is None:
        raise ValueError(f"{path}: dtype: got {shorten(repr(given))}; expected one of {', '.join(sorted(named))}")
    return dtype


def _read_source(metadata: dict[str, Any]) -> SAESource:
    hook_name = metadata.get("hook_name", metadata.get("hook_point"))
    layer = metadata.get("layer", metadata.get("hook_layer", metadata.get("hook_point_layer")))
    # from SAELens 6 on the layer stands in the hook's name alone
    if layer is None and isinstance(hook_name, str) and (found := re.match(r"blocks\.(\d{1,6})\.", hook_name)):
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


def _warn_of_loading(path: Path, fields: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
    kwargs = fields.get("model_from_pretrained_kwargs") or metadata.get("model_from_pretrained_kwargs")
    changed = [name for name in _PROCESSING if isinstance(kwargs, dict) and kwargs.get(name) is True]
    if changed:
        warnings.warn(
            f"{path}: trained on a TransformerLens model loaded with {', '.join(changed)}; one with the weights of its "
            "files may show other activations (a stream with its mean, z with its bias)",
            stacklevel=2,
        )


def _read_positions(metadata: Mapping[str, Any]) -> Any:
    """Whether position 0 and special tokens were trained on; None where nothing says so. SAELens's
    exclude_special_tokens is a truth value or a list of ids, seqpos_slice the positions read of each sequence."""
    if "include_special" in metadata:
        return metadata["include_special"]
    positions = metadata.get("seqpos_slice")
    first = positions[0] if isinstance(positions, list) and positions else None
    if metadata.get("exclude_special_tokens") or (isinstance(first, int) and first > 0):
        return False
    return None if metadata.get("exclude_special_tokens") is None else True


# --- factors


def _fold_finetuning(tensors: dict[str, Tensor], fields: Mapping[str, Any], file: Path) -> dict[str, Tensor]:
    """Tensors without scaling_factor, by which SAELens before 6 multiplied activations on their way to the decoder, if
    finetuning_scaling_factor says so; where that is not said, all of it must be 1."""
    scaling = tensors.pop("scaling_factor", None)
    if scaling is None or torch.allclose(scaling, torch.ones_like(scaling)):
        return tensors
    if fields.get("finetuning_scaling_factor") is not True:
        raise ValueError(
            f"{file}: tensor scaling_factor is not all 1; expected finetuning_scaling_factor = true with it"
        )
    if scaling.shape != (expected := tensors["W_dec"].shape[:1]):
        raise ValueError(f"{file}: tensor scaling_factor has shape {tuple(scaling.shape)}; expected {tuple(expected)}")
    return tensors | {"W_dec": tensors["W_dec"] * scaling.unsqueeze(-1)}


def _fold_average(config: SAEConfig, tensors: dict[str, Tensor], scale: float) -> dict[str, Tensor]:
    stacked = {name: tensor.unsqueeze(0) for name, tensor in tensors.items()}
    # in the dtype in which a product with a Python number is taken, for SAELens's bits
    factor = torch.tensor([scale], dtype=torch.promote_types(tensors["W_dec"].dtype, torch.float32))
    folded = find_architecture(config.architecture).fold_scale(config, stacked, factor)
    return {name: folded[name][0].to(tensor.dtype) for name, tensor in tensors.items()}


def _read_norm_scale(
    folder: Path, fields: Mapping[str, Any], metadata: Mapping[str, Any], given: float | None
) -> float:
    """The factor of expected_average_only_in, which SAELens keeps in activation_scaler.json until it is folded in."""
    found, where = given, "norm_scale"
    for own in (fields, metadata):
        if found is None and own.get("norm_scaling_factor") is not None:
            found, where = own["norm_scaling_factor"], f"{folder / CONFIG_FILE}: norm_scaling_factor"
    file = folder / SCALER_FILE
    if found is None and file.is_file():
        found, where = read_json(file).get("scaling_factor"), f"{file}: scaling_factor"
    if found is None:
        raise ValueError(
            f"{folder / CONFIG_FILE}: normalize_activations: got {AVERAGE!r} without its factor, which {SCALER_FILE} "
            "does not hold either; expected norm_scale = √d_in / E‖x‖"
        )
    if isinstance(found, bool) or not isinstance(found, int | float) or not (math.isfinite(found) and found > 0):
        raise ValueError(f"{where}: got {shorten(repr(found))}; expected a finite number above 0")
    return float(found)
