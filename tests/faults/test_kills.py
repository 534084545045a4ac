"""Kills at random moments in every stage (`kills`): what --resume comes to is what an undisturbed run leaves."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from processes import ROOT, environment

HERE = Path(__file__).parent
STAGES = ("training", "automata", "harvest", "SAE training", "ablation", "probe", "study")
# what takes a moment; the others belong to the slow tests
QUICK = ("training", "automata", "harvest")


@pytest.mark.parametrize(
    "stage", [stage if stage in QUICK else pytest.param(stage, marks=pytest.mark.full) for stage in STAGES]
)
def test_killed_runs_go_on_to_the_same_bytes(ground, tally, count, record_property, stage) -> None:
    n = count("kills")
    command = [sys.executable, str(HERE / "kills.py"), str(ground.place), stage, str(n), "0"]
    own = environment(PYTHONWARNINGS="ignore")
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=own, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    tally("kills", stage, found["n_kills"], found["n_right"])
    record_property(f"kills of {stage}", json.dumps({k: v for k, v in found.items() if k != "wrong"}))
    assert not found["wrong"], found
    assert found["n_right"] == found["n_kills"] == n, found
