"""Losses that a recurrent model is trained with beside the next-token loss, read from its hooks and its weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from workbench.models.config import ModelConfig
from workbench.models.cross_entropy import Scalar
from workbench.runs.records import Frozen
from workbench.training.quantization import int8_distance

_NEAREST = 1e-6  # of a probability to 0 and 1


class Auxiliary(Frozen):
    """Weights of the auxiliary losses; 0 is off."""

    td: float = Field(default=0.0, description="weight of mean(corr²) of the temporal differences", ge=0)
    gate_entropy: float = Field(default=0.0, description="weight of the exit gates' mean entropy, nats", ge=0)
    thermodynamic: float = Field(default=0.0, description="β of CE − β·T·H(p), H the prediction's entropy", ge=0)
    temperature: float = Field(default=0.5, description="T of step 0", ge=0)
    n_temperature_steps: float = Field(default=5000.0, description="steps in which T falls to 1/e", gt=0)
    compression: float = Field(default=0.0, description="weight of mean |W − int8 round trip of W|", ge=0)


def entropy_bonus(aux: Auxiliary, step: int | Int[Tensor, ""]) -> Scalar:
    """β·T at `step` (0-based in its phase), T = temperature·e^(−step/n_temperature_steps); 0 where it never weighs.

    Of a step that is a tensor a float64 tensor, computed where the step lies.
    """
    start = aux.thermodynamic * aux.temperature
    if not start:
        return 0.0
    if isinstance(step, Tensor):
        return start * torch.exp(-step.double() / aux.n_temperature_steps)
    return start * math.exp(-step / aux.n_temperature_steps)


def check_auxiliary(aux: Auxiliary, cfg: ModelConfig, where: str) -> None:
    """Raise ValueError, naming `where`, for a loss on a mechanism that the model lacks."""
    recurrence = cfg.extensions.recurrence
    if aux.td and (recurrence is None or recurrence.td_rank is None):
        raise ValueError(f"{where}.td: got {aux.td} for a model without td_rank; expected a model with td_rank, or 0")
    if aux.gate_entropy and (recurrence is None or recurrence.exit_gate == "off"):
        raise ValueError(
            f"{where}.gate_entropy: got {aux.gate_entropy} for a model without exit_gate; "
            "expected a model with exit_gate, or 0"
        )


class Seen:
    """What passed through the hooks of one forward: corr of each pass but the first, gates of each but the last."""

    def __init__(self) -> None:
        self.corr: list[Float[Tensor, "batch pos d_model"]] = []
        self.gates: list[Float[Tensor, "batch pos"]] = []


@contextmanager
def seeing(model: Any, aux: Auxiliary) -> Iterator[Seen]:
    """The tensors that the weighted losses need, noted while it lasts."""
    seen = Seen()
    wanted = {"hook_td": seen.corr if aux.td else None, "hook_exit_gate": seen.gates if aux.gate_entropy else None}
    handles = []
    for name, point in model.hook_dict.items():
        into = wanted.get(name.rsplit(".", 1)[-1]) if name.startswith("pass.") else None
        if into is not None:
            handles.append(point.register_forward_hook(lambda _, __, tensor, into=into: into.append(tensor)))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def auxiliary_loss(model: Any, aux: Auxiliary, seen: Seen) -> Float[Tensor, ""] | None:
    """Σ weight·loss of what a forward left in `seen` and of the weights themselves; None where nothing weighs.

    The thermodynamic term is part of the next-token loss (`entropy_bonus`), not of this.
    """
    parts = []
    if seen.corr:
        parts.append(aux.td * torch.stack([corr.square().mean() for corr in seen.corr]).mean())
    if seen.gates:
        parts.append(aux.gate_entropy * torch.stack([bernoulli_entropy(gate).mean() for gate in seen.gates]).mean())
    if aux.compression:
        parts.append(aux.compression * int8_distance(model))
    return torch.stack(parts).sum() if parts else None


def bernoulli_entropy(p: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """−p ln p − (1 − p) ln(1 − p), nats, with p held within 1e-6 of 0 and 1.

    Beyond, a saturated gate would meet the infinite slope of p ln p with its own slope of 0: nan.
    """
    p = p.clamp(_NEAREST, 1 - _NEAREST)
    return -(p * p.log() + (1 - p) * torch.log1p(-p))
