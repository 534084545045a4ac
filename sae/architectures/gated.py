"""gated: one bias decides which features are active, another how large they are.

    π = x̄ W_enc + b_gate,  x̄ = x − b_dec (x where apply_b_dec_to_input is False)
    acts = 1[π > 0] ⊙ relu(x̄ (W_enc ⊙ e^r_mag) + b_mag),  recon = acts W_dec + b_dec
    loss = mean over tokens of ( ‖recon − x‖² + l1 · Σ relu(π) · ‖W_dec row‖' + ‖relu(π) W_dec' + b_dec' − x‖² )

where ' passes no gradient: the gates learn with the decoder as it is. With `gate_detach = False` it passes, as in
SAELens. (Were it the norm's alone, rows would shrink and e^r_mag grow, at no cost to the reconstruction.)

W_enc [d_in, d_sae], b_gate, b_mag, r_mag [d_sae], W_dec [d_sae, d_in], b_dec [d_in]; no b_enc. Source: Rajamanoharan et
al. 2024a, eq. 3 to 8, whose decoder rows have norm 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sae.architecture import (
    Architecture,
    Batch,
    LossAndGradients,
    SAELensForm,
    TensorSpec,
    Weights,
    centre,
    decoder_norms,
    stacked_matmul,
    weigh_by_norms,
)

if TYPE_CHECKING:
    from sae.config import SAEConfig


class Gated(Architecture):
    name = "gated"
    options = frozenset({"gate_detach"})
    step_numbers = 7.2
    read_from = "gated"

    def tensors(self, config: SAEConfig) -> dict[str, TensorSpec]:
        return {
            "W_dec": TensorSpec("d_sae d_target", "decoder"),
            "W_enc": TensorSpec("d_in d_sae", "encoder"),
            "b_gate": TensorSpec("d_sae", "pre"),
            "b_mag": TensorSpec("d_sae", "pre"),
            "r_mag": TensorSpec("d_sae"),
            "b_dec": TensorSpec("d_target", "output"),
        }

    def encode(self, config: SAEConfig, w: Weights, x: Tensor) -> Tensor:
        inputs = centre(config, w, x)
        gates = stacked_matmul(inputs, w["W_enc"], w["b_gate"])
        # a product of its own, as SAELens has it, for the same bits
        sizes = stacked_matmul(inputs, w["W_enc"] * w["r_mag"].exp().unsqueeze(1), w["b_mag"])
        return (gates > 0).to(sizes) * sizes.relu()

    def prepare(self, config: SAEConfig, w: Weights, l1: Tensor) -> dict[str, Tensor]:
        penalty = 0.5 * l1.to(w["b_gate"]).unsqueeze(1) * decoder_norms(w["W_dec"])
        return {"penalty": penalty, "growth": w["r_mag"].exp()}

    def sum_block(self, config: SAEConfig, w: Weights, x: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Sums of a block; gradients in units of 2 / batch size."""
        W_enc, W_dec = w["W_enc"], w["W_dec"]
        narrow, wide = W_enc.dtype, w["b_dec"].dtype
        inputs, target = self.inputs_and_target(config, w, x, batch)
        product = torch.bmm(inputs, W_enc).to(wide)
        gates = (product + w["b_gate"].unsqueeze(1)).relu_()
        is_open = gates.sign()
        grown = product.mul_(w["growth"].unsqueeze(1))
        acts = (grown + w["b_mag"].unsqueeze(1)).relu_().mul_(is_open)
        is_active = acts.sign()
        sums = {"n_active": is_active.sum(dim=1), "gates": gates.sum(dim=1)}
        acts, gates = acts.to(narrow), gates.to(narrow)

        residual = torch.bmm(acts, W_dec).to(wide).sub_(target)
        by_gates = torch.bmm(gates, W_dec).to(wide).sub_(target)
        sums |= {"squared_error": residual.square().sum(dim=(1, 2)), "auxiliary": by_gates.square().sum(dim=(1, 2))}
        sums["b_dec"] = residual.sum(dim=1)
        residual, by_gates_narrow = residual.to(narrow), by_gates.to(narrow)
        sums["W_dec"] = torch.bmm(acts.mT, residual)
        if config.gate_detach is False:
            sums["b_dec"] = sums["b_dec"] + by_gates.sum(dim=1)
            sums["W_dec"] = sums["W_dec"] + torch.bmm(gates.mT, by_gates_narrow)
        grad_mag = torch.bmm(residual, W_dec.mT).to(wide).mul_(is_active)
        grad_gates = torch.bmm(by_gates_narrow, W_dec.mT).to(wide).add_(w["penalty"].unsqueeze(1)).mul_(is_open)
        sums |= {"b_mag": grad_mag.sum(dim=1), "b_gate": grad_gates.sum(dim=1)}
        sums["r_mag"] = grown.mul_(grad_mag).sum(dim=1)
        grad_product = grad_gates.add_(grad_mag.mul_(w["growth"].unsqueeze(1)))
        return sums | {"W_enc": torch.bmm(inputs.mT, grad_product.to(narrow))}

    def finish(
        self, config: SAEConfig, w: Weights, l1: Tensor, n_tokens: int, sums: dict[str, Tensor]
    ) -> LossAndGradients:
        gradients = {name: sums[name].mul_(2 / n_tokens) for name in self.tensors(config)}
        if config.apply_b_dec_to_input:
            grad_product = gradients["b_gate"] + gradients["b_mag"] * w["r_mag"].exp()
            gradients["b_dec"] -= torch.einsum("ndf,nf->nd", w["W_enc"], grad_product)
        mean_gates = sums["gates"] / n_tokens
        if config.gate_detach is False:
            sparsity = weigh_by_norms(w["W_dec"], l1, mean_gates, gradients["W_dec"])
        else:
            sparsity = (mean_gates * decoder_norms(w["W_dec"])).sum(dim=-1)
        none = torch.full_like(sparsity, torch.inf)
        means = sums["squared_error"] / n_tokens, sparsity, sums["n_active"], none
        return LossAndGradients(*means, gradients, sums["auxiliary"] / n_tokens)

    def to_sae_lens(self, config: SAEConfig, w: Weights) -> SAELensForm:
        return SAELensForm("gated", dict(w))


ARCHITECTURE = Gated()
