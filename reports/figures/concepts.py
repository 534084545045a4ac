"""Figures of concept geometry: crystallisation by layer, effective dimension, trajectories, principal components."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from reports.figures.draft import add_level, add_run, facets, heatmap, layer_axis, scatter, single
from reports.figures.style import MUTED, PALETTE, SEQUENTIAL, SYMBOLS, label, models_of, runs_of, sorted_layers


def crystallisation(concept_mantel: pd.DataFrame, models: Sequence[str] | None = None) -> go.Figure:
    """Return Mantel r by layer with its interval, a panel a concept set; dotted, partial r with the confound out."""
    sets = list(dict.fromkeys(concept_mantel["set"]))
    topology = dict(zip(concept_mantel["set"], concept_mantel["topology"], strict=True))
    fig, cells = facets(
        [f"{label(name)} ({label(topology[name])})" for name in sets], columns=4, height=170, shared_y=True
    )
    for index, (name, where) in enumerate(zip(sets, cells, strict=True)):
        df = concept_mantel[concept_mantel["set"] == name]
        for run in runs_of(df, models):
            rows = run.rows.sort_values("layer")
            add_run(fig, run, rows["layer"], rows["r"], where=where, show=index == 0, **interval_bars(rows, run.colour))
            if "partial_r" in rows and rows["partial_r"].notna().any():
                line = {"color": run.colour, "width": 1.2, "dash": "dot"}
                add_run(fig, run, rows["layer"], rows["partial_r"], where=where, show=False, mode="lines", line=line)
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


def effective_dimension(concept_geometry: pd.DataFrame, models: Sequence[str] | None = None) -> go.Figure:
    """Return the effective dimension of every concept set and layer as a heatmap a model, one colour scale for all."""
    names = models_of(concept_geometry, models)
    sets = list(dict.fromkeys(concept_geometry["set"]))
    fig, cells = facets([label(name) for name in names], columns=2, height=60 + 22 * len(sets), shared_y=True)
    for name, where in zip(names, cells, strict=True):
        df = concept_geometry[concept_geometry["model"] == name]
        df = df[df["seed"] == df["seed"].iloc[0]]
        table = df.pivot_table(index="set", columns="layer", values="effective_dim").reindex(sets)
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


def trajectory_bars(trajectories: pd.DataFrame, models: Sequence[str] | None = None) -> go.Figure:
    """Return the mean cosine of displacements k layers apart, a panel a concept set, with its two nulls as lines."""
    sets = list(dict.fromkeys(trajectories["set"]))
    fig, cells = facets([label(name) for name in sets], columns=4, height=170, shared_y=True)
    for index, (name, where) in enumerate(zip(sets, cells, strict=True)):
        df = trajectories[trajectories["set"] == name]
        for run in runs_of(df, models):
            rows = run.rows.sort_values("lag")
            add_run(fig, run, rows["lag"], rows["value"], where=where, show=index == 0)
        nulls = df.drop_duplicates("lag").sort_values("lag")
        titles = {"null_independent": ("independent states", "dash"), "null_random_walk": ("random walk", "dot")}
        for null, (title, dash) in titles.items():
            line = {"color": MUTED, "width": 1.2, "dash": dash}
            trace = scatter(
                x=nulls["lag"].tolist(), y=nulls[null].tolist(), mode="lines", line=line, name=f"null: {title}",
                legendgroup=null, showlegend=index == 0, hovertemplate=f"{title}: %{{y:.3f}}<extra></extra>",
            )  # fmt: skip
            fig.add_trace(trace, **where)
        fig.update_xaxes(tickvals=sorted(set(df["lag"])), **where)
        fig.update_xaxes(title_text="lag (layers)" if index + 4 >= len(sets) else None, **where)
        fig.update_yaxes(title_text="mean cos" if where["col"] == 1 else None, **where)
    return fig.figure()


def pc_alignment(pc_cosine: pd.DataFrame) -> go.Figure:
    """Return |cos| of the principal components of two models by layer, beside the isotropic baseline."""
    fig = single()
    for index, (pc, rows) in enumerate(pc_cosine.groupby("pc", sort=True)):
        rows = rows.sort_values("layer")
        colour = PALETTE[index % len(PALETTE)]
        trace = scatter(
            x=rows["layer"].tolist(), y=rows["cosine"].tolist(), mode="lines+markers", name=f"PC{pc}",
            line={"color": colour, "width": 1.8}, marker={"size": 7, "symbol": SYMBOLS[index % len(SYMBOLS)]},
            hovertemplate=f"PC{pc}, layer %{{x}}: %{{y:.4f}}<extra></extra>",
        )  # fmt: skip
        fig.add_trace(trace)
    for baseline in sorted(set(pc_cosine["baseline"].dropna())):
        add_level(fig, float(baseline), "isotropic baseline")
    layer_axis(fig, sorted_layers(pc_cosine))
    fig.update_yaxes(title_text="|cos|", rangemode="tozero")
    return fig.figure()


def intrinsic_dimension(table: pd.DataFrame, models: Sequence[str] | None = None) -> go.Figure:
    """Return the TwoNN dimension by layer with its standard error."""
    fig = single()
    for run in runs_of(table, models):
        rows = run.rows.sort_values("layer")
        error = {"type": "data", "array": rows["stderr"].tolist(), "thickness": 1.2, "width": 0, "color": run.colour}
        add_run(fig, run, rows["layer"], rows["dimension"], where={}, error_y=error)
    layer_axis(fig, sorted_layers(table))
    fig.update_yaxes(title_text="intrinsic dimension", rangemode="tozero")
    return fig.figure()
