"""Panels of sampled text."""

from __future__ import annotations

import pandas as pd

from reports import figures
from reports.continuations import FILE, Continuations, describe_continuations
from reports.figures.style import models_of, seeds_of
from reports.panels.panel import Drawing, Panel, Section, needing
from reports.seed_means import mean_cell
from reports.study import Study
from reports.table_cells import MISSING, Cell, Grid, fixed


def quality_grids(study: Study) -> list[Grid]:
    """Return every measure as a row, every model as a column: over seeds, or of one seed with its own interval."""
    df = study.tables["text_quality"]
    models = models_of(df, study.models)
    rows = []
    for measure in dict.fromkeys(df["measure"]):
        own = df[df["measure"] == measure]
        means = study.means("text_quality", str(measure), "model")
        cells = tuple(quality_cell(*(frame[frame["model"] == model] for frame in (own, means))) for model in models)
        rows.append(((str(measure).replace("_", " "),), cells))
    return [Grid("", (), ("measure",), tuple(models), tuple(rows), is_wide=True)]


def quality_cell(rows: pd.DataFrame, means: pd.DataFrame) -> Cell:
    """Return one model's value of a measure, with the interval over its seeds or, of one seed, the table's own."""
    known = rows.dropna(subset=["value"])
    if known.empty:
        return Cell(MISSING)
    if len(seeds_of(known)) > 1:
        return mean_cell(means, 3)
    row = known.iloc[0]
    is_bounded = pd.notna(row["ci_low"]) and pd.notna(row["ci_high"])
    note = f"[{fixed(row['ci_low'], 3)}, {fixed(row['ci_high'], 3)}]" if is_bounded else ""
    return Cell(fixed(row["value"], 3), note)


def measures(study: Study) -> list[Drawing]:
    """Return every measure of sampled text, a mark a seed."""
    return [("", figures.text_measures(study.tables["text_quality"], study.models))]


def continuations(study: Study) -> list[Continuations]:
    """Return what continuations.jsonl holds; nothing where the study has none."""
    found, _ = describe_continuations(study.paths[FILE]) if FILE in study.paths else (None, [])
    return [] if found is None else [found]


def counts_by_unit(study: Study) -> dict[str, pd.DataFrame]:
    """Return the rows of batteries, whose n are scenarios, beside those of prompts; of a table that does not say what
    its n are, recall is a battery."""
    df = study.tables["text_quality"]
    is_scored = df["unit"] == "scenario" if "unit" in df else df["measure"].str.startswith("recall")
    parts = {"counts": df[~is_scored], "batteries": df[is_scored]}
    return {name: rows for name, rows in parts.items() if len(rows)}


def faults(study: Study) -> list[str]:
    """Return why the continuations that the study has cannot be shown."""
    return describe_continuations(study.paths[FILE])[1] if FILE in study.paths else []


TEXT = Section(
    "text",
    "Text quality",
    "What sampled continuations look like, read and counted.",
    (
        Panel(
            "continuations",
            "Continuations side by side",
            "Read several prompts before you believe a count: one sample is an anecdote, and a model of this size "
            "writes grammar before it writes sense.",
            needing("text_quality", "model seed"),
            continuations,
            detail="Every model continues the same prompt, drawn with the same random numbers at the same temperature.",
            uses=(FILE,),
            faults=faults,
            is_core=False,
            is_by_seed=True,
        ),
        Panel(
            "text-quality",
            "Measures of sampled text",
            "Intervals that do not overlap tell two models apart; where they do, this many samples leave it open.",
            needing("text_quality", "model seed measure value ci_low ci_high"),
            measures,
            ("n", "prompts, of batteries scenarios"),
            "Bars are 95 % intervals over what the column unit names; a mark a seed.",
            counted=counts_by_unit,
            is_by_seed=True,
            is_core=False,
        ),
        Panel(
            "text-table",
            "Measures of sampled text, in figures",
            "Read a row: brackets that do not overlap tell two models apart, overlapping ones leave it open. For "
            "recall, grammar and cause a share of .5 and a margin of 0 are chance: a model that does not look at the "
            "text has them exactly. A margin shows weaker knowledge than a share.",
            needing("text_quality", "model seed measure value ci_low ci_high", "seed_means"),
            quality_grids,
            ("n", "prompts, of batteries scenarios"),
            "One seed: brackets are 95 % intervals over prompts (recall, grammar, cause: scenarios). Discourse and "
            "dialogue markers and entity fabrication are per 100 words; the table’s column per says what each is a "
            "share or a mean of.",
            counted=counts_by_unit,
            is_table=True,
            is_core=False,
        ),
    ),
)
