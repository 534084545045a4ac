"""DeCov on heads' outputs: presses the units of all heads of a layer towards zero covariance.

With h the n_heads·d_head units of z of one position, N = batch·pos and μ the mean over these,

    C = 1/N Σ (h − μ)(h − μ)ᵀ,    loss = weight · Σ_ℓ ½ (‖C_ℓ‖_F² − ‖diag C_ℓ‖²)

Cogswell et al. 2016 ("Reducing Overfitting in Deep Networks by Decorrelating Representations", ICLR), equations 1 and
2; layers add up. It presses units of one head as much as those of different heads, and can also be met by making z
small: covariances, unlike cosines, have z's scale.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from workbench.extend import Settings, StepContext, Terms
from workbench.training.head_grams import OnHeads, cosines, gram, off_diagonal, sigma, widen


class Decov(OnHeads):
    """weight · half the sum of squared covariances between units of heads' outputs (Cogswell et al. 2016)."""

    class Settings(Settings):
        """How strongly."""

        weight: float = Field(default=0.1, description="weight of half the sum of squared covariances of z", ge=0)

    def reduce(self, hook: str, activation: Tensor, context: StepContext) -> Tensor:
        """The layer's covariances."""
        return covariance(activation)

    def terms(self, seen: Mapping[str, Tensor], context: StepContext) -> Terms:
        """The sum over layers, weighed; reports the mean |correlation| of different units, the mean over layers."""
        if not seen:
            return Terms()
        layers = list(seen.values())
        loss = self.settings.weight * torch.stack([decov(own) for own in layers]).sum()
        with torch.no_grad():
            correlation = torch.stack([sigma(cosines(own)) for own in layers]).mean()
        return Terms(loss, {"correlation": correlation})


def covariance(z: Float[Tensor, "batch pos head d_head"]) -> Float[Tensor, "1 unit unit"]:
    """C of the head·d_head units over batch and pos, divided by their number; in float32 or float64."""
    units = widen(z).flatten(2)
    centred = units - units.mean((0, 1))
    return gram(centred.mT[:, None]) / (z.shape[0] * z.shape[1])


def decov(C: Float[Tensor, "1 unit unit"]) -> Float[Tensor, ""]:
    """½ (‖C‖_F² − ‖diag C‖²), as the sum of what lies off the diagonal: a difference would lose it to rounding."""
    return off_diagonal(C).square().sum() / 2
