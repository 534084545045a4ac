"""The record of `compare`: how alike the states and the weights' spectra of two models are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from workbench.analyses.compare.cost import cost
from workbench.analyses.compare.settings import NO_SHARED_BASIS, CompareSettings
from workbench.extend import Analysis, Column, Job, Table, Windows

if TYPE_CHECKING:
    import pandas as pd


def check(job: Job) -> None:
    """Raise the ValueErrors of the engine that need no forward pass."""
    from workbench.analyses.compare.comparison import check_pair
    from workbench.models.checks import checked_tokens

    a, b = (subject.model for subject in job.models)
    check_pair(a, b, len(job.tokens), job.settings.n_components)
    checked_tokens("compare", b, job.tokens, min_ctx=2)  # they are windows of a's text, as long as a reads


def measure(job: Job) -> Mapping[str, pd.DataFrame]:
    """Both tables, the second model's seed in their last column."""
    from workbench.analyses.compare.comparison import compare_spectra, compare_states
    from workbench.analyses.spectra.weights import matrix_spectra

    first, second = job.models
    names = [own.name for own in job.models]
    if first.name == second.name:  # two seeds of one recipe
        names = [own.source or f"{own.name} {own.seed}" for own in job.models]
    a, b = first.model, second.model
    states = compare_states(a, b, job.tokens, n_components=job.settings.n_components, names=names, seed=job.seed)
    job.progress(0.4)
    n_layers = (a.cfg.n_layers, b.cfg.n_layers)
    spectra = compare_spectra(matrix_spectra(a), matrix_spectra(b), n_layers, names)
    tables = {"pc_cosine": states, "eigenspectra_divergence": spectra}
    return {name: table.assign(seed=second.seed) for name, table in tables.items()}


_SEED = Column("seed", "of the trainings; of the second where they differ", kind="integer")

compare = Analysis(
    name="compare",
    summary="Compare two models of one vocabulary: geometry of their states, spectra of their weights.",
    settings=CompareSettings,
    reads=Windows(n_sequences=64),
    takes="pair",
    tables=[
        Table(
            "pc_cosine",
            key=("model_a", "model_b", "layer", "pc"),
            columns=[
                Column("cosine", "|cos| of the models' principal components"),
                Column("baseline", "mean |cos| of random directions"),
                Column("n", "windows", kind="integer"),
            ],
            trailing=[
                Column("explained_a", "share of the variance that the component holds", unit="1"),
                Column("explained_b", unit="1"),
                Column("principal_angle", "between the spans of the leading components' scores", unit="rad"),
                Column("principal_angle_null", "mean over shuffled windows", unit="rad"),
                Column("cka", "unbiased linear CKA of the layer"),
                Column("cka_null", "mean over shuffled windows"),
                Column("procrustes", "Procrustes disparity of the layer"),
                Column("procrustes_null", "mean over shuffled windows"),
                Column("layer_b", "the second model's layer", kind="integer"),
                _SEED,
            ],
            meaning="The k-th principal components of two models' mean states of the same windows, k from 1, and how "
            "alike the layer's states are.",
        ),
        Table(
            "eigenspectra_divergence",
            key=("model_a", "model_b", "part"),
            columns=[
                Column("divergence", "mean over (layer, matrix) of |nuclear rank a − b| over their mean"),
                Column("n", "pairs of matrices", kind="integer"),
            ],
            trailing=[_SEED],
            meaning="How far the weights' nuclear ranks of two models lie apart; part is attention, mlp or all.",
        ),
    ],
    measure=measure,
    cost=cost,
    check=check,
    facts=lambda directory: {"note": NO_SHARED_BASIS},
    function="workbench.analyses.compare.comparison:compare",
)
