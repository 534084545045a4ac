"""text_errors.csv: how far other text would move each number of a study: its standard error over blocks of the text.

Every measure of seed_means.csv whose table has values by block is read again from the table's twin, one block left out
after the other, at every place and for each seed on its own; the error is the jackknife's over these (see
`probes.jackknife`). It says nothing of other seeds.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from probes.jackknife import jackknife_stderr
from reports.study_tables import TEXT_ERRORS
from workbench.data.blocks import MIN_BLOCKS
from workbench.study.left_out import twin_of, without_each_block
from workbench.study.measures import Tables
from workbench.study.seed_values import SOURCES, SeedValues, Source, every_summary, read_source, sources_of_plugins
from workbench.study.summaries import Summary

Without = tuple[SeedValues, np.ndarray]  # the values of a measure, and [row, block] without each block, nan where none


def text_errors(tables: Tables) -> pd.DataFrame:
    """text_errors.csv's rows: table, measure, seed, value, stderr, n_blocks, and the columns that name the place; of
    each number that is defined without any one of eight blocks or more."""
    parts = []
    for own, left_out in without_blocks(tables):
        n_blocks = np.isfinite(left_out).sum(1)
        is_known = np.isfinite(own.rows["value"].to_numpy(dtype=float)) & (n_blocks >= MIN_BLOCKS)
        # models may have been read in different numbers of blocks
        errors = [jackknife_stderr(row[np.isfinite(row)]) for row in left_out[is_known]]
        rows = own.rows[is_known].assign(stderr=np.array(errors, dtype=float), n_blocks=n_blocks[is_known])
        parts.append(rows.assign(table=own.table, measure=own.measure))
    known = [rows for rows in parts if len(rows)]
    return pd.concat(known, ignore_index=True) if known else pd.DataFrame(columns=list(TEXT_ERRORS.leading))


def without_blocks(tables: Tables) -> Iterator[Without]:
    """Yield every measure whose table has values by block, with what each of its values is without each block."""
    for source in (*SOURCES, *sources_of_plugins(tables)):
        if source.measures and source.is_compared and "model" in source.by:
            yield from _of_source(source, tables)
    for summary in every_summary(tables):
        if summary.is_smooth:
            yield from _of_summary(summary, tables)


def _of_source(source: Source, tables: Tables) -> Iterator[Without]:
    blocks = _blocks(source.table, tables)
    without: dict[str, list[SeedValues]] = {}
    for rows in blocks:
        for own in read_source(source, rows):
            without.setdefault(own.measure, []).append(own)
    for own in read_source(source, tables[source.table]) if blocks else ():
        others = without.get(own.measure, [])
        if others and {own.by} == {one.by for one in others}:
            yield own, _aligned(own, [one.rows for one in others])


def _of_summary(summary: Summary, tables: Tables) -> Iterator[Without]:
    def read(rows: pd.DataFrame) -> pd.DataFrame:
        return summary.read({**tables, summary.table: rows}).rename("value").reset_index()

    if blocks := _blocks(summary.table, tables):
        own = SeedValues(summary.table, summary.name, ("model",), read(tables[summary.table]), is_compared=True)
        yield own, _aligned(own, [read(rows) for rows in blocks])


def _blocks(table: str, tables: Tables) -> list[pd.DataFrame]:
    """The rows of a table without each block; none where the study has no such rows."""
    twin = twin_of(table, tables)
    return without_each_block(twin) if twin is not None and table in tables else []


def _aligned(own: SeedValues, without: list[pd.DataFrame]) -> np.ndarray:
    keys = [*own.by, "seed"]
    index = own.rows.set_index(keys).index
    return pd.concat([rows.set_index(keys)["value"] for rows in without], axis=1).reindex(index).to_numpy(dtype=float)
