"""Damages to a file of a directory; each returns the names of which one must be said, or nothing where it cannot."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path


def flip(place: Path, file: Path, rng: random.Random) -> list[str]:
    """One bit."""
    data = bytearray(file.read_bytes())
    if not data:
        return []
    bit = rng.randrange(8 * len(data))
    data[bit // 8] ^= 1 << bit % 8
    file.write_bytes(data)
    return [file.name]


def truncate(place: Path, file: Path, rng: random.Random) -> list[str]:
    n = file.stat().st_size
    if not n:
        return []
    os.truncate(file, rng.randrange(n))
    return [file.name]


def lose(place: Path, file: Path, rng: random.Random) -> list[str]:
    file.unlink()
    return [file.name]


def swap(place: Path, file: Path, rng: random.Random) -> list[str]:
    """Its contents for those of another file."""
    others = [p for p in files_of(place) if p != file and p.read_bytes() != file.read_bytes()]
    other = rng.choice(others)
    mine, theirs = file.read_bytes(), other.read_bytes()
    file.write_bytes(theirs)
    other.write_bytes(mine)
    return [file.name, other.name]


def replay(place: Path, file: Path, rng: random.Random) -> list[str]:
    """What a file of that name held in an earlier place: an older step, another job, another seed's run."""
    older = [p for p in files_of(place) if p.name == file.name and p != file and p.read_bytes() != file.read_bytes()]
    older += [p for p in (place.parent / "older").rglob(file.name) if p.read_bytes() != file.read_bytes()]
    if not older:
        return []
    shutil.copyfile(rng.choice(sorted(older)), file)
    return [file.name]


def lead_away(place: Path, file: Path, rng: random.Random) -> list[str]:
    """A link to the very file, moved out of the directory."""
    outside = place.parent / "outside"
    shutil.move(file, outside)
    file.symlink_to(outside)
    return [file.name]


def leave(place: Path, file: Path, rng: random.Random) -> list[str]:
    """The manifest's path of a file leads out of the directory, to the very file."""
    manifest = place / "manifest.json"
    name = file.relative_to(place).as_posix()
    if file == manifest:
        return []
    content = json.loads(manifest.read_text())
    content["files"][f"../{file.name}"] = content["files"].pop(name)
    manifest.write_text(json.dumps(content))
    shutil.move(file, place.parent / file.name)
    return [file.name]


DAMAGES = (flip, truncate, lose, swap, replay, lead_away, leave)


def files_of(place: Path) -> list[Path]:
    return sorted(path for path in place.rglob("*") if path.is_file())
