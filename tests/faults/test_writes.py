"""A disk that is full, fails or cannot be written (`writes`), at each write of every verb that writes a directory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from processes import ROOT, environment
from writes import KINDS

HERE = Path(__file__).parent
STAGES = ("training", "automata", "harvest", "SAE training", "ablation", "probe", "export", "import", "study")
QUICK = ("training", "harvest", "ablation")  # the others belong to the long form


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "stage", [stage if stage in QUICK else pytest.param(stage, marks=pytest.mark.full) for stage in STAGES]
)
def test_a_write_that_fails_costs_nothing_that_was_there(ground, tally, count, stage, kind) -> None:
    command = [sys.executable, str(HERE / "writes.py"), str(ground.place), stage, kind, str(count("writes"))]
    own = environment(PYTHONWARNINGS="ignore")
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=own, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    tally("disk", f"{kind}: {stage}", found["n_tried"], found["n_right"])
    assert found["n_tried"] > 0
    assert not found["wrong"], "\n".join(found["wrong"])
