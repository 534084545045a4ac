"""Orthogonality of the value weights: VSM's form, on what heads read in place of what they compute.

With V a layer's value weights W_V [head, d_model, d_head] flattened per head and L2-normalised by row, G = V Vᵀ and

    loss = weight · Σ_ℓ ‖G_ℓ − I‖_F

This is the soft orthogonality of weights, λ ‖WᵀW − I‖_F² (Bansal et al. 2018, "Can We Gain More from Orthogonality
Regularizations in Training Deep Networks?", NeurIPS; of transformers Zhang et al. 2021, "On Orthogonality Constraints
for Transformers", ACL), taken between heads instead of columns, of normalised rows and without the square, so that it
differs from VSM in nothing but what is compared. It sees no text: heads of orthogonal weights may still agree on it.

Grouped queries share key/value heads; those are compared, each once. A weight that several layers of a recurrent model
share counts for each of these.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from workbench.extend import Intervention, Settings, StepContext, Terms
from workbench.training.head_grams import cosines, gram, orthogonality, sigma


class ValueOrthogonality(Intervention):
    """weight · Σ over layers of ‖G − I‖_F, G the cosines of the heads' value weights."""

    class Settings(Settings):
        """How strongly."""

        weight: float = Field(default=0.05, description="weight of the sum of ‖G − I‖_F over layers (no unit)", ge=0)

    reads_weights = True

    def check(self, cfg: Any) -> None:
        """Value weights to compare."""
        if cfg.kv_heads < 2:
            key = "n_heads" if cfg.n_key_value_heads is None else "n_key_value_heads"
            raise ValueError(f"model.{key}: got {cfg.kv_heads}; expected 2 or more, or no {self.kind}")

    def terms(self, seen: Mapping[str, Tensor], context: StepContext) -> Terms:
        """The sum over layers, weighed; reports the mean over layers and heads of the mean |cos| to the other heads."""
        if not self.settings.weight:
            return Terms()
        grams = [value_gram(block.attn.stored("W_V")) for block in context.model.blocks]
        loss = self.settings.weight * torch.stack([orthogonality(own) for own in grams]).sum()
        with torch.no_grad():
            mean_cos = torch.stack([sigma(own) for own in grams]).mean()
        return Terms(loss, {"cos": mean_cos})


def value_gram(W_V: Float[Tensor, "head d_model d_head"]) -> Float[Tensor, "1 head head"]:
    """Cosine matrix G of one layer's value weights, one row a head."""
    return cosines(gram(W_V.flatten(1)[None, None]))
