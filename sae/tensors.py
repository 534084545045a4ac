"""The tensors of a stack: names, shapes, what they must hold, and their hash."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from sae.architectures import architecture_of
from sae.config import SAEConfig


def tensor_shapes(config: SAEConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor of a stack, by name."""
    specs = architecture_of(config).tensors(config)
    return {name: (config.n_saes, *spec.shape(config)) for name, spec in specs.items()}


def check_tensors(config: SAEConfig, tensors: Mapping[str, Tensor], where: str = "") -> None:
    """Raise ValueError naming the first tensor that does not fit the config, is not finite or is negative
    where it may not be; `where` begins the message."""
    shapes = tensor_shapes(config)
    if set(tensors) != set(shapes):
        raise ValueError(f"{where}tensors: got {sorted(tensors)}; expected {sorted(shapes)}")
    dtype = tensors["W_dec"].dtype
    for name, shape in shapes.items():
        tensor = tensors[name]
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{where}tensor {name} has shape {tuple(tensor.shape)}; expected {shape}")
        if not tensor.is_floating_point() or tensor.dtype != dtype:
            raise ValueError(f"{where}tensor {name} is {tensor.dtype}; expected one floating-point dtype for all")
        if not bool(tensor.isfinite().all()):
            raise ValueError(
                f"{where}tensor {name} has {int((~tensor.isfinite()).sum())} nan or inf; expected finite numbers"
            )
    for name, spec in architecture_of(config).tensors(config).items():
        if spec.is_nonnegative and bool((tensors[name] < 0).any()):
            raise ValueError(f"{where}tensor {name} has a minimum of {float(tensors[name].min())}; expected ≥ 0")


def check_finite(what: str, tensors: Mapping[str, Tensor]) -> None:
    """Raise ValueError naming the first tensor that is not finite, before `what` is done with it."""
    for name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"{what}: tensor {name} has nan or inf; expected a trained or initialised stack")


def hash_tensor(tensor: Tensor) -> str:
    """sha256, hexadecimal, of a tensor's bytes in row order, its dtype and shape before them."""
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
    # a bfloat16 tensor has no NumPy form, its bytes have
    digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
