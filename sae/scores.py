"""What the field reads about SAEs beside `sae.metrics`: shrinkage, cosine, how often features fire, and their weights.

Sums are kept over batches, so that a score is a ratio of sums over all tokens and not a mean of each token's or each
batch's ratio.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sae.config import SAEConfig
from sae.metrics import MetricSums, SAEMetrics, neighbour_cosines
from sae.stack import StackedSAE

DENSE = (0.01, 0.1)
"""Densities above which a feature counts as dense."""
_TOKENS_AT_ONCE = 1024


class SAEScores(NamedTuple):
    """Scores of every SAE of a stack over the tokens given. float64; nan where undefined."""

    metrics: SAEMetrics
    """l0, mse, explained variance, densities."""
    l1_norm: Float[Tensor, " n_saes"]
    """Σ activations, mean over tokens."""
    cosine: Float[Tensor, " n_saes"]
    """cos(x, x̂), mean over the tokens on which neither is zero."""
    norm_in: Float[Tensor, " n_saes"]
    """‖x‖, mean over tokens."""
    norm_out: Float[Tensor, " n_saes"]
    """‖x̂‖, mean over tokens."""
    reconstruction_bias: Float[Tensor, " n_saes"]
    """γ = Σ‖x̂‖² / Σ x·x̂, the γ′ for which Σ‖x̂/γ′ − x‖² is least; below 1 where reconstructions shrink
    (Rajamanoharan et al. 2024, equation 10)."""

    @property
    def norm_ratio(self) -> Float[Tensor, " n_saes"]:
        """Σ‖x̂‖ / Σ‖x‖."""
        return torch.where(self.norm_in > 0, self.norm_out / self.norm_in, torch.nan)

    @property
    def alive(self) -> Float[Tensor, " n_saes"]:
        """Share of features that fire."""
        return 1 - self.metrics.dead_fraction

    def dense(self, limit: float) -> Float[Tensor, " n_saes"]:
        """Share of features whose density is above the limit."""
        density = self.metrics.density
        return torch.where(density.isnan(), torch.nan, (density > limit).double()).mean(dim=-1)

    def dense_share(self, limit: float) -> Float[Tensor, " n_saes"]:
        """Share of all firings that are of such features; nan where nothing fires."""
        density = self.metrics.density
        total = density.sum(dim=-1)
        return torch.where(total > 0, (density * (density > limit)).sum(dim=-1) / total, torch.nan)


class ScoreSums:
    """Running sums from which `result` gives the `SAEScores` of all tokens seen, whatever the batches were.

    >>> from sae import ScoreSums, SAEConfig
    >>> sums = ScoreSums(SAEConfig(n_saes=1, d_in=2, d_sae=1))
    >>> x = torch.tensor([[[2.0, 0.0], [0.0, 2.0]]])
    >>> sums.update(x, torch.ones(1, 2, 1), x / 2)
    >>> float(sums.result().reconstruction_bias), float(sums.result().norm_ratio), float(sums.result().cosine)
    (0.5, 0.5, 1.0)
    """

    def __init__(self, config: SAEConfig, device: torch.device | str = "cpu") -> None:
        """Sums of no token, for stacks of this config."""
        self._metrics = MetricSums(config, device)
        self._sums = {
            name: torch.zeros(config.n_saes, dtype=torch.float64, device=device)
            for name in ("n_tokens", "n_cosines", "l1_norm", "cosine", "norm_in", "norm_out", "power", "product")
        }

    @torch.no_grad()
    def update(
        self,
        x: Float[Tensor, "n_saes tokens d_in"],
        acts: Float[Tensor, "n_saes tokens d_sae"],
        recon: Float[Tensor, "n_saes tokens d_in"],
    ) -> None:
        """Add a batch. Raises ValueError as `MetricSums.update`."""
        self._metrics.update(x, acts, recon)
        for start in range(0, x.shape[1], _TOKENS_AT_ONCE):
            rows = slice(start, start + _TOKENS_AT_ONCE)
            own, out = x[:, rows].double(), recon[:, rows].double()
            norm_in, norm_out, product = own.norm(dim=-1), out.norm(dim=-1), (own * out).sum(dim=-1)
            has_cosine = (norm_in > 0) & (norm_out > 0)
            cosine = torch.where(has_cosine, product / (norm_in * norm_out), 0)
            parts = {
                "n_tokens": torch.ones_like(norm_in), "n_cosines": has_cosine, "cosine": cosine, "norm_in": norm_in,
                "norm_out": norm_out, "power": norm_out.square(), "product": product,
                "l1_norm": acts[:, rows].sum(dim=-1),
            }  # fmt: skip
            for name, part in parts.items():
                self._sums[name] += part.sum(dim=-1, dtype=torch.float64)

    def result(self) -> SAEScores:
        """Scores of all tokens so far."""
        of = self._sums
        n = torch.where(of["n_tokens"] > 0, of["n_tokens"], torch.nan)
        return SAEScores(
            metrics=self._metrics.result().cpu(),
            l1_norm=(of["l1_norm"] / n).cpu(),
            cosine=torch.where(of["n_cosines"] > 0, of["cosine"] / of["n_cosines"], torch.nan).cpu(),
            norm_in=(of["norm_in"] / n).cpu(),
            norm_out=(of["norm_out"] / n).cpu(),
            reconstruction_bias=torch.where(of["product"] != 0, of["power"] / of["product"], torch.nan).cpu(),
        )


class WeightScores(NamedTuple):
    """What the weights of each SAE's living features say, means over them; float64, nan where none is alive."""

    encoder_decoder_cosine: Float[Tensor, " n_saes"]
    """cos of a feature's encoder column and its decoder row."""
    max_decoder_cosine: Float[Tensor, " n_saes"]
    """cos of its decoder row and the nearest other living feature's."""
    encoder_norm: Float[Tensor, " n_saes"]
    """‖encoder column‖ · ‖decoder row‖: no rescaling of activations changes it."""
    encoder_bias: Float[Tensor, " n_saes"]
    """Bias of the pre-activation (b_enc; of gated, b_mag) · ‖decoder row‖; nan where an architecture has neither."""


@torch.no_grad()
def weight_scores(sae: StackedSAE, density: Float[Tensor, "n_saes d_sae"]) -> WeightScores:
    """The scores of the features whose density is above 0.

    Raises:
        ValueError: densities that are not the stack's [n_saes, d_sae].
    """
    shape = (sae.config.n_saes, sae.config.d_sae)
    if tuple(density.shape) != shape:
        raise ValueError(f"weight_scores: density has shape {tuple(density.shape)}; expected {shape}")
    W_enc, W_dec, is_alive = sae.W_enc.double().mT.cpu(), sae.W_dec.double().cpu(), density.cpu() > 0
    size = W_dec.norm(dim=-1)
    bias = next((sae.tensors[name].double().cpu() for name in ("b_enc", "b_mag") if name in sae.tensors), None)
    products = W_enc.norm(dim=-1) * size
    cosine = (W_enc * W_dec).sum(dim=-1) / products
    values = (
        cosine, neighbour_cosines(W_dec, is_alive), products,
        torch.full_like(size, torch.nan) if bias is None else bias * size,
    )  # fmt: skip
    return WeightScores(*(torch.where(is_alive, value, torch.nan).nanmean(dim=-1) for value in values))
