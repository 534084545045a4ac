"""The figure of a study of several sizes: each claim's effect over the size of the models."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from reports.figures.figure_builder import Cell, Draft, facets, scatter
from reports.figures.style import AXIS, BLUE, INK, MUTED, label

PADDING = 0.6  # of a panel above and below its marks, in heights of what they span
TITLE = 44  # letters of a panel's title


def effects_over_size(by_size: pd.DataFrame, slopes: pd.DataFrame) -> go.Figure:
    """Return the effects of claims over parameters, on a logarithmic axis, a panel a claim: filled marks with 95 %
    intervals, the straight line drawn out to the published size with its prediction interval, the published effect.

    Args:
        by_size: rows of claims_by_size.csv that have an effect.
        slopes: rows of size_slopes.csv.
    """
    claims = by_size.drop_duplicates("claim_id")
    titles = [label(text if len(text) <= TITLE else f"{text[: TITLE - 1]}…") for text in claims["claim"]]
    fig, cells = facets(titles, columns=3, height=190, vertical_spacing=84)
    for (claim_id, unit), where in zip(claims[["claim_id", "unit"]].itertuples(index=False), cells, strict=True):
        own = by_size[by_size["claim_id"] == claim_id].sort_values("n_parameters", kind="stable")
        line = slopes[slopes["claim_id"] == claim_id]
        fig.add_hline(0, {"color": AXIS, "width": 1}, **where)
        _add_line(fig, own, line, where)
        _add_effects(fig, own, where)
        _add_published(fig, line, where)
        _set_axes(fig, own, line, str(unit), where)
    return fig.figure()


def _add_effects(fig: Draft, own: pd.DataFrame, where: Cell) -> None:
    texts = [f"{row.size_name}: {row.verdict}" for row in own.rename(columns={"size": "size_name"}).itertuples()]
    trace = scatter(
        x=own["n_parameters"].tolist(), y=own["effect"].tolist(), mode="markers", name="measured",
        legendgroup="measured", text=[label(text) for text in texts], marker={"color": BLUE, "size": 8},
        error_y=_bars(own["effect"], own["ci_low"], own["ci_high"], BLUE),
        hovertemplate="%{text}<br>%{x:,.3s} parameters: %{y:.4g}<extra></extra>",
    )  # fmt: skip
    fig.add_trace(trace, **where)


def _add_line(fig: Draft, own: pd.DataFrame, line: pd.DataFrame, where: Cell) -> None:
    """Add the line of a claim that has one, and its end at the published size."""
    end = line.dropna(subset=["predicted"])
    trace = scatter(
        x=[*own["n_parameters"], *end["published_params"]], y=[*own["line"], *end["predicted"]], mode="lines",
        name="straight line", legendgroup="line", line={"color": MUTED, "width": 1.4, "dash": "dash"}, hoverinfo="skip",
    )  # fmt: skip
    fig.add_trace(trace, **where)
    trace = scatter(
        x=end["published_params"].tolist(), y=end["predicted"].tolist(), mode="markers", name="predicted",
        legendgroup="predicted", marker={"symbol": "circle-open", "color": MUTED, "size": 8},
        error_y=_bars(end["predicted"], end["predicted_low"], end["predicted_high"], MUTED),
        hovertemplate="the line at the published size: %{y:.4g}<extra></extra>",
    )  # fmt: skip
    fig.add_trace(trace, **where)


def _add_published(fig: Draft, line: pd.DataFrame, where: Cell) -> None:
    known = line.dropna(subset=["published_params", "published_effect"])
    trace = scatter(
        x=known["published_params"].tolist(), y=known["published_effect"].tolist(), mode="markers", name="published",
        legendgroup="published", marker={"symbol": "diamond-open", "color": INK, "size": 9, "line": {"width": 1.4}},
        hovertemplate="published: %{y:.4g}<extra></extra>",
    )  # fmt: skip
    fig.add_trace(trace, **where)


def _bars(middle: pd.Series, low: pd.Series, high: pd.Series, colour: str) -> dict:
    """Error bars that end at an interval; none where there is none."""
    return {
        "type": "data", "symmetric": False, "array": (high - middle).fillna(0.0).tolist(),
        "arrayminus": (middle - low).fillna(0.0).tolist(), "thickness": 1.2, "width": 0, "color": colour,
    }  # fmt: skip


def _set_axes(fig: Draft, own: pd.DataFrame, line: pd.DataFrame, unit: str, where: Cell) -> None:
    """Set the axes by the marks alone: an interval that is much wider than what they span runs out of the panel."""
    marks = [0.0, *own["effect"], *line["published_effect"].dropna()]
    room = PADDING * ((max(marks) - min(marks)) or 1.0)
    fig.update_yaxes(range=[min(marks) - room, max(marks) + room], **where)
    if unit != "plain":
        fig.update_yaxes(tickformat="+.2~%", **where)
    fig.update_xaxes(type="log", title_text="parameters", dtick=1, tickformat=".0s", **where)
