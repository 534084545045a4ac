"""What `--ckpt` means: our checkpoints, Hugging Face folders and hub names, GGUF files; and how a model is written."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from types import NoneType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from workbench.data.corpus import TextSource
from workbench.data.foreign_files import refuse_pointer
from workbench.data.tokenizer_files import (
    TOKENIZER,
    TOKENIZER_FILES,
    begin_ids,
    read_generation,
    read_tokenizer,
    wrap_tokenizer,  # noqa: F401 - notebooks take it from here
    write_generation,
    write_tokenizer,
)
from workbench.models.config import DTYPES, ModelConfig, join_faults, parse_dtype
from workbench.models.transformer import HookedLM
from workbench.runs import CONFIG as RUN_CONFIG
from workbench.runs import read_config, read_settings, shorten, verify_files

WEIGHTS, CONFIG = "model.safetensors", "hooked_config.json"
_READ = TOKENIZER_FILES | {WEIGHTS, CONFIG}


def load(source: str | Path, device: str = "auto", dtype: str | torch.dtype | None = None) -> HookedLM:
    """Return the model that `source` names, in evaluation mode, with its tokenizer where there is one.

    Args:
        source: a run or checkpoint directory of ours (`latest` is followed), a Hugging Face folder or hub name of a
            supported family (llama, mistral, qwen2, qwen3, gpt2), or a .gguf file of the Llama family.
        device: "auto" (CUDA where there is one), or a torch device.
        dtype: of the weights; None keeps what is stored (float32 for GGUF; for mixed weights the dtype that can hold
            all).

    Raises:
        ValueError: nothing there, a damaged file, missing, extra or misshapen tensors (each named), a model that
            `ModelConfig` cannot express, or a tokenizer larger than the vocabulary.
    """
    path = Path(source)
    wanted = None if dtype is None else parse_dtype(dtype)
    if path.is_file() and path.suffix == ".gguf":
        from workbench.models.gguf import load_gguf

        model = load_gguf(path)
    elif (directory := find_checkpoint(path)) is not None:
        model = _load_ours(directory)
    else:
        from workbench.models.huggingface import find_folder, load_folder

        model = load_folder(find_folder(str(source)))
    _check_tokenizer(model, source)
    if model.tokenizer is not None:  # what TransformerLens goes by, wherever the model goes
        begins = bool(begin_ids(model.tokenizer))
        model.cfg = model.cfg.model_copy(update={"default_prepend_bos": begins})
    return model.to(device=resolve_device(device), dtype=wanted or model.cfg.dtype).eval()


def resolve_device(device: str) -> str:
    """ "auto" made definite: cuda where there is one, else cpu.

    Raises:
        ValueError: a device torch does not know or does not see.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"device: got {device!r} ({str(error).splitlines()[0]}); expected auto, cpu or cuda[:n]"
        ) from error
    return device


def find_checkpoint(path: Path) -> Path | None:
    """The directory with hooked_config.json that `path` means (itself, or its newest step), or None.

    Raises:
        ValueError: `latest` names a directory that is not there.
    """
    if (path / CONFIG).is_file():
        return path
    pointer = path / "latest"
    if not pointer.is_file():
        return None
    name = pointer.read_bytes().decode("utf-8", "replace").strip()
    directory = path / name
    if Path(name).name != name or len(name) > 255 or not (directory / CONFIG).is_file():
        raise ValueError(
            f"{pointer}: names {shorten(repr(name))}; expected a step directory beside it that holds {CONFIG}"
        )
    return directory


def _load_ours(directory: Path) -> HookedLM:
    _verify(directory)
    config_file = directory / CONFIG
    cfg = ModelConfig.from_json(read_settings(config_file, "model", "a model's configuration"), str(config_file))
    recipe = _recipe_of(directory)
    if isinstance(recipe.get("name"), str):
        cfg = cfg.model_copy(update={"model_name": recipe["name"]})  # several recipes share an architecture's name
    model = HookedLM(cfg, seed=None)
    fill(model, open_tensors(directory / WEIGHTS), str(directory / WEIGHTS))
    if (directory / TOKENIZER).is_file():
        model.tokenizer = read_tokenizer(directory, begins=cfg.default_prepend_bos)
        model.generation = read_generation(directory)
    model.trained_on = _trained_on(recipe, directory.parent / RUN_CONFIG)
    return model


def training_config(path: Path) -> dict[str, Any]:
    """The config.toml of the training that a run or checkpoint directory belongs to; empty where there is none."""
    for directory in (path, path.parent):
        if (directory / RUN_CONFIG).is_file():
            config = read_config(directory)
            return config if config.get("verb") == "train" else {}
    return {}


def _recipe_of(directory: Path) -> dict[str, Any]:
    """The recipe of the run that a checkpoint directory stands in; empty where it stands in none, or no longer."""
    recipe = training_config(directory.parent).get("recipe") if (directory.parent / "latest").is_file() else None
    return recipe if isinstance(recipe, dict) else {}


def _trained_on(recipe: Mapping[str, Any], file: Path) -> TextSource | None:
    data = recipe.get("data")
    if not isinstance(data, dict):
        return None
    values: list[Any] = [data.get(field.name) for field in fields(TextSource)]
    # the last two are absent where they are none, and in what older versions trained
    if [type(value) for value in values[:3]] != [str, str, float] or not {type(v) for v in values[3:]} <= {
        str,
        NoneType,
    }:
        raise ValueError(f"config: {file} has data {shorten(repr(values))}; expected a text's")
    return TextSource(*values)


def _verify(directory: Path) -> None:
    """Raise ValueError unless what is read of a checkpoint is what its run wrote: a flipped bit of a weight is a weight
    like any other."""
    verify_files(directory, lambda name: name in _READ)
    if (directory.parent / "latest").is_file():  # the checkpoint of a training is a directory within the run
        own = {f"{directory.name}/{name}" for name in _READ} | {"latest", RUN_CONFIG}
        verify_files(directory.parent, lambda name: name in own)


def open_tensors(file: Path) -> dict[str, Tensor]:
    """Every tensor of a safetensors file, memory-mapped.

    Raises:
        ValueError: the file is missing, truncated or not safetensors.
    """
    if not file.is_file():
        raise ValueError(f"{file}: not there; expected a safetensors file")
    refuse_pointer(file)
    try:
        with safe_open(file, framework="pt") as f:
            return {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{file}: cannot be read as safetensors ({error})") from error


@torch.no_grad()
def fill(model: HookedLM, tensors: Mapping[str, Tensor], source: str) -> None:
    """Copy tensors into the model's parameters; all names and shapes are checked before the first is copied.

    Raises:
        ValueError: naming `source` and up to five missing, unknown or misshapen tensors, or one that does not hold
            finite numbers.
    """
    parameters = dict(model.named_parameters())
    wrong = [f"{n} is missing" for n in parameters if n not in tensors]
    wrong += [f"{shorten(n)} is unknown" for n in tensors if n not in parameters]
    wrong += [
        f"{n} has shape {list(t.shape)}, expected {list(parameters[n].shape)}"
        for n, t in tensors.items()
        if n in parameters and t.shape != parameters[n].shape
    ]
    if wrong:
        raise ValueError(f"{source}: {join_faults(wrong)}")
    for name, parameter in parameters.items():
        check_numbers(tensors[name], name, source)
        parameter.copy_(tensors[name])


def widest_dtype(tensors: Iterable[Tensor]) -> torch.dtype:
    """The narrowest dtype of weights that holds every number of those tensors that have one; float32 if none has."""
    kinds = {t.dtype for t in tensors} & set(DTYPES.values())
    return functools.reduce(torch.promote_types, kinds) if kinds else torch.float32


def check_numbers(tensor: Tensor, name: str, source: str) -> None:
    """Raise ValueError unless the tensor holds finite floating-point numbers, as weights do."""
    if tensor.dtype not in DTYPES.values():
        raise ValueError(
            f"{source}: {name} is of {str(tensor.dtype).removeprefix('torch.')}; expected {', '.join(DTYPES)}"
        )
    # the extremes of a tensor with NaN are NaN; one pass, and no copy
    if tensor.numel() and not all(bool(extreme.isfinite()) for extreme in tensor.aminmax()):
        raise ValueError(f"{source}: {name} has NaN or inf; expected finite weights")


def save(model: HookedLM, directory: str | Path) -> None:
    """Write model.safetensors, hooked_config.json and the tokenizer's files into an existing directory."""
    directory = Path(directory)
    tensors = {n: p.detach().cpu().contiguous() for n, p in model.named_parameters()}
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})
    (directory / CONFIG).write_text(model.cfg.to_json(), encoding="utf-8")
    if model.tokenizer is not None:
        write_tokenizer(model.tokenizer, directory)
    write_generation(model.generation, directory)


def _check_tokenizer(model: HookedLM, source: str | Path) -> None:
    if model.tokenizer is None:
        return
    size = max(model.tokenizer.get_vocab().values(), default=-1) + 1  # ids may have gaps, so their number may be less
    if size > model.cfg.d_vocab:
        raise ValueError(f"{source}: the tokenizer has {size} entries; expected at most d_vocab = {model.cfg.d_vocab}")


def weights_sha256(model: Any) -> str:
    """Hex sha256 over name, shape, dtype and bytes of all parameters in name order: what an SAE knows its model by."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        tensor = parameter.detach().cpu().contiguous()
        digest.update(f"{name} {list(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.view(torch.uint8).numpy() if tensor.numel() else b"")
    return digest.hexdigest()
