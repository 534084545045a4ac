"""Gradients by hand of SAEs whose encoder is one product and an activation function."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sae.architecture import Architecture, Batch, LossAndGradients, Weights, decoder_norms, weigh_by_norms

if TYPE_CHECKING:
    from sae.config import SAEConfig


class OneLayer(Architecture):
    """acts = A((x − b_dec) W_enc + b_enc), recon = acts W_dec + b_dec, loss and penalty as `Architecture`'s.

    A passes the gradient through the features that it leaves active. Sums are in units of 2 / batch size.
    """

    def prepare(self, config: SAEConfig, w: Weights, l1: Tensor) -> dict[str, Tensor]:
        # half of what one unit of the feature's activation costs, to stand in the residual's units
        return {"penalty": 0.5 * l1.to(w["b_enc"]).unsqueeze(1) * self.prices(w)}

    def prices(self, w: Weights) -> Tensor:
        """What the penalty counts for one unit of every feature's activation, [n_saes, d_sae]."""
        return decoder_norms(w["W_dec"])

    def sum_block(self, config: SAEConfig, w: Weights, x: Tensor, batch: Batch) -> dict[str, Tensor]:
        W_enc, W_dec = w["W_enc"], w["W_dec"]
        dtype, wide = W_enc.dtype, w["b_enc"].dtype
        inputs, target = self.inputs_and_target(config, w, x, batch)
        pre = torch.bmm(inputs, W_enc).to(wide).add_(w["b_enc"].unsqueeze(1))
        acts = self.activate_in_training(config, w, pre)
        is_active = acts.sign()
        sums = {"n_active": is_active.sum(dim=1), "acts": acts.sum(dim=1), **self.observe(acts)}
        acts = acts.to(dtype)

        residual = torch.bmm(acts, W_dec).to(wide).sub_(target)
        sums |= {"squared_error": residual.square().sum(dim=(1, 2)), "b_dec": residual.sum(dim=1)}
        narrow = residual.to(dtype)
        sums |= self.observe_residual(inputs, narrow)
        sums["W_dec"] = torch.bmm(acts.mT, narrow)
        grad_acts = torch.bmm(narrow, W_dec.mT).to(wide)
        grad_pre, others = self.pass_back(config, w, pre, grad_acts, is_active)
        sums["b_enc"] = grad_pre.sum(dim=1)
        sums["W_enc"] = torch.bmm(inputs.mT, grad_pre.to(dtype))
        return sums | others

    def observe(self, acts: Tensor) -> dict[str, Tensor]:
        """Further sums of the activations."""
        return {}

    def observe_residual(self, inputs: Tensor, residual: Tensor) -> dict[str, Tensor]:
        """Further sums of what is left, recon − target."""
        return {}

    def pass_back(
        self, config: SAEConfig, w: Weights, pre: Tensor, grad_acts: Tensor, is_active: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(gradient of pre-activations, sums of further tensors' gradients); what is given may be overwritten."""
        return grad_acts.add_(w["penalty"].unsqueeze(1)).mul_(is_active), {}

    def finish(
        self, config: SAEConfig, w: Weights, l1: Tensor, n_tokens: int, sums: dict[str, Tensor]
    ) -> LossAndGradients:
        scale = 2 / n_tokens
        # in this order their squares are summed to the norm that is clipped
        names = ["W_enc", "b_enc", "W_dec", "b_dec"]
        names += [name for name, spec in self.tensors(config).items() if spec.is_trained and name not in names]
        gradients = {name: sums[name].mul_(scale) for name in names}
        if config.apply_b_dec_to_input:
            gradients["b_dec"] -= torch.einsum("ndf,nf->nd", w["W_enc"], gradients["b_enc"])
        sparsity = self.finish_penalty(w, l1, n_tokens, sums, gradients)
        least = sums.get("least_active", torch.full_like(sparsity, torch.inf))
        squared_error = sums["squared_error"] / n_tokens
        none = torch.zeros_like(squared_error)
        return LossAndGradients(squared_error, sparsity, sums["n_active"], least, gradients, none)

    def finish_penalty(
        self, w: Weights, l1: Tensor, n_tokens: int, sums: dict[str, Tensor], gradients: dict[str, Tensor]
    ) -> Tensor:
        """Mean of the penalty; its gradient for what it weighs activations by is added."""
        return weigh_by_norms(w["W_dec"], l1, sums["acts"] / n_tokens, gradients["W_dec"])
