"""Coherence: the mean entropy of attention as a term of the loss, which presses each query to look at few keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from workbench.extend import Intervention, Settings, StepContext, Terms
from workbench.training.head_grams import TINY, widen


class Coherence(Intervention):
    """weight · mean over layers of the mean attention entropy (Janus-Small's coherence term)."""

    class Settings(Settings):
        """How strongly."""

        weight: float = Field(default=0.01, description="weight of the mean attention entropy (nats)", ge=0)

    def watch(self, cfg: Any) -> list[str]:
        """The attention maps of every layer."""
        return [f"blocks.{layer}.attn.hook_pattern" for layer in range(cfg.n_layers)]

    def is_watching(self, context: StepContext) -> bool:
        """Maps are formed only where they weigh something."""
        return self.settings.weight != 0

    def reduce(self, hook: str, activation: Tensor, context: StepContext) -> Tensor:
        """The layer's mean entropy."""
        return attention_entropy(activation)

    def terms(self, seen: Mapping[str, Tensor], context: StepContext) -> Terms:
        """The mean over layers, weighed; reports the mean."""
        if not seen:
            return Terms()
        entropy = torch.stack(list(seen.values())).mean()
        return Terms(self.settings.weight * entropy, {"entropy": entropy.detach()})


def attention_entropy(pattern: Float[Tensor, "batch head query key"]) -> Float[Tensor, ""]:
    """Mean over batch, head and query of −Σ p ln p, nats, in float32 or float64; differentiable also where p = 0."""
    p = widen(pattern)
    return -(p * p.clamp_min(TINY).log()).sum(-1).mean()
