"""Bits flipped, files cut, lost, swapped, replayed, led away: each is found when it is read, and the file named."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from bad import tree
from grounds import MADE, Ground, call


@dataclass(frozen=True)
class Reading:
    """How a run directory is read: what is typed, with DIR for the directory, and which of its files that reads."""

    run: str
    command: str
    reads: Callable[[str], bool]


def _is_table(name: str) -> bool:
    return "/" not in name and (name.endswith(".csv") or name == "study.json")


TRAIN_SAES = (
    "sae-train --ckpt model --layers 0 --shards DIR --data text.txt --n-eval-tokens 240 --set batch_size=32 "
    "--set buffer_tokens=128 --set expansion=3 --set n_ce_tokens=48 --out OUT"
)
# whole directories, checked by --resume; and parts of them, read by other verbs
READINGS = {
    **{
        f"{run}, whole": Reading(run, MADE[run].rsplit("--out", 1)[0] + "--out DIR --resume", lambda name: True)
        for run in ("train", "harvest", "saes", "ablation", "probe", "atlas", "study")
    },
    "train, as a checkpoint": Reading(
        "train",
        "hooks --ckpt DIR",
        lambda name: name == "latest" or name.startswith("step_00000004/") and "train_state" not in name,
    ),
    "harvest, trained on": Reading(
        "harvest", TRAIN_SAES, lambda name: name.startswith("shard") and not name.endswith(".toml")
    ),
    "saes, described": Reading(
        "saes",
        "atlas --sae DIR --ckpt model --data text.txt --n-sequences 2 --n-contexts 2 --out OUT",
        lambda name: name.startswith("sae/"),
    ),
    "study, drawn": Reading("study", "report DIR", _is_table),
    "study, its atlas": Reading("study", "atlas DIR", _is_table),
}


# --- damages: each alters a directory and returns the names of which one must be said, or nothing where it cannot


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
    others = [p for p in _files(place) if p != file and p.read_bytes() != file.read_bytes()]
    other = rng.choice(others)
    mine, theirs = file.read_bytes(), other.read_bytes()
    file.write_bytes(theirs)
    other.write_bytes(mine)
    return [file.name, other.name]


def replay(place: Path, file: Path, rng: random.Random) -> list[str]:
    """What a file of that name held in an earlier place: an older step, another job, another seed's run."""
    older = [p for p in _files(place) if p.name == file.name and p != file and p.read_bytes() != file.read_bytes()]
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


def _files(place: Path) -> list[Path]:
    return sorted(path for path in place.rglob("*") if path.is_file())


def undetected(ground: Ground, reading: Reading, damage: Callable, seed: int, home: Path) -> str | None:
    """What went wrong, in a line, if the reader did not find the damage and name the file; None if it did."""
    rng = random.Random(f"{reading.run} {reading.command} {damage.__name__} {seed}")
    place = home / "dir"
    for path in home.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    shutil.copytree(ground.run(reading.run), place)
    shutil.copytree(ground["older"], home / "older")
    names = [
        name for name in tree(place) if (place / name).is_file() and (reading.reads(name) or name == "manifest.json")
    ]
    file = place / rng.choice(names)
    wanted = damage(place, file, rng)
    if not wanted:
        return undetected(ground, reading, flip, seed + 10_000, home)
    before = tree(home)
    command = reading.command.replace("DIR", str(place)).replace("OUT", str(home / "out"))
    result = call(*command.split())
    said = f"{damage.__name__} of {file.relative_to(place)}: exit {result.exit_code}, {result.stderr.strip()[-400:]}"
    if result.exit_code != 1 or "Traceback" in result.output or tree(home) != before:
        return said
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    if len(errors) != 1 or "--debug shows where" in errors[0]:
        return said
    if file.name == "manifest.json":  # an entry of it may still be read: then the file that it no longer fits is named
        wanted = [*wanted, *(path.name for path in _files(place)), "manifest"]
    return None if any(name in errors[0] for name in wanted) else said


@pytest.fixture(scope="module")
def older(ground) -> Path:
    """Runs of other seeds, to replay files from."""
    place = ground["older"]
    if not place.exists():
        place.mkdir()
        here = Path.cwd()
        os.chdir(ground.place)
        try:
            for run, option in (("train", "--seed 1"), ("harvest", "--seed 1"), ("saes", "--seeds 1"),
                                ("ablation", "--seed 1 --kind resample"), ("probe", "--seed 1")):  # fmt: skip
                command = MADE[run].rsplit("--out", 1)[0] + f"{option} --out older/{run}"
                assert call(*command.split()).exit_code == 0
        finally:
            os.chdir(here)
    return place


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", list(READINGS))
def test_every_corruption_is_found_and_the_file_named(ground, older, home, tally, count, monkeypatch, name) -> None:
    reading = READINGS[name]
    n = -(-count("corruptions") // len(READINGS))
    ground.run(reading.run)
    monkeypatch.chdir(ground.place)
    wrong = []
    for i in range(n):
        # the damages in turn, beginning with another one for each reading
        damage = DAMAGES[(i + list(READINGS).index(name)) % len(DAMAGES)]
        if found := undetected(ground, reading, damage, i, home):
            wrong.append(found)
    tally("corruption", name, n, n - len(wrong))
    assert not wrong, "\n".join(wrong)


@pytest.mark.filterwarnings("ignore")
def test_undamaged_directories_are_taken(ground, home, monkeypatch) -> None:
    """Else what is refused could be refused for another reason."""
    for name, reading in READINGS.items():
        place = home / name.replace(" ", "")
        shutil.copytree(ground.run(reading.run), place)
        monkeypatch.chdir(ground.place)
        command = reading.command.replace("DIR", str(place)).replace("OUT", str(home / f"out-{len(name)}"))
        result = call(*command.split())
        assert result.exit_code == 0, (name, result.output)
