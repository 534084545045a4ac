"""Figures of attention and weights: head entropies, mass on position 0, ranks of the weight matrices, text measures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from reports.figures.figure_builder import (
    MAX_BANDED,
    Cell,
    Draft,
    add_level,
    add_mean,
    add_run,
    facets,
    heatmap,
    layer_axis,
    scatter,
)
from reports.figures.small_multiples import by_layer
from reports.figures.style import SEQUENTIAL, groups_of, label, models_of, runs_of, sorted_layers
from reports.measure_names import name_measure

MAP_COLUMNS = 6  # maps side by side, at most
MAP_DARKEST = 0.5  # share from which on a cell is darkest: of the first queries, with few keys, all are large


def head_entropy_gallery(
    attention_stats: pd.DataFrame, models: Sequence[str] | None = None, seed: object = None
) -> go.Figure:
    """Return every head's entropy as a share of its ceiling, a layer × head heatmap a model, one scale from 0 to 1.

    `seed` picks one seed, by default the first that each model has: heads of two seeds do not correspond.
    """
    names, layers = models_of(attention_stats, models), sorted_layers(attention_stats)
    columns, row = (3 if len(names) > MAX_BANDED else 2), (14 if len(layers) > 12 else 22)
    fig, cells = facets([label(name) for name in names], columns=columns, height=30 + row * len(layers), shared_y=True)
    for name, where in zip(names, cells, strict=True):
        df = attention_stats[attention_stats["model"] == name]
        df = df[df["seed"] == (df["seed"].iloc[0] if seed is None else seed)]
        table = df.pivot_table(index="layer", columns="head", values="entropy_share")
        hover = f"{label(name)}<br>layer %{{y}}, head %{{x}}: %{{z:.3f}}<extra></extra>"
        trace = heatmap(
            z=table.to_numpy(dtype=float).tolist(), x=[int(head) for head in table.columns],
            y=[int(layer) for layer in table.index], coloraxis="coloraxis", xgap=1, ygap=1, hovertemplate=hover,
            meta={"head": {"model": name, "seed": str(df["seed"].iloc[0])}},  # layer and head: row and column
        )  # fmt: skip
        fig.add_trace(trace, **where)
        ticks = [int(head) for head in table.columns]
        is_last = where["row"] * columns >= len(names) or (where["row"] * columns + where["col"]) > len(names)
        fig.update_xaxes(title_text="head" if is_last else None, tickvals=ticks[:: max(1, len(ticks) // 8)], **where)
        fig.update_yaxes(title_text="layer" if where["col"] == 1 else None, autorange="reversed", **where)
        fig.update_yaxes(showgrid=False, tickvals=layers[:: -(-len(layers) // 14)], **where)
    bar = {"title": {"text": "of the ceiling"}, "thickness": 10, "outlinewidth": 0, "tickfont": {"size": 11}}
    scale = [list(stop) for stop in SEQUENTIAL]
    fig.update_layout(coloraxis={"colorscale": scale, "cmin": 0, "cmax": 1, "colorbar": bar})
    return fig.figure()


def head_maps(attention_patterns: pd.DataFrame, model: str) -> go.Figure:
    """Return the mean map of every head of a model's first seed, a panel a head, each layer from a new row on."""
    df = attention_patterns[attention_patterns["model"] == model]
    df = df[df["seed"] == df["seed"].iloc[0]].sort_values(["layer", "head"])
    n_heads = int(df.groupby("layer")["head"].nunique().max())
    columns = -(-n_heads // -(-n_heads // MAP_COLUMNS))  # rows of a layer as even as they can be
    places: list[Any] = []
    for _, rows in df.groupby("layer"):
        places += [*rows.itertuples(), *[None] * (-len(rows) % columns)]
    titles = ["" if place is None else f"layer {place.layer}, head {place.head}" for place in places]
    fig, cells = facets(titles, columns=columns, height=110, vertical_spacing=44, gap=0.02)
    for place, where in zip(places, cells, strict=True):
        if place is None:
            fig.update_xaxes(visible=False, **where)
            fig.update_yaxes(visible=False, **where)
        else:
            _add_map(fig, place, where)
    bar = {"title": {"text": "share"}, "thickness": 10, "outlinewidth": 0, "tickfont": {"size": 11}}
    scale = [list(stop) for stop in SEQUENTIAL]
    fig.update_layout(coloraxis={"colorscale": scale, "cmin": 0, "cmax": MAP_DARKEST, "colorbar": bar})
    return fig.figure()


def _add_map(fig: Draft, row: Any, where: Cell) -> None:
    z = json.loads(str(row.pattern))
    positions = list(range(1, len(z) + 1))
    hover = f"layer {row.layer}, head {row.head}<br>query %{{y}}, key %{{x}}: %{{z:.3f}}<extra></extra>"
    padded = [[*keys, *[None] * (len(z) - len(keys))] for keys in z]
    meta = {"head": {"model": row.model, "seed": str(row.seed), "layer": int(row.layer), "head": int(row.head)}}
    trace = heatmap(z=padded, x=positions, y=positions, coloraxis="coloraxis", hovertemplate=hover, meta=meta)
    fig.add_trace(trace, **where)
    plain = {"showgrid": False, "showline": False, "ticks": "", "tickvals": [1, len(z)], "constrain": "domain"}
    fig.update_xaxes(**plain, **where)
    square_with = f"x{fig.suffix(**where)}"
    fig.update_yaxes(**plain, autorange="reversed", scaleanchor=square_with, showticklabels=where["col"] == 1, **where)


def bos_mass_by_layer(
    attention_stats: pd.DataFrame, means: pd.DataFrame, models: Sequence[str] | None = None
) -> go.Figure:
    """Return the attention to position 0 by layer: a line through the heads' mean, and of few models a mark a head.

    means: over heads and seeds, by model and layer.
    """
    fig = by_layer(means, "attention to position 0", models)
    is_dotted = attention_stats["model"].nunique() <= MAX_BANDED
    for run in runs_of(attention_stats, models) if is_dotted else ():
        rows = run.rows.dropna(subset=["bos_mass"])
        places = list(zip(rows["layer"], rows["head"], strict=True))
        dots = scatter(
            x=rows["layer"].tolist(), y=rows["bos_mass"].tolist(), mode="markers",
            legendgroup=run.model, showlegend=False,
            marker={"color": run.colour, "symbol": run.symbol, "size": 4, "opacity": 0.4},
            text=[f"layer {layer}, head {head}" for layer, head in places],
            customdata=[[run.model, int(layer), int(head)] for layer, head in places],
            meta={"seed": str(run.seed)},
            hovertemplate=f"{label(run.model)}, seed {run.seed}<br>%{{text}}: %{{y:.3f}}<extra></extra>",
        )  # fmt: skip
        fig.add_trace(dots)
    if "bos_uniform" in attention_stats:
        for value in sorted(set(attention_stats["bos_uniform"].dropna())):
            add_level(fig, float(value), "uniform attention")
    return fig.figure()


def weight_ranks(means: pd.DataFrame, models: Sequence[str] | None = None, measure: str = "nuclear_rank") -> go.Figure:
    """Return one of the four ranks of the weights by layer, a panel a matrix, attention before MLP.

    means: over seeds, by model, matrix and layer.
    """
    matrices = list(dict.fromkeys(means["matrix"]))
    fig, cells = facets([label(matrix) for matrix in matrices], columns=4, height=160)
    n_models = means["model"].nunique()
    for index, (matrix, where) in enumerate(zip(matrices, cells, strict=True)):
        df = means[means["matrix"] == matrix]
        for group in groups_of(df, models):
            add_mean(fig, group, "layer", where=where, n_models=n_models)
        layer_axis(fig, sorted_layers(df), **where)
        fig.update_xaxes(title_text="layer" if index + 4 >= len(matrices) else None, **where)
        fig.update_yaxes(rangemode="tozero", title_text=name_measure(measure) if where["col"] == 1 else None, **where)
    return fig.figure()


def text_measures(text_quality: pd.DataFrame, models: Sequence[str] | None = None) -> go.Figure:
    """Return every measure of sampled text with its 95 % interval, a panel a measure, a mark a model."""
    measures = list(dict.fromkeys(text_quality["measure"]))
    names = models_of(text_quality, models)
    fig, cells = facets([label(name_measure(measure)) for measure in measures], columns=4, height=130)
    for measure, where in zip(measures, cells, strict=True):
        df = text_quality[text_quality["measure"] == measure]
        for run in runs_of(df, models):
            above, below = run.rows["ci_high"] - run.rows["value"], run.rows["value"] - run.rows["ci_low"]
            error = {"type": "data", "symmetric": False, "array": above.tolist(), "arrayminus": below.tolist()}
            error |= {"thickness": 1.2, "width": 0, "color": run.colour}
            x = [names.index(run.model)] * len(run.rows)
            hover = f"{label(run.model)}, seed {run.seed}: %{{y:.4g}}<extra></extra>"
            marks = {"mode": "markers", "error_y": error, "hovertemplate": hover}
            add_run(fig, run, x, run.rows["value"], where=where, **marks)
        fig.update_xaxes(tickvals=[], range=[-0.7, len(names) - 0.3], **where)
    return fig.figure()
