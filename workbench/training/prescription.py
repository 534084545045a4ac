"""The interventions of one phase at work: what they watch, change, add, report and remember."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.extend import Intervention, StepContext, Terms
from workbench.models import HookedLM
from workbench.models.config import ModelConfig
from workbench.models.cross_entropy import Scalar
from workbench.training.interventions import make_interventions

Scalars = Mapping[str, Mapping[str, Scalar]]  # name of an intervention -> what its schedule gave
_LARGE = 2**63


@dataclass(frozen=True)
class Moment:
    """When a micro-batch is read."""

    step: int | Tensor
    """of the phase, from 0"""
    scalars: Scalars = field(default_factory=dict)
    generator: torch.Generator | None = None


class Prescription:
    """The interventions of a phase, in their order."""

    def __init__(self, settings: Sequence[Any], cfg: ModelConfig, n_steps: int) -> None:
        self.n_steps = n_steps
        self.interventions = {own.name: own for own in make_interventions(settings)}
        self._watched = {name: tuple(own.watch(cfg)) for name, own in self.interventions.items()}
        self._changed = {name: tuple(own.changes(cfg)) for name, own in self.interventions.items()}

    @property
    def may_draw(self) -> bool:
        """Whether an intervention changes activations, for which it may draw random numbers."""
        return any(self._changed.values())

    def check_hooks(self, model: HookedLM) -> None:
        """Raise ValueError for a hook that the model has not."""
        known = model.hook_dict
        for name in self.interventions:
            for hook in (*self._watched[name], *self._changed[name]):
                if hook not in known:
                    near = ", ".join(difflib.get_close_matches(hook, known, n=3)) or "none"
                    raise ValueError(f"{name}: got the hook {hook!r}, which the model has not; nearest: {near}")

    # --- over the steps

    def start(self, step: int) -> dict[str, Mapping[str, float]]:
        """The scalars of `step`, by intervention."""
        return {name: own.schedule(step, self.n_steps) for name, own in self.interventions.items()}

    def observe(self, telemetry: Mapping[str, Tensor]) -> None:
        """Tell each intervention the step's telemetry, `<name>.<key>` -> mean."""
        for name, own in self.interventions.items():
            own.observe(_of(telemetry, name))

    def state_dict(self) -> dict[str, Any]:
        """What each intervention remembers, by name."""
        return {name: own.state_dict() for name, own in self.interventions.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict()`. Raises ValueError for other interventions than those of this phase."""
        if set(state) != set(self.interventions):
            raise ValueError(f"interventions: got the state of {sorted(state)}; expected {sorted(self.interventions)}")
        for name, own in self.interventions.items():
            own.load_state_dict(state[name])

    # --- in a micro-batch

    @contextmanager
    def acting(self, model: HookedLM, moment: Moment) -> Iterator[Acting]:
        """While it lasts, a forward pass of `model` is watched and changed.

        Handles of our own, since TransformerLens's context visits every hook point of the model each time it is left.
        """
        acting = Acting(self, model, moment)
        with ExitStack() as stack:
            for name, own in self.interventions.items():
                context = acting.contexts[name]
                for hook in self._changed[name]:
                    stack.callback(_attach(model, hook, _changing(own, hook, context)).remove)
                if self._watched[name] and own.is_watching(context):
                    for hook in self._watched[name]:
                        seeing = _seeing(own, hook, context, acting.seen[name])
                        stack.callback(_attach(model, hook, seeing).remove)
            yield acting


class Acting:
    """One micro-batch under a prescription."""

    def __init__(self, prescription: Prescription, model: HookedLM, moment: Moment) -> None:
        self._interventions = prescription.interventions
        common = (model, moment.step, prescription.n_steps)
        self.contexts = {
            name: StepContext(*common, moment.scalars.get(name, {}), moment.generator) for name in self._interventions
        }
        self.seen: dict[str, dict[str, Tensor]] = {name: {} for name in self._interventions}

    def loss_options(self) -> dict[str, Any]:
        """Options of the next-token loss, of all interventions.

        Raises:
            ValueError: an option that two of them set.
        """
        options: dict[str, Any] = {}
        for name, own in self._interventions.items():
            of_own = own.loss_options(self.contexts[name])
            if twice := options.keys() & of_own.keys():
                raise ValueError(f"{name}: sets {', '.join(sorted(twice))}, which another sets; expected one of them")
            options |= of_own
        return options

    def terms(self) -> dict[str, Terms]:
        """What each intervention adds and reports, by name."""
        return {name: own.terms(self.seen[name], self.contexts[name]) for name, own in self._interventions.items()}


def report(terms: Mapping[str, Terms]) -> dict[str, Float[Tensor, ""]]:
    """`<name>.loss` and `<name>.<key>` of what interventions report.

    Raises:
        ValueError: a key that is the term's own.
    """
    found = {}
    for name, own in terms.items():
        if own.loss is not None:
            found[f"{name}.loss"] = own.loss.detach()
        if "loss" in own.telemetry:
            raise ValueError(f"{name}: reports 'loss', which is the name of its term; expected another key")
        found |= {f"{name}.{key}": value.detach() for key, value in own.telemetry.items()}
    return found


def seed_of(*numbers: int) -> int:
    """A seed that follows from numbers (of the training, phase, step, micro-batch, process), each of which changes it.

    >>> seed_of(0, 1) != seed_of(1, 0)
    True
    """
    return int.from_bytes(hashlib.sha256(repr(numbers).encode()).digest()[:8], "big") % _LARGE


def _of(telemetry: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    start = f"{name}."
    return {key.removeprefix(start): value for key, value in telemetry.items() if key.startswith(start)}


def _attach(model: HookedLM, hook: str, see: Any) -> Any:
    return model.hook_dict[hook].register_forward_hook(see)


def _seeing(own: Intervention, hook: str, context: StepContext, seen: dict[str, Tensor]) -> Any:
    def see(point: object, inputs: object, activation: Tensor) -> None:
        if hook in seen:
            raise ValueError(f"{own.name}: the hook {hook!r} fires twice in a forward pass; expected once")
        seen[hook] = own.reduce(hook, activation, context)

    return see


def _changing(own: Intervention, hook: str, context: StepContext) -> Any:
    return lambda point, inputs, activation: own.change(hook, activation, context)
