"""Kills at random moments in every stage (`kills`): what --resume comes to is what an undisturbed run leaves."""

from __future__ import annotations

import json

import pytest
from processes import said_by

STAGES = ("training", "automata", "harvest", "SAE training", "ablation", "probe", "study")
# what takes a moment; the others belong to the slow tests
QUICK = ("training", "automata", "harvest")


@pytest.mark.parametrize(
    "stage", [stage if stage in QUICK else pytest.param(stage, marks=pytest.mark.full) for stage in STAGES]
)
def test_killed_runs_go_on_to_the_same_bytes(ground, tally, count, record_property, stage) -> None:
    n = count("kills")
    found = said_by("kills.py", str(ground.place), stage, str(n), "0")
    tally("kills", stage, found["n_kills"], found["n_right"])
    record_property(f"kills of {stage}", json.dumps({k: v for k, v in found.items() if k != "wrong"}))
    assert not found["wrong"], found
    assert found["n_right"] == found["n_kills"] == n, found
