"""Checkpoints: everything that a killed run needs to go on as if it had never stopped, in safetensors and JSON.

    <run>/step_00000500/  model.safetensors  hooked_config.json  tokenizer.json
                          train_state.safetensors  train_state.json
    <run>/latest          the name of the newest whole one, written last

A checkpoint is written beside under a temporary name, flushed to disk and renamed, so that no moment has half of one.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from workbench.models import HookedLM
from workbench.models.checkpoint import save
from workbench.models.load import load
from workbench.runs import atomic_write, sha256_file, shorten

LATEST, TENSORS, INFO = "latest", "train_state.safetensors", "train_state.json"
FORMAT = "workbench-train-state/2"
REQUIRED = {"model.safetensors", "hooked_config.json", TENSORS}
_STEP = re.compile(r"^step_(\d{8,})$")
_TEMPORARY = re.compile(r"^\.step_\d+\.[0-9a-f]{8}\.tmp$")


@dataclass(frozen=True)
class Position:
    """How far training has come."""

    phase: int = 0
    """index of the phase"""
    phase_step: int = 0
    """optimizer steps done in this phase"""
    step: int = 0
    """optimizer steps done in all phases"""
    n_tokens: int = 0
    """tokens read in all phases"""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint read back."""

    path: Path
    position: Position
    model: HookedLM
    tensors: dict[str, Tensor]
    """optimizer moments `optimizer/…` and random states `rng/…`"""
    info: dict[str, Any]
    """the rest of train_state.json: controller, checksums of the text, bytes of train_log.csv, …"""


def step_name(step: int) -> str:
    """Directory name of a step's checkpoint; names sort as steps do."""
    return f"step_{step:08d}"


def save_checkpoint(
    directory: Path,
    position: Position,
    model: HookedLM,
    tensors: dict[str, Tensor],
    info: dict[str, Any],
    keep: int | None,
    is_planned: Callable[[int], bool] = lambda step: True,
) -> Path:
    """The new checkpoint's path, once it is whole on disk and `latest` names it; older ones are removed as `remove_old`
    says.

    Raises:
        ValueError: where the disk is full or the checkpoint cannot be written; what was there before is intact.
    """
    target = directory / step_name(position.step)
    temporary = _beside(target)
    try:
        _require_space(directory, model, tensors)
        temporary.mkdir()
        save(model, temporary)
        # safetensors needs the numbers in C order; a moment takes its weight's strides again when it is loaded
        save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, temporary / TENSORS)
        hashes = {path.name: sha256_file(path) for path in sorted(temporary.iterdir())}
        content = {"format": FORMAT, "position": asdict(position), "sha256": hashes, **info}
        text = json.dumps(content | {"own_sha256": _sha256_of(content)}, indent=2) + "\n"
        (temporary / INFO).write_text(text, encoding="utf-8")
        for path in (*sorted(temporary.iterdir()), temporary):
            _sync(path)
        if target.exists():  # of a run that was killed before `latest` named it
            shutil.rmtree(target)
        temporary.rename(target)
        _sync(directory)
        atomic_write(directory / LATEST, target.name + "\n")
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise ValueError(
            f"checkpoint: {target} could not be written ({error}); expected room and write permission there; "
            f"{last_good(directory)}"
        ) from error
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    remove_old(directory, target, keep, is_planned)
    return target


def last_good(directory: Path) -> str:
    """A phrase that names the newest whole checkpoint of a run directory, or says that there is none."""
    latest = directory / LATEST
    if not latest.is_file():
        return "no checkpoint was saved before"
    return f"the last good checkpoint is {directory / latest.read_text(encoding='utf-8').strip()}"


def clear_leftovers(directory: Path) -> None:
    """Remove checkpoints that a killed process had begun, or begun to remove."""
    for leftover in directory.iterdir():
        if _TEMPORARY.match(leftover.name):
            shutil.rmtree(leftover)


def load_checkpoint(directory: Path, device: str = "cpu") -> Checkpoint | None:
    """The checkpoint that `latest` names, or None in a run directory that has none yet.

    Args:
        directory: the run directory.
        device: where the model goes; the other tensors stay on the CPU.

    Raises:
        ValueError: naming the file, of this or an older checkpoint, that is missing, altered, or not of this program.
    """
    clear_leftovers(directory)
    if not (directory / LATEST).is_file():
        return None
    name = (directory / LATEST).read_bytes().decode("utf-8", "replace").strip()
    if not _STEP.match(name):
        raise ValueError(
            f"checkpoint: {directory / LATEST} holds {shorten(repr(name))}; expected the name of a step directory"
        )
    # older ones too: in the end the run's manifest seals them, and what befell them before would never be seen
    path = directory / name
    for step, older in _by_step(directory).items():
        if step < int(name.removeprefix("step_")):
            _read_whole(older)
    info = _read_whole(path)
    try:
        tensors = load_file(path / TENSORS)
    except SafetensorError as error:
        raise ValueError(f"checkpoint: {path / TENSORS} is no safetensors file ({error})") from None
    return Checkpoint(path, Position(**info.pop("position")), load(path, device), tensors, info)


def random_state() -> dict[str, Tensor]:
    """The global generators of torch on the CPU and, where there are any, the CUDA devices."""
    state = {"rng/cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state |= {f"rng/cuda.{i}": s for i, s in enumerate(torch.cuda.get_rng_state_all())}
    return state


def restore_random_state(tensors: dict[str, Tensor]) -> None:
    """Set the global generators back to `random_state()`; devices that are no longer there are passed over."""
    torch.set_rng_state(tensors["rng/cpu"])
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            if f"rng/cuda.{i}" in tensors:
                torch.cuda.set_rng_state(tensors[f"rng/cuda.{i}"], i)


def _read_whole(path: Path) -> dict[str, Any]:
    """What a checkpoint says of itself, its own hashes apart; every file of it compared with them."""
    info = _read_info(path)
    for file, expected in info.pop("sha256").items():
        if not (path / file).is_file():
            raise ValueError(f"checkpoint: {path / file} is missing; expected a whole checkpoint")
        if sha256_file(path / file) != expected:
            raise ValueError(f"checkpoint: {path / file} is altered; expected the file that training wrote")
    return info


def _read_info(path: Path) -> dict[str, Any]:
    file = path / INFO
    if not file.is_file():
        raise ValueError(f"checkpoint: {file} is missing; expected a whole checkpoint")
    try:
        info = json.loads(file.read_bytes().decode())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"checkpoint: {file} is not JSON ({error}); expected the file that training wrote") from None
    if not isinstance(info, dict) or info.get("format") != FORMAT:
        raise ValueError(f"checkpoint: {file} is of another program; expected format {FORMAT!r}")
    if info.pop("own_sha256", None) != _sha256_of(info):
        raise ValueError(f"checkpoint: {file} is altered; expected the file that training wrote")
    del info["format"]
    position, hashes = info.get("position"), info.get("sha256")
    fields = Position.__dataclass_fields__
    if not isinstance(position, dict) or set(position) != set(fields) or not all(map(_is_count, position.values())):
        raise ValueError(f"checkpoint: {file} has no whole position; expected {', '.join(fields)}, each a count")
    if not isinstance(hashes, dict) or not set(hashes) >= REQUIRED or any(Path(n).name != n for n in hashes):
        raise ValueError(f"checkpoint: {file} lacks the sha256 of {', '.join(sorted(REQUIRED))}")
    return info


def _sha256_of(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _require_space(directory: Path, model: HookedLM, tensors: dict[str, Tensor]) -> None:
    held = (*model.state_dict().values(), *tensors.values())
    n_bytes = sum(t.numel() * t.element_size() for t in held) + (16 << 20)  # tokenizer, headers, file system
    free = shutil.disk_usage(directory).free
    if free < n_bytes:
        raise OSError(errno.ENOSPC, f"{n_bytes / 1e6:.0f} MB needed, {free / 1e6:.0f} MB free")


def remove_old(
    directory: Path, newest: Path, keep: int | None, is_planned: Callable[[int], bool] = lambda step: True
) -> None:
    """Remove checkpoints at planned steps beyond the `keep` newest (none: all stay), and all at other steps, which an
    interrupt made; never `newest`. So an interrupted run leaves what another does."""
    found = _by_step(directory)
    planned = sorted(step for step in found if is_planned(step))
    staying = planned if keep is None else planned[max(0, len(planned) - keep) :]
    for step, path in found.items():
        if step not in staying and path != newest:
            leaving = path.rename(_beside(path))  # a kill leaves no half of a checkpoint under its own name
            shutil.rmtree(leaving)


def _by_step(directory: Path) -> dict[int, Path]:
    """Step -> checkpoint of a run directory, in the order of steps."""
    return {int(match[1]): path for path in sorted(directory.iterdir()) if (match := _STEP.match(path.name))}


def _beside(checkpoint: Path) -> Path:
    """A name that `clear_leftovers` knows."""
    return checkpoint.with_name(f".{checkpoint.name}.{secrets.token_hex(4)}.tmp")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
