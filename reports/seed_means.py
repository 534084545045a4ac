"""Means over seeds and effects as the pages draw them: rows of seed_means.csv and effects.csv, and cells of tables.

Nothing is computed here: means, intervals and differences are those of seed_means.csv and effects.csv.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pandas as pd

from reports.table_cells import MISSING, Cell, fixed, signed
from reports.tables import COLUMNS

FORMULA = "mean ± t(.975, n − 1) · s / √n over n ≥ 3 seeds (Student’s t, s their standard deviation)"
NUMBERS = COLUMNS["seed_means"][2:]  # behind table and measure
OPTIONAL = frozenset(("l1", "dictionary", "phase"))  # places that tables of earlier versions do not tell apart
Places = Mapping[tuple[str, str], Mapping[frozenset[str], pd.DataFrame]]


def split_places(df: pd.DataFrame, name: str) -> Places:
    """Return, of seed_means or effects, (table, measure) -> the columns that name a place -> the rows that have exactly
    these, in their order; nothing of a table that lacks leading columns."""
    leading = COLUMNS[name]
    if not {*leading} <= set(df.columns):
        return {}
    keys = [str(column) for column in df if column not in leading]
    is_filled = pd.DataFrame({column: df[column].notna() & (df[column] != "") for column in keys}, index=df.index)
    kinds = sum((is_filled[column] * 2**k for k, column in enumerate(keys)), pd.Series(0, index=df.index))
    found: dict[tuple[str, str], dict[frozenset[str], pd.DataFrame]] = {}
    for key, rows in df.groupby(["table", "measure", kinds], sort=False):
        table, measure, kind = map(str, key)
        own = [column for k, column in enumerate(keys) if int(kind) >> k & 1]
        rows = rows[[*own, *leading[2:]]]
        whole = {c: int for c in own if pd.api.types.is_float_dtype(rows[c]) and (rows[c] % 1 == 0).all()}
        found.setdefault((table, measure), {})[frozenset(own)] = rows.astype(whole)
    return found


def pick_places(found: Places, name: str, table: str, measure: str, by: Sequence[str]) -> pd.DataFrame:
    """Return the rows of a measure whose place is named by these columns (and by `OPTIONAL` ones); none if none are.

    table: the one that the measure is of; nothing for one that no two tables have.
    """
    kinds = [kinds for (of_table, own), kinds in found.items() if own == measure and table in ("", of_table)]
    picked = [rows for own in kinds for names, rows in own.items() if {*by} <= names <= {*by} | OPTIONAL]
    return pd.concat(picked) if picked else pd.DataFrame(columns=[*by, *COLUMNS[name][2:]])


def as_means(effects: pd.DataFrame) -> pd.DataFrame:
    """Return rows of effects.csv as rows of seed_means.csv, whose mean is the effect; without the seeds' own values."""
    return effects.rename(columns={"effect": "mean"}).assign(seeds="", values="")


def seeds_behind(means: pd.DataFrame) -> list[str]:
    """Return the seeds that have a value in any of the rows."""
    return list(dict.fromkeys(seed for cell in means["seeds"] for seed in str(cell).split()))


def each_seed(means: pd.DataFrame) -> pd.DataFrame:
    """Return one row per seed for each of the rows: the columns that name its place, seed and value."""
    places = [column for column in means if column not in NUMBERS]
    rows = [
        (*place, seed, value)
        for place, seeds, values, mean in zip(
            means[places].itertuples(index=False, name=None),
            means["seeds"],
            means["values"],
            means["mean"],
            strict=True,
        )
        for seed, value in zip(str(seeds).split(), map(float, str(values).split() or [mean]), strict=False)
    ]
    return pd.DataFrame(rows, columns=[*places, "seed", "value"])


def mean_cell(means: pd.DataFrame, digits: int, scale: float = 1.0) -> Cell:
    """Return the cell of one row: its mean with the interval, or the seeds' own values where it has none; a dash for
    no row."""
    if means.empty:
        return Cell(MISSING)
    row = means.iloc[0]
    if math.isfinite(row["ci_low"]):
        return Cell(fixed(scale * row["mean"], digits), interval(scale * row["ci_low"], scale * row["ci_high"], digits))
    return Cell(" / ".join(fixed(scale * value, digits) for value in each_seed(means.iloc[:1])["value"]))


def difference_cell(effects: pd.DataFrame, digits: int) -> Cell:
    """Return the signed effect of one row; ● where its interval leaves out 0, ○ where it holds it, neither without."""
    if effects.empty:
        return Cell(MISSING)
    row = effects.iloc[0]
    text, low, high = signed(row["effect"], digits), row["ci_low"], row["ci_high"]
    if not math.isfinite(low):
        return Cell(text)
    return Cell(f"{text} {'○' if low <= 0 <= high else '●'}", interval(low, high, digits))


def interval(low: float, high: float, digits: int) -> str:
    """Return an interval as tables have it behind its figure."""
    return f"[{fixed(low, digits)}, {fixed(high, digits)}]"
