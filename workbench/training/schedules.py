"""Learning-rate schedules: pure functions from a step to the multiplier of the base rate."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from workbench.runs.records import Frozen


class Schedule(Frozen):
    """How the learning rate moves over a phase, as a multiple of the optimizer's rates."""

    kind: Literal["constant", "cosine", "wsd"] = Field(default="constant", description="shape after the warm-up")
    n_warmup_steps: int = Field(default=0, description="steps of linear rise from 0 to 1", ge=0)
    floor: float = Field(default=0.0, description="multiplier at the end (cosine, wsd)", ge=0, le=1)
    stable_until: float = Field(default=0.9, description="share of the steps after which wsd decays", gt=0, le=1)
    n_steps: int | None = Field(default=None, description="where the shape ends; none: with the phase", ge=1)


def constant(step: int, *, n_warmup_steps: int = 0) -> float:
    """Multiplier of step 0, 1, …: a linear rise over n_warmup_steps, then 1."""
    return min(1.0, (step + 1) / n_warmup_steps) if n_warmup_steps else 1.0


def cosine(step: int, n_steps: int, *, n_warmup_steps: int = 0, floor: float = 0.0) -> float:
    """Multiplier of `step`: linear warm-up, then floor + (1 − floor)·(1 + cos πu)/2 with u from 0 to 1 at n_steps.

    Steps from n_steps on stay at the floor (Loshchilov & Hutter 2017, without restarts).
    """
    if step < n_warmup_steps:
        return (step + 1) / n_warmup_steps
    u = min(1.0, (step - n_warmup_steps) / max(1, n_steps - n_warmup_steps))
    return floor + (1 - floor) * (1 + math.cos(math.pi * u)) / 2


def wsd(step: int, n_steps: int, *, n_warmup_steps: int = 0, stable_until: float = 0.9, floor: float = 0.0) -> float:
    """Multiplier of `step`: linear warm-up, stable at 1, then floor + (1 − floor)·(1 − √u).

    The decay starts at stable_until·n_steps and u reaches 1 at n_steps (Hägele et al. 2024).
    """
    if step < n_warmup_steps:
        return (step + 1) / n_warmup_steps
    start = stable_until * n_steps
    if step < start:
        return 1.0
    u = min(1.0, (step - start) / max(1e-9, n_steps - start))
    return floor + (1 - floor) * (1 - math.sqrt(u))


def multiplier(schedule: Schedule, step: int, n_steps: int) -> float:
    """Multiplier of `step` (0-based within its phase) under `schedule`, for a phase of n_steps."""
    n_steps = schedule.n_steps or n_steps
    match schedule.kind:
        case "constant":
            return constant(step, n_warmup_steps=schedule.n_warmup_steps)
        case "cosine":
            return cosine(step, n_steps, n_warmup_steps=schedule.n_warmup_steps, floor=schedule.floor)
        case "wsd":
            return wsd(
                step,
                n_steps,
                n_warmup_steps=schedule.n_warmup_steps,
                stable_until=schedule.stable_until,
                floor=schedule.floor,
            )


def check_schedule(schedule: Schedule, n_steps: int, where: str) -> None:
    """Raise ValueError, naming `where`, if the schedule does not fit into a phase of n_steps."""
    if schedule.n_steps is not None and schedule.n_steps > n_steps:
        raise ValueError(f"{where}.n_steps: got {schedule.n_steps}; expected at most the phase's {n_steps} steps")
    length = schedule.n_steps or n_steps
    if schedule.n_warmup_steps > length:
        raise ValueError(
            f"{where}.n_warmup_steps: got {schedule.n_warmup_steps}; expected at most {length} steps of training"
        )
    if schedule.kind == "wsd" and schedule.n_warmup_steps > schedule.stable_until * length:
        raise ValueError(
            f"{where}.n_warmup_steps: got {schedule.n_warmup_steps}; expected it to end before the decay starts, "
            f"at step {schedule.stable_until * length:g}"
        )
