"""Panels of bits per byte and of depth-recurrent models."""

from __future__ import annotations

import pandas as pd

from reports import figures
from reports.figures.style import models_of
from reports.panels.panel import Drawing, Panel, Section, needing, without_column
from reports.seed_means import mean_cell
from reports.study import Study
from reports.table_cells import MISSING, Cell, Grid, fixed, thousands


def bits_grids(study: Study) -> list[Grid]:
    """Return bits per byte and perplexity by model, for each form of the weights and of the windows."""
    df = study.tables["evaluation"]
    forms = list(dict.fromkeys(zip(df["weights"], df["windows"], strict=True)))
    measures = [
        (study.means("evaluation", name, "model", "weights", "windows"), digits)
        for name, digits in (("bits_per_byte", 4), ("perplexity", 2))
    ]
    rows = []
    for model in models_of(df, study.models):
        own = df[df["model"] == model]
        cells = []
        for weights, windows in forms:
            for means, digits in measures:
                is_form = (means["weights"] == weights) & (means["windows"] == windows)
                cells.append(mean_cell(means[(means["model"] == model) & is_form], digits))
        size = own["artifact_bytes"].dropna() if "artifact_bytes" in own else pd.Series(dtype=float)
        cells.append(Cell(thousands(size.max()) if len(size) else MISSING))
        rows.append(((model,), tuple(cells)))
    groups = (*((f"{weights} weights, {windows} windows", 2) for weights, windows in forms), ("packed", 1))
    columns = (*("bits per byte", "perplexity") * len(forms), "bytes")
    return [Grid("", groups, ("model",), columns, tuple(rows), is_wide=True)]


def ladder_grids(study: Study) -> list[Grid]:
    """Return the ladder as rows: bits per byte of each rung and the change that it made."""
    df, measures = study.tables["ladder"], ladder_means(study)
    rows = []
    for rung in sorted(set(df["rung"])):
        own = df[df["rung"] == rung]
        cells = (
            *(mean_cell(means[means["rung"] == rung], 4) for means in measures),
            Cell(thousands(own["n_parameters"].iloc[0])),
            Cell(fixed(own["n_steps"].iloc[0], 0)),
        )
        rows.append(((str(int(rung)), str(own["mechanism"].iloc[0])), cells))
    columns = ("bits per byte", "change", "parameters", "steps")
    return [Grid("", (), ("rung", "mechanism added"), columns, tuple(rows))]


def ladder_figure(study: Study) -> list[Drawing]:
    """Return the ladder's figure."""
    return [("", figures.ladder(study.tables["ladder"], *ladder_means(study)))]


def ladder_means(study: Study) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the means over seeds of each rung's bits per byte and of the change that it made."""
    return study.means("ladder", "bits_per_byte", "rung"), study.means("ladder", "delta_bits", "rung")


def mechanism_bars(study: Study) -> list[Drawing]:
    """Return what turning each mechanism off costs."""
    return [("", figures.mechanism_bars(study.tables["mechanisms"], study.models))]


RECURRENT = Section(
    "recurrent",
    "Bits per byte and recurrence",
    "What each mechanism of the recurrent model is worth: added on a ladder and trained anew, or turned off at the "
    "end.",
    (
        Panel(
            "ladder",
            "The ladder: one mechanism more at each rung",
            "A step to the left of zero in the right panel is a mechanism that earned its place; marks on both sides "
            "of it are seeds that disagree.",
            needing("ladder", "model seed rung mechanism bits_per_byte delta_bits", "seed_means"),
            ladder_figure,
            ("n_steps", "training steps a rung"),
            "From the bottom up. Filled marks are means over seeds, bars their 95 % intervals, open marks seeds.",
            is_by_seed=True,
            is_core=False,
        ),
        Panel(
            "ladder-table",
            "The ladder in figures",
            "Compare a change with its own bracket: a rung whose bracket holds 0 did nothing that these seeds can "
            "show.",
            needing("ladder", "model seed rung mechanism bits_per_byte delta_bits n_parameters n_steps", "seed_means"),
            ladder_grids,
            detail="Changes are to the rung below with the same seed.",
            is_table=True,
            is_core=False,
        ),
        Panel(
            "mechanisms",
            "What turning a mechanism off costs",
            "Right of zero the model misses it. It was trained with all of them: what one is worth here and what it "
            "adds to the ladder need not agree.",
            needing("mechanisms", "model seed mechanism delta_bits ci_low ci_high"),
            mechanism_bars,
            ("n_tokens", "held-out tokens"),
            "Bars are 95 % intervals paired over stretches of text; a mark a seed.",
            is_by_seed=True,
            is_core=False,
        ),
        Panel(
            "bits",
            "Bits per byte and perplexity",
            "Lower is better. Bits per byte compare over tokenizers; perplexity, exp of the mean nats per token, only "
            "within one.",
            needing("evaluation", "model seed weights windows bits_per_byte", "seed_means"),
            bits_grids,
            ("n_tokens", "held-out tokens"),
            gaps=without_column("evaluation", "perplexity"),
            is_table=True,
            is_core=False,
        ),
    ),
)
