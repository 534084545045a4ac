"""The record of `spectra`: singular values and ranks of every weight matrix of one model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from workbench.analyses.spectra.cost import cost
from workbench.extend import Analysis, Column, Job, Settings, Table

if TYPE_CHECKING:
    import pandas as pd


class SpectraSettings(Settings):
    """None: every matrix of every layer is decomposed."""


def check(job: Job) -> None:
    """Raise ValueError for a model without a matrix; warn of those that layers lack."""
    from workbench.analyses.spectra.weights import check_matrices

    check_matrices(job.subject.model, job.subject.name)


def measure(job: Job) -> Mapping[str, pd.DataFrame]:
    """The tables of the model's weights; no text is read."""
    from workbench.analyses.spectra.weights import matrix_spectra, spectra_tables

    own = job.subject
    return spectra_tables(matrix_spectra(own.model, job.progress), own.name, own.seed)


spectra = Analysis(
    name="spectra",
    summary="Singular values and ranks of every weight matrix; what stable ranks sum to, by depth.",
    settings=SpectraSettings,
    tables=[
        Table(
            "weight_spectra",
            key=("model", "seed", "layer", "matrix"),
            columns=[
                Column("nuclear_rank", "(Σσ)²/Σσ²"),
                Column("effective_rank", "exp of the entropy of σ/Σσ"),
                Column("stable_rank", "Σσ²/σ₁²"),
                Column("participation_ratio", "(Σσ²)²/Σσ⁴"),
            ],
            trailing=[Column("n_singular_values", "the largest that a rank can be", kind="integer")],
            meaning="The four ranks of one weight matrix (W_Q W_K W_V W_O W_gate W_in W_out), heads side by side.",
            is_of_weights=True,
        ),
        Table(
            "singular_values",
            key=("model", "seed", "layer", "matrix"),
            columns=[
                Column("singular_values", "JSON list in descending order, nine significant digits each", kind="text")
            ],
            meaning="All singular values of one weight matrix.",
            is_of_weights=True,
        ),
        Table(
            "rank_budget",
            key=("model", "seed", "matrix", "part"),
            columns=[
                Column("stable_rank", "Σ over the part's layers"),
                Column("share", "of the Σ over all layers", unit="1"),
                Column("n_layers", "layers of the part that have the matrix", kind="integer"),
            ],
            meaning="Stable rank of one kind of matrix over a part of the depth: all, early, middle, late (thirds) or "
            "last half.",
            is_of_weights=True,
        ),
    ],
    measure=measure,
    over_training=True,
    cost=cost,
    check=check,
)
