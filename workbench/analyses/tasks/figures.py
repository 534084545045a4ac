"""Figure of `tasks`: accuracy of each task with its interval, chance marked."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

ROW = 34  # pixels of a task


def draw_tasks(table: pd.DataFrame) -> go.Figure:
    """Accuracy by task and model with its 95 % interval over clusters of pairs: full marks passed the gate, open ones
    did not. Dotted: .5; a bar: the chance of a task where that is more. A task without pairs has no mark."""
    from reports.figures.figure_builder import scatter, single
    from reports.figures.style import AXIS, MUTED, label, runs_of

    names = list(dict.fromkeys(table["task"]))
    runs = list(runs_of(table))
    fig = single(height=90 + ROW * len(names))
    fig.add_vline(0.5, {"color": AXIS, "width": 1, "dash": "dot"})
    raised = table[table["chance"] > 0.5]
    fig.add_trace(
        scatter(
            x=raised["chance"].tolist(), y=[names.index(name) for name in raised["task"]], mode="markers",
            name="chance above .5", showlegend=not raised.empty, hovertemplate="chance %{x:.3f}<extra></extra>",
            marker={"color": MUTED, "symbol": "line-ns", "size": 16, "line": {"width": 2, "color": MUTED}},
        )
    )  # fmt: skip
    for number, run in enumerate(runs):
        rows = run.rows[run.rows["accuracy"].notna()]
        offset = 0.6 * ((number + 0.5) / len(runs) - 0.5)
        accuracy = rows["accuracy"]
        is_present = (rows["status"] == "present").tolist()
        fig.add_trace(
            scatter(
                x=accuracy.tolist(), y=[names.index(name) + offset for name in rows["task"]], mode="markers",
                name=label(run.model), legendgroup=run.model, showlegend=run.is_first,
                marker={
                    "color": run.colour, "size": 8,
                    "symbol": [run.symbol if own else f"{run.symbol}-open" for own in is_present],
                },
                error_x={
                    "type": "data", "array": (rows["accuracy_high"] - accuracy).fillna(0).tolist(),
                    "arrayminus": (accuracy - rows["accuracy_low"]).fillna(0).tolist(), "symmetric": False,
                    "width": 0, "color": run.colour, "thickness": 1.4,
                },
                text=[
                    f"{label(run.model)}, seed {row.seed}, {label(row.task)}: {row.status}, gap {row.gap:+.3g} "
                    f"[{row.gap_low:+.3g}, {row.gap_high:+.3g}], {row.n_pairs} pairs"
                    for row in rows.itertuples()
                ],
                hovertemplate="%{text}<br>accuracy %{x:.3f}<extra></extra>",
            )
        )  # fmt: skip
    fig.update_yaxes(
        tickvals=list(range(len(names))), ticktext=[label(name) for name in names], ticks="",
        range=[len(names) - 0.5, -0.5],
    )  # fmt: skip
    fig.update_xaxes(title_text="accuracy", showgrid=True, range=[-0.03, 1.03])
    return fig.figure()
