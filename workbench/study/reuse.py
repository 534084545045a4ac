"""Finished jobs known by their content: a hash of all that a job's result follows from, and where such a job lies.

    hash = SHA-256 of (kind, models and seeds, its settings, the hashes of the jobs it needs, the fingerprint of the
    source that makes it, package version)

of a training also its whole recipe, its tokenizer, and the bytes of its text where that is local. Device and number
of threads are not part of it: a job says what is asked for, its env.json where it was done.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench.analyses import find_analysis
from workbench.data.corpus import TextSource, local_files
from workbench.data.tokenizer import open_tokenizer
from workbench.runs import atomic_write, publish, read_settings, sha256_file, verify_manifest
from workbench.study.fingerprint import fingerprint, pages_fingerprint, training_fingerprint
from workbench.study.jobs import TRAIN, Context, PlannedJob
from workbench.study.measuring import identify_settings

RECORD = "jobs.json"
RECORD_FORMAT = "workbench-jobs/2"
PACKAGE = "prescriptive-workbench"
COPY = ".copy"  # end of the name of a directory that is being copied


def content_hashes(jobs: Sequence[PlannedJob], context: Context) -> dict[str, str]:
    """Name of a job -> its content hash, 64 hexadecimal digits. Jobs stand behind those they need."""
    hashes: dict[str, str] = {}
    for job in jobs:
        is_training = job.kind == TRAIN
        training = context.training(job.model) if is_training else None
        source = fingerprint(find_analysis(job.kind)) if training is None else training_fingerprint(training)
        content: dict[str, Any] = {
            "kind": job.kind,
            "models": [list(model) for model in job.models],
            "settings": {} if is_training else identify_settings(context.recipe.settings_of(job.kind)),
            "needs": [hashes[name] for name in job.needs],
            "source": source,
            "version": importlib.metadata.version(PACKAGE),
        }
        if not job.needs:
            content |= _read_from_outside(job, context)
        text = json.dumps(content, sort_keys=True, ensure_ascii=False)
        hashes[job.name] = hashlib.sha256(text.encode()).hexdigest()
    return hashes


def _read_from_outside(job: PlannedJob, context: Context) -> dict[str, Any]:
    """The recipe of a job's model, and digests of what it names: local text, and the tokenizer."""
    recipe = context.training(job.model)
    own = open_tokenizer(recipe.data.tokenizer)  # with what begins a text, as its files say
    tokenizer = hashlib.sha256(f"{own.backend_tokenizer.to_str()}\n{own.eos_token_id}".encode()).hexdigest()
    dump = recipe.model_dump(mode="json", exclude={"description": True, "model": {"device"}})
    return {"recipe": dump, "text": digest_of_text(recipe.data.text), "tokenizer": tokenizer}


def digest_of_text(text: TextSource) -> str:
    """SHA-256 over the names and bytes of a local text's files; "" for a text known by its name alone."""
    files, folder = local_files(text), Path(text.source).expanduser().parent
    if not files:
        return ""
    lines = [f"{file.relative_to(folder).as_posix()} {sha256_file(file)}\n" for file in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def read_record(directory: Path) -> dict[str, str]:
    """Name of each finished job of a study -> its content hash; empty where there is no jobs.json.

    Raises:
        ValueError: a jobs.json that is not ours.
    """
    return _read_file(directory)["jobs"]


def read_pages_record(directory: Path) -> str:
    """The fingerprint of what drew a study's pages; nothing where they were not drawn."""
    return str(_read_file(directory).get("pages", ""))


def _read_file(directory: Path) -> dict[str, Any]:
    file = directory / RECORD
    if not file.is_file():
        return {"jobs": {}}
    try:
        record = json.loads(read_settings(file, "jobs", "a study's record of its jobs"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"jobs: {file} cannot be read ({error}); expected the file that a study wrote") from None
    jobs = record.get("jobs") if isinstance(record, dict) and record.get("format") == RECORD_FORMAT else None
    if not isinstance(jobs, dict) or not all(isinstance(own, str) for own in jobs.values()):
        raise ValueError(f'jobs: {file} has another format; expected "format": "{RECORD_FORMAT}"')
    return record


def write_record(directory: Path, hashes: Mapping[str, str]) -> None:
    """Write a study's jobs.json: which jobs are done, and with what content."""
    _write_file(directory, {"jobs": dict(sorted(hashes.items()))})


def write_pages_record(directory: Path) -> None:
    """Note in a study's jobs.json what its pages are drawn by."""
    _write_file(directory, {"jobs": read_record(directory), "pages": pages_fingerprint()})


def _write_file(directory: Path, record: Mapping[str, Any]) -> None:
    atomic_write(directory / RECORD, json.dumps({"format": RECORD_FORMAT} | dict(record), indent=1) + "\n")


def find_elsewhere(directories: Sequence[Path], hashes: Mapping[str, str]) -> dict[str, Path]:
    """Content hash -> the directory of a finished job of that content in another study; the first of several.

    Raises:
        ValueError: a directory that is no study's.
    """
    found: dict[str, Path] = {}
    wanted = set(hashes.values())
    for directory in directories:
        if not (directory / RECORD).is_file():
            raise ValueError(f"reuse: {directory} has no {RECORD}; expected the directory of a study")
        for name, content in read_record(directory).items():
            inside = (directory / name).resolve().is_relative_to(directory.resolve())
            if content in wanted and inside and (directory / name).is_dir():
                found.setdefault(content, directory / name)
    return found


def copy_job(source: Path, path: Path) -> None:
    """Make `path` a whole, verified copy of the finished job in `source`.

    Raises:
        ValueError: files of the source are altered (the first is named).
    """
    copy = path.with_name(path.name + COPY)
    shutil.rmtree(copy, ignore_errors=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source, copy, symlinks=True)
    verify_manifest(copy)
    publish(copy, path)


def remove_job(path: Path) -> None:
    """Remove a job's directory, finished or not."""
    for directory in (path, path.with_name(path.name + ".partial")):
        if directory.exists():
            shutil.rmtree(directory)
