"""What one micro-batch is trained on: the next-token loss, and what interventions make of the same forward pass."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.data.blocks import block_numbers, block_runs
from workbench.models import HookedLM
from workbench.training.prescription import Moment, Prescription, report


@dataclass(frozen=True)
class Batch:
    """Sequences, and which of their predictions count."""

    tokens: Int[Tensor, "batch pos"]
    mask: Bool[Tensor, "batch predictions"] | None = None
    """[batch, pos − 1]; None: all"""


@dataclass(frozen=True)
class Objective:
    """The parts of a micro-batch's loss, scalars."""

    total: Float[Tensor, ""]
    """what is differentiated"""
    loss: Float[Tensor, ""]
    """next-token loss, nats (with what interventions' loss options add to it)"""
    telemetry: Mapping[str, Float[Tensor, ""]] = field(default_factory=dict)
    """`<intervention>.loss`, the term that it adds, and what it reports"""


def objective(
    model: HookedLM,
    batch: Batch,
    prescription: Prescription,
    moment: Moment,
    autocast: torch.dtype | None = None,
    call: Callable[..., Tensor] | None = None,
) -> Objective:
    """The loss of one micro-batch under the interventions of its phase.

    `call` is called in the model's place, where several processes wrap it. Where the moment's scalars and step are
    tensors on the model's device, nothing of it depends on their values but the numbers: a tensor weighs.
    """
    with precision(batch.tokens.device.type, autocast), prescription.acting(model, moment) as acting:
        options = {"loss_mask": batch.mask, **acting.loss_options()}
        loss = (model if call is None else call)(batch.tokens, return_type="loss", **options)
    terms, total = acting.terms(), loss
    for own in terms.values():
        if own.loss is not None:
            total = total + own.loss
    return Objective(total, loss.detach(), report(terms))


def held_out_loss(model: HookedLM, held_out: Batch, batch_size: int) -> float:
    """Mean next-token loss in nats over all windows, in the weights' own precision: bfloat16 logits would bias it."""
    return math.fsum(block_sums(model, held_out, batch_size)) / len(held_out.tokens)


@torch.no_grad()
def block_sums(model: HookedLM, held_out: Batch, batch_size: int) -> list[float]:
    """Of each block of the windows (`workbench.data.blocks`), the sum over its windows of their mean losses."""
    windows = held_out.tokens
    sums: dict[int, float] = {}
    for block, own in block_runs(block_numbers(len(windows))):
        sums[block] = 0.0
        for start in range(own.start, own.stop, batch_size):
            rows = slice(start, min(start + batch_size, own.stop))
            # every window has as many scored tokens as the others, so the mean of windows is the mean of tokens
            mask = None if held_out.mask is None else held_out.mask[rows]
            sums[block] += float(model(windows[rows], return_type="loss", loss_mask=mask)) * len(windows[rows])
    return list(sums.values())


def precision(device_type: str, autocast: torch.dtype | None) -> AbstractContextManager:
    """The autocast context of a forward pass, or none."""
    return nullcontext() if autocast is None else torch.autocast(device_type, autocast)


@contextmanager
def reproducible(device: str) -> Iterator[None]:
    """While it lasts, a CUDA device takes only kernels that add up in one order, so that a resumed run equals one that
    never stopped; on a CPU every kernel does. Attention's and the embedding's default backward do not."""
    if torch.device(device).type != "cuda":
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS's own condition, read when it is first used
    settings: Any = torch.utils.deterministic
    before, fill = torch.are_deterministic_algorithms_enabled(), settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    settings.fill_uninitialized_memory = False  # a help in finding faults, at the price of a pass
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        settings.fill_uninitialized_memory = fill


def autocast_dtype(device: str, dtype: str) -> torch.dtype | None:
    """What a training forward computes in beside its float32 weights: torch.bfloat16, or None for the weights' dtype.

    "auto" takes bfloat16 where the device multiplies it in hardware: CUDA from Ampere on, CPUs with AMX or AVX512-BF16.

    Raises:
        ValueError: for anything but "auto", "float32", "float64" and "bfloat16".
    """
    if dtype not in ("auto", "float32", "float64", "bfloat16"):
        raise ValueError(f"dtype: got {dtype!r}; expected auto, float32, float64 or bfloat16")
    if dtype in ("float32", "float64"):
        return None
    if dtype == "bfloat16":
        return torch.bfloat16
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else None
    if kind == "cpu":
        has = torch.cpu.get_capabilities()
        return torch.bfloat16 if has.get("amx_bf16") or has.get("avx512_bf16") else None
    return None


def weights_dtype(dtype: str) -> torch.dtype:
    """What the weights are kept in: float32 except for training in float64; bfloat16 concerns the forward pass only."""
    return torch.float64 if dtype == "float64" else torch.float32
