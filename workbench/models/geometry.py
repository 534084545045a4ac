"""What attention heads share: Gram matrices, cosines, entropies. Pure functions of tensors, in float64.

Every Gram matrix here is an un-normalised sum over tokens, so batches add: sum the Grams of a stream and take the
cosine once, at the end.
"""

from __future__ import annotations

import torch
from einops import einsum, rearrange
from jaxtyping import Float, Float64
from torch import Tensor

BASES = ("z", "pattern", "residual")
"""The three readings of a head: its output, its attention map, its contribution to the residual stream."""


def gram_pattern(pattern: Float[Tensor, "batch head query key"]) -> Float64[Tensor, "head head"]:
    """Inner products of the heads' attention maps, G[i, j] = Σ_{b,q,k} A[b,i,q,k] A[b,j,q,k], in float64."""
    flat = rearrange(exact(pattern), "batch head query key -> batch head (query key)")
    return (flat @ flat.transpose(1, 2)).sum(0)


def second_moment(z: Float[Tensor, "batch pos head d_head"]) -> Float64[Tensor, "head d_head head d_head"]:
    """Uncentred second moment of the concatenated z, C[i,a,j,b] = Σ_{b,t} z[..,i,a] z[..,j,b], in float64.

    It holds the other two readings of z: `gram_z` is its blocks' traces, `gram_residual` needs nothing else, and the
    square roots of its eigenvalues are the singular values of z as [tokens, head·d_head].
    """
    n_heads, d_head = z.shape[2:]
    flat = rearrange(exact(z), "batch pos head d_head -> (batch pos) (head d_head)")
    return (flat.T @ flat).reshape(n_heads, d_head, n_heads, d_head)


def gram_z(moment: Float[Tensor, "head d_head head d_head"]) -> Float64[Tensor, "head head"]:
    """Inner products of the heads' outputs, G[i, j] = Σ_{b,t} z[b,t,i]·z[b,t,j], in float64: the traces of the second
    moment's [d_head, d_head] blocks."""
    return torch.einsum("iaja->ij", exact(moment))


def gram_residual(
    moment: Float[Tensor, "head d_head head d_head"], W_O: Float[Tensor, "head d_head d_model"]
) -> Float64[Tensor, "head head"]:
    """Inner products of the heads' residual contributions z_h W_O[h], in float64, without forming them.

    Σ_t (z_i W_i)·(z_j W_j) = ⟨C_ij, W_i W_jᵀ⟩ with C the `second_moment`. A rotation of a head's value basis
    (W_V → W_V R, W_O → Rᵀ W_O) changes neither the function nor this number; it does change `gram_z`.
    """
    writer = exact(W_O)
    overlap = einsum(writer, writer, "i a m, j b m -> i a j b")
    return einsum(exact(moment), overlap, "i a j b, i a j b -> i j")


def cosines(gram: Float[Tensor, "head head"]) -> Float64[Tensor, "head head"]:
    """Cosines of a Gram matrix, in float64: symmetric, 1 on the diagonal, nan in the row and column of a zero head."""
    gram = exact(gram)
    gram = (gram + gram.T) / 2  # some processors' products sum G[i, j] and G[j, i] in different orders
    norm = gram.diagonal().sqrt()
    cos = (gram / (norm[:, None] * norm[None, :])).clamp(-1, 1)
    cos.diagonal()[norm > 0] = 1.0
    return cos


def mean_abs_cos(cos: Float[Tensor, "head head"]) -> float:
    """Mean over i ≠ j of |cos|: `mean_cos`, and on z `sigma`. nan for one head, or where a cosine is nan."""
    return float(_off_diagonal(cos).abs().mean())


def max_abs_cos(cos: Float[Tensor, "head head"]) -> float:
    """Maximum over i ≠ j of |cos|. nan for one head, or where a cosine is nan."""
    off = _off_diagonal(cos).abs()
    return float(off.max()) if off.numel() else float("nan")


def head_entropy(pattern: Float[Tensor, "batch head query key"]) -> Float64[Tensor, " head"]:
    """Mean over queries of −Σ p ln p of each head's attention, in nats (p = 0 counts 0)."""
    return torch.special.entr(exact(pattern)).sum(-1).mean((0, 2))


def bos_mass(pattern: Float[Tensor, "batch head query key"]) -> Float64[Tensor, " head"]:
    """Mean attention of each head to position 0, from queries ≥ 1. nan if there is one query only."""
    return exact(pattern[:, :, 1:, 0]).mean((0, 2))


class HeadRedundancy:
    """Running Gram matrices of one layer's heads over a stream of batches, and their cosines at any moment.

    `add` takes what the batch offers; `cosines(basis)` needs what that basis is made of. Sums are kept in float64, so
    the order and the size of the batches matter only to float64 rounding.
    """

    def __init__(self) -> None:
        self.moment: Float64[Tensor, "head d_head head d_head"] | None = None
        self.scaled: Float64[Tensor, "head d_head head d_head"] | None = None  # of z over the norm's scale behind it
        self.pattern: Float64[Tensor, "head head"] | None = None
        self.n_tokens = 0

    def add(
        self,
        z: Float[Tensor, "batch pos head d_head"],
        pattern: Float[Tensor, "batch head query key"] | None = None,
        scale: Float[Tensor, "batch pos 1"] | None = None,
    ) -> None:
        """Count one batch in; scale: what a norm behind attention divides by."""
        self.moment = add_sums(self.moment, second_moment(z))
        if scale is not None:
            self.scaled = add_sums(self.scaled, second_moment(exact(z) / exact(scale)[..., None]))
        self.n_tokens += z.shape[0] * z.shape[1]
        if pattern is not None:
            self.pattern = add_sums(self.pattern, gram_pattern(pattern))

    def __add__(self, other: HeadRedundancy) -> HeadRedundancy:
        """What both have counted."""
        total = HeadRedundancy()
        total.moment, total.scaled, total.pattern = (
            add_sums(*own)
            for own in ((self.moment, other.moment), (self.scaled, other.scaled), (self.pattern, other.pattern))
        )
        total.n_tokens = self.n_tokens + other.n_tokens
        return total

    def cosines(
        self, basis: str, W_O: Float[Tensor, "head d_head d_model"] | None = None
    ) -> Float64[Tensor, "head head"]:
        """Cosine matrix so far in one of `BASES`; "residual" needs W_O, times the weight of a norm behind attention.

        Raises ValueError if the basis is unknown, or nothing was added that it can be read from.
        """
        if basis not in BASES:
            raise ValueError(f"basis: got {basis!r}; expected one of {', '.join(BASES)}")
        if self.moment is None or (basis == "pattern" and self.pattern is None):
            raise ValueError(f"cosines on {basis}: got no batch that holds it; expected at least one")
        if basis == "pattern":
            assert self.pattern is not None
            return cosines(self.pattern)
        if basis == "z":
            return cosines(gram_z(self.moment))
        if W_O is None:
            raise ValueError("cosines on residual: got no W_O; expected the layer's W_O [head, d_head, d_model]")
        return cosines(gram_residual(self.moment if self.scaled is None else self.scaled, W_O))


def add_sums(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    """The sum of two running sums, of which one that holds nothing yet is None."""
    if first is None or second is None:
        return first if second is None else second
    return first + second


def exact(x: Tensor) -> Tensor:
    """x detached, in float64, on its own device, or on the CPU where the device has no float64 (Apple's)."""
    x = x.detach()
    return (x.cpu() if x.device.type == "mps" else x).to(torch.float64)


def _off_diagonal(cos: Float[Tensor, "head head"]) -> Float[Tensor, " pair"]:
    keep = ~torch.eye(cos.shape[0], dtype=torch.bool, device=cos.device)
    return cos[keep]
