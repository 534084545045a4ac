"""The interval of an effect over blocks of text, where seeds are too few for one over them.

A measure is read as ever, once for each block, from the table's twin (`Table.blocks`) in the place of the table: its
rows hold the values with that block of the text left out. Both models read the same text, so that an effect loses one
and the same block of both; what they share of a block's peculiarity cancels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from probes.jackknife import jackknife_interval
from workbench.analyses import known_tables
from workbench.data.blocks import MIN_BLOCKS
from workbench.data.claims import Compared, Measure
from workbench.study.effects import Scale, effect_over_seeds
from workbench.study.measures import Bounds, Tables, read_compared


def block_bounds(
    measure: Measure, compared: Compared, tables: Tables, roles: Mapping[str, str], scale: Scale, estimate: float
) -> Bounds | None:
    """The 95 % interval of an effect by the jackknife over blocks of text, on the effect's working scale; None where
    the measure has no values by block, is undefined without one of them, or jumps (a crossover), which no jackknife
    holds for.

    estimate: the effect itself.
    """
    if measure.kind == "crossover":
        return None
    models = [roles[role] for role in compared.roles]
    effects = []
    for without in tables_without(tables, measure, models):
        reference, treated = read_compared(without, measure, compared, roles)
        values = compared.null if reference is None else reference.values
        effects.append(effect_over_seeds(values, treated.values, scale).estimate)
    if len(effects) < MIN_BLOCKS or not all(map(math.isfinite, effects)):
        return None
    low, high = jackknife_interval(estimate, np.array(effects))
    return low, high


def tables_without(tables: Tables, measure: Measure, models: list[str]) -> Iterator[Tables]:
    """Yield the tables as they are without each block of the text that all these models read, those of a measure's
    table; nothing where its column has no values by block."""
    contract = known_tables().get(measure.table)
    if contract is None or contract.twin is None or measure.column not in contract.blocks:
        return
    twin: Any = tables.get(contract.twin.name)
    if twin is None or twin.empty:
        return
    twin = twin[twin["model"].isin(models)]
    blocks = [set(own["block"]) for _, own in twin.groupby(["model", "seed"])]
    if len(set(twin["model"])) < len(set(models)) or any(own != blocks[0] for own in blocks):
        return
    for _, rows in twin.groupby("block", sort=True):
        yield {**tables, measure.table: rows.drop(columns="block")}
