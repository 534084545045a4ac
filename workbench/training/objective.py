"""What one micro-batch is trained on: the next-token loss, with VSM on the heads of the same forward pass."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.models import HookedLM
from workbench.models.cross_entropy import Scalar, weighs
from workbench.training.auxiliary import Auxiliary, auxiliary_loss, entropy_bonus, seeing
from workbench.training.recipe import Phase
from workbench.training.vsm import attention_entropy, head_gram, pattern_gram, sigma, vsm_loss


@dataclass(frozen=True)
class Batch:
    """Sequences, and which of their predictions count."""

    tokens: Int[Tensor, "batch pos"]
    mask: Bool[Tensor, "batch predictions"] | None = None
    """[batch, pos − 1]; None: all"""


@dataclass(frozen=True)
class Objective:
    """The parts of a micro-batch's loss, scalars; None where the phase or the step does not have them."""

    total: Float[Tensor, ""]
    """what is differentiated"""
    loss: Float[Tensor, ""]
    """next-token loss, nats (with the z-loss and the thermodynamic term, where there are any)"""
    vsm: Float[Tensor, ""] | None = None
    """Σ_ℓ λ_ℓ ‖G_ℓ − I‖_F"""
    sigma: Float[Tensor, ""] | None = None
    """mean |cos| between heads, mean over layers"""


def objective(
    model: HookedLM,
    batch: Batch,
    phase: Phase,
    weight: Scalar,
    autocast: torch.dtype | None = None,
    step: int | Int[Tensor, ""] = 0,
    call: Callable[..., Tensor] | None = None,
) -> Objective:
    """The loss of one micro-batch of step `step` of its phase, with VSM at λ = `weight`.

    `call` is called in the model's place, where several processes wrap it. Where `weight` and `step` are tensors on the
    model's device, nothing of it depends on their values but the numbers: a tensor `weight` presses.

    Attention maps are formed only while they weigh something or a controller reads their σ: with `on = "pattern"`, λ
    and the coherence 0 and no P-controller, attention stays fused and there is no σ.
    """
    vsm = phase.vsm
    grams: list[Tensor] = []
    entropies: list[Tensor] = []

    def note(z_or_pattern: Tensor) -> None:
        assert vsm is not None
        if vsm.on == "z":
            grams.append(head_gram(z_or_pattern, vsm.group_size))
            return
        grams.append(pattern_gram(z_or_pattern, vsm.group_size))
        if vsm.coherence:
            entropies.append(attention_entropy(z_or_pattern))

    is_pressed = vsm is not None and (vsm.on == "z" or vsm.reads_sigma or weighs(weight) or vsm.coherence != 0)
    watched = watching(model, f"attn.hook_{vsm.on}", note) if vsm is not None and is_pressed else nullcontext()
    aux = phase.auxiliary or Auxiliary()
    extras = {"loss_mask": batch.mask, "z_loss": phase.z_loss, "entropy_bonus": entropy_bonus(aux, step)}
    with precision(batch.tokens.device.type, autocast), watched, seeing(model, aux) as seen:
        loss = (model if call is None else call)(batch.tokens, return_type="loss", **extras)
    more = auxiliary_loss(model, aux, seen)
    total = loss if more is None else loss + more
    if not grams:
        return Objective(total=total, loss=loss.detach())
    assert vsm is not None
    pressure = weight * vsm_loss(grams, vsm.steering)
    total = total + pressure
    if entropies:
        total = total + vsm.coherence * torch.stack(entropies).mean()
    with torch.no_grad():
        mean_sigma = torch.stack([sigma(gram) for gram in grams]).mean()
    return Objective(total, loss.detach(), pressure.detach(), mean_sigma)


@contextmanager
def watching(model: HookedLM, hook: str, note: Callable[[Tensor], None]) -> Iterator[None]:
    """While it lasts, `note` sees the activation at `blocks.{l}.{hook}` of every layer, in order.

    Handles of our own, since TransformerLens's context visits every hook point of the model each time it is left.
    """

    def see(point: object, inputs: object, activation: Any) -> None:
        note(activation)

    points = [model.hook_dict[f"blocks.{layer}.{hook}"] for layer in range(model.cfg.n_layers)]
    handles = [point.register_forward_hook(see) for point in points]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def held_out_loss(model: HookedLM, held_out: Batch, batch_size: int) -> float:
    """Mean next-token loss in nats over all windows, in the weights' own precision: bfloat16 logits would bias it."""
    total, windows = 0.0, held_out.tokens
    for start in range(0, len(windows), batch_size):
        rows = slice(start, start + batch_size)
        # every window has as many scored tokens as the others, so the mean of windows is the mean of tokens
        mask = None if held_out.mask is None else held_out.mask[rows]
        total += float(model(windows[rows], return_type="loss", loss_mask=mask)) * len(windows[rows])
    return total / len(windows)


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
