"""Figures of head ablation: what each head is worth, a panel a layer or all heads in one strip."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go

from reports.figures.figure_builder import Cell, Draft, facets, scatter, single
from reports.figures.style import AXIS, GRID, Run, label, models_of, runs_of, seeds_of, sorted_layers
from reports.table_cells import signed

N_PAIRS = 12  # pairs of heads that are shown of each model


def ablation_profile(ablation_results: pd.DataFrame, kind: str, models: Sequence[str] | None = None) -> go.Figure:
    """Return the loss increase by ablated head, a panel a layer, with 95 % intervals; one scale for all layers.

    The heads of each model stand in the order of their impact: those of two models do not correspond. Each mark carries
    [model, layer, head] as its custom data: what a page needs, with the seed in its trace's meta, to lead to that head.
    """
    df = of_heads(ablation_results, kind)
    layers, names = sorted_layers(df), models_of(df, models)
    fig, cells = facets([f"layer {layer}" for layer in layers], columns=4, height=190, shared_y=True)
    for index, (layer, where) in enumerate(zip(layers, cells, strict=True)):
        fig.add_hline(y=0, line={"color": AXIS, "width": 1}, **where)
        of_layer = df[df["layer"] == layer]
        for run in runs_of(of_layer, models):
            offset = 0.3 * (names.index(run.model) - (len(names) - 1) / 2)
            _add_heads(fig, run, ranks(run.rows) + offset, where)
        n_heads = of_layer.groupby("model")["head"].nunique().max()
        fig.update_xaxes(tickvals=list(range(1, n_heads + 1))[:: max(1, -(-n_heads // 8))], **where)
        if index + 4 >= len(layers):
            fig.update_xaxes(title_text="rank in the layer", **where)
        if where["col"] == 1:
            fig.update_yaxes(title_text="loss increase (%)", **where)
    return fig.figure()


def ablation_strip(ablation_results: pd.DataFrame, kind: str, models: Sequence[str] | None = None) -> go.Figure:
    """Return the loss increase of all heads in one panel, layer behind layer; order and custom data as in
    `ablation_profile`."""
    df = of_heads(ablation_results, kind)
    layers, names = sorted_layers(df), models_of(df, models)
    n_heads = int(df["head"].max()) + 1 if len(df) else 1
    fig = single(height=230)
    fig.add_hline(y=0, line={"color": AXIS, "width": 1})
    start = {layer: place * (n_heads + 1) for place, layer in enumerate(layers)}
    for layer in layers[1:]:
        fig.add_vline(x=start[layer] - 1, line={"color": GRID, "width": 1})
    for run in runs_of(df, models):
        offset = 0.3 * (names.index(run.model) - (len(names) - 1) / 2)
        _add_heads(fig, run, run.rows["layer"].map(start) + ranks(run.rows) - 1 + offset, {})
    ticks = [start[layer] + (n_heads - 1) / 2 for layer in layers]
    fig.update_xaxes(tickvals=ticks, ticktext=[f"L{layer}" for layer in layers], ticks="")
    fig.update_xaxes(title_text="heads by layer, largest impact first")
    fig.update_yaxes(title_text="loss increase (%)")
    return fig.figure()


def of_heads(ablation_results: pd.DataFrame, kind: str) -> pd.DataFrame:
    """Return the rows of one kind of ablation that are of single heads: whole layers and MLPs have head -1."""
    return ablation_results[(ablation_results["kind"] == kind) & (ablation_results["head"] >= 0)]


def ranks(rows: pd.DataFrame) -> pd.Series:
    """Return each head's place in its layer by impact, the largest first, from 1; heads without an impact last."""
    order = rows.groupby("layer")["impact_pct"].rank(method="first", ascending=False, na_option="bottom")
    return order.astype(int)


def _add_heads(fig: Draft, run: Run, x: pd.Series, where: Cell) -> None:
    rows = run.rows
    error = None
    if {"ci_low", "ci_high"} <= set(rows.columns):
        above, below = rows["ci_high"] - rows["impact_pct"], rows["impact_pct"] - rows["ci_low"]
        error = {"type": "data", "symmetric": False, "array": above.tolist(), "arrayminus": below.tolist()}
        error |= {"thickness": 1.2, "width": 0, "color": run.colour}
    places = zip(rows["layer"], rows["head"], strict=True)
    bounds = rows.reindex(columns=["ci_low", "ci_high"]).itertuples(index=False, name=None)
    known = zip(rows["impact_pct"], bounds, strict=True)
    trace = scatter(
        x=x.tolist(),
        y=rows["impact_pct"].tolist(),
        error_y=error,
        mode="markers",
        marker={"color": run.colour, "symbol": run.symbol, "size": 6},
        opacity=1.0 if run.is_first else 0.5,
        name=label(run.model),
        legendgroup=run.model,
        showlegend=run.is_first,
        customdata=[[run.model, int(layer), int(head)] for layer, head in places],
        meta={"seed": str(run.seed)},
        text=[f"{signed(impact, 3)} %{_between(*ends)}" for impact, ends in known],
        hovertemplate=f"{label(run.model)}, seed {run.seed}<br>"
        "layer %{customdata[1]}, head %{customdata[2]}: %{text}<extra></extra>",
    )
    fig.add_trace(trace, **where)


def _between(low: float, high: float) -> str:
    return f" [{signed(low, 3)}, {signed(high, 3)}]" if low == low else ""  # nan is not itself


def pair_interactions(ablation_pairs: pd.DataFrame, kind: str, models: Sequence[str] | None = None) -> go.Figure:
    """Return the pairs of heads whose interaction is furthest from 0, a mark each with its interval, a panel a model
    and seed; at most `N_PAIRS`."""
    df = ablation_pairs[ablation_pairs["kind"] == kind]
    runs = list(runs_of(df, models))
    several = len(seeds_of(df)) > 1
    titles = [label(run.model) + f", seed {run.seed}" * several for run in runs]
    fig, cells = facets(titles, columns=2, height=40 + 18 * N_PAIRS, gap=0.16)
    for index, (run, where) in enumerate(zip(runs, cells, strict=True)):
        order = run.rows["interaction_pct"].abs().sort_values(ascending=False, kind="stable").index[:N_PAIRS]
        rows = run.rows.loc[order]
        names = [
            f"L{a:.0f} H{i:.0f} + L{b:.0f} H{j:.0f}"
            for a, i, b, j in rows[["layer_a", "head_a", "layer_b", "head_b"]].to_numpy()
        ]
        above, below = rows["ci_high"] - rows["interaction_pct"], rows["interaction_pct"] - rows["ci_low"]
        error = {"type": "data", "symmetric": False, "array": above.tolist(), "arrayminus": below.tolist()}
        trace = scatter(
            x=rows["interaction_pct"].tolist(), y=list(range(len(rows))), mode="markers", showlegend=False,
            marker={"color": run.colour, "symbol": run.symbol, "size": 7}, text=names,
            error_x=error | {"thickness": 1.2, "width": 0, "color": run.colour},
            customdata=[signed(value, 3) for value in rows["interaction_pct"]],
            hovertemplate=f"{label(run.model)}, %{{text}}: %{{customdata}} %<extra></extra>",
        )  # fmt: skip
        fig.add_vline(0, {"color": AXIS, "width": 1}, **where)
        fig.add_trace(trace, **where)
        ticks = {"tickvals": list(range(len(rows))), "ticktext": names, "range": [len(rows) - 0.5, -0.5], "ticks": ""}
        fig.update_yaxes(**ticks, **where)
        fig.update_xaxes(title_text="interaction (%)" if index + 2 >= len(runs) else None, showgrid=True, **where)
    return fig.figure()
