"""Block attention residuals: a sub-layer reads a learned mixture of the embedding, finished block sums, current sum.

h = Σ_i α_i v_i with α = softmax_i(w · RMSNorm(v_i)); w starts at zero, so that routing begins as the plain average.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

from workbench.models.config import ModelConfig


@dataclass(frozen=True)
class RoutedStream:
    """The residual state of an attention-residual model.

    Attributes:
        committed: the embedding and the sums of finished blocks, [batch pos d_model] each.
        partial: the current sum; None right after a commit (an empty sum is no source).
    """

    committed: tuple[Float[Tensor, "batch pos d_model"], ...]
    partial: Float[Tensor, "batch pos d_model"] | None

    @property
    def sources(self) -> tuple[Tensor, ...]:
        """What routing chooses from, oldest first."""
        return self.committed if self.partial is None else (*self.committed, self.partial)

    def commit(self) -> RoutedStream:
        """The state with its partial sum closed and an empty one begun."""
        assert self.partial is not None, "two boundaries with nothing between them"
        return RoutedStream((*self.committed, self.partial), None)

    @property
    def running(self) -> Float[Tensor, "batch pos d_model"]:
        """The tensor that sub-layers add to."""
        assert self.partial is not None, "something has been added since the last commit"
        return self.partial

    def repeated(self, n: int, running: Float[Tensor, "n_batch pos d_model"]) -> RoutedStream:
        """This state n times over along the batch, with `running` as the current sum."""
        return RoutedStream(tuple(v.repeat(n, 1, 1) for v in self.committed), running)

    def __add__(self, update: Tensor) -> RoutedStream:
        return RoutedStream(self.committed, update if self.partial is None else self.partial + update)


class Routing(nn.Module):
    """One routing: `query` [d_model], zero at first, and the weight `norm` [d_model] of its RMSNorm."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.eps = cfg.eps
        self.query = nn.Parameter(torch.zeros(cfg.d_model, dtype=cfg.dtype))
        self.w = nn.Parameter(torch.ones(cfg.d_model, dtype=cfg.dtype))  # `w`, as every norm's weight

    def forward(self, state: RoutedStream, hook: HookPoint) -> Float[Tensor, "batch pos d_model"]:
        """The mixture of the state's sources; `hook` sees α [batch pos source]."""
        direction = self.query * self.w
        scores = []
        for v in state.sources:
            # w · (norm ∘ v / rms(v)): the dot product and the mean square read v; a normalised v is never stored
            wide = v.float() if v.dtype in (torch.bfloat16, torch.float16) else v
            rms = (wide.square().mean(-1) + self.eps).rsqrt()
            scores.append((wide @ direction.to(wide.dtype)) * rms)
        alpha = hook(torch.softmax(torch.stack(scores, dim=-1), dim=-1))
        mixed = torch.zeros_like(state.sources[0])
        for i, v in enumerate(state.sources):
            mixed = torch.addcmul(mixed, alpha[..., i, None].to(v.dtype), v)
        return mixed
