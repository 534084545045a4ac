"""Figures of `attribute`: what parts add, the measure by layer, exchanges by head, estimates beside exact values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from reports.figures.figure_builder import Draft

N_SHOWN = 20  # parts of each model
ESTIMATES = ("atp", "atp_ig", "atp_qk")
MEASURES = {"effect": "m", "logprob": "log p of the answer, nats", "prob": "p of the answer", "kl": "KL, nats"}
PARTS = {"z": "H", "mlp_out": "MLP", "attn_bias": "b_O", "norm_bias": "norm bias", "unembed_bias": "b_U"}


def draw_direct_attribution(table: pd.DataFrame) -> go.Figure:
    """What the parts of largest share add to the logit difference: behind the clean prompt, and beyond the corrupt one;
    95 % intervals over clusters of pairs."""
    from reports.figures.figure_builder import facets, scatter
    from reports.figures.style import AXIS, label

    of_direct = table[table["method"] == "dla"]
    if of_direct.empty:
        return _empty("direct logit attribution was not asked for")
    runs = _runs(of_direct, ["direction"])
    n = max(min(N_SHOWN, len(rows)) for _, rows, _ in runs)
    fig, cells = facets(
        [label(title) for _, _, title in runs], columns=2, height=60 + 18 * n, gap=0.14, vertical_spacing=84
    )
    for (run, all_rows, _), where in zip(runs, cells, strict=True):
        rows = all_rows.loc[all_rows["effect"].abs().sort_values(ascending=False, kind="stable").index[:N_SHOWN]]
        places, names = list(range(len(rows))), [name_part(row) for _, row in rows.iterrows()]
        fig.add_vline(0, {"color": AXIS, "width": 1}, **where)
        trace = scatter(
            x=rows["effect"].tolist(), y=places, mode="markers", showlegend=False,
            marker={"color": run.colour, "symbol": run.symbol, "size": 7}, error_x=_bars(rows, run.colour),
            text=[_hover(row) for _, row in rows.iterrows()], hovertemplate="%{text}<extra></extra>",
        )  # fmt: skip
        fig.add_trace(trace, **where)
        fig.update_yaxes(tickvals=places, ticktext=names, ticks="", range=[len(rows) - 0.5, -0.5], **where)
        fig.update_xaxes(title_text="added to the logit difference", showgrid=True, nticks=5, **where)
    return fig.figure()


def draw_logit_lens(table: pd.DataFrame) -> go.Figure:
    """The measure of the stream behind each layer, clean and corrupt prompts, 95 % intervals; E is the embedding."""
    from reports.figures.figure_builder import facets, scatter
    from reports.figures.style import AXIS, BAND, label

    lens = table[table["method"] == "lens"]
    if lens.empty:
        return _empty("the logit lens was not asked for")
    sides = ["clean", "corrupt"]
    fig, cells = facets([f"{side} prompts" for side in sides], columns=2, height=260, shared_y=True)
    several = lens["task"].nunique() > 1 or lens["seed"].nunique() > 1
    for side, where in zip(sides, cells, strict=True):
        fig.add_hline(0, {"color": AXIS, "width": 1}, **where)
        ticks: dict[int, str] = {}
        for run, rows, title in _runs(lens[lens["direction"] == side], []):
            place = rows["layer"].where(rows["site"] == "resid_post", -1)
            rows = rows.assign(_place=place).sort_values("_place")
            x = rows["_place"].astype(int).tolist()
            ticks |= {at: "E" if at < 0 else str(at) for at in x}
            band = scatter(
                x=[*x, *x[::-1]], y=[*rows["effect_high"], *rows["effect_low"][::-1]], mode="lines", fill="toself",
                fillcolor=run.colour + BAND, line={"width": 0, "color": run.colour}, showlegend=False,
                hoverinfo="skip", legendgroup=title,
            )  # fmt: skip
            line = scatter(
                x=x, y=rows["effect"].tolist(), mode="lines+markers", name=label(title), legendgroup=title,
                showlegend=side == "clean", line={"color": run.colour, "width": 1.8, "dash": run.dash},
                marker={"color": run.colour, "symbol": run.symbol, "size": 6}, opacity=0.7 if several else 1.0,
                text=[_hover(row) for _, row in rows.iterrows()], hovertemplate="%{text}<extra></extra>",
            )  # fmt: skip
            fig.add_trace(band, **where)
            fig.add_trace(line, **where)
        shown = sorted(ticks)
        step = max(1, len(shown) // 14)
        fig.update_xaxes(
            title_text="layer", tickvals=shown[::step], ticktext=[ticks[at] for at in shown][::step], **where
        )
        fig.update_yaxes(title_text=MEASURES[lens["metric"].iloc[0]] if side == "clean" else None, **where)
    return fig.figure()


def draw_exchanges(table: pd.DataFrame) -> go.Figure:
    """The effect of exchanging each activation, layers by heads: exact beside the estimates, a panel each; hover for
    the interval. Of several positions the first."""
    import numpy as np

    from reports.figures.figure_builder import facets, heatmap
    from reports.figures.style import DIVERGING, label

    own = table[table["method"].isin([*ESTIMATES, "exact"])]
    if own.empty:
        return _empty("no activation was exchanged")
    own = own[own["position"] == own["position"].iloc[0]]
    order = {method: i for i, method in enumerate(("exact", *ESTIMATES))}
    runs = sorted(_runs(own, ["direction", "site", "method"]), key=lambda run: order[run[1]["method"].iloc[0]])
    runs.sort(key=lambda run: own.index.get_loc(own[(own["model"] == run[0].model)].index[0]))
    n_layers = own["layer"].nunique()
    fig, cells = facets(
        [label(title) for _, _, title in runs], columns=2, height=max(120, 40 + 14 * n_layers), vertical_spacing=72
    )
    value, unit = ("recovery", "share of the gap") if own["recovery"].notna().any() else ("effect", "mean effect")
    for (_, rows, _), where in zip(runs, cells, strict=True):
        layers, heads = sorted(set(rows["layer"])), sorted(set(rows["head"]))
        z, text = np.full((len(layers), len(heads)), np.nan), np.full((len(layers), len(heads)), "", dtype=object)
        for _, row in rows.iterrows():
            at = layers.index(row["layer"]), heads.index(row["head"])
            z[at], text[at] = row[value], _hover(row)
        trace = heatmap(
            z=z.tolist(), x=heads, y=layers, coloraxis="coloraxis", xgap=0.5, ygap=0.5, customdata=text.tolist(),
            hovertemplate="%{customdata}<extra></extra>", hoverongaps=False,
        )  # fmt: skip
        fig.add_trace(trace, **where)
        ticks = {"ticks": "", "showgrid": False, "showline": False}
        shown = heads[:: max(1, len(heads) // 12)] if heads != [-1] else []
        fig.update_xaxes(title_text="head", tickvals=shown, **ticks, **where)
        title = "layer" if where["col"] == 1 else None
        shown = layers[:: max(1, len(layers) // 12)]
        fig.update_yaxes(title_text=title, tickvals=shown, autorange="reversed", **ticks, **where)
    span = float(own[value].abs().max()) or 1.0
    bar = {"title": {"text": unit}, "thickness": 10, "outlinewidth": 0, "tickfont": {"size": 11}}
    scale = [list(stop) for stop in DIVERGING]
    fig.update_layout(coloraxis={"colorscale": scale, "cmin": -span, "cmax": span, "colorbar": bar})
    return fig.figure()


def draw_estimates_and_exact_values(table: pd.DataFrame) -> go.Figure:
    """The estimate of an exchange against its exact effect, a mark a cell; on the line they are equal. Hover for the
    intervals of both."""
    from reports.figures.figure_builder import facets, scatter
    from reports.figures.style import AXIS, label

    key = ["model", "seed", "task", "direction", "site", "layer", "head", "position"]
    values = ["effect", "effect_low", "effect_high"]
    exact = table[table["method"] == "exact"].set_index(key)[values]
    exact = exact.rename(columns=dict(zip(values, ["exact", "exact_low", "exact_high"], strict=True)))
    own = table[table["method"].isin(ESTIMATES)].join(exact, on=key, how="inner")
    if own.empty:
        return _empty("no estimate stands beside an exact value")
    runs = _runs(own, ["direction", "site", "method"])
    fig, cells = facets([label(title) for _, _, title in runs], columns=2, height=260, vertical_spacing=84)
    for (run, rows, _), where in zip(runs, cells, strict=True):
        both = rows[["effect", "exact"]]
        ends = [float(both.min().min()), float(both.max().max())]
        line = scatter(
            x=ends, y=ends, mode="lines", line={"color": AXIS, "width": 1}, showlegend=False, hoverinfo="skip"
        )
        marks = scatter(
            x=rows["exact"].tolist(), y=rows["effect"].tolist(), mode="markers", showlegend=False,
            marker={"color": run.colour, "symbol": run.symbol, "size": 6, "opacity": 0.7},
            text=[_hover_both(row) for _, row in rows.iterrows()], hovertemplate="%{text}<extra></extra>",
        )  # fmt: skip
        fig.add_trace(line, **where)
        fig.add_trace(marks, **where)
        fig.update_xaxes(title_text=f"exact change of {MEASURES[own['metric'].iloc[0]]}", nticks=5, **where)
        fig.update_yaxes(title_text="estimate" if where["col"] == 1 else None, nticks=5, **where)
    return fig.figure()


def name_part(row: Any) -> str:
    """L0 H3, L2 MLP, embed, L1 H0 q, L4 resid_pre."""
    site, layer, head = row["site"], int(row["layer"]), int(row["head"])
    if layer < 0:
        return str(PARTS.get(site, site))
    if head >= 0:
        return f"L{layer} H{head}" + ("" if site == "z" else f" {site}")
    return f"L{layer} {PARTS.get(site, site)}"


def _hover(row: Any) -> str:
    share = ""
    if row["recovery"] == row["recovery"]:  # nan is not itself
        share = f", {row['recovery']:z.3g} [{row['ci_low']:z.3g}, {row['ci_high']:z.3g}] of the gap"
    interval = f"[{row['effect_low']:z.3g}, {row['effect_high']:z.3g}]"
    return f"{name_part(row)}: {row['effect']:+.3g} {interval}{share}, p {row['p']:.2g}"


def _hover_both(row: Any) -> str:
    exact = f"exact {row['exact']:+.3g} [{row['exact_low']:z.3g}, {row['exact_high']:z.3g}]"
    estimate = f"estimate {row['effect']:+.3g} [{row['effect_low']:z.3g}, {row['effect_high']:z.3g}]"
    return f"{name_part(row)}<br>{exact}<br>{estimate}"


def _bars(rows: pd.DataFrame, colour: str) -> dict[str, Any]:
    above, below = (rows["effect_high"] - rows["effect"]).fillna(0), (rows["effect"] - rows["effect_low"]).fillna(0)
    return {
        "type": "data", "symmetric": False, "array": above.tolist(), "arrayminus": below.tolist(), "thickness": 1.4,
        "width": 0, "color": colour,
    }  # fmt: skip


def _runs(table: pd.DataFrame, keys: list[str]) -> list[tuple[Any, pd.DataFrame, str]]:
    """(model's marks, rows, title) of each model, seed, task and what else tells panels apart."""
    from reports.figures.style import groups_of

    found, apart = [], ["seed", "task", *keys]
    for run in groups_of(table):
        for values, rows in run.rows.groupby(apart, sort=False):
            own = dict(zip(apart, values, strict=True))  # type: ignore[call-overload]
            parts = [f"seed {v}" if k == "seed" else str(v) for k, v in own.items() if table[k].nunique() > 1]
            found.append((run, rows, ", ".join([run.model, *parts])))
    return found


def _empty(text: str) -> go.Figure:
    from reports.figures.figure_builder import scatter, single

    fig: Draft = single(height=120)
    fig.add_trace(scatter(x=[], y=[], showlegend=False))
    fig.annotate(text=text, x=0.5, y=0.5, xref="paper", yref="paper")
    fig.update_xaxes(visible=False)
    fig.update_yaxes(visible=False)
    return fig.figure()
