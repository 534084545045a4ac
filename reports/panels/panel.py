"""What a panel and a section of the page are: title, what to read from it, the columns it needs, who draws it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import pandas as pd
import plotly.graph_objects as go

from reports.continuations import Continuations
from reports.figures.style import seeds_of
from reports.study import Study
from reports.table_cells import Grid
from reports.tables import COLUMNS

INTERVAL = "a band where four models or fewer share a panel, else given on pointing"
Drawing = tuple[str, go.Figure]  # the name of a variant ("" if it is the only one) and its figure


@dataclass(frozen=True)
class Panel:
    """One table or figure of the page. `needs` are the columns without which it cannot be drawn.

    In `read` and `detail`, {key} stands for the number of another panel, which the page fills in.
    """

    key: str
    title: str
    read: str
    needs: Mapping[str, tuple[str, ...]]
    draw: Callable[[Study], Sequence[Drawing | Grid | Continuations]]
    n: tuple[str, str] = ("", "")  # the column that holds n, and its unit
    detail: str = ""  # intervals, scales and other small print
    uses: tuple[str, ...] = ()  # tables that it draws when they are there
    counted: Callable[[Study], Mapping[str, pd.DataFrame]] | None = None  # name -> rows of n; all of the first table
    gaps: Callable[[Study], Sequence[str]] = lambda study: ()  # what of its tables it cannot show, in words
    faults: Callable[[Study], Sequence[str]] = lambda study: ()  # what else keeps it from being drawn, in sentences
    says: Callable[[Study], Sequence[str]] = lambda study: ()  # what its tables show, in sentences
    warns: Callable[[Study], Sequence[str]] = lambda study: ()  # what a reader must know before using what it shows
    is_table: bool = False
    is_first_seed: bool = False  # draws each model's first seed only
    interval: str = INTERVAL  # how the interval over seeds is drawn
    of_two: str = "the line is their mean, each a faint mark"  # how two seeds are
    is_by_seed: bool = False  # a row, or a variant, a seed
    is_folded: bool = False  # a table that a figure shows too, opened by a click
    is_core: bool = True  # where it cannot be drawn, the page says why; others are left out with their table


@dataclass(frozen=True)
class Section:
    """A heading and the panels under it."""

    key: str
    title: str
    lead: str
    panels: tuple[Panel, ...] = field(default=())


def needing(table: str, columns: str, *made: str) -> Mapping[str, tuple[str, ...]]:
    """Return the needs of a panel that draws one table, and of what is made of all: `seed_means`, `effects`."""
    return MappingProxyType({table: tuple(columns.split()), **{name: COLUMNS[name][:3] for name in made}})


def without_numbers(table: str, column: str, fault: str) -> Callable[[Study], list[str]]:
    """Return a panel's faults: the sentence where the table's column holds no number at all."""

    def faults(study: Study) -> list[str]:
        df = study.tables.get(table)
        return [fault] if df is not None and column in df and len(df) and df[column].isna().all() else []

    return faults


def without_column(table: str, column: str) -> Callable[[Study], list[str]]:
    """Return a panel's gaps: that its table lacks a column, as those of earlier versions do."""

    def gaps(study: Study) -> list[str]:
        df = study.tables.get(table)
        return [f"no column {column} in {table}.csv"] if df is not None and column not in df else []

    return gaps


def seed_variants(df: pd.DataFrame) -> list[tuple[str, object]]:
    """Return (name, seed) of each seed; one unnamed variant where there is one."""
    seeds = seeds_of(df)
    return [(f"seed {seed}", seed) for seed in seeds] if len(seeds) > 1 else [("", None)]
