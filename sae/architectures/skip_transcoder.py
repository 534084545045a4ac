"""skip_transcoder: a transcoder beside a linear map of x, which takes from the features what is linear anyway.

    acts = A(x W_enc + b_enc),  recon = acts W_dec + b_dec + x W_skipᵀ;  the rest is transcoder's

Tensors of transcoder, and W_skip [d_out, d_in], 0 at the start. Edits of features leave the linear part. SAELens's
skip_transcoder and jumprelu_skip_transcoder, where W_skip enters `forward`, not `decode`. Source: Paulo et al. 2025.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sae.architecture import Batch, TensorSpec, Weights, stacked_matmul
from sae.architectures.transcoder import Transcoder, forms_of

if TYPE_CHECKING:
    from sae.config import SAEConfig


class SkipTranscoder(Transcoder):
    name = "skip_transcoder"
    has_skip = True

    def tensors(self, config: SAEConfig) -> dict[str, TensorSpec]:
        return super().tensors(config) | {"W_skip": TensorSpec("d_target d_in", "skip")}

    def skip(self, config: SAEConfig, w: Weights, x: Tensor) -> Tensor:
        return stacked_matmul(x, w["W_skip"].mT)

    def inputs_and_target(self, config: SAEConfig, w: Weights, x: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        inputs, target = super().inputs_and_target(config, w, x, batch)
        return inputs, target - torch.bmm(inputs, w["W_skip"].mT).to(target)

    def observe_residual(self, inputs: Tensor, residual: Tensor) -> dict[str, Tensor]:
        return {"W_skip": torch.bmm(residual.mT, inputs)}


ARCHITECTURE = forms_of(SkipTranscoder)["relu"]
