"""A measure by layer for any number of models: in one panel while they can be told apart, else a panel a model."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go

from reports.figures.figure_builder import MAX_BANDED, Draft, add_mean, facets, layer_axis, scatter, single
from reports.figures.style import AXIS, groups_of, label, models_of, sorted_layers


def by_layer(means: pd.DataFrame, title: str, models: Sequence[str] | None = None) -> Draft:
    """Return a draft of a measure by layer, means over seeds with their bands, y from 0: columns model and layer.

    More than `MAX_BANDED` models have a panel each, with the other models' means as grey lines behind.
    """
    names, layers = models_of(means, models), sorted_layers(means)
    if len(names) <= MAX_BANDED:
        fig = single(height=380)
        for group in groups_of(means, models):
            add_mean(fig, group, "layer", where={})
        layer_axis(fig, layers)
        fig.update_yaxes(title_text=title, rangemode="tozero")
        return fig
    columns = 3
    fig, cells = facets([label(name) for name in names], columns=columns, height=150, shared_y=True)
    for group, where in zip(groups_of(means, models), cells, strict=True):
        others = means[means["model"] != group.model].sort_values("layer", kind="stable")
        fig.add_trace(grey_lines(others), **where)
        add_mean(fig, group, "layer", where=where, show=False)
        layer_axis(fig, layers, **where)
        is_last = (where["row"] - 1) * columns + where["col"] + columns > len(names)
        fig.update_xaxes(title_text="layer" if is_last else None, **where)
        fig.update_yaxes(title_text=title if where["col"] == 1 else None, rangemode="tozero", **where)
    return fig


def grey_lines(means: pd.DataFrame) -> dict:
    """Return the lines of several models as one grey trace with gaps between them."""
    x: list[float | None] = []
    y: list[float | None] = []
    for _, rows in means.groupby("model", sort=False):
        x += [*rows["layer"], None]
        y += [*rows["mean"], None]
    line = {"color": AXIS, "width": 1}
    return scatter(x=x, y=y, mode="lines", line=line, opacity=0.6, showlegend=False, hoverinfo="skip", name="others")


def measure_by_layer(means: pd.DataFrame, title: str, models: Sequence[str] | None = None) -> go.Figure:
    """Return the figure of `by_layer`."""
    return by_layer(means, title, models).figure()
