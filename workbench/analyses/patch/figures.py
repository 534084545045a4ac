"""Figures of `patch`: the recovery of every head and of every position, as maps of one scale; the mean effect where no
gap is large enough for a share of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

MAX_TICKS = 16
MAX_PLACES = 3  # positions up to which heads have a map for each; of more, positions are an axis


def draw_heads(table: pd.DataFrame) -> go.Figure:
    """The recovery of each head, layer by head, a panel for each model, task, site, direction and position; all on one
    scale about 0. Empty cells: not measured, or the gap defines no share; where it defines none at all, the mean
    effect."""
    rows: Any = table[(table["head"] >= 0) & (_n_places(table) <= MAX_PLACES)]
    return _maps(rows, "head", ["site", "direction", "task", "position"])


def draw_positions(table: pd.DataFrame) -> go.Figure:
    """The recovery of each position, layer by position, a panel for each model, task, site and direction (of a site
    with heads, for each head); all on one scale about 0."""
    rows: Any = table[(_n_places(table) > MAX_PLACES) | (table["head"] < 0)]
    return _maps(rows, "position", ["site", "direction", "task", "head"])


def _n_places(table: pd.DataFrame) -> Any:
    """How many positions each row's site has."""
    return table.groupby(["site", "direction"])["position"].transform("nunique")


def _maps(rows: pd.DataFrame, across: str, by: list[str]) -> go.Figure:
    from reports.figures.figure_builder import facets, heatmap
    from reports.figures.style import DIVERGING, models_of

    models = models_of(rows)
    by = ["seed", *by] if rows["seed"].nunique() > 1 else by
    several = [name for name in by if name in ("site", "task") or rows[name].nunique() > 1]
    parts: list[tuple[str, Any]] = []
    for _, group in rows.groupby(by, sort=False):
        parts += [(model, group[group["model"] == model]) for model in models if (group["model"] == model).any()]
    n_layers = rows["layer"].nunique()
    value = "recovery" if rows["recovery"].notna().any() else "effect"
    titles = [_title(model, own.iloc[0], several) for model, own in parts]
    height = 40 + n_layers * (13 if n_layers > 12 else 22)
    fig, cells = facets(titles, columns=max(2, min(3, len(models))), height=height, vertical_spacing=80)
    for (_, own), where in zip(parts, cells, strict=True):
        fig.add_trace(heatmap(**_cells(own, across, value), coloraxis="coloraxis", xgap=1, ygap=1), **where)
        names = _ticks(own, across)
        step = _step(names)
        fig.update_xaxes(
            title_text=across, tickvals=list(range(len(names)))[::step], ticktext=names[::step], ticks="",
            showgrid=False, range=[-0.5, len(names) - 0.5], **where,
        )  # fmt: skip
        layers = sorted(own["layer"].unique().tolist())
        fig.update_yaxes(
            title_text="layer" if where["col"] == 1 else None, tickvals=list(range(len(layers)))[:: _step(layers)],
            ticktext=layers[:: _step(layers)], ticks="", showgrid=False, range=[len(layers) - 0.5, -0.5], **where,
        )  # fmt: skip
    span = float(rows[value].abs().max() or 1.0) if len(rows) else 1.0
    title = "recovery" if value == "recovery" else "mean<br>effect"
    bar = {"title": {"text": title}, "thickness": 10, "outlinewidth": 0, "tickfont": {"size": 11}}
    scale = [list(stop) for stop in DIVERGING]
    fig.update_layout(coloraxis={"colorscale": scale, "cmin": -span, "cmax": span, "colorbar": bar})
    return fig.figure()


def _title(model: str, row: Any, several: list[str]) -> str:
    from reports.figures.style import label

    named = [_named(name, str(row[name])) for name in several if str(row[name]) != "-1"]
    absent = " (task absent)" if row["status"] == "task_absent" else ""
    return label(f"{model}: {', '.join(named)}{absent}")


def _named(name: str, value: str) -> str:
    """A panel's value of a column in its title: H3, at end, seed 1; of others the value."""
    words = {"head": "H", "seed": "seed ", "position": "" if value == "all" else "at "}
    return words.get(name, "") + value


def _ticks(own: pd.DataFrame, across: str) -> list[str]:
    """What stands below the columns: heads, or positions with what all clean prompts have there."""
    from reports.figures.style import label

    names = list(dict.fromkeys(own[across].astype(str)))
    if across != "position" or "stands_there" not in own:
        return names
    said = own.assign(position=own["position"].astype(str)).groupby("position")["stands_there"].first().fillna("")
    return [f"{name} {label(said[name])}".strip() for name in names]


def _step(names: list[Any]) -> int:
    return max(1, -(-len(names) // MAX_TICKS))


def _cells(own: pd.DataFrame, across: str, value: str) -> dict[str, Any]:
    """z, and what is said of each cell, layer by head or position in the order of the table."""
    columns = {name: i for i, name in enumerate(dict.fromkeys(own[across].astype(str)))}
    layers = sorted(own["layer"].unique().tolist())
    z: list[list[float | None]] = [[None] * len(columns) for _ in layers]
    said = [[""] * len(columns) for _ in layers]
    for row in own.to_dict("records"):
        y, x = layers.index(row["layer"]), columns[str(row[across])]
        z[y][x] = row[value] if row[value] == row[value] else None  # nan is not itself
        said[y][x] = _hover(row)
    names = {"x": list(range(len(columns))), "y": list(range(len(layers)))}
    return {"z": z, "text": said, **names, "hovertemplate": "%{text}<extra></extra>"}


def _hover(row: Any) -> str:
    """What is said of a cell: its place, recovery, adjusted p, mean effect and gap, with intervals."""
    from reports.figures.style import label

    head = f" head {row['head']}" if row["head"] >= 0 else ""
    there = f" ({row['stands_there']})" if isinstance(row.get("stands_there"), str) and row["stands_there"] else ""
    is_known = row["recovery"] == row["recovery"]
    share = f"{row['recovery']:.3f} [{row['ci_low']:.3f}, {row['ci_high']:.3f}]" if is_known else "not defined"
    lines = (
        f"{row['model']}, {row['task']}, {row['direction']}",
        f"{row['site']} of layer {row['layer']}{head}, position {row['position']}{there}",
        f"recovery {share}, adjusted p {row['p']:.3g}",
        f"effect {row['effect']:.3g} of a gap of {row['gap']:.3g} [{row['gap_low']:.3g}, {row['gap_high']:.3g}]",
    )
    return "<br>".join(label(line).replace("-", "−") if i > 1 else label(line) for i, line in enumerate(lines))
