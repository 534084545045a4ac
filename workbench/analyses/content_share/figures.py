"""The figure of `content-share`: the share of each head by layer, beside the text's own rate and the null."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

SPREAD = 0.7  # of a layer's width, over which its heads stand side by side


def draw_content_share(table: pd.DataFrame) -> go.Figure:
    """The content share of every head by layer, with its 95 % interval over features; filled where q ≤ .05 against
    labels permuted within documents. The line is the rate of the text; models side by side."""
    from reports.figures.figure_builder import facets, scatter
    from reports.figures.style import MUTED, groups_of, label

    runs = list(groups_of(table[table["share"].notna()]))
    fig, cells = facets([label(run.model) for run in runs], columns=2, height=320)
    for run, where in zip(runs, cells, strict=True):
        rows = run.rows
        fig.add_hline(float(rows["text_rate"].mean()), {"color": MUTED, "width": 1.2, "dash": "dash"}, **where)
        for name, symbol, own in (
            ("q ≤ .05", run.symbol, rows[rows["q"] <= 0.05]),
            ("other heads", f"{run.symbol}-open", rows[~(rows["q"] <= 0.05)]),
        ):
            trace = scatter(
                x=_places(own, rows), y=own["share"].tolist(), mode="markers", name=name, legendgroup=name,
                marker={"color": run.colour, "symbol": symbol, "size": 6}, error_y=_bars(own, run.colour),
                text=[_name(row) for row in own.itertuples()], hovertemplate="%{text}<extra></extra>",
            )  # fmt: skip
            fig.add_trace(trace, **where)
        layers = sorted(set(rows["layer"]))
        ticks = layers if len(layers) <= 16 else layers[:: -(-len(layers) // 16)]
        fig.update_xaxes(title_text="layer", tickvals=ticks, ticktext=[str(layer) for layer in ticks], **where)
        fig.update_yaxes(title_text="content share" if where["col"] == 1 else None, range=[-0.02, 1.02], **where)
    return fig.figure()


def _places(own: pd.DataFrame, rows: pd.DataFrame) -> list[float]:
    """Layer, moved a little by head, and by seed within it."""
    heads, seeds = sorted(set(rows["head"])), sorted(set(rows["seed"]))
    n = len(heads) * len(seeds)
    order = [heads.index(h) * len(seeds) + seeds.index(s) for h, s in zip(own["head"], own["seed"], strict=True)]
    return [float(layer) + SPREAD * ((at + 0.5) / n - 0.5) for layer, at in zip(own["layer"], order, strict=True)]


def _bars(own: pd.DataFrame, colour: str) -> dict[str, Any]:
    return {
        "type": "data", "array": (own["ci_high"] - own["share"]).fillna(0).tolist(),
        "arrayminus": (own["share"] - own["ci_low"]).fillna(0).tolist(), "symmetric": False, "width": 0,
        "color": colour, "thickness": 1,
    }  # fmt: skip


def _name(row: Any) -> str:
    head = "whole hook" if row.head < 0 else f"H{row.head}"
    return (
        f"L{row.layer} {head}, seed {row.seed}: {row.share:.3f}<br>text {row.text_rate:.3f}, null {row.null_mean:.3f}, "
        f"q {row.q:.3g}<br>{row.n_features} features"
    )
