"""Output disagreement: presses what heads compute at one position towards different directions.

With u_h = z_h / ‖z_h‖ at a position and H heads,

    loss = weight · mean over layers of the mean over positions of 1/H² Σ_ij u_i · u_j

This is the disagreement on outputs of Li et al. 2018 ("Multi-Head Attention with Disagreement Regularization", EMNLP),
which maximises the negative of that mean, at weight 1. As there, the mean is over all H² ordered pairs, a head with
itself among them: these add 1/H and no gradient. The mean over layers is ours. Unlike VSM's, a cosine is of one
position and keeps its sign: since Σ_ij u_i · u_j = ‖Σ_h u_h‖² (so no loop over pairs), the term is smallest not where
heads are orthogonal but where their directions cancel, at a mean cosine of different heads of −1/(H − 1).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from workbench.extend import Settings, StepContext, Terms
from workbench.training.head_grams import TINY, OnHeads, widen


class OutputDisagreement(OnHeads):
    """weight · mean cosine between heads' outputs at the same position (Li et al. 2018)."""

    class Settings(Settings):
        """How strongly."""

        weight: float = Field(default=1.0, description="weight of the mean cosine between heads (no unit)", ge=0)

    def reduce(self, hook: str, activation: Tensor, context: StepContext) -> Tensor:
        """The layer's mean cosines."""
        return pair_cosines(activation)

    def terms(self, seen: Mapping[str, Tensor], context: StepContext) -> Terms:
        """The mean over layers, weighed; reports the mean cosine of different heads, which is 0 for orthogonal ones."""
        if not seen:
            return Terms()
        of_all, of_others = torch.stack(list(seen.values())).mean(0)
        return Terms(self.settings.weight * of_all, {"cos": of_others.detach()})


def pair_cosines(z: Float[Tensor, "batch pos head d_head"]) -> Float[Tensor, "2"]:
    """Mean cosine of all ordered pairs of heads at the same position, and of those of different heads; in float32 or
    float64. A head that is zero (dropped, say) has cosine 0 to every head, and no gradient."""
    wide, n = widen(z), z.shape[2]
    squares = wide.square().sum(-1, keepdim=True)
    is_zero = squares < TINY**2
    # the root of 0 would have an infinite slope, and a quotient by a small number a large one
    units = (wide / squares.masked_fill(is_zero, 1).sqrt()).masked_fill(is_zero, 0)
    every = units.sum(2).square().sum(-1).mean()
    own = n - is_zero.sum(2).to(wide.dtype).mean()  # Σ_h u_h · u_h
    return torch.stack([every / n**2, (every - own) / (n * (n - 1))])
