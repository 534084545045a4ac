"""Run directories: one job writes one directory, as `<out>.partial`, and it is renamed to `<out>` when it is whole.

    with runs.open_run("runs/control", config, resume=False, seed=0) as run:
        if not run.is_complete:
            ...                                   # write under run.path

A whole directory holds `config.toml`, `env.json`, `manifest.json` (sha256 and bytes of every other file) and the job's
own files. A killed or failed job leaves `<out>.partial` as it was; nothing else ever carries the name `<out>`.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import time
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import tomli_w

from workbench.runs.environment import describe_environment
from workbench.runs.files import TEMPORARY, TEMPORARY_DIRECTORY, atomic_write, naming, sync
from workbench.runs.lock import locked
from workbench.runs.manifest import MANIFEST, verify_manifest, walk_files, write_manifest
from workbench.runs.settings import CONFIG, read_config, shorten

ENV = "env.json"


@dataclass(frozen=True)
class Run:
    """An open run: where to write, and what was found there."""

    path: Path
    """directory to write in: `<out>.partial`, or `<out>` itself if is_complete"""
    out: Path
    """the name that the directory gets when it is whole"""
    is_complete: bool
    """True only with resume: `<out>` was whole already, with this config and an intact manifest; write nothing"""
    is_resumed: bool
    """True if `<out>.partial` was there before"""


@contextlib.contextmanager
def open_run(
    out: str | os.PathLike[str],
    config: Mapping[str, Any] | Any,
    *,
    resume: bool = False,
    device: str = "cpu",
    seed: int = 0,
) -> Iterator[Run]:
    """A `Run` to write in, renamed to `out` on normal exit; on an exception the partial directory stays as it is, and
    goes if nothing was written into it.

    config: a mapping (nested; None is dropped, paths become strings) or a pydantic model, written as config.toml.
    device, seed: only recorded, in env.json.

    Raises ValueError if `out` exists (unless resume), if a partial directory exists (unless resume), if resume finds
    another config (the first key that differs is named) or an altered whole directory, and if another process has it.
    """
    out = _absolute(out)
    partial = _partial(out)
    resolved = _as_toml(config)
    with locked(out):
        if out.exists() or out.is_symlink():
            if not resume:
                raise ValueError(f"out: {out} already exists; expected a new directory, or --resume")
            _check_same_config(out, resolved)
            verify_manifest(out)
            yield Run(path=out, out=out, is_complete=True, is_resumed=False)
            return
        is_resumed = _prepare(partial, resolved, resume)
        clock, started = time.monotonic(), datetime.now(UTC)
        try:
            with naming(partial):
                yield Run(path=partial, out=out, is_complete=False, is_resumed=is_resumed)
        except BaseException:
            if not is_resumed and [path.name for path in partial.iterdir()] == [CONFIG]:
                shutil.rmtree(partial)  # refused before it began: an empty directory would only be in the way
            raise
        env = describe_environment(device) | {
            "seed": seed,
            "started": started.isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - clock, 3),
            "resumed": is_resumed,
        }
        with naming(partial):
            atomic_write(partial / ENV, json.dumps(env, indent=2) + "\n")
            write_manifest(partial)
            publish(partial, out)


def publish(partial: Path, out: Path) -> None:
    """Rename the directory `partial` to `out`, all of it synced to the disk and readable by everyone who may list it.

    Raises ValueError if `out` exists: rename(2) would silently take the place of an empty directory.
    """
    mode = partial.stat().st_mode & 0o666
    for path in partial.rglob("*"):
        if path.is_file() and path.stat().st_mode & 0o666 != mode:
            path.chmod(mode)  # safetensors (0.8) writes files that only their owner may read
        sync(path)
    sync(partial)
    if out.exists():
        raise ValueError(f"out: {out} was made by another process meanwhile; the finished directory is {partial}")
    partial.rename(out)
    sync(out.parent)


def reopen(out: str | os.PathLike[str], config: Mapping[str, Any] | Any) -> Path:
    """Make the whole run directory `out` an unfinished one again and return its new name, `<out>.partial`.

    config: what it is to be continued with, as `open_run` takes it; must be the one that it was made with.

    `open_run` with resume=True then continues it. The rename is the first step, so that a kill leaves either the whole
    directory or one that `open_run` continues.

    Raises ValueError if `out` is not whole or is altered (as `verify_manifest`), has another config, lies in another
    finished run, or is being written by another process, and if `<out>.partial` exists.
    """
    out = _absolute(out)
    partial = _partial(out)
    with locked(out):
        if partial.exists() or partial.is_symlink():
            raise ValueError(f"out: {partial} is an unfinished run; expected none beside the finished {out}")
        _check_outside_runs(out)
        verify_manifest(out)
        _check_same_config(out, _as_toml(config))
        out.rename(partial)
        sync(out.parent)
        for name in (MANIFEST, ENV):
            (partial / name).unlink(missing_ok=True)
        sync(partial)
    return partial


# --- entering


def _partial(out: Path) -> Path:
    return out.with_name(out.name + ".partial")


def _absolute(out: str | os.PathLike[str]) -> Path:
    text = os.fspath(out)
    path = Path(os.path.abspath(text))  # noqa: PTH100  (normalises "..", and unlike resolve() keeps links)
    if not text or "\0" in text or not path.name:
        raise ValueError(f"out: {text!r} names no directory; expected a path to a new directory")
    if path.suffix in {".partial", ".lock"}:
        raise ValueError(f"out: {text} ends in {path.suffix}; expected the run's own name, without it")
    for parent in path.parents:
        if parent.exists() or parent.is_symlink():
            if not parent.is_dir():
                what = "file" if parent.exists() else "link that leads nowhere"
                raise ValueError(f"out: {parent} is a {what}; expected a directory there")
            break
    if not path.exists():
        _check_outside_runs(path)
    return path


def _check_outside_runs(path: Path) -> None:
    whole = (p for p in path.parents if all((p / name).is_file() for name in (CONFIG, ENV, MANIFEST)))
    if run := next(whole, None):
        raise ValueError(
            f"out: {path} lies in {run}, a finished run that its manifest seals; expected a place outside it"
        )


def _prepare(partial: Path, resolved: dict[str, Any], resume: bool) -> bool:
    """Whether the partial directory was there; made, with its config.toml, if not."""
    if partial.is_symlink() or (partial.exists() and not partial.is_dir()):
        raise ValueError(f"out: {partial} is not a directory; expected none there, or an unfinished run's")
    if partial.is_dir():
        if not resume:
            raise ValueError(f"out: {partial} is an unfinished run; expected --resume, or remove it")
        # remove unfinished writes that a kill left; records here are of an earlier attempt to finish, or of `reopen`
        for path in list(partial.rglob("*")):
            if TEMPORARY_DIRECTORY.match(path.name) and path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
        for name, path in list(walk_files(partial, with_manifest=True)):
            if name in (MANIFEST, ENV) or TEMPORARY.match(path.name):
                path.unlink()
        if (partial / CONFIG).exists():
            _check_same_config(partial, resolved)
            return True
        if any(partial.iterdir()):
            raise ValueError(f"out: {partial} has no {CONFIG}; expected an unfinished run's directory")
    partial.mkdir(exist_ok=True)
    try:
        atomic_write(partial / CONFIG, tomli_w.dumps(resolved))
        sync(partial.parent)
    except BaseException:
        # of a full disk: nothing was begun, so nothing may be left to resume or to remove
        (partial / CONFIG).unlink(missing_ok=True)
        partial.rmdir()
        raise
    return False


def _as_toml(config: Mapping[str, Any] | Any) -> dict[str, Any]:
    """The config as it reads back from TOML: None dropped, tuples as lists, paths as posix strings."""
    dump = getattr(config, "model_dump", None)
    if callable(dump):
        config = dump(mode="json")
    if not isinstance(config, Mapping):
        raise ValueError(f"config: a {type(config).__name__}; expected a mapping or a pydantic model")
    return tomllib.loads(tomli_w.dumps(_plain(config, "")))


def _plain(value: Any, key: str) -> Any:
    if isinstance(value, Mapping):
        for name in value:
            if not isinstance(name, str):
                raise ValueError(f"config: key {name!r} in [{key}] is a {type(name).__name__}; expected a string")
        return {k: _plain(v, f"{key}.{k}".lstrip(".")) for k, v in value.items() if v is not None}
    if isinstance(value, list | tuple):
        return [_plain(v, f"{key}[{i}]") for i, v in enumerate(value)]
    if isinstance(value, os.PathLike):
        return Path(value).as_posix()
    if isinstance(value, bool | int | float | str):
        return value
    raise ValueError(f"config: {key} is a {type(value).__name__}; expected a string, number, bool, list or table")


def _check_same_config(directory: Path, resolved: dict[str, Any]) -> None:
    if not directory.is_dir() or directory.is_symlink():
        raise ValueError(f"out: {directory} is not a directory; expected a run directory to resume")
    if difference := _first_difference(read_config(directory), resolved, ""):
        key, old, new = difference
        found, wanted = f"{shorten(old)} in {directory / CONFIG}", shorten(new)
        raise ValueError(f"resume: {shorten(key)} is {found}, got {wanted}; expected the same settings")


def _first_difference(old: Any, new: Any, key: str) -> tuple[str, str, str] | None:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in [*old, *(k for k in new if k not in old)]:
            inner = f"{key}.{name}".lstrip(".")
            if name not in old or name not in new:
                return inner, repr(old.get(name, "absent")), repr(new.get(name, "absent"))
            if difference := _first_difference(old[name], new[name], inner):
                return difference
        return None
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = enumerate(zip(old, new, strict=True))
        return next((d for i, (a, b) in pairs if (d := _first_difference(a, b, f"{key}[{i}]"))), None)
    both_nan = isinstance(old, float) and isinstance(new, float) and math.isnan(old) and math.isnan(new)
    same = old == new and isinstance(old, bool) == isinstance(new, bool)
    return None if same or both_nan else (key, repr(old), repr(new))
