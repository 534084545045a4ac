"""Figures of concept geometry: crystallisation by layer, effective dimension, trajectories, principal components."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from reports.figures.comparisons import NULLS, model_axis, pair_names
from reports.figures.figure_builder import (
    MAX_BANDED,
    add_mean,
    add_run,
    facets,
    heatmap,
    layer_axis,
    scatter,
    single,
)
from reports.figures.small_multiples import by_layer
from reports.figures.style import (
    DASHES,
    MUTED,
    PALETTE,
    SEQUENTIAL,
    SYMBOLS,
    Run,
    groups_of,
    label,
    models_of,
    runs_of,
    seeds_of,
    sorted_layers,
)


def crystallisation(
    concept_mantel: pd.DataFrame, means: pd.DataFrame, partial: pd.DataFrame, models: Sequence[str] | None = None
) -> go.Figure:
    """Return Mantel r by layer with its interval, a panel a concept set; dotted, partial r with the confound out.

    Args:
        concept_mantel: the table, of which a lone seed's intervals over words are drawn.
        means, partial: means over seeds of r and of partial r, by model, set and layer.
    """
    sets = list(dict.fromkeys(concept_mantel["set"]))
    topology = dict(zip(concept_mantel["set"], concept_mantel["topology"], strict=True))
    fig, cells = facets(
        [f"{label(name)} ({label(topology[name])})" for name in sets], columns=4, height=170, shared_y=True
    )
    n_models = concept_mantel["model"].nunique()
    for index, (name, where) in enumerate(zip(sets, cells, strict=True)):
        df = concept_mantel[concept_mantel["set"] == name]
        for group in groups_of(df, models):
            is_lone = len(seeds_of(group.rows)) == 1 and n_models <= MAX_BANDED
            known = group.rows[group.rows["r"].notna()].sort_values("layer")
            bars = interval_bars(known, group.colour) if is_lone else {}
            raw, left = (
                found[(found["set"] == name) & (found["model"] == group.model)].sort_values("layer", kind="stable")
                for found in (means, partial)
            )
            add_mean(fig, replace(group, rows=raw), "layer", where=where, n_models=n_models, **bars)
            if n_models <= MAX_BANDED and len(left):
                line = {"color": group.colour, "width": 1.2, "dash": "dot"}
                add_run(fig, group, left["layer"], left["mean"], where=where, show=False, mode="lines", line=line)
        layer_axis(fig, sorted_layers(df), **where)
        fig.update_yaxes(title_text="Mantel r" if where["col"] == 1 else None, **where)
        fig.update_xaxes(title_text="layer" if index + 4 >= len(sets) else None, **where)
    return fig.figure()


def interval_bars(rows: pd.DataFrame, colour: str) -> dict[str, Any]:
    """Return the error bars from ci_low to ci_high about r, where the table has them; none where one is undefined."""
    if not {"ci_low", "ci_high"} <= set(rows.columns):
        return {}
    # a percentile interval need not hold the estimate
    lengths = (rows["ci_high"] - rows["r"], rows["r"] - rows["ci_low"])
    above, below = (length.clip(lower=0.0).fillna(0.0).tolist() for length in lengths)
    bars = {"type": "data", "symmetric": False, "array": above, "arrayminus": below}
    return {"error_y": bars | {"thickness": 0.8, "width": 0, "color": colour}}


def effective_dimension(dimensions: pd.DataFrame, models: Sequence[str] | None = None) -> go.Figure:
    """Return the effective dimension of every concept set and layer as a heatmap a model, one colour scale for all.

    dimensions: columns model, set, layer and value.
    """
    names = models_of(dimensions, models)
    sets = list(dict.fromkeys(dimensions["set"]))
    columns = 3 if len(names) > MAX_BANDED else 2
    fig, cells = facets([label(name) for name in names], columns=columns, height=50 + 15 * len(sets), shared_y=True)
    for name, where in zip(names, cells, strict=True):
        df = dimensions[dimensions["model"] == name]
        table = df.pivot_table(index="set", columns="layer", values="value").reindex(sets)
        hover = f"{label(name)}<br>%{{y}}, layer %{{x}}: %{{z:.2f}}<extra></extra>"
        trace = heatmap(
            z=table.to_numpy(dtype=float).tolist(), x=[int(layer) for layer in table.columns],
            y=[label(name_of_set) for name_of_set in sets], coloraxis="coloraxis", xgap=1, ygap=1, hovertemplate=hover,
        )  # fmt: skip
        fig.add_trace(trace, **where)
        layer_axis(fig, [int(layer) for layer in table.columns], **where)
        fig.update_yaxes(showgrid=False, autorange="reversed", **where)
    bar = {"title": {"text": "dimensions"}, "thickness": 10, "outlinewidth": 0, "tickfont": {"size": 11}}
    fig.update_layout(coloraxis={"colorscale": [list(stop) for stop in SEQUENTIAL], "cmin": 0, "colorbar": bar})
    return fig.figure()


def crystallisation_layers(
    sets: Sequence[str], layers: pd.DataFrame, largest: pd.DataFrame, models: Sequence[str]
) -> go.Figure:
    """Return the layer at which each set reaches its share of the largest correlation, mean over seeds, as a heatmap of
    sets by models with the layer in each cell; blank where nothing crystallised.

    layers, largest: means over seeds of the layer and of the largest correlation, by model and set.
    """
    names, rows = list(models), list(sets)
    means, r = (
        frame.pivot_table(index="set", columns="model", values="mean").reindex(index=rows, columns=names)
        for frame in (layers, largest)
    )
    hover = "%{x}, %{y}<br>layer %{z:.3g}, largest r %{customdata:.2f}<extra></extra>"
    texts = [["" if value != value else f"{value:.3g}".replace("-", "−") for value in row] for row in means.to_numpy()]
    fig = single(height=110 + 20 * len(sets))
    trace = heatmap(
        z=means.to_numpy(dtype=float).tolist(), x=list(range(len(names))), y=[label(name) for name in sets],
        customdata=r.to_numpy(dtype=float).tolist(), coloraxis="coloraxis", xgap=1, ygap=1, text=texts,
        texttemplate="%{text}", textfont={"size": 11}, hovertemplate=hover,
    )  # fmt: skip
    fig.add_trace(trace)
    model_axis(fig, names)
    fig.update_yaxes(autorange="reversed", showgrid=False, ticks="")
    bar = {"title": {"text": "layer"}, "thickness": 10, "outlinewidth": 0, "tickfont": {"size": 11}}
    fig.update_layout(coloraxis={"colorscale": [list(stop) for stop in SEQUENTIAL], "colorbar": bar})
    return fig.figure()


def pair_parallelism(
    means: pd.DataFrame, null: pd.DataFrame, spread: pd.DataFrame, models: Sequence[str] | None = None
) -> go.Figure:
    """Return by layer the mean cosine of pair differences with and without the leading components, a panel a model,
    with the mean of shuffled pairs in grey and a band of twice its standard deviation.

    means, null, spread: means over seeds of the cosine, and of the shuffled pairs' mean and standard deviation, by
        model, n_removed and layer.
    """
    names, levels = models_of(means, models), sorted(set(means["n_removed"]))
    columns = min(4, len(names))
    fig, cells = facets([label(name) for name in names], columns=columns, height=150, shared_y=True)
    for index, (group, where) in enumerate(zip(groups_of(means, models), cells, strict=True)):
        first = (df[(df["model"] == group.model) & (df["n_removed"] == levels[0])] for df in (null, spread))
        middle, width = (df.set_index("layer")["mean"].sort_index() for df in first)
        x, width = middle.index.tolist(), 2 * width
        low, high = middle - width, middle + width
        band = scatter(
            x=[*x, *x[::-1]], y=[*high, *low[::-1]], mode="lines", fill="toself", fillcolor=MUTED + "1C",
            line={"width": 0, "color": MUTED}, showlegend=False, hoverinfo="skip",
        )  # fmt: skip
        fig.add_trace(band, **where)
        line = {"color": MUTED, "width": 1.2, "dash": "dot"}
        shuffled = scatter(
            x=x, y=middle.tolist(), mode="lines", line=line, name="shuffled pairs", legendgroup="null",
            hovertemplate="shuffled pairs: %{y:.3f}<extra></extra>",
        )  # fmt: skip
        fig.add_trace(shuffled, **where)
        for k, n_removed in enumerate(levels):
            title = "all components" if n_removed == 0 else f"without the first {n_removed:g}"
            marks = (PALETTE[k % len(PALETTE)], SYMBOLS[k % len(SYMBOLS)], DASHES[k % len(DASHES)])
            own = Run(title, None, group.rows[group.rows["n_removed"] == n_removed], *marks, is_first=True)
            add_mean(fig, own, "layer", where=where)
        layer_axis(fig, sorted_layers(group.rows), **where)
        fig.update_xaxes(title_text="layer" if index + columns >= len(names) else None, **where)
        fig.update_yaxes(title_text="mean cos" if where["col"] == 1 else None, **where)
    return fig.figure()


def dimension_by_points(means: pd.DataFrame, models: Sequence[str] | None = None) -> go.Figure:
    """Return the TwoNN dimension against the number of points that it was taken on, a panel a layer.

    means: over seeds, by model, layer and n_points.
    """
    layers, n_models = sorted_layers(means), means["model"].nunique()
    titles = ["embedding" if layer < 0 else f"layer {layer}" for layer in layers]
    fig, cells = facets(titles, columns=4, height=150)
    for index, (layer, where) in enumerate(zip(layers, cells, strict=True)):
        for group in groups_of(means[means["layer"] == layer], models):
            marker = {"color": group.colour, "symbol": group.symbol, "size": 5}
            add_mean(fig, group, "n_points", where=where, n_models=n_models, marker=marker)
        fig.update_xaxes(type="log", dtick=1, **where)
        fig.update_xaxes(title_text="points" if index + 4 >= len(layers) else None, **where)
        fig.update_yaxes(title_text="dimension" if where["col"] == 1 else None, rangemode="tozero", **where)
    return fig.figure()


def trajectory_bars(trajectories: pd.DataFrame, means: pd.DataFrame, models: Sequence[str] | None = None) -> go.Figure:
    """Return the mean cosine of displacements k layers apart, a panel a concept set, with its two nulls as lines.

    means: over seeds, by model, set and lag.
    """
    sets = list(dict.fromkeys(trajectories["set"]))
    fig, cells = facets([label(name) for name in sets], columns=4, height=170, shared_y=True)
    n_models = trajectories["model"].nunique()
    for index, (name, where) in enumerate(zip(sets, cells, strict=True)):
        df = trajectories[trajectories["set"] == name]
        for group in groups_of(means[means["set"] == name], models):
            add_mean(fig, group, "lag", where=where, n_models=n_models)
        nulls = df.drop_duplicates("lag").sort_values("lag")
        for null, (title, dash) in NULLS.items():
            line = {"color": MUTED, "width": 1.2, "dash": dash}
            trace = scatter(
                x=nulls["lag"].tolist(), y=nulls[null].tolist(), mode="lines", line=line, name=f"null: {title}",
                legendgroup=null, hovertemplate=f"{title}: %{{y:.3f}}<extra></extra>",
            )  # fmt: skip
            fig.add_trace(trace, **where)
        fig.update_xaxes(tickvals=sorted(set(df["lag"])), **where)
        fig.update_xaxes(title_text="lag (layers)" if index + 4 >= len(sets) else None, **where)
        fig.update_yaxes(title_text="mean cos" if where["col"] == 1 else None, **where)
    return fig.figure()


def pc_alignment(pc_cosine: pd.DataFrame, means: pd.DataFrame) -> go.Figure:
    """Return |cos| of two models' principal components by layer, a panel a pair, beside the isotropic baseline.

    means: over seeds, by model_a, model_b, pc and layer.
    """
    df, means = (frame.assign(pair=pair_names(frame)) for frame in (pc_cosine, means))
    pairs = list(dict.fromkeys(df["pair"]))
    height = 150 if len(pairs) > 1 else 280
    fig, cells = facets([label(pair) for pair in pairs], columns=3, height=height, shared_y=True)
    for index, (pair, where) in enumerate(zip(pairs, cells, strict=True)):
        rows = df[df["pair"] == pair]
        for k, (pc, own) in enumerate(means[means["pair"] == pair].groupby("pc", sort=True)):
            marks = (PALETTE[k % len(PALETTE)], SYMBOLS[k % len(SYMBOLS)], DASHES[k % len(DASHES)])
            group = Run(f"PC{pc:g}", None, own, *marks, is_first=True)
            add_mean(fig, group, "layer", where=where)
        for baseline in sorted(set(rows["baseline"].dropna())):
            fig.add_hline(float(baseline), {"color": MUTED, "width": 1.2, "dash": "dot"}, **where)
        layer_axis(fig, sorted_layers(rows), **where)
        fig.update_xaxes(title_text="layer" if index + 3 >= len(pairs) else None, **where)
        fig.update_yaxes(title_text="|cos|" if where["col"] == 1 else None, rangemode="tozero", **where)
    return fig.figure()


def intrinsic_dimension(table: pd.DataFrame, means: pd.DataFrame, models: Sequence[str] | None = None) -> go.Figure:
    """Return the TwoNN dimension by layer, means over seeds; over one seed with the standard error of its fit."""
    if len(seeds_of(table)) > 1 or table["model"].nunique() > MAX_BANDED:
        return by_layer(means, "intrinsic dimension", models).figure()
    fig = single()
    for run in runs_of(table, models):
        rows = run.rows.sort_values("layer")
        error = {"type": "data", "array": rows["stderr"].tolist(), "thickness": 1.2, "width": 0, "color": run.colour}
        add_run(fig, run, rows["layer"], rows["dimension"], where={}, error_y=error)
    layer_axis(fig, sorted_layers(table))
    fig.update_yaxes(title_text="intrinsic dimension", rangemode="tozero")
    return fig.figure()
