"""Compression-aware loss of the recurrent model: presses weights towards what int8 can hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field
from torch import Tensor

from workbench.extend import Intervention, Settings, StepContext, Terms
from workbench.training.quantization import int8_distance


class Compression(Intervention):
    """weight · mean |W − int8 round trip of W|."""

    class Settings(Settings):
        """How strongly."""

        weight: float = Field(default=0.01, description="weight of mean |W − int8 round trip of W|", ge=0)

    reads_weights = True

    def terms(self, seen: Mapping[str, Tensor], context: StepContext) -> Terms:
        """The distance, weighed."""
        if not self.settings.weight:
            return Terms()
        model: Any = context.model
        distance = int8_distance(model)
        return Terms(self.settings.weight * distance, {"distance": distance.detach()})
