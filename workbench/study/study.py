"""A study, end to end: its models trained, each opened by every analysis, one page and one atlas of what came out."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from reports.atlas import write_atlas
from reports.heads import write_heads
from reports.page import write_report
from reports.study import AT
from reports.tables import write_table
from workbench.analyses import figures_of_tables, loaded_plugins
from workbench.models.load import load, resolve_device
from workbench.runs import ENV, atomic_write, open_run, read_config, read_json, sha256_file
from workbench.runs.directory import reopen
from workbench.study.claim_checks import collect_checked
from workbench.study.claims import judge_claims
from workbench.study.effects import write_effects
from workbench.study.executors import Executor, InProcess, Outcome, Show, run_jobs, threads
from workbench.study.factorial import factorial
from workbench.study.findings import write_findings
from workbench.study.fingerprint import pages_fingerprint
from workbench.study.jobs import TRAIN, Context, PlannedJob, left_out, plan_jobs
from workbench.study.merge import merge_tables
from workbench.study.recipe import StudyRecipe, load_study
from workbench.study.reuse import RECORD as RECORD_OF_JOBS
from workbench.study.reuse import content_hashes, read_pages_record, read_record, write_pages_record
from workbench.study.sizes import check_sizes, judge_sizes, largest_size, notes_on_sizes
from workbench.study.tabulate import tabulate_run
from workbench.training.recipe import Recipe, load_recipe, recipe_names
from workbench.training.training_data import open_feed

ATLAS, RECORD = "atlas.html", "study.json"
EXECUTORS = ("in-process", "processes", "ray")
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
    claims: Sequence[str | Path] | str | Path | None = None,
    executor: str = "in-process",
    n_jobs: int | None = None,
    ray_address: str | None = None,
    n_threads: int | None = None,
    command: str = "",
    show: Show | None = None,
) -> Path:
    """The study's directory: report.html, heads.html where there are attention heads, atlas.html where there are
    features, study.json, every table merged over models and seeds, and each job's own run directory
    (`models/<name>-seed<k>/`, `saes/…`, `ablation/…` and so on).

    Args:
        recipe: a study's name or TOML file; by default Control and Adaptive nano on the embedded text.
        out: directory that must not exist yet (unless resume).
        seeds: how many times each model is trained, with seeds 0, 1, …; the recipe's n_seeds by default.
        device: "auto" (CUDA where there is one), or a torch device.
        resume: continue an unfinished study; its finished jobs are verified and kept.
        overrides: settings to replace, as `load_study` takes them.
        cache: where packed tokens are kept; the user's cache by default.
        reuse: directories of other studies; their finished jobs of the same content are copied.
        executor: "in-process"; "processes": several jobs at once on this machine, begun from a module that can be
            imported (a script says `if __name__ == "__main__":`); "ray": the same, or on the cluster at ray_address.
        n_jobs: jobs at once of "processes"; by default as many as there are CPUs for, or one on a GPU.
        claims: TOML files of claims that the ledger judges beside the published ones; the recipe's by default. Where
            one has changed, resume draws a finished study's ledger and pages anew.
        n_threads: CPU threads per job, on which float32 sums depend; torch's own choice by default.
        command: the command that was typed, for the report.
        show: draws progress: takes a label, returns a context manager whose function takes the share done.

    Raises:
        ValueError: a wrong recipe, setting, device, executor or file of claims; a directory in the way; no study in
            reuse.
        JobsFailed: (a ValueError) jobs failed, and those that need them were not started; the others are done, and a
            report of them is in `<out>.partial`. resume tries again.
        Interrupted: a training was interrupted and its state saved; resume continues.
    """
    settings = load_study(recipe, with_given(overrides, seeds, claims))
    collect_checked(settings)
    device = resolve_device(device)
    if n_threads is not None and n_threads < 1:
        raise ValueError(f"threads: got {n_threads}; expected at least 1")
    jobs, trainings = plan_jobs(settings), tuple(settings.train_recipes())
    check_sizes(settings, trainings)
    config = describe_config(settings)
    context = Context(
        settings, trainings, Path(out), device, None if cache is None else Path(cache),
        n_threads or torch.get_num_threads(), loaded_plugins(),
    )  # fmt: skip
    if resume and (Path(out) / RECORD_OF_JOBS).is_file() and is_outdated(Path(out), jobs, context):
        reopen(out, config)
    with open_run(out, config, resume=resume, device=device) as run:
        if run.is_complete:
            return run.out
        context = replace(context, directory=run.path)
        with contextlib.closing(make_executor(executor, context, len(jobs), n_jobs, ray_address, show)) as engine:
            outcome = run_jobs(jobs, context, engine, as_paths(reuse))
        try:
            if outcome.done:
                write_pages(outcome, context, command)
        finally:  # what failed is said, whatever becomes of the page without it
            outcome.check()
    return run.out


def describe_config(settings: StudyRecipe) -> dict[str, Any]:
    """What a study's config.toml says."""
    # so that studies from before there were any can be resumed
    absent = {name for name in ("claims", "sizes") if not getattr(settings, name)}
    return {"verb": "study", "recipe": settings.model_dump(mode="json", exclude=absent)}


def is_outdated(directory: Path, jobs: Sequence[PlannedJob], context: Context) -> bool:
    """Whether a finished study's jobs or pages follow from other definitions or claims than today's."""
    judged = read_json(directory / RECORD, "study", "the record that a study wrote").get("claims", {})
    if judged != digests(context.recipe) or read_pages_record(directory) != pages_fingerprint():
        return True
    return read_record(directory) != content_hashes(jobs, context)


def digests(recipe: StudyRecipe) -> dict[str, str]:
    """File of claims -> SHA-256 of its bytes."""
    return {file: sha256_file(file) for file in recipe.claims}


def tabulate_study(directory: str | Path) -> list[str]:
    """Make the tables of a finished study again from what its jobs keep, without a model; then what follows from them:
    merged tables, effects, ledger and pages. Returns the names of the tables of its jobs that were made.

    Raises:
        ValueError: a directory that is no finished study's, or was altered.
    """
    directory = Path(directory)
    settings = StudyRecipe.model_validate(read_config(directory)["recipe"])
    record = json.loads((directory / RECORD).read_text(encoding="utf-8"))
    config = describe_config(settings)
    reopen(directory, config)
    with open_run(directory, config, resume=True) as run:
        context = Context(settings, tuple(settings.train_recipes()), run.path, "cpu", n_threads=torch.get_num_threads())
        done = [job for job in plan_jobs(settings) if (run.path / job.name).is_dir()]
        made = [name for job in done if job.kind != TRAIN for name in tabulate_run(run.path / job.name, is_asked=False)]
        write_pages(Outcome(tuple(done), (), ()), context, str(record.get("command", "")))
        kept = {key: record[key] for key in ("device", "created", "versions") if key in record}
        written = json.loads((run.path / RECORD).read_text(encoding="utf-8"))
        atomic_write(run.path / RECORD, json.dumps(written | kept, indent=1, ensure_ascii=False) + "\n")
    return sorted(set(made))


def make_executor(
    name: str, context: Context, n_all: int, n_jobs: int | None, ray_address: str | None, show: Show | None
) -> Executor:
    """The executor of that name, for n_all jobs, n_jobs at once. Raises ValueError for another name, and as `OnRay`."""
    if name not in EXECUTORS:
        raise ValueError(f"executor: got {name!r}; expected one of {', '.join(EXECUTORS)}")
    if ray_address is not None and name != "ray":
        raise ValueError(f"ray_address: got {ray_address!r} with executor {name!r}; expected executor 'ray'")
    if n_jobs is not None and (name != "processes" or n_jobs < 1):
        raise ValueError(f"jobs: got {n_jobs} with executor {name!r}; expected at least 1, with executor 'processes'")
    if name == "in-process":
        return InProcess(context, show)
    if name == "processes":
        from workbench.study.process_pool import ProcessPool

        return ProcessPool(context, n_all, n_jobs, show)
    from workbench.study.on_ray import OnRay

    return OnRay(context, n_all, ray_address, show)


def write_pages(outcome: Outcome, context: Context, command: str) -> None:
    """Write tables, ledger, study.json and pages of what is done into the study's directory."""
    directory, recipe = context.directory, context.recipe
    with threads(context.n_threads):
        tables = merge_tables(outcome.done, context)
        if recipe.roles:
            claims, roles = collect_checked(recipe), recipe.roles_at(largest_size(recipe, context.trainings))
            if recipe.sizes:
                tables |= judge_sizes(tables, recipe, context.trainings, claims)
            else:
                tables["claims"] = judge_claims(tables, roles, claims, as_published(context))
            tables |= {"factorial": found} if len(found := factorial(tables, roles)) else {}
    for name, table in tables.items():
        write_table(table, directory, name)
    write_pages_record(directory)
    record = describe_study(outcome, context, command)
    atomic_write(directory / RECORD, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    if tables:
        write_effects(directory)
        write_findings(directory)
        write_report(directory, figures=figures_of_tables())
        write_heads(directory)
    if "feature_atlas" in tables:
        write_atlas(directory, directory / ATLAS)


def as_published(context: Context) -> frozenset[str]:
    """The models that are trained by the package's own recipe of their name, with nothing of it changed."""
    known = set(recipe_names())
    return frozenset(own.name for own in context.trainings if own.name in known and own == load_recipe(own.name))


def with_given(
    overrides: Mapping[str, Any] | None, seeds: int | None, claims: Sequence[str | Path] | str | Path | None
) -> dict[str, Any]:
    """The settings replaced, the number of seeds and the files of claims among them where they are given."""
    given: dict[str, Any] = {} if seeds is None else {"n_seeds": seeds}
    given |= {} if claims is None else {"claims": [str(file) for file in as_paths(claims)]}
    return dict(overrides or {}) | given


def as_paths(given: Sequence[str | Path] | str | Path) -> list[Path]:
    """One path, or several, as a list."""
    return [Path(path) for path in ([given] if isinstance(given, str | Path) else given)]


def describe_study(outcome: Outcome, context: Context, command: str) -> dict[str, Any]:
    """What study.json says: the page's headline, its models, where and how it ran, notes."""
    recipe, own, jobs = context.recipe, context.trainings[0], outcome.done
    feed = open_feed(own, context.cache)
    return {
        "title": recipe.title or recipe.name,
        "command": command or f"workbench.study({recipe.name!r}, seeds={recipe.n_seeds})",
        "models": [_describe_model(job, context) for job in jobs if job.kind == TRAIN],
        "corpus": (
            f"{own.data.source}: {feed.train.n_tokens:,} tokens to train on, {feed.held_out.n_tokens:,} held out "
            f"{'by document' if (split := own.data.held_out_split) is None else f'as its split {split}'}, vocabulary "
            f"{feed.train.d_vocab:,}"
        ),
        "device": device_name(context),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version()} | {n: importlib.metadata.version(n) for n in _VERSIONS},
        "roles": dict(recipe.roles),
        "claims": digests(recipe),
        "notes": [*notes(context), *notes_of_failure(outcome)],
        "timings": {job.name: _seconds(job, context) for job in jobs},
    }


def _describe_model(job: PlannedJob, context: Context) -> dict[str, Any]:
    model, size = load(context.directory / job.name, "cpu"), context.recipe.size_of(job.model)
    return {
        "name": job.model,
        "recipe": job.model.removesuffix(f"{AT}{size}") if size else job.model,
        **({"size": size} if size else {}),
        "seed": job.seed,
        "n_parameters": model.n_parameters(),
        "n_parameters_no_embedding": model.n_parameters(embeddings=False),
        **{name: getattr(model.cfg, name) for name in ("n_layers", "n_heads", "d_head", "d_model", "n_ctx")},
        "seconds": _seconds(job, context),
    }


def _seconds(job: PlannedJob, context: Context) -> float:
    return float(json.loads((context.directory / job.name / ENV).read_text(encoding="utf-8"))["seconds"])


def notes_of_failure(outcome: Outcome) -> list[str]:
    """Sentences about what is missing from the page."""
    said = [f"{ended.task.job.name} failed: {ended.error}." for ended in outcome.failed]
    if outcome.left:
        said.append(f"Not begun, as they need what failed: {', '.join(job.name for job in outcome.left)}.")
    return said


def notes(context: Context) -> list[str]:
    """Sentences that a reader of the page needs beside its figures."""
    recipe = context.recipe
    trained = " ".join(map(_describe_training, _one_of_each_size(context)))
    said = [
        f"{trained} Where sizes, steps and text differ from the papers’, a finding not seen here is not refuted there."
    ]
    said += notes_on_sizes(recipe, context.trainings)
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
    for analysis in recipe.opened_with():
        said += analysis.notes(recipe.settings_of(analysis.name))
    return said


def _one_of_each_size(context: Context) -> list[Recipe]:
    references = context.recipe.references([own.name for own in context.trainings])
    return [own for own in context.trainings if references[own.name] == own.name]


def _describe_training(own: Recipe) -> str:
    n_steps, s = sum(phase.n_steps for phase in own.phases), "s" * (own.model.n_layers > 1)
    return (
        f"{own.name} has {own.model.n_layers} layer{s} of width {own.model.d_model} and was trained for {n_steps:,} "
        "steps."
    )


def device_name(context: Context) -> str:
    """The device in words, for the page."""
    if context.device.startswith("cuda"):
        return torch.cuda.get_device_name(context.device)
    n = context.n_threads
    return f"{context.device}, {n} thread{'s' if n > 1 else ''}"
