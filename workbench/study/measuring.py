"""One analysis on its models, into one run directory: what the verb, the Python function and a study's job share.

All three read the same text by the same rule (`workbench.data.text_windows`) with the same seed, the training's own, so
that their rows are the same.
"""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from reports.tables import find_tables, read_table, write_table
from workbench.extend import Analysis, Job, Merged, Settings, Subject, Tables
from workbench.runs import open_run, sha256_file

Show = Callable[[str], AbstractContextManager[Callable[[float], None]]]


@dataclass(frozen=True)
class Request:
    """What a person asks for, in a verb or in Python."""

    analysis: Analysis
    settings: Settings
    sources: tuple[Any, ...] = ()
    """models: what --ckpt takes, or models that are loaded already"""
    recipe: Any = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """settings of the recipe to replace, as paths"""
    n_seeds: int = 1
    needs: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)
    seed: int | None = None
    device: str = "auto"
    dtype: str | None = None
    tokens: Any = None
    """to read instead of the text"""
    cache: Path | None = None
    steps: tuple[range, ...] = ()
    """of a training of ours, whose checkpoints there are measured: each of these ranges holds one at least"""
    revisions: tuple[str, ...] = ()
    """of a hub's repository, which are measured; with either, `workbench.study.over_training` does it"""


def measure(request: Request, out: str | Path, *, resume: bool = False, show: Show | None = None) -> Path:
    """The run directory `out`, with every table of the analysis.

    Raises:
        ValueError: models that the analysis does not hold for, text that cannot be read, a directory in the way, and
            what the analysis itself refuses; before a directory is made where that can be known.
    """
    jobs = list(make_jobs(request))
    for job in jobs:
        check(request.analysis, job)
    record = {
        "verb": request.analysis.name,
        "models": [describe_job(job) for job in jobs],
        "settings": identify_settings(request.settings),
    }
    device = jobs[0].device
    with open_run(out, record, resume=resume, device=device, seed=jobs[0].seed) as run:
        if not run.is_complete:
            parts = []
            for job in jobs:
                own = run.path if len(jobs) == 1 else run.path / "-".join(_names(job))
                own.mkdir(exist_ok=True)
                with (show or _unshown)(f"{request.analysis.name} of {', '.join(_names(job))}") as tell:
                    parts.append((own, measure_job(request.analysis, job.within(own, tell))))
                    tell(1.0)
                if not any(own.iterdir()):
                    own.rmdir()
            configs = {subject.name: subject.model.cfg for job in jobs for subject in job.models}
            tables = join_tables([tables for _, tables in parts])
            if max(sum(len(job.models) for job in jobs), len(jobs)) > 1 and request.analysis.merge is not None:
                directories = tuple(directory for directory, _ in parts)
                merged = Merged(dict(tables), request.settings, directories, run.path, configs)
                tables = {**tables, **request.analysis.merge(merged)}
            for name, table in tables.items():
                write_table(table, run.path, name)
            if request.analysis.page is not None:
                request.analysis.page(run.path, run.path / f"{request.analysis.name}.html")
    return run.out


def measure_job(analysis: Analysis, job: Job) -> Tables:
    """The tables of one job, each one that the record knows."""
    tables = analysis.measure(job)
    unknown = sorted(set(tables) - {table.name for table in analysis.tables})
    if unknown:
        raise ValueError(f"{analysis.name}: got the table {unknown[0]!r}; expected those that the analysis declares")
    return tables


def check(analysis: Analysis, job: Job) -> None:
    """Raise ValueError for a job that the analysis does not hold for, or refuses."""
    configs = [subject.model.cfg for subject in job.models]
    if job.recipe is not None:
        from workbench.training.recipe import phase_model

        configs = [phase_model(job.recipe, -1)]
    if reason := analysis.requires(*configs):
        raise ValueError(f"{analysis.name}: {', '.join(_names(job))} {reason}")
    if analysis.check is not None:
        analysis.check(job)


def join_tables(parts: Sequence[Tables]) -> dict[str, pd.DataFrame]:
    """The rows of all jobs, one below the other, by table."""
    rows: dict[str, list[pd.DataFrame]] = {}
    for tables in parts:
        for name, table in tables.items():
            rows.setdefault(name, []).append(table)
    return {name: pd.concat(own, ignore_index=True) for name, own in rows.items()}


# --- jobs of a request


def make_jobs(request: Request) -> Iterator[Job]:
    """The jobs that a request means: one for each model, or one of all."""
    from workbench.models.load import load, resolve_devices

    analysis, device = request.analysis, resolve_devices(request.device)[0]
    common: dict[str, Any] = {"settings": request.settings, "directory": Path(), "cache": request.cache}
    common |= {"device": device}
    if analysis.takes == "recipe":
        from workbench.training.recipe import apply_overrides, load_recipe

        own = apply_overrides(load_recipe(request.recipe), request.overrides)
        for seed in range(request.n_seeds):
            yield Job((), seed=seed, recipe=own, **common)
        return
    if analysis.takes == "pair" and len(request.sources) != 2:
        raise ValueError(f"{analysis.name}: got {len(request.sources)} models; expected two")
    models = [
        load(own, request.device, request.dtype) if isinstance(own, str | Path) else own for own in request.sources
    ]
    subjects = name_subjects(request.sources, models, request.seed)
    groups = [(subject,) for subject in subjects] if analysis.takes == "model" else [tuple(subjects)]
    for name in analysis.needs:
        if (n := len(request.needs.get(name, ()))) != len(subjects):
            raise ValueError(
                f"{analysis.name}: got {n} directories of {name} for {len(subjects)} models; expected one each"
            )
    for i, group in enumerate(groups):
        needs = {name: own[i : i + 1] if len(groups) > 1 else own for name, own in request.needs.items()}
        seed = own_seed(analysis, group[0].seed) if request.seed is None else request.seed
        yield Job(group, seed=seed, needs=needs, given_tokens=request.tokens, **common)


def own_seed(analysis: Analysis, trained_with: int) -> int:
    """The seed of everything random, unless another is asked for."""
    return 0 if analysis.has_common_seed else trained_with


def name_subjects(sources: Sequence[Any], models: Sequence[Any], seed: int | None) -> list[Subject]:
    """The models as rows name them: by the name in their configuration, which of a run of ours is its recipe's, and
    their training's seed (else `seed`, else 0); where two would look alike, all by their paths."""
    from workbench.models.checkpoint import at_revision, training_config

    found = []
    for source, model in zip(sources, models, strict=True):
        path = str(source) if isinstance(source, str | Path) else ""
        trained = training_config(Path(at_revision(path)[0])) if path else {}
        found.append(Subject(model, model.cfg.model_name, int(trained.get("seed", seed or 0)), path))
    if len({(own.name, own.seed) for own in found}) < len(found):
        found = [replace(own, name=own.source or own.name) for own in found]
    if len({(own.name, own.seed) for own in found}) < len(found):
        found = [replace(own, name=f"{own.name} {i}") for i, own in enumerate(found, 1)]
    return found


def _names(job: Job) -> list[str]:
    if not job.models:
        return [f"{job.recipe.name}-seed{job.seed}"]
    return [f"{Path(own.name).name}-seed{own.seed}" for own in job.models]


# --- what a run directory says of itself


def describe_job(job: Job) -> dict[str, Any]:
    """What a job's rows follow from, beside the settings."""
    from workbench.models.weights import weights_sha256

    said: dict[str, Any] = {
        "names": [own.name for own in job.models],
        "seeds": [own.seed for own in job.models],
        "sources": [own.source for own in job.models],
        "weights_sha256": [weights_sha256(own.model) for own in job.models],
        "seed": job.seed,
    }
    if job.recipe is not None:
        said["recipe"] = job.recipe.model_dump(mode="json", exclude={"model": {"device"}})
    if hasattr(job.settings, "n_bytes"):
        said["text"] = hashlib.sha256("\0".join(job.texts).encode()).hexdigest()
    elif hasattr(job.settings, "n_ctx") and job.models:
        said["tokens"] = hashlib.sha256(job.tokens.numpy().tobytes()).hexdigest()
    for name, directories in job.needs.items():
        said[name] = [identify_path(directory) for directory in directories]
    return said


def identify_settings(settings: Settings) -> dict[str, Any]:
    """The settings as JSON; of a file what is in it, so that the same name with another content is another setting."""
    dump = settings.model_dump(mode="json")
    for name, value in settings:
        several = value if isinstance(value, tuple) else (value,)
        if any(isinstance(own, Path | str) for own in several):
            found = [_identify(own) for own in several]
            dump[name] = found if isinstance(value, tuple) else found[0]
    return dump


def _identify(value: Any) -> Any:
    """A path by what is there; so too a text that names a file in place of something built in, such as a task's."""
    if isinstance(value, Path) or (isinstance(value, str) and value.endswith((".toml", ".jsonl"))):
        return identify_path(Path(value))
    return value


def identify_path(path: Path) -> str:
    """The digest of a file, or of the manifest of a directory that has one; else the name."""
    files = [file for file in (path, path / "manifest.json") if file.is_file()]
    return sha256_file(files[0]) if files else str(path)


# --- in Python


def make_function(analysis: Analysis) -> Callable[..., dict[str, pd.DataFrame]]:
    """The Python function of an analysis: models, or what names them, in; tables by name out."""

    def run(
        *models: Any,
        tokens: Any = None,
        needs: Mapping[str, Sequence[str | Path]] | None = None,
        out: str | Path | None = None,
        seed: int | None = None,
        device: str = "auto",
        resume: bool = False,
        **settings: Any,
    ) -> dict[str, pd.DataFrame]:
        own = analysis.settings.model_validate(settings)
        read = {name: tuple(map(Path, directories)) for name, directories in (needs or {}).items()}
        recipe = models[0] if analysis.takes == "recipe" else None
        sources = () if analysis.takes == "recipe" else models
        request = Request(
            analysis, own, sources, recipe=recipe, needs=read, seed=seed, device=device, tokens=tokens
        )  # fmt: skip
        with contextlib.ExitStack() as stack:
            if out is None:
                out = Path(stack.enter_context(tempfile.TemporaryDirectory())) / analysis.name
            path = measure(request, out, resume=resume)
            return {name: read_table(path, name) for name in find_tables(path)}

    fields = analysis.settings.model_fields.items()
    run.__name__ = run.__qualname__ = analysis.python_name
    run.__doc__ = "\n".join(
        [
            f"{analysis.summary}\n\n    Args:",
            "        models: loaded models, or what --ckpt takes.",
            "        tokens: integers [n_sequences, n_ctx] to read instead of the text that the settings name.",
            *(f"        {name}: {field.description}." for name, field in fields),
        ]
    )
    return run


@contextlib.contextmanager
def _unshown(label: str) -> Iterator[Callable[[float], None]]:
    yield lambda share: None
