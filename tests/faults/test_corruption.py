"""Bits flipped, files cut, lost, swapped, replayed, led away: each is found when it is read, and the file named."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from bad import tree
from corruptions import DAMAGES, files_of, flip
from grounds import MADE, Ground, call
from processes import said_by


@dataclass(frozen=True)
class Reading:
    """How a run directory is read: what is typed, with DIR for the directory, and which of its files that reads."""

    run: str
    command: str
    reads: Callable[[str], bool]


def _is_table(name: str) -> bool:
    return "/" not in name and (name.endswith(".csv") or name == "study.json")


BEGUN = ("training", "automata", "harvest", "SAE training", "ablation", "probe", "study")
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
        "atlas --sae DIR --ckpt model --data text.txt --n-tokens 96 --n-contexts 2 --out OUT",
        lambda name: name.startswith("sae/"),
    ),
    "study, drawn": Reading("study", "report DIR", _is_table),
    "study, its atlas": Reading("study", "atlas DIR", _is_table),
}


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
        wanted = [*wanted, *(path.name for path in files_of(place)), "manifest"]
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


@pytest.mark.parametrize(
    "stage", [stage if stage == "ablation" else pytest.param(stage, marks=pytest.mark.full) for stage in BEGUN]
)
def test_damage_to_a_begun_run_is_found_or_made_good(ground, tally, count, stage) -> None:
    n = -(-count("corruptions") // len(BEGUN))
    found = said_by("begun.py", str(ground.place), stage, str(n), "0")
    tally("corruption of begun runs", stage, found["n_tried"], found["n_right"])
    assert found["n_tried"] == n
    assert found["n_refused"] > 0
    assert not found["wrong"], "\n".join(found["wrong"])
