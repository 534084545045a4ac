"""The figure of whole spectra: every singular value of the weight matrices of one layer."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from reports.figures.figure_builder import add_summary, facets
from reports.figures.style import groups_of, label, seeds_of
from reports.seeds import over_seeds

MAX_INDICES = 80  # of which a line is drawn; the first and the last are among them


def spectra_over_index(singular_values: pd.DataFrame, models: Sequence[str] | None = None) -> go.Figure:
    """Return log₁₀ of σ_i/σ₁ over i, a panel a matrix: the mean over seeds with its band.

    singular_values: the table's rows of one layer per model. A singular value of 0 has no logarithm and is left out.
    """
    matrices = list(dict.fromkeys(singular_values["matrix"]))
    fig, cells = facets([label(matrix) for matrix in matrices], columns=4, height=170)
    n_models = singular_values["model"].nunique()
    for index, (matrix, where) in enumerate(zip(matrices, cells, strict=True)):
        own = singular_values[singular_values["matrix"] == matrix]
        seeds = {group.model: seeds_of(group.rows) for group in groups_of(own, models)}
        found = over_seeds(decays(own), ["model", "i"], "decay").rename(columns={"i": "x"})
        for group in groups_of(found, models):
            line = {"color": group.colour, "width": 1.6, "dash": group.dash}
            add_summary(
                fig, group, group.rows, seeds[group.model], where=where, n_models=n_models, mode="lines", line=line
            )
        fig.update_xaxes(title_text="i" if index + 4 >= len(matrices) else None, **where)
        fig.update_yaxes(title_text="log₁₀ σᵢ/σ₁" if where["col"] == 1 else None, **where)
    return fig.figure()


def decays(singular_values: pd.DataFrame) -> pd.DataFrame:
    """Return rows (model, seed, i from 1, log₁₀ σ_i/σ₁) of some matrices, of at most `MAX_INDICES` i each."""
    parts = []
    for model, seed, cell in singular_values[["model", "seed", "singular_values"]].itertuples(index=False):
        sigma = np.asarray(json.loads(cell), dtype=float)
        kept = np.unique(np.linspace(0, len(sigma) - 1, MAX_INDICES).round().astype(int))
        with np.errstate(divide="ignore", invalid="ignore"):  # of a zero matrix nothing is finite
            decay = np.log10(sigma[kept] / sigma[0])
        parts.append(pd.DataFrame({"model": model, "seed": seed, "i": kept + 1, "decay": decay}))
    found = pd.concat(parts, ignore_index=True)
    return found[np.isfinite(found["decay"])]
