"""Figures of `paths`: the strongest paths with their intervals, and senders by receivers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

N_SHOWN = 20  # paths of each model in the first figure
SITES = ("q", "k", "v", "mlp", "logits")


def draw_strongest_paths(table: pd.DataFrame) -> go.Figure:
    """The paths of largest effect of each model, with 95 % intervals over clusters of pairs where the gap defines a
    share of it; without, the mean effect."""
    from reports.figures.figure_builder import facets, scatter
    from reports.figures.style import AXIS, label

    runs = _runs(table)
    n = max(1, max(min(N_SHOWN, len(run.rows)) for run in runs))
    fig, cells = facets([label(run.title) for run in runs], columns=2, height=60 + 18 * n, gap=0.2, vertical_spacing=84)
    for run, where in zip(runs, cells, strict=True):
        value, unit = _value(run.rows)
        order = run.rows["effect"].abs().sort_values(ascending=False, kind="stable").index[:N_SHOWN]
        rows = run.rows.loc[order]
        names, places = [name_path(row) for _, row in rows.iterrows()], list(range(len(rows)))
        texts = [_hover(row) for _, row in rows.iterrows()]
        above, below = (rows["ci_high"] - rows[value]).fillna(0), (rows[value] - rows["ci_low"]).fillna(0)
        is_share = value == "recovery"
        error = {"type": "data", "symmetric": False, "array": above.tolist(), "arrayminus": below.tolist()}
        trace = scatter(
            x=rows[value].tolist(), y=places, mode="markers", showlegend=False, text=texts,
            marker={"color": run.colour, "symbol": run.symbol, "size": 7},
            error_x=error | {"thickness": 1.4, "width": 0, "color": run.colour} if is_share else None,
            hovertemplate="%{text}<extra></extra>",
        )  # fmt: skip
        fig.add_vline(0, {"color": AXIS, "width": 1}, **where)
        fig.add_trace(trace, **where)
        fig.update_yaxes(tickvals=places, ticktext=names, ticks="", range=[len(rows) - 0.5, -0.5], **where)
        fig.update_xaxes(title_text=unit, showgrid=True, nticks=5, **where)
    return fig.figure()


def draw_paths(table: pd.DataFrame) -> go.Figure:
    """Senders by receivers, a panel a model, direction and position: the share of the gap, or, where the gap defines
    none, the mean effect; hover for the interval."""
    import numpy as np

    from reports.figures.figure_builder import facets, heatmap
    from reports.figures.style import DIVERGING, label

    runs = _runs(table)
    value, unit = _value(table)
    most = max(run.rows[["site", "layer_b", "head_b"]].drop_duplicates().shape[0] for run in runs)
    fig, cells = facets(
        [label(run.title) for run in runs], columns=2, height=80 + 16 * min(60, most), gap=0.14, vertical_spacing=110
    )
    for run, where in zip(runs, cells, strict=True):
        rows = run.rows.assign(_rank=run.rows["site"].map({site: i for i, site in enumerate(SITES)}))
        rows = rows.sort_values(["layer_b", "_rank", "head_b", "layer_a", "head_a"])
        senders = list(
            dict.fromkeys(
                rows[["layer_a", "head_a"]].sort_values(["layer_a", "head_a"]).itertuples(index=False, name=None)
            )
        )
        receivers = list(dict.fromkeys(rows[["site", "layer_b", "head_b"]].itertuples(index=False, name=None)))
        z = np.full((len(receivers), len(senders)), np.nan)
        text = np.full(z.shape, "", dtype=object)
        for _, row in rows.iterrows():
            at = (
                receivers.index((row["site"], row["layer_b"], row["head_b"])),
                senders.index((row["layer_a"], row["head_a"])),
            )
            z[at], text[at] = row[value], _hover(row)
        trace = heatmap(
            z=z.tolist(), x=list(range(len(senders))), y=list(range(len(receivers))), coloraxis="coloraxis", xgap=0.5,
            ygap=0.5, customdata=text.tolist(), hovertemplate="%{customdata}<extra></extra>", hoverongaps=False,
        )  # fmt: skip
        fig.add_trace(trace, **where)
        ticks = [name_receiver(*own) for own in receivers]
        step_x, step_y = max(1, len(senders) // 16), max(1, len(receivers) // 40)
        fig.update_xaxes(
            tickvals=list(range(len(senders)))[::step_x], ticktext=[name_sender(*own) for own in senders][::step_x],
            title_text="sender", ticks="", showline=False, tickangle=-60, **where,
        )  # fmt: skip
        fig.update_yaxes(
            tickvals=list(range(len(receivers)))[::step_y], ticktext=ticks[::step_y],
            autorange="reversed", showgrid=False, showline=False, ticks="", **where,
        )  # fmt: skip
    span = float(table[value].abs().max()) or 1.0
    bar = {"title": {"text": unit}, "thickness": 10, "outlinewidth": 0, "tickfont": {"size": 11}}
    scale = [list(stop) for stop in DIVERGING]
    fig.update_layout(coloraxis={"colorscale": scale, "cmin": -span, "cmax": span, "colorbar": bar})
    return fig.figure()


def name_sender(layer: int, head: int) -> str:
    """L0 H3, or L0 MLP."""
    return f"L{layer} MLP" if head < 0 else f"L{layer} H{head}"


def name_receiver(site: str, layer: int, head: int) -> str:
    """L1 H2 k, L1 MLP, or logits."""
    if site == "logits":
        return "logits"
    return f"L{layer} MLP" if site == "mlp" else f"L{layer} H{head} {site}"


def name_path(row: Any) -> str:
    """L0 H3 → L1 H2 k."""
    sender = name_sender(int(row["layer_a"]), int(row["head_a"]))
    return f"{sender} → {name_receiver(row['site'], int(row['layer_b']), int(row['head_b']))}"


class _Rows:
    """The rows of one model, seed, direction and position, with the marks of the model."""

    def __init__(self, run: Any, rows: pd.DataFrame, title: str) -> None:
        self.colour, self.symbol, self.rows, self.title = run.colour, run.symbol, rows, title


def _runs(table: pd.DataFrame) -> list[_Rows]:
    from reports.figures.style import groups_of

    keys = ["seed", "task", "direction", "position"]
    found = []
    for run in groups_of(table):
        for values, rows in run.rows.groupby(keys, sort=False):
            parts = [
                run.model,
                *(
                    str(v) if k != "seed" else f"seed {v}"
                    for k, v in zip(keys, values, strict=True)
                    if table[k].nunique() > 1
                ),
            ]  # type: ignore[call-overload]
            found.append(_Rows(run, rows, ", ".join(parts)))
    return found


def _value(rows: pd.DataFrame) -> tuple[str, str]:
    """(column that is drawn, its title)."""
    if rows["recovery"].notna().any():
        return "recovery", "share of the gap"
    return "effect", "mean effect"


def _hover(row: Any) -> str:
    share = (
        f"{row['recovery']:z.3g} [{row['ci_low']:z.3g}, {row['ci_high']:z.3g}] of the gap, "
        if row["recovery"] == row["recovery"]
        else ""
    )
    return f"{name_path(row)}: {share}effect {row['effect']:+.3g}, p {row['p']:.2g}"
