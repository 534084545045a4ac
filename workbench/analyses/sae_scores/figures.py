"""Figures of `sae-scores`: what SAEs keep of predictions beside what they keep of activations, and how they shrink."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go


def draw_kept(table: pd.DataFrame) -> go.Figure:
    """The KL score of every SAE with its 95 % interval over sequences against its explained variance, filled; random
    directions as open marks."""
    fig, last = _marks(table, "explained_variance", "kl_score", ("kl_low", "kl_high"))
    for where in last:
        fig.update_xaxes(title_text="explained variance", nticks=6, **where)
        fig.update_yaxes(title_text="KL score" if where["col"] == 1 else None, nticks=6, **where)
    return fig.figure()


def draw_shrinkage(table: pd.DataFrame) -> go.Figure:
    """The reconstruction bias γ of every SAE against its number of active features, filled; random directions as open
    marks. Below 1 reconstructions are too short."""
    from reports.figures.style import AXIS

    fig, last = _marks(table, "l0", "reconstruction_bias", None)
    for where in last:
        fig.add_hline(1, {"color": AXIS, "width": 1}, **where)
        fig.update_xaxes(title_text="active features per token", nticks=6, **where)
        fig.update_yaxes(title_text="reconstruction bias γ" if where["col"] == 1 else None, nticks=6, **where)
    return fig.figure()


def _marks(table: pd.DataFrame, x: str, y: str, limits: tuple[str, str] | None) -> tuple[Any, list[Any]]:
    """(a figure with a panel for each model, its panels)."""
    from reports.figures.figure_builder import facets, scatter
    from reports.figures.style import MUTED, groups_of, label

    runs = list(groups_of(table))
    fig, cells = facets([label(run.model) for run in runs], columns=2, height=320)
    for run, where in zip(runs, cells, strict=True):
        has_seeds = run.rows["seed"].nunique() > 1
        for dictionary, colour, symbol in (("trained", run.colour, "circle"), ("random", MUTED, "circle-open")):
            rows = run.rows[run.rows["dictionary"] == dictionary]
            bars: dict[str, Any] = {}
            if limits is not None:
                above = (rows[limits[1]] - rows[y]).fillna(0).tolist()
                below = (rows[y] - rows[limits[0]]).fillna(0).tolist()
                bars["error_y"] = {
                    "type": "data", "array": above, "arrayminus": below, "symmetric": False, "width": 0,
                    "color": colour, "thickness": 1,
                }  # fmt: skip
            trace = scatter(
                x=rows[x].tolist(), y=rows[y].tolist(), mode="markers", name=dictionary, legendgroup=dictionary,
                showlegend=run is runs[0], marker={"color": colour, "symbol": symbol, "size": 6},
                text=[_name(row, has_seeds) for row in rows.itertuples()],
                hovertemplate="%{text}<br>%{x:.3g}, %{y:.3g}<extra></extra>", **bars,
            )  # fmt: skip
            fig.add_trace(trace, **where)
    return fig, cells


def _name(row: Any, has_seeds: bool) -> str:
    head = "whole hook" if row.head < 0 else f"H{row.head}"
    return f"L{row.layer} {head}, {row.dictionary}" + (f", seed {row.seed}" if has_seeds else "")
