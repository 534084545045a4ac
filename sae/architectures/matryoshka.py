"""matryoshka: nested dictionaries, each of which has to reconstruct by itself; so that early features stay general.

    n = ‖W_dec row‖,  z = n ⊙ (x̄ W_enc + b_enc),  x̄ = x − b_dec (x where apply_b_dec_to_input is False)
    in training  acts = relu of the k·tokens largest entries of the batch's z, 0 elsewhere
    at inference acts = z·[z > threshold];  recon = (acts / n) W_dec + b_dec
    loss = mean over tokens of Σ over widths w of ‖Σ_{j<w} acts_j W_dec_j / n_j + b_dec − x‖² + c min(1, dead/κ) ‖e‖²

The last width is d_sae, and its term `squared_error`; all else is `auxiliary`. e is what the κ = d_in / 2 dead features
with the largest z of a token leave of the reconstruction's error, which passes no gradient; c is `aux_coefficient`. An
l1, 0 by default, multiplies Σ acts.

W_enc [d_in, d_sae], b_enc [d_sae], W_dec [d_sae, d_in], b_dec [d_in]; threshold [1] ≥ 0: the running mean of the
batches' least kept activation, and threshold_weight [1]: the share of its weights that batches have filled, by which it
is debiased. SAELens has it as a jumprelu with the norms folded in. Source: Bussmann et al. 2025; the term of dead
features and the norms as in SAELens's matryoshka_batchtopk, whose threshold rises from 0.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sae.architecture import (
    LINEAR,
    Architecture,
    Batch,
    LossAndGradients,
    SAELensForm,
    TensorSpec,
    Weights,
    centre,
    check_k,
    decoder_norms,
    keep_top,
    least_positive,
    running_decay,
    stacked_matmul,
)

if TYPE_CHECKING:
    from sae.config import SAEConfig, TrainConfig

AUX_COEFFICIENT = 1 / 32  # Gao et al. 2024, Bussmann et al. 2025
LEAST_NORM = 1e-8  # of a decoder row, as SAELens has it


class Matryoshka(Architecture):
    name = "matryoshka"
    options = frozenset({"k", "widths", "aux_coefficient"})
    has_penalty = False
    chooses_in_batch = True
    uses_dead = True
    step_numbers = 8.4

    def check(self, config: SAEConfig) -> None:
        check_k(config)
        widths = widths_of(config)
        if not widths or widths[0] < 1 or widths[-1] != config.d_sae or any(a >= b for a, b in pairwise(widths)):
            raise ValueError(
                f"SAEConfig.widths: got {list(widths)}; "
                f"expected numbers ≥ 1 that rise strictly to d_sae = {config.d_sae}"
            )

    def tensors(self, config: SAEConfig) -> dict[str, TensorSpec]:
        # z has the reconstruction's unit: it is what a feature adds to the reconstruction
        threshold = TensorSpec("1", "output", is_trained=False, is_nonnegative=True)
        return LINEAR | {"threshold": threshold, "threshold_weight": threshold._replace(unit="none")}

    def encode(self, config: SAEConfig, w: Weights, x: Tensor) -> Tensor:
        w = fold_norms(w)
        z = stacked_matmul(centre(config, w, x), w["W_enc"], w["b_enc"])
        return torch.where(z > w["threshold"].unsqueeze(1), z, 0).relu()

    def decode(self, config: SAEConfig, w: Weights, acts: Tensor) -> Tensor:
        return stacked_matmul(acts, fold_norms(w)["W_dec"], w["b_dec"])

    def directions(self, config: SAEConfig, w: Weights) -> Tensor:
        return fold_norms(w)["W_dec"]

    def prepare(self, config: SAEConfig, w: Weights, l1: Tensor) -> dict[str, Tensor]:
        return fold_norms(w)

    def sum_block(self, config: SAEConfig, w: Weights, x: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Sums of a block; gradients of the tensors with norms folded in, in units of 2 / batch size."""
        narrow, wide = w["W_enc"].dtype, w["b_dec"].dtype
        inputs, target = self.inputs_and_target(config, w, x, batch)
        z = torch.bmm(inputs, w["W_enc"]).to(wide).add_(w["b_enc"].unsqueeze(1))
        acts = keep_top(z.flatten(start_dim=1), max(1, int((config.k or 0) * z.shape[1]))).view_as(z)
        is_active = acts.sign()
        sums = {
            "n_active": is_active.sum(dim=1),
            "sparsity": acts.sum(dim=(1, 2)),
            "least_active": least_positive(acts),
        }

        kept, parts = acts.to(narrow), [slice(*pair) for pair in pairwise((0, *widths_of(config)))]
        residuals = [-target]
        for part in parts:
            residuals.append(torch.bmm(kept[..., part], w["W_dec"][:, part]).to(wide).add_(residuals[-1]))
        *others, sums["squared_error"] = [residual.square().sum(dim=(1, 2)) for residual in residuals[1:]]
        sums["auxiliary"] = sum(others, torch.zeros_like(sums["squared_error"]))
        total, grad_W_dec, grad_z = torch.zeros_like(target), [], []
        for part, residual in zip(reversed(parts), reversed(residuals), strict=False):
            total = total + residual  # a feature stands in its own width and all behind it
            passed = total.to(narrow)
            grad_W_dec.append(torch.bmm(kept[..., part].mT, passed))
            grad_z.append(torch.bmm(passed, w["W_dec"][:, part].mT))
        sums |= {"b_dec": total.sum(dim=1), "W_dec": torch.cat(grad_W_dec[::-1], dim=1)}
        penalty = 0.5 * batch.l1.to(wide).view(-1, 1, 1)
        grad_pre = torch.cat(grad_z[::-1], dim=2).to(wide).add_(penalty).mul_(is_active)
        if batch.dead is not None:
            error, more_W_dec, more_pre = _dead_terms(config, w["W_dec"], z, residuals[-1], batch.dead)
            sums["auxiliary"] = sums["auxiliary"] + error
            sums["W_dec"], grad_pre = sums["W_dec"] + more_W_dec, grad_pre + more_pre
        return sums | {"b_enc": grad_pre.sum(dim=1), "W_enc": torch.bmm(inputs.mT, grad_pre.to(narrow))}

    def finish(
        self, config: SAEConfig, w: Weights, l1: Tensor, n_tokens: int, sums: dict[str, Tensor]
    ) -> LossAndGradients:
        norms = decoder_norms(w["W_dec"]).clamp_min(LEAST_NORM)
        row = w["W_dec"] / norms.unsqueeze(-1)
        gradients = {name: sums[name].mul_(2 / n_tokens) for name in LINEAR}
        # a row's norm is in all three
        grad_norm = (gradients["W_enc"] * w["W_enc"]).sum(dim=1) + gradients["b_enc"] * w["b_enc"]
        grad_norm -= (gradients["W_dec"] * row).sum(dim=-1) / norms
        gradients["W_dec"].div_(norms.unsqueeze(-1)).addcmul_(grad_norm.unsqueeze(-1), row)
        gradients["W_enc"].mul_(norms.unsqueeze(1))
        gradients["b_enc"].mul_(norms)
        if config.apply_b_dec_to_input:
            gradients["b_dec"] -= torch.einsum("ndf,nf->nd", w["W_enc"], gradients["b_enc"])
        squared_error, sparsity, auxiliary = (
            sums[key] / n_tokens for key in ("squared_error", "sparsity", "auxiliary")
        )
        return LossAndGradients(squared_error, sparsity, sums["n_active"], sums["least_active"], gradients, auxiliary)

    def after_step(self, config: SAEConfig, w: Weights, result: LossAndGradients, train: TrainConfig) -> None:
        """Debiased running mean of the batches' least kept activation; a batch without an active feature leaves it."""
        least, decay = result.least_active.unsqueeze(-1), running_decay(train)
        is_there, filled = least.isfinite(), w["threshold_weight"].lerp(torch.ones_like(least), decay)
        w["threshold"].copy_(torch.where(is_there, w["threshold"].lerp(least, decay / filled), w["threshold"]))
        w["threshold_weight"].copy_(torch.where(is_there, filled, w["threshold_weight"]))

    def to_sae_lens(self, config: SAEConfig, w: Weights) -> SAELensForm:
        folded = {name: tensor for name, tensor in fold_norms(w).items() if name != "threshold_weight"}
        return SAELensForm("jumprelu", folded | {"threshold": w["threshold"].expand(config.d_sae).contiguous()})


def _dead_terms(
    config: SAEConfig, W_dec: Tensor, z: Tensor, residual: Tensor, dead: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(c · min(1, dead/κ) · ‖e‖² summed over tokens, half its gradients for W_dec with rows of norm 1 and for z)."""
    n = min(config.d_sae, max(1, config.d_in // 2))
    values, index = torch.where(dead.unsqueeze(1), z, -torch.inf).topk(n, dim=-1, sorted=False)
    is_dead = (values > -torch.inf).to(z)
    acts = torch.zeros_like(z).scatter(-1, index, torch.where(is_dead > 0, values, 0)).to(W_dec.dtype)
    error = torch.bmm(acts, W_dec).to(z) + residual
    coefficient = AUX_COEFFICIENT if config.aux_coefficient is None else config.aux_coefficient
    weight = coefficient * (dead.sum(dim=1) / n).clamp_max(1).to(z)
    passed = (error * weight.view(-1, 1, 1)).to(W_dec.dtype)
    is_chosen = torch.zeros_like(z).scatter(-1, index, is_dead)
    grad_z = torch.bmm(passed, W_dec.mT).to(z).mul_(is_chosen)
    return weight * error.square().sum(dim=(1, 2)), torch.bmm(acts.mT, passed), grad_z


def widths_of(config: SAEConfig) -> tuple[int, ...]:
    """The widths of the nested dictionaries, the last one d_sae."""
    if config.widths is not None:
        return config.widths
    return tuple(sorted({max(1, config.d_sae // part) for part in (16, 8, 4, 2, 1)}))


def fold_norms(w: Weights) -> dict[str, Tensor]:
    """Tensors that compute the same with decoder rows of norm 1."""
    norms = decoder_norms(w["W_dec"]).clamp_min(LEAST_NORM)
    W_enc, W_dec = w["W_enc"] * norms.unsqueeze(-2), w["W_dec"] / norms.unsqueeze(-1)
    return {**w, "W_enc": W_enc, "b_enc": w["b_enc"] * norms, "W_dec": W_dec}


ARCHITECTURE = Matryoshka()
