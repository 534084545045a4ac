"""topk: the k largest features of each token.

    acts = relu of the k largest entries of (x − b_dec) W_enc + b_enc, 0 elsewhere; the rest is relu's

Tensors of relu. The gradient passes through the features kept. Source: Gao et al. 2024, without their auxiliary loss:
dead features are resampled.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from sae.architecture import SAELensForm, Weights, check_k, decoder_norms, keep_top
from sae.one_layer import OneLayer

if TYPE_CHECKING:
    from sae.config import SAEConfig


class TopK(OneLayer):
    name = "topk"
    options = frozenset({"k"})
    has_penalty = False
    step_numbers = 4.1
    read_from = "topk"

    def check(self, config: SAEConfig) -> None:
        check_k(config)
        if config.k != int(config.k or 0):
            raise ValueError(f"SAEConfig.k: got {config.k} for topk; expected an integer")

    def activate(self, config: SAEConfig, w: Weights, pre: Tensor) -> Tensor:
        return keep_top(pre, int(config.k or 0))

    def to_sae_lens(self, config: SAEConfig, w: Weights) -> SAELensForm:
        return SAELensForm("topk", dict(w), {"k": int(config.k or 0), "rescale_acts_by_decoder_norm": False})

    def options_from_sae_lens(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        kwargs = fields.get("activation_fn_kwargs")  # before SAELens 6
        return {"k": fields.get("k", kwargs.get("k") if isinstance(kwargs, dict) else None)}

    def tensors_from_sae_lens(self, fields: Mapping[str, Any], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        if not fields.get("rescale_acts_by_decoder_norm"):
            return tensors
        norms = decoder_norms(tensors["W_dec"]).clamp_min(1e-8)
        return tensors | {
            "W_enc": tensors["W_enc"] * norms,
            "b_enc": tensors["b_enc"] * norms,
            "W_dec": tensors["W_dec"] / norms.unsqueeze(-1),
        }


ARCHITECTURE = TopK()
