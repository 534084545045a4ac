"""The panel of what interventions change."""

from __future__ import annotations

import pandas as pd

from reports import figures
from reports.lineage import MEASURES
from reports.measure_names import name_measure
from reports.panels.panel import Drawing, Panel, Section, needing
from reports.study import Study
from reports.table_cells import MISSING, Cell, Grid, percent_change, significant

# measures behind those of the lineage
FURTHER = (
    "mean |cos| on z", "mean |cos|, residual", "nuclear rank of z", "SAE l0", "SAE fvu", "largest head impact (%)",
    "effective dimension", "bits per byte", "recall", "loop_rate",
)  # fmt: skip


MAX_IN_TABLE = 3  # comparisons that stand beside each other in a table; more are read better as marks


def changes(study: Study) -> pd.DataFrame:
    """Return the effects of every comparison on every measure, both by their names for readers."""
    titles = {measure.title: measure.title for measure in MEASURES if measure.is_of_steps}
    titles |= {measure: measure for measure in FURTHER}
    titles = {measure: name_measure(title) for measure, title in titles.items()}
    effects = pd.concat(
        [study.effects("", measure).assign(measure=title, of=measure) for measure, title in titles.items()]
    )
    pairs = effects["model_a"] + " → " + effects["model_b"]
    return effects.assign(comparison=effects["comparison"].where(effects["comparison"] != "", pairs))


def summary(study: Study) -> list[Drawing]:
    """Return every comparison's change in every measure; nothing for a study of few comparisons, which has a table."""
    found = changes(study)
    return [("", figures.changes(found))] if found["comparison"].nunique() > MAX_IN_TABLE else []


def change_grids(study: Study) -> list[Grid]:
    """Return the same of few comparisons as a table: the reference, the change and what it is in per cent of it."""
    found = changes(study)
    names = list(dict.fromkeys(found["comparison"]))
    if not 0 < len(names) <= MAX_IN_TABLE:
        return []
    rows = []
    for measure, own in found.groupby("measure", sort=False):
        cells = [cell for name in names for cell in _change_cells(study, own[own["comparison"] == name])]
        rows.append(((str(measure),), tuple(cells)))
    groups = tuple((name, 3) for name in names)
    columns = ("reference", "change", "in per cent") * len(names)
    return [Grid("", groups, ("measure",), columns, tuple(rows))]


def _change_cells(study: Study, rows: pd.DataFrame) -> tuple[Cell, ...]:
    if rows.empty:
        return (Cell(MISSING),) * 3
    row = rows.iloc[0]
    means = study.means("", str(row["of"]), "model")
    known = means[means["model"] == row["model_a"]]["mean"]
    reference = float(known.iloc[0]) if len(known) == 1 else None
    sign = "+" if row["effect"] > 0 else ""
    note, mark = "", ""
    if row["ci_low"] == row["ci_low"]:  # nan is not itself
        note = f"[{significant(row['ci_low'])}, {significant(row['ci_high'])}]"
        mark = " ●" if row["ci_low"] > 0 or row["ci_high"] < 0 else " ○"
    change = Cell(f"{sign}{significant(row['effect'])}{mark}", note, is_difference=True)
    relative = Cell(percent_change(reference + row["effect"], reference) if reference is not None else MISSING)
    return Cell(significant(reference)), change, relative


TAKEN = (
    "Means over layers, heads and concept sets, unless a layer is named; SAEs at one λ₁. Not corrected for the number "
    "of measures."
)
READ = (
    "attention_stats", "weight_spectra", "trajectories", "topology_stats", "sae_training_results", "ablation_results",
    "concept_geometry", "evaluation", "text_quality",
)  # fmt: skip

INTERVENTIONS = Section(
    "changes",
    "What each intervention changes",
    "One model beside the other, seed by seed, in one number a measure.",
    (
        Panel(
            "interventions",
            "Changes in all measures at once",
            "Filled: the interval excludes 0. An intervention that moves every measure has changed training as such.",
            needing("train_log", "model seed step", "effects"),
            summary,
            detail=(
                "Treated − reference, paired by seed; bars: 95 % intervals over three seeds or more; grey and open: no "
                f"interval. {TAKEN}"
            ),
            uses=READ,
            interval="a bar",
            of_two="a mark is their mean",
            is_core=False,
        ),
        Panel(
            "relative-changes",
            "What changed, and by how much",
            "Compare the last column down the table: an intervention that moves every measure has changed training as "
            "such.",
            needing("train_log", "model seed step", "effects", "seed_means"),
            change_grids,
            detail=(
                "Treated − reference, paired by seed, and the same in per cent of the reference. Brackets: 95 % "
                f"intervals over three seeds or more; ● excludes 0, ○ holds it. {TAKEN}"
            ),
            uses=READ,
            interval="in brackets",
            of_two="the change is their mean",
            is_table=True,
            is_core=False,
        ),
    ),
)  # fmt: skip
