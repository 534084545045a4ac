"""One number per model and seed of everything that a study measures: what its pages compare models by.

Each summary has the name by which `effects.csv`, `seed_means.csv` and the pages know it, and the table that it is read
from. "Middle" is the layer at the depth of 14 of 28. What attention_stats and weight_spectra do not hold, because the
study did not make them, is the last word of the training monitor in the log.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd

from workbench.study.measures import Frame, Tables, choose_layers, layer_columns

KEYS = ["model", "seed"]
FIRST, MIDDLE, LAST = "first", "14 of 28", "last"
Read = Callable[[Tables], pd.Series]


@dataclass(frozen=True)
class Summary:
    """A name, the table it comes from, and the reader of its values by (model, seed)."""

    name: str
    table: str
    read: Read
    label: str = ""
    """what a sentence calls it; none: its name"""
    unit: str = ""
    """of the value; share: shown in per cent"""
    is_smooth: bool = True
    """whether the jackknife over blocks of text holds: not of a largest value"""


def no_values() -> pd.Series:
    """A series of no model."""
    return pd.Series(dtype=float, index=pd.MultiIndex.from_arrays([[], []], names=KEYS))


def table_of(tables: Tables, name: str, columns: Sequence[str]) -> Frame | None:
    """The table, or None where the study lacks it or one of its columns, model and seed among them."""
    df = tables.get(name)
    return df if df is not None and {*KEYS, *columns} <= set(df.columns) else None


def reduced(df: Frame, column: str, how: str = "mean") -> pd.Series:
    """A column's mean, or another reduction, over the rows of each model and seed."""
    groups = df.groupby(KEYS, sort=False)[column]
    return groups.std(ddof=0) if how == "std" else groups.agg(how)


def held(df: Frame, where: dict[str, object]) -> Frame:
    """The rows whose columns hold these values."""
    for name, value in where.items():
        df = df[df[name] == value]
    return df


# --- the training log


def logged(tables: Tables, name: str, at: str = "") -> pd.DataFrame:
    """The finite values of a number of the log in the order of steps: model, seed, phase, step, value.

    at: the layer of the columns `<name>.<layer>`, among those that hold a number of the model; none: the column itself.
    """
    log = table_of(tables, "train_log", ["step"])
    columns = [*KEYS, "phase", "step", "value"]
    if log is None or log.empty:
        return pd.DataFrame(columns=columns)
    own = layer_columns(log, name) if at else {-1: name}
    if not own or not set(own.values()) <= set(log.columns):
        return pd.DataFrame(columns=columns)
    rows = log[[*KEYS, "step", *own.values()]].assign(phase=log.get("phase", ""))
    if at:
        parts = [part.assign(value=at_depth(part, own, at)) for _, part in rows.groupby("model")]
        found = pd.concat(parts)
    else:
        found = rows.assign(value=rows[name])
    return found[columns].dropna(subset=["value"]).sort_values("step", kind="stable")


def at_depth(rows: Frame, columns: dict[int, str], at: str) -> pd.Series:
    """The column of one layer of a model's log, among those that hold a number."""
    known = [layer for layer, column in columns.items() if rows[column].notna().any()]
    layer = layer_at(at, max(known, default=-1) + 1)
    return rows[columns[layer]] if layer in known else pd.Series(math.nan, index=rows.index)


def layer_at(at: str, n_layers: int) -> int:
    """The one layer that `at` names; 0 of none, as where only the embedding was measured."""
    return next(iter(choose_layers(at, n_layers)), 0)


def last_of(log: pd.DataFrame) -> pd.Series:
    """The last value of `logged`, by model and seed."""
    return log.groupby(KEYS, sort=False)["value"].last() if len(log) else no_values()


def final(column: str) -> Read:
    """The reader of a column of the log at its last value."""
    return lambda tables: last_of(logged(tables, column))


def rank_at_start(tables: Tables) -> pd.Series:
    """The stable rank of W_Q of the middle layer where the last phase starts: the last of the phases before, else the
    first of all."""
    log = logged(tables, "stable_rank.W_Q", MIDDLE)
    if log.empty:
        return no_values()
    is_last = log["phase"] == log.groupby(KEYS, sort=False)["phase"].transform("last")
    first = log.groupby(KEYS, sort=False)["value"].first()
    before = log[~is_last].groupby(KEYS, sort=False)["value"].last()
    return before.reindex(first.index).fillna(first)


def rank_at_end(tables: Tables) -> pd.Series:
    """That stable rank where training ends."""
    return last_of(logged(tables, "stable_rank.W_Q", MIDDLE))


# --- the tables of analyses


def mean_of(table: str, column: str, **where: object) -> Read:
    """The reader of a column's mean over a model's and seed's rows, of those that hold `where`."""

    def read(tables: Tables) -> pd.Series:
        df = table_of(tables, table, [column, *where])
        return no_values() if df is None else reduced(held(df, where), column)

    return read


def mean_at(table: str, column: str, at: str, *, monitor: str = "", how: str = "mean", **where: object) -> Read:
    """The reader of a column's mean over a model's and seed's rows of one layer, of those that hold `where`.

    monitor: what the training log calls it, `<monitor>.<layer>`, read where the table is not there.
    """

    def read(tables: Tables) -> pd.Series:
        df = table_of(tables, table, ["layer", column, *where])
        if df is None:
            return last_of(logged(tables, monitor, at)) if monitor else no_values()
        df = held(df, where).dropna(subset="layer")
        n_layers = df.groupby("model")["layer"].transform("max") + 1
        return reduced(df[df["layer"] == n_layers.map(lambda n: layer_at(at, int(n)))], column, how)

    return read


def mean_rank(matrix: str) -> Read:
    """The reader of a weight matrix's nuclear rank, mean over layers."""

    def read(tables: Tables) -> pd.Series:
        df = table_of(tables, "weight_spectra", ["matrix", "nuclear_rank"])
        if df is not None:
            return reduced(df[df["matrix"] == matrix], "nuclear_rank")
        log = table_of(tables, "train_log", ["step"])
        columns = [] if log is None else list(layer_columns(log, f"nuclear_rank.{matrix}").values())
        if log is None or not columns:
            return no_values()
        found = log[[*KEYS, "step"]].assign(value=log[columns].mean(axis=1)).dropna(subset=["value"])
        return last_of(found.sort_values("step", kind="stable"))

    return read


def mean_of_saes(column: str) -> Read:
    """The reader of a column's mean over a model's trained SAEs, at the lower middle l1 of a sweep."""

    def read(tables: Tables) -> pd.Series:
        df = table_of(tables, "sae_training_results", ["head", "l1", column])
        if df is None or df.empty:
            return no_values()
        df = single_heads(df)
        df = df[df["dictionary"] == "trained"] if "dictionary" in df else df
        sweep = sorted(df["l1"].dropna().unique())
        return reduced(df[df["l1"] == sweep[(len(sweep) - 1) // 2]] if len(sweep) > 1 else df, column)

    return read


def single_heads(saes: Frame) -> Frame:
    """The rows of SAEs that one mean may take together: of the first hook, and of single heads where there are any."""
    if "hook" in saes and len(saes):
        kinds = saes["hook"].astype("str").str.replace(r"\d+", "*", regex=True)  # blocks.3.attn.hook_z is blocks.*.…
        saes = saes[kinds == kinds.iloc[0]]
    heads = saes[saes["head"] >= 0]
    return saes if heads.empty else heads


def largest_impact(tables: Tables) -> pd.Series:
    """The largest loss increase that the removal of one head makes."""
    df = table_of(tables, "ablation_results", ["head", "kind", "impact_pct"])
    return no_values() if df is None else reduced(df[(df["head"] >= 0) & (df["kind"] == "zero")], "impact_pct", "max")


def _mantel(name: str, of_set: str, column: str = "r") -> Summary:
    read = mean_at("concept_mantel", column, MIDDLE, set=of_set)
    return Summary(name, "concept_mantel", read, f"Mantel {name}, mid-layer")


def _attention(name: str, column: str, at: str, monitor: str, how: str = "mean", label: str = "") -> Summary:
    return Summary(name, "attention_stats", mean_at("attention_stats", column, at, monitor=monitor, how=how), label)


def _topology(name: str, column: str, basis: str, label: str) -> Summary:
    return Summary(name, "topology_stats", mean_of("topology_stats", column, basis=basis), label)


SUMMARIES: tuple[Summary, ...] = (
    Summary("held-out loss", "train_log", final("held_out_loss"), unit="nats"),
    Summary("held-out perplexity", "train_log", final("held_out_perplexity")),
    Summary(
        "nuclear rank of W_O, layer 0",
        "weight_spectra",
        mean_at("weight_spectra", "nuclear_rank", FIRST, monitor="nuclear_rank.W_O", matrix="W_O"),
    ),
    Summary("nuclear rank of W_Q, mean over layers", "weight_spectra", mean_rank("W_Q")),
    Summary(
        "start of the last phase",
        "train_log",
        rank_at_start,
        "mid-layer stable rank of W_Q at the start of the last phase",
    ),
    Summary("end of training", "train_log", rank_at_end, "mid-layer stable rank of W_Q at the end of training"),
    _attention(
        "layer-0 head entropy, mean",
        "entropy",
        FIRST,
        "head_entropy",
        label="attention entropy of layer 0, mean of heads",
    ),
    _attention(
        "layer-0 head entropy, std",
        "entropy",
        FIRST,
        "head_entropy_std",
        "std",
        "attention entropy of layer 0, standard deviation over heads",
    ),
    _attention("first-layer BOS mass", "bos_mass", FIRST, "bos_mass"),
    _attention("mid-layer BOS mass", "bos_mass", MIDDLE, "bos_mass"),
    _attention("last-layer BOS mass", "bos_mass", LAST, "bos_mass"),
    Summary(
        "trajectory consistency", "trajectories", mean_of("trajectories", "value", measure="trajectory_consistency")
    ),
    Summary("mid-layer effective dimension", "concept_geometry", mean_at("concept_geometry", "effective_dim", MIDDLE)),
    Summary("last-layer intrinsic dimension", "intrinsic_dimension", mean_at("intrinsic_dimension", "dimension", LAST)),
    _mantel("r of digits", "digits"),
    _mantel("r of number words", "number_words"),
    _mantel("r of sizes", "sizes"),
    _mantel("r of states", "us_states"),
    _mantel("r of years", "years_1990"),
    _mantel("partial r of years", "years_1990", "partial_r"),
    _mantel("partial r², years", "years_1990", "r2"),
    _topology("mean |cos| on z", "mean_cos", "z", "mean |cos| between heads on z"),
    _topology("mean |cos|, residual", "mean_cos", "residual", "mean |cos| between heads in what they write"),
    _topology("nuclear rank of z", "nuclear_rank", "z", "nuclear rank of the concatenated z"),
    Summary("SAE l0", "sae_training_results", mean_of_saes("l0"), "L0 of the SAEs", "features per token"),
    Summary("SAE fvu", "sae_training_results", mean_of_saes("fvu"), "FVU of the SAEs"),
    Summary(
        "largest head impact (%)",
        "ablation_results",
        largest_impact,
        "largest impact of a head on the loss",
        "%",
        is_smooth=False,
    ),
    Summary("effective dimension", "concept_geometry", mean_of("concept_geometry", "effective_dim")),
    Summary("bits per byte", "evaluation", mean_of("evaluation", "bits_per_byte", weights="stored", windows="plain")),
)
# what findings have beside these
FURTHER: tuple[Summary, ...] = (
    _topology("mean |cos|, pattern", "mean_cos", "pattern", "mean |cos| between attention patterns"),
    Summary("dead features", "sae_training_results", mean_of_saes("dead_fraction"), "share of dead features", "share"),
    Summary("content share", "content_share", mean_of("content_share", "share"), "content share of features", "share"),
)
