"""Thermodynamic loss of the recurrent model: rewards uncertain predictions early in training."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Int
from pydantic import Field
from torch import Tensor

from workbench.extend import Intervention, Settings, StepContext
from workbench.models.cross_entropy import Scalar


class Thermodynamic(Intervention):
    """CE − β·T·H(p), H the prediction's entropy and T = temperature·e^(−step/n_temperature_steps)."""

    class Settings(Settings):
        """β and how T falls."""

        weight: float = Field(default=0.01, description="β of CE − β·T·H(p), H the prediction's entropy", ge=0)
        temperature: float = Field(default=0.5, description="T of step 0", ge=0)
        n_temperature_steps: float = Field(default=5000.0, description="steps in which T falls to 1/e", gt=0)

    def loss_options(self, context: StepContext) -> dict[str, Any]:
        """What the loss takes off, chunk of logits by chunk."""
        return {"entropy_bonus": entropy_bonus(self.settings, context.step)}


def entropy_bonus(settings: Any, step: int | Int[Tensor, ""]) -> Scalar:
    """β·T at `step` (0-based in its phase); 0 where it never weighs. Of a step that is a tensor a float64 tensor,
    computed where the step lies."""
    start = settings.weight * settings.temperature
    if not start:
        return 0.0
    if isinstance(step, Tensor):
        return start * torch.exp(-step.double() / settings.n_temperature_steps)
    return start * math.exp(-step / settings.n_temperature_steps)
