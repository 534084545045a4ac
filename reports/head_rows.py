"""What the tables of a study say of each head: the row of the largest measure in each table, in words."""

from __future__ import annotations

import numbers
from collections.abc import Collection, Mapping
from itertools import pairwise
from typing import Any

import pandas as pd

from reports.contract import Table
from reports.table_cells import significant

# columns of a head -> what the head is in such a row
ROLES = {("layer", "head"): "", ("layer_a", "head_a"): "sender", ("layer_b", "head_b"): "receiver"}
Place = tuple[str, str, int, int]  # model, seed ("" where a table tells none), layer, head
Rows = Mapping[Place, list[tuple[str, str]]]  # of each head (table, what its strongest row says)


def head_rows(tables: Mapping[str, pd.DataFrame], contracts: Mapping[str, Table], names: Collection[str]) -> Rows:
    """Return, for every head that has a row in one of the tables `names`, the row of the largest measure in each.

    The measure is the first number of the table's contract that has a value. Tables without models or heads say
    nothing, and those of features are the atlas's.
    """
    found: dict[Place, list[tuple[str, str]]] = {}
    for name in names:
        table = contracts[name]
        for place, role in ROLES.items():
            if "feature" in table.key or not {"model", *place} <= {*table.leading} & {*tables[name].columns}:
                continue
            df = tables[name]
            df = df[df[list(place)].notna().all(axis=1) & (df[place[1]] >= 0)]
            for measure in _measures(table, df):
                if df[measure].notna().any():
                    break
            else:
                continue
            keys = ["model", *(["seed"] if "seed" in df else []), *place]
            order = df[measure].abs().sort_values(ascending=False, kind="stable").index
            top = df.loc[order].drop_duplicates(keys).sort_index()
            n = df.groupby(keys).size()
            for row in top.to_dict("records"):
                count = int(n[tuple(row[key] for key in keys)])
                said = _say({str(key): value for key, value in row.items()}, table, measure, {*place}, role, count)
                seed = seed_name(row["seed"]) if "seed" in df else ""
                found.setdefault((str(row["model"]), seed, int(row[place[0]]), int(row[place[1]])), []).append(
                    (name, said)
                )
    return found


def seed_name(seed: object) -> str:
    """Return a seed as addresses and rows name it, whatever its column's type."""
    return f"{seed:g}" if isinstance(seed, numbers.Real) else str(seed)


def _measures(table: Table, df: pd.DataFrame) -> list[str]:
    numbers = (own.name for own in table.columns if own.kind == "number")
    return [own for own in numbers if own in df and pd.api.types.is_numeric_dtype(df[own])]


def _say(row: Mapping[str, Any], table: Table, measure: str, place: set[str], role: str, n: int) -> str:
    """`recovery 0.44 [0.40, 0.50] (z, denoise, end), the largest of 4 rows`."""
    value = row[measure]
    if value != value:
        return f"no {measure} ({n} row{'s' * (n > 1)})"
    names = [own.name for own in table.columns]
    behind = dict(pairwise(names)).get(measure)
    interval = ""
    if behind and behind.endswith("_low") and row.get(behind) == row.get(behind):
        high = behind.removesuffix("_low") + "_high"
        interval = f" [{significant(row[behind], 2)}, {significant(row.get(high), 2)}]"
    words = [role] * bool(role) + [
        f"{own.replace('_', ' ')} {row[own]}" if isinstance(row[own], int) else str(row[own])
        for own in table.key
        if own not in place | {"model", "seed"} and own in row
    ]
    largest = f", the largest of {n} rows" if n > 1 else ""
    where = f" ({', '.join(words)})" if words else ""
    return f"{measure.replace('_', ' ')} {significant(value, 2)}{interval}{where}{largest}"
