"""Figures that set models beside each other, one mark a model or a pair: trajectories, raw against partial, spectra."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from reports.figures.figure_builder import Draft, add_mean, facets, layer_axis, scatter, single
from reports.figures.style import AXIS, BLUE, INK, MUTED, VERMILION, groups_of, label, models_of, sorted_layers
from reports.seeds import over_seeds

NULLS = {"null_independent": ("independent states", "dash"), "null_random_walk": ("a random walk", "dot")}


def trajectory_regimes(trajectories: pd.DataFrame, models: Sequence[str] | None = None) -> go.Figure:
    """Return bars of trajectory consistency, a bar a model: its mean over concept sets, a small mark each set, and both
    nulls with the middle 95 % of their single trajectories where the table has it."""
    df = trajectories[trajectories["measure"] == "trajectory_consistency"]
    names = models_of(df, models)
    fig = single(height=380)
    # the nulls' spread goes with a model's depth and width: of unequal models the widest is drawn
    ends = {"low": "min", "high": "max"}
    columns = [str(column) for column in df if str(column).startswith("null_")]
    of_nulls = {column: ends.get(column.rpartition("_")[2], "mean") for column in columns}
    add_nulls(fig, df.groupby("lag", as_index=False).agg(of_nulls), [-0.6, len(names) - 0.4])
    found = {str(row["model"]): row for row in over_seeds(df, ["model"], "value").to_dict("records")}
    sets = over_seeds(df, ["model", "set"], "value")
    for index, group in enumerate(groups_of(df, models)):
        if group.model not in found:  # not one value
            continue
        row = found[group.model]
        bar: dict[str, Any] = {
            "type": "bar", "x": [index], "y": [float(row["mean"])], "width": [0.62], "name": label(group.model),
            "marker": {"color": group.colour, "opacity": 0.35, "line": {"color": group.colour, "width": 1.5}},
            "hovertemplate": f"{label(group.model)}: %{{y:.3f}}, mean over sets<extra></extra>", "showlegend": False,
        }  # fmt: skip
        if row["low"] == row["low"]:  # nan is not itself
            bar["error_y"] = {"type": "data", "array": [float(row["high"] - row["mean"])], "thickness": 1.6, "width": 5}
            bar["error_y"]["color"] = group.colour
        fig.add_trace(bar)
        own = sets[sets["model"] == group.model]
        dots = scatter(
            x=[index + 0.24] * len(own), y=own["mean"].tolist(), mode="markers", showlegend=False,
            marker={"color": group.colour, "symbol": group.symbol, "size": 5},
            text=[label(name) for name in own["set"]],
            hovertemplate=f"{label(group.model)}, %{{text}}: %{{y:.3f}}<extra></extra>",
        )  # fmt: skip
        fig.add_trace(dots)
    model_axis(fig, names)
    fig.update_yaxes(title_text="mean cos of successive steps")
    return fig.figure()


def add_nulls(fig: Draft, nulls: pd.DataFrame, ends: Sequence[float]) -> None:
    """Add both nulls of lag 1 as lines across the panel, with a band where the table has their middle 95 %."""
    row = nulls[nulls["lag"] == 1].iloc[0] if (nulls["lag"] == 1).any() else nulls.iloc[0]
    for column, (title, dash) in NULLS.items():
        bounds = [row.get(f"{column}_low"), row.get(f"{column}_high")]
        if all(isinstance(bound, float) and bound == bound for bound in bounds):
            band = scatter(
                x=[*ends, *reversed(ends)], y=[bounds[1]] * 2 + [bounds[0]] * 2, mode="lines", fill="toself",
                fillcolor=MUTED + "1C", line={"width": 0, "color": MUTED}, showlegend=False, hoverinfo="skip",
            )  # fmt: skip
            fig.add_trace(band)
        line = {"color": MUTED, "width": 1.4, "dash": dash}
        fig.add_trace(scatter(x=list(ends), y=[float(row[column])] * 2, mode="lines", line=line, name=f"null: {title}"))


def model_axis(fig: Draft, names: Sequence[str], **where: int) -> None:
    """Name the x axis by model, a whole number each."""
    angle = -35 if len(names) > 5 else 0
    ticks = {"tickvals": list(range(len(names))), "ticktext": [label(name) for name in names], "tickangle": angle}
    fig.update_xaxes(**ticks, range=[-0.6, len(names) - 0.4], ticks="", **where)


def lag_decay(trajectories: pd.DataFrame, models: Sequence[str] | None = None) -> go.Figure:
    """Return the mean over concept sets of the cosine of displacements k layers apart, a panel a model, with nulls."""
    names = models_of(trajectories, models)
    fig, cells = facets([label(name) for name in names], columns=min(4, len(names)), height=150, shared_y=True)
    lags = sorted(set(trajectories["lag"]))
    for index, (group, where) in enumerate(zip(groups_of(trajectories, models), cells, strict=True)):
        nulls = group.rows.drop_duplicates("lag").sort_values("lag")
        for null, (title, dash) in NULLS.items():
            line = {"color": MUTED, "width": 1.2, "dash": dash}
            trace = scatter(
                x=nulls["lag"].tolist(), y=nulls[null].tolist(), mode="lines", line=line, name=f"null: {title}",
                legendgroup=null, hovertemplate=f"{title}: %{{y:.3f}}<extra></extra>",
            )  # fmt: skip
            fig.add_trace(trace, **where)
        add_mean(fig, group, "lag", "value", where=where, show=False)
        fig.update_xaxes(tickvals=lags[:: -(-len(lags) // 8)], **where)
        fig.update_xaxes(title_text="lag (layers)" if index + 4 >= len(names) else None, **where)
        fig.update_yaxes(title_text="mean cos" if where["col"] == 1 else None, **where)
    return fig.figure()


def raw_against_partial(concept_mantel: pd.DataFrame, name: str, models: Sequence[str] | None = None) -> go.Figure:
    """Return of one concept set the raw Mantel r and what is left given spelling, by layer, a panel a model."""
    df = concept_mantel[concept_mantel["set"] == name]
    names = models_of(df, models)
    fig, cells = facets([label(model) for model in names], columns=min(4, len(names)), height=150, shared_y=True)
    kinds = {
        "r": ("raw r", BLUE, "circle", "solid"),
        "partial_r": ("partial r, given spelling", VERMILION, "diamond", "dash"),
    }
    for index, (group, where) in enumerate(zip(groups_of(df, models), cells, strict=True)):
        for column, (title, colour, symbol, dash) in kinds.items():
            as_kind = type(group)(group.model, None, group.rows, colour, symbol, dash, is_first=True)
            add_mean(fig, as_kind, "layer", column, where=where, name=title, legendgroup=column)
        layer_axis(fig, sorted_layers(df), **where)
        fig.update_xaxes(title_text="layer" if index + 4 >= len(names) else None, **where)
        fig.update_yaxes(title_text="Mantel r" if where["col"] == 1 else None, **where)
    return fig.figure()


def raw_beside_partial(
    concept_mantel: pd.DataFrame, name: str, depth: Callable[[int], int], models: Sequence[str] | None = None
) -> go.Figure:
    """Return of one concept set, at one layer, bars of raw r and of what is left given spelling, two a model.

    depth: number of layers -> the layer.
    """
    df = concept_mantel[concept_mantel["set"] == name]
    n_layers = df.groupby("model")["layer"].transform("max") + 1
    df = df[df["layer"] == n_layers.map(lambda n: depth(int(n)))]
    names, layers = models_of(df, models), sorted(set(df["layer"]))
    kinds = {"r": ("raw r", BLUE, ""), "partial_r": ("partial r, given spelling", VERMILION, "/")}
    fig = single(height=360)
    fig.add_hline(0, {"color": AXIS, "width": 1})
    for k, (column, (title, colour, pattern)) in enumerate(kinds.items()):
        found = over_seeds(df, ["model"], column)
        found = found.set_index("model").reindex([model for model in names if model in set(found["model"])])
        half = (found["high"] - found["mean"]).fillna(0.0).tolist()
        bar = {
            "type": "bar", "x": [names.index(str(model)) + 0.36 * (k - 0.5) for model in found.index],
            "y": found["mean"].tolist(), "width": 0.34, "name": title,
            "marker": {
                "color": colour, "opacity": 0.8, "line": {"color": colour, "width": 1.2}, "pattern": {"shape": pattern}
            },
            "error_y": {
                "type": "data", "array": half, "thickness": 1.4, "width": 4, "color": INK, "visible": any(half)
            },
            "text": [label(model) for model in found.index],
            "textposition": "none", "hovertemplate": f"%{{text}}, {title}: %{{y:.3f}}<extra></extra>",
        }  # fmt: skip
        fig.add_trace(bar)
    model_axis(fig, names)
    fig.update_yaxes(title_text="Mantel r at layer " + " or ".join(str(int(layer)) for layer in layers))
    return fig.figure()


def spectra_divergence(eigenspectra_divergence: pd.DataFrame) -> go.Figure:
    """Return how far the weights' spectra of two models lie apart, attention beside MLP, a line per pair of models."""
    df = eigenspectra_divergence.assign(pair=pair_names(eigenspectra_divergence))
    pairs = list(dict.fromkeys(df["pair"]))
    found = over_seeds(df, ["pair", "part"], "divergence")
    kinds = {"attention": ("attention", BLUE, "circle"), "mlp": ("MLP", VERMILION, "diamond")}
    fig = single(height=110 + 26 * len(pairs))
    for part, (title, colour, symbol) in kinds.items():
        rows = found[found["part"] == part]
        half = (rows["high"] - rows["mean"]).fillna(0.0).tolist()
        trace = scatter(
            x=rows["mean"].tolist(), y=[pairs.index(pair) for pair in rows["pair"]], mode="markers", name=title,
            marker={"color": colour, "symbol": symbol, "size": 9},
            error_x={"type": "data", "array": half, "thickness": 1.2, "width": 0, "color": colour},
            text=[label(pair) for pair in rows["pair"]], hovertemplate=f"%{{text}}, {title}: %{{x:.3f}}<extra></extra>",
        )  # fmt: skip
        fig.add_trace(trace)
    fig.update_yaxes(tickvals=list(range(len(pairs))), ticktext=[label(pair) for pair in pairs], showgrid=True)
    fig.update_yaxes(range=[len(pairs) - 0.5, -0.5], ticks="")
    fig.update_xaxes(title_text="mean |Δ nuclear rank| / their mean", rangemode="tozero", showgrid=True)
    return fig.figure()


def pair_names(df: pd.DataFrame) -> list[str]:
    """Return each row's two models as one name."""
    return [f"{a} – {b}" for a, b in zip(df["model_a"], df["model_b"], strict=True)]
