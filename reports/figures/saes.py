"""Figures of the sparse autoencoders: l0 and fvu by layer, feature densities, l0 against fvu over a sweep of l1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
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
    layer_axis,
    scatter,
    single,
)
from reports.figures.style import AXIS, MUTED, Run, groups_of, label, models_of, runs_of, sorted_layers
from reports.seed_means import each_seed


def of_heads(sae_results: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that one mean may take together: of the first hook, and of single heads where there are any."""
    df = sae_results
    if "hook" in df and len(df):
        kinds = df["hook"].astype("str").str.replace(r"\d+", "*", regex=True)  # blocks.3.attn.hook_z is blocks.*.…
        df = df[kinds == kinds.iloc[0]]
    single_heads = df[df["head"] >= 0]
    return df if single_heads.empty else single_heads


def of_dictionary(sae_results: pd.DataFrame, dictionary: str) -> pd.DataFrame:
    """Return the rows of one dictionary; a table without that column holds trained ones only."""
    if "dictionary" not in sae_results:
        return sae_results if dictionary == "trained" else sae_results.iloc[:0]
    return sae_results[sae_results["dictionary"] == dictionary]


def l0_by_layer(
    sae_results: pd.DataFrame, means: pd.DataFrame, models: Sequence[str] | None = None, l1: float | None = None
) -> go.Figure:
    """Return the l0 of the trained SAEs by layer: a small mark a head, a line through their mean, a level at the width
    of what they read.

    means: of l0 over heads and seeds, by model, dictionary, l1 and layer.
    """
    fig = single()
    df = of_dictionary(at_l1(sae_results, l1), "trained")
    add_layers(fig, df, of_dictionary(at_l1(means, l1), "trained"), "l0", models)
    add_width(fig, df)
    layer_axis(fig, sorted_layers(df))
    fig.update_yaxes(title_text="L0 (active features per token)", rangemode="tozero")
    return fig.figure()


def add_width(fig: Draft, df: pd.DataFrame, **where: int) -> None:
    """Add the level above which more features are active than what is read has dimensions, where all SAEs have one."""
    if "d_in" in df and df["d_in"].nunique() == 1:
        is_head = (df["head"] >= 0).all()
        add_level(
            fig, float(df["d_in"].iloc[0]), f"{'d_head' if is_head else 'width'} = {df['d_in'].iloc[0]:g}", **where
        )


def at_l1(rows: pd.DataFrame, l1: float | None) -> pd.DataFrame:
    """Return the rows of one l1 coefficient; all rows where none is named."""
    return rows if l1 is None else rows[rows["l1"] == l1]


def add_layers(
    fig: Draft,
    df: pd.DataFrame,
    means: pd.DataFrame,
    measure: str,
    models: Sequence[str] | None,
    where: Cell | None = None,
) -> None:
    """Add a measure of SAEs by layer: a small mark a head where the models can be told apart, a line their mean."""
    order, where = models_of(df, models), where or {}
    for run in runs_of(df, models) if len(order) <= MAX_BANDED else ():
        rows = run.rows.dropna(subset=[measure])
        offset = 0.08 * (order.index(run.model) - (len(order) - 1) / 2)
        hover = [
            f"{label(run.model)}<br>layer {layer}, head {head}"
            for layer, head in zip(rows["layer"], rows["head"], strict=True)
        ]
        dots = scatter(
            x=(rows["layer"] + offset).tolist(), y=rows[measure].tolist(), text=hover, mode="markers",
            marker={"color": run.colour, "symbol": run.symbol, "size": 4, "opacity": 0.4}, showlegend=False,
            legendgroup=run.model, hovertemplate="%{text}: %{y:.4g}<extra></extra>",
        )  # fmt: skip
        fig.add_trace(dots, **where)
    for group in groups_of(means, models):
        offset = 0.08 * (order.index(group.model) - (len(order) - 1) / 2)
        add_mean(fig, group, "layer", where=where, offset=offset, n_models=len(order))


def feature_density(sae_density: pd.DataFrame, models: Sequence[str] | None = None) -> go.Figure:
    """Return the histogram of feature densities on log-log axes, a panel a layer, heads summed; dead features apart."""
    layers = sorted_layers(sae_density)
    bins = pd.to_numeric(sae_density["log10_density_bin"].where(sae_density["log10_density_bin"] != "dead"))
    edges = np.unique(bins.dropna())
    width = float(np.diff(edges).min()) if len(edges) > 1 else 0.25
    lowest = (float(edges.min()) if len(edges) else -5.0) - 3 * width
    df = sae_density.assign(edge=bins.fillna(lowest))
    fig, cells = facets([f"layer {layer}" for layer in layers], columns=4, height=190, shared_y=True)
    for index, (layer, where) in enumerate(zip(layers, cells, strict=True)):
        for run in runs_of(df[df["layer"] == layer], models):
            _add_density(fig, run, lowest, width, where)
        fig.update_xaxes(**_decades(edges, lowest), **where)
        fig.update_yaxes(type="log", dtick=1, exponentformat="power", **where)
        if where["col"] == 1:
            fig.update_yaxes(title_text="features", **where)
        if index + 4 >= len(layers):
            fig.update_xaxes(title_text="density", **where)
    fig.layout["meta"]["x_name"] = "log10 density"
    return fig.figure()


def _add_density(fig: Draft, run: Run, dead: float, width: float, where: Cell) -> None:
    counts = run.rows.groupby("edge")["n_features"].sum().sort_index()
    alive = counts[(counts.index != dead) & (counts > 0)]
    name = f"{label(run.model)}, seed {run.seed}<br>"
    hover = f"{name}density 10<sup>%{{x:.2f}}</sup>: %{{y}} features<extra></extra>"
    steps = _steps(alive, width)
    line = {"color": run.colour, "width": 1.6, "dash": run.dash}
    if steps:
        add_run(
            fig,
            run,
            *zip(*steps, strict=True),
            where=where,
            mode="lines",
            line=line,
            hoverinfo="skip",
            hovertemplate=None,
        )
    dots = {"color": run.colour, "symbol": run.symbol, "size": 3}
    centres = alive.index + width / 2
    add_run(fig, run, centres, alive, where=where, show=False, mode="markers", marker=dots, hovertemplate=hover)
    if counts.get(dead, 0) > 0:
        marker = {"color": run.colour, "symbol": f"{run.symbol}-open", "size": 9, "line": {"width": 1.6}}
        hover = f"{name}%{{y}} features never fire<extra></extra>"
        n_dead = [counts[dead].item()]
        add_run(fig, run, [dead], n_dead, where=where, mode="markers", marker=marker, hovertemplate=hover)


def _steps(counts: pd.Series, width: float) -> list[tuple[float | None, float | None]]:
    """Return the outline of a histogram: each bin's count from edge to edge, a gap where a bin is empty."""
    steps: list[tuple[float | None, float | None]] = []
    for edge, n in zip(counts.index.tolist(), counts.tolist(), strict=True):
        last = steps[-1][0] if steps else None
        if last is not None and edge > last + width / 2:
            steps.append((None, None))
        steps += [(edge, n), (edge + width, n)]
    return steps


def _decades(edges: np.ndarray, dead: float) -> dict:
    decades = list(range(int(np.floor(edges.min())), 1)) if len(edges) else []
    decades = [decade for decade in decades if decade > dead + 0.5 and decade % 2 == 0]
    text = ["dead", *(f"10<sup>{decade}</sup>".replace("-", "−") for decade in decades)]
    return {"tickvals": [dead, *decades], "ticktext": text, "range": [dead - 0.4, 0.25], "tickangle": 0}


def pareto(l0: pd.DataFrame, fvu: pd.DataFrame, models: Sequence[str] | None = None) -> go.Figure:
    """Return fvu against l0 over the sweep of l1, a panel a layer, a line a seed: models compare at matched l0.

    l0, fvu: means over heads, by model, dictionary, l1 and layer.
    """
    places = ["model", "layer", "l1", "seed"]
    curves = [each_seed(of_dictionary(means, "trained"))[[*places, "value"]] for means in (l0, fvu)]
    df = curves[0].merge(curves[1], on=places, suffixes=("_l0", "_fvu"))
    layers = sorted_layers(df)
    fig, cells = facets([f"layer {layer}" for layer in layers], columns=4, height=190, shared_y=True)
    for index, (layer, where) in enumerate(zip(layers, cells, strict=True)):
        for run in runs_of(df[df["layer"] == layer], models):
            curve = run.rows.sort_values("value_l0")
            add_run(fig, run, curve["value_l0"], curve["value_fvu"], where=where)
        fig.update_xaxes(title_text="L0" if index + 4 >= len(layers) else None, **where)
        fig.update_yaxes(title_text="FVU" if where["col"] == 1 else None, **where)
    return fig.figure()


def stability(
    panels: Mapping[str, tuple[pd.DataFrame, pd.DataFrame]],
    models: Sequence[str] | None = None,
    l1: float | None = None,
) -> go.Figure:
    """Return by layer how well features are found again with another seed of the SAE, beside random directions.

    panels: title -> means over heads and pairs of seeds, by model, l1 and layer, and the same of random directions,
        by l1 and layer.
    """
    fig, cells = facets(list(panels), columns=2, height=230)
    for (means, chance), where in zip(panels.values(), cells, strict=True):
        df = at_l1(means, l1)
        for group in groups_of(df, models):
            add_mean(fig, group, "layer", where=where, n_models=df["model"].nunique())
        by_chance = at_l1(chance, l1).sort_values("layer", kind="stable")
        line = {"color": MUTED, "width": 1.4, "dash": "dot"}
        trace = scatter(
            x=by_chance["layer"].tolist(), y=by_chance["mean"].tolist(), mode="lines", line=line,
            name="random directions", legendgroup="random",
            hovertemplate="random directions: %{y:.3g}<extra></extra>",
        )  # fmt: skip
        fig.add_trace(trace, **where)
        layer_axis(fig, sorted_layers(df), **where)
        fig.update_yaxes(rangemode="tozero", **where)
    return fig.figure()


def matched_l0(panels: Mapping[str, pd.DataFrame], layers: Sequence[int]) -> go.Figure:
    """Return by layer the difference of two models in each measure, a panel each; a line per pair.

    Args:
        panels: title -> means over seeds, by model_a, model_b and layer.
        layers: those that were compared, also the ones without a common l0, whose place stays empty.
    """
    fig, cells = facets(list(panels), columns=3, height=230)
    for means, where in zip(panels.values(), cells, strict=True):
        fig.add_hline(0, {"color": AXIS, "width": 1}, **where)
        df = means.assign(model=[f"{b} − {a}" for a, b in zip(means["model_a"], means["model_b"], strict=True)])
        for group in groups_of(df):
            add_mean(fig, group, "layer", where=where, n_models=df["model"].nunique())
        layer_axis(fig, layers, **where)
        fig.update_xaxes(range=[layers[0] - 0.3, layers[-1] + 0.3], **where)
    return fig.figure()
