"""Matrices whose rows begin at 16-byte borders, which the tensor cores of a CUDA device need to run at their speed.

GPT-2's 50,257 tokens and a SwiGLU of width 1,365 have odd rows: cuBLAS then takes kernels that load one element at a
time (on an H100, kernels of sm75). Columns of zeros before a product, cut off after it, change no number in it.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

BORDER_BYTES = 16


def n_missing(width: int, like: Tensor) -> int:
    """How many entries a row of `width` entries, of the dtype and on the device of `like`, lacks to the next border; 0
    on a CPU, which does not mind."""
    return -width % (BORDER_BYTES // like.itemsize) if like.is_cuda else 0


def pad(tensor: Tensor, n: int, dim: int) -> Tensor:
    """The tensor with n zeros appended along `dim`."""
    behind = tensor.ndim - 1 - dim % tensor.ndim
    return F.pad(tensor, (*[0, 0] * behind, 0, n)) if n else tensor
