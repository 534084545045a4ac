"""A stack on disk: sae.safetensors, and sae.json that says what it is and what every tensor's bytes hash to."""

from __future__ import annotations

import codecs
import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sae.config import SAEConfig, StackInfo
from sae.tensors import check_finite, check_tensors, hash_tensor, tensor_shapes

WEIGHTS_FILE = "sae.safetensors"
CONFIG_FILE = "sae.json"
Stored = tuple[SAEConfig, dict[str, Tensor], StackInfo]
"""What a stack is made of: `StackedSAE.from_tensors(*stored)`."""


class _StackFile(BaseModel):
    """sae.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["stacked-sae"] = "stacked-sae"
    version: Literal[1] = 1
    config: SAEConfig
    info: StackInfo
    sha256: dict[str, str]
    """sha256 of every tensor's bytes, by name."""


def save_stack(
    directory: str | Path, config: SAEConfig, tensors: Mapping[str, Tensor], info: StackInfo, *, overwrite: bool = False
) -> Path:
    """Path of the directory, which holds sae.safetensors and sae.json; it appears whole or not at all.

    The files are written beside it, flushed to the disk and renamed. With `overwrite` an older stack of that name is
    moved aside first and removed last. Raises ValueError if the directory exists and is not to be overwritten, or if
    a parameter is not finite.
    """
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    check_finite("save", held)
    sha256 = {name: hash_tensor(tensor) for name, tensor in held.items()}
    record = _StackFile(config=config, info=info, sha256=sha256)
    with new_directory(directory, overwrite=overwrite) as partial:
        save_file(held, partial / WEIGHTS_FILE)
        (partial / CONFIG_FILE).write_text(record.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return Path(directory)


def load_stack(directory: str | Path) -> Stored:
    """Config, tensors and info of the stack saved in a directory, on the CPU, in the dtype it was saved in.

    Raises ValueError naming the file, and the tensor where it is one, if a file is missing, truncated or altered: a
    flipped bit of a tensor is found by its hash.
    """
    directory = Path(directory)
    config_path, weights_path = directory / CONFIG_FILE, directory / WEIGHTS_FILE
    try:
        record = _StackFile.model_validate(read_json(config_path))
    except ValidationError as error:
        raise ValueError(f"{config_path}: {describe_validation(error)}") from error
    n_saes = record.config.n_saes
    if record.info.sources and len(record.info.sources) != n_saes:
        raise ValueError(f"{config_path}: info.sources has {len(record.info.sources)} entries; expected {n_saes}")
    tensors = read_tensors(weights_path, tensor_shapes(record.config))
    for name, tensor in tensors.items():
        digest, wanted = hash_tensor(tensor), record.sha256.get(name)
        if wanted != digest:
            raise ValueError(
                f"{weights_path}: tensor {name} has sha256 {digest}; "
                f"expected {shorten(str(wanted))} ({CONFIG_FILE}); one "
                "of the two files was altered"
            )
    check_tensors(record.config, tensors, f"{weights_path}: ")
    return record.config, tensors, record.info


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises ValueError naming the file if it is missing or holds no JSON object."""
    try:
        data = path.read_bytes()
        if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            raise ValueError("it is UTF-16; expected UTF-8")
        content = json.loads(data.decode("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); expected a JSON object") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds {type(content).__name__}; expected a JSON object")
    return content


def read_tensors(
    path: Path, shapes: dict[str, tuple[int, ...]], optional: frozenset[str] = frozenset()
) -> dict[str, Tensor]:
    """Tensors of a safetensors file, which must be these, in these shapes; `optional` names may be there too.

    Shapes are compared before anything is read. Raises ValueError naming the file and the tensor.
    """
    try:
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
            if not set(shapes) <= names <= set(shapes) | optional:
                raise ValueError(f"{path}: holds tensors {shorten(str(sorted(names)), 400)}; expected {sorted(shapes)}")
            for name, shape in shapes.items():
                got = tuple(file.get_slice(name).get_shape())
                if got != shape:
                    raise ValueError(f"{path}: tensor {name} has shape {got}; expected {shape}")
            return {name: file.get_tensor(name) for name in sorted(names)}
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); expected a safetensors file") from error


def read_any_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file. Raises ValueError naming the file."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in sorted(file.keys())}
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); expected a safetensors file") from error


def describe_validation(error: ValidationError) -> str:
    """The first fault of a pydantic error in one line: field, what is wrong, what was given; no text of the file is
    quoted at length."""
    first = error.errors(include_url=False)[0]
    field = ".".join(str(part) for part in first["loc"]) or "content"
    return f"{shorten(field)}: got {str(first['input'])[:80]!r}; {first['msg']}"


def shorten(text: str, n: int = 80) -> str:
    """Text of a file as an error quotes it: printable, on one line, at most n characters."""
    text = text if text.isprintable() else repr(text)[1:-1]
    return text if len(text) <= n else f"{text[: n - 1]}…"


@contextlib.contextmanager
def new_directory(directory: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """An empty directory beside the wanted one that takes its name when the block ends well, and goes when it fails.

    Files and directories are flushed to the disk before the rename. Raises ValueError if the wanted one exists and is
    not to be overwritten.
    """
    directory = Path(directory)
    if directory.exists() and not overwrite:
        raise ValueError(f"{directory}: exists; expected a new directory, or overwrite=True")
    directory.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", suffix=".partial", dir=directory.parent))
    try:
        # mkdtemp gives 0700; what is saved is meant to be shared as any other file
        partial.chmod(0o755)
        yield partial
        for path in sorted(partial.rglob("*")) + [partial]:
            _flush(path)
        if directory.exists():
            old = partial.with_suffix(".old")
            directory.rename(old)
            partial.rename(directory)
            shutil.rmtree(old)
        else:
            partial.rename(directory)
        _flush(directory.parent)
    finally:
        if partial.exists():
            shutil.rmtree(partial)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
