"""Statistics over seeds, the one home of them: effects, means, and the tables of both that a study writes.

An effect e compares two models, or one model with a null value, on one measure. It has one of two scales:

    ratio        e = log(treated / reference), shown as treated / reference − 1
    difference   e = treated − reference, in the measure's own unit

The seed is the unit: whatever a claim averages (layers, heads, sets, pairs of models) is averaged first. e is the mean
over seeds and its 95 % interval

    paired       with three or more seeds that both models have: Student's t on the seeds' own e
    welch        else, with three or more seeds of each model: Welch's t on the two groups
    own          else, where the text that was read gives the measure one: that one. By the jackknife over blocks of
                 text (`left_out`), of a top head's impact by its bootstrap over sequences. It says what other text
                 would change, and nothing of other seeds
    none         else
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import scipy

from reports.contract import Table
from reports.study import AT, leave_out_infinite, order_models, read_record
from reports.tables import COLUMNS, MADE, MIN_SEEDS, find_tables, read_contracts, read_csv, write_table
from workbench.data.lineage import read_lineage
from workbench.study.measures import Bounds, Frame
from workbench.study.seed_values import SeedValues, seed_values

LEVEL = 0.95
DIGITS = 12  # effects are rounded to so many decimals: models that are equal but for a rounding are equal

Scale = Literal["ratio", "difference"]
Basis = Literal["paired", "welch", "own", "none"]
Comparison = tuple[str, str, str]  # a step of the lineage or nothing, the reference, the treated model


@dataclass(frozen=True)
class Effect:
    """An effect on its working scale (a logarithm for ratios), with what its interval rests on."""

    estimate: float
    """mean over seeds; nan where undefined"""
    bounds: Bounds | None
    """95 % interval; may be infinite on a side where a ratio is not excluded"""
    n: int
    """seeds: those both models have, or the fewer of the two models' own"""
    basis: Basis

    @property
    def is_known(self) -> bool:
        """Whether there is an effect to judge."""
        return math.isfinite(self.estimate)


UNKNOWN = Effect(math.nan, None, 0, "none")


def effect_over_seeds(
    reference: Mapping[int, float] | float, treated: Mapping[int, float], scale: Scale, own: Bounds | None = None
) -> Effect:
    """The effect of treated against reference, seed -> value each, or against one number that has no seeds.

    Values that are not finite, and on the ratio scale those that are not above 0, count as missing.

    Args:
        own: the measure's own 95 % interval on the working scale, used where seeds are too few.
    """
    theirs, ours = _both(reference, treated, scale)
    common = sorted(set(ours) & set(theirs))
    differences = [ours[seed] - theirs[seed] for seed in common]
    if len(common) >= MIN_SEEDS:
        return _rounded(Effect(float(np.mean(differences)), student(differences), len(common), "paired"))
    n = min(len(ours), len(theirs))
    if n >= MIN_SEEDS:
        first, second = list(theirs.values()), list(ours.values())
        return _rounded(Effect(float(np.mean(second) - np.mean(first)), welch(first, second), n, "welch"))
    if not n:
        return UNKNOWN
    estimate = np.mean(differences) if common else np.mean(list(ours.values())) - np.mean(list(theirs.values()))
    return _rounded(Effect(float(estimate), own, len(common) or n, "none" if own is None else "own"))


def seed_effects(
    reference: Mapping[int, float] | float, treated: Mapping[int, float], scale: Scale
) -> dict[int, float]:
    """Seed -> its own effect on the working scale, of the seeds that both models have; values as `effect_over_seeds`
    takes them.

    >>> seed_effects({0: 1.0, 1: 2.0, 2: 5.0}, {0: 1.5, 1: 2.0}, "difference")
    {0: 0.5, 1: 0.0}
    """
    theirs, ours = _both(reference, treated, scale)
    return {seed: ours[seed] - theirs[seed] for seed in sorted(set(ours) & set(theirs))}


def _both(
    reference: Mapping[int, float] | float, treated: Mapping[int, float], scale: Scale
) -> tuple[dict[int, float], dict[int, float]]:
    """Values of both models on the working scale; a number that has no seeds is every seed's."""
    ours = _working(treated, scale)
    if isinstance(reference, Mapping):
        return _working(reference, scale), ours
    constant = _working({0: reference}, scale)
    return (dict.fromkeys(ours, constant[0]) if constant else {}), ours


def _working(values: Mapping[int, float], scale: Scale) -> dict[int, float]:
    if scale == "ratio":
        return {seed: math.log(value) for seed, value in values.items() if math.isfinite(value) and value > 0}
    return {seed: float(value) for seed, value in values.items() if math.isfinite(value)}


def _rounded(effect: Effect) -> Effect:
    bounds = effect.bounds
    if bounds is not None:
        bounds = (round(bounds[0], DIGITS), round(bounds[1], DIGITS))
    return Effect(round(effect.estimate, DIGITS), bounds, effect.n, effect.basis)


@cache
def quantile(freedom: float) -> float:
    """The quantile of Student's t that bounds a two-sided 95 % interval."""
    return float(scipy.stats.t.ppf((1 + LEVEL) / 2, freedom))


def student(values: Sequence[float]) -> Bounds:
    """The 95 % interval of the mean of two or more values, by Student's t."""
    n = len(values)
    half = quantile(n - 1) * float(np.std(values, ddof=1)) / math.sqrt(n)
    mean = float(np.mean(values))
    return mean - half, mean + half


def welch(first: Sequence[float], second: Sequence[float]) -> Bounds:
    """The 95 % interval of mean(second) − mean(first), two or more values each, by Welch's t."""
    mean = float(np.mean(second) - np.mean(first))
    parts = [float(np.var(group, ddof=1)) / len(group) for group in (first, second)]
    variance = sum(parts)
    if variance == 0:
        return mean, mean
    freedom = variance**2 / sum(part**2 / (len(group) - 1) for part, group in zip(parts, (first, second), strict=True))
    half = quantile(freedom) * math.sqrt(variance)
    return mean - half, mean + half


def shown(value: float, scale: Scale) -> float:
    """A number of the working scale as tables show it: a ratio r as r − 1, infinite above e⁷⁰⁰; a difference as it
    is."""
    if scale == "ratio":
        return math.inf if value > 700 else math.expm1(value)  # expm1 refuses what no float can hold
    return value


def working(value: float, scale: Scale) -> float:
    """The inverse of `shown`: a published relative change or difference on the working scale."""
    return math.log1p(value) if scale == "ratio" else value


# --- the tables of a study


@dataclass(frozen=True)
class Measured:
    """What a study measured, as its directory has it."""

    tables: dict[str, pd.DataFrame]
    """those with rows, without the ones that are made of others"""
    roles: dict[str, str]
    """role -> model"""
    compared: list[Comparison]
    """which models have an effect"""


def read_measured(directory: str | Path) -> Measured:
    """The tables, roles and comparisons of a study's directory, from its CSVs and study.json alone.

    Raises:
        ValueError: no known table, or text in one where numbers are expected.
    """
    directory = Path(directory)
    record = read_record(directory / "study.json")
    found = find_tables(directory)
    if not found:
        raise ValueError(f"{directory}: holds no known table; expected those of a study")
    paths = {name: path for name, path in found.items() if name not in (*MADE, "feature_atlas")}
    read = {name: read_csv(path) for name, path in paths.items() if path.stat().st_size}
    tables, _ = leave_out_infinite({name: df for name, df in read.items() if len(df)})  # one without rows has no types
    contracts = read_contracts(directory)
    for name, df in tables.items():
        _check_numbers(contracts[name], df)
    models = order_models(record, {name: df for name, df in tables.items() if name != "ladder"})
    roles = {str(role): str(model) for role, model in record.get("roles", {}).items()}
    sizes = {str(model["name"]): str(model.get("size", "")) for model in record.get("models", ()) if "name" in model}
    compared: list[Comparison] = []
    for size in dict.fromkeys(sizes.get(name, "") for name in models):
        own = [name for name in models if sizes.get(name, "") == size]
        compared += comparisons(own, {role: f"{name}{AT}{size}" if size else name for role, name in roles.items()})
    return Measured(tables, roles, compared)


def write_effects(directory: str | Path) -> tuple[Path, Path]:
    """Write effects.csv and seed_means.csv into a study's directory. Returns their paths. Raises as `read_measured`."""
    measured = read_measured(directory)
    values = list(seed_values(measured.tables, measured.roles))
    effects = effect_rows(values, measured.compared)
    return write_table(effects, directory, "effects"), write_table(mean_rows(values), directory, "seed_means")


def _check_numbers(table: Table, df: Frame) -> None:
    for column in table.leading:
        if (
            column in df
            and table.kind(column) in ("number", "integer")
            and not pd.api.types.is_numeric_dtype(df[column])
        ):
            raise ValueError(f"{table.name}.csv: got text in the column {column}; expected numbers")


def comparisons(models: Sequence[str], roles: Mapping[str, str]) -> list[Comparison]:
    """The steps of the Kotodama lineage that the study has both models of, by role or else by name, `-nano` aside;
    without any, every model against the first."""
    named = {name.lower().removesuffix("-nano"): name for name in models} | {**roles}
    steps: list[Comparison] = [
        (step["name"], named.get(step["reference"], ""), named.get(step["treated"], ""))
        for step in read_lineage()["step"]
    ]
    return [step for step in steps if {*step[1:]} <= {*models}] or [("", models[0], other) for other in models[1:]]


def effect_rows(values: Sequence[SeedValues], compared: Sequence[Comparison]) -> pd.DataFrame:
    """effects.csv's rows: treated − reference of every measure, at every place where both models have a value.

    Leading columns: table, measure, comparison, model_a (the reference), model_b (the treated), effect, ci_low,
    ci_high, n (seeds) and interval (paired, welch or none); then those that name the place (layer, basis, set, …),
    empty where they do not apply.
    """
    rows = [row for own in values if own.is_compared and "model" in own.by for row in _effects_of(own, compared)]
    return pd.DataFrame(rows, columns=None if rows else list(COLUMNS["effects"]))


def _effects_of(own: SeedValues, compared: Sequence[Comparison]) -> Iterator[dict[str, Any]]:
    """Yield the effects of one measure."""
    keys = [name for name in own.by if name != "model"]
    places: dict[tuple[Any, ...], dict[str, dict[int, float]]] = {}
    for place, model, seed, value in zip(
        own.rows[keys].itertuples(index=False, name=None),
        own.rows["model"],
        own.rows["seed"],
        own.rows["value"],
        strict=True,
    ):
        places.setdefault(place, {}).setdefault(model, {})[int(seed)] = float(value)
    for place, models in places.items():
        for step, reference, treated in compared:
            effect = effect_over_seeds(models.get(reference, {}), models.get(treated, {}), "difference")
            if effect.is_known:
                low, high = effect.bounds or (math.nan, math.nan)
                numbers = (effect.estimate, low, high, effect.n, effect.basis)
                row = (own.table, own.measure, step, reference, treated, *numbers)
                yield dict(zip(COLUMNS["effects"], row, strict=True)) | dict(zip(keys, place, strict=True))


def mean_rows(values: Sequence[SeedValues]) -> pd.DataFrame:
    """seed_means.csv's rows: the mean over seeds of every measure at every place, with its 95 % interval.

    Leading columns: table, measure, mean, ci_low, ci_high (nan below three seeds), n, seeds, and values, the seeds' own
    in the order of `seeds` (both separated by spaces; empty for a single seed, whose value is the mean); then those
    that name the place (model, layer, basis, set, …), empty where they do not apply.
    """
    parts = [over_seeds(own.rows, own.by).assign(table=own.table, measure=own.measure) for own in values]
    empty = pd.DataFrame(columns=list(COLUMNS["seed_means"]))
    return pd.concat([part for part in parts if len(part)] or [empty], ignore_index=True)


def over_seeds(rows: Frame, by: Sequence[str]) -> pd.DataFrame:
    """The mean of the column `value` over seeds, one row for each place in the order of their first rows.

    mean ± t(.975, n − 1) · s / √n over the n seeds with a finite value, s their standard deviation; no interval below
    three. A place without a finite value is left out.

    Args:
        rows: columns `by`, seed and value, one row per place and seed.
    """
    known = rows[np.isfinite(rows["value"])]
    groups = known.groupby(list(by), sort=False)
    place = groups.ngroup().to_numpy()
    seeds, column = np.unique(known["seed"].to_numpy(), return_inverse=True)
    values = np.full((groups.ngroups, len(seeds)), np.nan)
    values[place, column] = known["value"]
    is_there = np.isfinite(values)
    n, mean = is_there.sum(1), known["value"].groupby(place).mean().to_numpy()
    squares = np.nansum((values - mean[:, None]) ** 2, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):  # one seed has no deviation, and needs none
        quantiles = np.array([quantile(int(k) - 1) if k >= MIN_SEEDS else math.nan for k in n])
        half = quantiles * np.sqrt(squares / (n - 1)) / np.sqrt(n)
    names = [str(int(seed)) for seed in seeds]
    has = [np.flatnonzero(row) for row in is_there]
    return known.drop_duplicates(list(by))[list(by)].assign(
        mean=mean,
        ci_low=mean - half,
        ci_high=mean + half,
        n=n,
        seeds=[" ".join(names[k] for k in own) for own in has],
        values=[
            " ".join(repr(float(row[k])) for k in own) if len(own) > 1 else ""
            for row, own in zip(values, has, strict=True)
        ],
    )
