"""A figure while it is put together: plain dictionaries that plotly checks once, at the end.

Plotly's own figure validates at every call: a page of thirty figures of small panels takes seconds of nothing else. A
draft has the few calls that our figures need, under plotly's names.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import product
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from reports.figures.style import AXIS, BAND, FONT, GRID, INK, MUTED, PALETTE, PAPER, Run, label
from reports.seed_means import each_seed, seeds_behind
from reports.table_cells import name_seeds

MAX_BANDED = 4  # models in one panel whose seeds' bands can still be told apart

# pixels of the legend above a figure: a line's height, an entry's mark and letter, and the width that it mostly has
LEGEND_LINE, LEGEND_MARK, LEGEND_LETTER, LEGEND_WIDTH = 24, 52, 7, 880

COLOUR_BAR, LONG = 84, 8  # pixels at the right of a colour bar with its labels; letters of a label that fits a margin

# where a panel sits in its figure: row and col, from 1; nothing in a figure of one panel
Cell = dict[str, int]


class Draft:
    """Panels on a grid, filled trace by trace; `figure` ends it."""

    def __init__(self, n_rows: int, n_cols: int, layout: dict[str, Any]) -> None:
        self.n_rows, self.n_cols = n_rows, n_cols
        self.traces: list[Any] = []
        self.layout: dict[str, Any] = {"shapes": [], "annotations": [], **layout}
        for number in range(1, n_rows * n_cols + 1):
            suffix = "" if number == 1 else str(number)
            self.layout[f"xaxis{suffix}"] = {"anchor": f"y{suffix}"}
            self.layout[f"yaxis{suffix}"] = {"anchor": f"x{suffix}"}

    def suffix(self, row: int = 1, col: int = 1) -> str:
        """Return what plotly calls the axes of a panel by: nothing, 2, 3, …"""
        number = (row - 1) * self.n_cols + col
        return "" if number == 1 else str(number)

    def add_trace(self, trace: Any, **where: int) -> None:
        """Add a plotly trace to a panel."""
        suffix = self.suffix(**where)
        trace.update(xaxis=f"x{suffix}", yaxis=f"y{suffix}")
        self.traces.append(trace)

    def update_xaxes(self, row: int = 1, col: int = 1, **settings: Any) -> None:
        """Set the x axis of a panel; `title_text` is its title."""
        self._update(f"xaxis{self.suffix(row, col)}", settings)

    def update_yaxes(self, row: int = 1, col: int = 1, **settings: Any) -> None:
        """Set the y axis of a panel; `title_text` is its title."""
        self._update(f"yaxis{self.suffix(row, col)}", settings)

    def _update(self, name: str, settings: dict[str, Any]) -> None:
        axis = self.layout[name]
        if "title_text" in settings:
            axis["title"] = {"text": settings.pop("title_text")}
        axis.update(settings)

    def add_hline(self, y: float, line: dict[str, Any], **where: int) -> None:
        """Add a horizontal line across a panel."""
        suffix = self.suffix(**where)
        place = {"x0": 0, "x1": 1, "y0": y, "y1": y, "xref": f"x{suffix} domain", "yref": f"y{suffix}"}
        self.layout["shapes"].append({"type": "line", "line": line, **place})

    def add_vline(self, x: float, line: dict[str, Any], **where: int) -> None:
        """Add a vertical line across a panel."""
        suffix = self.suffix(**where)
        place = {"x0": x, "x1": x, "y0": 0, "y1": 1, "xref": f"x{suffix}", "yref": f"y{suffix} domain"}
        self.layout["shapes"].append({"type": "line", "line": line, **place})

    def annotate(self, **settings: Any) -> None:
        """Add a text without an arrow."""
        self.layout["annotations"].append({"showarrow": False, **settings})

    def update_layout(self, **settings: Any) -> None:
        """Set what belongs to the whole figure."""
        self.layout.update(settings)

    def figure(self) -> go.Figure:
        """Return the figure, checked by plotly; a long legend has its further lines above the panels."""
        self._name_once()
        names = [trace["name"] for trace in self.traces if trace.get("name") and trace.get("showlegend", True)]
        n_lines = max(1, -(-sum(LEGEND_MARK + LEGEND_LETTER * len(name) for name in names) // LEGEND_WIDTH))
        extra = (n_lines - 1) * LEGEND_LINE
        margin = self._margin()
        tall = {"height": self.layout["height"] + extra, "margin": {**margin, "t": margin["t"] + extra}}
        return go.Figure(data=self.traces, layout={"template": template(), **self.layout, **tall})

    def _margin(self) -> dict[str, Any]:
        """Return the margins in pixels. Where labels may be longer than numbers plotly measures them all and widens the
        margins, which takes half of the time that a figure takes: elsewhere they stay as they are."""
        margin = dict(self.layout["margin"])
        if "coloraxis" in self.layout:
            margin["r"] = max(margin["r"], COLOUR_BAR)
        for name, axis in self.layout.items():
            is_named = name[1:5] == "axis" and any(len(str(text)) > LONG for text in axis.get("ticktext", ()))
            if is_named:
                axis["automargin"] = margin["autoexpand"] = True
        return margin

    def _name_once(self) -> None:
        """Let the legend name each group by the first of its traces that has a point: plotly names none without."""
        named: set[str] = set()
        for trace in self.traces:
            group = trace.get("legendgroup") or trace.get("name")
            if group is None or trace.get("showlegend") is False:
                continue
            has_point = any(value is not None and value == value for value in trace["y"])  # nan is not itself
            trace["showlegend"] = has_point and group not in named
            named |= {group} if has_point else set()


@cache
def template() -> go.layout.Template:
    """Return the workbench's font and axes; transparent, so that the page shows through."""
    axis = {
        "showgrid": True,
        "gridcolor": GRID,
        "gridwidth": 1,
        "zeroline": False,
        "showline": True,
        "linecolor": AXIS,
        "linewidth": 1,
        "ticks": "outside",
        "ticklen": 4,
        "tickcolor": AXIS,
        "tickfont": {"size": 11, "color": MUTED},
        "title": {"font": {"size": 12, "color": INK}, "standoff": 8},
        # each of the three would measure every label
        "automargin": False,
        "ticklabeloverflow": "allow",
        "tickangle": 0,
    }
    font = {"family": FONT, "size": 12, "color": INK}
    layout = {
        "font": font,
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "xaxis": {**axis, "showgrid": False},
        "yaxis": axis,
        "hoverlabel": {"font": font, "bgcolor": PAPER, "bordercolor": AXIS},
        "colorway": list(PALETTE),
    }
    return go.layout.Template(layout=layout)


def scatter(**settings: Any) -> dict[str, Any]:
    """Return a trace of lines and marks."""
    return {"type": "scatter", **settings}


def heatmap(**settings: Any) -> dict[str, Any]:
    """Return a trace of coloured cells."""
    return {"type": "heatmap", **settings}


def single(*, height: int = 340) -> Draft:
    """Return an empty draft of one panel; its height in pixels."""
    return Draft(1, 1, frame(height))


def facets(
    titles: Sequence[str],
    *,
    columns: int,
    height: int,
    shared_y: bool = False,
    vertical_spacing: int = 56,
    gap: float | None = None,
) -> tuple[Draft, list[Cell]]:
    """Return an empty draft of small panels, `columns` a row, and the place of each; heights in pixels.

    gap: between panels side by side, in widths of the figure, where tick labels are longer than numbers.
    """
    columns = max(1, min(columns, len(titles)))
    n_rows = max(1, -(-len(titles) // columns))
    total = n_rows * height + (n_rows - 1) * vertical_spacing
    gap_x, gap_y = gap or (0.03 if shared_y else 0.075), vertical_spacing / total
    width, depth = (1 - gap_x * (columns - 1)) / columns, height / total
    named = {f"x{index + 1 if index else ''}": title for index, title in enumerate(titles)}
    draft = Draft(n_rows, columns, {**frame(total + 108, top=60), "meta": {"columns": columns, "panels": named}})
    cells: list[Cell] = []
    for index, title in enumerate(titles):
        where = {"row": index // columns + 1, "col": index % columns + 1}
        left, top = index % columns * (width + gap_x), 1 - index // columns * (depth + gap_y)
        draft.update_xaxes(**where, domain=[left, min(1.0, left + width)])
        draft.update_yaxes(**where, domain=[max(0.0, top - depth), top])
        if shared_y and index:
            draft.update_yaxes(**where, matches="y", showticklabels=where["col"] == 1)
        font = {"size": 12, "color": INK}
        place = {"x": left + width / 2, "y": top, "xref": "paper", "yref": "paper", "yanchor": "bottom", "yshift": 2}
        if title:
            draft.annotate(text=title, font=font, xanchor="center", **place)
        cells.append(where)
    for index in range(len(titles), n_rows * columns):  # the last row's empty places
        where = {"row": index // columns + 1, "col": index % columns + 1}
        draft.update_xaxes(**where, visible=False, domain=[0, 0.01])
        draft.update_yaxes(**where, visible=False, domain=[0, 0.01])
    return draft, cells


def frame(height: int, top: int = 44) -> dict[str, Any]:
    """Return the layout of a whole figure: height and margins in pixels, the legend in a line above."""
    return {
        "height": height,
        "margin": {"l": 60, "r": 16, "t": top, "b": 48, "autoexpand": False},
        "legend": {"orientation": "h", "x": 0, "xanchor": "left", "y": 1, "yref": "container", "yanchor": "top"},
        "hovermode": "closest",
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": MUTED, "activecolor": INK},
        "autosize": True,
    }


def layer_axis(fig: Draft, layers: Sequence[int], **where: int) -> None:
    """Name and tick the x axis by layer: whole numbers, each once, never 0.5."""
    step = max(1, -(-len(layers) // 14))
    fig.update_xaxes(title_text="layer", tickvals=list(layers)[::step], **where)


def add_run(fig: Draft, run: Run, x: Any, y: Any, *, where: Cell, show: bool = True, **marks: Any) -> None:
    """Add one run's line with its model's colour, marker and dash; the legend shows each model once."""
    style = {
        "mode": "lines+markers",
        "line": {"color": run.colour, "width": 1.8, "dash": run.dash},
        "marker": {"color": run.colour, "symbol": run.symbol, "size": 7},
        "opacity": 1.0 if run.is_first else 0.55,
        "hovertemplate": f"{label(run.model)}, seed {run.seed}<br>%{{x}}: %{{y:.4g}}<extra></extra>",
    }
    names = {"name": label(run.model), "legendgroup": run.model, "showlegend": run.is_first and show}
    trace = scatter(x=list(x), y=list(y), **{**names, **style, **marks})
    fig.add_trace(trace, **where)


def add_mean(
    fig: Draft,
    group: Run,
    x: str,
    *,
    where: Cell,
    show: bool = True,
    offset: float = 0.0,
    n_models: int = 1,
    is_each: bool = True,
    **marks: Any,
) -> None:
    """Add a model's line over its seeds: rows of seed_means.csv, one for each x.

    A lone seed is its line; two are the line of their means and, unless told otherwise, a faint mark each; from three
    on that line has the band of its 95 % interval (error bars where it is marks only). Where more than `MAX_BANDED` of
    `n_models` share the panel, their intervals would hide each other and are in the text of the marks only.
    """
    found = group.rows.sort_values(x, kind="stable").rename(columns={x: "x"})
    seeds = seeds_behind(found)
    if is_each and len(seeds) == 2:
        _add_each(fig, group, each_seed(found), offset, where)
    at = found["x"] + offset
    banded = found["ci_low"].notna() & (n_models <= MAX_BANDED)
    is_line = "lines" in marks.get("mode", "lines") and len(found) > 1
    if is_line and banded.any():
        fig.add_trace(_band(group, at[banded], found[banded]), **where)
    elif banded.any():
        marks["error_y"] = {**error_bars(found), "thickness": 1.2, "width": 0, "color": group.colour}
    add_run(fig, group, at, found["mean"], where=where, show=show, **{**_hover(group, found, seeds), **marks})


def error_bars(means: pd.DataFrame) -> dict[str, Any]:
    """Return the lengths of the bars that end at the intervals of means over seeds; 0 where there is none."""
    return {"type": "data", "array": (means["ci_high"] - means["mean"]).fillna(0.0).tolist()}


def _add_each(fig: Draft, group: Run, dots: pd.DataFrame, offset: float, where: Cell) -> None:
    trace = scatter(
        x=(dots["x"] + offset).tolist(), y=dots["value"].tolist(), mode="markers", showlegend=False,
        legendgroup=group.model, text=dots["seed"].tolist(),
        marker={"color": group.colour, "symbol": group.symbol, "size": 4, "opacity": 0.5},
        hovertemplate=f"{label(group.model)}, seed %{{text}}<br>%{{x}}: %{{y:.4g}}<extra></extra>",
    )  # fmt: skip
    fig.add_trace(trace, **where)


def _band(group: Run, x: pd.Series, found: pd.DataFrame) -> dict[str, Any]:
    return scatter(
        x=[*x, *x[::-1]], y=[*found["ci_high"], *found["ci_low"][::-1]], mode="lines", fill="toself",
        fillcolor=group.colour + BAND, line={"color": group.colour, "width": 0}, legendgroup=group.model,
        showlegend=False, hoverinfo="skip", name=f"{label(group.model)}, 95 % interval",
    )  # fmt: skip


def _hover(group: Run, found: pd.DataFrame, seeds: Sequence[object]) -> dict[str, Any]:
    name = f"{label(group.model)}, {name_seeds(seeds)}" if seeds else label(group.model)
    known = zip(found["ci_low"], found["ci_high"], strict=True)
    notes = [f" [{low:z.4g}, {high:z.4g}]" if low == low else "" for low, high in known]  # nan is not itself
    # x without the offset that keeps marks of two models apart
    at = {
        "customdata": found["x"].tolist(),
        "hovertemplate": f"{name}<br>%{{customdata}}: %{{y:.4g}}%{{text}}<extra></extra>",
    }
    return {"text": notes, **at}


def add_level(fig: Draft, value: float, text: str, **where: int) -> None:
    """Add a horizontal reference line to a panel, or to every panel, with its name at the right end of the first."""
    every = product(range(1, fig.n_rows + 1), range(1, fig.n_cols + 1))
    for row, col in [(where["row"], where["col"])] if where else every:
        fig.add_hline(value, {"color": MUTED, "width": 1.2, "dash": "dot"}, row=row, col=col)
    font, suffix = {"size": 11, "color": MUTED}, fig.suffix(**where)
    place = {"x": 1, "xref": f"x{suffix} domain", "xanchor": "right", "y": value, "yref": f"y{suffix}"}
    fig.annotate(text=label(text), font=font, yanchor="bottom", **place)
