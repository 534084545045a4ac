"""The figure of what interventions change: a panel a measure, a row a comparison of two models."""

from __future__ import annotations

from typing import Any

import pandas as pd
import plotly.graph_objects as go

from reports.figures.figure_builder import facets, scatter
from reports.figures.style import AXIS, BLUE, MUTED, label


def changes(effects: pd.DataFrame, *, columns: int = 4) -> go.Figure:
    """Return every effect with its interval about 0, filled where the interval leaves out 0: rows of effects.csv, their
    comparisons as they are to be named."""
    measures, comparisons = (list(dict.fromkeys(effects[column])) for column in ("measure", "comparison"))
    height = 24 + 20 * len(comparisons)
    columns = min(columns, len(measures))
    fig, cells = facets([label(measure) for measure in measures], columns=columns, height=height, shared_y=True)
    fig.update_layout(meta={"columns": columns + 1})  # the names of the comparisons take the width of a panel
    for measure, where in zip(measures, cells, strict=True):
        fig.add_vline(0, {"color": AXIS, "width": 1}, **where)
        own = effects[effects["measure"] == measure]
        is_known = own["ci_low"].notna().tolist()
        leaves_0 = ((own["ci_low"] > 0) | (own["ci_high"] < 0)).tolist()
        half = (own["ci_high"] - own["effect"]).fillna(0.0).tolist()
        trace = scatter(
            x=own["effect"].tolist(), y=[comparisons.index(name) for name in own["comparison"]], mode="markers",
            marker={
                "color": [BLUE if k else MUTED for k in is_known], "size": 8,
                "symbol": ["circle" if k else "circle-open" for k in leaves_0],
            },
            error_x={"type": "data", "array": half, "thickness": 1.4, "width": 0, "color": BLUE}, showlegend=False,
            text=[_said(one) for one in own.itertuples()],
            hovertemplate="%{text}<extra></extra>",
        )  # fmt: skip
        fig.add_trace(trace, **where)
        ticks = {"tickvals": list(range(len(comparisons))), "ticktext": [label(name) for name in comparisons]}
        fig.update_yaxes(**ticks, ticks="", range=[len(comparisons) - 0.5, -0.5], **where)
        fig.update_xaxes(showgrid=True, nticks=5, **where)
    return fig.figure()


def _said(one: Any) -> str:
    bounds = f" [{one.ci_low:+z.3g}, {one.ci_high:+z.3g}]" if one.ci_low == one.ci_low else ""  # nan is not itself
    said = f"{one.effect:+z.3g}{bounds}, {one.n:g} seed{'s' * (one.n > 1)}"
    return f"{label(one.comparison)}<br>{label(one.measure)}: {said}"
