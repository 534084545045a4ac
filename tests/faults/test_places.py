"""Hostile places (`places`): two processes at once, a lock left behind, clocks that jump, memory that ends."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

from processes import ROOT, environment

HERE = Path(__file__).parent


def test_hostile_places_change_nothing(ground, tally, count) -> None:
    command = [sys.executable, str(HERE / "places.py"), str(ground.place), str(max(1, count("kills") // 5))]
    own = environment(PYTHONWARNINGS="ignore")
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=own, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = defaultdict(list)
    for sort, wrong in json.loads(done.stdout.splitlines()[-1]):
        found[sort].append(wrong)
    for sort, all_wrong in found.items():
        tally("place", sort, len(all_wrong), all_wrong.count(""))
    assert not [wrong for all_wrong in found.values() for wrong in all_wrong if wrong]
