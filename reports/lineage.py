"""The Kotodama lineage as tables: each model beside the published figures, and what each step changes, seed by seed.

A cell is one number a seed, by the rule of its `Measure`, and over seeds what `reports.seeds` says: a mean with its
interval from three on, else the seeds' own figures.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from reports.cells import MISSING, Cell, Grid, fixed, signed
from reports.seeds import of_model, over_seeds, paired_difference
from reports.study import Study

DATA = Path(__file__).with_name("lineage.toml")
KEYS = ["model", "seed"]
PUBLISHED_ROW = ("published", "full size, other text")


@dataclass(frozen=True)
class Measure:
    """One column: what it is called, its digits, and one value per (model, seed) from the tables."""

    key: str
    title: str
    digits: int
    read: Callable[[Mapping[str, pd.DataFrame]], pd.Series]


@cache
def lineage_data() -> Mapping[str, Any]:
    """Return the published recipes, steps and figures."""
    return tomllib.loads(DATA.read_text(encoding="utf-8"))


def lineage_models(study: Study) -> dict[str, str]:
    """Return lineage key -> short name of the models that this study has of it, in the order of the lineage.

    A model belongs to it by its role in study.json (`roles`: key -> model), else by its name, `-nano` aside.
    """
    roles = {str(role): str(model) for role, model in study.record.get("roles", {}).items()}
    named = {name.lower().removesuffix("-nano"): short for name, short in study.names.items()}
    found = {}
    for model in lineage_data()["model"]:
        key = model["key"]
        short = study.names.get(roles[key]) if key in roles else named.get(key)
        if short is not None:
            found[key] = short
    return found


def final(column: str) -> Callable[[Mapping[str, pd.DataFrame]], pd.Series]:
    """Return the reader of a column of the log at its last finite value."""
    return lambda tables: last_logged(tables, lambda log: log.get(column))


def last_logged(tables: Mapping[str, pd.DataFrame], column: Callable[[pd.DataFrame], pd.Series | None]) -> pd.Series:
    """Return the last finite value of something in the log, by model and seed; nothing where there is no such log."""
    log = tables.get("train_log")
    if log is None or not {"model", "seed", "step"} <= set(log.columns):
        return no_values()
    values = column(log)
    if values is None:
        return no_values()
    rows = log[KEYS + ["step"]].assign(value=values).dropna(subset=["value"])
    return rows.sort_values("step", kind="stable").groupby(KEYS, sort=False)["value"].last()


def no_values() -> pd.Series:
    """Return a series of no model."""
    return pd.Series(dtype=float, index=pd.MultiIndex.from_arrays([[], []], names=KEYS))


def entropy(statistic: str) -> Callable[[Mapping[str, pd.DataFrame]], pd.Series]:
    """Return the reader of layer 0's head entropy: its mean, or its (population) standard deviation, over heads."""

    def read(tables: Mapping[str, pd.DataFrame]) -> pd.Series:
        df = tables.get("attention_stats")
        if df is None or not {*KEYS, "layer", "entropy"} <= set(df.columns):
            name = "head_entropy.0" if statistic == "mean" else "head_entropy_std.0"
            return last_logged(tables, lambda log: log.get(name))
        heads = df[df["layer"] == 0].groupby(KEYS, sort=False)["entropy"]
        return heads.mean() if statistic == "mean" else heads.std(ddof=0)

    return read


def middle_layer(n_layers: int) -> int:
    """Return the layer at the depth of the published model's layer 14 of 28: the nearest (layer + 1)/n, the earlier of
    two as near; 0 of none, as where only the embedding was measured."""
    return min(range(max(1, n_layers)), key=lambda layer: (abs((layer + 1) * 28 - 15 * n_layers), layer))


def middle_bos_mass(tables: Mapping[str, pd.DataFrame]) -> pd.Series:
    """Return the attention to position 0, mean over the heads of the middle layer."""
    df = tables.get("attention_stats")
    if df is None or not {*KEYS, "layer", "bos_mass"} <= set(df.columns):
        return last_logged(tables, lambda log: over_layers(log, "bos_mass", only_middle=True))
    df = df.dropna(subset="layer")
    middle = df.groupby("model")["layer"].transform(lambda layers: middle_layer(int(layers.max()) + 1))
    return df[df["layer"] == middle].groupby(KEYS, sort=False)["bos_mass"].mean()


def over_layers(log: pd.DataFrame, name: str, *, only_middle: bool = False) -> pd.Series | None:
    """Return the mean over layers of the log's columns `<name>.<layer>`; None if it has none."""
    columns = [column for column in log.columns if str(column).rpartition(".")[0] == name]
    if only_middle:
        columns = [column for column in columns if column == f"{name}.{middle_layer(len(columns))}"]
    return log[columns].mean(axis=1) if columns else None


def rank_of(matrix: str) -> Callable[[Mapping[str, pd.DataFrame]], pd.Series]:
    """Return the reader of a weight matrix's nuclear rank, mean over layers."""

    def read(tables: Mapping[str, pd.DataFrame]) -> pd.Series:
        df = tables.get("weight_spectra")
        if df is None or not {*KEYS, "matrix", "nuclear_rank"} <= set(df.columns):
            return last_logged(tables, lambda log: over_layers(log, f"nuclear_rank.{matrix}"))
        return df[df["matrix"] == matrix].groupby(KEYS, sort=False)["nuclear_rank"].mean()

    return read


def consistency(tables: Mapping[str, pd.DataFrame]) -> pd.Series:
    """Return the trajectory consistency, mean over concept sets."""
    df = tables.get("trajectories")
    if df is None or not {*KEYS, "measure", "value"} <= set(df.columns):
        return no_values()
    return df[df["measure"] == "trajectory_consistency"].groupby(KEYS, sort=False)["value"].mean()


MEASURES = (
    Measure("loss", "held-out loss", 3, final("held_out_loss")),
    Measure("perplexity", "held-out perplexity", 2, final("held_out_perplexity")),
    Measure("entropy_mean", "layer-0 head entropy, mean", 3, entropy("mean")),
    Measure("entropy_std", "layer-0 head entropy, std", 3, entropy("std")),
    Measure("bos_mass", "mid-layer BOS mass", 3, middle_bos_mass),
    Measure("rank_W_O", "nuclear rank of W_O", 1, rank_of("W_O")),
    Measure("rank_W_Q", "nuclear rank of W_Q", 1, rank_of("W_Q")),
    Measure("consistency", "trajectory consistency", 3, consistency),
)


def lineage_grids(study: Study) -> list[Grid]:
    """Return one row per model of the lineage; nothing for another study.

    The report's own figures stand in columns named published, beside the measures that it gives for each model, and in
    the last row for those of which it gives a comparison.
    """
    models = lineage_models(study)
    if not models:
        return []
    data = lineage_data()
    entries = {model["key"]: model for model in data["model"]}
    titles: list[str] = []
    columns: list[list[Cell]] = []  # a column's cells: the models', then that of the published row
    for measure in MEASURES:
        values = measure.read(study.tables)
        found = [over_seeds_cell(of_model(values, short), measure.digits) for short in models.values()]
        titles.append(measure.title)
        columns.append([*found, Cell(data["published"].get(measure.key, MISSING), is_words=True)])
        if any(measure.key in entry for entry in entries.values()):
            published = [Cell(entries[key].get(measure.key, MISSING)) for key in models]
            titles.append(f"{measure.title}, published")
            columns.append([*published, Cell(MISSING)])
    headers = [*((short, entries[key]["recipe"]) for key, short in models.items()), PUBLISHED_ROW]
    rows = zip(headers, zip(*columns, strict=True), strict=True)
    return [Grid("", (), ("model", "recipe in the report"), tuple(titles), tuple(rows), is_wide=True)]


def step_grids(study: Study) -> list[Grid]:
    """Return what each step of the lineage changes: treated − reference over the seeds that both have."""
    models = lineage_models(study)
    values = [measure.read(study.tables) for measure in MEASURES]
    rows = []
    for step in lineage_data()["step"]:
        if not {step["reference"], step["treated"]} <= set(models):
            continue
        pair = models[step["reference"]], models[step["treated"]]
        cells = tuple(difference_cell(own, *pair, m.digits) for own, m in zip(values, MEASURES, strict=True))
        rows.append(((step["name"], f"{pair[0]} → {pair[1]}"), cells))
    titles = tuple(measure.title for measure in MEASURES)
    return [Grid("", (), ("step", "from → to"), titles, tuple(rows), is_wide=True)] if rows else []


def two_by_two_grids(study: Study) -> list[Grid]:
    """Return the effective dimension of concepts with and without NCA and AttnRes, published beside it; nothing where
    the study does not have all four models."""
    models, data = lineage_models(study), lineage_data()["two_by_two"]
    keys = [data["without_nca"], data["with_nca"]]
    if not {key for row in keys for key in row} <= set(models):
        return []
    df = study.tables["concept_geometry"]
    df = df.dropna(subset="layer")
    middle = df.groupby("model")["layer"].transform(lambda layers: middle_layer(int(layers.max()) + 1))
    values = df[df["layer"] == middle].groupby(KEYS, sort=False)["effective_dim"].mean()
    rows = []
    for title, pair, published in zip(("without NCA", "with NCA"), keys, data["published"], strict=True):
        cells = [over_seeds_cell(of_model(values, models[key]), 2) for key in pair]
        rows.append(((title,), (*cells, Cell(published or MISSING))))
    columns = ("without AttnRes", "with AttnRes", "with AttnRes, published")
    return [Grid("", (), ("",), columns, tuple(rows))]


def over_seeds_cell(values: pd.Series, digits: int) -> Cell:
    """Return a mean over seeds with its interval; the figures themselves where they are too few for one."""
    known = values.dropna()
    if known.empty:
        return Cell(MISSING)
    row = over_seeds(known.rename("value").reset_index().assign(model=""), ["model"], "value").iloc[0]
    if math.isnan(row["low"]):
        return Cell(" / ".join(fixed(float(value), digits) for value in known))
    return Cell(fixed(row["mean"], digits), f"[{fixed(row['low'], digits)}, {fixed(row['high'], digits)}]")


def difference_cell(values: pd.Series, reference: str, treated: str, digits: int) -> Cell:
    """Return a signed mean difference; ● where its interval leaves out 0, ○ where it holds it, neither without one."""
    mean, low, high, n = paired_difference(values, reference, treated)
    if n == 0:
        return Cell(MISSING)
    text = signed(mean, digits)
    if math.isnan(low):
        return Cell(text)
    return Cell(f"{text} {'○' if low <= 0 <= high else '●'}", f"[{fixed(low, digits)}, {fixed(high, digits)}]")
