"""Cosines of a layer's heads with one another: of their outputs, their attention maps, and what they write.

What heads write, r_h = z_h W_O[h] of [batch·pos·d_model], is compared without being formed: with S = Σ z zᵀ over batch
and pos and M = W_O W_Oᵀ, both [head·d_head, head·d_head],

    ⟨r_h, r_k⟩ = Σ_{d,e} S[hd, ke] M[hd, ke]
"""

from __future__ import annotations

import math
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from workbench.extend import Intervention, StepContext

TINY = 1e-12  # below this a head's norm or a probability counts as zero; far under what float32 sums leave


class _Gram(torch.autograd.Function):
    """Σ_b X_b X_bᵀ of [batch, group, head, n] in float32 or float64. By hand for one reason: autograd would form the
    gradient of a symmetric product twice, and keep a float32 copy of X besides."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        with torch.autocast(x.device.type, enabled=False):
            wide = widen(x)
            return (wide @ wide.mT).sum(0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        with torch.autocast(x.device.type, enabled=False):
            return ((grad + grad.mT) @ widen(x)).to(x.dtype)


class _WrittenGram(torch.autograd.Function):
    """⟨z_h W_h, z_k W_k⟩ of each group, [group, head, head], from z [group, n, head·d] and W [group, head·d, d_model].

    By hand so that z is kept as it came, not widened, and each large product is formed once in each direction.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, weights: Tensor, n_heads: int) -> Tensor:
        with torch.autocast(z.device.type, enabled=False):
            wide, w = widen(z), widen(weights)
            moments, overlaps = wide.mT @ wide, w @ w.mT
            ctx.save_for_backward(z, weights, moments, overlaps)
            ctx.n_heads = n_heads
            return (_by_head(moments, n_heads) * _by_head(overlaps, n_heads)).sum((2, 4))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        z, weights, moments, overlaps = ctx.saved_tensors
        with torch.autocast(z.device.type, enabled=False):
            both = (grad + grad.mT)[:, :, None, :, None]
            of_z, of_w = ((both * _by_head(own, ctx.n_heads)).reshape(own.shape) for own in (overlaps, moments))
            return (widen(z) @ of_z).to(z.dtype), (of_w @ widen(weights)).to(weights.dtype), None


def _by_head(product: Float[Tensor, "group n n"], n_heads: int) -> Float[Tensor, "group head d head d"]:
    return product.unflatten(2, (n_heads, -1)).unflatten(1, (n_heads, -1))


def gram(x: Float[Tensor, "batch group member n"]) -> Float[Tensor, "group member member"]:
    """Scalar products of the members of each group, summed over batch and n; float32 also for bfloat16 x, under
    autocast too."""
    return _Gram.apply(x)


def head_gram(
    z: Float[Tensor, "batch pos head d_head"], group_size: int | None = None
) -> Float[Tensor, "group member member"]:
    """Cosine matrices G = V Vᵀ of the heads' outputs, one a group of group_size heads; one group of all by default.

    V: z flattened per head over batch, pos and d_head, rows L2-normalised. float32 also for bfloat16 z (float64 stays).
    A head that is zero has cosine 0 to the others, so that its gradient is 0 and not nan.
    """
    return _cosine_groups(rearrange(z, "batch pos head d_head -> batch head (pos d_head)"), group_size)


def pattern_gram(
    pattern: Float[Tensor, "batch head query key"], group_size: int | None = None
) -> Float[Tensor, "group member member"]:
    """`head_gram` of the attention maps, flattened per head over batch, query and key."""
    return _cosine_groups(rearrange(pattern, "batch head query key -> batch head (query key)"), group_size)


def residual_gram(
    z: Float[Tensor, "batch pos head d_head"],
    W_O: Float[Tensor, "head d_head d_model"],
    group_size: int | None = None,
) -> Float[Tensor, "group member member"]:
    """`head_gram` of what heads write, z_h W_O[h] flattened per head over batch, pos and d_model; none is formed.

    Costs, forward and backward, two products of z with a matrix [head·d_head, member·d_head] each, whatever d_model.
    """
    n_heads, size = z.shape[2], _group_size(z.shape[2], group_size)
    flat = rearrange(z, "batch pos (group head) d -> group (batch pos) (head d)", head=size)
    weights = rearrange(W_O, "(group head) d model -> group (head d) model", head=size)
    products = _WrittenGram.apply(flat, weights, size)
    assert products.shape == (n_heads // size, size, size)
    return cosines(products)


def cosines(products: Float[Tensor, "group member member"]) -> Float[Tensor, "group member member"]:
    """Cosines from scalar products; correlations from covariances. 0 for a member that is zero."""
    norm = products.diagonal(dim1=1, dim2=2).clamp_min(TINY).sqrt()
    return products / (norm[:, :, None] * norm[:, None, :])


def orthogonality(gram: Float[Tensor, "group member member"]) -> Float[Tensor, ""]:
    """‖G − I‖_F over all groups (full matrix, unsquared); gradient 0 where G = I."""
    return torch.linalg.vector_norm(off_diagonal(gram))


def sigma(gram: Float[Tensor, "group member member"]) -> Float[Tensor, ""]:
    """Mean over heads of the mean |cos| to the other heads of their group; nan for a group of one."""
    n_groups, n_members, _ = gram.shape
    return off_diagonal(gram).abs().sum() / (n_groups * n_members * (n_members - 1) or math.nan)


def _cosine_groups(flat: Float[Tensor, "batch head n"], group_size: int | None) -> Float[Tensor, "group member member"]:
    size = _group_size(flat.shape[1], group_size)
    return cosines(gram(rearrange(flat, "batch (group head) n -> batch group head n", head=size)))


def _group_size(n_heads: int, group_size: int | None) -> int:
    size = group_size or n_heads
    if n_heads % size:
        raise ValueError(f"vsm.group_size: got {size}; expected a divisor of {n_heads} heads")
    return size


def off_diagonal(gram: Float[Tensor, "group member member"]) -> Float[Tensor, "group member member"]:
    """The cosines of different heads, 0 in place of each one's own."""
    # The diagonal of G − I is zero by normalisation; what rounding leaves there must not reach the loss.
    return gram * (1 - torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device))


def widen(x: Tensor) -> Tensor:
    """In float32, or in float64 as it is."""
    return x if x.dtype == torch.float64 else x.float()


class OnHeads(Intervention):
    """An intervention with a weight on the outputs of a layer's heads."""

    def check(self, cfg: Any) -> None:
        """Heads to compare."""
        if cfg.n_heads < 2:
            raise ValueError(f"model.n_heads: got {cfg.n_heads}; expected 2 or more, or no {self.kind}")

    def watch(self, cfg: Any) -> list[str]:
        """z of every layer."""
        return [f"blocks.{layer}.attn.hook_z" for layer in range(cfg.n_layers)]

    def is_watching(self, context: StepContext) -> bool:
        """Only where it weighs something."""
        return self.settings.weight != 0
