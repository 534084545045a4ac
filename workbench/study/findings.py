"""findings.csv and text_errors.csv: two models compared by one number per measure, and how sure that is.

Numbers are those of `summaries`, and of analyses of a user's own the mean of each measure over all its rows. The
interval is over seeds where there are three or more, as in effects.csv. With fewer it is the jackknife's over blocks of
the text that both models read: the number is read again from the table's twin, a block left out after the other (see
`left_out`). That says what other text would change, and nothing of other seeds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from probes.jackknife import jackknife_interval
from reports.study_tables import FINDINGS
from reports.tables import write_table
from workbench.data.blocks import MIN_BLOCKS
from workbench.study.effects import Comparison, Effect, effect_over_seeds, read_measured
from workbench.study.left_out import blocks_in_common
from workbench.study.measures import Bounds, Tables
from workbench.study.seed_values import every_summary
from workbench.study.summaries import Summary
from workbench.study.text_errors import text_errors

Values = Mapping[int, float]  # seed -> value


def write_findings(directory: str | Path) -> tuple[Path, Path]:
    """Write findings.csv and text_errors.csv into a study's directory. Returns their paths. Raises as
    `effects.read_measured`."""
    measured = read_measured(directory)
    summaries, tables = every_summary(measured.tables), measured.tables
    rows = [row for summary in summaries for row in _rows(summary, tables, measured.compared)]
    found = pd.DataFrame(rows, columns=None if rows else list(FINDINGS.leading))
    return write_table(found, directory, "findings"), write_table(text_errors(tables), directory, "text_errors")


def by_model(summary: Summary, tables: Tables) -> dict[str, dict[int, float]]:
    """Model -> seed -> the summary's finite value."""
    found: dict[str, dict[int, float]] = {}
    rows = summary.read(tables).rename("value").reset_index()
    for model, seed, value in rows[["model", "seed", "value"]].itertuples(index=False, name=None):
        if math.isfinite(value):
            found.setdefault(str(model), {})[int(seed)] = float(value)
    return found


def _rows(summary: Summary, tables: Tables, compared: list[Comparison]) -> Iterator[dict[str, Any]]:
    """Yield the findings of one summary."""
    values = by_model(summary, tables)
    for step, reference, treated in compared:
        first, second = values.get(reference, {}), values.get(treated, {})
        effect = effect_over_seeds(first, second, "difference")
        if effect.bounds is None and effect.is_known:
            bounds = bounds_over_blocks(summary, tables, reference, treated, effect.estimate)
            effect = Effect(effect.estimate, bounds, effect.n, "none" if bounds is None else "own")
        if not effect.is_known:
            continue
        common = sorted(set(first) & set(second))
        seeds = (common, common) if effect.basis != "welch" and common else (first, second)
        means = [float(np.mean([own[seed] for seed in of])) for own, of in zip((first, second), seeds, strict=True)]
        low, high = effect.bounds or (math.nan, math.nan)
        ends, scale = sorted((abs(low), abs(high))), max(map(abs, means)) or math.nan
        yield {
            "table": summary.table,
            "measure": summary.name,
            "comparison": step,
            "model_a": reference,
            "model_b": treated,
            "value_a": means[0],
            "value_b": means[1],
            "effect": effect.estimate,
            "ci_low": low,
            "ci_high": high,
            "n": effect.n,
            "interval": effect.basis,
            "at_least": 0.0 if low <= 0 <= high else ends[0] / scale,
            "at_most": ends[1] / scale,
            "label": summary.label or summary.name,
            "unit": summary.unit,
        }


def bounds_over_blocks(
    summary: Summary, tables: Tables, reference: str, treated: str, estimate: float
) -> Bounds | None:
    """The 95 % jackknife interval of treated − reference over blocks of text; None where the table has no values by
    block, the two models' blocks differ, or the number is undefined without one of them."""

    def read(without: Mapping[str, Any]) -> float:
        values = by_model(summary, without)
        return effect_over_seeds(values.get(reference, {}), values.get(treated, {}), "difference").estimate

    effects = [read(without) for without in tables_without(summary, tables, (reference, treated))]
    if len(effects) < MIN_BLOCKS or not all(map(math.isfinite, effects)):
        return None
    low, high = jackknife_interval(estimate, np.array(effects))
    return round(float(low), 12), round(float(high), 12)


def tables_without(summary: Summary, tables: Tables, models: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Yield the tables with the rows of the summary's table that leave out one block after the other of the text that
    these models read; nothing where the table has none of them, or where the number jumps."""
    blocks = blocks_in_common(summary.table, tables, models) if summary.is_smooth else []
    yield from ({**tables, summary.table: rows} for rows in blocks)
