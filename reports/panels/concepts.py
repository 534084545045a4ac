"""Panels of concept geometry: crystallisation, effective dimension, trajectories, shared components."""

from __future__ import annotations

from reports import figures
from reports.panels.panel import Panel, Section, drawn, needing

CONCEPTS = Section(
    "concepts",
    "Concept geometry",
    "Whether the order, the circle or the map of a set of concepts can be read off the model’s states.",
    (
        Panel(
            "crystallisation",
            "Crystallisation of concept sets, by layer",
            "A curve that rises early and stays is a geometry that the model builds and keeps. Dotted: what is left "
            "when the confound is partialled out.",
            needing("concept_mantel", "model seed set topology layer r"),
            drawn("concept_mantel", figures.crystallisation),
            ("n_permutations", "permutations"),
            "Mantel correlation (Spearman) of the states’ distances with the set’s; layer −1 is the embedding.",
            is_core=False,
        ),
        Panel(
            "effective-dimension",
            "Effective dimension of concept sets",
            "Dark cells are sets spread over many directions; a pale row is a set that has collapsed to a line.",
            needing("concept_geometry", "model seed set layer effective_dim"),
            drawn("concept_geometry", figures.effective_dimension),
            ("n", "concepts a set"),
            "Participation ratio of the centred mean states; at most n − 1.",
            is_first_seed=True,
            is_core=False,
        ),
        Panel(
            "trajectories",
            "Do a concept’s steps through the layers agree?",
            "Compare with the two nulls, not with 0: independent states give −.5 at lag 1, a random walk gives 0.",
            needing("trajectories", "model seed set lag value null_independent null_random_walk"),
            drawn("trajectories", figures.trajectory_bars),
            detail="Mean cosine of displacements that many layers apart.",
            is_core=False,
        ),
        Panel(
            "pc-alignment",
            "Do two models share principal components?",
            "At the baseline, two directions are as unrelated as random ones; two models share no basis to begin with.",
            needing("pc_cosine", "model_a model_b layer pc cosine baseline"),
            lambda study: [("", figures.pc_alignment(study.tables["pc_cosine"]))],
            ("n", "sequences"),
            is_core=False,
        ),
        Panel(
            "intrinsic-dimension",
            "Intrinsic dimension of the states (TwoNN), by layer",
            "Agreement between models whose weights differ is the finding to look for.",
            needing("intrinsic_dimension", "model seed layer dimension stderr"),
            drawn("intrinsic_dimension", figures.intrinsic_dimension),
            ("n_used", "points"),
            "Facco et al. 2017; bars are standard errors of the fit.",
            is_core=False,
        ),
    ),
)
