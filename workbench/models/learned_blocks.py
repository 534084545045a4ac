"""Blocks of attention residuals whose boundaries are trained with the routing: layers belong to blocks by degrees.

For L layers and K blocks, with free parameters θ_1 … θ_{L−1}:

    δ_ℓ = (K − 1) softmax(θ)_ℓ ≥ 0         the step from layer ℓ − 1 to ℓ; all together K − 1
    s_ℓ = Σ_{1≤j≤ℓ} δ_j                    the position of layer ℓ, from s_0 = 0 to s_{L−1} = K − 1
    w_{ℓk} = max(0, 1 − |s_ℓ − k|)         its membership of block k = 0 … K − 1; Σ_k w_{ℓk} = 1
    v_k = Σ_ℓ w_{ℓk} o_ℓ                   the sum of block k over the outputs o_ℓ so far
    g_{ℓk} = min(1, Σ_{j≤ℓ} w_{jk})        how far block k has begun once layer ℓ has written
    h = Σ_k α_k v_k,  α = softmax_k(w · RMSNorm(v_k) + ln g_{ℓk})

A block that has not begun is no source (ln 0), one that has begun in part counts in part. With steps of 0 and 1 alone
these are the blocks of a list, whose boundaries are the layers with a step of 1, and the logits of that list. θ starts
at zero: equal steps. Sources, in order: the embedding (streams = "both"; it has always begun) and the K blocks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor, nn

from workbench.models.attn_residuals import Routing, inverse_rms_of, last, widened
from workbench.models.config import AttnRes, ModelConfig
from workbench.models.hooks import HookPoint
from workbench.models.layers import without_autocast


class Boundaries(nn.Module):
    """The trained division of layers into blocks: `increments` [n_layers − 1] is θ, zero at first."""

    def __init__(self, cfg: ModelConfig, attn_res: AttnRes) -> None:
        super().__init__()
        self.n_blocks = attn_res.n_sums
        self.has_embedding = attn_res.streams == "both"
        self.increments = nn.Parameter(torch.empty(cfg.n_layers - 1, dtype=cfg.dtype))

    def positions(self) -> Float[Tensor, " layer"]:
        """s of every layer, from 0 to n_blocks − 1."""
        theta = widened(self.increments)
        steps = (self.n_blocks - 1) * torch.softmax(theta, dim=0)
        return F.pad(steps, (1, 0)).cumsum(0)

    def memberships(self) -> Float[Tensor, "layer block"]:
        """w of every layer and block."""
        positions = self.positions()
        blocks = torch.arange(self.n_blocks, device=positions.device, dtype=positions.dtype)
        return (1 - (positions[:, None] - blocks).abs()).clamp_min(0)

    def segments(self) -> Segments:
        """What one forward pass reads of the division."""
        memberships = self.memberships()
        begun = memberships.cumsum(0).clamp_max(1)
        if self.has_embedding:
            memberships, begun = F.pad(memberships, (1, 0)), F.pad(begun, (1, 0), value=1.0)
        return Segments(memberships, begun)


class Segments:
    """Memberships and logits of what has begun, per layer and source; one object for all states of a forward pass."""

    def __init__(self, memberships: Float[Tensor, "layer source"], begun: Float[Tensor, "layer source"]) -> None:
        self.memberships = memberships
        is_begun = begun > torch.finfo(begun.dtype).tiny
        # the logarithm is taken of 1 where nothing has begun: its gradient there would be infinite, and 0 · ∞ nan
        self.offsets = torch.where(is_begun, begun, 1.0).log().masked_fill(~is_begun, -torch.inf)

    @property
    def n_sources(self) -> int:
        """Number of sources, whether begun or not."""
        return self.memberships.shape[1]


@dataclass(frozen=True)
class SegmentedStream:
    """The residual state of a model whose blocks are learned.

    Attributes:
        sums: the sources as the layers before `layer` left them.
        partial: what `layer` has written so far, not in the sums yet; None before it has.
        layer: the layer that writes, or has last written.
        segments: the division into blocks.
        main: as `RoutedStream.main`.
    """

    sums: Float[Tensor, "source batch pos d_model"]
    partial: Float[Tensor, "batch pos d_model"] | None
    layer: int
    segments: Segments
    main: Float[Tensor, "batch pos d_model"] | None = None

    @classmethod
    def of_embedding(cls, x: Float[Tensor, "batch pos d_model"], boundaries: Boundaries) -> SegmentedStream:
        """The state entering layer 0."""
        segments = boundaries.segments()
        if not boundaries.has_embedding:
            return cls(x.new_zeros(segments.n_sources, *x.shape), None, -1, segments, x)
        return cls(F.pad(x[None], (0, 0, 0, 0, 0, 0, 0, segments.n_sources - 1)), None, -1, segments)

    @property
    def sources(self) -> Float[Tensor, "source batch pos d_model"]:
        """The sources now: each has its share of what the layer has written."""
        if self.partial is None:
            return self.sums
        shares = rearrange(self.segments.memberships[self.layer], "source -> source 1 1 1")
        return torch.addcmul(self.sums, shares.to(self.sums.dtype), self.partial.to(self.sums.dtype))

    def enter(self) -> SegmentedStream:
        """The state as a new layer finds it: the sums hold what the one before has written."""
        return self if self.partial is None else replace(self, sums=self.sources, partial=None)

    def commit(self) -> SegmentedStream:
        """Never called: memberships say where a block ends."""
        raise AssertionError("learned blocks have no listed boundary")

    def read(self, routing: Routing | None, hook: HookPoint | None) -> Float[Tensor, "batch pos d_model"]:
        """As `RoutedStream.read`."""
        if routing is None or hook is None:
            assert self.main is not None, "only the first attention of an attention channel has no routing"
            return self.main
        with without_autocast(self.sums.device):
            sources = self.sources
            v = widened(sources)
            scores = (v @ routing.direction.to(v.dtype)) * inverse_rms_of(v, routing.eps)
            scores = rearrange(scores, "source batch pos -> batch pos source") + self._offsets(scores.dtype)
            alpha = hook(torch.softmax(scores, dim=-1)).to(sources.dtype)
            mixed = einsum(alpha, sources, "batch pos source, source batch pos d -> batch pos d")
        return mixed if self.main is None else self.main + mixed

    def _offsets(self, dtype: torch.dtype) -> Float[Tensor, " source"]:
        """ln g once the last layer that wrote has written; before any has, the embedding alone has begun."""
        if self.layer >= 0:
            return self.segments.offsets[self.layer].to(dtype)
        unbegun = torch.full_like(self.segments.offsets[0], -torch.inf, dtype=dtype)
        return unbegun.index_fill(0, torch.zeros(1, dtype=torch.long, device=unbegun.device), 0.0)

    @property
    def running(self) -> Float[Tensor, "batch pos d_model"]:
        """The tensor that attention adds to."""
        assert self.partial is not None, "the layer has written"
        return self.partial

    @property
    def shape(self) -> torch.Size:
        """[batch pos d_model], as of the plain stream."""
        return self.sums.shape[1:]

    def last(self, n: int) -> SegmentedStream:
        """The state at the last n positions."""
        return replace(self, sums=self.sums[:, :, -n:], partial=last(self.partial, n), main=last(self.main, n))

    def repeated(self, n: int, running: Float[Tensor, "n_batch pos d_model"]) -> SegmentedStream:
        """This state n times over along the batch, with `running` as what the layer has written."""
        main = None if self.main is None else self.main.repeat(n, 1, 1)
        return replace(self, sums=self.sums.repeat(1, n, 1, 1), partial=running, main=main)

    def __add__(self, update: Tensor) -> SegmentedStream:
        """With an attention output written by the layer; the first since `enter` is of the next layer."""
        if self.partial is None:
            return replace(self, partial=update, layer=self.layer + 1)
        return replace(self, partial=self.partial + update)

    def add_mlp(self, update: Tensor) -> SegmentedStream:
        """As `RoutedStream.add_mlp`."""
        return self + update if self.main is None else replace(self, main=self.main + update)
