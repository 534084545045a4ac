"""Figures of `monitor`: ROC curves and calibration beside the baselines, and scores over the tokens of examples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

# probe -> (name in words, place of its colour in the palette)
NAMES = {
    "logistic": ("the monitor's probe", 0),
    "difference_of_means": ("difference of means", 1),
    "embedding": ("embedding", 2),
    "token_identity": ("token identity", 4),
}


def draw_roc(table: pd.DataFrame) -> go.Figure:
    """Positives found against false ones, on a logarithmic scale; the dotted line is chance."""
    return _curves(table, "roc", "false positives (share)", "true positives (share)")


def draw_calibration(table: pd.DataFrame) -> go.Figure:
    """The share of positives against the probability that is said, in bins of equal counts; on the dotted line they are
    equal."""
    return _curves(table, "calibration", "probability said", "share of positives")


def _curves(table: pd.DataFrame, kind: str, x_title: str, y_title: str) -> go.Figure:
    from reports.figures.figure_builder import facets, scatter
    from reports.figures.style import AXIS, PALETTE, SYMBOLS

    panels = _panels(table[table["kind"] == kind])
    fig, cells = facets([title for title, _ in panels], columns=2, height=280)
    for number, ((_, rows), where) in enumerate(zip(panels, cells, strict=True)):
        line = [10 ** (-3 + i / 20) for i in range(61)] if kind == "roc" else [0, 1]
        chance = scatter(
            x=line, y=line, mode="lines", line={"color": AXIS, "width": 1, "dash": "dot"}, showlegend=False,
            hoverinfo="skip",
        )  # fmt: skip
        fig.add_trace(chance, **where)
        for probe, (name, place) in NAMES.items():
            own = rows[rows["probe"] == probe].sort_values("x", kind="stable")
            trace = scatter(
                x=own["x"].tolist(), y=own["y"].tolist(), mode="lines" if kind == "roc" else "lines+markers",
                name=name, legendgroup=probe, showlegend=number == 0,
                line={"color": PALETTE[place], "width": 1.8},
                marker={"color": PALETTE[place], "symbol": SYMBOLS[place], "size": 6},
                hovertemplate=f"{name}: %{{x:.3g}}, %{{y:.3g}}<extra></extra>",
            )  # fmt: skip
            fig.add_trace(trace, **where)
        scale = {"type": "log", "range": [-3, 0], "tickvals": [0.001, 0.01, 0.1, 1]} if kind == "roc" else {"nticks": 5}
        fig.update_xaxes(title_text=x_title, **scale, **where)
        fig.update_yaxes(title_text=y_title if where["col"] == 1 else None, nticks=5, **where)
    return fig.figure()


def draw_scores(table: pd.DataFrame) -> go.Figure:
    """Pooled scores (line) and scores (dots, filled at positive tokens) over the tokens behind a prompt; the dashed
    line is the threshold."""
    from reports.figures.figure_builder import facets, scatter
    from reports.figures.style import MUTED, PALETTE

    panels = []
    for title, rows in _panels(table):
        many = table.groupby(["model", "seed", "layer", "head", "feature", "target"]).ngroups > 1
        for example, own in rows.groupby("example", sort=False):
            panels.append((f"{title}: {example}" if many else str(example), own))
    fig, cells = facets([title for title, _ in panels], columns=3, height=230)
    for number, ((_, rows), where) in enumerate(zip(panels, cells, strict=True)):
        step, is_first = rows["step"].tolist(), number == 0
        fig.add_hline(float(rows["threshold"].iloc[0]), {"color": MUTED, "width": 1.2, "dash": "dash"}, **where)
        pooled = scatter(
            x=step, y=rows["pooled"].tolist(), mode="lines", name="pooled score", legendgroup="pooled",
            showlegend=is_first, line={"color": PALETTE[0], "width": 1.8},
            hovertemplate="token %{x}: pooled %{y:.3g}<extra></extra>",
        )  # fmt: skip
        fig.add_trace(pooled, **where)
        for is_positive, name, symbol in ((1, "positive token", "circle"), (0, "negative token", "circle-open")):
            own = rows[rows["is_positive"] == is_positive]
            dots = scatter(
                x=own["step"].tolist(), y=own["score"].tolist(), mode="markers", name=name, legendgroup=name,
                showlegend=is_first,
                marker={"color": PALETTE[1] if is_positive else MUTED, "symbol": symbol, "size": 5},
                hovertemplate=f"token %{{x}}, {name}: %{{y:.3g}}<extra></extra>",
            )  # fmt: skip
            fig.add_trace(dots, **where)
        is_last = number >= len(panels) - 3  # of its column
        fig.update_xaxes(title_text="token behind the prompt" if is_last else None, **where)
        fig.update_yaxes(title_text="log-odds" if where["col"] == 1 else None, nticks=5, **where)
    return fig.figure()


def _panels(table: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """(title, rows) of each model, seed, site and target."""
    from reports.figures.style import label

    found, has_seeds = [], table["seed"].nunique() > 1
    places: Any = table.groupby(["model", "seed", "layer", "head", "feature", "target"], sort=False)
    for (model, seed, layer, head, feature, target), rows in places:
        name = (
            f"{label(model)}, L{layer}" + (f" H{head}" if head >= 0 else "") + (f" #{feature}" if feature >= 0 else "")
        )
        found.append((f"{name}: {target}" + (f", seed {seed}" if has_seeds else ""), rows))
    return found
