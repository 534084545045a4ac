"""Figures of `steer`: target rate and cost by dose, and one against the other, each beside the controls."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

# control -> (name in words, place of its colour in the palette)
CONTROLS = {
    "feature": ("the feature", 0),
    "difference_of_means": ("difference of means", 1),
    "random": ("random directions: mean, 95 % range", 6),
}
LEVELS = {"prompt": ("nothing pushed", "dot"), "asked": ("target's words before the prompt", "dash")}
RATE = "target rate (share of words)"
COST = "change of held-out loss (nats per token)"


def draw_target_rate(table: pd.DataFrame) -> go.Figure:
    """The share of words that are of the target by dose, with 95 % intervals over prompts."""
    return _curves(table, "target_rate", ("target_low", "target_high"), RATE)


def draw_cost(table: pd.DataFrame) -> go.Figure:
    """The change of held-out loss by dose, with 95 % intervals over windows."""
    return _curves(table, "delta_loss", ("loss_low", "loss_high"), COST)


def draw_cost_and_target_rate(table: pd.DataFrame) -> go.Figure:
    """The target rate against the change of held-out loss, a mark a dose."""
    from reports.figures.figure_builder import facets, scatter

    panels = _panels(table)
    fig, cells = facets([title for title, _ in panels], columns=2, height=260)
    for number, ((_, rows), where) in enumerate(zip(panels, cells, strict=True)):
        for control, own in _by_control(rows):
            own = own.sort_values("alpha", key=abs, kind="stable")
            trace = scatter(
                x=own["delta_loss"].tolist(), y=own["target_rate"].tolist(), mode="lines+markers",
                text=[f"α = {alpha:g}" for alpha in own["alpha"]], **_marks(control, is_named=number == 0),
                hovertemplate="%{text}: Δ loss %{x:.3g}, target rate %{y:.3g}<extra></extra>",
            )  # fmt: skip
            fig.add_trace(trace, **where)
        _add_levels(fig, rows, where, is_named=number == 0)
        fig.update_xaxes(title_text=COST, nticks=5, **where)
        fig.update_yaxes(title_text=RATE if where["col"] == 1 else None, nticks=5, **where)
    return fig.figure()


def _curves(table: pd.DataFrame, measure: str, limits: tuple[str, str], title: str) -> go.Figure:
    from reports.figures.figure_builder import facets, scatter

    panels = _panels(table)
    fig, cells = facets([name for name, _ in panels], columns=2, height=260)
    for number, ((_, rows), where) in enumerate(zip(panels, cells, strict=True)):
        for control, own in _by_control(rows):
            own = own.sort_values("alpha", kind="stable")
            above, below = ((own[name] - own[measure]).abs().fillna(0).tolist() for name in reversed(limits))
            trace = scatter(
                x=own["alpha"].tolist(), y=own[measure].tolist(), mode="lines+markers",
                error_y={"type": "data", "array": above, "arrayminus": below, "symmetric": False, "width": 3,
                         "thickness": 1.2},
                **_marks(control, is_named=number == 0),
                hovertemplate="α = %{x:g}: %{y:.3g}<extra></extra>",
            )  # fmt: skip
            fig.add_trace(trace, **where)
        if measure == "target_rate":
            _add_levels(fig, rows, where, is_named=number == 0)
        fig.update_xaxes(title_text="dose α", **where)
        fig.update_yaxes(title_text=title if where["col"] == 1 else None, nticks=5, **where)
    return fig.figure()


def _panels(table: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """(title, rows) of each feature and form, the rows in which nothing is pushed among them."""
    from reports.figures.style import label

    keys = ["model", "seed", "layer", "head", "feature"]
    found = []
    places: Any = table.groupby(keys, sort=False)
    for (model, seed, layer, head, feature), own in places:
        name = f"{label(model)}, L{layer} {'whole hook' if head < 0 else f'H{head}'} #{feature}"
        name += f", seed {seed}" if table["seed"].nunique() > 1 else ""
        plain = own[own["form"] == "none"]
        for form in dict.fromkeys(own.loc[own["form"] != "none", "form"]):
            rows: Any = own[(own["form"] == form) | own.index.isin(plain.index)]
            found.append((f"{name}: {form.replace('_', ' ')}", rows))
    return found


def _by_control(rows: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    return [(name, own) for name in CONTROLS if len(own := rows[rows["control"] == name])]


def _marks(control: str, *, is_named: bool) -> dict[str, Any]:
    from reports.figures.style import PALETTE, SYMBOLS

    name, place = CONTROLS[control]
    return {
        "name": name,
        "legendgroup": control,
        "showlegend": is_named,
        "line": {"color": PALETTE[place], "width": 1.8},
        "marker": {"color": PALETTE[place], "symbol": SYMBOLS[place], "size": 7},
    }


def _add_levels(fig: Any, rows: pd.DataFrame, where: dict[str, int], *, is_named: bool) -> None:
    """The target rates of what is not pushed, as lines over the panel."""
    from reports.figures.figure_builder import scatter
    from reports.figures.style import MUTED

    for control, (name, dash) in LEVELS.items():
        for level in rows.loc[rows["control"] == control, "target_rate"]:
            fig.add_hline(level, {"color": MUTED, "width": 1.2, "dash": dash}, **where)
            fig.add_trace(
                scatter(
                    x=[0], y=[level], mode="lines", name=name, legendgroup=control, showlegend=is_named,
                    line={"color": MUTED, "width": 1.2, "dash": dash}, hoverinfo="skip",
                ),
                **where,
            )  # fmt: skip
