"""Figures over training: the measures of a table over the steps of a model's checkpoints, a line per layer or head."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
import plotly.graph_objects as go

from reports.contract import KEYS, PLACES, Column, Table
from reports.figures.figure_builder import Cell, Draft, facets, scatter
from reports.figures.style import DASHES, DEPTH, SYMBOLS, label

# what a line is of, the first that a table's key has; else the last column of the key
LINES = ("head", "layer", "set")
MAX_PANELS, MAX_LINES = 36, 64  # of a figure, and of a panel: what has more is not drawn
MAX_TOGETHER = 12  # panels up to which all measures share a figure; else each has its own
MAX_TICKS = 6  # of checkpoints that are spaced evenly
# of a list in descending order: what is drawn of it
OF_A_LIST = {"largest σ": 0.0, "middle σ": 0.5, "smallest σ": 1.0}


@dataclass(frozen=True)
class Steps:
    """The x axis of all panels."""

    steps: tuple[int, ...]
    """of all checkpoints, in order"""

    @property
    def is_even(self) -> bool:
        """Whether checkpoints stand at even distances: most of them are of a small part of the training, as where
        steps double (1, 2, 4, …), and would else fall together."""
        return len(self.steps) > 3 and self.steps[len(self.steps) // 2] < self.steps[-1] / 10

    def places(self, steps: Sequence[int]) -> list[int]:
        """Where these steps stand."""
        return [self.steps.index(step) for step in steps] if self.is_even else list(steps)

    def name(self, fig: Draft, where: Cell, *, is_last: bool) -> None:
        """Tick, and in the last row of panels name, the axis of a panel."""
        if self.is_even:
            every = -(-len(self.steps) // MAX_TICKS)
            places = range(0, len(self.steps), every)
            fig.update_xaxes(tickvals=list(places), ticktext=[str(self.steps[i]) for i in places], **where)
        title = "step (checkpoints evenly spaced)" if self.is_even else "step"
        fig.update_xaxes(title_text=title if is_last else None, **where)


def over_checkpoints(df: pd.DataFrame, table: Table) -> list[tuple[str, go.Figure]]:
    """Return (name, figure) of every measure of a table over training, all in one figure where they are few; nothing
    where a step has more rows, or panels more lines, than can be told apart.

    Measures are the table's numbers that vary, without the ends of intervals; of singular values the largest, the
    middle and the smallest. Every model and seed has figures of its own.
    """
    df, columns = _unpacked(df, table)
    keys = ["model", "seed", "step"]
    places = [name for name in table.key if name not in keys and name in df]
    # a count, such as the words of a set, tells nothing apart that its set does not
    for name in [name for name in places if KEYS.get(name) == "integer" and name not in PLACES]:
        rest = [other for other in places if other != name]
        if not df.duplicated([*keys, *rest]).any():
            places = rest
    line = line_of(places)
    if df.duplicated([*keys, *places]).any() or (line and df[line].nunique() > MAX_LINES):
        return []
    found = []
    runs = list(df.groupby(["model", "seed"], sort=False))
    for (model, seed), rows in runs:
        name = f"{model}, seed {seed}" if len(runs) > 1 else ""
        measures = [own.name for own in columns if is_measure(own) and _varies(own.name, rows)]
        beside = [place for place in places if place != line]
        found += [(", ".join(filter(None, (name, of))), fig) for of, fig in _figures(rows, measures, beside, line)]
    return found


def line_of(places: Sequence[str]) -> str:
    """Return the column of a key that tells lines apart; nothing where a step has one row."""
    return next((name for name in LINES if name in places), places[-1] if places else "")


def _unpacked(df: pd.DataFrame, table: Table) -> tuple[pd.DataFrame, list[Column]]:
    """Return the table with the drawn values of a list of singular values as columns, and the columns to draw."""
    columns = [*table.columns, *table.trailing]
    if "singular_values" not in df:
        return df, columns
    lists = df["singular_values"].map(json.loads)
    for name, share in OF_A_LIST.items():
        df = df.assign(**{name: [values[round(share * (len(values) - 1))] for values in lists]})
    return df, [Column(name) for name in OF_A_LIST]


def is_measure(column: Column) -> bool:
    """Return whether a column is drawn where it varies: a number that is neither a count nor the end of an interval."""
    return column.kind == "number" and not column.name.endswith(("_low", "_high"))


def _varies(name: str, rows: pd.DataFrame) -> bool:
    return name in rows and pd.api.types.is_numeric_dtype(rows[name]) and rows[name].nunique() > 1


def _figures(
    rows: pd.DataFrame, measures: Sequence[str], beside: Sequence[str], line: str
) -> list[tuple[str, go.Figure]]:
    """Return the figures of one model: one of all measures, or one of each."""
    panels = {measure: _panels(rows, measure, beside, line) for measure in measures}
    panels = {measure: own for measure, own in panels.items() if len(own) <= MAX_PANELS}
    lines = sorted(rows[line].unique()) if line else [""]
    steps = Steps(tuple(sorted({int(step) for step in rows["step"]})))
    if 0 < sum(map(len, panels.values())) <= MAX_TOGETHER:
        named = {_title(m, title): (m, own) for m, found in panels.items() for title, own in found.items()}
        return [("", _draw(named, line, lines, steps, columns=3))]
    drawn = {m: {title: (m, own) for title, own in found.items()} for m, found in panels.items()}
    return [(_spelt(measure), _draw(own, line, lines, steps, columns=4)) for measure, own in drawn.items()]


def _panels(rows: pd.DataFrame, measure: str, beside: Sequence[str], line: str) -> dict[str, pd.DataFrame]:
    """Return title -> rows of each panel of a measure, which places that it is the same at do not tell apart."""
    rows = rows[rows[measure].notna()]
    kept = list(beside)
    for name in beside:
        rest = [other for other in kept if other != name]
        by = [*rest, *([line] if line else []), "step"]
        if rows.groupby(by)[measure].nunique().max() == 1:
            kept = rest
    if not kept:
        return {"": rows}
    return {
        ", ".join(_place(name, value) for name, value in zip(kept, values, strict=True)): own
        for values, own in rows.groupby(kept, sort=False)
    }


def _place(name: str, value: object) -> str:
    return str(value) if KEYS.get(name, "text") == "text" else f"{_spelt(name)} {value}"


def _title(measure: str, place: str) -> str:
    return f"{_spelt(measure)}, {place}" if place else _spelt(measure)


def _spelt(name: str) -> str:
    return name.replace("_", " ")


def _draw(
    panels: Mapping[str, tuple[str, pd.DataFrame]],
    line: str,
    lines: Sequence[object],
    steps: Steps,
    *,
    columns: int,
) -> go.Figure:
    """Return the figure of panels: title -> (measure, rows)."""
    columns = min(len(panels), columns)
    fig, cells = facets([label(title) for title in panels], columns=columns, height=340 if columns == 1 else 180)
    for index, ((measure, rows), where) in enumerate(zip(panels.values(), cells, strict=True)):
        rows = rows.drop_duplicates([line, "step"] if line else ["step"])
        for place, value in enumerate(lines):
            own = rows[rows[line] == value] if line else rows
            if len(own):
                name = _place(line, value) if line else _spelt(measure)
                fig.add_trace(_trace(own.sort_values("step"), measure, name, place, len(lines), steps), **where)
        steps.name(fig, where, is_last=index + columns >= len(panels))
        fig.update_yaxes(rangemode="tozero", **where)
    return fig.figure()


def _trace(rows: pd.DataFrame, measure: str, name: str, place: int, n_lines: int, steps: Steps) -> dict:
    """Return the line of one layer or head, coloured by its place among all."""
    stop = round(place * (len(DEPTH) - 1) / max(1, n_lines - 1))
    before = sum(round(i * (len(DEPTH) - 1) / max(1, n_lines - 1)) == stop for i in range(place))
    at = [int(step) for step in rows["step"]]
    said = rows["revision"] if "revision" in rows else [""] * len(at)
    return scatter(
        x=steps.places(at), y=rows[measure].tolist(), mode="lines+markers", name=label(name), legendgroup=name,
        line={"color": DEPTH[stop], "width": 1.6, "dash": DASHES[before % len(DASHES)]},
        marker={"color": DEPTH[stop], "size": 5, "symbol": SYMBOLS[place % len(SYMBOLS)]},
        text=[f"step {step}" + (f", {label(own)}" if own else "") for step, own in zip(at, said, strict=True)],
        hovertemplate=f"{label(name)}, %{{text}}: %{{y:.4g}}<extra></extra>",
    )  # fmt: skip
