"""Norms that some SAEs from elsewhere put around themselves: each token's input is scaled before the encoder, and its
reconstruction is scaled back.

    constant_norm_rescale    z = x √d_in/‖x‖                     recon of x = (recon of z) ‖x‖/√d_in
    layer_norm               z = (x − m)/(s + 10⁻⁵)              recon of x = (recon of z) s + m

with m the mean and s the standard deviation (over d_in − 1) of the token's coordinates. The 10⁻⁵ stands on the way in
alone, as in SAELens 6.54 (`SAE._setup_activation_normalization`), whose bits these are.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

TokenNorm = Literal["constant_norm_rescale", "layer_norm"]
TOKEN_NORMS: tuple[str, ...] = get_args(TokenNorm)
_EPS = 1e-5


def normalise(norm: TokenNorm, x: Float[Tensor, "*n d_in"]) -> Float[Tensor, "*n d_in"]:
    """z: what the encoder reads of x; a token of zeros stays one."""
    if norm == "constant_norm_rescale":
        return x * _factor(x)
    centred = x - x.mean(dim=-1, keepdim=True)
    return centred / (centred.std(dim=-1, keepdim=True) + _EPS)


def restore(norm: TokenNorm, recon: Float[Tensor, "*n d_in"], x: Float[Tensor, "*n d_in"]) -> Float[Tensor, "*n d_in"]:
    """The reconstruction of x, of that of z."""
    if norm == "constant_norm_rescale":
        return recon / _factor(x)
    mean = x.mean(dim=-1, keepdim=True)
    return recon * (x - mean).std(dim=-1, keepdim=True) + mean


def output_scale(norm: TokenNorm, x: Float[Tensor, "*n d_in"]) -> Float[Tensor, "*n"]:
    """What one unit of a feature's activation adds to the reconstruction of x, in multiples of its decoder row."""
    return (1 / _factor(x) if norm == "constant_norm_rescale" else x.std(dim=-1, keepdim=True)).squeeze(-1)


def _factor(x: Float[Tensor, "*n d_in"]) -> Float[Tensor, "*n 1"]:
    norms = x.norm(dim=-1, keepdim=True)
    return torch.where(norms > 0, x.shape[-1] ** 0.5 / norms, 1)
