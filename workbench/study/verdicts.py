"""The verdict that an effect over seeds gives a published one.

With e the effect (see `effects`) and p the published effect on the same scale:

    not defined        the measure of the published figure was never published: no study measures it
    not measured       the tables do not have the measure, or it is undefined
    full size only     it is measured, but the published figure is an absolute one of one model, and the study's is
                       not that one: another recipe, or other settings, text or length of training
    not enough seeds   it is measured, but has no interval: fewer than three seeds and none of its own
    not seen           the interval contains 0, or, where known, is not wholly beyond what seeds of one model give
    reversed           the interval lies on the other side of 0 than p
    reproduced         the interval lies on p's side, over three or more seeds, and |e| ≥ |p|/2
    same direction     the interval lies on p's side, otherwise; so always of one or two seeds, whose interval is the
                       measure's own: it is over the text that was read, and another seed may turn the effect

A claim published without a figure has only a direction: reproduced then requires no size. A claim of likeness (two
things agree: p is 0 or near it) comes with a margin, which is chosen here: reproduced if the interval lies within ±
margin, reversed if it lies wholly outside, not seen if it crosses an edge; same direction, instead of reproduced, if
the interval is the measure's own. Bounds belong to their interval: one that ends at 0 contains 0. |e| equal to |p|/2
is enough. Seeds that agree to the last digit give an interval of no width; equal models therefore give e = 0, which
is not seen.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

from workbench.study.effects import Effect

TIE = 1e-9  # relative; |e| this close to half the published effect is half of it

Verdict = Literal[
    "reproduced", "same direction", "not seen", "reversed", "not measured", "full size only", "not enough seeds",
    "not defined",
]  # fmt: skip
VERDICTS: tuple[str, ...] = get_args(Verdict)


def judge(
    effect: Effect, published: float | None, direction: int, margin: float | None = None, chance: float | None = None
) -> Verdict:
    """The verdict by the rules at the head of this module.

    Args:
        published: the published effect on the effect's working scale; None where only its direction was published.
        direction: 1 or −1, the side of 0 on which the published effect lies; not read with a margin.
        margin: of a claim of likeness, on the working scale; None for a claim of a change.
        chance: the effect between seeds of one and the same model, on the working scale, for a measure that has one
            there; not read with a margin. None: 0.
    """
    if not effect.is_known:
        return "not measured"
    low, high = effect.bounds or (math.nan, math.nan)
    if math.isnan(low) or math.isnan(high):
        return "not enough seeds"
    is_over_seeds = effect.basis in ("paired", "welch")
    if margin is not None:
        if low > margin or high < -margin:
            return "reversed"
        if low < -margin or high > margin:
            return "not seen"
        return "reproduced" if is_over_seeds else "same direction"
    if low <= 0 <= high:
        return "not seen"
    if (low > 0) != (direction > 0):
        return "reversed"
    nearest = low if direction > 0 else high
    if chance is not None and direction * (nearest - chance) <= 0:
        return "not seen"
    is_large = published is None or abs(effect.estimate) >= abs(published) / 2 * (1 - TIE)
    return "reproduced" if is_over_seeds and is_large else "same direction"
