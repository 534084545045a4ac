"""The panel of what interventions change."""

from __future__ import annotations

from reports import figures
from reports.interventions import study_changes
from reports.panels.panel import Drawing, Panel, Section, needing
from reports.study import Study


def summary(study: Study) -> list[Drawing]:
    """Return every comparison's change in every measure; nothing for a study of one model."""
    found = study_changes(study)
    return [("", figures.changes(found))] if found else []


INTERVENTIONS = Section(
    "changes",
    "What each intervention changes",
    "One model beside the other, seed by seed, in one number a measure.",
    (
        Panel(
            "interventions",
            "Changes in all measures at once",
            "Look for filled marks far from 0, and for rows that move one measure and leave the rest: an intervention "
            "that moves everything has changed training, not one thing.",
            needing("train_log", "model seed step"),
            summary,
            detail=(
                "Treated − reference, paired by seed; bars are 95 % intervals over three seeds or more, filled marks "
                "those that leave out 0, grey open marks have no interval. Means over layers, heads, concept sets; "
                "BOS mass at the middle layer; SAEs at one l1. Not corrected for how many there are."
            ),
            uses=(
                "attention_stats", "weight_spectra", "trajectories", "topology_stats", "sae_training_results",
                "ablation_results", "concept_geometry", "evaluation", "text_quality",
            ),
            interval="a bar",
            of_two="a mark is their mean",
            is_core=False,
        ),
    ),
)  # fmt: skip
