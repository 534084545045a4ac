"""CUDA told to say where the host waits for the device."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch


@contextmanager
def waits(mode: Literal["warn", "error"]) -> Iterator[None]:
    """While it lasts, every read of a tensor's value on the device warns, or raises RuntimeError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it does not find every wait
            torch.cuda.set_sync_debug_mode(mode)
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
