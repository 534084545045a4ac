"""Hugging Face folders of the families that have a file in `families/`: read without running any of their code, and
written."""

from __future__ import annotations

import json
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor

from workbench.models.auto_tokenizer import different_reading, load_tokenizer
from workbench.models.config import DTYPES, ModelConfig, features_of_our_own
from workbench.models.families import family_names, find_family
from workbench.models.family import Described, Entry, Family
from workbench.models.tokenizer_files import read_generation, write_generation, write_tokenizer
from workbench.models.transformer import HookedLM
from workbench.models.weights import StoredTensor, check_numbers, open_tensors, widest_dtype
from workbench.runs import shorten
from workbench.runs.foreign_files import read_object
from workbench.runs.records import describe_errors, join_faults

# of a configuration: what no file of theirs holds, and how weights began
_ASIDE = {"model_name", "device", "dtype", "tokenizer_name", "default_prepend_bos"}
_INITIAL = {"residual_init_scale", "embed_init", "spectral_init"}


def find_folder(name: str, revision: str | None = None) -> Path:
    """The local folder that `name` means: itself, or a hub repository's files (safetensors, JSON, tokenizer only) at a
    branch, tag or commit.

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
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        shown = name if revision is None else f"{name}@{revision}"
        raise ValueError(f"{shown}: no such folder, and the hub did not give it ({type(error).__name__})") from error


def load_folder(folder: Path, dtype: torch.dtype | None = None) -> HookedLM:
    """The model of a Hugging Face folder, by default in the dtype of its weights, with its tokenizer where it has one.

    Raises:
        ValueError: another family, a setting `ModelConfig` cannot express, no safetensors, damaged or missing tensors.
    """
    family, config, cfg = _read_configs(folder)
    stored, entries = open_all(folder), list(family.layout(cfg, config))
    found = _match(stored, entries, family, cfg, str(folder))
    model = HookedLM(cfg.model_copy(update={"dtype": dtype or widest_dtype(found.values())}), seed=None)
    _fill(model, found, entries, str(folder))
    model.tokenizer, model.generation = load_tokenizer(folder), read_generation(folder)
    return model


def read_folder_config(folder: Path) -> ModelConfig:
    """The configuration of a folder's model, its dtype as the file says; errors as `load_folder`."""
    _, config, cfg = _read_configs(folder)
    name = str(config.get("dtype", config.get("torch_dtype")))
    return cfg.model_copy(update={"dtype": DTYPES.get(name, cfg.dtype)})


def has_family(folder: Path) -> bool:
    """Whether a file of `families/` is to read a folder: by its `model_type`, which may be nonsense, unless its weights
    are quantized."""
    config = read_object(folder / "config.json")
    model_type = config.get("model_type")
    is_other = isinstance(model_type, str) and model_type not in family_names()
    return not is_other and config.get("quantization_config") is None


def _read_configs(folder: Path) -> tuple[Family, dict[str, Any], ModelConfig]:
    file = folder / "config.json"
    config = read_object(file)
    family = find_family(config.get("model_type"), str(file))
    return family, config, _configuration(family, config, str(file))


def _configuration(family: Family, config: dict[str, Any], source: str) -> ModelConfig:
    try:
        return family.read(Described(config, source, family.defaults))
    except ValidationError as error:
        raise ValueError(f"{source}: {describe_errors(error)}") from error


# --- weights


def open_all(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor in the folder's safetensors files, by name.

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
    stored = {name: tensor for file in files for name, tensor in open_tensors(file).items()}
    absent = [n for n in listed if n not in stored]
    if absent:
        raise ValueError(
            f"{index}: lists {shorten(repr(absent[0]))} in {shorten(str(listed[absent[0]]))}, which is not there"
        )
    return stored


def _match(
    stored: Mapping[str, StoredTensor], entries: Sequence[Entry], family: Family, cfg: ModelConfig, source: str
) -> dict[str, StoredTensor]:
    """The tensors of the entries by their names, none of which has been read.

    Raises:
        ValueError: naming missing, unknown and misshapen tensors, or an unembedding of its own in a tied model.
    """
    shapes = {entry.theirs: entry.shape for entry in entries if entry.theirs}
    # a model that was saved without its head has names without a beginning
    stored = {name if name in shapes else _with_base(name, shapes, family): own for name, own in stored.items()}
    if cfg.tie_word_embeddings:
        stored = _one_end(stored, family, source)
    unknown = [name for name in stored if name not in shapes and not name.endswith(family.passed_over)]
    wrong = [f"{name} is missing" for name in sorted(shapes.keys() - stored.keys())]
    wrong += [f"{shorten(name)} is unknown" for name in sorted(unknown)]
    if wrong:
        raise ValueError(f"{source}: {join_faults(wrong)}")
    for name, shape in shapes.items():
        if stored[name].shape != shape:
            raise ValueError(f"{source}: {name} has shape {list(stored[name].shape)}; expected {list(shape)}")
    return {name: stored[name] for name in shapes}


@torch.no_grad()
def _fill(model: HookedLM, found: Mapping[str, StoredTensor], entries: Sequence[Entry], source: str) -> None:
    """Copy what the entries hold into the parameters, one tensor of theirs after another.

    Raises:
        ValueError: entries that give other parameters than the model has, or of another shape, and tensors without
            finite numbers, named.
    """
    parameters, given = dict(model.named_parameters()), [name for entry in entries for name in entry.ours]
    wrong = [f"{name} is not given by the family" for name in parameters if name not in given]
    wrong += [f"{name} is given by the family and unknown" for name in given if name not in parameters]
    if wrong:
        raise ValueError(f"{source}: {join_faults(wrong)}")
    for entry in entries:
        # what they do not have is of the dtype of the rest
        tensor = found[entry.theirs].read() if entry.theirs else torch.zeros(entry.shape, dtype=model.cfg.dtype)
        check_numbers(tensor, entry.theirs, source)  # as it lies there: a turned view takes ten times as long
        try:
            parts = entry.split(tensor)
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from error
        for name, part in zip(entry.ours, parts, strict=True):
            if part.shape != parameters[name].shape:
                shapes = f"{list(part.shape)}; expected {list(parameters[name].shape)}"
                raise ValueError(f"{source}: {name} is given by the family with shape {shapes}")
            parameters[name].copy_(part)


def _with_base(name: str, expected: Container[str], family: Family) -> str:
    return family.base + name if family.base + name in expected else name


def _one_end(stored: dict[str, StoredTensor], family: Family, source: str) -> dict[str, StoredTensor]:
    """The tensors of a tied model without its unembedding: where it is stored, it is the embedding, or stands for it
    where that is not (the name that safetensors' save_model keeps of the two)."""
    if family.head not in stored:
        return stored
    rest = {name: own for name, own in stored.items() if name != family.head}
    if family.embedding not in rest:
        return rest | {family.embedding: stored[family.head]}
    if not torch.equal(stored[family.head].read(), rest[family.embedding].read()):
        raise ValueError(
            f"{source}: {family.head} is not the tied {family.embedding}; expected tie_word_embeddings = false"
        )
    return rest


def _write_weights(model: HookedLM, entries: Iterable[Entry]) -> dict[str, Tensor]:
    own, out = dict(model.named_parameters()), {}
    for entry in entries:
        try:
            joined = entry.join(*(own[name].detach() for name in entry.ours))
        except ValueError as error:
            raise ValueError(f"export to Hugging Face: {error}") from error
        if entry.theirs:
            out[entry.theirs] = joined.to(model.cfg.dtype).cpu().contiguous()
    return out


# --- writing


def write_folder(model: HookedLM, directory: Path) -> None:
    """Write config.json, model.safetensors, and the tokenizer's and generation's files into an existing directory.

    The family is the first that expresses the model; where transformers' tokenizer class for it reads texts in its own
    way, the family that stands in for it.

    Raises:
        ValueError: naming what no family expresses, and a text that transformers would read otherwise than the model's
            tokenizer.
    """
    cfg = model.cfg
    family, config = _expressed(cfg)
    config |= {"dtype": str(cfg.dtype).removeprefix("torch."), "_name_or_path": cfg.model_name}
    if model.tokenizer is not None:
        config |= {"bos_token_id": model.tokenizer.bos_token_id, "eos_token_id": model.tokenizer.eos_token_id}
        write_tokenizer(model.tokenizer, directory)
    write_generation(model.generation, directory)
    if (difference := _put_config(directory, config, model)) is not None:
        if family.stand_in is None:
            raise ValueError(f"export to Hugging Face: {difference}")
        name, keys = family.stand_in
        family = find_family(name, "export")
        config |= _head(family) | dict(keys)
        if (difference := _put_config(directory, config, model)) is not None:
            raise ValueError(f"export to Hugging Face: {difference}")
    tensors = _write_weights(model, family.layout(cfg, config))
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def _put_config(directory: Path, config: dict[str, Any], model: HookedLM) -> str | None:
    """Write config.json; where transformers then reads a text otherwise than the model's tokenizer, in words."""
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return None if model.tokenizer is None else different_reading(directory, model.tokenizer)


def _head(family: Family) -> dict[str, Any]:
    return {"model_type": family.model_type, "architectures": [family.architecture]}


def _expressed(cfg: ModelConfig) -> tuple[Family, dict[str, Any]]:
    """The first family whose file of this configuration reads back as it, and that file.

    Raises:
        ValueError: none; what the nearest would make of it.
    """
    missing = features_of_our_own(cfg)
    if cfg.extensions.attn_res is not None:
        missing.append("attention residuals")
    if missing:
        raise ValueError(f"export to Hugging Face: the model has {missing[0]}, which no family has")
    wanted, nearest = _function(cfg), None
    for name in family_names():
        family = find_family(name, "export")
        config = _head(family) | family.write(cfg)
        try:
            found = _function(_configuration(family, config, name))
        except ValueError:  # it has no word for some setting at all
            continue
        lost = [key for key in {**wanted, **found} if wanted.get(key) != found.get(key)]
        if not lost:
            return family, config
        if nearest is None or len(lost) < len(nearest[1]):
            nearest = (name, lost, found)
    assert nearest is not None
    name, lost, found = nearest
    raise ValueError(
        f"export to Hugging Face: no family expresses the model: {name}, the nearest, has "
        + ", ".join(f"{key} = {found.get(key)!r} in place of {wanted.get(key)!r}" for key in lost)
    )


def _function(cfg: ModelConfig) -> dict[str, Any]:
    """What a configuration says of the function that a model computes, flat, and in one form for one function."""
    fields = {name: value for name, value in cfg if name not in _ASIDE | {"extensions", "n_key_value_heads"}}
    fields |= {name: value for name, value in cfg.extensions if name not in _INITIAL}
    fields |= {"kv_heads": cfg.kv_heads, "attn_scale": round(cfg.scale, 6)}
    fields["act_fn"] = "gelu_new" if cfg.act_fn == "gelu_pytorch_tanh" else cfg.act_fn
    for cap in ("output_logits_soft_cap", "attn_scores_soft_cap"):
        fields[cap] = max(fields[cap], 0.0)
    fields["rotary_dim"] = cfg.rotary_dim or cfg.d_head
    without = () if cfg.positional_embedding_type == "rotary" else ("rotary", "use_NTK", "NTK")
    without += () if cfg.use_NTK_by_parts_rope else ("NTK",)
    return {key: value for key, value in fields.items() if not key.startswith(without)}
