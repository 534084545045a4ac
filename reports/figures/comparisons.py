"""Figures that set models beside each other, one mark a model or a pair: trajectories, raw against partial, spectra."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from reports.figures.figure_builder import Draft, add_mean, error_bars, facets, layer_axis, scatter, single
from reports.figures.style import AXIS, BLUE, INK, MUTED, VERMILION, Run, groups_of, label, models_of, sorted_layers

NULLS = {"null_independent": ("independent states", "dash"), "null_random_walk": ("a random walk", "dot")}


def trajectory_regimes(
    trajectories: pd.DataFrame,
    means: pd.DataFrame,
    sets: pd.DataFrame,
    nulls: Mapping[str, pd.DataFrame],
    models: Sequence[str] | None = None,
) -> go.Figure:
    """Return bars of trajectory consistency, a bar a model: its mean over concept sets, a small mark each set, and both
    nulls with the middle 95 % of their single trajectories where the table has it.

    Args:
        trajectories: the table, of which the nulls' spread is drawn.
        means, sets: means over seeds by model and lag, and by model, set and lag, of which lag 1 is drawn.
        nulls: column of a null -> its mean by lag.
    """
    df = trajectories[trajectories["measure"] == "trajectory_consistency"]
    names = models_of(df, models)
    fig = single(height=380)
    add_nulls(fig, df, nulls, [-0.6, len(names) - 0.4])
    means, sets = means[means["lag"] == 1].set_index("model", drop=False), sets[sets["lag"] == 1]
    for index, group in enumerate(groups_of(df, models)):
        if group.model not in means.index:  # not one value
            continue
        row = means.loc[[group.model]]
        bar: dict[str, Any] = {
            "type": "bar", "x": [index], "y": row["mean"].tolist(), "width": [0.62], "name": label(group.model),
            "marker": {"color": group.colour, "opacity": 0.35, "line": {"color": group.colour, "width": 1.5}},
            "hovertemplate": f"{label(group.model)}: %{{y:.3f}}, mean over sets<extra></extra>", "showlegend": False,
        }  # fmt: skip
        if row["ci_low"].notna().all():
            bar["error_y"] = {**error_bars(row), "thickness": 1.6, "width": 5, "color": group.colour}
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


def add_nulls(fig: Draft, rows: pd.DataFrame, nulls: Mapping[str, pd.DataFrame], ends: Sequence[float]) -> None:
    """Add both nulls of lag 1 as lines across the panel, with a band where the table has their middle 95 %, which goes
    with a model's depth and width: of unequal models the widest is drawn."""
    first = rows[rows["lag"] == 1]
    for column, (title, dash) in NULLS.items():
        names = [f"{column}_{end}" for end in ("low", "high")]
        bounds = [first[names[0]].min(), first[names[1]].max()] if {*names} <= set(first) else []
        if bounds and all(bound == bound for bound in bounds):  # nan is not itself
            band = scatter(
                x=[*ends, *reversed(ends)], y=[bounds[1]] * 2 + [bounds[0]] * 2, mode="lines", fill="toself",
                fillcolor=MUTED + "1C", line={"width": 0, "color": MUTED}, showlegend=False, hoverinfo="skip",
            )  # fmt: skip
            fig.add_trace(band)
        line = {"color": MUTED, "width": 1.4, "dash": dash}
        for level in nulls[column].query("lag == 1")["mean"]:
            fig.add_trace(scatter(x=list(ends), y=[float(level)] * 2, mode="lines", line=line, name=f"null: {title}"))


def model_axis(fig: Draft, names: Sequence[str], **where: int) -> None:
    """Name the x axis by model, a whole number each."""
    angle = -35 if len(names) > 5 else 0
    ticks = {"tickvals": list(range(len(names))), "ticktext": [label(name) for name in names], "tickangle": angle}
    fig.update_xaxes(**ticks, range=[-0.6, len(names) - 0.4], ticks="", **where)


def lag_decay(trajectories: pd.DataFrame, means: pd.DataFrame, models: Sequence[str] | None = None) -> go.Figure:
    """Return the mean over concept sets of the cosine of displacements k layers apart, a panel a model, with nulls.

    means: over sets and seeds, by model and lag.
    """
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
        own = replace(group, rows=means[means["model"] == group.model])
        add_mean(fig, own, "lag", where=where, show=False)
        fig.update_xaxes(tickvals=lags[:: -(-len(lags) // 8)], **where)
        fig.update_xaxes(title_text="lag (layers)" if index + 4 >= len(names) else None, **where)
        fig.update_yaxes(title_text="mean cos" if where["col"] == 1 else None, **where)
    return fig.figure()


def raw_against_partial(
    raw: pd.DataFrame, partial: pd.DataFrame, name: str, models: Sequence[str] | None = None
) -> go.Figure:
    """Return of one concept set the raw Mantel r and what is left given spelling, by layer, a panel a model.

    raw, partial: means over seeds of either, by model, set and layer.
    """
    raw, partial = (means[means["set"] == name] for means in (raw, partial))
    names = models_of(raw, models)
    fig, cells = facets([label(model) for model in names], columns=min(4, len(names)), height=150, shared_y=True)
    kinds = {
        "r": (raw, "raw r", BLUE, "circle", "solid"),
        "partial_r": (partial, "partial r, given spelling", VERMILION, "diamond", "dash"),
    }
    for index, (model, where) in enumerate(zip(names, cells, strict=True)):
        for kind, (means, title, colour, symbol, dash) in kinds.items():
            own = Run(model, None, means[means["model"] == model], colour, symbol, dash, is_first=True)
            add_mean(fig, own, "layer", where=where, name=title, legendgroup=kind)
        layer_axis(fig, sorted_layers(raw), **where)
        fig.update_xaxes(title_text="layer" if index + 4 >= len(names) else None, **where)
        fig.update_yaxes(title_text="Mantel r" if where["col"] == 1 else None, **where)
    return fig.figure()


def raw_beside_partial(raw: pd.DataFrame, partial: pd.DataFrame, models: Sequence[str] | None = None) -> go.Figure:
    """Return of one concept set, at one layer, bars of raw r and of what is left given spelling, two a model.

    raw, partial: means over seeds of either, by model and layer, one layer a model.
    """
    names, layers = models_of(raw, models), sorted(set(raw["layer"]))
    kinds = ((raw, "raw r", BLUE, ""), (partial, "partial r, given spelling", VERMILION, "/"))
    fig = single(height=360)
    fig.add_hline(0, {"color": AXIS, "width": 1})
    for k, (means, title, colour, pattern) in enumerate(kinds):
        found = means.set_index("model").reindex([model for model in names if model in set(means["model"])])
        bars = error_bars(found)
        bar = {
            "type": "bar", "x": [names.index(str(model)) + 0.36 * (k - 0.5) for model in found.index],
            "y": found["mean"].tolist(), "width": 0.34, "name": title,
            "marker": {
                "color": colour, "opacity": 0.8, "line": {"color": colour, "width": 1.2}, "pattern": {"shape": pattern}
            },
            "error_y": {**bars, "thickness": 1.4, "width": 4, "color": INK, "visible": any(bars["array"])},
            "text": [label(model) for model in found.index],
            "textposition": "none", "hovertemplate": f"%{{text}}, {title}: %{{y:.3f}}<extra></extra>",
        }  # fmt: skip
        fig.add_trace(bar)
    model_axis(fig, names)
    fig.update_yaxes(title_text="Mantel r at layer " + " or ".join(str(int(layer)) for layer in layers))
    return fig.figure()


def spectra_divergence(means: pd.DataFrame) -> go.Figure:
    """Return how far the weights' spectra of two models lie apart, attention beside MLP, a line per pair of models.

    means: over seeds, by model_a, model_b and part.
    """
    found = means.assign(pair=pair_names(means))
    pairs = list(dict.fromkeys(found["pair"]))
    kinds = {"attention": ("attention", BLUE, "circle"), "mlp": ("MLP", VERMILION, "diamond")}
    fig = single(height=110 + 26 * len(pairs))
    for part, (title, colour, symbol) in kinds.items():
        rows = found[found["part"] == part]
        trace = scatter(
            x=rows["mean"].tolist(), y=[pairs.index(pair) for pair in rows["pair"]], mode="markers", name=title,
            marker={"color": colour, "symbol": symbol, "size": 9},
            error_x={**error_bars(rows), "thickness": 1.2, "width": 0, "color": colour},
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
