"""Figures of `feature-effects`: the strongest features with their intervals, and estimates beside exact values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

N_SHOWN = 20  # features of each model in the first figure


def draw_strongest_features(table: pd.DataFrame) -> go.Figure:
    """The features of each model whose ablation changes the loss most: exact with a 95 % interval over sequences, the
    gradient's estimate as an open mark."""
    from reports.figures.figure_builder import facets, scatter
    from reports.figures.style import AXIS, MUTED, label

    runs = _runs(table)
    fig, cells = facets([label(run.model) for run in runs], columns=2, height=60 + 18 * N_SHOWN)
    for run, where in zip(runs, cells, strict=True):
        size = run.rows["delta_loss"].abs()
        rows = run.rows.loc[size.sort_values(ascending=False, kind="stable").index[:N_SHOWN]]
        names, places = [_name(row, run.has_seeds) for row in rows.itertuples()], list(range(len(rows)))
        fig.add_vline(0, {"color": AXIS, "width": 1}, **where)
        above, below = (rows["ci_high"] - rows["delta_loss"]).fillna(0), (rows["delta_loss"] - rows["ci_low"]).fillna(0)
        exact = scatter(
            x=rows["delta_loss"].tolist(), y=places, mode="markers", name="ablated", legendgroup="ablated",
            showlegend=run is runs[0], marker={"color": run.colour, "symbol": "circle", "size": 7},
            error_x={
                "type": "data", "array": above.tolist(), "arrayminus": below.tolist(), "symmetric": False, "width": 0,
                "color": run.colour, "thickness": 1.4,
            },
            text=names, hovertemplate="%{text}: %{x:+.3g} nats per token<extra></extra>",
        )  # fmt: skip
        estimated = scatter(
            x=rows["estimate"].tolist(), y=places, mode="markers", name="estimate", legendgroup="estimate",
            showlegend=run is runs[0], marker={"color": MUTED, "symbol": "diamond-open", "size": 7}, text=names,
            hovertemplate="%{text}, by the gradient: %{x:+.3g} nats per token<extra></extra>",
        )  # fmt: skip
        for trace in (exact, estimated):
            fig.add_trace(trace, **where)
        fig.update_yaxes(tickvals=places, ticktext=names, ticks="", range=[len(rows) - 0.5, -0.5], **where)
        fig.update_xaxes(title_text="change of the loss (nats per token)", showgrid=True, nticks=5, **where)
    return fig.figure()


def draw_estimates_and_exact_values(table: pd.DataFrame) -> go.Figure:
    """The gradient's estimate against the exact change of the loss, a mark for each ablated feature; on the line they
    are equal."""
    from reports.figures.figure_builder import facets, scatter
    from reports.figures.style import AXIS, label

    runs = _runs(table)
    fig, cells = facets([label(run.model) for run in runs], columns=2, height=300)
    for run, where in zip(runs, cells, strict=True):
        rows = run.rows
        both = rows[["estimate", "delta_loss"]]
        low, high = float(both.min().min()), float(both.max().max())
        line = scatter(
            x=[low, high], y=[low, high], mode="lines", line={"color": AXIS, "width": 1}, showlegend=False,
            hoverinfo="skip",
        )  # fmt: skip
        dots = scatter(
            x=rows["delta_loss"].tolist(), y=rows["estimate"].tolist(), mode="markers", showlegend=False,
            marker={"color": run.colour, "symbol": run.symbol, "size": 5, "opacity": 0.6},
            text=[_name(row, run.has_seeds) for row in rows.itertuples()],
            hovertemplate="%{text}<br>ablated %{x:+.3g}, estimate %{y:+.3g} nats per token<extra></extra>",
        )  # fmt: skip
        for trace in (line, dots):
            fig.add_trace(trace, **where)
        fig.update_xaxes(title_text="exact (nats per token)", nticks=5, **where)
        fig.update_yaxes(title_text="estimate" if where["col"] == 1 else None, nticks=5, **where)
    return fig.figure()


class _Rows:
    """The ablated features of one model, with its marks."""

    def __init__(self, run: Any) -> None:
        self.model, self.colour, self.symbol = run.model, run.colour, run.symbol
        self.rows = run.rows[run.rows["delta_loss"].notna()]
        self.has_seeds = self.rows["seed"].nunique() > 1


def _runs(table: pd.DataFrame) -> list[_Rows]:
    from reports.figures.style import groups_of

    return [_Rows(run) for run in groups_of(table)]


def _name(row: Any, has_seeds: bool) -> str:
    head = "whole hook" if row.head < 0 else f"H{row.head}"
    return f"L{row.layer} {head} #{row.feature}" + (f", seed {row.seed}" if has_seeds else "")
