"""VSM: a loss that presses the heads of a layer towards orthogonality, and what sets its weight λ over training.

With V the heads' outputs flattened to [head, batch·pos·d_head] and L2-normalised by row, G = V Vᵀ and

    loss = Σ_ℓ λ_ℓ ‖G_ℓ − I‖_F,    λ_ℓ = λ ((ℓ+1)/L)^p,    σ = mean over heads of the mean |cos| to the others.

`on = "pattern"` takes the attention maps [head, batch·query·key] in place of z. Janus II (Belanger 2026) has p = 0 in
its equation (1) and p = 3 in its code.

`on = "residual"` takes what heads write, r_h = z_h W_O[h] of [batch·pos·d_model]. A rotation of a head's basis changes
z and W_O[h] and not what is written, so that this pressure, unlike that on z, cannot be met by turning bases. No
r is formed (`head_grams`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from workbench.extend import Intervention, Settings, StepContext, Terms
from workbench.models.cross_entropy import weighs
from workbench.runs.records import Frozen
from workbench.training.head_grams import head_gram, orthogonality, pattern_gram, residual_gram, sigma


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


class Vsm(Intervention):
    """Vector Space Homeostasis: presses the heads of each layer towards orthogonality (Belanger 2026)."""

    class Settings(Settings):
        """Which heads are compared in what, and how strongly they are pressed."""

        on: Literal["z", "pattern", "residual"] = Field(
            default="z",
            description="what is made orthogonal: head outputs, attention maps, or what heads write into the residual "
            "stream",
        )
        controller: Controller = Field(default_factory=Fixed, description="what sets λ over the steps")
        steering: float = Field(default=3.0, description="p of λ_ℓ = λ((ℓ+1)/L)^p; 0 presses all layers alike", ge=0)
        group_size: int | None = Field(
            default=None, description="heads per group that are compared; none: all heads", ge=2
        )

    def __init__(self, settings: Any) -> None:
        super().__init__(settings)
        self.weight = 0.0
        self._sigma: Tensor | float = 0.0

    def check(self, cfg: Any) -> None:
        """Heads to compare, in groups of one size."""
        if cfg.n_heads < 2:
            raise ValueError("compares heads, and model.n_heads = 1; expected 2 or more, or no vsm")
        size = self.settings.group_size
        if size and cfg.n_heads % size:
            raise ValueError(f"group_size: got {size}; expected a divisor of {cfg.n_heads} heads")
        if self.settings.on == "residual" and not cfg.writes_linearly:
            raise ValueError('on: got "residual", and a norm stands behind attention; expected "z" or "pattern"')

    def watch(self, cfg: Any) -> list[str]:
        """z, or the attention maps, of every layer."""
        hook = "pattern" if self.settings.on == "pattern" else "z"
        return [f"blocks.{layer}.attn.hook_{hook}" for layer in range(cfg.n_layers)]

    def is_watching(self, context: StepContext) -> bool:
        """Attention maps are formed only while they weigh something or a controller reads their σ, which it must also
        while λ is 0: else it would stay there."""
        follows = isinstance(self.settings.controller, Proportional)
        return self.settings.on != "pattern" or follows or weighs(context.scalars["lambda"])

    def reduce(self, hook: str, activation: Tensor, context: StepContext) -> Tensor:
        """The layer's cosine matrices G."""
        size = self.settings.group_size
        if self.settings.on == "z":
            return head_gram(activation, size)
        if self.settings.on == "pattern":
            return pattern_gram(activation, size)
        block = context.model.blocks[int(hook.split(".")[1])]
        return residual_gram(activation, block.attn.W_O, size)

    def terms(self, seen: Mapping[str, Tensor], context: StepContext) -> Terms:
        """Σ_ℓ λ_ℓ ‖G_ℓ − I‖_F; reports σ, the mean over layers."""
        if not seen:
            return Terms()
        grams = list(seen.values())
        loss = context.scalars["lambda"] * vsm_loss(grams, self.settings.steering)
        with torch.no_grad():
            mean_sigma = torch.stack([sigma(gram) for gram in grams]).mean()
        return Terms(loss, {"sigma": mean_sigma})

    def schedule(self, step: int, n_steps: int) -> dict[str, float]:
        """λ of `step` (0-based within the phase). A σ on a device is read only when the controller needs its value."""
        match self.settings.controller:
            case Fixed() as cfg:
                self.weight = cfg.weight
            case Trapezoid() as cfg:
                self.weight = trapezoid_weight(cfg, step / n_steps)
            case Sigmoid() as cfg:
                self.weight = sigmoid_weight(cfg, step / n_steps)
            case Proportional() as cfg:
                reads = step >= cfg.n_warmup_steps and step % cfg.every == 0 and step > 0
                last = float(self._sigma) if reads else cfg.target
                self.weight = proportional_weight(cfg, step, self.weight, last)
        return {"lambda": self.weight}

    def observe(self, telemetry: Mapping[str, Tensor]) -> None:
        """Note σ of the step that ends, where it was measured."""
        self._sigma = telemetry.get("sigma", self._sigma)

    def state_dict(self) -> dict[str, float]:
        """{"weight", "sigma"}: everything that the next λ depends on."""
        return {"weight": self.weight, "sigma": float(self._sigma)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict()`'s numbers. Raises ValueError if they are not those two."""
        if set(state) != {"weight", "sigma"}:
            raise ValueError(f"controller state: got {sorted(state)}; expected sigma, weight")
        self.weight, self._sigma = float(state["weight"]), float(state["sigma"])


def depth_weights(n_layers: int, p: float) -> list[float]:
    """((ℓ+1)/L)^p for ℓ = 0 … L−1: the last layer has weight 1, p = 0 gives 1 to all."""
    return [((layer + 1) / n_layers) ** p for layer in range(n_layers)]


def vsm_loss(grams: Sequence[Float[Tensor, "group member member"]], p: float) -> Float[Tensor, ""]:
    """Σ_ℓ ((ℓ+1)/L)^p ‖G_ℓ − I‖_F over the layers in order; times λ it is the loss."""
    weights = depth_weights(len(grams), p)
    return torch.stack([w * orthogonality(gram) for w, gram in zip(weights, grams, strict=True)]).sum()


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
