"""The panel of what interventions change."""

from __future__ import annotations

import pandas as pd

from reports import figures
from reports.lineage import MEASURES
from reports.panels.panel import Drawing, Panel, Section, needing
from reports.study import Study

# measures behind those of the lineage
FURTHER = (
    "mean |cos| on z", "mean |cos|, residual", "nuclear rank of z", "SAE l0", "SAE fvu", "largest head impact (%)",
    "effective dimension", "bits per byte", "recall", "loop_rate",
)  # fmt: skip


def summary(study: Study) -> list[Drawing]:
    """Return every comparison's change in every measure; nothing for a study of one model."""
    titles = {measure.title: measure.title for measure in MEASURES if measure.is_of_steps}
    titles |= {measure: measure.replace("_", " ") for measure in FURTHER}
    effects = pd.concat([study.effects("", measure).assign(measure=title) for measure, title in titles.items()])
    pairs = effects["model_a"] + " → " + effects["model_b"]
    named = effects.assign(comparison=effects["comparison"].where(effects["comparison"] != "", pairs))
    return [("", figures.changes(named))] if len(named) else []


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
            needing("train_log", "model seed step", "effects"),
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
