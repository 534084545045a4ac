"""A study, end to end: its models trained, each opened by every analysis, one page and one atlas of what came out."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from reports.atlas import write_atlas
from reports.page import write_report
from reports.tables import write_table
from workbench.experiments.study.claims import judge_claims
from workbench.experiments.study.executors import Show, run_jobs
from workbench.experiments.study.jobs import Context, Job, left_out, plan_jobs
from workbench.experiments.study.merge import merge_tables
from workbench.experiments.study.recipe import StudyRecipe, load_study
from workbench.experiments.study.work import read_feed, train_recipe
from workbench.models.load import load, resolve_device
from workbench.runs import ENV, atomic_write, open_run
from workbench.training.plan import plan as plan_training

REPORT, ATLAS, RECORD = "report.html", "atlas.html", "study.json"
_VERSIONS = ("torch", "transformer-lens", "numpy", "prescriptive-workbench")


def study(
    recipe: str | Path | StudyRecipe | None = None,
    out: str | Path = "runs/study",
    seeds: int | None = None,
    *,
    device: str = "auto",
    resume: bool = False,
    overrides: Mapping[str, Any] | None = None,
    cache: str | Path | None = None,
    command: str = "",
    show: Show | None = None,
) -> Path:
    """The study's directory: report.html, study.json, every table merged over models and seeds, atlas.html where there
    are features, and each job's own run directory (`models/<name>-seed<k>/`, `saes/…`, `ablation/…` and so on).

    Args:
        recipe: a study's name or TOML file; by default Control and Adaptive nano on the embedded text.
        out: directory that must not exist yet (unless resume).
        seeds: how many times each model is trained, from seeds 0, 1, …; the recipe's n_seeds unless given.
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
    settings = load_study(recipe, _with_seeds(overrides, seeds))
    device = resolve_device(device)
    jobs = plan_jobs(settings)
    config = {"verb": "study", "recipe": settings.model_dump(mode="json")}
    with open_run(out, config, resume=resume, device=device) as run:
        if run.is_complete:
            return run.out
        context = Context(settings, run.path, device, None if cache is None else Path(cache))
        run_jobs(jobs, context, show)
        tables = merge_tables(jobs, context)
        if settings.roles:
            tables["claims"] = judge_claims(tables, settings.roles)
        for name, table in tables.items():
            write_table(table, run.path, name)
        record = describe_study(jobs, context, command)
        atomic_write(run.path / RECORD, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        write_report(run.path)
        if "feature_atlas" in tables:
            write_atlas(run.path, run.path / ATLAS)
    return run.out


def _with_seeds(overrides: Mapping[str, Any] | None, seeds: int | None) -> dict[str, Any]:
    return dict(overrides or {}) | ({} if seeds is None else {"n_seeds": seeds})


def plan(
    recipe: str | Path | StudyRecipe | None = None,
    seeds: int | None = None,
    *,
    device: str = "auto",
    overrides: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Facts about a study by name, before anything is made: jobs; parameters, tokens, bytes and seconds of training.

    Analyses are not timed: for the nano models those of Control and Adaptive take about as long as their trainings. Nor
    are the trainings of a ladder, one for each of its rungs.
    """
    settings = load_study(recipe, _with_seeds(overrides, seeds))
    recipes, n_seeds, jobs = settings.train_recipes(), settings.n_seeds, plan_jobs(settings)
    trainings = {own.name: plan_training(own, device=device) for own in recipes}
    n_slots = sum(own.model.n_layers * own.model.n_heads for own in recipes) * n_seeds
    return {
        "study": settings.name,
        "n_seeds": n_seeds,
        "n_jobs": len(jobs),
        "n_jobs_by_kind": dict(Counter(job.kind for job in jobs)),
        "left_out": left_out(settings),
        "n_saes": n_slots * len(settings.sae_l1) * len(settings.sae_seeds) * ("saes" in settings.analyses),
        "n_train_tokens": n_seeds * sum(found["n_tokens"] for found in trainings.values()),
        "bytes_on_disk": n_seeds * sum(found["bytes_on_disk"] for found in trainings.values()),
        "bytes_in_memory": max(found["bytes_in_memory"] for found in trainings.values()),
        "seconds_of_training": n_seeds * sum(found["seconds"] for found in trainings.values()),
        "trainings": trainings,
    }


def describe_study(jobs: Sequence[Job], context: Context, command: str) -> dict[str, Any]:
    """What study.json says: the page's headline, its models, where and how it ran, notes."""
    recipe = context.recipe
    own = train_recipe(jobs[0], context)
    feed = read_feed(own, context.cache)
    return {
        "title": recipe.title or recipe.name,
        "command": command or f"workbench.study({recipe.name!r}, seeds={recipe.n_seeds})",
        "models": [_describe_model(job, context) for job in jobs if job.kind == "train"],
        "corpus": (
            f"{own.data.source}: {feed.train.n_tokens:,} tokens to train on, {feed.held_out.n_tokens:,} held out by "
            f"document, vocabulary {feed.train.d_vocab:,}"
        ),
        "device": device_name(context.device),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version()} | {n: importlib.metadata.version(n) for n in _VERSIONS},
        "notes": notes(recipe, context),
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


def notes(recipe: StudyRecipe, context: Context) -> list[str]:
    """Sentences that a reader of the page needs beside its figures."""
    own = recipe.train_recipes()[0]
    n_steps = sum(phase.n_steps for phase in own.phases)
    said = [
        f"{own.name} has {own.model.n_layers} layers of width {own.model.d_model} and was trained for {n_steps:,} "
        "steps. Where sizes, steps and text differ from the papers’, a finding not seen here is not refuted there."
    ]
    if recipe.roles:
        said.append(
            "The ledger’s layers correspond to the published models’ by (layer + 1) / layers. A verdict asks for a "
            "95 % interval, over three or more seeds or the measure’s own: “not seen” where it holds zero, “reversed” "
            "on the other side of zero than the published effect, “reproduced” on its side with at least half of its "
            "size over three or more seeds, else “same direction”; “not enough seeds” where there is no interval."
        )
    if recipe.n_seeds == 1:
        said.append(
            "One seed a model: differences between models carry no interval over seeds, and another seed may turn them."
        )
    said += left_out(recipe)
    if "saes" in recipe.analyses:
        scaled = "scaled to one mean norm a head" if recipe.saes.normalize == "mean_norm" else "as they are"
        said.append(
            f"SAEs read activations {scaled}; figures show l1 = {recipe.shown_l1:g}. The random dictionary is as "
            "sparse as the trained one and its scale is fitted, so it lacks nothing but learned directions; "
            "“shuffled” is the trained dictionary on activations whose coordinates were permuted over tokens. Loss "
            "recovered is, by layer, what splicing recovers over what zeroing costs, each summed over heads: one that "
            "costs nothing weighs nothing."
        )
    if "features" in recipe.analyses:
        said.append(
            "The atlas shows the first seed. A feature’s match in the other model is the one of the same layer and "
            "head whose activations correlate most on the same tokens; heads of two models do not correspond, so low "
            "values are no surprise."
        )
    if "probe" in recipe.analyses:
        said.append(
            "q of concept probes is over all models and seeds; permutations, templates and words are the same for each."
        )
    return said


def device_name(device: str) -> str:
    """The device in words, for the page."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    n = torch.get_num_threads()
    return f"{device}, {n} thread{'s' if n > 1 else ''}"
