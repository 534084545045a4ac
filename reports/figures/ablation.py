"""The figure of head ablation: what each head is worth."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go

from reports.figures.style import AXIS, facets, label, models_of, runs_of, sorted_layers


def ablation_profile(ablation_results: pd.DataFrame, kind: str, models: Sequence[str] | None = None) -> go.Figure:
    """Return the loss increase by ablated head, a panel a layer, with 95 % intervals; one scale for all layers.

    Each mark carries [model, layer, head] as its custom data: what a page needs to open that head's features.
    """
    df = ablation_results[ablation_results["kind"] == kind]
    layers, names = sorted_layers(df), models_of(df, models)
    fig, cells = facets([f"layer {layer}" for layer in layers], columns=4, height=190, shared_y=True)
    has_interval = {"ci_low", "ci_high"} <= set(df.columns)
    for index, (layer, where) in enumerate(zip(layers, cells, strict=True)):
        fig.add_hline(y=0, line={"color": AXIS, "width": 1}, **where)
        of_layer = df[df["layer"] == layer]
        for run in runs_of(of_layer, models):
            rows = run.rows.sort_values("head")
            offset = 0.3 * (names.index(run.model) - (len(names) - 1) / 2)
            error = None
            if has_interval:
                above, below = rows["ci_high"] - rows["impact_pct"], rows["impact_pct"] - rows["ci_low"]
                error = {"type": "data", "symmetric": False, "array": above.tolist(), "arrayminus": below.tolist()}
                error |= {"thickness": 1.2, "width": 0, "color": run.colour}
            trace = go.Scatter(
                x=(rows["head"] + offset).tolist(), y=rows["impact_pct"].tolist(), error_y=error, mode="markers",
                marker={"color": run.colour, "symbol": run.symbol, "size": 6}, opacity=1.0 if run.is_first else 0.5,
                name=label(run.model), legendgroup=run.model, showlegend=run.is_first and index == 0,
                customdata=[[run.model, layer, int(head)] for head in rows["head"]],
                hovertemplate=f"{label(run.model)}, seed {run.seed}<br>"
                f"layer {layer}, head %{{customdata[2]}}: %{{y:+.3f}} %<extra></extra>",
            )  # fmt: skip
            fig.add_trace(trace, **where)
        heads = sorted({int(head) for head in of_layer["head"]})
        fig.update_xaxes(tickvals=heads[:: max(1, -(-len(heads) // 8))], **where)
        if index + 4 >= len(layers):
            fig.update_xaxes(title_text="head", **where)
        if where["col"] == 1:
            fig.update_yaxes(title_text="loss increase (%)", **where)
    return fig
