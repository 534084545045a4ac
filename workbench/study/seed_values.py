"""Every number of a study that its pages show over seeds: one value per seed and place, from the merged tables.

The seed is the unit: rows of one seed at one place (the heads of a layer, the concept sets of a model) are averaged
first. Recovered loss is Σ(ce_zero − ce_spliced) / Σ(ce_zero − ce_base) over the heads of a layer: a mean of the heads'
ratios would be ruled by those whose removal costs next to nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from reports.contract import declared
from reports.study_tables import STUDY_TABLES, split_telemetry
from workbench.analyses import BUILT_IN, find_analysis
from workbench.runs import shorten
from workbench.study.measures import Frame, Tables, layer_columns
from workbench.study.summaries import (
    FIRST,
    FURTHER,
    LAST,
    MIDDLE,
    SUMMARIES,
    Summary,
    layer_at,
    mean_of,
    single_heads,
    table_of,
)

MAX_INDICES = 80  # singular values of a spectrum that are averaged; the first and the last are among them
NUMBER = r"\d[\d.eE+\-]*"
OPTIONAL = ("l1", "dictionary", "phase")  # columns that tables of earlier versions lack, whose rows are then all alike
COSTS = ("ce_base", "ce_spliced", "ce_zero")
LOGGED = ("held_out_loss", "sigma_z", "sigma_pattern", "sigma_residual")


@dataclass(frozen=True)
class SeedValues:
    """The values of one measure: columns `by`, seed and value, one row per place and seed; nan is left out later."""

    table: str
    measure: str
    by: tuple[str, ...]
    rows: Frame
    is_compared: bool


@dataclass(frozen=True)
class Source:
    """Which columns of a table are averaged over the rows of a seed, and by which other columns."""

    table: str
    by: tuple[str, ...]
    """none of them: model alone"""
    measures: tuple[str, ...] = ()
    """none: the column `value`, whose measure the column `measure` names"""
    prepare: Callable[[Frame], Frame] = lambda df: df
    needs: tuple[str, ...] = ()
    """columns that prepare takes; none: those of `by`"""
    is_compared: bool = True
    """whether two models' values have a difference that means something"""


def of_same_seed(sizes: Frame) -> Frame:
    """The effective sizes of two models of one seed each, with that seed."""
    own = sizes[(sizes["seed_a"] == sizes["seed_b"]) & (sizes["model_a"] != sizes["model_b"])]
    return own.assign(seed=own["seed_a"])


def at_first_lag(trajectories: Frame) -> Frame:
    """The rows of successive displacements."""
    return trajectories[trajectories["measure"] == "trajectory_consistency"]


def with_recovery(saes: Frame) -> Frame:
    """One row per layer of the summed costs of its heads, and what splicing recovers of them; nan where removing all
    heads costs nothing."""
    by = [name for name in ("model", "seed", "dictionary", "l1", "layer") if name in saes]
    saes = single_heads(saes)
    parts = saes.assign(recovered=saes["ce_zero"] - saes["ce_spliced"], cost=saes["ce_zero"] - saes["ce_base"])
    sums = parts.groupby(by, sort=False)[["recovered", "cost"]].sum(min_count=1).reset_index()
    return sums.assign(ce_recovered=sums["recovered"] / sums["cost"].where(sums["cost"] > 0))


def ranked_entropies(attention: Frame) -> Frame:
    """Layer 0's heads with their place by entropy, lowest first: heads of two seeds do not correspond."""
    own = attention[attention["layer"] == 0].dropna(subset=["entropy"])
    return own.assign(place=own.groupby(["model", "seed"], sort=False)["entropy"].rank(method="first").astype(int))


def spread_over_heads(attention: Frame) -> Frame:
    """The (population) standard deviation over heads of their entropy, one row per layer."""
    spread = attention.groupby(["model", "seed", "layer"], sort=False)["entropy"].std(ddof=0)
    return spread.rename("entropy_std").reset_index()


def decays(spectra: Frame) -> Frame:
    """log₁₀ σ_i/σ₁ over i of whole spectra at the first, the middle and the last layer; at most `MAX_INDICES` i each.

    A singular value of 0 has no logarithm and is left out.

    Raises:
        ValueError: a cell that is no list of numbers.
    """
    cells = spectra["singular_values"].astype("str")
    if len(wrong := cells[~cells.str.fullmatch(rf"\[{NUMBER}(,\s*{NUMBER})*\]")]):
        raise ValueError(f"singular_values.csv: got {shorten(repr(wrong.iloc[0]))}; expected a JSON list of numbers")
    depth = spectra.groupby("model")["layer"].transform("max") + 1
    shown = [{layer_at(at, int(n)) for at in (FIRST, MIDDLE, LAST)} for n in depth]
    rows = []
    drawn = spectra[[layer in layers for layer, layers in zip(spectra["layer"], shown, strict=True)]]
    for row in drawn.itertuples():
        sigma = np.asarray(json.loads(str(row.singular_values)), dtype=float)
        kept = np.unique(np.linspace(0, len(sigma) - 1, MAX_INDICES).round().astype(int))
        with np.errstate(divide="ignore", invalid="ignore"):  # of a zero matrix nothing is finite
            decay = np.log10(sigma[kept] / sigma[0])
        place = (row.model, row.seed, row.matrix, row.layer)
        rows += [(*place, *own) for own in zip((kept + 1).tolist(), decay.tolist(), strict=True)]
    return pd.DataFrame(rows, columns=["model", "seed", "matrix", "layer", "i", "decay"])


SAES = ("model", "dictionary", "l1", "layer")
HEADS = ("model", "seed", "layer", "entropy")
SPECTRA = ("model", "seed", "matrix", "layer", "singular_values")
NULLS = tuple(f"null_{name}" for name in ("independent", "random_walk"))
SOURCES = (
    Source(
        "topology_stats",
        ("model", "basis", "layer"),
        ("max_cos", "mean_cos", "nuclear_rank", "rank_utilization"),
    ),
    Source("sae_training_results", SAES, ("l0", "mse", "fvu", "dead_fraction"), single_heads),
    Source("sae_training_results", SAES, ("near_copy_share", "dense_fraction"), single_heads),
    Source("sae_training_results", SAES, ("ce_recovered",), with_recovery, (*SAES[::3], *COSTS)),
    Source("sae_stability", ("model", "l1", "layer"), ("stability", "share_above"), single_heads),
    Source("sae_stability", ("l1", "layer"), ("stability_random", "share_random"), single_heads),
    Source("sae_matched_l0", ("model_a", "model_b", "layer"), ("fvu_difference", "ce_recovered_difference")),
    Source("ablation_summary", ("model", "kind", "layer")),
    Source("attention_stats", ("model", "layer"), ("entropy", "bos_mass")),
    Source("attention_stats", ("model", "layer"), ("entropy_std",), spread_over_heads, HEADS),
    Source("attention_stats", ("model", "place"), ("entropy",), ranked_entropies, HEADS),
    Source(
        "weight_spectra",
        ("model", "matrix", "layer"),
        ("nuclear_rank", "stable_rank", "effective_rank", "participation_ratio"),
    ),
    Source("singular_values", ("model", "matrix", "layer", "i"), ("decay",), decays, SPECTRA, is_compared=False),
    Source("rank_budget", ("model", "matrix", "part"), ("stable_rank", "share")),
    Source("eigenspectra_divergence", ("model_a", "model_b", "part"), ("divergence",)),
    Source("pc_cosine", ("model_a", "model_b", "pc", "layer"), ("cosine",)),
    Source("intrinsic_dimension", ("model", "layer"), ("dimension",)),
    Source("intrinsic_dimension_curve", ("model", "layer", "n_points"), ("dimension",)),
    Source("concept_mantel", ("model", "set", "layer"), ("r", "partial_r")),
    Source("concept_geometry", ("model", "set", "layer"), ("effective_dim",)),
    Source("crystallisation", ("model", "set"), ("layer", "maximum")),
    Source("trajectories", ("model", "set", "lag"), ("value",)),
    Source("trajectories", ("model", "lag"), ("value",)),
    Source("trajectories", ("lag",), NULLS, at_first_lag, ("measure", "lag")),
    Source("antonym_parallelism", ("model", "set", "n_removed", "layer"), ("parallelism", "null_mean", "null_std")),
    Source("effective_size", ("model_a", "model_b", "layer_a", "layer_b"), (
        "utilization_a", "utilization_b", "n_parameters", "n_eff", "n_parameters_no_embedding", "n_eff_no_embedding",
    ), of_same_seed, ("model_a", "seed_a", "model_b", "seed_b", "layer_a", "layer_b")),
    Source("evaluation", ("model", "weights", "windows"), ("bits_per_byte", "perplexity")),
    Source("ladder", ("rung",), ("bits_per_byte", "delta_bits")),
    Source("text_quality", ("model",)),
)  # fmt: skip


def seed_values(tables: Tables, roles: Mapping[str, str]) -> Iterator[SeedValues]:
    """Yield the values of every measure that the tables hold; a table that lacks a measure's columns has none of it.

    roles: role -> the model's name in the tables; control and adaptive are the pair of the first paper.
    """
    for summary in SUMMARIES:
        rows = summary.read(tables).rename("value").reset_index()
        if len(rows):
            yield SeedValues(summary.table, summary.name, ("model",), rows, is_compared=True)
    for source in (*SOURCES, *sources_of_plugins(tables)):
        df = tables.get(source.table)
        if df is not None and len(df):
            yield from read_source(source, df)
    yield from top_impacts(tables, roles)
    yield from over_steps(tables)


def sources_of_plugins(tables: Tables) -> Iterator[Source]:
    """Yield what the tables of analyses of a user's own are averaged by: their key; every column of numbers."""
    known = {table.name for name in BUILT_IN for table in find_analysis(name).tables}
    known |= {table.name for table in STUDY_TABLES}
    known |= {own.twin.name for own in declared().values() if own.twin is not None}  # its rows are no measurements
    for name, table in declared().items():
        if name in tables and name not in known and "model" in table.key:
            measures = tuple(own.name for own in table.columns if own.kind == "number")
            yield Source(name, tuple(key for key in table.key if key != "seed"), measures)


def every_summary(tables: Tables) -> Iterator[Summary]:
    """Yield the numbers that models are compared by: one per model and seed of each measure."""
    yield from SUMMARIES
    yield from FURTHER
    for source in sources_of_plugins(tables):
        for name in source.measures:
            yield Summary(
                name, source.table, mean_of(source.table, name), f"{name} of {source.table}, mean of all rows"
            )


def read_source(source: Source, df: Frame) -> Iterator[SeedValues]:
    """Yield the measures of a source that its table has the columns of."""
    by = tuple(name for name in source.by if name in df or name not in OPTIONAL)
    if not {*(source.needs or by)} <= set(df.columns):
        return
    df = source.prepare(df)
    df = df if "seed" in df else df.assign(seed=0)
    for name in source.measures or tuple(dict.fromkeys(df["measure"])):
        own, column = (df, name) if source.measures else (df[df["measure"] == name], "value")
        if column in own:
            yield SeedValues(source.table, str(name), by, averaged(own, by, column), source.is_compared)


def averaged(df: Frame, by: tuple[str, ...], column: str) -> Frame:
    """One row per place and seed: the mean of a column over the rows there."""
    return df.groupby([*by, "seed"], sort=False)[column].mean().rename("value").reset_index()


def top_impacts(tables: Tables, roles: Mapping[str, str]) -> Iterator[SeedValues]:
    """Yield the impact of the head at each rank, of all models together (group all) and, of more than two, of the first
    paper's pair (group pair): heads of two seeds do not correspond, ranks do."""
    df = table_of(tables, "ablation_results", ["head", "kind", "impact_pct"])
    if df is None or df.empty:
        return
    df = df[df["kind"] == ("zero" if (df["kind"] == "zero").any() else df["kind"].iloc[0])]
    df = df[(df["head"] >= 0) & df["impact_pct"].notna()]
    present, pair = set(df["model"]), {roles.get("control"), roles.get("adaptive")}
    for group, models in {"all": present, "pair": pair if len(present) > 2 and pair <= present else set()}.items():
        own = df[df["model"].isin(list(models))]
        if len(own):
            ranks = own.groupby("seed", sort=False)["impact_pct"].rank(method="first", ascending=False).astype(int)
            rows = averaged(own.assign(group=group, rank=ranks), ("group", "rank"), "impact_pct")
            yield SeedValues("ablation_results", "impact_pct", ("group", "rank"), rows, is_compared=False)


def over_steps(tables: Tables) -> Iterator[SeedValues]:
    """Yield what the training log has at each step: losses, what interventions report, and the monitors by layer, of
    ranks the mean over layers too."""
    log = table_of(tables, "train_log", ["step"])
    if log is None:
        return
    by = tuple(name for name in ("model", "phase", "step") if name in log)
    pairs = [str(column).rpartition(".")[::2] for column in log.columns]
    of_interventions = [str(column) for column in log.columns if split_telemetry(str(column))]
    for name in (*LOGGED, *of_interventions):
        if name in log:
            rows = log[[*by, "seed"]].assign(value=log[name]).dropna(subset=["value"])
            yield SeedValues("train_log", name, by, rows, is_compared=name == "held_out_loss")
    for name in dict.fromkeys(own for own, layer in pairs if layer.isdigit() and own not in LOGGED):
        columns = layer_columns(log, name)
        parts = [log[[*by, "seed"]].assign(layer=layer, value=log[column]) for layer, column in columns.items()]
        rows = pd.concat(parts, ignore_index=True).dropna(subset=["value"])
        yield SeedValues("train_log", name, (*by, "layer"), rows, is_compared=False)
        if name.partition(".")[0].endswith("_rank"):
            rows = log[[*by, "seed"]].assign(value=log[list(columns.values())].mean(axis=1)).dropna(subset=["value"])
            yield SeedValues("train_log", name, by, rows, is_compared=False)
