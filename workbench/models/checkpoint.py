"""Checkpoints in our own form: model.safetensors, hooked_config.json and the tokenizer's files."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import fields
from pathlib import Path
from types import NoneType
from typing import Any

import torch
from safetensors.torch import save_file

from workbench.models.config import ModelConfig
from workbench.models.text_source import TextSource
from workbench.models.tokenizer_files import (
    TOKENIZER,
    TOKENIZER_FILES,
    read_generation,
    read_tokenizer,
    write_generation,
    write_tokenizer,
)
from workbench.models.transformer import HookedLM
from workbench.models.weights import fill, open_tensors
from workbench.runs import CONFIG as RUN_CONFIG
from workbench.runs import read_config, read_settings, shorten, verify_files

WEIGHTS, CONFIG = "model.safetensors", "hooked_config.json"
_STEP = "step_"  # what the directories of a training's checkpoints begin with
_READ = TOKENIZER_FILES | {WEIGHTS, CONFIG}


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


def is_training(path: Path) -> bool:
    """Whether a directory is a training of ours that has saved a checkpoint."""
    return (path / "latest").is_file()


def kept_steps(run: Path) -> dict[int, Path]:
    """Step -> directory of every checkpoint that a training kept, in the order of steps."""
    found = {own.name[len(_STEP) :]: own for own in run.glob(f"{_STEP}*")}
    return dict(sorted((int(step), own) for step, own in found.items() if step.isdigit()))


def at_revision(source: str | Path) -> tuple[str, str | None]:
    """(path or hub name, revision of a hub's repository) that a source means, which may end in `@REVISION`.

    Of a run of ours a revision is a step that it kept (`@step400`, `@400`), whose directory then is the path.

    Raises:
        ValueError: a step that the run did not keep (those that it did are named); a revision of anything else that
            is here.
    """
    name, sign, revision = str(source).rpartition("@")
    if not sign or not revision or Path(source).exists():
        return str(source), None
    if not is_training(Path(name)):
        if name and Path(name).exists():
            what = "folder" if Path(name).is_dir() else "file"
            raise ValueError(f"{name}@{revision}: a {what} has no revisions; expected its path alone, or a hub name")
        return name, revision
    kept = kept_steps(Path(name))
    step = revision.removeprefix("step").lstrip("_")
    if not step.isdigit() or int(step) not in kept:
        steps = ", ".join(f"step{own}" for own in kept) or "none"
        raise ValueError(f"{name}: got the step {shorten(repr(revision))}; expected one that it kept: {steps}")
    return str(kept[int(step)]), None


def load_checkpoint(directory: Path, dtype: torch.dtype | None = None) -> HookedLM:
    """The model of a directory with hooked_config.json, on the CPU, with its tokenizer where it has one.

    dtype: of its weights, by default as stored; read into that dtype, they take no memory in another.

    Raises:
        ValueError: a file that its run's manifest does not cover as it is, or as `load` says.
    """
    _verify(directory, _READ)
    cfg, recipe = _read_config(directory), _recipe_of(directory)
    model = HookedLM(cfg.model_copy(update={"dtype": dtype or cfg.dtype}), seed=None)
    fill(model, open_tensors(directory / WEIGHTS), str(directory / WEIGHTS))
    if (directory / TOKENIZER).is_file():
        model.tokenizer = read_tokenizer(directory, begins=cfg.default_prepend_bos)
        model.generation = read_generation(directory)
    model.trained_on = _trained_on(recipe, directory.parent / RUN_CONFIG)
    return model


def read_checkpoint_config(directory: Path) -> ModelConfig:
    """The configuration of a checkpoint directory's model, by its recipe's name where a run of ours trained it, whether
    its weights are there or not; errors as `load_checkpoint`."""
    _verify(directory, {CONFIG})
    return _read_config(directory)


def _read_config(directory: Path) -> ModelConfig:
    config_file = directory / CONFIG
    cfg = ModelConfig.from_json(read_settings(config_file, "model", "a model's configuration"), str(config_file))
    name = _recipe_of(directory).get("name")
    # several recipes share an architecture's name
    return cfg.model_copy(update={"model_name": name}) if isinstance(name, str) else cfg


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


def _verify(directory: Path, names: Collection[str]) -> None:
    """Raise ValueError unless what is read of a checkpoint is what its run wrote: a flipped bit of a weight is a weight
    like any other."""
    verify_files(directory, lambda name: name in names)
    if (directory.parent / "latest").is_file():  # the checkpoint of a training is a directory within the run
        own = {f"{directory.name}/{name}" for name in names} | {"latest", RUN_CONFIG}
        verify_files(directory.parent, lambda name: name in own)


def save(model: HookedLM, directory: str | Path) -> None:
    """Write model.safetensors, hooked_config.json and the tokenizer's files into an existing directory."""
    directory = Path(directory)
    tensors = {n: p.detach().cpu().contiguous() for n, p in model.named_parameters()}
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})
    (directory / CONFIG).write_text(model.cfg.to_json(), encoding="utf-8")
    if model.tokenizer is not None:
        write_tokenizer(model.tokenizer, directory)
    write_generation(model.generation, directory)
