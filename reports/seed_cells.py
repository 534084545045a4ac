"""Cells of numbers over seeds: a mean with its interval, a paired difference with its mark."""

from __future__ import annotations

import math

import pandas as pd

from reports.seeds import over_seeds, paired_difference
from reports.table_cells import MISSING, Cell, fixed, signed


def over_seeds_cell(values: pd.Series, digits: int) -> Cell:
    """Return the cell of `over_seeds_cells` of one model's values by seed."""
    named = values.rename("value").reset_index().assign(model="").set_index(["model", "seed"])["value"]
    return over_seeds_cells(named, digits).get("", Cell(MISSING))


def over_seeds_cells(values: pd.Series, digits: int) -> dict[str, Cell]:
    """Return of each model, of values by (model, seed), the mean over seeds with its interval, or the figures
    themselves where they are too few for one; nothing of a model without a value."""
    known = values.dropna().rename("value")
    if known.empty:
        return {}
    rows = over_seeds(known.reset_index(), ["model"], "value").set_index("model").to_dict("index")
    cells = {}
    for model, own in known.groupby(level="model", sort=False):
        row = rows[model]
        each = " / ".join(fixed(float(value), digits) for value in own)
        interval = f"[{fixed(row['low'], digits)}, {fixed(row['high'], digits)}]"
        cells[str(model)] = Cell(each) if math.isnan(row["low"]) else Cell(fixed(row["mean"], digits), interval)
    return cells


def difference_cell(values: pd.Series, reference: str, treated: str, digits: int) -> Cell:
    """Return a signed mean difference; ● where its interval leaves out 0, ○ where it holds it, neither without one."""
    mean, low, high, n = paired_difference(values, reference, treated)
    if n == 0:
        return Cell(MISSING)
    text = signed(mean, digits)
    if math.isnan(low):
        return Cell(text)
    return Cell(f"{text} {'○' if low <= 0 <= high else '●'}", f"[{fixed(low, digits)}, {fixed(high, digits)}]")
