"""Figures of `scrub`: kept shares beside random circuits', contributions of members, and necessity of heads."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

N_SHOWN = 16  # members or heads of a panel
CONTROLS = ("everything", "nothing")  # circuits that are the whole model and none of it
SHARE = "share of the gap (1: all of it)"


def draw_kept_share(table: pd.DataFrame) -> go.Figure:
    """What each circuit keeps of the gap while all else is resampled, with 95 % intervals over clusters; what its
    complement keeps; and the range from the mean to the largest of random circuits of equal size. Of a circuit that was
    not measured the status stands behind its name."""
    from reports.figures.figure_builder import facets, scatter
    from reports.figures.style import AXIS, MUTED, PALETTE, SYMBOLS, groups_of, label

    is_shown = table["kept_share"].notna() | ~table["circuit"].isin(CONTROLS)
    runs = [(run, run.rows) for run in groups_of(table[is_shown])]
    tallest = max([1, *(len(rows) for _, rows in runs)])
    fig, cells = facets([label(run.model) for run, _ in runs], columns=1, height=30 + 22 * tallest, vertical_spacing=84)
    for number, ((_, rows), where) in enumerate(zip(runs, cells, strict=True)):
        has_seeds = rows["seed"].nunique() > 1
        names, places = [_name(row, has_seeds) for row in rows.itertuples()], list(range(len(rows)))
        for level in (0, 1):
            fig.add_vline(level, {"color": AXIS, "width": 1}, **where)
        marks = [
            ("circuit", "kept_share", ("ci_low", "ci_high"), PALETTE[0], SYMBOLS[0]),
            ("its complement", "complement_share", ("complement_low", "complement_high"), PALETTE[1], "diamond-open"),
            ("random circuits: mean, largest", "random_mean", ("random_mean", "random_max"), MUTED, "line-ns-open"),
        ]
        for name, measure, (low, high), colour, symbol in marks:
            x = rows[measure]
            trace = scatter(
                x=x.tolist(), y=places, mode="markers", name=name, legendgroup=name, showlegend=number == 0,
                marker={"color": colour, "symbol": symbol, "size": 8},
                error_x={
                    "type": "data", "array": (rows[high] - x).fillna(0).tolist(),
                    "arrayminus": (x - rows[low]).fillna(0).tolist(), "symmetric": False, "width": 0, "color": colour,
                    "thickness": 1.4,
                },
                text=names, hovertemplate="%{text}, " + name + ": %{x:.3g}<extra></extra>",
            )  # fmt: skip
            fig.add_trace(trace, **where)
        span = [len(rows) - 0.5, -0.5]
        fig.update_yaxes(tickvals=places, ticktext=names, ticks="", range=span, **where)
        fig.update_xaxes(title_text=SHARE, showgrid=True, nticks=6, **where)
    return fig.figure()


def draw_contributions(table: pd.DataFrame) -> go.Figure:
    """What each member adds to its circuit's kept share, with 95 % intervals over clusters, largest first; filled where
    its adjusted p is at most .05."""
    return _ranked(table, "contribution", lambda row: str(row.member), "kept share lost without the member")


def draw_necessity(table: pd.DataFrame) -> go.Figure:
    """The share of the gap that is lost when one head alone is resampled, of the heads needed most, with 95 % intervals
    over clusters; filled where its adjusted p is at most .05."""
    return _ranked(table, "necessity", lambda row: f"{row.layer}.{row.head}", "share of the gap lost without the head")


def _ranked(table: pd.DataFrame, measure: str, name_of: Callable[[Any], str], title: str) -> go.Figure:
    """The rows of the largest measure of each model, seed, task and circuit."""
    from reports.figures.figure_builder import facets, scatter
    from reports.figures.style import AXIS, groups_of, label

    keys = [name for name in ("seed", "task", "circuit") if name in table]
    panels = []
    for run in groups_of(table):
        places: Any = run.rows.groupby(keys, sort=False)
        for key, rows in places:
            said = label(f"{run.model}, {': '.join(map(str, key[1:]))}")
            said += f", seed {key[0]}" if run.rows["seed"].nunique() > 1 else ""
            panels.append((said, run, rows.sort_values(measure, ascending=False, kind="stable").head(N_SHOWN)))
    tallest = max([1, *(len(rows) for *_, rows in panels)])
    fig, cells = facets([said for said, *_ in panels], columns=2, height=70 + 18 * tallest, vertical_spacing=84)
    for (_, run, rows), where in zip(panels, cells, strict=True):
        x, names = rows[measure], [label(name_of(row)) for row in rows.itertuples()]
        fig.add_vline(0, {"color": AXIS, "width": 1}, **where)
        trace = scatter(
            x=x.tolist(), y=list(range(len(rows))), mode="markers", showlegend=False, text=names,
            marker={
                "color": run.colour, "size": 7,
                "symbol": [run.symbol if p <= 0.05 else f"{run.symbol}-open" for p in rows["p"]],
            },
            error_x={
                "type": "data", "array": (rows["ci_high"] - x).fillna(0).tolist(),
                "arrayminus": (x - rows["ci_low"]).fillna(0).tolist(), "symmetric": False, "width": 0,
                "color": run.colour, "thickness": 1.4,
            },
            hovertemplate="%{text}: %{x:.3g}<extra></extra>",
        )  # fmt: skip
        fig.add_trace(trace, **where)
        span = [len(rows) - 0.5, -0.5]
        fig.update_yaxes(tickvals=list(range(len(rows))), ticktext=names, ticks="", range=span, **where)
        fig.update_xaxes(title_text=title, showgrid=True, nticks=6, **where)
    return fig.figure()


def _name(row: Any, has_seeds: bool) -> str:
    from reports.figures.style import label

    said = f"{label(row.task)}: {label(row.circuit)}" + (f", seed {row.seed}" if has_seeds else "")
    return said if row.kept_share == row.kept_share else f"{said} ({row.status})"
