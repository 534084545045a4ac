"""A long mixed load (`load`): after the first rounds neither memory, nor open files, nor threads, nor files grow.

Memory is also measured without what safetensors keeps of every tensor that it reads, as told in the same process.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from statistics import median

import pytest
from processes import environment

HERE = Path(__file__).parent
GROWTH = 0.02  # share of memory by which it may have grown from the first quarter's median to the last one's
COUNTED = ("resident_bytes", "own_bytes", "open_files", "threads", "files")


@pytest.mark.full
def test_nothing_grows(tmp_path, tally, count, record_property) -> None:
    command = [sys.executable, str(HERE / "load.py"), str(tmp_path / "place"), str(count("load-seconds"))]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    rounds = [json.loads(line) for line in done.stdout.splitlines()]
    grown = growth(rounds)
    record_property("load", json.dumps({"n_rounds": len(rounds), "seconds": rounds[-1]["seconds"], **grown}))
    limits = {what: GROWTH if what.endswith("bytes") else 0 for what in grown}
    for what, limit in limits.items():
        tally("load", what, 1, int(grown[what] <= limit))
    assert all(grown[what] <= limit for what, limit in limits.items()), grown


def growth(rounds: list[dict[str, float]]) -> dict[str, float]:
    """From the first quarter after the warm-up to the last: memory's as a share, the others' as numbers."""
    assert len(rounds) >= 12, f"{len(rounds)} rounds; expected 12 or more, so a longer load"
    settled = rounds[len(rounds) // 4 :]
    quarter = max(1, len(settled) // 4)
    found = {}
    for row in rounds:
        row["own_bytes"] = row["resident_bytes"] - row["kept_bytes"]
    for what in COUNTED:
        before, after = (median(r[what] for r in part) for part in (settled[:quarter], settled[-quarter:]))
        found[what] = round(after / before - 1, 4) if what.endswith("bytes") else after - before
    return found


def test_growth_is_told_from_noise() -> None:
    still = [
        {"resident_bytes": 1e9 + 1e6 * (i % 3), "kept_bytes": 0, "open_files": 9, "threads": 1, "files": 40}
        for i in range(40)
    ]
    leaking = [row | {"resident_bytes": 1e9 + 2e6 * i, "files": 40 + i} for i, row in enumerate(still)]
    theirs = [row | {"kept_bytes": 2e6 * i} for i, row in enumerate(leaking)]
    assert growth(still)["own_bytes"] == pytest.approx(0, abs=0.002)
    assert growth(leaking)["own_bytes"] > GROWTH
    assert growth(theirs)["own_bytes"] == pytest.approx(0, abs=0.002)
    assert growth(theirs)["resident_bytes"] > GROWTH
    assert growth(leaking)["files"] > 0
