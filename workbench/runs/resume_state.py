"""What a begun run goes on with: tensors in files of its directory, each sealed, as no manifest covers them yet."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from sae.tensors import hash_tensor
from workbench.runs import CONFIG, atomic_write


def write_state(file: Path, tensors: Mapping[str, Tensor], note: str = "") -> None:
    """Write tensors, on whatever device, and a note to a file in the directory of a begun run, or in one within it.

    The seal is sha256 over all of them, the file's name and the run's config.toml, so that neither damage nor a file of
    another name or run is taken for this one.
    """
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    atomic_write(file, save(held, {"note": note, "seal": _seal(file, held, note)}))


def read_state(file: Path) -> tuple[dict[str, Tensor], str]:
    """The tensors, on the CPU, and the note that `write_state` wrote.

    Raises:
        ValueError: naming the file, if it is altered or was not written under this name in this run.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a dict)
            metadata = opened.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"resume: {file} is altered ({error}); expected it as it was saved, or removed") from error
    note = metadata.get("note", "")
    if metadata.get("seal") != _seal(file, tensors, note):
        raise ValueError(f"resume: {file} is altered, or of another run; expected it as it was saved, or removed")
    return tensors, note


def _seal(file: Path, tensors: Mapping[str, Tensor], note: str) -> str:
    parts = [file.name, note, *(f"{name} {hash_tensor(tensors[name])}" for name in sorted(tensors))]
    config = next(run / CONFIG for run in file.parents if (run / CONFIG).is_file()).read_bytes()
    return hashlib.sha256("\0".join([*parts, hashlib.sha256(config).hexdigest()]).encode()).hexdigest()
