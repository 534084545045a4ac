"""One analysis over training: the checkpoints of a model one after another, in one table with the column `step`.

Each checkpoint is measured into a run directory of its own below `checkpoints/`, as `--ckpt RUN@stepN` alone would be.
So its rows are the same, and a killed run goes on with the checkpoint that it had begun. One model at a time is in
memory.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd

from reports.tables import find_tables, read_table, write_table
from workbench.analyses import find_analysis
from workbench.extend import Analysis
from workbench.models.checkpoint import at_revision, is_training, kept_steps
from workbench.models.config import ModelConfig
from workbench.models.load import load_config, resolve_devices
from workbench.runs import open_run
from workbench.study.measuring import (
    Request,
    Show,
    identify_path,
    identify_settings,
    join_tables,
    measure,
    name_subjects,
    own_seed,
)

CHECKPOINTS = "checkpoints"  # the directory of what each checkpoint gave
# the step in a revision's name: all of it, or what stands behind the word (step1000, stage1-step1000-tokens5B)
_STEP = re.compile(r"(\d{1,12})|.*step[_-]?(\d{1,12})(?![0-9a-z]).*", re.IGNORECASE)


@dataclass(frozen=True)
class Checkpoint:
    """A model at one step of its training."""

    source: str
    """as --ckpt names it"""
    step: int
    revision: str | None
    """of the hub's repository; None of a run of ours"""
    cfg: ModelConfig
    is_ours: bool


@dataclass(frozen=True)
class Followed:
    """A model and those of its checkpoints that are measured, in the order of steps."""

    name: str
    seed: int
    source: str
    checkpoints: tuple[Checkpoint, ...]


def parse_steps(text: str) -> tuple[range, ...]:
    """The ranges of "0,50,100-400", a single step being a range of one; of "all" the range of all steps.

    >>> parse_steps("0,100-400")
    (range(0, 1), range(100, 401))
    """
    if text.strip() == "all":
        return (range(10**12),)
    found = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,12})\s*(?:-\s*(\d{1,12})\s*)?", part)
        if match is None:
            raise ValueError(f"got {text!r:.60}; expected all, or steps and ranges such as 0,50,100-400")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise ValueError(f"got {part.strip()!r}; expected a range that rises")
        found.append(range(first, last + 1))
    return tuple(found)


def choose_steps(run: str, wanted: Sequence[range]) -> list[int]:
    """The steps of a training that the ranges hold, in order.

    Raises:
        ValueError: not a training of ours; a range without any step that it kept.
    """
    if at_revision(run)[0] != run:
        raise ValueError(f"steps: got {run}, a checkpoint; expected the run's directory alone")
    kept = list(kept_steps(Path(run))) if is_training(Path(run)) else []
    if not kept:
        raise ValueError(f"steps: got {run}, which has no checkpoints of a training; expected a run directory of ours")
    for own in wanted:
        if not any(step in own for step in kept):
            got = str(own.start) if len(own) == 1 else f"{own.start}-{own.stop - 1}"
            raise ValueError(f"steps: got {got}; expected steps that {run} kept: {', '.join(map(str, kept))}")
    return [step for step in kept if any(step in own for own in wanted)]


def steps_of_revisions(revisions: Sequence[str]) -> list[int]:
    """The step that each revision's name says, or, where one says none, the place of each in the list, from 0.

    >>> steps_of_revisions(["step1000", "step2000"]), steps_of_revisions(["step1000", "main"])
    ([1000, 2000], [0, 1])

    Raises:
        ValueError: two of one step.
    """
    said = [_STEP.fullmatch(revision) for revision in revisions]
    if not all(said):
        return list(range(len(revisions)))
    steps = [int(own[1] or own[2]) for own in said if own is not None]
    for i, step in enumerate(steps):
        if step in steps[:i]:
            both = f"{revisions[steps.index(step)]}, {revisions[i]}"
            raise ValueError(f"revisions: got {both}, both of step {step}; expected each step once")
    return steps


def follow(request: Request) -> list[Followed]:
    """The models of a request with their checkpoints; no weights are loaded.

    Raises:
        ValueError: neither steps nor revisions, or both; a model that has not what is asked for; checkpoints that
            cannot read one text.
    """
    if bool(request.steps) == bool(request.revisions):
        raise ValueError("steps, revisions: got both or neither; expected one of the two")
    found = []
    for source in map(str, request.sources):
        own = _of_run(source, request.steps) if request.steps else _of_hub(source, request.revisions)
        if request.analysis.reads is not None:
            _check_text(own)
        found.append(own)
    stands = [SimpleNamespace(cfg=own[-1].cfg) for own in found]  # a name is the configuration's
    named = name_subjects([str(source) for source in request.sources], stands, request.seed)
    return [
        Followed(subject.name, subject.seed, subject.source, tuple(own))
        for subject, own in zip(named, found, strict=True)
    ]


def _of_run(run: str, wanted: Sequence[range]) -> list[Checkpoint]:
    sources = {step: f"{run}@step{step}" for step in choose_steps(run, wanted)}
    return [Checkpoint(source, step, None, *load_config(source)) for step, source in sources.items()]


def _of_hub(name: str, revisions: Sequence[str]) -> list[Checkpoint]:
    if at_revision(name)[1] is not None:
        raise ValueError(f"revisions: got {name}, a revision; expected the hub name alone")
    if is_training(Path(name)):
        raise ValueError(f"revisions: got {name}, a run directory of ours; expected a hub name, or --steps")
    steps = steps_of_revisions(revisions)
    # of the first alone: a revision that is not in the cache is fetched when it is its turn
    first = load_config(f"{name}@{revisions[0]}")
    found = [Checkpoint(f"{name}@{own}", step, own, *first) for step, own in zip(steps, revisions, strict=True)]
    return sorted(found, key=lambda own: own.step)


def _check_text(checkpoints: Sequence[Checkpoint]) -> None:
    """Raise ValueError unless all have one vocabulary: a phase on automata has tokens of its own, and no tokenizer."""
    last = checkpoints[-1]
    other = [str(own.step) for own in checkpoints if own.cfg.d_vocab != last.cfg.d_vocab]
    if other:
        same = [str(own.step) for own in checkpoints if own.cfg.d_vocab == last.cfg.d_vocab]
        raise ValueError(
            f"steps: {last.source} has d_vocab = {last.cfg.d_vocab}, and the steps {', '.join(other)} another: they "
            f"cannot read one text; expected some of {', '.join(same)}"
        )


# --- measuring


def measure_over_training(request: Request, out: str | Path, *, resume: bool = False, show: Show | None = None) -> Path:
    """The run directory `out`, with every table of the analysis over all checkpoints.

    Tables that only several models together give (`Analysis.merge`) are not made: the rows of a step are those that
    the step's checkpoint gives alone.

    Raises:
        ValueError: as `follow` and `workbench.study.measuring.measure`.
    """
    analysis, found = request.analysis, follow(request)
    for own in (own for model in found for own in model.checkpoints):
        if reason := analysis.requires(own.cfg):
            raise ValueError(f"{analysis.name}: {own.source} {reason}")
    record = {
        "verb": analysis.name,
        "models": [_describe(request, own) for own in found],
        "settings": identify_settings(request.settings),
    }
    seed = int(record["models"][0]["seed"])
    with open_run(out, record, resume=resume, device=resolve_devices(request.device)[0], seed=seed) as run:
        if not run.is_complete:
            parts = []
            for model, place in zip(found, _directories(found), strict=True):
                for own in model.checkpoints:
                    directory = run.path / CHECKPOINTS / place / f"step_{own.step:08d}"
                    alone = replace(request, sources=(own.source,), steps=(), revisions=())
                    measure(alone, directory, resume=True, show=_at_step(show, own.step))
                    parts.append(_tables(directory, analysis, model, own))
            for name, table in join_tables(parts).items():
                write_table(table, run.path, name, is_over_training=True)
    return run.out


def _describe(request: Request, model: Followed) -> dict[str, Any]:
    """What a model's rows follow from, beside the settings: its weights are named by each checkpoint's own record."""
    seed = own_seed(request.analysis, model.seed) if request.seed is None else request.seed
    revisions = [own.revision for own in model.checkpoints if own.revision is not None]
    return {
        "names": [model.name],
        "seeds": [model.seed],
        "sources": [model.source],
        "steps": [own.step for own in model.checkpoints],
        "revisions": revisions or None,
        "run": identify_path(Path(model.source)),
        "seed": seed,
    }


def _directories(models: Sequence[Followed]) -> list[str]:
    names = [f"{Path(own.name).name}-seed{own.seed}" for own in models]
    return [name if names.count(name) == 1 else f"{name}-{i}" for i, name in enumerate(names)]


def _at_step(show: Show | None, step: int) -> Show | None:
    return None if show is None else lambda label: show(f"{label}, step {step}")


def _tables(directory: Path, analysis: Analysis, model: Followed, own: Checkpoint) -> dict[str, pd.DataFrame]:
    """The tables of a checkpoint's directory, its rows under the model's name and with their step."""
    known = {table.name for table in analysis.tables}
    found = {name: read_table(directory, name) for name in find_tables(directory) if name in known}
    places: dict[str, Any] = {"step": own.step} | ({} if own.revision is None else {"revision": own.revision})
    return {
        name: table.assign(**({"model": model.name} if "model" in table else {}), **places)
        for name, table in found.items()
    }


def over_training(
    analysis: str,
    *sources: str | Path,
    steps: str | None = None,
    revisions: Sequence[str] = (),
    out: str | Path | None = None,
    seed: int | None = None,
    device: str = "auto",
    resume: bool = False,
    **settings: Any,
) -> Mapping[str, pd.DataFrame]:
    """The tables of an analysis over training, by name: those of every checkpoint with the column `step`.

    Args:
        analysis: its name, such as "topology"; one that is `over_training`.
        sources: run directories of ours, or hub names.
        steps: of a run of ours: "all", or steps and ranges that it kept, such as "0,50,100-400".
        revisions: of a hub's repository.
        out: directory to write; by default none stays.
        settings: the analysis's own.

    Raises:
        ValueError: another analysis, and as the verb.
    """
    record = find_analysis(analysis)
    if not record.over_training:
        raise ValueError(f"over_training: got {record.name}; expected an analysis that is over training")
    wanted = () if steps is None else parse_steps(steps)
    own = record.settings.model_validate(settings)
    chosen: dict[str, Any] = {"steps": wanted, "revisions": tuple(revisions), "seed": seed, "device": device}
    request = Request(record, own, sources, **chosen)
    with contextlib.ExitStack() as stack:
        if out is None:
            out = Path(stack.enter_context(tempfile.TemporaryDirectory())) / record.name
        path = measure_over_training(request, out, resume=resume)
        return {name: read_table(path, name) for name in find_tables(path)}
