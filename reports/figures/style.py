"""What all figures share: colours and marks of models, axes, facets. One look, written once.

The first colours are those of Okabe & Ito (2008), which the common kinds of colour blindness keep apart, darkened where
white paper asks for it; a study of more than six models goes on with darker ones. No two of nine models share a colour,
a marker or a dash, so that nothing hangs on colour; the first four, whose bands overlap, stay apart by colour alone.
Figures carry the light colours; `DARK` says what each of them becomes on a dark page.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import pandas as pd

INK, MUTED, AXIS, GRID, PAPER = "#1c2127", "#5f6b78", "#9aa5b1", "#e3e7ec", "#ffffff"
BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#6C2673", "#B8860B", "#3C9BD0"
CHARCOAL, WINE, OLIVE = "#444444", "#882255", "#6B7A1E"
PALETTE = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, CHARCOAL, WINE, OLIVE)
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "cross", "x", "triangle-down", "star", "hourglass")
DASHES = (
    "solid", "8px,2px", "dash", "dot", "dashdot", "longdash", "longdashdot", "2px,6px", "12px,3px,2px,3px,2px,3px",
)  # fmt: skip
BAND = "20"  # the alpha of a seeds' band, in hexadecimal behind its colour

# diverging around 0 and sequential from 0; their ends stay apart for every kind of colour blindness
COOL, MIDDLE, WARM, PALE = "#2166AC", "#F7F7F6", "#B2182B", "#F1F4F7"
DIVERGING = ((0.0, COOL), (0.5, MIDDLE), (1.0, WARM))
SEQUENTIAL = ((0.0, PALE), (0.5, "#67A9CF"), (1.0, "#0B3C5D"))

# of lines in an order, such as layers, from the first to the last
DEPTH = ("#2348C4", "#5B36C9", "#8A2BB5", "#B5248F", "#D1305F", "#D94A2B", "#C46A00", "#8F7A00")

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
        PURPLE: "#B95BA1",
        ORANGE: "#E5BC4F",
        SKY: "#9AD5F7",
        CHARCOAL: "#C9CED4",
        WINE: "#E8617F",
        OLIVE: "#C3D267",
        COOL: "#5AA5EE",
        MIDDLE: "#20252a",
        WARM: "#F4775E",
        PALE: "#20262c",
        "#67A9CF": "#2F74A3",
        "#0B3C5D": "#A6DBFF",
        **dict(
            zip(
                DEPTH,
                ("#84A9FF", "#A994FF", "#CB86F7", "#EE7FD6", "#FF86A6", "#FF9676", "#F2AE4E", "#D8C34A"),
                strict=True,
            )
        ),
    }
)

FONT = "system-ui, -apple-system, 'Segoe UI', 'Helvetica Neue', Helvetica, Arial, sans-serif"


@dataclass(frozen=True)
class Run:
    """One model's rows of one seed, or of all, with the marks that its model has in every figure."""

    model: str
    seed: object  # None where the rows are of all seeds
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
    for group in groups_of(df, models):
        seeds = seeds_of(group.rows)
        for seed in seeds:
            of_seed = group.rows[group.rows["seed"] == seed] if "seed" in group.rows else group.rows
            yield replace(group, seed=seed, rows=of_seed, is_first=seed == seeds[0])


def groups_of(df: pd.DataFrame, models: Sequence[str] | None = None) -> Iterator[Run]:
    """Yield the rows of each model, all its seeds together, with the marks of `runs_of`."""
    order = list(dict.fromkeys([*(models or ()), *df["model"]]))
    for model in models_of(df, models):
        yield Run(model, None, df[df["model"] == model], *marks_of(order.index(model)), is_first=True)


def marks_of(index: int) -> tuple[str, str, str]:
    """Return colour, symbol and dash of the model at a place; from the tenth on colours come again, with others."""
    again = index // len(PALETTE)
    colour, symbol, dash = (
        marks[(index + turn * again) % len(marks)] for turn, marks in enumerate((PALETTE, SYMBOLS, DASHES))
    )
    return colour, symbol, dash


def seeds_of(df: pd.DataFrame) -> list:
    """Return the seeds of `df` in their order; a table without the column is of one seed, 0."""
    return list(dict.fromkeys(df["seed"])) if "seed" in df else [0]


def sorted_layers(df: pd.DataFrame) -> list[int]:
    """Return the layers of `df` in order."""
    return sorted({int(layer) for layer in df["layer"].dropna()})


def label(text: object) -> str:
    """Return `text` for plotly, which reads a few HTML tags in labels: angle brackets and ampersands as entities."""
    return str(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
