"""Weights from files into a model: opened, checked, copied; and what a model's weights hash to."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from workbench.models.config import DTYPES
from workbench.models.transformer import HookedLM
from workbench.runs import shorten
from workbench.runs.foreign_files import refuse_pointer
from workbench.runs.records import join_faults

_KINDS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a safetensors file, of which no more than the header has been read."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype | None
    """None: one that weights do not have"""

    def read(self) -> Tensor:
        """The tensor, memory-mapped by a mapping of its own: its pages are let go with the last view of it, where those
        of a mapping of the file would stay, so that a model is loaded in the memory of its weights and one tensor."""
        with _opened(self.file) as f:
            return f.get_tensor(self.name)


def open_tensors(file: Path) -> dict[str, StoredTensor]:
    """Every tensor of a safetensors file, by name.

    Raises:
        ValueError: the file is missing, truncated or not safetensors.
    """
    if not file.is_file():
        raise ValueError(f"{file}: not there; expected a safetensors file")
    refuse_pointer(file)
    found = {}
    with _opened(file) as f:
        for name in f.keys():  # noqa: SIM118 (not a dict)
            header = f.get_slice(name)
            found[name] = StoredTensor(file, name, tuple(header.get_shape()), _KINDS.get(header.get_dtype()))
    return found


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        with safe_open(file, framework="pt") as f:
            yield f
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{file}: cannot be read as safetensors ({error})") from error


@torch.no_grad()
def fill(model: HookedLM, tensors: Mapping[str, StoredTensor], source: str) -> None:
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
        if n in parameters and t.shape != tuple(parameters[n].shape)
    ]
    if wrong:
        raise ValueError(f"{source}: {join_faults(wrong)}")
    for name, parameter in parameters.items():
        tensor = tensors[name].read()
        check_numbers(tensor, name, source)
        parameter.copy_(tensor)


def widest_dtype(tensors: Iterable[StoredTensor | Tensor]) -> torch.dtype:
    """The narrowest dtype of weights that holds every number of those tensors that have one; float32 if none has."""
    kinds = {t.dtype for t in tensors if t.dtype is not None and t.dtype in DTYPES.values()}
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


def weights_sha256(model: Any) -> str:
    """Hex sha256 over name, shape, dtype and bytes of all parameters in name order: what an SAE knows its model by."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        tensor = parameter.detach().cpu().contiguous()
        digest.update(f"{name} {list(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.view(torch.uint8).numpy() if tensor.numel() else b"")
    return digest.hexdigest()
