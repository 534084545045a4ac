"""p-annealed SAEs: a penalty that comes nearer to a count of features as training goes on.

    loss = mean over tokens of ( ‖recon − x‖² + l1 · Σ (acts · ‖W_dec row‖)^p ),  p from 1 to P_END over the training

Encoder, decoder and tensors are relu's. Source: Karvonen et al. 2024, whose decoder rows have norm 1, and who change l1
with p so that the penalty stays as it was; here l1 is constant.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sae.architecture import Architecture, Batch, Weights, decoder_norms
from sae.config import SAEConfig

P_END = 0.2


class PAnnealed(Architecture):
    name = "p-annealed"

    def sparsity(self, config: SAEConfig, w: Weights, acts: Tensor, batch: Batch) -> Tensor:
        sizes = acts * decoder_norms(w["W_dec"].to(acts.dtype)).unsqueeze(1)
        is_active = sizes > 0
        powers = torch.where(is_active, sizes, 1).pow(1 - (1 - P_END) * batch.progress)  # 0^p has no derivative
        return torch.where(is_active, powers, 0).sum(dim=(1, 2))


ARCHITECTURE = PAnnealed()
