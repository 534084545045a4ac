"""Everything that a study's tables say on one claim: its own effect, the measures beside it, and its controls."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np

from workbench.data.claims import Claim, Compared, Measure
from workbench.study.effects import UNKNOWN, Effect, effect_over_seeds
from workbench.study.left_out import block_bounds
from workbench.study.measures import (
    Reading,
    Tables,
    change,
    component_ratio,
    divergence_ratio,
    part_divergence,
    ratio_bounds,
    read_compared,
    spectra,
    top_heads,
)


@dataclass(frozen=True)
class Evidence:
    """What was found for one claim."""

    claim: Claim
    tables: Tables
    roles: Mapping[str, str]
    """role -> the model's name in the tables"""
    effect: Effect = UNKNOWN
    reference: Reading = Reading({})
    treated: Reading = Reading({})
    """readings of the two models; of pairs, treated alone"""
    beside: Mapping[str, Effect] = field(default_factory=dict)
    """name -> the same comparison on another measure"""
    controls: Mapping[str, Effect] = field(default_factory=dict)
    """name -> the same measure on another model"""
    n_pairs: int = 0
    """pairs that the study has"""
    values_beside: Mapping[str, float] = field(default_factory=dict)
    """name -> the treated model's mean on that measure"""
    is_other_size: bool = False
    """the published figure is of one model, and this is another"""
    chance: float | None = None
    """the effect between seeds of one and the same model, where the measure has one there and it was measured"""

    @property
    def missing_roles(self) -> tuple[str, ...]:
        """Roles of the claim that no model of the study has; of pairs, those of all of them where it has no pair."""
        pairs = self.claim.compared.pairs
        if any(first in self.roles and second in self.roles for first, second in pairs):
            return ()
        return tuple(role for role in self.claim.compared.roles if role not in self.roles)

    def model(self, role: str) -> str:
        """The model of a role, as the tables name it."""
        return self.roles[role]


def gather(
    claim: Claim, tables: Tables, roles: Mapping[str, str], as_published: Collection[str] = frozenset()
) -> Evidence:
    """The evidence on one claim; its effect is unknown where roles, tables, columns or rows are missing.

    as_published: models trained by the recipe of their name as it stands.
    """
    nothing = Evidence(claim, tables, roles)
    if claim.undefined or nothing.missing_roles:
        return nothing
    if claim.compared.pairs:
        reading, n_pairs = read_pairs(claim, tables, roles)
        effect = effect_over_seeds(claim.compared.null, reading.values, claim.scale)
        chance = by_chance(claim, tables, roles) if claim.measure.kind == "divergence" else None
        return Evidence(claim, tables, roles, effect, treated=reading, n_pairs=n_pairs, chance=chance)
    reference, treated, effect = compare(claim, claim.measure, claim.compared, tables, roles)
    beside, values = {}, {}
    for other in claim.beside:
        _, reading, beside[other.name] = compare(claim, change(claim.measure, other), claim.compared, tables, roles)
        values[other.name] = reading.mean
    controls = {}
    for other in claim.against:
        own = claim.compared.model_copy(
            update={"treated": other.treated, "reference": other.reference or claim.compared.reference}
        )
        if all(role in roles for role in own.roles):
            controls[other.name] = compare(claim, claim.measure, own, tables, roles)[2]
    wanted = claim.compared.recipe
    return Evidence(
        claim,
        tables,
        roles,
        effect,
        reference,
        treated,
        beside,
        controls,
        values_beside=values,
        is_other_size=bool(wanted) and not (roles[claim.compared.treated] == wanted and wanted in as_published),
    )


def compare(
    claim: Claim, measure: Measure, compared: Compared, tables: Tables, roles: Mapping[str, str]
) -> tuple[Reading, Reading, Effect]:
    """Readings of reference and treated on a measure, and the effect between them on the claim's scale."""
    reference, treated = read_compared(tables, measure, compared, roles)
    values = compared.null if reference is None else reference.values
    effect = effect_over_seeds(values, treated.values, claim.scale)
    if effect.is_known and effect.basis == "none":
        if measure.kind == "top head" and compared.reference:
            own = ratio_bounds(*(top_heads(tables, measure, roles[role]) for role in compared.roles))
        else:
            own = block_bounds(measure, compared, tables, roles, claim.scale, effect.estimate)
        effect = effect_over_seeds(values, treated.values, claim.scale, own)
    return reference or Reading({}), treated, effect


def by_chance(claim: Claim, tables: Tables, roles: Mapping[str, str]) -> float | None:
    """Mean log of the divergence ratio between seeds of one and the same model, each seed and the next, over the first
    models of the pairs; None where no model has two seeds."""
    logs = []
    for role in dict.fromkeys(first for first, _ in claim.compared.pairs if first in roles):
        own = list(spectra(tables, claim.measure.table, roles[role]).values())
        ratios = [part_divergence(a, b) for a, b in itertools.pairwise(own)]
        logs += [math.log(ratio) for ratio in ratios if math.isfinite(ratio) and ratio > 0]
    return float(np.mean(logs)) if logs else None


def read_pairs(claim: Claim, tables: Tables, roles: Mapping[str, str]) -> tuple[Reading, int]:
    """Seed -> geometric mean over the pairs that the study has, for the seeds that all of them have; how many pairs."""
    measure, readings = claim.measure, []
    for first, second in claim.compared.pairs:
        if first not in roles or second not in roles:
            continue
        if measure.kind == "divergence":
            reading = divergence_ratio(tables, measure.table, roles[first], roles[second])
        else:
            reading = component_ratio(tables, measure, roles[first], roles[second])
        if reading.values:
            readings.append(reading)
    if not readings:
        return Reading({}), 0
    means = {}
    for seed in sorted(set.intersection(*(set(reading.values) for reading in readings))):
        values = np.array([reading.values[seed] for reading in readings])
        means[seed] = float(np.exp(np.log(values).mean())) if (values > 0).all() else math.nan
    return Reading(means, readings[0].layers, readings[0].n_layers), len(readings)
