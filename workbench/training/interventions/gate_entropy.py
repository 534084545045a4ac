"""Gate entropy of the recurrent model: presses its exit gates to decide."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from workbench.extend import Intervention, Settings, StepContext, Terms

_NEAREST = 1e-6  # of a probability to 0 and 1


class GateEntropy(Intervention):
    """weight · mean over passes (but the last) of the exit gates' mean entropy."""

    class Settings(Settings):
        """How strongly."""

        weight: float = Field(default=0.01, description="weight of the exit gates' mean entropy, nats", ge=0)

    def check(self, cfg: Any) -> None:
        """A model that has exit gates."""
        recurrence = cfg.extensions.recurrence
        if self.settings.weight and (recurrence is None or recurrence.exit_gate == "off"):
            raise ValueError(
                f"weight: got {self.settings.weight} for a model without exit_gate; expected exit_gate, or 0"
            )

    def watch(self, cfg: Any) -> list[str]:
        """The gates of every pass but the last."""
        if not self.settings.weight:
            return []
        return [f"pass.{i}.hook_exit_gate" for i in range(cfg.extensions.recurrence.n_passes - 1)]

    def terms(self, seen: Mapping[str, Tensor], context: StepContext) -> Terms:
        """The mean over passes, weighed; reports the mean."""
        if not seen:
            return Terms()
        entropy = torch.stack([bernoulli_entropy(gate).mean() for gate in seen.values()]).mean()
        return Terms(self.settings.weight * entropy, {"entropy": entropy.detach()})


def bernoulli_entropy(p: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """−p ln p − (1 − p) ln(1 − p), nats, with p held within 1e-6 of 0 and 1.

    Beyond, a saturated gate would meet the infinite slope of p ln p with its own slope of 0: nan.
    """
    p = p.clamp(_NEAREST, 1 - _NEAREST)
    return -(p * p.log() + (1 - p) * torch.log1p(-p))
