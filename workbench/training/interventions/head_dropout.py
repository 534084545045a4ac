"""Head dropout: whole heads of a layer are dropped during training.

The output z_h of each head becomes, at all positions of a sequence alike,

    ξ_h z_h / (1 − rate),    ξ_h = 0 with probability rate, else 1

ξ is drawn for each layer and head, and for each sequence or once a micro-batch. This is DropHead (Zhou et al. 2020,
"Scheduled DropHead: A Regularization Method for Transformer Models", Findings of EMNLP) but for two things: the rate
does not change over training, and heads that are kept are scaled as dropout scales, not by the number of heads over the
number kept. That has no value where all heads of a layer are dropped, with probability rate^n_heads; here the layer's
attention then adds nothing.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field
from torch import Tensor

from workbench.extend import Intervention, Settings, StepContext
from workbench.training.interventions.attention_dropout import drop


class HeadDropout(Intervention):
    """Drops whole heads at a rate, and scales those kept by 1/(1 − rate) (after Zhou et al. 2020)."""

    class Settings(Settings):
        """How many, and for whom they are drawn."""

        rate: float = Field(default=0.1, description="share of the heads that is dropped", ge=0, lt=1)
        per: Literal["sequence", "batch"] = Field(
            default="sequence", description="what heads are drawn for: each sequence, or all of a micro-batch at once"
        )

    def check(self, cfg: Any) -> None:
        """Heads that stand in for one that is dropped."""
        if cfg.n_heads < 2:
            raise ValueError(f"model.n_heads: got {cfg.n_heads}; expected 2 or more, or no {self.kind}")

    def changes(self, cfg: Any) -> list[str]:
        """z of every layer; none at rate 0."""
        return [f"blocks.{layer}.attn.hook_z" for layer in range(cfg.n_layers)] if self.settings.rate else []

    def change(self, hook: str, activation: Tensor, context: StepContext) -> Tensor:
        """z with heads dropped."""
        n_sequences, _, n_heads, _ = activation.shape
        n_draws = n_sequences if self.settings.per == "sequence" else 1
        return drop(activation, (n_draws, 1, n_heads, 1), self.settings.rate, context.generator)
