"""Every stage twice, in two processes whose sets are ordered differently: every file the same, byte for byte, but for
what holds a clock. Training, harvest, SAE training, ablation and studies are run twice where they are killed (`kills`).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import again
import pytest
from grounds import Ground
from processes import environment

QUICK = [stage for stage in again.STAGES if stage != "report of a study"]  # a study takes a while


def do_elsewhere(ground: Ground, out: Path, stages: list[str]) -> Path:
    """Where another process left the outputs of the stages, an entry a stage, after the ground got what they read."""
    for stage in stages:
        if stage in again.NEEDS:
            ground.run(again.NEEDS[stage])
    own = environment(PYTHONHASHSEED="7" if os.environ.get("PYTHONHASHSEED") != "7" else "8")
    command = [sys.executable, str(Path(again.__file__)), str(ground.place), str(out), *stages]
    done = subprocess.run(command, capture_output=True, text=True, env=own, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


@pytest.fixture(scope="module")
def other(ground, tmp_path_factory) -> Path:
    """All quick stages from another process."""
    return do_elsewhere(ground, tmp_path_factory.mktemp("other"), QUICK)


def compare(ground: Ground, other: Path, stage: str, out: Path, tally) -> None:
    """Assert that the stage's files here are those of the other process."""
    os.chdir(ground.place)
    again.do(stage, out)
    found, wanted = again.digests(out), again.digests(other / stage)
    unlike = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
    tally("determinism", stage, 1, int(not unlike and bool(found)))
    assert found, f"{stage} left nothing to compare"
    assert not unlike


@pytest.mark.parametrize("stage", QUICK)
def test_the_same_bytes_twice(ground, other, stage, home, tally) -> None:
    compare(ground, other, stage, home / stage, tally)


@pytest.mark.full
def test_the_same_page_of_a_study_twice(ground, home, tally) -> None:
    stage = "report of a study"
    (home / "other").mkdir()
    compare(ground, do_elsewhere(ground, home / "other", [stage]), stage, home / stage, tally)


def test_another_seed_leaves_other_bytes(ground, other, home, monkeypatch) -> None:
    """What compares the runs sees a difference."""
    monkeypatch.chdir(ground.place)
    monkeypatch.setitem(again.STAGES, "attention", again.STAGES["attention"] + " --seed 1")
    again.do("attention", home / "attention")
    assert again.digests(home / "attention") != again.digests(other / "attention")
