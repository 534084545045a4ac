"""batchtopk: the k·tokens largest features of a batch, so that tokens may have more than others.

    in training  acts = relu of the k·tokens largest entries of the batch's (x − b_dec) W_enc + b_enc, 0 elsewhere
    at inference acts = z·[z > threshold];  the rest is relu's

Tensors of relu, and threshold [1] ≥ 0: the running mean of the batches' least kept activation. SAELens has it as a
jumprelu. Source: Bussmann et al. 2024, without the auxiliary loss: dead features are resampled.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sae.architecture import (
    LINEAR,
    LossAndGradients,
    SAELensForm,
    TensorSpec,
    Weights,
    check_k,
    keep_top,
    least_positive,
    running_decay,
)
from sae.one_layer import OneLayer

if TYPE_CHECKING:
    from sae.config import SAEConfig, TrainConfig


class BatchTopK(OneLayer):
    name = "batchtopk"
    options = frozenset({"k"})
    has_penalty = False
    chooses_in_batch = True
    step_numbers = 4.4

    def check(self, config: SAEConfig) -> None:
        check_k(config)

    def tensors(self, config: SAEConfig) -> dict[str, TensorSpec]:
        return LINEAR | {"threshold": TensorSpec("1", "pre", is_trained=False, is_nonnegative=True)}

    def activate(self, config: SAEConfig, w: Weights, pre: Tensor) -> Tensor:
        return torch.where(pre > w["threshold"].unsqueeze(1), pre, 0).relu()

    def activate_in_training(self, config: SAEConfig, w: Weights, pre: Tensor) -> Tensor:
        flat = pre.flatten(start_dim=1)
        return keep_top(flat, max(1, int((config.k or 0) * pre.shape[1]))).view_as(pre)

    def observe(self, acts: Tensor) -> dict[str, Tensor]:
        return {"least_active": least_positive(acts)}

    def after_step(self, config: SAEConfig, w: Weights, result: LossAndGradients, train: TrainConfig) -> None:
        """Running mean of the batches' least kept activation (Bussmann et al. 2024 take the mean over the training
        set), from the first on that has one; a batch without an active feature leaves it."""
        threshold, least = w["threshold"], result.least_active.unsqueeze(-1)
        weight = torch.where(threshold > 0, running_decay(train), 1.0).to(threshold.dtype)
        threshold.copy_(torch.where(least.isfinite(), threshold.lerp(least, weight), threshold))

    def to_sae_lens(self, config: SAEConfig, w: Weights) -> SAELensForm:
        return SAELensForm("jumprelu", {**w, "threshold": w["threshold"].expand(config.d_sae).contiguous()})


ARCHITECTURE = BatchTopK()
