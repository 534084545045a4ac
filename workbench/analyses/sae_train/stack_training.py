"""One stack while it trains: its trainer, the scales of what it reads and reconstructs, its curves and its alarms."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sae.config import SAESource, StackInfo
from sae.stack import StackedSAE
from sae.train import StepStats, Trainer
from workbench.analyses.sae_train.alarms import Alarm, find_alarms, warn
from workbench.analyses.sae_train.plan import RESAMPLE, START, Plan, train_config
from workbench.analyses.sae_train.settings import HeadSaeSettings


class StackTraining:
    """The training of one stack, step by step, whatever else is trained beside it."""

    def __init__(
        self,
        plan: Plan,
        settings: HeadSaeSettings,
        n_steps: int,
        *first: Float[Tensor, "slot tokens width"],
    ) -> None:
        """first: the tokens by which inputs are scaled, and of transcoders what is reconstructed from them, which has a
        scale of its own and the start of b_dec, its mean."""
        is_scaled = settings.normalize == "mean_norm"
        scales = [(input_scale(own) if is_scaled else torch.ones(len(own), 1, 1)).to(own.device) for own in first]
        self.plan = plan
        self.points: list[dict[str, Any]] = []
        """the logged steps: step, and loss, l0 and dead_fraction of each SAE"""
        self._settings, self._scales = settings, scales
        self.config = train_config(settings, n_steps, len(plan.slot_index))
        x, *outs = first
        mean = outs[0].mean(dim=1, keepdim=True) * scales[1] if outs else None
        sae = StackedSAE(plan.config, plan.generators(START), data=mean, input_index=plan.slot_index, device=x.device)
        self._trainer = Trainer(
            sae, self.config, plan.l1, plan.generators(RESAMPLE), input_index=plan.slot_index
        )  # fmt: skip
        self._warned: set[str] = set()

    @property
    def n_steps_done(self) -> int:
        """Steps that are done."""
        return self._trainer.n_steps_done

    def step(self, *batch: Float[Tensor, "slot tokens width"], is_logged: bool) -> None:
        """Train on a batch, of transcoders on what is read and what is reconstructed; a logged step is read from the
        device, and said of it is what gives an alarm.

        Raises ValueError for a loss that is not finite: hook, SAE and step are named.
        """
        try:
            stats = self._trainer.step(*(own * scale for own, scale in zip(batch, self._scales, strict=True)))
        except ValueError as error:
            raise ValueError(f"sae_train: {self.plan.name or self.plan.kind.hook}: {error}") from None
        if is_logged:
            self.points.append(_point(stats, self.plan.config.d_sae))
            self._warn()

    def alarms(self, start: int = 0) -> list[Alarm]:
        """The alarms of the points so far, from the start-th on."""
        own = self._settings
        return find_alarms(self.points, self.config, self.plan.config.d_sae, own.dead_alarm, own.batch_size, start)

    def _warn(self) -> None:
        """Say each kind of alarm of the last point once."""
        new = [alarm for alarm in self.alarms(len(self.points) - 1) if alarm.kind not in self._warned]
        self._warned |= {alarm.kind for alarm in new}
        places = [_place(source.layer, source.head, l1) for source, l1, _ in self.plan.sources]
        warn(new, places, f"sae_train: {self.plan.name}" if self.plan.name else "sae_train")

    def state(self) -> dict[str, Tensor]:
        """Tensors from which `load` goes on."""
        return self._trainer.state_dict()

    def load(self, tensors: dict[str, Tensor], points: list[dict[str, Any]]) -> None:
        """Go on from a state and the points logged by then. Raises ValueError as `Trainer.load_state_dict`."""
        self._trainer.load_state_dict(tensors)
        self.points = points
        self._warned = {alarm.kind for alarm in self.alarms()}

    def finish(self, **about: Any) -> StackedSAE:
        """The trained stack, which reads the hook's activations as they are. about: fields of `StackInfo`."""
        plan, index = self.plan, self.plan.slot_index
        stack = fold_scale(self._trainer.sae, *(scale[index, 0, 0] for scale in self._scales))
        outs = [None] * len(index) if plan.outs is None else [plan.outs[i].hook_name for i in index]
        sources = [
            SAESource(hook_name=slot.hook_name, hook_name_out=out, layer=slot.layer, head=slot.head, l1=l1, seed=seed)
            for (slot, l1, seed), out in zip(plan.sources, outs, strict=True)
        ]
        stack.info = StackInfo(sources=tuple(sources), **about)
        return stack


def input_scale(x: Float[Tensor, "slot tokens d_in"]) -> Float[Tensor, "slot 1 1"]:
    """√d_in / mean‖x‖ of every slot; 1 where all of it is zero."""
    mean_norm = x.norm(dim=-1).mean(dim=1)
    return torch.where(mean_norm > 0, x.shape[2] ** 0.5 / mean_norm, 1.0).view(-1, 1, 1)


def fold_scale(
    sae: StackedSAE, scale: Float[Tensor, "n_saes"], scale_out: Float[Tensor, "n_saes"] | None = None
) -> StackedSAE:
    """The stack that does on x what `sae` does on scale·x, its reconstruction over scale, or scale_out; the activations
    are the same or, where decoder rows stay at norm 1, themselves over it."""
    with torch.no_grad():
        folded = sae.architecture.fold_scale(sae.config, sae.tensors, scale, scale_out)
    return StackedSAE.from_tensors(sae.config, folded, sae.info)


def _place(layer: int, head: int | None, l1: float) -> str:
    return f"layer {layer}{'' if head is None else f', head {head}'}, l1 {l1:g}"


def _point(stats: StepStats, d_sae: int) -> dict[str, Any]:
    return {
        "step": stats.step,
        "loss": stats.loss.tolist(),
        "l0": stats.l0.tolist(),
        "dead_fraction": (stats.n_dead / d_sae).tolist(),
    }
