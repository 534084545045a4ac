"""A disk that is full, fails or cannot be written, and a kill, at each write of every verb that writes a directory
(`writes`); and a tmpfs that really fills (`small_disk`)."""

from __future__ import annotations

import os
import sys

import pytest
from processes import said_by
from writes import KINDS

STAGES = ("training", "automata", "harvest", "SAE training", "ablation", "probe", "export", "import", "study")
N_SIZES = 24  # of a tmpfs, where all writes are asked for
QUICK = ("training", "harvest", "ablation")  # the others belong to the long form


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "stage", [stage if stage in QUICK else pytest.param(stage, marks=pytest.mark.full) for stage in STAGES]
)
def test_a_write_that_fails_costs_nothing_that_was_there(ground, tally, count, stage, kind) -> None:
    found = said_by("writes.py", str(ground.place), stage, kind, str(count("writes")))
    table, what = ("kills", f"{stage}, at each step on disk") if kind == "kill" else ("disk", f"{kind}: {stage}")
    tally(table, what, found["n_tried"], found["n_right"])
    assert found["n_tried"] > 0
    assert not found["wrong"], "\n".join(found["wrong"])


@pytest.mark.full
@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage not in ("export", "import")])
def test_a_tmpfs_that_fills_costs_nothing_that_was_there(ground, tally, count, stage) -> None:
    if sys.platform != "linux" or os.geteuid():
        pytest.skip("only root can mount a tmpfs")
    found = said_by("small_disk.py", str(ground.place), stage, str(count("writes") or N_SIZES))
    tally("disk", f"a tmpfs that fills: {stage}", found["n_tried"], found["n_right"])
    assert not found["wrong"], "\n".join(found["wrong"])
