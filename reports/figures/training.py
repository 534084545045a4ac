"""Figures of training: losses beside the baselines, the pressure λ, and the redundancies σ over steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from reports.figures.figure_builder import MAX_BANDED, add_level, add_mean, add_run, add_summary, facets, single
from reports.figures.style import AXIS, groups_of, label, runs_of, seeds_of
from reports.seeds import over_seeds

SIGMAS = {"sigma_z": "σ on z", "sigma_pattern": "σ on the attention pattern", "sigma_residual": "σ on the residual"}


def loss_curves(
    train_log: pd.DataFrame, baselines: pd.DataFrame | None, models: Sequence[str] | None = None
) -> go.Figure:
    """Return held-out loss over steps (marks) with the baselines as level lines; of few models also training loss.

    Steps count from the first of the log given.
    """
    fig = single(height=400)
    log = since(train_log, train_log)
    n_models = log["model"].nunique()
    for run in runs_of(log, models) if n_models <= MAX_BANDED else ():
        rows = thin(run.rows)
        line = {"color": run.colour, "width": 1, "dash": "solid"}
        add_run(fig, run, rows["x"], rows["loss"], where={}, show=False, mode="lines", line=line, opacity=0.4)
    if "held_out_loss" in log:
        held_out = log.dropna(subset=["held_out_loss"])
        for group in groups_of(held_out, models):
            add_mean(fig, replace(group, rows=thin(group.rows)), "x", "held_out_loss", where={}, n_models=n_models)
    if baselines is not None:
        for name, nats in zip(baselines["name"], baselines["nats"], strict=True):
            add_level(fig, float(nats), f"{name} {nats:.2f}")
    fig.update_xaxes(title_text="step")
    fig.update_yaxes(title_text="loss (nats a token)")
    return fig.figure()


def pressure_and_redundancy(train_log: pd.DataFrame, models: Sequence[str] | None = None) -> go.Figure:
    """Return λ over steps beside the σ that it presses on, each panel with its own scale from 0."""
    columns = {"lambda": "pressure λ", **{name: title for name, title in SIGMAS.items() if name in train_log}}
    return over_steps(train_log, {title: [name] for name, title in columns.items()}, "", models, columns=2, height=200)


def since(train_log: pd.DataFrame, part: pd.DataFrame) -> pd.DataFrame:
    """Return the log with the column x: steps from the first that `part` has of the same model and seed."""
    keys = ["model", "seed"] if "seed" in part else ["model"]
    first = part.groupby(keys)["step"].min().rename("x").reset_index()
    joined = train_log.merge(first, on=keys, how="left")
    return joined.assign(x=joined["step"] - joined["x"].fillna(0))


def thin(rows: pd.DataFrame, n_points: int = 1000) -> pd.DataFrame:
    """Return `rows` in the order of steps, every k-th step of them where there are more than a line can show."""
    steps = np.unique(rows["step"])
    kept = steps[:: max(1, -(-len(steps) // n_points))]
    return rows[rows["step"].isin(kept)].sort_values("step", kind="stable")


def monitor_names(train_log: pd.DataFrame) -> list[str]:
    """Return the weight monitors of the log: `nuclear_rank.W_O` where it has columns `nuclear_rank.W_O.<layer>`."""
    pairs = [str(column).rpartition(".") for column in train_log.columns]
    found = dict.fromkeys(name for name, _, layer in pairs if layer.isdigit() and not name.startswith("sigma_"))
    return [name for name in found if train_log[layer_columns(train_log, name)].notna().to_numpy().any()]


def layer_columns(train_log: pd.DataFrame, name: str) -> list[str]:
    """Return the log's columns of one monitor, in the order of layers."""
    pairs = {str(column): str(column).rpartition(".") for column in train_log.columns}
    found = {column: int(layer) for column, (own, _, layer) in pairs.items() if own == name and layer.isdigit()}
    return sorted(found, key=lambda column: found[column])


def monitor_over_steps(train_log: pd.DataFrame, name: str, models: Sequence[str] | None = None) -> go.Figure:
    """Return one weight monitor over steps, a panel a layer."""
    panels = {f"layer {column.rpartition('.')[2]}": [column] for column in layer_columns(train_log, name)}
    return over_steps(train_log, panels, name, models, columns=4, height=160, is_shared=True)


def ranks_over_steps(train_log: pd.DataFrame, rank: str, models: Sequence[str] | None = None) -> go.Figure:
    """Return one rank of the weight matrices over steps, mean over layers, a panel a matrix."""
    names = [name for name in monitor_names(train_log) if name.startswith(f"{rank}.")]
    panels = {name.partition(".")[2]: layer_columns(train_log, name) for name in names}
    return over_steps(train_log, panels, rank.replace("_", " "), models, columns=4, height=160)


def over_steps(
    train_log: pd.DataFrame,
    panels: Mapping[str, Sequence[str]],
    y_title: str,
    models: Sequence[str] | None,
    *,
    columns: int,
    height: int,
    is_shared: bool = False,
) -> go.Figure:
    """Return the mean of some columns over steps, a panel an entry; steps count from the start of the last phase."""
    keys = [key for key in ("model", "seed", "phase", "step") if key in train_log]
    wanted = list(dict.fromkeys(column for own in panels.values() for column in own))
    log = train_log[[*keys, *wanted]].copy()  # of hundreds of columns, few
    last = log[log["phase"] == log["phase"].iloc[-1]] if "phase" in log else log
    has_phases = len(last) < len(log)
    log = since(log, last) if has_phases else log.assign(x=log["step"])
    keys = [key for key in ("model", "seed", "step", "x") if key in log]
    fig, cells = facets([label(title) for title in panels], columns=columns, height=height, shared_y=is_shared)
    seeds = {group.model: seeds_of(group.rows) for group in groups_of(log, models)}
    for index, (own, where) in enumerate(zip(panels.values(), cells, strict=True)):
        rows = log[keys].assign(value=log[list(own)].mean(axis=1)).dropna(subset=["value"])
        found = over_seeds(thin(rows), ["model", "x"], "value").sort_values("x", kind="stable")
        for group in groups_of(found, models):
            line = {"color": group.colour, "width": 1.6, "dash": group.dash}
            add_summary(
                fig, group, group.rows, seeds[group.model], where=where, n_models=len(seeds),
                mode="lines", line=line,
            )  # fmt: skip
        if has_phases:
            fig.add_vline(0, {"color": AXIS, "width": 1}, **where)
        if index + columns >= len(panels):
            fig.update_xaxes(title_text="step of the last phase" if has_phases else "step", **where)
        fig.update_yaxes(rangemode="tozero", title_text=label(y_title) if where["col"] == 1 else None, **where)
    return fig.figure()
