"""The figure of what interventions change: a panel a measure, a row a comparison of two models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from reports.figures.figure_builder import facets, scatter
from reports.figures.style import AXIS, BLUE, MUTED, label


@dataclass(frozen=True)
class Change:
    """How far one measure moved from one model to another: mean over the seeds that both have, and its interval."""

    comparison: str
    measure: str
    mean: float
    low: float  # nan, as is high, for fewer than three seeds
    high: float
    n: int


def changes(found: Sequence[Change], *, columns: int = 4) -> go.Figure:
    """Return every change with its interval about 0, filled where the interval leaves out 0."""
    measures = list(dict.fromkeys(one.measure for one in found))
    comparisons = list(dict.fromkeys(one.comparison for one in found))
    height = 24 + 20 * len(comparisons)
    columns = min(columns, len(measures))
    fig, cells = facets([label(measure) for measure in measures], columns=columns, height=height, shared_y=True)
    fig.update_layout(meta={"columns": columns + 1})  # the names of the comparisons take the width of a panel
    for measure, where in zip(measures, cells, strict=True):
        fig.add_vline(0, {"color": AXIS, "width": 1}, **where)
        own = [one for one in found if one.measure == measure]
        is_known = [one.low == one.low for one in own]  # nan is not itself
        leaves_0 = [k and (one.low > 0 or one.high < 0) for one, k in zip(own, is_known, strict=True)]
        half = [one.high - one.mean if k else 0.0 for one, k in zip(own, is_known, strict=True)]
        trace = scatter(
            x=[one.mean for one in own], y=[comparisons.index(one.comparison) for one in own], mode="markers",
            marker={
                "color": [BLUE if k else MUTED for k in is_known], "size": 8,
                "symbol": ["circle" if k else "circle-open" for k in leaves_0],
            },
            error_x={"type": "data", "array": half, "thickness": 1.4, "width": 0, "color": BLUE}, showlegend=False,
            text=[_said(one, k) for one, k in zip(own, is_known, strict=True)],
            hovertemplate="%{text}<extra></extra>",
        )  # fmt: skip
        fig.add_trace(trace, **where)
        ticks = {"tickvals": list(range(len(comparisons))), "ticktext": [label(name) for name in comparisons]}
        fig.update_yaxes(**ticks, ticks="", range=[len(comparisons) - 0.5, -0.5], **where)
        fig.update_xaxes(showgrid=True, nticks=5, **where)
    return fig.figure()


def _said(one: Change, is_known: bool) -> str:
    bounds = f" [{one.low:+z.3g}, {one.high:+z.3g}]" if is_known else ""
    return f"{label(one.comparison)}<br>{label(one.measure)}: {one.mean:+z.3g}{bounds}, {one.n} seed{'s' * (one.n > 1)}"
