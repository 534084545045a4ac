"""Temporal-difference loss of the recurrent model: presses what a pass corrects to be small."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from workbench.extend import Intervention, Settings, StepContext, Terms


class TemporalDifference(Intervention):
    """weight · mean over passes (but the first) of mean(corr²)."""

    class Settings(Settings):
        """How strongly."""

        weight: float = Field(default=0.01, description="weight of mean(corr²) of the temporal differences", ge=0)

    def check(self, cfg: Any) -> None:
        """A model that has temporal differences."""
        recurrence = cfg.extensions.recurrence
        if self.settings.weight and (recurrence is None or recurrence.td_rank is None):
            raise ValueError(f"weight: got {self.settings.weight} for a model without td_rank; expected td_rank, or 0")

    def watch(self, cfg: Any) -> list[str]:
        """The corrections of every pass but the first."""
        if not self.settings.weight:
            return []
        return [f"pass.{i}.hook_td" for i in range(1, cfg.extensions.recurrence.n_passes)]

    def terms(self, seen: Mapping[str, Tensor], context: StepContext) -> Terms:
        """The mean over passes, weighed."""
        if not seen:
            return Terms()
        return Terms(self.settings.weight * torch.stack([corr.square().mean() for corr in seen.values()]).mean())
