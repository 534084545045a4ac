"""What a claim is about, read from a study's tables: one number a model and seed.

Layers of models of unequal depth correspond by (layer + 1) / n_layers, along which pressure on heads rises: "9 of 12"
is the layer whose share of the depth is nearest to 10/12, the earlier of two as near. A third of n layers is
max(1, n // 3) of them. Layer −1, the embedding, is none of them.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd

import probes
from sae.metrics import match_l0
from workbench.analyses.sae_train.settings import shown_l1
from workbench.data.claims import Compared, Measure
from workbench.data.remarks import Change, Number
from workbench.models.checks import matching_layer

Frame = Any  # a pandas DataFrame, whose type stubs cannot tell a column from a cell
Tables = Mapping[str, pd.DataFrame]
Bounds = tuple[float, float]
ATTENTION, MLP = ("W_Q", "W_K", "W_V", "W_O"), ("W_gate", "W_in", "W_out")
# in these tables head −1 is a whole layer, an MLP or all heads together, which no claim is about
SINGLE_HEADS = ("sae_training_results", "ablation_results", "content_share")
LADDER = "ladder"  # whose models are the rungs of one: recurrent-golf-07
# what says which head of a model is its top one
TOP_HEAD = Measure(
    name="largest impact of a head", table="ablation_results", column="impact_pct", where={"kind": "zero"}
)


@dataclass(frozen=True)
class Reading:
    """One model's number, seed by seed, and where it was read."""

    values: dict[int, float]
    """seed -> value; nan where undefined"""
    layers: tuple[int, ...] = ()
    n_layers: int = 0
    chosen: Mapping[str, float] = field(default_factory=dict)
    """column -> the value that "middle" stood for"""
    pooled: tuple[float, ...] = ()
    """the values of all rows, in the order of seeds"""

    @property
    def mean(self) -> float:
        """Mean over seeds; nan without a finite value."""
        known = [value for value in self.values.values() if math.isfinite(value)]
        return float(np.mean(known)) if known else math.nan


def read_measure(tables: Tables, measure: Measure, model: str, models: Sequence[str]) -> Reading:
    """The measure of one model; no values where the table, the column or the rows are missing.

    models: every model of the comparison, whose rows together say which l1 is the middle one of a sweep.
    """
    if measure.per:
        return _ratio_of_rows(tables, measure, model, models)
    tables = by_layer(tables, measure)
    df = rows_of(tables, measure.table, measure.where, models)
    chosen = {name: float(df[name].iloc[0]) for name, value in measure.where.items() if value == "middle" and len(df)}
    n_layers = count_layers(tables, measure.table, model)
    layers = choose_layers(measure.layers, n_layers)
    if not {measure.column, "seed"} <= set(df.columns) or ("layer" in df and not layers):
        return Reading({})
    own = df[df["model"] == model]
    if "layer" in own and "layer" not in measure.where:  # a table of paths has none
        own = own[own["layer"].isin(layers)]
    if measure.kind == "at top head":
        own = _at_top_head(tables, own, model)
    if measure.kind == "depth":
        own = _depth_of_top_head(own, measure.column, n_layers)
    reduce = REDUCERS.get(measure.kind, _over(measure.reduce))
    values = dict.fromkeys(sorted(map(int, own["seed"])), math.nan)
    known = own.dropna(subset=[measure.column]).sort_values("seed", kind="stable")
    values |= {int(seed): reduce(rows, measure.column) for seed, rows in known.groupby("seed")}
    return Reading(values, layers, n_layers, chosen, tuple(map(float, known[measure.column])))


def _ratio_of_rows(tables: Tables, measure: Measure, model: str, models: Sequence[str]) -> Reading:
    """The measure over the same of the rows that `per` names; nan where that is 0 or not there."""
    rows = (measure.where, measure.where | measure.per)
    parts = [measure.model_copy(update={"where": where, "per": {}}) for where in rows]
    above, below = (read_measure(tables, part, model, models) for part in parts)
    values = {
        seed: value / below.values[seed] if below.values.get(seed) else math.nan for seed, value in above.values.items()
    }
    return replace(above, values=values, pooled=())


def change(measure: Measure, by: Change) -> Measure:
    """The measure of a claim, read elsewhere."""
    layers = by.layers or measure.layers
    if isinstance(by, Number) and by.table:
        return Measure(name=measure.name, table=by.table, column=by.column, where=by.where, layers=layers)
    changed = {"column": by.column or measure.column, "where": measure.where | by.where, "layers": layers}
    return measure.model_copy(update=changed)


def rows_of(tables: Tables, table: str, where: Mapping[str, Any], models: Sequence[str]) -> Frame:
    """The rows of a table, of these models, whose columns hold these values; empty where there is no such table."""
    df: Frame = tables.get(table)
    if df is None or "model" not in df:
        return pd.DataFrame(columns=["model", "seed", "layer"])
    if table == LADDER:
        df = df.assign(model=df["model"].astype("str").str.replace(r"-\d+$", "", regex=True))
    df = df[df["model"].isin(list(models))]
    if table in SINGLE_HEADS and "head" in df:
        df = df[df["head"] >= 0]
    return _holding(df, where)


def layer_columns(log: Frame, name: str) -> dict[int, str]:
    """Layer -> the column `<name>.<layer>` of the training log, in the order of layers."""
    pairs = [(str(column), *str(column).rpartition(".")[::2]) for column in log.columns]
    return dict(sorted((int(layer), column) for column, own, layer in pairs if own == name and layer.isdigit()))


def by_layer(tables: Tables, measure: Measure) -> Tables:
    """The tables, with the columns `<column>.<layer>` that the measure's may have made one of its name, a row for each
    layer that has a value."""
    df: Frame = tables.get(measure.table)
    if df is None or measure.column in df or not (columns := layer_columns(df, measure.column)):
        return tables
    keys = [name for name in ("model", "seed", "phase", "step") if name in df]
    parts = [df[keys].assign(layer=layer, **{measure.column: df[own]}) for layer, own in columns.items()]
    return {**tables, measure.table: pd.concat(parts, ignore_index=True).dropna(subset=[measure.column])}


def _holding(df: Frame, where: Mapping[str, Any]) -> Frame:
    """The rows whose columns hold these values; none where a column is missing."""
    for column, value in where.items():
        if column not in df:
            return df.iloc[:0]
        expected = shown_l1(df[column].dropna()) if value == "middle" else value
        df = df[df[column].isin(list(expected)) if isinstance(expected, tuple) else df[column] == expected]
    return df


def count_layers(tables: Tables, table: str, model: str) -> int:
    """Layers of a model, by the rows of a table; 0 if it has none."""
    df: Frame = tables.get(table)
    if df is None or not {"model", "layer"} <= set(df.columns):
        return 0
    own = df.loc[df["model"] == model, "layer"].dropna()
    return int(own.max()) + 1 if len(own) else 0


def choose_layers(layers: str, n_layers: int) -> tuple[int, ...]:
    """The layers of a model of n_layers that a claim's `layers` means.

    >>> choose_layers("9 of 12", 4), choose_layers("last third", 6)
    ((2,), (4, 5))
    """
    if not n_layers:
        return ()
    size = max(1, n_layers // 3)
    named = {
        "all": range(n_layers),
        "first": range(1),
        "last": range(n_layers - 1, n_layers),
        "first third": range(size),
        "last third": range(n_layers - size, n_layers),
    }
    if layers in named:
        return tuple(named[layers])
    layer, published = map(int, layers.split(" of "))
    return (matching_layer(layer, published, n_layers),)


def _over(reduce: str) -> Callable[[Frame, str], float]:
    def geometric(values: np.ndarray) -> float:
        return float(np.exp(np.log(values).mean())) if (values > 0).all() else math.nan

    reducers: dict[str, Callable[[np.ndarray], Any]] = {
        "mean": np.mean,
        "geometric mean": geometric,
        "standard deviation": np.std,
        "maximum": np.max,
        "sum": np.sum,
        "gini": _gini,
    }
    return lambda rows, name: float(reducers[reduce](rows[name].to_numpy(dtype=np.float64)))


def _ends(rows: Frame, column: str) -> float:
    """The last layer's value over the first's, means where a layer has several rows; nan for a single layer."""
    by_layer = rows.groupby("layer")[column].mean()
    first, last = float(by_layer.iloc[0]), float(by_layer.iloc[-1])
    return last / first if len(by_layer) > 1 and first else math.nan


def _gini(values: np.ndarray) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", probes.ConstantInputWarning)  # nan is an undefined measure in the ledger
        return probes.gini(values)


def _last(rows: Frame, column: str) -> float:
    """The value of the last step; nan in a table without steps."""
    return float(rows.sort_values("step", kind="stable")[column].iloc[-1]) if "step" in rows else math.nan


def _last_over_first(rows: Frame, column: str) -> float:
    """The value of the last step over that at the start of the last phase: the last of the phases before, else the
    first of all; means where a step has several rows; nan for a single step, and in a table without steps."""
    if "step" not in rows:
        return math.nan
    phases = rows["phase"] if "phase" in rows else pd.Series("", index=rows.index)
    by_step = rows.assign(phase=phases).groupby("step").agg({column: "mean", "phase": "last"})
    before = by_step.loc[by_step["phase"] != by_step["phase"].iloc[-1], column]
    first = float(before.iloc[-1] if len(before) else by_step[column].iloc[0])
    return float(by_step[column].iloc[-1]) / first if len(by_step) > 1 and first else math.nan


# kinds of measure that reduce rows in a way of their own; the others by `reduce`
REDUCERS: Mapping[str, Callable[[Frame, str], float]] = MappingProxyType(
    {"ends": _ends, "last": _last, "last over first": _last_over_first, "top head": _over("maximum")}
)


# --- the top head


def top_heads(tables: Tables, measure: Measure, model: str) -> Frame:
    """The row of the head of largest impact, one per seed, in the order of seeds."""
    df = rows_of(tables, measure.table, measure.where, [model])
    if not {measure.column, "seed"} <= set(df.columns):
        return df.iloc[:0]
    df = df[df[measure.column].notna()]
    return df.loc[df.groupby("seed")[measure.column].idxmax()]


def _at_top_head(tables: Tables, rows: Frame, model: str) -> Frame:
    """The rows of each seed's top head, wherever it lies; none of a seed whose heads were not ablated."""
    place = ["seed", "layer", "head"]
    top = top_heads(tables, TOP_HEAD, model)
    if not set(place) <= set(rows.columns) or not set(place) <= set(top.columns):
        return rows.iloc[:0]
    return rows.merge(top[place].drop_duplicates(), on=place)


def _depth_of_top_head(rows: Frame, column: str, n_layers: int) -> Frame:
    """One row per seed: (layer + ½) / n_layers of the head of largest value, in the column's place."""
    known = rows[rows[column].notna()]
    top = known.loc[known.groupby("seed")[column].idxmax()]
    return top.assign(**{column: (top["layer"] + 0.5) / n_layers})


def ratio_bounds(reference: Frame, treated: Frame) -> Bounds | None:
    """Smallest and largest log-ratio that the two top heads' 95 % intervals over sequences allow (one seed only); wider
    than a 95 % interval of the ratio, so that what it excludes is excluded with confidence."""
    if len(reference) != 1 or len(treated) != 1 or not {"ci_low", "ci_high"} <= set(reference.columns):
        return None
    a_low, a_high = (float(reference[c].iloc[0]) for c in ("ci_low", "ci_high"))
    b_low, b_high = (float(treated[c].iloc[0]) for c in ("ci_low", "ci_high"))
    if not all(map(math.isfinite, (a_low, a_high, b_low, b_high))):
        return None
    if a_low <= 0 or b_high <= 0:  # the reference's impact may be nothing: no ratio is excluded
        return -math.inf, math.inf
    return (math.log(b_low / a_high) if b_low > 0 else -math.inf), math.log(b_high / a_low)


# --- two models, layer by layer


def read_compared(
    tables: Tables, measure: Measure, compared: Compared, roles: Mapping[str, str]
) -> tuple[Reading | None, Reading]:
    """Readings of reference and treated; no reference where one number is held against the claim's null: that of a
    single model, of several together, or of two as a crossover. Of pairs of models, see below."""
    models = [roles[role] for role in compared.roles]
    if measure.kind == "crossover":
        return None, read_crossover(tables, measure, *models)
    readings = [read_measure(tables, measure, model, models) for model in models]
    if not compared.treated:
        return None, combine(compared, readings)
    return (readings[0] if compared.reference else None), readings[-1]


def combine(compared: Compared, readings: Sequence[Reading]) -> Reading:
    """One number of several models, in the order of the roles, seed by seed over the seeds that all of them have: their
    range, their maximum, or their weighted sum; nan where one is undefined."""
    seeds = sorted(set.intersection(*(set(reading.values) for reading in readings)))
    if not seeds:
        return Reading({})
    rows = np.array([[reading.values[seed] for reading in readings] for seed in seeds])
    if compared.weights:
        numbers = rows @ np.array(list(compared.weights.values()))
    elif compared.take == "range":
        numbers = rows.max(axis=1) - rows.min(axis=1)
    else:
        numbers = rows.max(axis=1)
    return replace(readings[0], values=dict(zip(seeds, map(float, numbers), strict=True)), pooled=())


def read_crossover(tables: Tables, measure: Measure, reference: str, treated: str) -> Reading:
    """Seed -> 1 where treated − reference changes its sign once over the treated model's layers, from − to +; −1 from +
    to −; 0 where it never does or more often. Layers without a difference have no sign. Of seeds that both have."""
    models = (reference, treated)
    depths = [count_layers(tables, measure.table, model) for model in models]
    df = rows_of(tables, measure.table, measure.where, models)
    if not all(depths) or not {measure.column, "seed", "layer"} <= set(df.columns):
        return Reading({})
    means = df.dropna(subset=[measure.column]).groupby(["model", "seed", "layer"])[measure.column].mean().to_dict()
    values = {}
    for seed in sorted({seed for model, seed, _ in means if model == treated}):
        differences = [
            means[treated, seed, layer] - means[reference, seed, other]
            for layer in range(depths[1])
            if (treated, seed, layer) in means
            and (reference, seed, other := matching_layer(layer, depths[1], depths[0])) in means
        ]
        if differences:
            signs = [math.copysign(1.0, value) for value in differences if value]
            n_changes = sum(a != b for a, b in itertools.pairwise(signs))
            values[int(seed)] = signs[-1] if n_changes == 1 else 0.0
    chosen = {name: float(df[name].iloc[0]) for name, value in measure.where.items() if value == "middle" and len(df)}
    return Reading(values, tuple(range(depths[1])), depths[1], chosen)


# --- pairs of models


def divergence_ratio(tables: Tables, table: str, first: str, second: str) -> Reading:
    """Seed -> divergence of two models' attention matrices over that of their MLP matrices: of each part, the mean over
    (layer, matrix) that both have of |nuclear_rank_a − nuclear_rank_b| / their mean."""
    a, b = (spectra(tables, table, model) for model in (first, second))
    values = {seed: part_divergence(a[seed], b[seed]) for seed in a if seed in b}
    n_layers = count_layers(tables, table, first)
    return Reading(values, tuple(range(n_layers)), n_layers)


def spectra(tables: Tables, table: str, model: str) -> dict[int, dict[tuple[int, str], float]]:
    """Seed -> (layer, matrix) -> nuclear rank of a model's weights."""
    df = rows_of(tables, table, {}, [model])
    if not {"seed", "layer", "matrix", "nuclear_rank"} <= set(df.columns):
        return {}
    found: dict[int, dict[tuple[int, str], float]] = {}
    for row in df.drop_duplicates(["seed", "layer", "matrix"]).itertuples():
        found.setdefault(int(row.seed), {})[int(row.layer), str(row.matrix)] = float(row.nuclear_rank)
    return dict(sorted(found.items()))


def part_divergence(a: Mapping[tuple[int, str], float], b: Mapping[tuple[int, str], float]) -> float:
    """Attention's divergence over MLP's, from nuclear ranks by (layer, matrix); nan where a part is missing or MLPs are
    equal."""
    n_a, n_b = (max((layer for layer, _ in spectrum), default=-1) + 1 for spectrum in (a, b))
    if not n_a or not n_b:
        return math.nan
    parts = []
    for names in (ATTENTION, MLP):
        pairs = [
            (a[layer, name], b[other, name])
            for layer in range(n_a)
            for name in names
            if (layer, name) in a and (other := matching_layer(layer, n_a, n_b), name) in b
        ]
        parts.append(float(np.mean([2 * abs(x - y) / (x + y) for x, y in pairs])) if pairs else math.nan)
    return parts[0] / parts[1] if parts[1] else math.nan


def component_ratio(tables: Tables, measure: Measure, first: str, second: str) -> Reading:
    """Seed -> mean over layers of |cos| of two models' components, over the mean of its isotropic baseline."""
    df = rows_of_pairs(tables, measure, [(first, second), (second, first)])
    if not {measure.column, "baseline"} <= set(df.columns):
        return Reading({})
    df = df[(df["layer"] >= 0) & df[measure.column].notna() & df["baseline"].notna()]
    if df.empty:
        return Reading({})
    seeds = df["seed"] if "seed" in df else pd.Series(0, index=df.index)
    means = df.groupby(seeds)[[measure.column, "baseline"]].mean()
    n_layers = int(df["layer"].max()) + 1
    ratios = {int(seed): float(row[measure.column] / row["baseline"]) for seed, row in means.iterrows()}
    return Reading(ratios, tuple(range(n_layers)), n_layers)


def rows_of_pairs(tables: Tables, measure: Measure, pairs: Sequence[tuple[str, str]]) -> Frame:
    """The rows of the measure's table on these (model_a, model_b), of one seed where the table has both models'; empty
    where there is no such table. The column `layer` is the first model's."""
    df: Frame = tables.get(measure.table)
    if df is None or not {"model_a", "model_b"} <= set(df.columns):
        return pd.DataFrame(columns=["model_a", "model_b", "layer"])
    df = df[pd.MultiIndex.from_frame(df[["model_a", "model_b"]]).isin(list(pairs))].rename(columns={"layer_a": "layer"})
    if {"seed_a", "seed_b"} <= set(df.columns):
        df = df[df["seed_a"] == df["seed_b"]]
    return _holding(df, measure.where) if "layer" in df else df.iloc[:0]


def matched_l0(
    tables: Tables, measure: Measure, models: Sequence[str], layers: Sequence[Sequence[int]]
) -> list[dict[int, float]]:
    """Of two models, each with its layers, seed -> fvu, mean over the range of l0 that both sweeps of l1 reach; nothing
    for a single l1 or where the ranges do not meet."""
    where = {column: value for column, value in measure.where.items() if column != "l1"}
    rows = rows_of(tables, measure.table, where, models)
    means: list[dict[int, float]] = [{}, {}]
    if not {"l1", "l0", "fvu", "seed", "layer"} <= set(rows.columns) or rows["l1"].nunique() < 2:
        return means
    for seed in sorted(set(rows["seed"])):
        sweeps = []
        for model, own_layers in zip(models, layers, strict=True):
            own = rows[(rows["model"] == model) & (rows["seed"] == seed) & rows["layer"].isin(own_layers)]
            curve = own.groupby("l1")[["l0", "fvu"]].mean()
            sweeps += [curve["l0"].to_numpy(), curve["fvu"].to_numpy()]
        matched = match_l0(*sweeps)
        if len(matched.first):
            for values, found in zip(means, (matched.first, matched.second), strict=True):
                values[int(seed)] = float(np.mean(found))
    return means
