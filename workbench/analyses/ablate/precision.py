"""What an ablation runs in, and what a narrower dtype than float32 costs: its error on impacts, measured."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64

from workbench.analyses.ablate.records import SequenceLosses
from workbench.models import HookedLM, parse_dtype
from workbench.models.bridge import Generic

N_CHECKED = 8  # sequences that are run in float32 as well


def in_precision(model: Any, dtype: str | None) -> Any:
    """The model to run: itself where it has that dtype, else a copy that has.

    dtype None means float32, or float64 for a float64 model; a model of another library stays as it is.

    Raises:
        ValueError: an unknown dtype, or any for a model of another library or of packed weights.
    """
    if dtype is None:
        return as_float32(model)
    if not _has_dtypes(model):
        raise ValueError(f"dtype: got {dtype!r} for a {type(model).__name__}; expected none, or a HookedLM")
    return _in(model, parse_dtype(dtype))


def as_float32(model: Any) -> Any:
    """The model in float32, or itself where it is wider, of another library, or of packed weights."""
    return _in(model, torch.float32) if is_narrow(model) else model


def is_narrow(model: Any) -> bool:
    """Whether a model is of a dtype narrower than float32 and may be had in that."""
    return _has_dtypes(model) and torch.finfo(model.cfg.dtype).bits < 32


def _has_dtypes(model: Any) -> bool:
    return isinstance(model, HookedLM) or (isinstance(model, Generic) and not model.is_packed)


def _in(model: Any, dtype: torch.dtype) -> Any:
    if model.cfg.dtype == dtype:
        return model
    return model.in_dtype(dtype) if isinstance(model, Generic) else copy.deepcopy(model).to(dtype)


def measure_errors(narrow: SequenceLosses, wide: SequenceLosses) -> Float64[np.ndarray, " row"]:
    """|difference of impact_pct| of each row, on the sequences that both hold."""
    n = min(len(narrow.base), len(wide.base))
    found = []
    for losses in (narrow, wide):
        base, ablated = losses.base[:n].mean(), losses.ablated[:, :n].mean(1)
        found.append((100 * (ablated - base) / base).numpy())
    return np.abs(found[0] - found[1])
