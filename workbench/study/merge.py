"""The tables of a study: those of its jobs over all models and seeds, and what only all of them together give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import pandas as pd

import probes
from reports.tables import find_tables, read_table
from workbench.analyses.sae_train.comparison import compare_at_matched_l0
from workbench.analyses.sae_train.head_saes import CURVES
from workbench.analyses.topology import Size, effective_sizes
from workbench.data.ngrams import ngram_baselines
from workbench.models.cross_entropy import perplexity
from workbench.runs import atomic_write
from workbench.study.job_runners import CONTINUATIONS, MATCH, read_feed, train_recipe
from workbench.study.jobs import Context, Job, share_heads
from workbench.training.footprint import on_meta
from workbench.training.recipe import phase_model
from workbench.training.training_data import evaluation_windows

# kind of job -> the tables that may lie in its directory
TABLES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "train": ("train_log",),
        "saes": ("sae_training_results", "sae_density", "sae_pareto", "sae_stability"),
        "ablation": ("ablation_results", "ablation_summary"),
        "topology": ("topology_stats", "head_cosines"),
        "attention": ("attention_stats", "attention_patterns"),
        "features": ("feature_atlas",),
        "match": (),
        "spectra": (
            "weight_spectra", "singular_values", "rank_budget", "pc_cosine", "eigenspectra_divergence",
        ),
        "probe": (
            "concept_mantel", "mantel_stability", "crystallisation", "concept_points", "antonym_parallelism",
            "concept_geometry", "trajectories", "intrinsic_dimension", "intrinsic_dimension_curve",
        ),
        "evaluation": ("evaluation",),
        "text_quality": ("text_quality",),
        "mechanisms": ("mechanisms",),
        "ladder": ("ladder",),
    }
)  # fmt: skip
OF_TWO_MODELS = ("pc_cosine", "eigenspectra_divergence")  # model_a and model_b name them; seed is of both trainings
TESTED = ("concept_mantel", "antonym_parallelism")  # tables with a p, whose q is over all models and seeds
BASELINES = ("unigram", "bigram")


def merge_tables(jobs: Sequence[Job], context: Context) -> dict[str, pd.DataFrame]:
    """Every table of the study over all models and seeds, and the baselines of the reference's held-out text.

    jobs: those that are done.
    """
    parts: dict[str, list[pd.DataFrame]] = {}
    for job in jobs:
        for name in find_tables(context.directory / job.path):
            if name in TABLES[job.kind]:
                parts.setdefault(name, []).append(_named(read_table(context.directory / job.path, name), name, job))
    tables = {name: pd.concat(own, ignore_index=True) for name, own in parts.items()}
    for name in TESTED:
        if name in tables:
            p = tables[name]["p"].to_numpy(dtype=float)
            tables[name] = tables[name].assign(q=probes.benjamini_hochberg(p))
    if "sae_training_results" in tables and len(context.recipe.sae_l1) > 1:
        tables |= _matched_l0(tables["sae_training_results"], context)
    if "topology_stats" in tables:
        tables |= _effective_sizes(tables["topology_stats"], context)
    if "sae_density" in tables:
        density = tables["sae_density"]
        is_shown = (density["l1"] == context.recipe.shown_l1) & (density["sae_seed"] == context.recipe.sae_seeds[0])
        tables["sae_density"] = density.loc[is_shown]
        _merge_curves(jobs, context)
    if "feature_atlas" in tables:
        tables["feature_atlas"] = _with_matches(tables["feature_atlas"], jobs, context)
    if "text_quality" in tables:
        paths = [context.directory / job.path / CONTINUATIONS for job in jobs if job.kind == "text_quality"]
        atomic_write(context.directory / CONTINUATIONS, "".join(path.read_text(encoding="utf-8") for path in paths))
    if "train_log" in tables:
        tables["baselines"] = _baselines(jobs[0], context)
    return tables


def _named(table: pd.DataFrame, name: str, job: Job) -> pd.DataFrame:
    """A job's table with the columns that tell its rows from other jobs'."""
    if name == "ladder":  # its models are the rungs
        return table
    return table.assign(seed=job.seed) if name in OF_TWO_MODELS else table.assign(model=job.model, seed=job.seed)


def _effective_sizes(stats: pd.DataFrame, context: Context) -> dict[str, pd.DataFrame]:
    """Every further model against the reference of the same seed; nothing without one."""
    reference = context.trainings[0].name
    sizes = {own.name: Size.of(on_meta(phase_model(own, -1))) for own in context.trainings}
    subjects = stats.drop_duplicates(["model", "seed"])["model"]
    found = effective_sizes(stats, [sizes[name] for name in subjects])
    is_told = (found["model_b"] == reference) & (found["model_a"] != reference) & (found["seed_a"] == found["seed_b"])
    return {"effective_size": found[is_told]} if is_told.any() else {}


def _matched_l0(results: pd.DataFrame, context: Context) -> dict[str, pd.DataFrame]:
    """Every further model with the reference's layers and heads against it, at matched l0; nothing without one."""
    reference, *others = context.trainings
    present = set(results["model"])
    pairs = [own.name for own in others if share_heads(reference, own) and {reference.name, own.name} <= present]
    found = [compare_at_matched_l0(results, reference.name, name) for name in pairs]
    return {"sae_matched_l0": pd.concat(found, ignore_index=True)} if found else {}


def _with_matches(features: pd.DataFrame, jobs: Sequence[Job], context: Context) -> pd.DataFrame:
    """The atlas's rows with the column match filled from the match jobs; the reference's from the first of them."""
    keys = ["model", "layer", "head", "feature"]
    found = [
        pd.read_csv(context.directory / job.path / MATCH, keep_default_na=False) for job in jobs if job.kind == "match"
    ]
    if not found:
        return features
    matches = pd.concat(found).drop_duplicates(keys)[[*keys, "match"]]
    return features.drop(columns="match").merge(matches, on=keys, how="left").fillna({"match": ""})


def _merge_curves(jobs: Sequence[Job], context: Context) -> None:
    """sae_curves.csv of all models in the study's directory: not drawn, so not in the column contract."""
    parts = [pd.read_csv(context.directory / job.path / CURVES) for job in jobs if job.kind == "saes"]
    atomic_write(context.directory / CURVES, pd.concat(parts).to_csv(index=False, lineterminator="\n"))


def _baselines(job: Job, context: Context) -> pd.DataFrame:
    recipe = train_recipe(job, context)
    feed = read_feed(recipe, context.cache)
    found = ngram_baselines(feed.train, evaluation_windows(feed, recipe))
    own = [(name, found[name]) for name in BASELINES]
    rows = [(name, model.nats, model.n_tokens, perplexity(model.nats)) for name, model in own]
    return pd.DataFrame(rows, columns=["name", "nats", "n_tokens", "perplexity"])
