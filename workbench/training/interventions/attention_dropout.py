"""Attention dropout: single weights of the attention maps are dropped during training.

Each entry A of a map [batch head query key] becomes

    ξ A / (1 − rate),    ξ = 0 with probability rate, else 1

so that its expectation stays what it was. It is in the code released with Vaswani et al. 2017 ("Attention Is All You
Need", NeurIPS), whose text names dropout of residual branches and embeddings alone; Zehui et al. 2019 ("DropAttention",
arXiv:1907.11065) study it, and there scale a query's weights to the sum 1 again, which is not done here.

Maps must be formed, where unhooked attention is one fused kernel: steps take longer.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from workbench.extend import Intervention, Settings, StepContext


class AttentionDropout(Intervention):
    """Drops entries of attention maps at a rate, and scales those kept by 1/(1 − rate)."""

    class Settings(Settings):
        """How many."""

        rate: float = Field(default=0.1, description="share of the attention weights that is dropped", ge=0, lt=1)

    def changes(self, cfg: Any) -> list[str]:
        """The attention maps of every layer; none at rate 0, where attention stays fused."""
        return [f"blocks.{layer}.attn.hook_pattern" for layer in range(cfg.n_layers)] if self.settings.rate else []

    def change(self, hook: str, activation: Tensor, context: StepContext) -> Tensor:
        """The maps with entries dropped."""
        return drop(activation, activation.shape, self.settings.rate, context.generator)


def drop(
    x: Float[Tensor, "*axes"], drawn: tuple[int, ...], rate: float, generator: torch.Generator | None
) -> Float[Tensor, "*axes"]:
    """x with parts dropped at random and the others divided by 1 − rate. drawn: the shape of what is drawn, 1 along an
    axis that is dropped or kept as a whole."""
    # as a mask of a byte an entry, which is all that the backward pass keeps
    is_dropped = torch.empty(drawn, dtype=torch.bool, device=x.device).bernoulli_(rate, generator=generator)
    return x.masked_fill(is_dropped, 0) / (1 - rate)
