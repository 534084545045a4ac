"""The manifest of a run directory: sha256 and bytes of every file, written when it is whole and compared by readers."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Callable, Collection, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from workbench.runs.files import atomic_write, sha256_file
from workbench.runs.settings import CONFIG, read_config, read_settings, shorten

MANIFEST = "manifest.json"
MANIFEST_FORMAT = "workbench-manifest/1"
_SHA256 = re.compile(r"^[0-9a-f]{64}$")


def write_manifest(directory: Path) -> dict[str, Any]:
    """The manifest of every file below `directory` except itself, written as manifest.json.

    Form: {"format": "workbench-manifest/1", "files": {relative posix path: {"sha256": hex, "bytes": n}}, "sha256": hex
    of the files as `_seal` writes them}, so that a reader of a part of a run finds any altered bit of it.
    Raises ValueError on a symbolic link, a device or a name that is not UTF-8.
    """
    return _write_manifest(directory, {name: _entry(path) for name, path in walk_files(directory)})


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
    _compare(directory, manifest["files"], dict(walk_files(directory)))
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
    _compare(directory, entries, {name: file for name, file in walk_files(directory) if wanted(name)})


def amend_manifest(path: str | os.PathLike[str], names: Collection[str]) -> None:
    """Update the entries of these files (redrawn pages) in the manifest of a whole run."""
    directory = Path(path)
    if not (directory / MANIFEST).is_file():
        return
    files = _read_manifest(directory)["files"]
    for name in names:
        files[name] = _entry(directory / name)
    _write_manifest(directory, files)


def walk_files(directory: Path, *, with_manifest: bool = False) -> Iterator[tuple[str, Path]]:
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
    # manifests of older versions have no checksum of their own; no single flipped bit removes the key from one that has
    if "sha256" in manifest and manifest["sha256"] != (seal := _seal(manifest["files"])):
        stated = shorten(repr(manifest["sha256"]))
        raise ValueError(f"manifest: {file} is altered, its files' sha256 is {seal}; expected {stated}")
    return manifest


def _refuse_repeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(result := dict(pairs)) != len(pairs):
        raise ValueError("a key stands twice")
    return result
