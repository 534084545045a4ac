"""Peak memory of each verb against what --dry-run says (`memory`)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SHARE = 0.25  # that a plan may be off, of the peak


@pytest.mark.full
def test_a_plan_says_how_much_memory_a_verb_takes(tmp_path, tally, record_property) -> None:
    command = [sys.executable, str(HERE / "memory.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    off = {}
    for line in done.stdout.splitlines():
        verb, planned, peak = json.loads(line)
        record_property(f"{verb}: planned, peak (bytes), ratio", f"{planned}, {peak}, {planned / peak:.2f}")
        if abs(planned / peak - 1) > SHARE:
            off[verb] = planned / peak
        tally("memory", verb, 1, int(verb not in off))
    assert not off
