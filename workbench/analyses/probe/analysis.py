"""The record of `probe`: is the order, circle or map of concept sets in a model's states, and at which layer?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from workbench.analyses.probe.cost import cost
from workbench.analyses.probe.settings import ProbeSettings
from workbench.extend import Analysis, Column, Job, Merged, Settings, Table, Windows

if TYPE_CHECKING:
    import pandas as pd

    from workbench.data.concepts import ConceptSet

TESTED = ("concept_mantel", "antonym_parallelism")  # tables with a p, whose q is over all models and seeds


def check(job: Job) -> None:
    """Raise ValueError for a set that does not exist and a word that the tokenizer cannot place."""
    from workbench.analyses.probe.states import build_prompts, required_tokenizer

    build_prompts(required_tokenizer(job.subject.model), _chosen(job.settings), job.settings.template)


def measure(job: Job) -> Mapping[str, pd.DataFrame]:
    """The tables that have rows, of one harvest of the words and one of the text."""
    from workbench.analyses.probe.concept_tests import probe as measure_concepts

    own, subject = job.settings, job.subject
    kept = ("distance", "n_permutations", "n_points", "n_stability_seeds", "n_stability_permutations")
    found = measure_concepts(
        [subject.model], _chosen(own), job.tokens, templates=own.template, names=[subject.name], seeds=[subject.seed],
        seed=job.seed, on_progress=job.progress, **own.model_dump(include=set(kept)),
    )  # fmt: skip
    return found.tables()


def merge(merged: Merged) -> Mapping[str, pd.DataFrame]:
    """The tested tables with q over all rows."""
    from probes import benjamini_hochberg

    own = {name: merged.tables[name] for name in TESTED if name in merged.tables}
    return {name: table.assign(q=benjamini_hochberg(table["p"].to_numpy(dtype=float))) for name, table in own.items()}


def notes(settings: Settings) -> Sequence[str]:
    """What a reader of the page needs beside its figures."""
    return [
        "q of concept probes is over all models and seeds; permutations, templates and words are the same for each."
    ]


def _chosen(settings: ProbeSettings) -> tuple[ConceptSet, ...]:
    from workbench.data.concepts import choose_sets, read_concepts

    own = () if settings.concepts is None else read_concepts(settings.concepts)
    return choose_sets(read_concepts() + own, settings.sets)


_OF_A_SET = ("model", "seed", "set", "n")

probe = Analysis(
    name="probe",
    summary="Concept geometry by layer: Mantel tests, dimensions, trajectories; intrinsic dimension of text states.",
    settings=ProbeSettings,
    reads=Windows(),
    tables=[
        Table(
            "concept_mantel",
            key=(*_OF_A_SET, "topology", "layer"),
            columns=[
                Column("r", "Mantel correlation of the states' distances with the topology's"),
                Column("p"),
                Column("q", "Benjamini–Hochberg over all rows of the table"),
                Column("partial_r", "r given the distances in spelling"),
                Column("r2", "partial_r²"),
                Column("n_permutations", kind="integer"),
            ],
            trailing=[
                Column("p_westfall_young", "p adjusted for all layers of the set"),
                Column("min_p", "smallest p that the permutations allow"),
                Column("ci_low", "95 % bootstrap over words"),
                Column("ci_high"),
                Column("partial_p"),
                Column("partial_ci_low"),
                Column("partial_ci_high"),
                Column("r_spelling", "of the states with the spelling"),
                Column("r_target_spelling", "of the topology with the spelling"),
                Column("n_ties", "permutations that tie with the observed r", kind="integer"),
                Column("is_exact", "whether all permutations were taken"),
                Column("distance", "between states: euclidean or cosine", kind="text"),
                Column("n_templates", kind="integer"),
                Column("n_outlying", "states longer than 3 times the median", kind="integer"),
            ],
            meaning="Mantel correlation of a concept set's geometry with its topology; layer -1 is the embedding, n "
            "the words.",
        ),
        Table(
            "concept_geometry",
            key=(*_OF_A_SET, "layer"),
            columns=[Column("effective_dim", "participation ratio of the mean states, at most n − 1")],
            trailing=[
                Column("mean_over_sets"),
                Column("null_isotropic", "of as many independent isotropic states"),
                Column("n_outlying", "states longer than 3 times the median", kind="integer"),
            ],
            meaning="How many dimensions the mean states of a set fill; n is its words.",
        ),
        Table(
            "mantel_stability",
            key=("model", "seed", "set", "layer", "measure"),
            columns=[
                Column("value", "r or partial_r"),
                Column("permutation_seed", "-1: all pooled", kind="integer"),
                Column("n_permutations", kind="integer"),
                Column("n_extreme", "permutations at least as far out"),
                Column("p"),
                Column("p_low", "95 % limits of the share of permutations that is extreme"),
                Column("p_high"),
            ],
            meaning="A test at the middle layer done over: a row per seed of permutations, and one of all pooled.",
        ),
        Table(
            "crystallisation",
            key=(*_OF_A_SET, "topology"),
            columns=[
                Column("layer", "the first with `share` of the maximum; nan where no r is above 0"),
                Column("layer_low", "95 % interval over words"),
                Column("layer_high"),
                Column("maximum", "largest r over layers"),
                Column("layer_of_maximum"),
                Column("share", unit="1"),
            ],
            meaning="The layer at which a set's r comes near its maximum; n is its words.",
        ),
        Table(
            "concept_points",
            key=(*_OF_A_SET, "topology", "layer", "item"),
            columns=[
                Column("place", "the word's rank in its set", kind="integer"),
                Column("pc1"),
                Column("pc2"),
                Column("share_pc1", "of the variance", unit="1"),
                Column("share_pc2", unit="1"),
            ],
            trailing=[Column("is_best", "1 at the layer with the largest r", kind="integer")],
            meaning="A word's mean state on the first two principal components of its set, at the embedding, at the "
            "layer with the largest r and at the last.",
        ),
        Table(
            "antonym_parallelism",
            key=(*_OF_A_SET, "layer", "n_removed"),
            columns=[
                Column("parallelism", "mean cosine of the pairs' differences"),
                Column("null_mean", "of shuffled pairs"),
                Column("null_std"),
                Column("p"),
                Column("q", "Benjamini–Hochberg over all rows of the table"),
                Column("n_permutations", kind="integer"),
            ],
            trailing=[
                Column("min_p", "smallest p that the permutations allow"),
                Column("excess_over_null", "parallelism − null_mean"),
            ],
            meaning="How parallel the differences of a set's n pairs are, n_removed leading components taken out.",
        ),
        Table(
            "trajectories",
            key=("model", "seed", "set", "measure", "lag"),
            columns=[
                Column("value", "mean cosine of displacements `lag` layers apart"),
                Column("null_independent", "of independent states"),
                Column("null_random_walk", "of a random walk"),
            ],
            trailing=[
                *(Column(f"null_{null}_{end}") for null in ("independent", "random_walk") for end in ("low", "high")),
                Column("ci_low", "95 % bootstrap over words"),
                Column("ci_high"),
                Column("n", "words", kind="integer"),
            ],
            meaning="How the states of a set's words go on from layer to layer; measure is trajectory_consistency "
            "(lag 1) or lag_decay.",
        ),
        Table(
            "intrinsic_dimension",
            key=("model", "seed", "layer"),
            columns=[
                Column("dimension", "TwoNN"),
                Column("stderr"),
                Column("n_used", "points that the fit keeps", kind="integer"),
                Column("n_duplicates", kind="integer"),
            ],
            trailing=[
                Column("n_near_duplicates", kind="integer"),
                Column("n", "points", kind="integer"),
                Column("fit", kind="text"),
            ],
            meaning="Intrinsic dimension of the states of held-out text.",
        ),
        Table(
            "intrinsic_dimension_curve",
            key=("model", "seed", "layer", "n_points"),
            columns=[
                Column("dimension", "mean over subsamples"),
                Column("spread", "standard deviation over them"),
                Column("n_subsamples", "disjoint", kind="integer"),
            ],
            meaning="The same for n, n/2, n/4 … points.",
        ),
    ],
    measure=measure,
    over_training=True,
    has_common_seed=True,
    cost=cost,
    check=check,
    merge=merge,
    notes=notes,
    function="workbench.analyses.probe.concept_tests:probe",
)
