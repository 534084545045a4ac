"""The figure of whether SAE features are features: sparse, neither dense nor copies, better than controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
import plotly.graph_objects as go

from reports.figures.figure_builder import Cell, Draft, facets, layer_axis, scatter
from reports.figures.saes import add_layers, add_width, at_l1, of_dictionary
from reports.figures.style import MUTED, groups_of, label, sorted_layers

CONTROLS = {"random": "random dictionary", "shuffled": "shuffled activations"}
CONTROL_DASHES = {"random": "dash", "shuffled": "dot"}
TITLES = {
    "l0": "L0",
    "dense_fraction": "share of dense features",
    "near_copy_share": "share of near-copies",
    "fvu": "FVU",
}


def sae_health(
    sae_results: pd.DataFrame,
    means: Mapping[str, pd.DataFrame],
    models: Sequence[str] | None = None,
    l1: float | None = None,
) -> go.Figure:
    """Return by layer, a panel each: L0 beside the width of what the SAEs read, the shares of dense features and of
    near-copies, and FVU beside the control dictionaries (grey means); small marks are heads.

    means: measure of `TITLES` that the table has -> means over heads and seeds, by model, dictionary, l1 and layer.
    """
    fig, cells = facets([TITLES[measure] for measure in means], columns=2, height=230)
    df = at_l1(sae_results, l1)
    trained = of_dictionary(df, "trained")
    for index, ((measure, own), where) in enumerate(zip(means.items(), cells, strict=True)):
        own = at_l1(own, l1)
        add_layers(fig, trained, of_dictionary(own, "trained"), measure, models, where)
        if measure == "l0":
            add_width(fig, trained, **where)
        if measure == "fvu":
            _add_controls(fig, own, models, where)
        layer_axis(fig, sorted_layers(trained), **where)
        fig.update_xaxes(title_text="layer" if index + 2 >= len(means) else None, **where)
        is_share = measure in ("dense_fraction", "near_copy_share")
        fig.update_yaxes(**({"range": [-0.03, 1.03]} if is_share else {"rangemode": "tozero"}), **where)
    return fig.figure()


def _add_controls(fig: Draft, means: pd.DataFrame, models: Sequence[str] | None, where: Cell) -> None:
    for dictionary, name in CONTROLS.items():
        for run in groups_of(of_dictionary(means, dictionary), models):
            mean = run.rows.sort_values("layer", kind="stable")
            hover = f"{name}, {label(run.model)}<br>layer %{{x}}: %{{y:.4g}}<extra></extra>"
            line = {"color": MUTED, "width": 1.4, "dash": CONTROL_DASHES[dictionary]}
            marker = {"color": MUTED, "symbol": run.symbol, "size": 5}
            trace = scatter(
                x=mean["layer"].tolist(), y=mean["mean"].tolist(), name=name, legendgroup=dictionary,
                mode="lines+markers", line=line, marker=marker, hovertemplate=hover,
            )  # fmt: skip
            fig.add_trace(trace, **where)
