"""What all figures share: colours and marks of models, axes, facets. One look, written once.

Colours are those of Okabe & Ito (2008), which the common kinds of colour blindness keep apart, darkened where white
paper asks for it; every model also has a marker and a dash of its own, so that nothing hangs on colour. Figures carry
the light colours; `DARK` says what each of them becomes on a dark page.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

INK, MUTED, AXIS, GRID, PAPER = "#1c2127", "#5f6b78", "#9aa5b1", "#e3e7ec", "#ffffff"
BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#AA4499", "#B8860B", "#3C9BD0"
PALETTE = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "cross", "x")
DASHES = ("solid", "8px,2px", "dash", "dot", "dashdot", "longdash")

# diverging around 0 and sequential from 0; their ends stay apart for every kind of colour blindness
COOL, MIDDLE, WARM, PALE = "#2166AC", "#F7F7F6", "#B2182B", "#F1F4F7"
DIVERGING = ((0.0, COOL), (0.5, MIDDLE), (1.0, WARM))
SEQUENTIAL = ((0.0, PALE), (0.5, "#67A9CF"), (1.0, "#0B3C5D"))

# light colour -> the same role on a dark page
DARK = MappingProxyType(
    {
        INK: "#e6e9ed",
        MUTED: "#9aa4af",
        AXIS: "#5b6570",
        GRID: "#2b3138",
        PAPER: "#14171a",
        BLUE: "#56A9E6",
        VERMILION: "#FF8B4D",
        GREEN: "#35C99D",
        PURPLE: "#DB86CC",
        ORANGE: "#E5BC4F",
        SKY: "#9AD5F7",
        COOL: "#5AA5EE",
        MIDDLE: "#20252a",
        WARM: "#F4775E",
        PALE: "#20262c",
        "#67A9CF": "#2F74A3",
        "#0B3C5D": "#A6DBFF",
    }
)

# where a panel sits in its figure: the row and col, from 1, that plotly's functions take
Cell = dict[str, Any]

FONT = "system-ui, -apple-system, 'Segoe UI', 'Helvetica Neue', Helvetica, Arial, sans-serif"


@dataclass(frozen=True)
class Run:
    """One model's rows of one seed, with the marks that its model has in every figure."""

    model: str
    seed: object
    rows: pd.DataFrame
    colour: str
    symbol: str
    dash: str
    is_first: bool  # the model's first seed: the one that the legend shows


def models_of(df: pd.DataFrame, models: Sequence[str] | None = None) -> list[str]:
    """Return the models of `df` in the study's order, those that it does not name last."""
    present = list(dict.fromkeys(df["model"]))
    known = [model for model in models or () if model in present]
    return known + [model for model in present if model not in known]


def runs_of(df: pd.DataFrame, models: Sequence[str] | None = None) -> Iterator[Run]:
    """Yield the rows of each model and seed. The marks go by place in `models`, so they agree between figures."""
    order = list(dict.fromkeys([*(models or ()), *df["model"]]))
    for model in models_of(df, models):
        rows = df[df["model"] == model]
        index = order.index(model)
        seeds = list(dict.fromkeys(rows["seed"])) if "seed" in rows else [0]
        for seed in seeds:
            of_seed = rows[rows["seed"] == seed] if "seed" in rows else rows
            colour, symbol, dash = (marks[index % len(marks)] for marks in (PALETTE, SYMBOLS, DASHES))
            yield Run(model, seed, of_seed, colour, symbol, dash, seed == seeds[0])


def facets(
    titles: Sequence[str], *, columns: int, height: int, shared_y: bool = False, vertical_spacing: int = 56
) -> tuple[go.Figure, list[Cell]]:
    """Return an empty figure of small panels, `columns` a row, and the place of each; heights in pixels."""
    columns = max(1, min(columns, len(titles)))
    rows = -(-len(titles) // columns)
    total = rows * height + (rows - 1) * vertical_spacing
    sharing: dict[str, Any] = {"shared_yaxes": "all"} if shared_y else {}
    fig = make_subplots(
        rows=rows,
        cols=columns,
        subplot_titles=list(titles),
        **sharing,
        horizontal_spacing=(0.03 if shared_y else 0.075) if columns > 1 else 0.0,
        vertical_spacing=vertical_spacing / total if rows > 1 else 0.0,
    )
    fig.update_annotations(font={"size": 12, "color": INK}, yshift=2)
    cells: list[Cell] = [{"row": index // columns + 1, "col": index % columns + 1} for index in range(len(titles))]
    return dress(fig, height=total + 108).update_layout(margin_t=60, meta={"columns": columns}), cells


def single(*, height: int = 340) -> go.Figure:
    """Return an empty figure of one panel."""
    return dress(go.Figure(), height=height)


def dress(fig: go.Figure, *, height: int) -> go.Figure:
    """Return `fig` with the workbench's font, margins, legend and axes; transparent, so that the page shows through."""
    axis = {
        "showgrid": True,
        "gridcolor": GRID,
        "gridwidth": 1,
        "zeroline": False,
        "showline": True,
        "linecolor": AXIS,
        "linewidth": 1,
        "ticks": "outside",
        "ticklen": 4,
        "tickcolor": AXIS,
        "tickfont": {"size": 11, "color": MUTED},
        "title": {"font": {"size": 12, "color": INK}, "standoff": 8},
        "automargin": True,
    }
    fig.update_layout(
        template=go.layout.Template(
            layout={
                "font": {"family": FONT, "size": 12, "color": INK},
                "paper_bgcolor": "rgba(0,0,0,0)",
                "plot_bgcolor": "rgba(0,0,0,0)",
                "xaxis": {**axis, "showgrid": False},
                "yaxis": axis,
                "hoverlabel": {
                    "font": {"family": FONT, "size": 12, "color": INK},
                    "bgcolor": PAPER,
                    "bordercolor": AXIS,
                },
                "colorway": list(PALETTE),
            }
        ),
        height=height,
        margin={"l": 60, "r": 16, "t": 44, "b": 48},
        legend={"orientation": "h", "x": 0, "xanchor": "left", "y": 1, "yref": "container", "yanchor": "top"},
        hovermode="closest",
        autosize=True,
    )
    return fig


def layer_axis(fig: go.Figure, layers: Sequence[int], **where) -> None:
    """Name and tick the x axis by layer: whole numbers, each once, never 0.5."""
    step = max(1, -(-len(layers) // 14))
    fig.update_xaxes(title_text="layer", tickvals=list(layers)[::step], **where)


def sorted_layers(df: pd.DataFrame) -> list[int]:
    """Return the layers of `df` in order."""
    return sorted({int(layer) for layer in df["layer"].dropna()})


def add_run(fig: go.Figure, run: Run, x, y, *, where: Cell, show: bool = True, **marks) -> None:
    """Add one run's line with its model's colour, marker and dash; the legend shows each model once."""
    style = {
        "mode": "lines+markers",
        "line": {"color": run.colour, "width": 1.8, "dash": run.dash},
        "marker": {"color": run.colour, "symbol": run.symbol, "size": 7},
        "opacity": 1.0 if run.is_first else 0.55,
        "hovertemplate": f"{label(run.model)}, seed {run.seed}<br>%{{x}}: %{{y:.4g}}<extra></extra>",
    }
    trace = go.Scatter(
        x=list(x),
        y=list(y),
        name=label(run.model),
        legendgroup=run.model,
        showlegend=run.is_first and show,
        **{**style, **marks},
    )
    fig.add_trace(trace, **where)


def add_level(fig: go.Figure, value: float, text: str, *, where: Cell | None = None, dash: str = "dot") -> None:
    """Add a horizontal reference line with its name at the right end."""
    fig.add_hline(
        y=value,
        line={"color": MUTED, "width": 1.2, "dash": dash},
        annotation={"text": label(text), "font": {"size": 11, "color": MUTED}},
        annotation_position="top right",
        **(where or {}),
    )


def label(text: object) -> str:
    """Return `text` for plotly, which reads a few HTML tags in labels: angle brackets and ampersands as entities."""
    return str(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
