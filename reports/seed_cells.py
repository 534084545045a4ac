"""Cells of numbers over seeds: a mean with its interval, a paired difference with its mark."""

from __future__ import annotations

import math

import pandas as pd

from reports.cells import MISSING, Cell, fixed, signed
from reports.seeds import over_seeds, paired_difference


def over_seeds_cell(values: pd.Series, digits: int) -> Cell:
    """Return a mean over seeds with its interval; the figures themselves where they are too few for one."""
    known = values.dropna()
    if known.empty:
        return Cell(MISSING)
    row = over_seeds(known.rename("value").reset_index().assign(model=""), ["model"], "value").iloc[0]
    if math.isnan(row["low"]):
        return Cell(" / ".join(fixed(float(value), digits) for value in known))
    return Cell(fixed(row["mean"], digits), f"[{fixed(row['low'], digits)}, {fixed(row['high'], digits)}]")


def difference_cell(values: pd.Series, reference: str, treated: str, digits: int) -> Cell:
    """Return a signed mean difference; ● where its interval leaves out 0, ○ where it holds it, neither without one."""
    mean, low, high, n = paired_difference(values, reference, treated)
    if n == 0:
        return Cell(MISSING)
    text = signed(mean, digits)
    if math.isnan(low):
        return Cell(text)
    return Cell(f"{text} {'○' if low <= 0 <= high else '●'}", f"[{fixed(low, digits)}, {fixed(high, digits)}]")
