"""Run directories: one job writes one directory, as `<out>.partial`, and it is renamed to `<out>` when it is whole.

    with runs.open_run("runs/control", config, resume=False, seed=0) as run:
        if not run.is_complete:
            ...                                   # write under run.path

A whole directory holds `config.toml`, `env.json`, `manifest.json` (sha256 and bytes of every other file) and the job's
own files. A killed or failed job leaves `<out>.partial` as it was; nothing else ever carries the name `<out>`.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import re
import secrets
import shutil
import stat
import subprocess
import sys
import time
import tomllib
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import tomli_w

from workbench.encoding import decode_text
from workbench.memory import peak_bytes

CONFIG, ENV, MANIFEST = "config.toml", "env.json", "manifest.json"
MANIFEST_FORMAT = "workbench-manifest/1"
MAX_SETTINGS_BYTES = 64 << 20  # a larger config or manifest is not one of ours: refuse before reading it into memory
MAX_TOML_BYTES = 1 << 20  # what people write: recipes, concepts, prompts, a few pages of text
# what atomic_write makes of files and sae.save_stack of directories, and a kill may leave behind
_TEMPORARY = re.compile(r"^\..+\.[0-9a-f]{8}\.tmp$")
_TEMPORARY_DIRECTORY = re.compile(r"^\..+\.[a-z0-9_]{8}\.(partial|old)$")
_SHA256 = re.compile(r"^[0-9a-f]{64}$")
_PACKAGES = (
    "torch", "numpy", "scipy", "transformer-lens", "tokenizers", "safetensors", "pandas", "pydantic", "plotly",
    "sae-lens", "datasets", "transformers",
)  # fmt: skip


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
    partial = out.with_name(out.name + ".partial")
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
                shutil.rmtree(partial)  # refused before it began: nothing is there to go on with, or to be in the way
            raise
        env = _environment(device) | {
            "seed": seed,
            "started": started.isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - clock, 3),
            "resumed": is_resumed,
        }
        with naming(partial):
            atomic_write(partial / ENV, json.dumps(env, indent=2) + "\n")
            write_manifest(partial)
            publish(partial, out)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Inside the block a write that fails says where: the system knows but a descriptor."""
    try:
        yield
    except OSError as error:
        if error.errno and error.filename is None:
            error.filename = str(path)
        raise
    except Exception as error:
        # of libraries in Rust, safetensors and tokenizers, each in a kind of its own
        if "(os error " in str(error) and not isinstance(error, ValueError):
            raise OSError(f"{path}: {error}") from error
        raise


def publish(partial: Path, out: Path) -> None:
    """Rename the directory `partial` to `out`, all of it synced to the disk and readable by whoever may list it.

    Raises ValueError if `out` exists: rename(2) would silently take the place of an empty directory.
    """
    mode = partial.stat().st_mode & 0o666
    for path in partial.rglob("*"):
        if path.is_file() and path.stat().st_mode & 0o666 != mode:
            path.chmod(mode)  # safetensors (0.8) lets nobody but the owner read what it writes
        _sync(path)
    _sync(partial)
    if out.exists():
        raise ValueError(f"out: {out} was made by someone else meanwhile; the finished directory is {partial}")
    partial.rename(out)
    _sync(out.parent)


def write_manifest(directory: Path) -> dict[str, Any]:
    """The manifest of every file below `directory` except itself, written as manifest.json.

    Form: {"format": "workbench-manifest/1", "files": {relative posix path: {"sha256": hex, "bytes": n}}, "sha256": hex
    of the files as `_seal` writes them}, so that who reads a part of a run still finds every bit altered in it.
    Raises ValueError on a symbolic link, a device or a name that is not UTF-8.
    """
    files = {}
    for name, path in _walk(directory):
        files[name] = _entry(path)
    return _write_manifest(directory, files)


def _write_manifest(directory: Path, files: dict[str, Any]) -> dict[str, Any]:
    manifest = {"format": MANIFEST_FORMAT, "files": files, "sha256": _seal(files)}
    atomic_write(directory / MANIFEST, json.dumps(manifest, indent=2) + "\n")
    return manifest


def _seal(files: dict[str, Any]) -> str:
    """Hex sha256 of the entries as JSON, in their order, without white space."""
    return hashlib.sha256(json.dumps(files, separators=(",", ":")).encode()).hexdigest()


def verify_manifest(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The manifest of a whole run directory, after every file has been read and compared with it.

    Raises ValueError naming the first file that is missing, altered or not in the manifest, a symbolic link, a manifest
    path that leaves the directory, and a manifest that cannot be read or was itself altered.
    """
    directory = Path(path)
    manifest = _read_manifest(directory)
    _compare(directory, manifest["files"], dict(_walk(directory)))
    return manifest


def _entry(file: Path) -> dict[str, Any]:
    return {"sha256": sha256_file(file), "bytes": file.stat().st_size}


def _compare(directory: Path, entries: dict[str, Any], found: dict[str, Path]) -> None:
    """Raise ValueError naming the first file that is not what its entry says; sizes are compared before contents."""
    for name, entry in entries.items():
        if name not in found:
            raise ValueError(f"manifest: {directory / name} is missing; expected {entry['bytes']} bytes")
        n_bytes = found[name].stat().st_size
        if n_bytes != entry["bytes"]:
            raise ValueError(f"manifest: {directory / name} is altered, {n_bytes} bytes; expected {entry['bytes']}")
    for name in found:
        if name not in entries:
            raise ValueError(f"manifest: {directory / name} is not in the manifest; expected only the run's own files")
    for name, entry in entries.items():
        if (sha256 := sha256_file(found[name])) != entry["sha256"]:
            raise ValueError(f"manifest: {directory / name} is altered, sha256 {sha256}; expected {entry['sha256']}")


def verify_files(path: str | os.PathLike[str], wanted: Callable[[str], bool]) -> None:
    """Check those files of a run directory whose relative posix path is `wanted` against its manifest.

    For readers of a part of it, who need not wait until all of it is read. A directory that is no run (it has neither
    a manifest nor the config of a verb), and one that is not whole yet (`.partial`), has nothing to be compared with.

    Raises ValueError as `verify_manifest`.
    """
    directory = Path(path)
    if directory.suffix == ".partial":
        return
    if not (directory / MANIFEST).is_file() and not (
        (directory / CONFIG).is_file() and "verb" in read_config(directory)
    ):
        return
    entries = {name: entry for name, entry in _read_manifest(directory)["files"].items() if wanted(name)}
    _compare(directory, entries, {name: file for name, file in _walk(directory) if wanted(name)})


def amend_manifest(path: str | os.PathLike[str], names: Collection[str]) -> None:
    """Update the entries of these files, pages drawn anew, in the manifest of a whole run."""
    directory = Path(path)
    if not (directory / MANIFEST).is_file():
        return
    files = _read_manifest(directory)["files"]
    for name in names:
        files[name] = _entry(directory / name)
    _write_manifest(directory, files)


def read_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The settings in a run directory's config.toml (or in the TOML file given).

    Raises ValueError if the file is missing, too large, not UTF-8 or not TOML.
    """
    file = Path(path)
    if file.is_dir():
        file = file / CONFIG
    text = read_settings(file, "config", "a run directory's settings")
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"config: {file} is not TOML ({error}); expected key = value lines") from None


def read_json(file: Path, what: str, wanted: str) -> dict[str, Any]:
    """The object in a JSON file. Raises ValueError as `read_settings`, and if it holds no JSON object."""
    try:
        content = json.loads(read_settings(file, what, wanted))
    except RecursionError as error:
        raise ValueError(f"{what}: {file} is not JSON ({error}); expected {wanted}") from None
    except ValueError as error:
        if str(error).startswith(f"{what}: {file} "):
            raise
        raise ValueError(f"{what}: {file} is not JSON ({error}); expected {wanted}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{what}: {file} holds a {type(content).__name__}; expected {wanted}")
    return content


def read_toml(file: Path, what: str) -> dict[str, Any]:
    """The tables of a TOML file that someone wrote. Raises ValueError if it is too large, not UTF-8 or not TOML."""
    if (n_bytes := file.stat().st_size) > MAX_TOML_BYTES:
        raise ValueError(f"{what}: {file} has {n_bytes} bytes; expected at most {MAX_TOML_BYTES}")
    text = decode_text(file.read_bytes(), f"{what}: {file}")
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{what}: {file} is not TOML ({error})") from None


def read_settings(file: Path, what: str, wanted: str) -> str:
    """The text of a settings file. Raises ValueError if it is missing, a link, too large to be ours or not UTF-8."""
    if file.is_symlink() or not file.is_file():
        raise ValueError(f"{what}: {file} is missing; expected {wanted}")
    if (n_bytes := file.stat().st_size) > MAX_SETTINGS_BYTES:
        raise ValueError(f"{what}: {file} has {n_bytes} bytes; expected at most {MAX_SETTINGS_BYTES}")
    return decode_text(file.read_bytes(), f"{what}: {file}")


def shorten(text: str, n: int = 80) -> str:
    """What a file or a caller said, as an error quotes it: printable, on one line, at most n characters.

    >>> shorten("[" * 9, 4)
    '[[[…'
    """
    text = text if text.isprintable() else repr(text)[1:-1]
    return text if len(text) <= n else f"{text[: n - 1]}…"


def sha256_file(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file's bytes, 64 hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def atomic_write(path: str | os.PathLike[str], data: bytes | str) -> None:
    """Write `data` (str as UTF-8) to `path`, which after any failure holds what it held before.

    Written beside, fsynced, renamed over, and the directory fsynced.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with naming(path), temporary.open("xb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync(path.parent)


# --- entering


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
    whole = (p for p in path.parents if all((p / name).is_file() for name in (CONFIG, ENV, MANIFEST)))
    if not path.exists() and (run := next(whole, None)):
        raise ValueError(
            f"out: {path} lies in {run}, a finished run that its manifest seals; expected a place outside it"
        )
    return path


def _prepare(partial: Path, resolved: dict[str, Any], resume: bool) -> bool:
    """Whether the partial directory was there; made, with its config.toml, if not."""
    if partial.is_symlink() or (partial.exists() and not partial.is_dir()):
        raise ValueError(f"out: {partial} is not a directory; expected none there, or an unfinished run's")
    if partial.is_dir():
        if not resume:
            raise ValueError(f"out: {partial} is an unfinished run; expected --resume, or remove it")
        # what a kill left of a write; and a manifest here is of an earlier attempt to finish
        for path in list(partial.rglob("*")):
            if _TEMPORARY_DIRECTORY.match(path.name) and path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
        for name, path in list(_walk(partial, with_manifest=True)):
            if name == MANIFEST or _TEMPORARY.match(path.name):
                path.unlink()
        if (partial / CONFIG).exists():
            _check_same_config(partial, resolved)
            return True
        if any(partial.iterdir()):
            raise ValueError(f"out: {partial} has no {CONFIG}; expected an unfinished run's directory")
    partial.mkdir(exist_ok=True)
    try:
        atomic_write(partial / CONFIG, tomli_w.dumps(resolved))
        _sync(partial.parent)
    except BaseException:
        # on a full disk: nothing was begun, so nothing is left to resume or to remove
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


# --- the lock

# Open lock files, so that a forked worker closes its copy: a lock must end with the process that took it, and flock's
# lasts until the last copy of the descriptor is closed.
_HELD: weakref.WeakSet[Any] = weakref.WeakSet()


def _close_in_child() -> None:
    for file in _HELD:
        file.close()


os.register_at_fork(after_in_child=_close_in_child)


@contextlib.contextmanager
def locked(out: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold `<out>.lock`, in this process alone, inside the block.

    flock: the kernel lets it go when the process ends, however it ends, so a file left by a kill is no lock and no
    clock, process number or boot has to be compared. What is written inside is for the reader of the error message.

    Raises ValueError naming the holder if another process has it, unless `wait`: then it waits.
    """
    import fcntl

    made = [parent for parent in out.parents if not parent.exists()]  # the nearest first
    path, n_tries = out.with_name(out.name + ".lock"), 1000
    while True:
        out.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = _open_lock(path)
        except FileNotFoundError:
            # another process, which had made the parent and wrote nothing, took it away again; or no file is ever made
            # there, as below /proc
            if (n_tries := n_tries - 1) == 0:
                raise
            continue
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            holder = file.read(200).decode("utf-8", "replace").strip() or "another process"
            file.close()
            raise ValueError(f"out: {out} is being written by {holder}; expected one process in a directory") from None
        # the holder before us may have removed the file after we opened it: then this is a lock on nothing
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            break
        file.close()
    _HELD.add(file)
    try:
        since = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        with naming(path):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()} since {since}\n".encode())
        yield
    finally:
        path.unlink(missing_ok=True)
        file.close()
        for parent in made:
            with contextlib.suppress(OSError):  # it holds what was written
                parent.rmdir()


def _open_lock(path: Path) -> BinaryIO:
    if path.is_symlink() or path.is_dir():
        raise ValueError(f"out: {path} is not a plain file; expected none there, or a lock file")
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644), "r+b", buffering=0)


# --- leaving


def _environment(device: str) -> dict[str, Any]:
    versions = {}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    env = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions,
        "git_revision": _git_revision(),
        "device": device,
        "n_cpus": os.cpu_count(),
        "peak_memory_bytes": peak_bytes(),  # of the process so far, not of this job alone
    }
    torch = sys.modules.get("torch")  # asked only if the job used it: this module must not load it
    if torch is not None:
        env["n_threads"] = torch.get_num_threads()
        if device.startswith("cuda") and torch.cuda.is_available():
            env["device_name"] = torch.cuda.get_device_name(device)
            env["peak_device_memory_bytes"] = torch.cuda.max_memory_allocated(device)
    return env


def _git_revision() -> str | None:
    """The revision of the checkout that this code runs from, "-dirty" if altered; None where it is installed."""
    root = Path(__file__).resolve().parent.parent
    git = shutil.which("git")
    if git is None or not (root / ".git").exists():
        return None
    command = [git, "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    return answer.stdout.strip() or None


def _walk(directory: Path, *, with_manifest: bool = False) -> Iterator[tuple[str, Path]]:
    """(relative posix path, path) of every plain file, sorted by path; the top manifest.json only if asked for."""
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            raise ValueError(f"manifest: {path} is a symbolic link; expected plain files in a run directory")
        if stat.S_ISDIR(mode) or (name == MANIFEST and not with_manifest):
            continue
        if not stat.S_ISREG(mode):
            raise ValueError(f"manifest: {path} is a device, pipe or socket; expected plain files in a run directory")
        try:
            name.encode()
        except UnicodeEncodeError:
            raise ValueError(f"manifest: {name!r} in {directory} is not UTF-8; expected UTF-8 file names") from None
        yield name, path


def _read_manifest(directory: Path) -> dict[str, Any]:
    if not directory.is_dir():
        raise ValueError(f"manifest: {directory} is not a directory; expected a run directory")
    file = directory / MANIFEST
    text = read_settings(file, "manifest", "a whole run directory")
    try:
        manifest = json.loads(text, object_pairs_hook=_refuse_repeated)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"manifest: {file} is not JSON ({error}); expected the file that the run wrote") from None
    if not isinstance(manifest, dict) or manifest.get("format") != MANIFEST_FORMAT:
        raise ValueError(f'manifest: {file} has another format; expected "format": "{MANIFEST_FORMAT}"')
    if not isinstance(manifest.get("files"), dict):
        raise ValueError(f'manifest: {file} has no "files"; expected an object of paths')
    if unknown := sorted(set(manifest) - {"format", "files", "sha256"}):
        raise ValueError(f"manifest: {file} has a key {shorten(repr(unknown[0]))}; expected format, files and sha256")
    for name, entry in manifest["files"].items():
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts or str(pure) != name or re.search(r"[\\\0:]", name) or name == ".":
            raise ValueError(
                f"manifest: path {shorten(repr(name))} in {file}; expected a relative path that stays in the directory"
            )
        n_bytes, sha256 = (entry.get("bytes"), entry.get("sha256")) if isinstance(entry, dict) else (None, None)
        is_size = isinstance(n_bytes, int) and not isinstance(n_bytes, bool) and n_bytes >= 0
        if not (is_size and isinstance(sha256, str) and _SHA256.match(sha256) and len(entry) == 2):
            raise ValueError(
                f'manifest: entry {shorten(repr(name))} in {file}; expected {{"sha256": 64 hex digits, "bytes": n ≥ 0}}'
            )
    # runs of before there was one have none; no flipped bit makes a manifest look like one of theirs
    if "sha256" in manifest and manifest["sha256"] != (seal := _seal(manifest["files"])):
        stated = shorten(repr(manifest["sha256"]))
        raise ValueError(f"manifest: {file} is altered, its files' sha256 is {seal}; expected {stated}")
    return manifest


def _refuse_repeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(result := dict(pairs)) != len(pairs):
        raise ValueError("a key stands twice")
    return result


def _sync(path: Path) -> None:
    """fsync of a file, or of the names in a directory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with naming(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
