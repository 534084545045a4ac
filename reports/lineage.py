"""The Kotodama lineage: its models in a study, and its measures, one number per model and seed, from the tables."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pandas as pd

from reports.study import Study

DATA = Path(__file__).with_name("lineage.toml")
KEYS = ["model", "seed"]
Tables = Mapping[str, pd.DataFrame]
Depth = Callable[[int], int]  # number of layers -> a layer
Read = Callable[[Tables], pd.Series]


@dataclass(frozen=True)
class Measure:
    """One column: what it is called, its digits, and one value per (model, seed) from the tables."""

    key: str  # of its published figures in lineage.toml
    title: str
    digits: int
    read: Read
    is_of_steps: bool = True  # whether the tables of what a step changes show it


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


def final(column: str) -> Read:
    """Return the reader of a column of the log at its last value."""
    return lambda tables: last_of(logged(tables, column))


def no_values() -> pd.Series:
    """Return a series of no model."""
    return pd.Series(dtype=float, index=pd.MultiIndex.from_arrays([[], []], names=KEYS))


def logged(tables: Tables, name: str, depth: Depth | None = None) -> pd.DataFrame:
    """Return the finite values of a number of the log in the order of steps, with model, seed, phase and step.

    depth: which of the columns `<name>.<layer>`, by the number of layers that the model has of it; none: the column
    `name` itself.
    """
    log = tables.get("train_log")
    columns = [*KEYS, "phase", "step", "value"]
    if log is None or log.empty or not {*KEYS, "step"} <= set(log.columns):
        return pd.DataFrame(columns=columns)
    layers = {column: layer_of(str(column), name) for column in log.columns}
    own = [name] if depth is None else [column for column, layer in layers.items() if layer is not None]
    if not own or not set(own) <= set(log.columns):
        return pd.DataFrame(columns=columns)
    rows = log[[*KEYS, "step", *own]].assign(phase=log.get("phase", ""))
    if depth is None:
        found = rows.assign(value=rows[name])
    else:
        found = pd.concat(
            [of_model.assign(value=at_depth(of_model, own, depth)) for _, of_model in rows.groupby("model")]
        )
    return found[columns].dropna(subset=["value"]).sort_values("step", kind="stable")


def layer_of(column: str, name: str) -> int | None:
    """Return the layer of a column `<name>.<layer>` of the log; None for another column."""
    own, _, layer = column.rpartition(".")
    return int(layer) if own == name and layer.isdigit() else None


def at_depth(rows: pd.DataFrame, columns: Sequence[str], depth: Depth) -> pd.Series:
    """Return the column of one layer of a model's log, chosen by depth among those that hold a number."""
    known = {int(str(column).rpartition(".")[2]): column for column in columns if rows[column].notna().any()}
    layer = depth(max(known, default=-1) + 1)
    return rows[known[layer]] if layer in known else pd.Series(math.nan, index=rows.index)


def last_of(log: pd.DataFrame) -> pd.Series:
    """Return the last value of `logged`, by model and seed."""
    return log.groupby(KEYS, sort=False)["value"].last() if len(log) else no_values()


def first_layer(n_layers: int) -> int:
    """Return layer 0."""
    return 0


def middle_layer(n_layers: int) -> int:
    """Return the layer at the depth of the published model's layer 14 of 28: the nearest (layer + 1)/n, the earlier of
    two as near; 0 of none, as where only the embedding was measured."""
    return min(range(max(1, n_layers)), key=lambda layer: (abs((layer + 1) * 28 - 15 * n_layers), layer))


def last_layer(n_layers: int) -> int:
    """Return the last layer."""
    return n_layers - 1


DEPTHS: Mapping[str, Depth] = MappingProxyType(
    {"first layer": first_layer, "middle layer": middle_layer, "last layer": last_layer}
)


def rows_at(df: pd.DataFrame, depth: Depth) -> pd.DataFrame:
    """Return a table's rows of each model's layer at that depth, by the layers that the table has of the model."""
    df = df.dropna(subset="layer")
    n_layers = df.groupby("model")["layer"].transform("max") + 1
    return df[df["layer"] == n_layers.map(lambda n: depth(int(n)))]


def mean_at(table: str, column: str, depth: Depth, *, monitor: str = "", **where: object) -> Read:
    """Return the reader of a column's mean over a model's and seed's rows of one layer, of those that hold `where`.

    monitor: what the training log calls it, `<monitor>.<layer>`, read where the table is not there.
    """

    def read(tables: Tables) -> pd.Series:
        df = tables.get(table)
        if df is None or not {*KEYS, "layer", column, *where} <= set(df.columns):
            return last_of(logged(tables, monitor, depth)) if monitor else no_values()
        for name, value in where.items():
            df = df[df[name] == value]
        return rows_at(df, depth).groupby(KEYS, sort=False)[column].mean()

    return read


def entropy_spread(tables: Tables) -> pd.Series:
    """Return the (population) standard deviation of layer 0's head entropy over heads."""
    df = tables.get("attention_stats")
    if df is None or not {*KEYS, "layer", "entropy"} <= set(df.columns):
        return last_of(logged(tables, "head_entropy_std", first_layer))
    return df[df["layer"] == 0].groupby(KEYS, sort=False)["entropy"].std(ddof=0)


def mean_rank(matrix: str) -> Read:
    """Return the reader of a weight matrix's nuclear rank, mean over layers."""

    def read(tables: Tables) -> pd.Series:
        df = tables.get("weight_spectra")
        if df is None or not {*KEYS, "matrix", "nuclear_rank"} <= set(df.columns):
            return last_of(mean_of_layers(tables, f"nuclear_rank.{matrix}"))
        return df[df["matrix"] == matrix].groupby(KEYS, sort=False)["nuclear_rank"].mean()

    return read


def mean_of_layers(tables: Tables, name: str) -> pd.DataFrame:
    """Return, as `logged`, the mean over layers of the log's columns `<name>.<layer>`."""
    log = tables.get("train_log", pd.DataFrame())
    own = [column for column in log.columns if layer_of(str(column), name) is not None]
    if not own or not {*KEYS, "step"} <= set(log.columns):
        return pd.DataFrame(columns=[*KEYS, "step", "value"])
    found = log[[*KEYS, "step"]].assign(value=log[own].mean(axis=1))
    return found.dropna(subset=["value"]).sort_values("step", kind="stable")


def consistency(tables: Tables) -> pd.Series:
    """Return the trajectory consistency, mean over concept sets."""
    df = tables.get("trajectories")
    if df is None or not {*KEYS, "measure", "value"} <= set(df.columns):
        return no_values()
    return df[df["measure"] == "trajectory_consistency"].groupby(KEYS, sort=False)["value"].mean()


def query_ranks(tables: Tables) -> pd.DataFrame:
    """Return the stable rank of W_Q of the middle layer over training, as `logged`."""
    return logged(tables, "stable_rank.W_Q", middle_layer)


def since_last_phase(log: pd.DataFrame, train_log: pd.DataFrame) -> pd.DataFrame:
    """Return rows of `logged` with x, the steps since the last phase began, which in the phases before is below 0."""
    phase = train_log["phase"] if "phase" in train_log else pd.Series("", index=train_log.index)
    steps = train_log[[*KEYS, "step"]].assign(phase=phase).sort_values("step", kind="stable")
    is_before = steps["phase"] != steps.groupby(KEYS, sort=False)["phase"].transform("last")
    starts = steps[is_before].groupby(KEYS, sort=False)["step"].max().rename("start").reset_index()
    joined = log.merge(starts, on=KEYS, how="left")
    return joined.assign(x=joined["step"] - joined["start"].fillna(0))


def rank_at_start(tables: Tables) -> pd.Series:
    """Return that stable rank where the last phase starts: the last of the phases before, else the first of all."""
    log = query_ranks(tables)
    if log.empty:
        return no_values()
    is_last = log["phase"] == log.groupby(KEYS, sort=False)["phase"].transform("last")
    first = log.groupby(KEYS, sort=False)["value"].first()
    before = log[~is_last].groupby(KEYS, sort=False)["value"].last()
    return before.reindex(first.index).fillna(first)


def rank_at_end(tables: Tables) -> pd.Series:
    """Return that stable rank where training ends."""
    return last_of(query_ranks(tables))


def of_set(name: str, column: str = "r") -> Read:
    """Return the reader of one concept set's correlation at the middle layer."""
    return mean_at("concept_mantel", column, middle_layer, set=name)


BOS = tuple(
    Measure(key, f"{title} BOS mass", 3, mean_at("attention_stats", "bos_mass", depth, monitor="bos_mass"))
    for key, title, depth in (
        ("bos_first", "first-layer", first_layer),
        ("bos_mass", "mid-layer", middle_layer),
        ("bos_last", "last-layer", last_layer),
    )
)
# title of a table -> its measures
GROUPS: Mapping[str, tuple[Measure, ...]] = MappingProxyType(
    {
        "Loss and nuclear ranks of weights": (
            Measure("loss", "held-out loss", 3, final("held_out_loss")),
            Measure("perplexity", "held-out perplexity", 2, final("held_out_perplexity")),
            Measure(
                "rank_W_O",
                "nuclear rank of W_O, layer 0",
                1,
                mean_at("weight_spectra", "nuclear_rank", first_layer, monitor="nuclear_rank.W_O", matrix="W_O"),
            ),
            Measure("rank_W_Q", "nuclear rank of W_Q, mean over layers", 1, mean_rank("W_Q")),
        ),
        "Stable rank of W_Q at the middle layer": (
            Measure("rank_start", "start of the last phase", 1, rank_at_start, is_of_steps=False),
            Measure("rank_end", "end of training", 1, rank_at_end, is_of_steps=False),
        ),
        "Head entropy of layer 0": (
            Measure(
                "entropy_mean",
                "layer-0 head entropy, mean",
                3,
                mean_at("attention_stats", "entropy", first_layer, monitor="head_entropy"),
            ),
            Measure("entropy_std", "layer-0 head entropy, std", 3, entropy_spread),
        ),
        "BOS mass at three depths": BOS,
        "Concept geometry": (
            Measure("consistency", "trajectory consistency", 3, consistency),
            Measure(
                "effective_dim",
                "mid-layer effective dimension",
                2,
                mean_at("concept_geometry", "effective_dim", middle_layer),
                is_of_steps=False,
            ),
            Measure(
                "two_nn",
                "last-layer intrinsic dimension",
                1,
                mean_at("intrinsic_dimension", "dimension", last_layer),
                is_of_steps=False,
            ),
        ),
        "Correlations with order, place and time, mid-layer": (
            Measure("digits", "r of digits", 2, of_set("digits"), is_of_steps=False),
            Measure("number_words", "r of number words", 2, of_set("number_words"), is_of_steps=False),
            Measure("sizes", "r of sizes", 2, of_set("sizes"), is_of_steps=False),
            Measure("us_states", "r of states", 2, of_set("us_states"), is_of_steps=False),
        ),
        "Years and their spelling, mid-layer": (
            Measure("years_raw", "r of years", 2, of_set("years_1990"), is_of_steps=False),
            Measure("years_partial", "partial r of years", 2, of_set("years_1990", "partial_r"), is_of_steps=False),
            Measure("years_r2", "partial r², years", 3, of_set("years_1990", "r2"), is_of_steps=False),
        ),
    }
)
MEASURES = tuple(measure for group in GROUPS.values() for measure in group)
