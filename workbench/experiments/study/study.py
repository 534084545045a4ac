"""A study, end to end: its models trained, each opened by every analysis, one page and one atlas of what came out."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from reports.atlas import write_atlas
from reports.page import write_report
from reports.study import short_names
from reports.tables import find_tables, read_table, write_table
from workbench.data.ngrams import ngram_baselines
from workbench.experiments.saes.comparison import compare_at_matched_l0
from workbench.experiments.saes.head_saes import CURVES
from workbench.experiments.study.findings import PUBLISHED_LAYERS, find
from workbench.experiments.study.jobs import (
    MATCH,
    Context,
    Job,
    Show,
    device_name,
    plan_jobs,
    read_feed,
    run_jobs,
    train_recipe,
)
from workbench.experiments.study.recipe import StudyRecipe, load_study
from workbench.models.load import load, resolve_device
from workbench.runs import ENV, atomic_write, open_run
from workbench.training.feed import evaluation_windows
from workbench.training.plan import plan as plan_training

# kind of job -> the tables in its directory that are merged
TABLES = {
    "train": ("train_log",),
    "saes": ("sae_training_results", "sae_density"),
    "ablation": ("ablation_results", "ablation_summary"),
    "topology": ("topology_stats", "head_cosines"),
    "attention": ("attention_stats",),
    "features": ("feature_atlas",),
    "match": (),
}
SWEEPS = ("sae_pareto", "sae_stability")  # written by "saes" jobs of several l1 or seeds
BASELINES = ("unigram", "bigram")
REPORT, ATLAS, RECORD = "report.html", "atlas.html", "study.json"
_VERSIONS = ("torch", "transformer-lens", "numpy", "prescriptive-workbench")


def study(
    recipe: str | Path | StudyRecipe | None = None,
    out: str | Path = "runs/study",
    seeds: int = 1,
    *,
    device: str = "auto",
    resume: bool = False,
    overrides: Mapping[str, Any] | None = None,
    cache: str | Path | None = None,
    command: str = "",
    show: Show | None = None,
) -> Path:
    """The study's directory: report.html, atlas.html, study.json, every table merged over models and seeds, and each
    job's own run directory (`models/<name>-seed<k>/`, `saes/…`, `ablation/…` and so on).

    Args:
        recipe: a study's name or TOML file; by default Control and Adaptive nano on the embedded text.
        out: directory that must not exist yet (unless resume).
        seeds: how many times each model is trained, from seeds 0, 1, …
        device: "auto" (CUDA where there is one), or a torch device.
        resume: go on with an unfinished study; its finished jobs are checked and kept.
        overrides: settings to replace, as `load_study` takes them.
        cache: where packed tokens are kept; the user's cache unless given.
        command: what was typed, for the page.
        show: draws progress: given a label, a context manager whose function takes the share done.

    Raises:
        ValueError: a wrong recipe, setting or device; a directory in the way; altered files in a job's directory.
        Interrupted: a training was interrupted, its state is saved; resume goes on.
    """
    settings = load_study(recipe, overrides)
    if seeds < 1:
        raise ValueError(f"seeds: got {seeds}; want at least 1")
    device = resolve_device(device)
    jobs = plan_jobs(settings, seeds)
    config = {"verb": "study", "seeds": seeds, "recipe": settings.model_dump(mode="json")}
    with open_run(out, config, resume=resume, device=device) as run:
        if run.is_complete:
            return run.out
        context = Context(settings, run.path, device, None if cache is None else Path(cache))
        run_jobs(jobs, context, show)
        tables = merge_tables(jobs, context)
        for name, table in tables.items():
            write_table(table, run.path, name)
        record = describe_study(jobs, context, tables, seeds, command)
        atomic_write(run.path / RECORD, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        write_report(run.path)
        write_atlas(run.path, run.path / ATLAS)
    return run.out


def plan(
    recipe: str | Path | StudyRecipe | None = None,
    seeds: int = 1,
    *,
    device: str = "auto",
    overrides: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Facts about a study by name, before anything is made: jobs; parameters, tokens, bytes and seconds of training.

    Analyses are not timed; for the nano models they take about as long as one training.
    """
    settings = load_study(recipe, overrides)
    recipes = settings.train_recipes()
    trainings = {own.name: plan_training(own, device=device) for own in recipes}
    n_slots = sum(own.model.n_layers * own.model.n_heads for own in recipes) * seeds
    return {
        "study": settings.name,
        "n_seeds": seeds,
        "n_jobs": len(plan_jobs(settings, seeds)),
        "n_saes": n_slots * len(settings.sae_l1) * len(settings.sae_seeds),
        "n_train_tokens": seeds * sum(found["n_tokens"] for found in trainings.values()),
        "bytes_on_disk": seeds * sum(found["bytes_on_disk"] for found in trainings.values()),
        "bytes_in_memory": max(found["bytes_in_memory"] for found in trainings.values()),
        "seconds_of_training": seeds * sum(found["seconds"] for found in trainings.values()),
        "trainings": trainings,
    }


def merge_tables(jobs: Sequence[Job], context: Context) -> dict[str, pd.DataFrame]:
    """Every table of the study over all models and seeds, and the baselines of the reference's held-out text."""
    parts: dict[str, list[pd.DataFrame]] = {}
    for job in jobs:
        found = find_tables(context.directory / job.path)
        for name in (*TABLES[job.kind], *(name for name in SWEEPS if job.kind == "saes" and name in found)):
            table = read_table(context.directory / job.path, name)
            parts.setdefault(name, []).append(table.assign(model=job.model, seed=job.seed))
    tables = {name: pd.concat(own, ignore_index=True) for name, own in parts.items()}
    if len(context.recipe.sae_l1) > 1 and len(context.recipe.models) > 1:
        tables["sae_matched_l0"] = _matched_l0(tables["sae_training_results"])
    density = tables["sae_density"]
    is_shown = (density["l1"] == context.recipe.shown_l1) & (density["sae_seed"] == context.recipe.sae_seeds[0])
    tables["sae_density"] = density.loc[is_shown]
    tables["feature_atlas"] = _with_matches(tables["feature_atlas"], jobs, context)
    tables["baselines"] = _baselines(jobs, context)
    _merge_curves(jobs, context)
    return tables


def _matched_l0(results: pd.DataFrame) -> pd.DataFrame:
    """Every further model against the first, at matched l0."""
    reference, *others = dict.fromkeys(results["model"])
    return pd.concat([compare_at_matched_l0(results, reference, other) for other in others], ignore_index=True)


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


def _baselines(jobs: Sequence[Job], context: Context) -> pd.DataFrame:
    recipe = train_recipe(jobs[0], context)
    feed = read_feed(recipe, context.cache)
    found = ngram_baselines(feed.train, evaluation_windows(feed, recipe))
    rows = [(name, found[name].nats, found[name].n_tokens) for name in BASELINES]
    return pd.DataFrame(rows, columns=["name", "nats", "n_tokens"])


def describe_study(
    jobs: Sequence[Job], context: Context, tables: Mapping[str, pd.DataFrame], seeds: int, command: str
) -> dict[str, Any]:
    """What study.json says: the page's headline, its models, where and how it ran, notes and findings."""
    recipe = context.recipe
    own = train_recipe(jobs[0], context)
    feed = read_feed(own, context.cache)
    return {
        "title": recipe.title or recipe.name,
        "command": command or f"workbench.study({recipe.name!r}, seeds={seeds})",
        "models": [_describe_model(job, context) for job in jobs if job.kind == "train"],
        "corpus": (
            f"{own.data.source}: {feed.train.n_tokens:,} tokens to train on, {feed.held_out.n_tokens:,} held out by "
            f"document, vocabulary {feed.train.d_vocab:,}"
        ),
        "device": device_name(context.device),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version()} | {n: importlib.metadata.version(n) for n in _VERSIONS},
        "notes": notes(recipe, context, seeds),
        "findings": _findings(recipe, tables),
        "timings": {job.name: _seconds(job, context) for job in jobs},
    }


def _describe_model(job: Job, context: Context) -> dict[str, Any]:
    model = load(context.directory / job.path, "cpu")
    return {
        "name": job.model,
        "recipe": job.model,
        "seed": job.seed,
        "n_parameters": model.n_parameters(),
        "n_parameters_no_embedding": model.n_parameters(embeddings=False),
        "seconds": _seconds(job, context),
    }


def _seconds(job: Job, context: Context) -> float:
    return float(json.loads((context.directory / job.path / ENV).read_text(encoding="utf-8"))["seconds"])


def _findings(recipe: StudyRecipe, tables: Mapping[str, pd.DataFrame]) -> list[dict[str, str]]:
    if recipe.findings == "none":
        return []
    reference, treated = (own.name for own in recipe.train_recipes()[:2])
    return find(tables, reference, treated, short_names([reference, treated]))


def notes(recipe: StudyRecipe, context: Context, seeds: int) -> list[str]:
    """Sentences that a reader of the page needs beside its figures."""
    own = recipe.train_recipes()[0]
    n_steps = sum(phase.n_steps for phase in own.phases)
    said = [
        f"Models of {own.model.n_layers} layers of width {own.model.d_model}, trained for {n_steps:,} steps: sizes, "
        "steps and text differ from the papers’, so a finding that is not seen here is not refuted there."
    ]
    if recipe.findings == "janus-v3":
        said.append(
            f"Layers correspond to the published model’s {PUBLISHED_LAYERS} by (layer + 1) / layers, along which the "
            "pressure on heads rises. Verdicts: with a 95 % interval, “not seen” if it holds zero, and “reproduced” "
            "only from three seeds on and with at least half of the published effect; without one, “not seen” below a "
            "quarter of the published effect, and at best “same direction”."
        )
    if seeds == 1:
        said.append(
            "One seed a model: differences between models carry no interval over seeds, and another seed may turn them."
        )
    scaled = "scaled to one mean norm a head" if recipe.saes.normalize == "mean_norm" else "as they are"
    said.append(
        f"SAEs read activations {scaled}; figures show l1 = {recipe.shown_l1:g}. The random dictionary is as sparse as "
        "the trained one and its scale is fitted, so it lacks nothing but learned directions; “shuffled” is the "
        "trained dictionary on activations whose coordinates were permuted over tokens. Loss recovered is, by layer, "
        "what splicing recovers over what zeroing costs, each summed over heads: one that costs nothing weighs nothing."
    )
    said.append(
        "The atlas shows the first seed. A feature’s match in the other model is the one of the same layer and head "
        "whose activations correlate most on the same tokens; heads of two models do not correspond, so low values are "
        "no surprise."
    )
    return said
