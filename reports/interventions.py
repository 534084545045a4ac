"""What interventions change: one model beside another, measure by measure, paired by seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pandas as pd

from reports.figures.interventions import Change
from reports.figures.saes import of_dictionary, of_heads
from reports.lineage import KEYS, MEASURES, lineage_data, lineage_models, no_values
from reports.seeds import paired_difference
from reports.study import Study

Read = Callable[[Mapping[str, pd.DataFrame]], pd.Series]


def mean_of(table: str, column: str, **where: object) -> Read:
    """Return the reader of a column's mean over a model's and seed's rows, of those rows that hold `where`."""

    def read(tables: Mapping[str, pd.DataFrame]) -> pd.Series:
        df = tables.get(table)
        if df is None or not {*KEYS, column, *where} <= set(df.columns):
            return no_values()
        for name, value in where.items():
            df = df[df[name] == value]
        return df.groupby(KEYS, sort=False)[column].mean()

    return read


def mean_of_saes(column: str) -> Read:
    """Return the reader of a column's mean over a model's trained SAEs, at the lower middle l1 of a sweep."""

    def read(tables: Mapping[str, pd.DataFrame]) -> pd.Series:
        df = tables.get("sae_training_results")
        if df is None or df.empty or not {*KEYS, "head", "l1", column} <= set(df.columns):
            return no_values()
        df = of_dictionary(of_heads(df), "trained")
        sweep = sorted(df["l1"].dropna().unique())
        if len(sweep) > 1:
            df = df[df["l1"] == sweep[(len(sweep) - 1) // 2]]
        return df.groupby(KEYS, sort=False)[column].mean()

    return read


def largest_impact(tables: Mapping[str, pd.DataFrame]) -> pd.Series:
    """Return the largest loss increase that the removal of one head makes."""
    df = tables.get("ablation_results")
    if df is None or not {*KEYS, "head", "kind", "impact_pct"} <= set(df.columns):
        return no_values()
    return df[(df["head"] >= 0) & (df["kind"] == "zero")].groupby(KEYS, sort=False)["impact_pct"].max()


# title of a measure -> its reader; those of the lineage first
READERS: dict[str, Read] = {measure.title: measure.read for measure in MEASURES if measure.is_of_steps} | {
    "mean |cos| on z": mean_of("topology_stats", "mean_cos", basis="z"),
    "mean |cos|, residual": mean_of("topology_stats", "mean_cos", basis="residual"),
    "nuclear rank of z": mean_of("topology_stats", "nuclear_rank", basis="z"),
    "SAE l0": mean_of_saes("l0"),
    "SAE fvu": mean_of_saes("fvu"),
    "largest head impact (%)": largest_impact,
    "effective dimension": mean_of("concept_geometry", "effective_dim"),
    "bits per byte": mean_of("evaluation", "bits_per_byte", weights="stored", windows="plain"),
    "recall": mean_of("text_quality", "value", measure="recall"),
    "loop rate": mean_of("text_quality", "value", measure="loop_rate"),
}


def comparisons(study: Study) -> list[tuple[str, str, str]]:
    """Return (name, reference, treated) of what is compared: the lineage's steps that the study has both models of;
    without any, every model beside the first."""
    models = lineage_models(study)
    steps = [step for step in lineage_data()["step"] if {step["reference"], step["treated"]} <= set(models)]
    if steps:
        return [(step["name"], models[step["reference"]], models[step["treated"]]) for step in steps]
    return [(f"{study.models[0]} → {other}", study.models[0], other) for other in study.models[1:]]


def study_changes(study: Study) -> list[Change]:
    """Return every comparison's change in every measure that both models have in some seed."""
    found = []
    for title, read in READERS.items():
        values = read(study.tables)
        for name, reference, treated in comparisons(study):
            mean, low, high, n = paired_difference(values, reference, treated)
            if n:
                found.append(Change(name, title, mean, low, high, n))
    return found
