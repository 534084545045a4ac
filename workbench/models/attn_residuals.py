"""Block attention residuals: a sub-layer reads a learned mixture of the embedding, finished block sums, current sum.

h = Σ_i α_i v_i with α = softmax_i(w · RMSNorm(v_i)); w starts at zero, so that routing begins as the plain average.

Which outputs the sums hold is `streams`. In `both`, the form of the published code (Kimi Team 2026, arXiv 2603.15031),
attention and MLP outputs alike: the sources v_i are the embedding and the sums over blocks of layers, and a sub-layer
reads h. In `attention`, the words of the Kotodama report (attention gets a channel of its own, beside the main
stream), the sums hold attention outputs alone. With x₀ the embedding, a_j and m_j the outputs of layer j, B_i the
layers of block i and S(ℓ) the sums that layer ℓ has before it:

    u_ℓ = x₀ + Σ_{j<ℓ} m_j                                     the main stream, which nothing routes
    v_i = Σ_{j∈B_i, j<ℓ} a_j,  i ∈ S(ℓ)                         the channel of attention
    layer ℓ's attention reads u_ℓ + Σ_i α_i v_i; its MLP the same with a_ℓ in the current sum; the final norm likewise

Layer 0's attention reads u_0 alone: nothing is in the channel yet, and there is no routing. With one block α is 1, and
the model is the plain transformer.

The finished sums are the same for every sub-layer of a block. So all its routings read them in one go, for their mean
under each routing's softmax and its logsumexp (`CommittedMeans`); each then only lets the current sum in, by a weight
sigmoid(score − logsumexp). The mixture is the same, and the reads of a block's sources are shared.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from workbench.models.config import ModelConfig
from workbench.models.hooks import HookPoint
from workbench.models.layers import is_watched, without_autocast


@dataclass(frozen=True)
class RoutedStream:
    """The residual state of an attention-residual model.

    Attributes:
        committed: the embedding (unless it is in `main`) and the sums of finished blocks, [batch pos d_model] each.
        partial: the current sum; None right after a commit (an empty sum is no source).
        main: with streams = "attention" the embedding and MLP outputs, which nothing routes; else None.
        shared: where a forward pass keeps what its routings read of `committed` in common; None: each reads by itself.
    """

    committed: tuple[Float[Tensor, "batch pos d_model"], ...]
    partial: Float[Tensor, "batch pos d_model"] | None
    main: Float[Tensor, "batch pos d_model"] | None = None
    shared: SharedMeans | None = None

    @property
    def sources(self) -> tuple[Tensor, ...]:
        """What routing chooses from, oldest first."""
        return self.committed if self.partial is None else (*self.committed, self.partial)

    def enter(self) -> RoutedStream:
        """The state as a new layer finds it."""
        return self

    def commit(self) -> RoutedStream:
        """The state with its partial sum closed and an empty one begun."""
        assert self.partial is not None, "two boundaries with nothing between them"
        return replace(self, committed=(*self.committed, self.partial), partial=None)

    def read(self, routing: Routing | None, hook: HookPoint | None) -> Float[Tensor, "batch pos d_model"]:
        """What a sub-layer reads: the routed sums, and the main stream where there is one; without routing that one."""
        if routing is None or hook is None or not self.sources:
            assert self.main is not None, "only a channel of attention is empty at first"
            return self.main
        mixed = routing(self, hook)
        return mixed if self.main is None else self.main + mixed

    @property
    def running(self) -> Float[Tensor, "batch pos d_model"]:
        """The tensor that attention adds to."""
        assert self.partial is not None, "something has been added since the last commit"
        return self.partial

    @property
    def shape(self) -> torch.Size:
        """[batch pos d_model], as of the plain stream."""
        return (self.sources[0] if self.main is None else self.main).shape

    def last(self, n: int) -> RoutedStream:
        """The state at the last n positions."""
        return RoutedStream(tuple(v[:, -n:] for v in self.committed), last(self.partial, n), last(self.main, n))

    def repeated(self, n: int, running: Float[Tensor, "n_batch pos d_model"]) -> RoutedStream:
        """This state n times over along the batch, with `running` as the current sum."""
        main = None if self.main is None else self.main.repeat(n, 1, 1)
        return RoutedStream(tuple(v.repeat(n, 1, 1) for v in self.committed), running, main)

    def __add__(self, update: Tensor) -> RoutedStream:
        """With an attention output in the current sum."""
        return replace(self, partial=update if self.partial is None else self.partial + update)

    def add_mlp(self, update: Tensor) -> RoutedStream:
        """With an MLP output where those go: the main stream where there is one, else the current sum."""
        return self + update if self.main is None else replace(self, main=self.main + update)


class Routing(nn.Module):
    """One routing: `query` [d_model], zero at first, and the weight `norm` [d_model] of its RMSNorm."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.eps = cfg.eps
        self.query = nn.Parameter(torch.zeros(cfg.d_model, dtype=cfg.dtype))
        self.w = nn.Parameter(torch.ones(cfg.d_model, dtype=cfg.dtype))  # `w`, as every norm's weight

    @property
    def direction(self) -> Float[Tensor, " d_model"]:
        """query ∘ norm: the score of a source is its dot product with this, divided by the source's rms."""
        return self.query * self.w

    def forward(self, state: RoutedStream, hook: HookPoint) -> Float[Tensor, "batch pos d_model"]:
        """The mixture of the state's sources; `hook` sees α [batch pos source], which is formed only for a watcher."""
        if state.shared is not None and state.partial is not None and not is_watched(hook):
            means = state.shared.of(self, state.committed)
            if means is not None:
                return _LetIn.apply(*means, state.partial, self.direction, self.eps)  # type: ignore[no-any-return]
        scores = []
        for v in state.sources:
            # w · (norm ∘ v / rms(v)): the dot product and the mean square read v; a normalised v is never stored
            wide = widened(v)
            scores.append((wide @ self.direction.to(wide.dtype)) * inverse_rms_of(wide, self.eps))
        alpha = hook(torch.softmax(torch.stack(scores, dim=-1), dim=-1))
        mixed = torch.zeros_like(state.sources[0])
        for i, v in enumerate(state.sources):
            mixed = torch.addcmul(mixed, alpha[..., i, None].to(v.dtype), v)
        return mixed


class SharedMeans:
    """Over one forward pass, what every routing reads of the finished sums: made for all routings of a block at once.

    Kept for the newest tuple of sums alone, and known by that tuple itself: for any other it is made anew.
    """

    def __init__(self, routings: Iterable[tuple[int, Routing]]) -> None:
        """routings: all of the model, each with the number of finished sums that it reads."""
        self._groups: dict[int, list[Routing]] = defaultdict(list)
        for n_committed, routing in routings:
            self._groups[n_committed].append(routing)
        self._committed: tuple[Tensor, ...] = ()
        self._means: tuple[Tensor, ...] = ()
        self._logsumexps: tuple[Tensor, ...] = ()

    def of(self, routing: Routing, committed: tuple[Tensor, ...]) -> tuple[Tensor, Tensor] | None:
        """(mean [batch pos d_model], logsumexp [batch pos]) of the sums under `routing`; None where it reads no sums,
        or other ones than the model's order of layers gives it."""
        group = self._groups.get(len(committed), [])
        place = next((i for i, member in enumerate(group) if member is routing), None)
        if not committed or place is None:
            return None
        if self._committed is not committed:
            directions = torch.stack([member.direction for member in group])
            means, logsumexps = CommittedMeans.apply(directions, routing.eps, *committed)
            self._committed, self._means, self._logsumexps = committed, means.unbind(-2), logsumexps.unbind(-1)
        return self._means[place], self._logsumexps[place]


class CommittedMeans(torch.autograd.Function):
    """(Σ_i p_i v_i [batch pos routing d_model], ln Σ_i e^{s_i} [batch pos routing]), p = softmax_i(s), for many
    routings of the same sources v_i: s_i = (direction · v_i)/rms(v_i).

    By hand so that forward and backward read each source a fixed number of times, however many routings there are.
    """

    @staticmethod
    def forward(ctx: Any, directions: Tensor, eps: float, *sources: Tensor) -> tuple[Tensor, Tensor]:
        with without_autocast(directions.device):
            v = _stacked(sources)
            inverse_rms = inverse_rms_of(v, eps)
            dots = v @ directions.to(v.dtype).T  # [batch·pos source routing]
            scores = dots * inverse_rms[..., None]
            logsumexp = scores.logsumexp(1)
            p = (scores - logsumexp[:, None]).exp_()
            means = torch.bmm(p.mT, v).to(sources[0].dtype)
        ctx.save_for_backward(directions, inverse_rms, dots, p, *sources)
        shape = sources[0].shape[:-1]
        return means.view(*shape, *means.shape[1:]), logsumexp.view(*shape, -1)

    @staticmethod
    def backward(ctx: Any, grad_means: Tensor, grad_logsumexp: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        directions, inverse_rms, dots, p, *sources = ctx.saved_tensors
        with without_autocast(directions.device):
            v = _stacked(sources)
            grad = grad_means.flatten(0, -3).to(v.dtype)
            grad_p = torch.bmm(v, grad.mT)
            grad_scores = p * (grad_p - (p * grad_p).sum(1, keepdim=True) + grad_logsumexp.flatten(0, -2)[:, None])
            grad_dots = grad_scores * inverse_rms[..., None]
            # through 1/rms: d(1/rms)/dv = −v/(d rms³)
            along_v = (grad_scores * dots).sum(-1) * inverse_rms.pow(3) / -v.shape[-1]
            grad_directions = grad_dots.flatten(0, 1).T @ v.flatten(0, 1)
            grad_v = torch.bmm(p, grad)
            grad_v.flatten(0, 1).addmm_(grad_dots.flatten(0, 1), directions.to(v.dtype))
            grad_v.addcmul_(v, along_v[..., None])
        shape = sources[0].shape
        of_sources = (g.view(shape).to(s.dtype) for g, s in zip(grad_v.unbind(1), sources, strict=True))
        return grad_directions.to(directions.dtype), None, *of_sources


class _LetIn(torch.autograd.Function):
    """mean + σ(s − logsumexp)·(v − mean), s = (direction · v)/rms(v): the mixture with the current sum v let in."""

    @staticmethod
    def forward(ctx: Any, mean: Tensor, logsumexp: Tensor, partial: Tensor, direction: Tensor, eps: float) -> Tensor:
        with without_autocast(direction.device):
            v = widened(partial)
            inverse_rms = inverse_rms_of(v, eps)
            dots = v @ direction.to(v.dtype)
            weight = torch.sigmoid(dots * inverse_rms - logsumexp)
            mixed = torch.lerp(mean, v.to(mean.dtype), weight[..., None].to(mean.dtype))
        ctx.save_for_backward(mean, partial, direction, inverse_rms, dots, weight)
        return mixed

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        mean, partial, direction, inverse_rms, dots, weight = ctx.saved_tensors
        with without_autocast(direction.device):
            v, wide = widened(partial), widened(grad)
            grad_score = weight * (1 - weight) * ((v - mean) * wide).sum(-1)
            grad_dot = grad_score * inverse_rms
            along_v = grad_score * dots * inverse_rms.pow(3) / -v.shape[-1]
            grad_v = wide * weight[..., None]
            grad_v.addcmul_(grad_dot[..., None], direction.to(v.dtype)).addcmul_(v, along_v[..., None])
            grad_mean = wide * (1 - weight)[..., None]
            grad_direction = grad_dot.flatten() @ v.flatten(0, -2)
        return (
            grad_mean.to(mean.dtype),
            -grad_score,
            grad_v.to(partial.dtype),
            grad_direction.to(direction.dtype),
            None,
        )


def last(x: Tensor | None, n: int) -> Tensor | None:
    return None if x is None else x[:, -n:]


def widened(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def inverse_rms_of(x: Float[Tensor, "*batch d_model"], eps: float) -> Float[Tensor, "*batch"]:
    # of the norm, which is one pass over x; the mean of squares would write x² first
    return (torch.linalg.vector_norm(x, dim=-1).square() / x.shape[-1] + eps).rsqrt()


def _stacked(sources: Iterable[Tensor]) -> Float[Tensor, "n source d_model"]:
    return torch.stack([widened(v).flatten(0, -2) for v in sources], dim=1)
