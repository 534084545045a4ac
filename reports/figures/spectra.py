"""The figure of whole spectra: every singular value of the weight matrices of one layer."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go

from reports.figures.figure_builder import add_mean, facets
from reports.figures.style import groups_of, label


def spectra_over_index(means: pd.DataFrame, models: Sequence[str] | None = None) -> go.Figure:
    """Return log₁₀ of σ_i/σ₁ over i, a panel a matrix: the mean over seeds with its band.

    means: over seeds, by model, matrix and i, of one layer per model.
    """
    matrices = list(dict.fromkeys(means["matrix"]))
    fig, cells = facets([label(matrix) for matrix in matrices], columns=4, height=170)
    n_models = means["model"].nunique()
    for index, (matrix, where) in enumerate(zip(matrices, cells, strict=True)):
        for group in groups_of(means[means["matrix"] == matrix], models):
            line = {"color": group.colour, "width": 1.6, "dash": group.dash}
            add_mean(fig, group, "i", where=where, n_models=n_models, is_each=False, mode="lines", line=line)
        fig.update_xaxes(title_text="i" if index + 4 >= len(matrices) else None, **where)
        fig.update_yaxes(title_text="log₁₀ σᵢ/σ₁" if where["col"] == 1 else None, **where)
    return fig.figure()
