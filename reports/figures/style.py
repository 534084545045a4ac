"""What all figures share: colours and marks of models, axes, facets. One look, written once.

Colours are those of Okabe & Ito (2008), which the common kinds of colour blindness keep apart, darkened where white
paper asks for it; every model also has a marker and a dash of its own, so that nothing hangs on colour. Figures carry
the light colours; `DARK` says what each of them becomes on a dark page.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import pandas as pd

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


def sorted_layers(df: pd.DataFrame) -> list[int]:
    """Return the layers of `df` in order."""
    return sorted({int(layer) for layer in df["layer"].dropna()})


def label(text: object) -> str:
    """Return `text` for plotly, which reads a few HTML tags in labels: angle brackets and ampersands as entities."""
    return str(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
