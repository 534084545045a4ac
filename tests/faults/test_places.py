"""Hostile places (`places`): two processes at once, a lock left behind, clocks that jump, memory that ends."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import kills
import psutil
import pytest
from grounds import MADE
from processes import environment, said_by


def test_hostile_places_change_nothing(ground, tally, count) -> None:
    found = defaultdict(list)
    for sort, wrong in said_by("places.py", str(ground.place), str(max(1, count("kills") // 5))):
        found[sort].append(wrong)
    for sort, all_wrong in found.items():
        tally("place", sort, len(all_wrong), all_wrong.count(""))
    assert not [wrong for all_wrong in found.values() for wrong in all_wrong if wrong]


def starve_a_worker(process: subprocess.Popen, n_bytes: int) -> bool:
    """Whether one of Ray's workers got a limit of so many bytes more than it has, before the study ended."""
    while process.poll() is None:
        for child in psutil.Process(process.pid).children(recursive=True):
            try:
                if "_do_there" in " ".join(child.cmdline()):
                    most = child.memory_info().vms + n_bytes
                    child.rlimit(psutil.RLIMIT_AS, (most, most))
                    return True
            except psutil.NoSuchProcess:
                continue  # it has ended since it was listed
        time.sleep(0.02)
    return False


def results(study: Path) -> dict[str, str]:
    """Digests of a study's files but for states of trainings: they hold torch's global generator, which nothing draws
    from and Ray's workers begin otherwise."""
    return {name: digest for name, digest in kills.digests(study).items() if "train_state" not in name}


@pytest.mark.full
def test_a_worker_of_ray_whose_memory_ends_costs_a_line_and_no_table(ground, tmp_path, tally, count) -> None:
    """Its job fails, or its process and Ray begins the job again; what is left, --resume does to the same tables."""
    options = MADE["study"].rsplit(" --out", 1)[0].split()
    command = [sys.executable, "-m", "workbench", *options, "--out"]
    wanted, wrong = results(ground.run("study")), []
    own = environment(PYTHONWARNINGS="ignore", WORKBENCH_CACHE=os.environ["WORKBENCH_CACHE"])
    n = max(2, count("kills") // 10)
    for i in range(n):
        out = tmp_path / f"cut{i}"
        process = subprocess.Popen([*command, str(out), "--executor", "ray"], cwd=ground.place, env=own, text=True,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
        is_starved = starve_a_worker(process, 24 << 20)
        _, said = process.communicate(timeout=120)
        lines = [line for line in said.splitlines() if line.startswith("error: ")]
        if not is_starved or process.returncode not in (0, 1) or len(lines) != process.returncode:
            wrong.append(f"{i}: exit {process.returncode}, starved {is_starved}: {said[-500:]}")
            continue
        if process.returncode:
            again = subprocess.run([*command, str(out), "--resume"], cwd=ground.place, env=own, check=False,
                                   capture_output=True, text=True)  # fmt: skip
            if again.returncode or "Traceback" in said:
                wrong.append(f"{i}: {said[-500:]} resumed: {again.stderr[-500:]}")
                continue
        found = results(out)
        unlike = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
        if unlike:
            wrong.append(f"{i}: {unlike}")
    tally("place", "memory that ends in a worker of Ray", n, n - len(wrong))
    assert not wrong, "\n".join(wrong)
