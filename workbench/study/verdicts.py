"""How an effect is measured over seeds, and the verdict that follows on a published one.

An effect e compares two models, or one model with a null value, on one measure. It has one of two scales:

    ratio        e = log(treated / reference), shown as treated / reference − 1
    difference   e = treated − reference, in the measure's own unit

The seed is the unit: whatever a claim averages (layers, heads, sets, pairs of models) is averaged first. e is the mean
over seeds and its 95 % interval

    paired       with three or more seeds that both models have: Student's t on the seeds' own e
    welch        else, with three or more seeds of each model: Welch's t on the two groups
    own          else, where the measure has an interval of its own (over sequences): that one
    none         else

Verdicts, with p the published effect on the same scale:

    not measured       the tables do not have the measure, or it is undefined
    full size only     it is measured, but the published figure is an absolute one of one model, and the study's is
                       not that one: another recipe, or other settings, text or length of training
    not enough seeds   it is measured, but has no interval: fewer than three seeds and none of its own
    not seen           the interval contains 0, or, where known, is not wholly beyond what seeds of one model give
    reversed           the interval lies on the other side of 0 than p
    reproduced         the interval lies on p's side, over three or more seeds, and |e| ≥ |p|/2
    same direction     the interval lies on p's side, otherwise

A claim published without a figure has only a direction: reproduced then requires no size. A claim of likeness (two
things agree: p is 0 or near it) comes with a margin, which is chosen here: reproduced if the interval lies within ±
margin, reversed if it lies wholly outside, not seen if it crosses an edge; same direction, instead of reproduced, if
the interval is the measure's own. Bounds belong to their interval: one that ends at 0 contains 0. |e| equal to |p|/2
is enough. Seeds that agree to the last digit give an interval of no width; equal models therefore give e = 0, which
is not seen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from scipy import stats

MIN_SEEDS = 3  # of an interval over seeds
LEVEL = 0.95
DIGITS = 12  # effects are rounded to so many decimals: models that are equal but for a rounding are equal
TIE = 1e-9  # relative; |e| this close to half the published effect is half of it

Scale = Literal["ratio", "difference"]
Verdict = Literal[
    "reproduced", "same direction", "not seen", "reversed", "not measured", "full size only", "not enough seeds"
]
Basis = Literal["paired", "welch", "own", "none"]
VERDICTS: tuple[str, ...] = get_args(Verdict)
Bounds = tuple[float, float]


@dataclass(frozen=True)
class Effect:
    """An effect on its working scale (a logarithm for ratios), with what its interval rests on."""

    estimate: float
    """mean over seeds; nan where undefined"""
    bounds: Bounds | None
    """95 % interval; may be infinite on a side where a ratio is not excluded"""
    n: int
    """seeds: those both models have, or the fewer of the two models' own"""
    basis: Basis

    @property
    def is_known(self) -> bool:
        """Whether there is an effect to judge."""
        return math.isfinite(self.estimate)


UNKNOWN = Effect(math.nan, None, 0, "none")


def effect_over_seeds(
    reference: Mapping[int, float] | float, treated: Mapping[int, float], scale: Scale, own: Bounds | None = None
) -> Effect:
    """The effect of treated against reference, seed -> value each, or against one number that has no seeds.

    Values that are not finite, and on the ratio scale those that are not above 0, count as missing.

    Args:
        own: the measure's own 95 % interval on the working scale, used where seeds are too few.
    """
    ours = _working(treated, scale)
    if isinstance(reference, Mapping):
        theirs = _working(reference, scale)
    else:
        constant = _working({0: reference}, scale)
        theirs = dict.fromkeys(ours, constant[0]) if constant else {}
    common = sorted(set(ours) & set(theirs))
    differences = [ours[seed] - theirs[seed] for seed in common]
    if len(common) >= MIN_SEEDS:
        return _rounded(Effect(float(np.mean(differences)), student(differences), len(common), "paired"))
    n = min(len(ours), len(theirs))
    if n >= MIN_SEEDS:
        first, second = list(theirs.values()), list(ours.values())
        return _rounded(Effect(float(np.mean(second) - np.mean(first)), welch(first, second), n, "welch"))
    if not n:
        return UNKNOWN
    estimate = np.mean(differences) if common else np.mean(list(ours.values())) - np.mean(list(theirs.values()))
    return _rounded(Effect(float(estimate), own, len(common) or n, "none" if own is None else "own"))


def _working(values: Mapping[int, float], scale: Scale) -> dict[int, float]:
    if scale == "ratio":
        return {seed: math.log(value) for seed, value in values.items() if math.isfinite(value) and value > 0}
    return {seed: float(value) for seed, value in values.items() if math.isfinite(value)}


def _rounded(effect: Effect) -> Effect:
    bounds = effect.bounds
    if bounds is not None:
        bounds = (round(bounds[0], DIGITS), round(bounds[1], DIGITS))
    return Effect(round(effect.estimate, DIGITS), bounds, effect.n, effect.basis)


def student(values: Sequence[float]) -> Bounds:
    """The 95 % interval of the mean of two or more values, by Student's t."""
    n = len(values)
    half = float(stats.t.ppf((1 + LEVEL) / 2, n - 1)) * float(np.std(values, ddof=1)) / math.sqrt(n)
    mean = float(np.mean(values))
    return mean - half, mean + half


def welch(first: Sequence[float], second: Sequence[float]) -> Bounds:
    """The 95 % interval of mean(second) − mean(first), two or more values each, by Welch's t."""
    mean = float(np.mean(second) - np.mean(first))
    parts = [float(np.var(group, ddof=1)) / len(group) for group in (first, second)]
    variance = sum(parts)
    if variance == 0:
        return mean, mean
    freedom = variance**2 / sum(part**2 / (len(group) - 1) for part, group in zip(parts, (first, second), strict=True))
    half = float(stats.t.ppf((1 + LEVEL) / 2, freedom)) * math.sqrt(variance)
    return mean - half, mean + half


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


def shown(value: float, scale: Scale) -> float:
    """A number of the working scale as tables show it: a ratio r as r − 1, a difference as it is."""
    return math.expm1(value) if scale == "ratio" else value


def working(value: float, scale: Scale) -> float:
    """The inverse of `shown`: a published relative change or difference on the working scale."""
    return math.log1p(value) if scale == "ratio" else value
