"""Training of a stack: one `Trainer` holds the optimizer, the counters and the random streams; `step` takes a batch."""

from __future__ import annotations

import types
import warnings
from collections.abc import Iterable, Sequence
from numbers import Real
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import ArrayLike
from torch import Tensor

from sae.architecture import Architecture
from sae.config import TrainConfig, as_list
from sae.gradients import loss_and_gradients
from sae.resample import resample_dead
from sae.stack import StackedSAE, check_input_index, spawn_generators

_ADAM_EPS = 1e-8


class StepStats(NamedTuple):
    """What one step did; tensors have one entry per SAE and are of the batch, before the update."""

    step: int
    """Completed steps."""
    loss: Float[Tensor, " n_saes"]
    """squared_error + l1 · sparsity + auxiliary."""
    squared_error: Float[Tensor, " n_saes"]
    """Squared error summed over d_out, mean over tokens."""
    sparsity: Float[Tensor, " n_saes"]
    """What l1 multiplies: Σ acts·‖W_dec row‖, mean over tokens; jumprelu: l0."""
    l0: Float[Tensor, " n_saes"]
    """Active features per token."""
    grad_norm: Float[Tensor, " n_saes"]
    """Norm of the gradient over all parameters of the SAE, before the clip."""
    n_dead: Int[Tensor, " n_saes"]
    """Features that fired on no token of the last dead_window steps, before resampling."""
    n_resampled: Int[Tensor, " n_saes"]
    """Features resampled after this step."""
    l1: Float[Tensor, " n_saes"]
    """Sparsity coefficient of this step."""
    lr: float
    """Learning rate of this step."""
    is_compiled: bool
    """Whether the arithmetic ran compiled; False after a fallback, of which a warning tells the reason."""
    auxiliary: Float[Tensor, " n_saes"]
    """Other terms of the loss, mean over tokens; 0 where the architecture has none."""


def lr_at(config: TrainConfig, step: int) -> float:
    """Learning rate of step `step` (from 0): lr · min(1, (step+1)/warm-up) · min(1, (n_steps−step)/decay)."""
    rise = (step + 1) / config.lr_warm_up_steps if config.lr_warm_up_steps else 1.0
    fall = (config.n_steps - step) / config.lr_decay_steps if config.lr_decay_steps else 1.0
    return config.lr * min(1.0, rise) * min(1.0, fall)


def l1_share_at(config: TrainConfig, step: int) -> float:
    """Share of the sparsity coefficient in force at step `step` (from 0): min(1, step/warm-up)."""
    return min(1.0, step / config.l1_warm_up_steps) if config.l1_warm_up_steps else 1.0


class Trainer:
    """Trains a `StackedSAE` in place, one batch a `step`.

    Every SAE is trained as if alone: its own loss, sparsity coefficient, gradient clip, dead features and random
    stream. A step is: gradients; with a unit-norm decoder their part along each decoder row removed; clip per SAE;
    AdamW; rows back to norm 1; what the architecture keeps by itself, such as thresholds; after the steps of
    `resample_steps`, dead features resampled.
    """

    def __init__(
        self,
        sae: StackedSAE,
        config: TrainConfig,
        l1: Float[Tensor, " n_saes"] | Sequence[float] | ArrayLike,
        generator: torch.Generator | Sequence[torch.Generator],
        *,
        input_index: Int[Tensor, " n_saes"] | Sequence[int] | int | None = None,
    ) -> None:
        """A trainer at step 0.

        l1: sparsity coefficient of every SAE (jumprelu: of the number of active features), ≥ 0. generator: one, spawned
        into a stream per SAE, or one per SAE; only resampling draws. input_index: slot of every SAE in a batch.

        Raises ValueError for an l1 or generators that do not fit the stack, or parameters in float16, which the sums
        over a batch overflow.
        """
        n_saes = sae.config.n_saes
        if sae.dtype == torch.float16:
            raise ValueError("Trainer: the parameters are float16; expected float32, float64 or bfloat16")
        coefficients = torch.as_tensor(as_list("Trainer: l1", l1), dtype=torch.float64)
        if _is_number(l1):
            coefficients = coefficients.expand(n_saes)
        if coefficients.shape != (n_saes,) or not bool((coefficients.isfinite() & (coefficients >= 0)).all()):
            raise ValueError(f"Trainer: l1 is {coefficients.tolist()}; expected {n_saes} finite numbers ≥ 0")
        if isinstance(generator, torch.Generator):
            generator = spawn_generators(generator, n_saes)
        if len(generator) != n_saes:
            raise ValueError(
                f"Trainer: got {len(generator)} generators; expected one, or one for each of {n_saes} SAEs"
            )
        self.sae = sae
        self.config = config
        self.n_steps_done = 0
        self._l1 = coefficients.to(device=sae.W_dec.device, dtype=sae.dtype)
        self._input_index = None if input_index is None else as_list("input_index", input_index)
        self._generators = list(generator)
        self._parameters = dict(sae.named_parameters())
        self._optimizer = torch.optim.AdamW(
            list(self._parameters.values()),
            lr=config.lr,
            betas=config.betas,
            eps=_ADAM_EPS,
            weight_decay=config.weight_decay,
            fused=True,
        )
        self._steps_since_fired = torch.zeros(n_saes, sae.config.d_sae, dtype=torch.int64, device=sae.W_dec.device)
        self._has_dead = False
        self._has_warned_dead = torch.zeros(n_saes, dtype=torch.bool)
        self._block = _Block(sae.architecture, config.use_compile)

    def step(
        self, x: Float[Tensor, "n_inputs tokens d_in"], y: Float[Tensor, "n_inputs tokens d_out"] | None = None
    ) -> StepStats:
        """Update every SAE on one batch; returns the batch's losses and counts. y is what transcoders reconstruct, of
        the same slots and tokens as x.

        Raises ValueError after the last step of the config, for an x or y that does not fit, and, before anything is
        changed, for a loss that is not finite: the SAE, the step and the count of bad values in its input are named.
        """
        step = self.n_steps_done
        if step >= self.config.n_steps:
            raise ValueError(f"Trainer.step: {step} steps are done; expected < n_steps = {self.config.n_steps}")
        l1 = self._l1 * l1_share_at(self.config, step)
        lr = lr_at(self.config, step)
        needs_dead = self._has_dead and self.sae.architecture.uses_dead
        result = loss_and_gradients(
            self.sae, x, l1, self._input_index, use_bf16=self.config.use_bf16, block_sums=self._block,
            progress=step / self.config.n_steps, dead=self._dead() if needs_dead else None, y=y,
        )  # fmt: skip
        loss = result.squared_error + l1 * result.sparsity + result.auxiliary
        steps_since_fired = torch.where(result.n_active > 0, 0, self._steps_since_fired + 1)
        dead = steps_since_fired >= self.config.dead_window
        # read together: each read waits for the device
        is_bad, is_all_dead, has_dead = torch.stack([~loss.isfinite(), dead.all(dim=-1), dead.any(dim=-1)]).cpu()
        if bool(is_bad.any()):
            raise ValueError(self._describe_bad_loss(loss, x, y))
        grad_norm = self._update(result.gradients, lr)
        with torch.no_grad():
            self.sae.architecture.after_step(self.sae.config, self.sae.tensors, result, self.config)
        self._steps_since_fired.copy_(steps_since_fired)
        self.n_steps_done += 1
        self._warn_all_dead(is_all_dead)
        n_resampled = torch.zeros_like(dead.sum(dim=-1))
        if self.n_steps_done in self.config.resample_steps:
            n_resampled = self._resample(dead, x, y)
            has_dead = self._dead().any()
        self._has_dead = bool(has_dead.any())
        return StepStats(
            step=self.n_steps_done,
            loss=loss,
            squared_error=result.squared_error,
            sparsity=result.sparsity,
            l0=result.n_active.sum(dim=-1) / x.shape[1],
            grad_norm=grad_norm,
            n_dead=dead.sum(dim=-1),
            n_resampled=n_resampled,
            l1=l1,
            lr=lr,
            is_compiled=self._block.is_compiled,
            auxiliary=result.auxiliary,
        )

    def state_dict(self) -> dict[str, Tensor]:
        """All that a resumed run needs beside the configs and the data's position, as a flat dict of tensors.

        The SAEs' tensors, Adam's moments, counters and the states of the random streams; copies, fit for safetensors.
        A trainer built alike that loads it goes on bit for bit (on one device, with one number of threads).
        """
        return {name: tensor.detach().clone() for name, tensor in self._state().items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on where `state_dict` stopped. Raises ValueError naming a tensor that is missing, unknown or of another
        shape or dtype, and for an l1 that is not this trainer's."""
        own = self._state()
        if set(state) != set(own):
            odd = sorted(set(state) ^ set(own))
            raise ValueError(f"Trainer.load_state_dict: tensors {odd} are missing or unknown; expected {sorted(own)}")
        for name, tensor in own.items():
            got = state[name]
            if got.shape != tensor.shape or got.dtype != tensor.dtype:
                raise ValueError(
                    f"Trainer.load_state_dict: {name} is {got.dtype} {tuple(got.shape)}; "
                    f"expected {tensor.dtype} {tuple(tensor.shape)}"
                )
        if not torch.equal(state["l1"].to(self._l1.device), self._l1):
            raise ValueError(f"Trainer.load_state_dict: l1 is {state['l1'].tolist()}; expected {self._l1.tolist()}")
        with torch.no_grad():
            for name, tensor in own.items():
                if not name.startswith("generator.") and name != "n_steps_done":
                    tensor.copy_(state[name])
        for k, generator in enumerate(self._generators):
            generator.set_state(state[f"generator.{k}"].cpu())
        self.n_steps_done = int(state["n_steps_done"])
        self._has_dead = bool(self._dead().any())
        for parameter in self._parameters.values():
            self._moments(parameter)["step"].fill_(self.n_steps_done)

    def _state(self) -> dict[str, Tensor]:
        state = {f"sae.{name}": tensor for name, tensor in self.sae.state_dict().items()}
        for name, parameter in self._parameters.items():
            moments = self._moments(parameter)
            state[f"adam.exp_avg.{name}"] = moments["exp_avg"]
            state[f"adam.exp_avg_sq.{name}"] = moments["exp_avg_sq"]
        state["steps_since_fired"] = self._steps_since_fired
        state["has_warned_dead"] = self._has_warned_dead
        state["l1"] = self._l1
        state["n_steps_done"] = torch.tensor(self.n_steps_done)
        for k, generator in enumerate(self._generators):
            state[f"generator.{k}"] = generator.get_state()
        return state

    def _moments(self, parameter: Tensor) -> dict[str, Any]:
        """Adam's state of a parameter, made before the first step as the optimizer itself would make it."""
        state = self._optimizer.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        return state

    @torch.no_grad()
    def _update(self, gradients: dict[str, Tensor], lr: float) -> Tensor:
        W_dec = self.sae.W_dec
        if self.sae.config.use_unit_norm_decoder:
            along = (gradients["W_dec"] * W_dec).sum(dim=-1, keepdim=True)
            gradients["W_dec"] = gradients["W_dec"] - along * W_dec
        squares = [gradient.flatten(start_dim=1).square().sum(dim=1) for gradient in gradients.values()]
        grad_norm = torch.stack(squares).sum(dim=0).sqrt()
        if self.config.grad_clip is not None:
            share = (self.config.grad_clip / (grad_norm + 1e-6)).clamp_max(1.0)
            for gradient in gradients.values():
                gradient.mul_(share.view(-1, *[1] * (gradient.ndim - 1)))
        for name, parameter in self._parameters.items():
            parameter.grad = gradients[name]
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        if self.sae.config.use_unit_norm_decoder:
            W_dec.div_(W_dec.norm(dim=-1, keepdim=True))
        return grad_norm

    def _dead(self) -> Bool[Tensor, "n_saes d_sae"]:
        return self._steps_since_fired >= self.config.dead_window

    def _warn_all_dead(self, is_all_dead: Bool[Tensor, " n_saes"]) -> None:
        is_new = is_all_dead & ~self._has_warned_dead
        if bool(is_new.any()):
            self._has_warned_dead |= is_new
            which = is_new.nonzero().flatten().tolist()
            warnings.warn(
                f"Trainer.step: all features of SAE {which} are dead at step {self.n_steps_done}, "
                f"l1 {self._l1[which].tolist()}; expected a smaller l1 or resample_steps",
                stacklevel=3,
            )

    @torch.no_grad()
    def _resample(self, dead: Tensor, x: Tensor, y: Tensor | None) -> Tensor:
        slots = check_input_index(self._input_index, self.sae.config.n_saes, x.shape[0])
        resampled = resample_dead(self.sae, dead, x, slots, self._generators, self.config.resample_scale, y)
        self._steps_since_fired.masked_fill_(resampled, 0)
        specs = self.sae.architecture.tensors(self.sae.config)
        for name, parameter in self._parameters.items():
            axis = specs[name].feature_axis
            if axis is not None:
                sizes = [len(resampled), *[1] * (parameter.ndim - 1)]
                sizes[axis + 1] = -1
                mask = resampled.view(sizes)
                for key in ("exp_avg", "exp_avg_sq"):
                    self._moments(parameter)[key].masked_fill_(mask, 0)
        return resampled.sum(dim=-1)

    def _describe_bad_loss(self, loss: Tensor, x: Tensor, y: Tensor | None) -> str:
        k = int((~loss.isfinite()).nonzero()[0])
        slot = check_input_index(self._input_index, self.sae.config.n_saes, x.shape[0])[k]
        n_bad = sum(int((~own[slot].isfinite()).sum()) for own in (x, y) if own is not None)
        remedy = "expected finite activations" if n_bad else "the training diverged: expected a smaller lr"
        return (
            f"Trainer.step: loss of SAE {k} is {float(loss[k])} at step {self.n_steps_done}; "
            f"its input, slot {slot}, has {n_bad} nan or inf; {remedy}"
        )


def train_stack(
    trainer: Trainer,
    batches: Iterable[
        Float[Tensor, "n_inputs tokens d_in"]
        | tuple[Float[Tensor, "n_inputs tokens d_in"], Float[Tensor, "n_inputs tokens d_out"]]
    ],
) -> list[StepStats]:
    """Stats of every step until the config's last one; transcoders' batches are pairs (x, y). Raises ValueError if the
    batches end before it."""
    stats: list[StepStats] = []
    if trainer.n_steps_done >= trainer.config.n_steps:
        return stats
    for batch in batches:
        stats.append(trainer.step(*batch) if isinstance(batch, tuple) else trainer.step(batch))
        if trainer.n_steps_done == trainer.config.n_steps:
            return stats
    raise ValueError(f"train_stack: batches ended after step {trainer.n_steps_done}; expected {trainer.config.n_steps}")


class _Block:
    """The block's arithmetic, compiled if it can be; after a failure plain, having warned of it."""

    def __init__(self, architecture: Architecture, use_compile: bool) -> None:
        self.is_compiled = use_compile
        self._plain = architecture.sum_block
        if use_compile:
            # a copy of the code object: recompilations are counted by code object, and one trainer's shapes
            # must not use up another's
            function = self._plain.__func__
            code, names = function.__code__.replace(), function.__globals__
            copy = types.FunctionType(code, names, function.__name__, None, function.__closure__)
            method = types.MethodType(copy, architecture)
            self._compiled = torch.compile(method, dynamic=False, fullgraph=True)

    def __call__(self, *args: Any) -> Any:
        if self.is_compiled:
            try:
                return self._compiled(*args)
            # the compiler, its C++ tool chain and the disk it caches on each fail in types of their own; whatever is
            # wrong with the tensors themselves is raised again by the plain form below
            except Exception as error:
                self.is_compiled = False
                reason = str(error).strip().split("\n")[0]
                warnings.warn(
                    f"torch.compile failed ({type(error).__name__}: {reason}); training goes on uncompiled",
                    stacklevel=2,
                )
        return self._plain(*args)


def _is_number(value: object) -> bool:
    return isinstance(value, Real)  # NumPy's scalars too
