"""The interval of an effect over blocks of text, where seeds are too few for one over them.

A measure is read as ever, once for each block, from the table's twin (`Table.blocks`) in the place of the table: its
rows hold the values with that block of the text left out. Both models read the same text, so that an effect loses one
and the same block of both; what they share of a block's peculiarity cancels. The interval is the jackknife's.

Of a measure that jumps as values change (which layer holds the top head, whether differences change sign) it is a
percentile bootstrap: a table is made of blocks drawn with replacement, each value the mean of the drawn blocks' pseudo-
values g·mean θ₍·₎ − (g − 1)·θ₍ᵢ₎, and the measure is read from it. Such an interval takes few values, and is wide where
blocks disagree; that it holds the truth in 95 % of texts is not shown.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from probes.bootstrap import LEVEL
from probes.jackknife import jackknife_interval
from workbench.analyses import known_tables
from workbench.data.blocks import MIN_BLOCKS
from workbench.data.claims import Compared, Measure
from workbench.study.effects import Scale, effect_over_seeds
from workbench.study.measures import Bounds, Tables, read_compared

JUMPING = ("crossover", "depth")  # kinds of measure
N_DRAWS = 200


def block_bounds(
    measure: Measure, compared: Compared, tables: Tables, roles: Mapping[str, str], scale: Scale, estimate: float
) -> Bounds | None:
    """The 95 % interval of an effect over blocks of text, on the effect's working scale; None where the measure has no
    values by block, or is undefined without one of them.

    estimate: the effect itself.
    """

    def read(rows: pd.DataFrame) -> float:
        reference, treated = read_compared({**tables, measure.table: rows}, measure, compared, roles)
        values = compared.null if reference is None else reference.values
        return effect_over_seeds(values, treated.values, scale).estimate

    blocks = rows_without(tables, measure, [roles[role] for role in compared.roles])
    jumps = measure.kind in JUMPING
    effects = [read(rows) for rows in (drawn(blocks, measure.column) if jumps else blocks)]
    if len(effects) < MIN_BLOCKS or not all(map(math.isfinite, effects)):
        return None
    if jumps:
        low, high = np.quantile(effects, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    else:
        low, high = jackknife_interval(estimate, np.array(effects))
    return float(low), float(high)


def rows_without(tables: Tables, measure: Measure, models: Sequence[str]) -> list[pd.DataFrame]:
    """The rows of a measure's table without each block of the text that all these models read; none where its column
    has no values by block."""
    contract = known_tables().get(measure.table)
    if contract is None or measure.column not in contract.blocks:
        return []
    found = blocks_in_common(measure.table, tables, models)
    return found if len(set(map(len, found))) == 1 else []


def blocks_in_common(table: str, tables: Tables, models: Sequence[str]) -> list[pd.DataFrame]:
    """The rows of a table without each block of the text that all these models read; none where the table has no twin,
    or their blocks differ."""
    twin = twin_of(table, tables)
    if twin is None:
        return []
    twin = twin[twin["model"].isin(list(models))]
    blocks = {frozenset(own["block"]) for _, own in twin.groupby(["model", "seed"])}
    if set(twin["model"]) != {*models} or len(blocks) != 1:
        return []
    return without_each_block(twin)


def twin_of(table: str, tables: Tables) -> Any:
    """The twin of a table, its rows by block of text; None where the table has none or the study has not written it."""
    contract = known_tables().get(table)
    twin = None if contract is None or contract.twin is None else tables.get(contract.twin.name)
    return twin if twin is not None and {"model", "seed", "block"} <= set(twin.columns) else None


def without_each_block(twin: pd.DataFrame) -> list[pd.DataFrame]:
    """The rows of a twin, one table per block."""
    return [rows.drop(columns="block") for _, rows in twin.groupby("block", sort=True)]


def drawn(blocks: Sequence[pd.DataFrame], column: str) -> Iterator[pd.DataFrame]:
    """Yield the rows as blocks drawn with replacement have them, N_DRAWS times; nothing without blocks."""
    if not blocks:
        return
    g, without = len(blocks), np.stack([rows[column].to_numpy(dtype=np.float64) for rows in blocks])
    for own in np.random.default_rng(0).integers(g, size=(N_DRAWS, g)):
        yield blocks[0].assign(**{column: g * without.mean(axis=0) - (g - 1) * without[own].mean(axis=0)})
