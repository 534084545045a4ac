"""z-loss: keeps the logits' normaliser near 1 (Chowdhery et al. 2022, PaLM, section 5)."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from workbench.extend import Intervention, Settings, StepContext


class ZLoss(Intervention):
    """weight · mean over predictions of logsumexp²(logits), within the next-token loss."""

    class Settings(Settings):
        """How strongly."""

        weight: float = Field(default=1e-4, description="weight of logsumexp²", ge=0)

    def loss_options(self, context: StepContext) -> dict[str, Any]:
        """What the loss adds, chunk of logits by chunk."""
        return {"z_loss": self.settings.weight}
