"""Figures of head redundancy: cosines between heads, and their means by layer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from reports.figures.figure_builder import Cell, Draft, add_mean, facets, heatmap, layer_axis
from reports.figures.style import AXIS, DIVERGING, INK, groups_of, label, models_of, sorted_layers

BASES = {"z": "z", "pattern": "attention pattern", "residual": "residual contribution"}


def cosine_heatmaps(
    head_cosines: pd.DataFrame, basis: str, models: Sequence[str] | None = None, seed: int | None = None
) -> go.Figure:
    """Return the head-by-head cosines of one basis: a row of panels a model, a column a layer, one colour scale.

    The diagonal, 1 by definition, is grey and not a colour of the scale, which spans the cosines between different
    heads.
    `seed` picks one seed; by default the first that each model has.
    """
    df = head_cosines[head_cosines["basis"] == basis]
    names, layers = models_of(df, models), sorted_layers(df)
    columns = min(len(layers), 6)
    groups = [layers[start : start + columns] for start in range(0, len(layers), columns)]
    places = [
        (model, layer) for group in groups for model in names for layer in (*group, *[None] * (columns - len(group)))
    ]
    titles = ["" if layer is None or model != names[0] else f"layer {layer}" for model, layer in places]
    fig, cells = facets(titles, columns=columns, height=max(128, 700 // columns), vertical_spacing=30)
    apart = df[df["head_i"] != df["head_j"]]["cos"].abs()
    span = float(apart.max()) if apart.notna().any() else 1.0
    for (model, layer), where in zip(places, cells, strict=True):
        if layer is None:
            fig.update_xaxes(visible=False, **where)
            fig.update_yaxes(visible=False, **where)
            continue
        rows = df[(df["model"] == model) & (df["layer"] == layer)]
        rows = rows[rows["seed"] == (rows["seed"].iloc[0] if seed is None and len(rows) else seed)]
        _add_heatmap(fig, rows, model, where, is_leftmost=where["col"] == 1)
        if model == names[-1]:
            fig.update_xaxes(title={"text": "head", "font": {"size": 11, "color": INK}, "standoff": 2}, **where)
    scale = [list(stop) for stop in DIVERGING]
    bar = {"title": {"text": "cos"}, "thickness": 10, "len": 0.8, "outlinewidth": 0, "tickfont": {"size": 11}}
    fig.update_layout(coloraxis={"colorscale": scale, "cmin": -span, "cmax": span, "colorbar": bar}, plot_bgcolor=AXIS)
    return fig.figure()


def _add_heatmap(fig: Draft, rows: pd.DataFrame, model: str, where: Cell, *, is_leftmost: bool) -> None:
    square = rows.pivot_table(index="head_i", columns="head_j", values="cos", dropna=False)
    z = square.to_numpy(dtype=float, copy=True)
    z[square.index.to_numpy()[:, None] == square.columns.to_numpy()[None, :]] = np.nan
    heads = [int(head) for head in square.columns]
    hover = f"{label(model)}<br>heads %{{y}}, %{{x}}: %{{z:.4f}}<extra></extra>"
    fig.add_trace(
        heatmap(z=z.tolist(), x=heads, y=heads, coloraxis="coloraxis", hovertemplate=hover),
        **where,
    )
    ticks = {"tickvals": heads[:: max(1, (len(heads) + 3) // 4)], "ticks": "", "showgrid": False, "showline": False}
    fig.update_xaxes(**ticks, constrain="domain", **where)
    ticks["title"] = {
        "text": f"{label(model)}: head" if is_leftmost else None,
        "font": {"size": 11, "color": INK},
        "standoff": 4,
    }
    square_with = f"x{fig.suffix(**where)}"  # one unit of heads is as high as wide
    fig.update_yaxes(**ticks, autorange="reversed", constrain="domain", scaleanchor=square_with, **where)


def redundancy_by_layer(means: pd.DataFrame, models: Sequence[str] | None = None) -> go.Figure:
    """Return mean |cos| between heads by layer, one panel a basis, each with its own scale from 0.

    means: of mean_cos over seeds, by model, basis and layer.
    """
    bases = [basis for basis in BASES if (means["basis"] == basis).any()]
    fig, cells = facets([BASES[basis] for basis in bases], columns=3, height=230)
    layers = sorted_layers(means)
    for index, (basis, where) in enumerate(zip(bases, cells, strict=True)):
        df = means[means["basis"] == basis]
        for group in groups_of(df, models):
            add_mean(fig, group, "layer", where=where, n_models=df["model"].nunique())
        layer_axis(fig, layers, **where)
        fig.update_yaxes(rangemode="tozero", title_text="mean |cos| between heads" if index == 0 else None, **where)
    return fig.figure()
