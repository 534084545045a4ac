"""Figures of `patch`: the recovery of every head and of every position, as maps of one scale."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

MAX_TICKS = 16


def draw_heads(table: pd.DataFrame) -> go.Figure:
    """The recovery of each head, layer by head, a panel for each model, task, site, direction and position; all on one
    scale about 0. Empty cells: not measured, or the gap is not defined."""
    rows = table[table["head"] >= 0]
    n_places = rows.groupby(["site", "direction"])["position"].transform("nunique") if len(rows) else 0
    return _maps(rows[n_places == 1] if len(rows) else rows, "head", ["site", "direction", "task", "position"])


def draw_positions(table: pd.DataFrame) -> go.Figure:
    """The recovery of each position, layer by position, a panel for each model, task, site and direction (of a site
    with heads, for each head); all on one scale about 0."""
    n_places = table.groupby(["site", "direction"])["position"].transform("nunique")
    rows = table[(n_places > 1) | (table["head"] < 0)]
    return _maps(rows, "position", ["site", "direction", "task", "head"])


def _maps(rows: pd.DataFrame, across: str, by: list[str]) -> go.Figure:
    from reports.figures.figure_builder import facets, heatmap
    from reports.figures.style import DIVERGING, models_of

    models = models_of(rows)
    rows = rows[rows["seed"] == rows.groupby("model")["seed"].transform("first")]
    several = [name for name in by if rows[name].nunique() > 1]
    parts: list[tuple[str, Any]] = []
    for _, group in rows.groupby(by, sort=False):
        parts += [(model, group[group["model"] == model]) for model in models if (group["model"] == model).any()]
    n_layers = rows["layer"].nunique()
    titles = [_title(model, own.iloc[0], several) for model, own in parts]
    height = 40 + n_layers * (13 if n_layers > 12 else 22)
    fig, cells = facets(titles, columns=max(2, min(3, len(models))), height=height)
    for (_, own), where in zip(parts, cells, strict=True):
        fig.add_trace(heatmap(**_cells(own, across), coloraxis="coloraxis", xgap=1, ygap=1), **where)
        names = list(dict.fromkeys(own[across].astype(str)))
        fig.update_xaxes(
            title_text=across, tickvals=list(range(len(names)))[:: _step(names)], ticktext=names[:: _step(names)],
            ticks="", showgrid=False, **where,
        )  # fmt: skip
        layers = sorted(own["layer"].unique().tolist())
        fig.update_yaxes(
            title_text="layer" if where["col"] == 1 else None, tickvals=layers[:: _step(layers)], ticks="",
            showgrid=False, autorange="reversed", **where,
        )  # fmt: skip
    span = float(rows["recovery"].abs().max()) if rows["recovery"].notna().any() else 1.0
    bar = {"title": {"text": "recovery"}, "thickness": 10, "outlinewidth": 0, "tickfont": {"size": 11}}
    scale = [list(stop) for stop in DIVERGING]
    fig.update_layout(coloraxis={"colorscale": scale, "cmin": -span, "cmax": span, "colorbar": bar})
    return fig.figure()


def _title(model: str, row: Any, several: list[str]) -> str:
    from reports.figures.style import label

    named = [f"H{row[name]}" if name == "head" else str(row[name]) for name in several if str(row[name]) != "-1"]
    absent = " (task absent)" if row["status"] == "task_absent" else ""
    return ", ".join([label(model), *named]) + absent


def _step(names: list[Any]) -> int:
    return max(1, -(-len(names) // MAX_TICKS))


def _cells(own: pd.DataFrame, across: str) -> dict[str, Any]:
    """z, and what is said of each cell, layer by head or position in the order of the table."""
    columns = {name: i for i, name in enumerate(dict.fromkeys(own[across].astype(str)))}
    layers = sorted(own["layer"].unique().tolist())
    z: list[list[float | None]] = [[None] * len(columns) for _ in layers]
    said = [[""] * len(columns) for _ in layers]
    for row in own.to_dict("records"):
        at = layers.index(row["layer"]), columns[str(row[across])]
        share, is_known = row["recovery"], row["recovery"] == row["recovery"]
        z[at[0]][at[1]] = share if is_known else None
        value = f"recovery {share:.3f} [{row['ci_low']:.3f}, {row['ci_high']:.3f}]" if is_known else "no share: "
        value += "" if is_known else f"the gap is {row['gap']:.3g} [{row['gap_low']:.3g}, {row['gap_high']:.3g}]"
        said[at[0]][at[1]] = f"layer {row['layer']}, {across} {row[across]}<br>{value}<br>p {row['p']:.3g}"
    hover = "%{text}<extra></extra>"
    return {"z": z, "text": said, "x": list(range(len(columns))), "y": layers, "hovertemplate": hover}
