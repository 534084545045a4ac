"""The page's section on an earlier study: what changed beyond seeds or text, drawn from against.csv."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from reports.study import Study, problems
from reports.study_tables import AGAINST
from reports.table_cells import Cell, Grid, significant, thousands

MAX_ROWS = 40  # changes that the page lists
BASES = {"welch": "over seeds, Welch", "own": "over the text alone"}


@dataclass(frozen=True)
class Against:
    """What the section shows."""

    title: str  # of the earlier study, with its date
    lead: str
    setup: tuple[tuple[str, str, str], ...]  # (what, old, new) of what differs
    grid: Grid | None


def compare_with_old(study: Study) -> Against | None:
    """Return the section; None where `report --against` was not asked for."""
    if problems(study, {"against": AGAINST.leading[:1]}):
        return None
    df = study.tables["against"]
    changed = df[df["changed"] == "yes"]
    order = changed["q"].sort_values(kind="stable").index
    rows = [_row(row) for row in changed.loc[order[:MAX_ROWS]].to_dict("records")]
    columns = ("earlier", "now", "change", "95 % interval", "q", "seeds")
    grid = Grid("", (), ("measure", "of", "where"), columns, tuple(rows), is_sortable=True)
    return Against(_title(study), _lead(df), _setup(study), grid if rows else None)


def _lead(df: pd.DataFrame) -> str:
    """Return how many numbers were compared, how many changed, and by which rule."""
    n_tested, n_changed = int(df["p"].notna().sum()), int((df["changed"] == "yes").sum())
    n_equal = int((df["difference"] == 0).sum())
    n_unknown = int((df["interval"].isin(["none"]) & (df["difference"] != 0)).sum())
    over = " or ".join(name for basis, name in BASES.items() if (df["interval"] == basis).any())
    said = [f"{thousands(len(df))} numbers are in both studies; {thousands(n_equal)} are equal."]
    if n_tested:
        said.append(
            f"{thousands(n_changed)} of {thousands(n_tested)} tested changes exclude 0 with q ≤ .05 "
            f"(Benjamini–Hochberg over these {thousands(n_tested)}); intervals {over}."
        )
    if n_unknown:
        said.append(f"{thousands(n_unknown)} others differ and have no interval: nothing says that they changed.")
    if n_changed > MAX_ROWS:
        said.append(f"The {MAX_ROWS} with the smallest q are listed; against.csv has all.")
    return " ".join(said)


def _row(row: Mapping[Any, Any]) -> tuple[tuple[str, ...], tuple[Cell, ...]]:
    is_effect = row["quantity"] == "effect"
    whose = f"{row['model_b']} − {row['model_a']}" if is_effect else str(row["model_b"])
    where = row["where"] if isinstance(row["where"], str) else ""
    change = significant(row["difference"])
    cells = (
        significant(row["old"]),
        significant(row["new"]),
        change if change.startswith("−") else f"+{change}",
        f"[{significant(row['ci_low'])}, {significant(row['ci_high'])}]",
        significant(row["q"], 2),
        f"{row['n_old']:g} / {row['n_new']:g}",
    )
    return (f"{row['measure']}, {row['table']}", whose, where), tuple(map(Cell, cells))


def _title(study: Study) -> str:
    said = _said(study)
    own = said.get("title", ("", ""))[0]
    created = said.get("created", ("", ""))[0]
    return ", ".join(text for text in (own, created) if text) or "an earlier study"


def _setup(study: Study) -> tuple[tuple[str, str, str], ...]:
    """Return what differs in how the studies were made, other than their titles and dates."""
    return tuple(
        (what, old or "–", new or "–")
        for what, (old, new) in _said(study).items()
        if old != new and what not in ("title", "created")
    )


def _said(study: Study) -> dict[str, tuple[str, str]]:
    if problems(study, {"against_setup": ("name", "old", "new")}):
        return {}
    df = study.tables["against_setup"].fillna("")
    return {str(what): (str(old), str(new)) for what, old, new in zip(df["name"], df["old"], df["new"], strict=True)}
