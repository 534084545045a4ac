"""The Kotodama lineage as tables: each model beside the published figures, what each step changes, and pairs of models.

A cell is a mean over seeds with its interval from three on, else the seeds' own figures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from reports.lineage import DEPTHS, GROUPS, MEASURES, Measure, lineage_data, lineage_models, rows_at
from reports.seed_means import difference_cell, interval, mean_cell
from reports.study import Study
from reports.table_cells import MISSING, Cell, Grid, fixed, signed

BESIDE = ("here", "published")
BUDGETED = ("W_Q", "W_O")
PARTS = ("early", "middle", "late", "last half")


def lineage_grids(study: Study) -> list[Grid]:
    """Return the lineage's measures, a table a group, published figures beside; nothing for another study.

    A table has a row for each model of the study, and for each other model of which one of its figures was published.
    Tables of which the study has no number are left out.
    """
    models = lineage_models(study)
    if not models:
        return []
    recipes = Grid(
        "Recipes as published",
        (),
        ("model", "recipe"),
        (),
        tuple(((*name_row(model["key"], models), model["recipe"]), ()) for model in lineage_data()["model"]),
    )
    grids = [beside_published(study, title, own, models) for title, own in GROUPS.items()]
    return [recipes, *(grid for grid in grids if grid is not None), *head_grids(study, models)]


def beside_published(study: Study, title: str, measures: Sequence[Measure], models: Mapping[str, str]) -> Grid | None:
    """Return one group's table; None where no model of the study has any of its numbers."""
    published = lineage_data()["published"]
    theirs = [published.get(measure.key, {}) for measure in measures]
    groups = [(measure.title, 2 if own else 1) for measure, own in zip(measures, theirs, strict=True)]
    ours = [by_model(study.means("", measure.title, "model"), measure.digits) for measure in measures]
    if not any(short in cells for cells in ours for short in models.values()):
        return None
    rows = []
    for model in lineage_data()["model"]:
        key, cells = model["key"], []
        for measure, here, figures in zip(measures, ours, theirs, strict=True):
            cells.append(here.get(models.get(key, ""), Cell(MISSING)))
            if figures:
                cells.append(published_cell(figures.get(key), measure.digits))
        if key in models or any(key in figures for figures in theirs):
            rows.append((name_row(key, models), tuple(cells)))
    columns = tuple(name for _, span in groups for name in BESIDE[:span])
    headers = ("model",)
    return Grid(title, tuple(groups), headers, columns, tuple(rows), is_wide=True)


def by_model(means: pd.DataFrame, digits: int) -> dict[str, Cell]:
    """Return model -> the cell of its mean, of rows that are one a model."""
    return {str(model): mean_cell(rows, digits) for model, rows in means.groupby("model", sort=False)}


def name_row(key: str, models: Mapping[str, str]) -> tuple[str]:
    """Return a model's row header: its name in the study, else the published one."""
    return (models.get(key, f"{key} (not in this study)"),)


def published_cell(figure: float | str | None, digits: int) -> Cell:
    """Return a published figure: a number as ours are written, words as they are, a dash for none."""
    return Cell(figure, is_words=True) if isinstance(figure, str) else Cell(fixed(figure, digits))


def head_grids(study: Study, models: Mapping[str, str]) -> list[Grid]:
    """Return the entropies of layer 0's heads, lowest first, since heads of two seeds do not correspond."""
    published, ranked = lineage_data()["head_entropies"], study.means("attention_stats", "entropy", "model", "place")
    ranked = ranked[ranked["model"].isin(list(models.values()))]
    if ranked.empty:
        return []
    n_heads = int(ranked["place"].max())
    ours = [by_model(own, 2) for _, own in ranked.groupby("place")]
    rows = []
    for model in lineage_data()["model"]:
        key, cells = model["key"], []
        theirs = sorted(published.get(key, []))
        for place, here in enumerate(ours):
            figure = theirs[place] if len(theirs) == n_heads else None
            cells += [here.get(models.get(key, ""), Cell(MISSING)), published_cell(figure, 2)]
        if key in models or theirs:
            rows.append((name_row(key, models), tuple(cells)))
    names = ["lowest", *(f"{place}." for place in range(2, n_heads)), "highest"] if n_heads > 1 else ["only head"]
    groups = tuple((name, 2) for name in names)
    title = "Entropies of layer 0’s heads, in order"
    return [Grid(title, groups, ("model",), BESIDE * n_heads, tuple(rows), is_wide=True)]


def step_grids(study: Study) -> list[Grid]:
    """Return what each step of the lineage changes: treated − reference over the seeds that both have."""
    measures = [measure for measure in MEASURES if measure.is_of_steps]
    found = [study.effects("", measure.title) for measure in measures]
    steps = pd.concat(found).drop_duplicates("comparison").query("comparison != ''")
    rows = []
    for step, reference, treated in steps[["comparison", "model_a", "model_b"]].itertuples(index=False):
        own = [effects[effects["comparison"] == step] for effects in found]
        cells = tuple(difference_cell(rows, measure.digits) for rows, measure in zip(own, measures, strict=True))
        rows.append(((str(step), f"{reference} → {treated}"), cells))
    titles = tuple(measure.title for measure in measures)
    return [Grid("", (), ("step", "from → to"), titles, tuple(rows), is_wide=True)] if rows else []


def two_by_two_grids(study: Study) -> list[Grid]:
    """Return the cells of the 2 × 2 of NCA and AttnRes, a table a measure, and one of their effects."""
    grids, effects = [], []
    digits_of = {measure.title: measure.digits for measure in MEASURES}
    for measure, own in study.tables["factorial"].groupby("measure", sort=False):
        found, digits = own.set_index("term").to_dict("index"), digits_of.get(str(measure), 3)
        rows = [
            ((title,), tuple(cell for term in terms for cell in term_cells(found.get(term), digits)))
            for title, terms in (("without NCA", ("neither", "attn_res")), ("with NCA", ("nca", "both")))
        ]
        groups = (("without AttnRes", 2), ("with AttnRes", 2))
        grids.append(Grid(str(measure), groups, ("",), BESIDE * 2, tuple(rows)))
        terms = ("main effect of nca", "main effect of attn_res", "interaction")
        effects.append(
            ((str(measure),), tuple(cell for term in terms for cell in term_cells(found.get(term), digits, signed)))
        )
    groups = (("main effect of NCA", 2), ("main effect of AttnRes", 2), ("interaction", 2))
    return [*grids, Grid("Effects", groups, ("measure",), BESIDE * 3, tuple(effects))] if effects else []


def term_cells(
    row: Mapping[Any, Any] | None, digits: int, write: Callable[[float, int], str] = fixed
) -> tuple[Cell, Cell]:
    """Return a term of the 2 × 2 as measured, with its interval, and as published; dashes where there is none."""
    if row is None:
        return Cell(MISSING), Cell(MISSING)
    low, high, stated = (row.get(name, math.nan) for name in ("ci_low", "ci_high", "stated_value"))
    bounds = interval(low, high, digits) if math.isfinite(low) else ""
    note = f"stated: {write(stated, digits)}" if math.isfinite(stated) else ""
    return Cell(write(row["value"], digits), bounds), Cell(write(row["published_value"], digits), note)


def pair_grids(study: Study) -> list[Grid]:
    """Return |cos| of two models' first components at three depths, published figures beside; nothing without one of
    the published pairs."""
    models, df = lineage_models(study), study.means("pc_cosine", "cosine", "model_a", "model_b", "pc", "layer")
    df = df[df["pc"] == 1].assign(model=df["model_a"])
    rows = []
    for pair in lineage_data()["pair"]:
        own = of_pair(df, pair["models"], models)
        if own.empty:
            continue
        cells = []
        for depth, figure in zip(DEPTHS.values(), pair["cosines"], strict=True):
            cells += [mean_cell(rows_at(own, depth), 3), Cell(fixed(figure, 3))]
        rows.append(((" – ".join(models[key] for key in pair["models"]),), tuple(cells)))
    groups = tuple((name, 2) for name in DEPTHS)
    return [Grid("", groups, ("pair",), BESIDE * len(DEPTHS), tuple(rows), is_wide=True)] if rows else []


def divergence_grids(study: Study) -> list[Grid]:
    """Return how far the published pairs' spectra lie apart, of attention and of MLP matrices."""
    models = lineage_models(study)
    df = study.means("eigenspectra_divergence", "divergence", "model_a", "model_b", "part")
    rows = []
    for pair in lineage_data()["divergence"]:
        own = of_pair(df, pair["models"], models)
        if own.empty:
            continue
        cells = []
        for part in ("attention", "mlp"):
            cells += [mean_cell(own[own["part"] == part], 3), Cell(fixed(pair[part], 3))]
        rows.append(((" – ".join(models[key] for key in pair["models"]),), tuple(cells)))
    groups = (("attention matrices", 2), ("MLP matrices", 2))
    return [Grid("", groups, ("pair",), BESIDE * 2, tuple(rows))] if rows else []


def of_pair(df: pd.DataFrame, keys: Sequence[str], models: Mapping[str, str]) -> pd.DataFrame:
    """Return the rows of two models of the lineage, in whichever order; none where the study lacks one."""
    first, second = (models.get(key, "") for key in keys)
    is_pair = df["model_a"].eq(first) & df["model_b"].eq(second)
    return df[is_pair | (df["model_a"].eq(second) & df["model_b"].eq(first))]


def budget_grids(study: Study) -> list[Grid]:
    """Return the stable rank summed over layers and how depth shares it, a table a matrix, and what co-training
    changes."""
    models, columns = lineage_models(study), (("stable_rank", "all", 1), *(("share", part, 3) for part in PARTS))
    treated, grids = models.get("lang-ddv1", ""), []
    for matrix in BUDGETED:
        ours, changes = [], []
        for measure, part, digits in columns:
            means = study.means("rank_budget", measure, "model", "matrix", "part")
            effects = study.effects("rank_budget", measure, "matrix", "part")
            effects = effects[(effects["model_b"] == treated) & (effects["comparison"] != "")]
            own, change = (df[(df["matrix"] == matrix) & (df["part"] == part)] for df in (means, effects))
            ours.append(by_model(own, digits))
            changes.append((change, digits))
        rows = [((short,), tuple(own.get(short, Cell(MISSING)) for own in ours)) for short in models.values()]
        pairs = pd.concat([change for change, _ in changes]).drop_duplicates("comparison")
        for reference in pairs["model_a"]:
            rows.append(((f"{reference} → {treated}",), tuple(difference_cell(*change) for change in changes)))
        groups = (("all layers", 1), ("share of", len(PARTS)))
        if any(ours):
            grids.append(Grid(matrix, groups, ("model",), ("Σ stable rank", *PARTS), tuple(rows)))
    return grids if models else []
