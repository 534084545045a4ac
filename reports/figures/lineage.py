"""Figures of the Kotodama lineage: measures beside the published figures, and one rank over training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pandas as pd
import plotly.graph_objects as go

from reports.figures.comparisons import model_axis
from reports.figures.figure_builder import add_mean, facets, scatter, single
from reports.figures.style import AXIS, INK, groups_of, label


def beside_published(
    means: Mapping[str, pd.DataFrame],
    published: Mapping[str, Mapping[str, float]],
    names: Sequence[str],
    models: Sequence[str] | None = None,
) -> go.Figure:
    """Return measures of some models as filled marks with their intervals over seeds, and the published figures as open
    diamonds, a panel a measure.

    Args:
        means: title of a measure -> its means over seeds by model.
        published: title of a measure -> model -> figure.
        names: the models shown, in the order of the x axis.
        models: all models of the study, in order: what colours and marks go by.
    """
    fig, cells = facets([label(title) for title in means], columns=3, height=200, vertical_spacing=130)
    for (title, own), where in zip(means.items(), cells, strict=True):
        for group in groups_of(own[own["model"].isin(list(names))], models):
            at = replace(group, rows=group.rows.assign(x=names.index(group.model)))
            hover = f"{label(group.model)}: %{{y:.4g}}%{{text}}<extra></extra>"
            add_mean(fig, at, "x", where=where, show=False, mode="markers", hovertemplate=hover)
        known = {model: figure for model, figure in published.get(title, {}).items() if model in names}
        theirs = scatter(
            x=[names.index(model) for model in known], y=list(known.values()), mode="markers", name="published",
            legendgroup="published", text=[label(model) for model in known],
            marker={"symbol": "diamond-open", "color": INK, "size": 9, "line": {"width": 1.4}},
            hovertemplate="%{text}, published: %{y:.4g}<extra></extra>",
        )  # fmt: skip
        fig.add_trace(theirs, **where)
        model_axis(fig, names, **where)
    return fig.figure()


def rank_over_phase(ranks: pd.DataFrame, y_title: str, models: Sequence[str] | None = None) -> go.Figure:
    """Return a rank over the steps x of the last phase, of which 0 is the start: means over seeds by model and x."""
    fig = single(height=380)
    n_models = ranks["model"].nunique()
    for group in groups_of(ranks, models):
        add_mean(fig, group, "x", where={}, n_models=n_models, mode="lines+markers")
    if (ranks["x"] < 0).any():
        fig.add_vline(0, {"color": AXIS, "width": 1})
    fig.update_xaxes(title_text="step of the last phase")
    fig.update_yaxes(title_text=label(y_title), rangemode="tozero")
    return fig.figure()
