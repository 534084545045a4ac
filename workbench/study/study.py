"""A study, end to end: its models trained, each opened by every analysis, one page and one atlas of what came out."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from reports.atlas import write_atlas
from reports.page import write_report
from reports.tables import write_table
from workbench.models.load import load, resolve_device
from workbench.runs import ENV, atomic_write, open_run
from workbench.study.claims import judge_claims
from workbench.study.effects import write_effects
from workbench.study.executors import Executor, InProcess, Outcome, Show, run_jobs, threads
from workbench.study.factorial import factorial
from workbench.study.job_runners import read_feed
from workbench.study.jobs import Context, Job, left_out, plan_jobs
from workbench.study.merge import merge_tables
from workbench.study.recipe import StudyRecipe, load_study
from workbench.training.recipe import load_recipe, recipe_names

ATLAS, RECORD = "atlas.html", "study.json"
EXECUTORS = ("in-process", "ray")
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
    reuse: Sequence[str | Path] | str | Path = (),
    executor: str = "in-process",
    ray_address: str | None = None,
    n_threads: int | None = None,
    command: str = "",
    show: Show | None = None,
) -> Path:
    """The study's directory: report.html, study.json, every table merged over models and seeds, atlas.html where there
    are features, and each job's own run directory (`models/<name>-seed<k>/`, `saes/…`, `ablation/…` and so on).

    Args:
        recipe: a study's name or TOML file; by default Control and Adaptive nano on the embedded text.
        out: directory that must not exist yet (unless resume).
        seeds: how many times each model is trained, with seeds 0, 1, …; the recipe's n_seeds by default.
        device: "auto" (CUDA where there is one), or a torch device.
        resume: continue an unfinished study; its finished jobs are verified and kept.
        overrides: settings to replace, as `load_study` takes them.
        cache: where packed tokens are kept; the user's cache by default.
        reuse: directories of other studies; their finished jobs of the same content are copied.
        executor: "in-process", or "ray": several jobs at once, here or on the cluster at ray_address.
        n_threads: CPU threads per job, on which float32 sums depend; torch's own choice by default.
        command: the command that was typed, for the report.
        show: draws progress: takes a label, returns a context manager whose function takes the share done.

    Raises:
        ValueError: a wrong recipe, setting, device or executor; a directory in the way; no study in reuse.
        JobsFailed: (a ValueError) jobs failed, and those that need them were not started; the others are done, and a
            report of them is in `<out>.partial`. resume tries again.
        Interrupted: a training was interrupted and its state saved; resume continues.
    """
    settings = load_study(recipe, with_seeds(overrides, seeds))
    device = resolve_device(device)
    if n_threads is not None and n_threads < 1:
        raise ValueError(f"threads: got {n_threads}; expected at least 1")
    jobs, trainings = plan_jobs(settings), tuple(settings.train_recipes())
    config = {"verb": "study", "recipe": settings.model_dump(mode="json")}
    with open_run(out, config, resume=resume, device=device) as run:
        if run.is_complete:
            return run.out
        context = Context(
            settings, trainings, run.path, device, None if cache is None else Path(cache),
            n_threads or torch.get_num_threads(),
        )  # fmt: skip
        reused = [Path(directory) for directory in ([reuse] if isinstance(reuse, str | Path) else reuse)]
        with contextlib.closing(make_executor(executor, context, len(jobs), ray_address, show)) as engine:
            outcome = run_jobs(jobs, context, engine, reused)
        try:
            if outcome.done:
                write_pages(outcome, context, command)
        finally:  # what failed is said, whatever becomes of the page without it
            outcome.check()
    return run.out


def make_executor(name: str, context: Context, n_jobs: int, ray_address: str | None, show: Show | None) -> Executor:
    """The executor of that name. Raises ValueError for another name, and as `OnRay`."""
    if name not in EXECUTORS:
        raise ValueError(f"executor: got {name!r}; expected one of {', '.join(EXECUTORS)}")
    if ray_address is not None and name != "ray":
        raise ValueError(f"ray_address: got {ray_address!r} with executor {name!r}; expected executor 'ray'")
    if name == "in-process":
        return InProcess(context, show)
    from workbench.study.on_ray import OnRay

    return OnRay(context, n_jobs, ray_address, show)


def write_pages(outcome: Outcome, context: Context, command: str) -> None:
    """Write tables, ledger, study.json and pages of what is done into the study's directory."""
    directory, roles = context.directory, context.recipe.roles
    with threads(context.n_threads):
        tables = merge_tables(outcome.done, context)
        if roles:
            tables["claims"] = judge_claims(tables, roles, as_published=as_published(context))
            tables |= {"factorial": found} if len(found := factorial(tables, roles)) else {}
    for name, table in tables.items():
        write_table(table, directory, name)
    record = describe_study(outcome, context, command)
    atomic_write(directory / RECORD, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    if tables:
        write_effects(directory)
        write_report(directory)
    if "feature_atlas" in tables:
        write_atlas(directory, directory / ATLAS)


def as_published(context: Context) -> frozenset[str]:
    """The models that are trained by the package's own recipe of their name, with nothing of it changed."""
    known = set(recipe_names())
    return frozenset(own.name for own in context.trainings if own.name in known and own == load_recipe(own.name))


def with_seeds(overrides: Mapping[str, Any] | None, seeds: int | None) -> dict[str, Any]:
    """The settings replaced, the number of seeds among them where one is given."""
    return dict(overrides or {}) | ({} if seeds is None else {"n_seeds": seeds})


def describe_study(outcome: Outcome, context: Context, command: str) -> dict[str, Any]:
    """What study.json says: the page's headline, its models, where and how it ran, notes."""
    recipe, own, jobs = context.recipe, context.trainings[0], outcome.done
    feed = read_feed(own, context.cache)
    return {
        "title": recipe.title or recipe.name,
        "command": command or f"workbench.study({recipe.name!r}, seeds={recipe.n_seeds})",
        "models": [_describe_model(job, context) for job in jobs if job.kind == "train"],
        "corpus": (
            f"{own.data.source}: {feed.train.n_tokens:,} tokens to train on, {feed.held_out.n_tokens:,} held out "
            f"{'by document' if (split := own.data.held_out_split) is None else f'as its split {split}'}, vocabulary "
            f"{feed.train.d_vocab:,}"
        ),
        "device": device_name(context),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version()} | {n: importlib.metadata.version(n) for n in _VERSIONS},
        "roles": dict(recipe.roles),
        "notes": [*notes(context), *notes_of_failure(outcome)],
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


def notes_of_failure(outcome: Outcome) -> list[str]:
    """Sentences about what is missing from the page."""
    said = [f"{ended.task.job.name} failed: {ended.error}." for ended in outcome.failed]
    if outcome.left:
        said.append(f"Not begun, for expected of what failed: {', '.join(job.name for job in outcome.left)}.")
    return said


def notes(context: Context) -> list[str]:
    """Sentences that a reader of the page needs beside its figures."""
    recipe, own = context.recipe, context.trainings[0]
    n_steps, s = sum(phase.n_steps for phase in own.phases), "s" * (own.model.n_layers > 1)
    said = [
        f"{own.name} has {own.model.n_layers} layer{s} of width {own.model.d_model} and was trained for {n_steps:,} "
        "steps. Where sizes, steps and text differ from the papers’, a finding not seen here is not refuted there."
    ]
    if recipe.roles:
        said.append(
            "The ledger’s layers correspond to the published models’ by (layer + 1) / layers. A verdict asks for a "
            "95 % interval, over three or more seeds or the measure’s own: “not seen” where it holds zero, or what "
            "seeds of one model give where that is known, “reversed” on the other side of zero than the published "
            "effect, “reproduced” on its side with at least half of its size over three or more seeds, else “same "
            "direction”; “not enough seeds” where there is no interval."
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


def device_name(context: Context) -> str:
    """The device in words, for the page."""
    if context.device.startswith("cuda"):
        return torch.cuda.get_device_name(context.device)
    n = context.n_threads
    return f"{context.device}, {n} thread{'s' if n > 1 else ''}"
