"""Figures of training: losses beside the baselines, the pressure λ, and the redundancies σ over steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from reports.figures.figure_builder import MAX_BANDED, Cell, Draft, add_level, add_mean, add_run, facets, single
from reports.figures.style import AXIS, groups_of, label, runs_of, sorted_layers
from reports.measure_names import name_measure


def loss_curves(
    train_log: pd.DataFrame,
    held_out: pd.DataFrame,
    baselines: pd.DataFrame | None,
    models: Sequence[str] | None = None,
    differences: pd.DataFrame | None = None,
) -> go.Figure:
    """Return held-out loss over steps (marks) with the baselines as level lines; of few models also training loss; and,
    beside curves that would coincide, how far each lies above its reference.

    Steps count from the first of the log given. held_out: means over seeds, by model and step. differences: the same of
    model_b − model_a, by both models and step.
    """
    has_two = differences is not None and len(differences) > 0
    if differences is not None and has_two:
        fig, (where, beside) = facets(["held-out loss", "difference of held-out loss"], columns=2, height=300)
    else:
        fig, where, beside = single(height=400), {}, {}
    log, n_models = since(train_log, train_log), train_log["model"].nunique()
    for run in runs_of(log, models) if n_models <= MAX_BANDED else ():
        rows = thin(run.rows)
        line = {"color": run.colour, "width": 1, "dash": "solid"}
        add_run(fig, run, rows["x"], rows["loss"], where=where, show=False, mode="lines", line=line, opacity=0.4)
    for group in groups_of(since(held_out, train_log), models):
        add_mean(fig, replace(group, rows=thin(group.rows)), "x", where=where, n_models=n_models)
    if baselines is not None:
        for name, nats in zip(baselines["name"], baselines["nats"], strict=True):
            add_level(fig, float(nats), f"{name} {nats:.2f}", row=1, col=1)
    fig.update_xaxes(title_text="step", **where)
    fig.update_yaxes(title_text="loss (nats per token)", **where)
    if differences is not None and has_two:
        _add_differences(fig, since(differences.assign(model=differences["model_b"]), train_log), models, beside)
    return fig.figure()


def _add_differences(fig: Draft, differences: pd.DataFrame, models: Sequence[str] | None, where: Cell) -> None:
    fig.add_hline(0, {"color": AXIS, "width": 1}, **where)
    n_models = differences["model_b"].nunique()
    for group in groups_of(differences, models):
        for reference, rows in group.rows.groupby("model_a", sort=False):
            name = f"{group.model} − {reference}"
            own = replace(group, rows=thin(rows))
            add_mean(fig, own, "x", where=where, n_models=n_models, name=label(name), legendgroup=name)
    fig.update_xaxes(title_text="step", **where)
    fig.update_yaxes(title_text="nats per token", **where)


def pressure_and_redundancy(
    train_log: pd.DataFrame, panels: Mapping[str, pd.DataFrame], models: Sequence[str] | None = None
) -> go.Figure:
    """Return λ over steps beside the σ that it presses on, each panel with its own scale from 0; panels as in
    `over_steps`."""
    return over_steps(train_log, panels, "", models, columns=2, height=200)


def telemetry_over_steps(
    train_log: pd.DataFrame, panels: Mapping[str, pd.DataFrame], models: Sequence[str] | None = None
) -> go.Figure:
    """Return what an intervention reports over steps, a panel each with its own scale, as in `over_steps`."""
    return over_steps(train_log, panels, "", models, columns=3, height=180)


def since(rows: pd.DataFrame, part: pd.DataFrame) -> pd.DataFrame:
    """Return rows with the column x: steps from the first that `part` has of the same model, and of the same seed where
    the rows have one."""
    keys = ["model", "seed"] if "seed" in part and "seed" in rows else ["model"]
    first = part.groupby(keys)["step"].min().rename("x").reset_index()
    joined = rows.merge(first, on=keys, how="left")
    return joined.assign(x=joined["step"] - joined["x"].fillna(0))


def thin(rows: pd.DataFrame, n_points: int = 1000) -> pd.DataFrame:
    """Return `rows` in the order of steps, every k-th step of them where there are more than a line can show."""
    steps = np.unique(rows["step"])
    kept = steps[:: max(1, -(-len(steps) // n_points))]
    return rows[rows["step"].isin(kept)].sort_values("step", kind="stable")


def monitor_over_steps(
    train_log: pd.DataFrame, means: pd.DataFrame, name: str, models: Sequence[str] | None = None
) -> go.Figure:
    """Return one weight monitor over steps, a panel a layer; means over seeds, by model, layer and step."""
    panels = {f"layer {layer}": means[means["layer"] == layer] for layer in sorted_layers(means)}
    return over_steps(train_log, panels, name_measure(name), models, columns=4, height=160, is_shared=True)


def ranks_over_steps(
    train_log: pd.DataFrame, panels: Mapping[str, pd.DataFrame], rank: str, models: Sequence[str] | None = None
) -> go.Figure:
    """Return one rank of the weight matrices over steps, mean over layers, a panel a matrix, as in `over_steps`."""
    return over_steps(train_log, panels, name_measure(rank), models, columns=4, height=160)


def over_steps(
    train_log: pd.DataFrame,
    panels: Mapping[str, pd.DataFrame],
    y_title: str,
    models: Sequence[str] | None,
    *,
    columns: int,
    height: int,
    is_shared: bool = False,
) -> go.Figure:
    """Return measures over steps, which count from the start of the last phase, a panel an entry.

    panels: title -> means over seeds, by model and step.
    """
    last = train_log[train_log["phase"] == train_log["phase"].iloc[-1]] if "phase" in train_log else train_log
    has_phases, n_models = len(last) < len(train_log), train_log["model"].nunique()
    fig, cells = facets([label(title) for title in panels], columns=columns, height=height, shared_y=is_shared)
    for index, (means, where) in enumerate(zip(panels.values(), cells, strict=True)):
        found = thin(means)
        found = since(found, last) if has_phases else found.assign(x=found["step"])
        for group in groups_of(found, models):
            line = {"color": group.colour, "width": 1.6, "dash": group.dash}
            add_mean(fig, group, "x", where=where, n_models=n_models, is_each=False, mode="lines", line=line)
        if has_phases:
            fig.add_vline(0, {"color": AXIS, "width": 1}, **where)
        if index + columns >= len(panels):
            fig.update_xaxes(title_text="step of the last phase" if has_phases else "step", **where)
        fig.update_yaxes(rangemode="tozero", title_text=label(y_title) if where["col"] == 1 else None, **where)
    return fig.figure()
