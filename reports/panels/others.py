"""Panels of tables that no panel of the page's own shows: what an analysis of a user's own wrote."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import pandas as pd
import plotly.graph_objects as go

from reports.contract import Table
from reports.panels.panel import Drawing, Panel, Section
from reports.study import Study
from reports.table_cells import MISSING, Cell, Grid, significant
from reports.tables import read_contracts

HEIGHT = 420  # pixels of a figure that does not say
MAX_ROWS = 500  # of a table on the page; the download has all
Figures = Mapping[str, Sequence[Callable[[pd.DataFrame], go.Figure]]]  # table -> functions that draw it


def other_section(study: Study, shown: Collection[str], figures: Figures) -> Section:
    """Return the section of the tables that are not in `shown`: drawn by their own figures, else as sortable tables."""
    contracts = read_contracts(study.directory)
    names = [name for name in study.tables if name in contracts and name not in shown]
    panels = [_panel(contracts[name], figures.get(name, ())) for name in names if contracts[name].is_shown]
    return Section(
        "others", "Further analyses", "Tables of analyses that this page has no figures of its own for.", tuple(panels)
    )


def _panel(table: Table, figures: Sequence[Callable[[pd.DataFrame], go.Figure]]) -> Panel:
    meanings = [
        f"{own.name}: {own.meaning}" + (f" ({own.unit})" if own.unit not in ("", "1") else "")
        for own in table.columns
        if own.meaning
    ]

    def draw(study: Study) -> list[Drawing | Grid]:
        df = study.tables[table.name]
        if figures:
            drawn = [function(df) for function in figures]
            for figure in drawn:  # else plotly takes what little the page gives an empty place
                figure.update_layout(height=figure.layout.height or HEIGHT)
            names = _names(figures) if len(drawn) > 1 else [""]
            return list(zip(names, drawn, strict=True))
        return [_grid(df, table)]

    return Panel(
        table.name,
        table.name.replace("_", " ").capitalize(),
        table.meaning,
        {table.name: table.leading},
        draw,
        detail="; ".join(meanings) + "." if meanings else "",
        gaps=lambda study: (
            [f"the first {MAX_ROWS} rows"] if not figures and len(study.tables[table.name]) > MAX_ROWS else []
        ),
        is_table=not figures,
        is_by_seed=True,
    )


def _names(figures: Sequence[Callable[[pd.DataFrame], go.Figure]]) -> list[str]:
    """What tells a table's figures apart on the page: the names of their functions in words, `draw_` left out; numbers
    where two would be the same, or one has none."""
    names = [getattr(own, "__name__", "").removeprefix("draw_").strip("_<>").replace("_", " ") for own in figures]
    return names if all(names) and len(set(names)) == len(names) else [str(i) for i in range(1, len(names) + 1)]


def _grid(df: pd.DataFrame, table: Table) -> Grid:
    columns = [column for column in df.columns if column not in table.key]
    rows = []
    for row in df.head(MAX_ROWS).to_dict("records"):
        headers = tuple(_text(row[name]) for name in table.key)
        rows.append((headers, tuple(Cell(_text(row[name])) for name in columns)))
    return Grid("", (), table.key, tuple(map(str, columns)), tuple(rows), is_sortable=True, is_wide=len(columns) > 8)


def _text(value: object) -> str:
    if isinstance(value, float):
        return MISSING if value != value else f"{value:.0f}" if value.is_integer() else significant(value, 4)
    return str(value)
