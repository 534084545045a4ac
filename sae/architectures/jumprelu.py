"""jumprelu: a threshold for every feature, trained on the number of active features.

    acts = z·[z > θ],  z = (x − b_dec) W_enc + b_enc;  recon = acts W_dec + b_dec
    loss = mean over tokens of ( ‖recon − x‖² + l1 · number of active features )

Tensors of relu, and threshold θ [d_sae] ≥ 0. Its gradients are the straight-through ones of Rajamanoharan et al. 2024b
(eq. 11, 12) with the rectangle kernel K of width ε = `bandwidth`: ∂z·[z>θ]/∂θ := −(θ/ε) K((z−θ)/ε),
∂[z>θ]/∂θ := −(1/ε) K((z−θ)/ε). They train log θ; here θ itself is the parameter, since a step of Adam on log θ is a
factor and hardly moves a small start.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sae.architecture import LINEAR, LossAndGradients, SAELensForm, TensorSpec, Weights
from sae.one_layer import OneLayer

if TYPE_CHECKING:
    from sae.config import SAEConfig, TrainConfig


class JumpReLU(OneLayer):
    name = "jumprelu"
    step_numbers = 6.2
    read_from = "jumprelu"

    def tensors(self, config: SAEConfig) -> dict[str, TensorSpec]:
        return LINEAR | {"threshold": TensorSpec("d_sae", "pre", config.threshold_init, is_nonnegative=True)}

    def activate(self, config: SAEConfig, w: Weights, pre: Tensor) -> Tensor:
        return torch.where(pre > w["threshold"].unsqueeze(1), pre, 0).relu()

    def activate_in_training(self, config: SAEConfig, w: Weights, pre: Tensor) -> Tensor:
        return _is_positive(pre - w["threshold"].unsqueeze(1)).mul_(pre)

    def prices(self, w: Weights) -> Tensor:
        return torch.ones_like(w["b_enc"])

    def pass_back(
        self, config: SAEConfig, w: Weights, pre: Tensor, grad_acts: Tensor, is_active: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        threshold = w["threshold"].unsqueeze(1)
        in_window = _is_positive(config.bandwidth / 2 - (pre - threshold).abs_())
        through = (threshold * grad_acts).add_(w["penalty"].unsqueeze(1)).mul_(in_window)
        return grad_acts.mul_(is_active), {"threshold": through.sum(dim=1) * (-1 / config.bandwidth)}

    def finish_penalty(
        self, w: Weights, l1: Tensor, n_tokens: int, sums: dict[str, Tensor], gradients: dict[str, Tensor]
    ) -> Tensor:
        return sums["n_active"].sum(dim=-1) / n_tokens

    def after_step(self, config: SAEConfig, w: Weights, result: LossAndGradients, train: TrainConfig) -> None:
        w["threshold"].clamp_(min=0)

    def to_sae_lens(self, config: SAEConfig, w: Weights) -> SAELensForm:
        return SAELensForm("jumprelu", dict(w))

    def tensors_from_sae_lens(self, fields: Mapping[str, Any], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        # as SAELens's encoder reads it: in the weights' dtype, where training keeps float32, and 0 where the last step
        # left it below
        if not tensors["W_dec"].is_floating_point():
            return tensors
        return tensors | {"threshold": tensors["threshold"].to(tensors["W_dec"].dtype).clamp_min(0)}


def _is_positive(x: Tensor) -> Tensor:
    """1 where x > 0, else 0, written into x: several times faster on a CPU than a comparison, if not compiled."""
    return x.sign_().clamp_min_(0)


ARCHITECTURE = JumpReLU()
