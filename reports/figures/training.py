"""Figures of training: losses beside the baselines, the pressure λ, and the redundancies σ over steps."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go

from reports.figures.draft import add_level, add_run, facets, single
from reports.figures.style import label, runs_of

SIGMAS = {"sigma_z": "σ on z", "sigma_pattern": "σ on the attention pattern", "sigma_residual": "σ on the residual"}


def loss_curves(
    train_log: pd.DataFrame, baselines: pd.DataFrame | None, models: Sequence[str] | None = None
) -> go.Figure:
    """Return training loss (thin) and held-out loss (marks) over steps, with the baselines as level lines."""
    fig = single(height=400)
    for run in runs_of(train_log, models):
        rows = thin(run.rows)
        line = {"color": run.colour, "width": 1, "dash": "solid"}
        add_run(fig, run, rows["step"], rows["loss"], where={}, show=False, mode="lines", line=line, opacity=0.4)
        if "held_out_loss" in rows:
            held_out = thin(run.rows.dropna(subset=["held_out_loss"]))
            add_run(fig, run, held_out["step"], held_out["held_out_loss"], where={})
    if baselines is not None:
        for name, nats in zip(baselines["name"], baselines["nats"], strict=True):
            add_level(fig, float(nats), f"{name} {nats:.2f}")
    fig.update_xaxes(title_text="step")
    fig.update_yaxes(title_text="loss (nats a token)")
    return fig.figure()


def pressure_and_redundancy(train_log: pd.DataFrame, models: Sequence[str] | None = None) -> go.Figure:
    """Return λ over steps beside the σ that it presses on, each panel with its own scale from 0."""
    columns = {"lambda": "pressure λ", **{name: title for name, title in SIGMAS.items() if name in train_log}}
    fig, cells = facets(list(columns.values()), columns=2, height=200)
    for index, (name, where) in enumerate(zip(columns, cells, strict=True)):
        for run in runs_of(train_log, models):
            rows = thin(run.rows.dropna(subset=[name]))
            line = {"color": run.colour, "width": 1.8, "dash": run.dash}
            add_run(fig, run, rows["step"], rows[name], where=where, show=index == 0, mode="lines", line=line)
        fig.update_yaxes(rangemode="tozero", **where)
        if where["row"] == cells[-1]["row"]:
            fig.update_xaxes(title_text="step", **where)
    return fig.figure()


def thin(rows: pd.DataFrame, n_points: int = 1000) -> pd.DataFrame:
    """Return `rows` in the order of steps, every k-th of them where there are more than a line can show."""
    return rows.sort_values("step").iloc[:: max(1, -(-len(rows) // n_points))]


def monitor_names(train_log: pd.DataFrame) -> list[str]:
    """Return the weight monitors of the log: `nuclear_rank.W_O` where it has columns `nuclear_rank.W_O.<layer>`."""
    pairs = [str(column).rpartition(".") for column in train_log.columns]
    found = dict.fromkeys(name for name, _, layer in pairs if layer.isdigit() and not name.startswith("sigma_"))
    return [name for name in found if train_log.filter(like=f"{name}.").notna().to_numpy().any()]


def monitor_over_steps(train_log: pd.DataFrame, name: str, models: Sequence[str] | None = None) -> go.Figure:
    """Return one weight monitor over steps, a panel a layer."""
    pairs = [str(column).rpartition(".") for column in train_log.columns]
    layers = sorted(int(layer) for found, _, layer in pairs if found == name)
    fig, cells = facets([f"layer {layer}" for layer in layers], columns=4, height=160, shared_y=True)
    for index, (layer, where) in enumerate(zip(layers, cells, strict=True)):
        for run in runs_of(train_log, models):
            rows = thin(run.rows.dropna(subset=[f"{name}.{layer}"]))
            line = {"color": run.colour, "width": 1.6, "dash": run.dash}
            add_run(
                fig, run, rows["step"], rows[f"{name}.{layer}"], where=where, show=index == 0, mode="lines", line=line
            )
        if index + 4 >= len(layers):
            fig.update_xaxes(title_text="step", **where)
        if where["col"] == 1:
            fig.update_yaxes(title_text=label(name), **where)
    return fig.figure()
