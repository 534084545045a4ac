"""The figure of concept words in the plane of their first two principal components, beside their crystallisation."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go

from reports.figures.figure_builder import Cell, Draft, add_mean, facets, layer_axis, scatter
from reports.figures.style import AXIS, INK, MUTED, SEQUENTIAL, groups_of, label, models_of, seeds_of, sorted_layers

MAX_NAMED = 8  # words of a set whose names all fit beside their points; of more, the first and the last


def concept_points(
    points: pd.DataFrame, mantel: pd.DataFrame, name: str, models: Sequence[str] | None = None
) -> go.Figure:
    """Return one set's words on their first two components, a panel a model at its own best layer (of its first seed),
    behind a panel of Mantel r by layer where `mantel`, its means over seeds by model, set and layer, has the set."""
    df = points[points["set"] == name]
    curves = mantel[mantel["set"] == name]
    has_curves = not curves.empty
    chosen = {group.model: best_rows(group.rows) for group in groups_of(df, models)}
    titles = [_title(model, rows) for model, rows in chosen.items()]
    n_panels = len(titles) + has_curves
    columns = n_panels if n_panels <= 4 else 5
    fig, cells = facets(["Mantel r by layer"] * has_curves + titles, columns=columns, height=190)
    if has_curves:
        _add_curves(fig, curves, models, cells[0])
    for rows, where in zip(chosen.values(), cells[has_curves:], strict=True):
        _add_words(fig, rows, where)
    return fig.figure()


def best_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """Return one model's rows of its first seed and of the layer marked best, else of the last; in the words' order."""
    rows = rows[rows["seed"] == seeds_of(rows)[0]]
    best = rows[rows["is_best"] == 1] if "is_best" in rows else rows.iloc[:0]
    rows = rows[rows["layer"] == rows["layer"].max()] if best.empty else best
    return rows.sort_values("place", kind="stable")


def _title(model: str, rows: pd.DataFrame) -> str:
    layer = int(rows["layer"].iloc[0])
    return f"{label(model)}, {'embedding' if layer < 0 else f'layer {layer}'}"


def _add_curves(fig: Draft, curves: pd.DataFrame, models: Sequence[str] | None, where: Cell) -> None:
    names = models_of(curves, models)
    for group in groups_of(curves, models):
        add_mean(fig, group, "layer", where=where, n_models=len(names), marker=_small(group))
    fig.add_hline(0, {"color": AXIS, "width": 1}, **where)
    layer_axis(fig, sorted_layers(curves), **where)
    fig.update_xaxes(title_text=None, **where)  # the panel's title says it, and the next row is near


def _small(group) -> dict:
    return {"color": group.colour, "symbol": group.symbol, "size": 5}


def _add_words(fig: Draft, rows: pd.DataFrame, where: Cell) -> None:
    """Add the words as points coloured by place, joined in their order (a cycle is closed), and name them."""
    x, y, items = rows["pc1"].tolist(), rows["pc2"].tolist(), rows["item"].tolist()
    is_ring = int((rows["topology"] == "cyclic").any())
    path = scatter(
        x=x + x[:1] * is_ring, y=y + y[:1] * is_ring, mode="lines", line={"color": AXIS, "width": 1},
        showlegend=False, hoverinfo="skip",
    )  # fmt: skip
    fig.add_trace(path, **where)
    named = range(len(items)) if len(items) <= MAX_NAMED else (0, len(items) - 1)
    colours = {"colorscale": [list(stop) for stop in SEQUENTIAL], "cmin": 0, "cmax": max(1, len(items) - 1)}
    marks = scatter(
        x=x, y=y, mode="markers+text", showlegend=False,
        marker={"color": rows["place"].tolist(), "size": 8, "line": {"color": MUTED, "width": 0.8}, **colours},
        text=[label(item) if k in named else "" for k, item in enumerate(items)],
        textposition="top center", textfont={"size": 10, "color": INK}, cliponaxis=False,
        customdata=[label(item) for item in items],
        hovertemplate="%{customdata}: %{x:.3g}, %{y:.3g}<extra></extra>",
    )  # fmt: skip
    fig.add_trace(marks, **where)
    shares = [rows[column].iloc[0] for column in ("share_pc1", "share_pc2")]
    names = [f"PC{k + 1}" + (f" ({100 * share:.0f} %)" if share == share else "") for k, share in enumerate(shares)]
    ends = {"showticklabels": False, "ticks": "", "showgrid": False}
    fig.update_xaxes(title_text=names[0], **ends, **where)
    # one unit is as long on both axes: distances are what the picture shows
    fig.update_yaxes(title_text=names[1], scaleanchor=f"x{fig.suffix(**where)}", **ends, **where)
