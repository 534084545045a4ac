"""A disk that is full, fails or cannot be written, at each write of every verb that writes a directory (`writes`); and
a tmpfs that really fills (`small_disk`)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from processes import ROOT, environment
from writes import KINDS

HERE = Path(__file__).parent
STAGES = ("training", "automata", "harvest", "SAE training", "ablation", "probe", "export", "import", "study")
N_SIZES = 24  # of a tmpfs, where all writes are asked for
QUICK = ("training", "harvest", "ablation")  # the others belong to the long form


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "stage", [stage if stage in QUICK else pytest.param(stage, marks=pytest.mark.full) for stage in STAGES]
)
def test_a_write_that_fails_costs_nothing_that_was_there(ground, tally, count, stage, kind) -> None:
    found = outcome("writes.py", str(ground.place), stage, kind, str(count("writes")))
    tally("disk", f"{kind}: {stage}", found["n_tried"], found["n_right"])
    assert found["n_tried"] > 0
    assert not found["wrong"], "\n".join(found["wrong"])


@pytest.mark.full
@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage not in ("export", "import")])
def test_a_tmpfs_that_fills_costs_nothing_that_was_there(ground, tally, count, stage) -> None:
    if sys.platform != "linux" or os.geteuid():
        pytest.skip("only root can mount a tmpfs")
    found = outcome("small_disk.py", str(ground.place), stage, str(count("writes") or N_SIZES))
    tally("disk", f"a tmpfs that fills: {stage}", found["n_tried"], found["n_right"])
    assert not found["wrong"], "\n".join(found["wrong"])


def outcome(script: str, *arguments: str) -> dict[str, Any]:
    """What a script of this folder prints as its last line."""
    own = environment(PYTHONWARNINGS="ignore")
    command = [sys.executable, str(HERE / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=own, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])
