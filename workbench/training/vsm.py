"""VSM: a loss that presses the heads of a layer towards orthogonality, and what sets its weight λ over training.

With V the heads' outputs flattened to [head, batch·pos·d_head] and L2-normalised by row, G = V Vᵀ and

    loss = Σ_ℓ λ_ℓ ‖G_ℓ − I‖_F,    λ_ℓ = λ ((ℓ+1)/L)^p,    σ = mean over heads of the mean |cos| to the others.

`on = "pattern"` takes the attention maps [head, batch·query·key] in place of z. Janus II (Belanger 2026) has p = 0 in
its equation (1) and p = 3 in its code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from einops import rearrange
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from workbench.runs.records import Frozen

TINY = 1e-12  # below this a head's norm or a probability counts as zero; far under what float32 sums leave


class Fixed(Frozen):
    """λ is one number for the whole phase."""

    kind: Literal["fixed"] = Field(default="fixed", description="which controller this is")
    weight: float = Field(default=0.05, description="λ", ge=0)


class Proportional(Frozen):
    """λ rises linearly (ignition), then follows the measured redundancy σ (the P-controller of Janus II's Adaptive)."""

    kind: Literal["proportional"] = Field(default="proportional", description="which controller this is")
    n_warmup_steps: int = Field(default=1500, description="steps of the linear rise", ge=0)
    warmup_weight: float = Field(default=0.05, description="λ that the rise reaches", ge=0)
    every: int = Field(default=50, description="steps between updates after the rise", ge=1)
    gain: float = Field(default=0.5, description="λ gained per unit of σ above the target")
    target: float = Field(default=0.0035, description="σ that the controller aims at, 0 to 1", ge=0, le=1)
    maximum: float = Field(default=0.25, description="largest λ; the smallest is 0", ge=0)


class Trapezoid(Frozen):
    """λ is off, ramps up, holds and is released, at shares of the phase's steps."""

    kind: Literal["trapezoid"] = Field(default="trapezoid", description="which controller this is")
    ramp_from: float = Field(default=0.3, description="share of training at which λ leaves 0", ge=0, le=1)
    hold_from: float = Field(default=0.4, description="share at which λ reaches its peak", ge=0, le=1)
    release_from: float = Field(default=0.8, description="share at which λ starts to fall", ge=0, le=1)
    release_to: float = Field(default=1.0, description="share at which λ is 0 again", ge=0, le=1)
    peak: float = Field(default=0.15, description="λ while it holds", ge=0)

    @model_validator(mode="after")
    def _rising(self) -> Trapezoid:
        shares = (self.ramp_from, self.hold_from, self.release_from, self.release_to)
        if list(shares) != sorted(shares):
            raise ValueError(f"trapezoid: its four shares are {list(shares)}; expected them in rising order")
        return self


class Sigmoid(Frozen):
    """λ = peak·sigmoid(slope·(t − centre)), t the share of training that is done."""

    kind: Literal["sigmoid"] = Field(default="sigmoid", description="which controller this is")
    peak: float = Field(default=0.15, description="λ that is approached", ge=0)
    slope: float = Field(default=10.0, description="steepness, per unit of t")
    centre: float = Field(default=0.5, description="t of half the peak", ge=0, le=1)


Controller = Annotated[Fixed | Proportional | Trapezoid | Sigmoid, Field(discriminator="kind")]


class Vsm(Frozen):
    """Head-orthogonality pressure during a phase."""

    on: Literal["z", "pattern"] = Field(
        default="z", description="what is made orthogonal: head outputs or attention maps"
    )
    controller: Controller = Field(default_factory=Fixed, description="what sets λ over the steps")
    steering: float = Field(default=3.0, description="p of λ_ℓ = λ((ℓ+1)/L)^p; 0 presses all layers alike", ge=0)
    coherence: float = Field(default=0.0, description="weight of the mean attention entropy (nats) in the loss", ge=0)
    group_size: int | None = Field(default=None, description="heads per group that are compared; none: all heads", ge=2)

    @model_validator(mode="after")
    def _coherence_needs_maps(self) -> Vsm:
        if self.coherence and self.on != "pattern":
            raise ValueError(
                f'vsm.coherence: got {self.coherence} with on = "z"; expected on = "pattern", which has the maps'
            )
        return self

    @property
    def reads_sigma(self) -> bool:
        """Whether λ follows σ, which must then be measured also while λ is 0: else it would stay there."""
        return isinstance(self.controller, Proportional)


class _Gram(torch.autograd.Function):
    """Σ_b X_b X_bᵀ of [batch, group, head, n] in float32 or float64. By hand for one reason: autograd would form the
    gradient of a symmetric product twice, and keep a float32 copy of X besides."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        with torch.autocast(x.device.type, enabled=False):
            wide = _wide(x)
            return (wide @ wide.mT).sum(0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        with torch.autocast(x.device.type, enabled=False):
            return ((grad + grad.mT) @ _wide(x)).to(x.dtype)


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


def orthogonality(gram: Float[Tensor, "group member member"]) -> Float[Tensor, ""]:
    """‖G − I‖_F over all groups (full matrix, unsquared); gradient 0 where G = I."""
    return torch.linalg.vector_norm(_off_diagonal(gram))


def sigma(gram: Float[Tensor, "group member member"]) -> Float[Tensor, ""]:
    """Mean over heads of the mean |cos| to the other heads of their group; nan for a group of one."""
    n_groups, n_members, _ = gram.shape
    return _off_diagonal(gram).abs().sum() / (n_groups * n_members * (n_members - 1) or math.nan)


def depth_weights(n_layers: int, p: float) -> list[float]:
    """((ℓ+1)/L)^p for ℓ = 0 … L−1: the last layer has weight 1, p = 0 gives 1 to all."""
    return [((layer + 1) / n_layers) ** p for layer in range(n_layers)]


def vsm_loss(grams: Sequence[Float[Tensor, "group member member"]], p: float) -> Float[Tensor, ""]:
    """Σ_ℓ ((ℓ+1)/L)^p ‖G_ℓ − I‖_F over the layers in order; times λ it is the loss."""
    weights = depth_weights(len(grams), p)
    return torch.stack([w * orthogonality(gram) for w, gram in zip(weights, grams, strict=True)]).sum()


def attention_entropy(pattern: Float[Tensor, "batch head query key"]) -> Float[Tensor, ""]:
    """Mean over batch, head and query of −Σ p ln p, nats, in float32 or float64; differentiable also where p = 0."""
    p = _wide(pattern)
    return -(p * p.clamp_min(TINY).log()).sum(-1).mean()


def proportional_weight(cfg: Proportional, step: int, weight: float, last_sigma: float) -> float:
    """λ of `step`, from the λ and the σ of the step before (Belanger 2026, listing 1, to the last bit).

    step < n_warmup_steps: warmup_weight·(step/n_warmup_steps). After that, at every multiple of `every`:
    clamp(λ + gain·(σ − target), 0, maximum); λ as it was in between.
    """
    if step < cfg.n_warmup_steps:
        return cfg.warmup_weight * (step / cfg.n_warmup_steps)
    if step % cfg.every == 0:
        return min(max(weight + cfg.gain * (last_sigma - cfg.target), 0.0), cfg.maximum)
    return weight


def trapezoid_weight(cfg: Trapezoid, share: float) -> float:
    """λ when `share` (0 to 1) of training is done."""
    if share < cfg.ramp_from or share >= cfg.release_to:
        return 0.0
    if share < cfg.hold_from:
        return cfg.peak * (share - cfg.ramp_from) / (cfg.hold_from - cfg.ramp_from)
    if share < cfg.release_from:
        return cfg.peak
    return cfg.peak * (cfg.release_to - share) / (cfg.release_to - cfg.release_from)


def sigmoid_weight(cfg: Sigmoid, share: float) -> float:
    """λ when `share` (0 to 1) of training is done: peak·sigmoid(slope·(share − centre))."""
    # e^700 is nearly the largest float: a slope may be as steep as a step
    return cfg.peak / (1 + math.exp(min(700.0, -cfg.slope * (share - cfg.centre))))


class Pressure:
    """λ over the steps of one phase, for any controller; what it remembers fits into JSON.

    Each step: `start(step)` sets `weight`; `observe(σ)` notes the step's σ. A tensor σ is read from the device only
    when a controller needs its value.
    """

    def __init__(self, controller: Fixed | Proportional | Trapezoid | Sigmoid, n_steps: int) -> None:
        self.controller = controller
        self.n_steps = n_steps
        self.weight = 0.0
        self._sigma: Tensor | float = 0.0

    def start(self, step: int) -> float:
        """λ of `step` (0-based within the phase), kept as `weight`."""
        match self.controller:
            case Fixed() as cfg:
                self.weight = cfg.weight
            case Trapezoid() as cfg:
                self.weight = trapezoid_weight(cfg, step / self.n_steps)
            case Sigmoid() as cfg:
                self.weight = sigmoid_weight(cfg, step / self.n_steps)
            case Proportional() as cfg:
                reads = step >= cfg.n_warmup_steps and step % cfg.every == 0 and step > 0
                last = float(self._sigma) if reads else cfg.target
                self.weight = proportional_weight(cfg, step, self.weight, last)
        return self.weight

    def observe(self, value: Float[Tensor, ""] | float) -> None:
        """Note σ of the step that ends, mean over layers and micro-batches."""
        self._sigma = value.detach() if isinstance(value, Tensor) else value

    def state_dict(self) -> dict[str, float]:
        """{"weight", "sigma"}: everything that the next λ depends on."""
        return {"weight": self.weight, "sigma": float(self._sigma)}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on from `state_dict()`'s numbers. Raises ValueError if they are not those two."""
        if set(state) != {"weight", "sigma"}:
            raise ValueError(f"controller state: got {sorted(state)}; expected sigma, weight")
        self.weight, self._sigma = float(state["weight"]), float(state["sigma"])


def _cosine_groups(flat: Float[Tensor, "batch head n"], group_size: int | None) -> Float[Tensor, "group member member"]:
    n_heads = flat.shape[1]
    size = group_size or n_heads
    if n_heads % size:
        raise ValueError(f"vsm.group_size: got {size}; expected a divisor of {n_heads} heads")
    gram = _Gram.apply(rearrange(flat, "batch (group head) n -> batch group head n", head=size))
    norm = gram.diagonal(dim1=1, dim2=2).clamp_min(TINY).sqrt()
    return gram / (norm[:, :, None] * norm[:, None, :])


def _off_diagonal(gram: Float[Tensor, "group member member"]) -> Float[Tensor, "group member member"]:
    # The diagonal of G − I is zero by normalisation; what rounding leaves there must not reach the loss.
    return gram * (1 - torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device))


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
