"""Figures of depth-recurrent models: the ladder of mechanisms, what each is worth, bits per byte."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go

from reports.figures.figure_builder import Draft, error_bars, facets, scatter, single
from reports.figures.style import AXIS, BLUE, MUTED, groups_of, label, seeds_of
from reports.measure_names import name_measure
from reports.table_cells import name_seeds, signed


def ladder(table: pd.DataFrame, bits: pd.DataFrame, changes: pd.DataFrame) -> go.Figure:
    """Return bits per byte up the ladder of mechanisms, beside it the change that each rung made; seeds as marks.

    bits, changes: means over seeds by rung.
    """
    rungs = table.drop_duplicates("rung").sort_values("rung")
    places = {rung: place for place, rung in enumerate(rungs["rung"])}
    fig, cells = facets(
        ["bits per byte", "change to the rung below"], columns=2, height=60 + 22 * len(rungs), shared_y=True
    )
    for (column, means), where in zip({"bits_per_byte": bits, "delta_bits": changes}.items(), cells, strict=True):
        if column == "delta_bits":
            fig.add_vline(0, {"color": AXIS, "width": 1}, **where)
        add_rows(fig, table, means, column, places, where)
        fig.update_xaxes(title_text=name_measure(column), showgrid=True, **where)
        ticks = {"tickvals": list(places.values()), "ticktext": [label(name) for name in rungs["mechanism"]]}
        fig.update_yaxes(**ticks, ticks="", range=[-0.6, len(places) - 0.4], **where)
    return fig.figure()


def add_rows(fig: Draft, table: pd.DataFrame, means: pd.DataFrame, value: str, places: dict, where: dict) -> None:
    """Add a mark a seed, and over several seeds their mean with its interval."""
    rows = table[table[value].notna()]
    several = len(seeds_of(rows)) > 1
    mean = scatter(
        x=means["mean"].tolist(), y=[places[own] for own in means["rung"]], mode="markers", showlegend=False,
        marker={"color": BLUE, "symbol": "circle", "size": 9},
        error_x={**error_bars(means), "thickness": 1.6, "width": 0, "color": BLUE},
        hovertemplate=f"{'mean over seeds' if several else name_seeds(seeds_of(rows))}: %{{x:.4f}}<extra></extra>",
    )  # fmt: skip
    fig.add_trace(mean, **where)
    if several:
        dots = scatter(
            x=rows[value].tolist(), y=[places[own] for own in rows["rung"]], mode="markers", showlegend=False,
            marker={"color": MUTED, "symbol": "circle-open", "size": 5}, text=[str(seed) for seed in rows["seed"]],
            hovertemplate="seed %{text}: %{x:.4f}<extra></extra>",
        )  # fmt: skip
        fig.add_trace(dots, **where)


def mechanism_bars(mechanisms: pd.DataFrame, models: Sequence[str] | None = None) -> go.Figure:
    """Return what turning each mechanism off costs in bits per byte, with 95 % intervals; a mark a model and seed."""
    names = list(dict.fromkeys(mechanisms["mechanism"]))
    fig = single(height=110 + 26 * len(names))
    fig.add_vline(0, {"color": AXIS, "width": 1})
    groups = list(groups_of(mechanisms, models))
    for index, group in enumerate(groups):
        seeds = seeds_of(group.rows)
        for k, seed in enumerate(seeds):
            rows = group.rows[group.rows["seed"] == seed] if "seed" in group.rows else group.rows
            shift = 0.5 * ((index + (k + 0.5) / len(seeds)) / len(groups) - 0.5)
            above, below = rows["ci_high"] - rows["delta_bits"], rows["delta_bits"] - rows["ci_low"]
            error = {"type": "data", "symmetric": False, "array": above.tolist(), "arrayminus": below.tolist()}
            trace = scatter(
                x=rows["delta_bits"].tolist(), y=[names.index(name) + shift for name in rows["mechanism"]],
                mode="markers", marker={"color": group.colour, "symbol": group.symbol, "size": 7},
                error_x=error | {"thickness": 1.2, "width": 0, "color": group.colour}, name=label(group.model),
                legendgroup=group.model, text=[signed(value, 4) for value in rows["delta_bits"]],
                hovertemplate=f"{label(group.model)}, seed {seed}: %{{text}} bits<extra></extra>",
            )  # fmt: skip
            fig.add_trace(trace)
    ticks = {"tickvals": list(range(len(names))), "ticktext": [label(name) for name in names]}
    fig.update_yaxes(**ticks, ticks="", range=[len(names) - 0.5, -0.5])
    fig.update_xaxes(title_text="bits per byte, off − on", showgrid=True)
    return fig.figure()
