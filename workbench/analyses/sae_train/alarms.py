"""Alarms of a training: what its curves show that its end result would only show too late."""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sae.config import TrainConfig

# fewer tokens say little of a feature, which may fire on one in as many, and less of where a training is going
LEAST_TOKENS = 10_000
SPIKE, N_BEFORE, LEAST_BEFORE = 3.0, 10, 5  # times the median of so many logged losses, once there are so many
FEW_ACTIVE, ALL_ACTIVE = 0.1, 0.99  # features per token; share of all features
SAID = {
    "dead": "{value:.0%} of features are dead; expected a lower l1, or more resampling (n_resamples)",
    "loss_spike": "the loss is {value:.4g}, more than three times its running median; expected a lower lr",
    "few_active": "{value:.3g} features per token are active; expected a lower l1",
    "all_active": "{value:.0f} features per token are active, nearly all; expected a higher l1, or a smaller k",
}


class Alarm(NamedTuple):
    """The first logged step at which one SAE showed a fault."""

    step: int
    sae: int
    kind: str
    """dead, loss_spike, few_active or all_active"""
    value: float
    threshold: float


def find_alarms(
    points: Sequence[Mapping[str, Any]],
    config: TrainConfig,
    d_sae: int,
    dead_share: float,
    batch_size: int,
    start: int = 0,
) -> list[Alarm]:
    """The alarms of a training's logged points {step, loss, l0, dead_fraction: one number an SAE} from the start-th on,
    the first of each kind and SAE, in the order of steps.

        dead          dead_fraction > dead_share, once the window of the count has passed; of windows of LEAST_TOKENS
                      or more
        loss_spike    loss > 3 · median of the ten points before (of at least five)
        few_active    l0 < .1
        all_active    l0 ≥ .99 d_sae, once the penalty has risen to its full size, and after LEAST_TOKENS
    """
    found: dict[tuple[str, int], Alarm] = {}
    for i in range(start, len(points)):
        point, before = points[i], points[max(0, i - N_BEFORE) : i]
        step = point["step"]
        for sae, (loss, l0, dead) in enumerate(zip(point["loss"], point["l0"], point["dead_fraction"], strict=True)):
            shown: list[tuple[str, bool, float, float]] = [("few_active", l0 < FEW_ACTIVE, l0, FEW_ACTIVE)]
            if step > config.l1_warm_up_steps and step * batch_size >= LEAST_TOKENS:
                shown.append(("all_active", l0 >= ALL_ACTIVE * d_sae, l0, ALL_ACTIVE * d_sae))
            if step >= config.dead_window and config.dead_window * batch_size >= LEAST_TOKENS:
                shown.append(("dead", dead > dead_share, dead, dead_share))
            if len(before) >= LEAST_BEFORE:
                limit = SPIKE * statistics.median(own["loss"][sae] for own in before)
                shown.append(("loss_spike", loss > limit, loss, limit))
            for kind, is_on, value, threshold in shown:
                if is_on:
                    found.setdefault((kind, sae), Alarm(step, sae, kind, value, threshold))
    return sorted(found.values(), key=lambda alarm: (alarm.step, alarm.kind, alarm.sae))


def warn(alarms: Sequence[Alarm], places: Sequence[str], where: str) -> None:
    """One warning for each kind among the alarms, with how many SAEs show it and the first of them.

    places: what each SAE is called. where: what begins the sentence.
    """
    for kind in dict.fromkeys(alarm.kind for alarm in alarms):
        own = [alarm for alarm in alarms if alarm.kind == kind]
        said = SAID[kind].format(value=own[0].value)
        others = f" (and {len(own) - 1} more SAEs)" if len(own) > 1 else ""
        warnings.warn(f"{where}: step {own[0].step}, {places[own[0].sae]}{others}: {said}", stacklevel=2)
