"""The same CSVs whoever runs a study's jobs, and whatever is killed meanwhile: one process, several, Ray, kill -9."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from studies_for_tests import write_place

import workbench
from reports.tables import read_csv, read_table
from workbench.study.reuse import read_record

pytestmark = pytest.mark.slow
ANALYSES = [
    "sae-train",
    "ablate",
    "topology",
    "attention",
    "attention-patterns",
    "atlas",
    "match",
    "spectra",
    "probe",
    "evaluate",
]
PROBE = {"settings.probe.n_permutations": 19, "settings.probe.n_points": 64}
SETTINGS = {"analyses": ANALYSES, **PROBE, "train.model.n_ctx": 48}
EXECUTORS = (("--executor", "ray"), ("--executor", "processes", "--jobs", "2"))
N_JOBS = 2 * 10 + 1
N_KILLS = 3
PATIENCE_S = 300


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return write_place(tmp_path_factory.mktemp("study"))


def begin(place: Path, out: Path, *options: str) -> subprocess.Popen[str]:
    """`workbench study`, under way in a process of its own."""
    command = [
        sys.executable,
        "-m",
        "workbench",
        "study",
        str(place / "tiny.toml"),
        "--out",
        str(out),
        "--device",
        "cpu",
    ]
    for key, value in SETTINGS.items():
        command += ["--set", f"{key}={json.dumps(value)}"]
    environment = os.environ | {"WORKBENCH_CACHE": str(place / "cache")}
    return subprocess.Popen(
        [*command, "--device", "cpu", "--threads", "1", "--json", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(workbench.__file__).parent.parent,
        env=environment,
    )


def finish(process: subprocess.Popen[str]) -> None:
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, errors[-2000:]


def digests(out: Path) -> dict[str, str]:
    """sha256 of every CSV of a study as it lies there; of train_log without the clock."""
    found = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(out.glob("*.csv"))}
    log = read_csv(out / "train_log.csv").drop(columns="tokens_per_s").to_csv()
    return found | {"train_log.csv": hashlib.sha256(log.encode()).hexdigest()}


@pytest.fixture(scope="module")
def whole(place) -> dict[str, str]:
    """Digests of a study in one process that nothing stopped."""
    finish(begin(place, place / "whole"))
    assert len(read_record(place / "whole")) == N_JOBS
    assert len(read_table(place / "whole", "concept_mantel")) > 0
    return digests(place / "whole")


def jobs_done(out: Path) -> int:
    return len(read_record(out.with_name(out.name + ".partial")))


def workers(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Workers of the study: Ray's that are busy with a job, and all of a pool."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if any(name in " ".join(child.cmdline()) for name in ("do_in_worker", "spawn_main")):
                found.append(child)
        except psutil.NoSuchProcess:
            continue  # it has ended since it was listed
    return found


def test_a_process_killed_again_and_again_goes_on_to_the_same_tables(place, tmp_path, whole) -> None:
    out, kills = tmp_path / "out", []
    for wanted in (1, 8, 15):
        process = begin(place, out, "--resume")
        until = time.monotonic() + PATIENCE_S
        while jobs_done(out) < wanted and process.poll() is None:
            assert time.monotonic() < until
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "it ended before it could be killed"
        kills.append(jobs_done(out))
    assert len(kills) == N_KILLS
    assert kills[-1] < N_JOBS
    finish(begin(place, out, "--resume"))
    assert digests(out) == whole


@pytest.mark.parametrize("executor", EXECUTORS)
def test_several_jobs_at_once_make_the_same_tables(place, tmp_path, whole, executor) -> None:
    finish(begin(place, tmp_path / "out", *executor))
    assert digests(tmp_path / "out") == whole


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_worker_that_is_killed_is_replaced(place, tmp_path, whole, executor) -> None:
    out = tmp_path / "out"
    process = begin(place, out, *executor)
    n_killed, until = 0, time.monotonic() + PATIENCE_S
    while process.poll() is None and n_killed < 2:
        assert time.monotonic() < until
        busy = workers(process)
        if busy and jobs_done(out) >= 3 * n_killed:
            busy[0].kill()
            n_killed += 1
            time.sleep(1)
        time.sleep(0.02)
    finish(process)
    assert n_killed == 2
    assert digests(out) == whole


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_study_that_is_stopped_and_then_killed_goes_on_in_one_process(place, tmp_path, whole, executor) -> None:
    out = tmp_path / "out"
    for number, wanted in ((signal.SIGTERM, 2), (signal.SIGKILL, 6)):
        process = begin(place, out, *executor, "--resume")
        until = time.monotonic() + PATIENCE_S
        while (jobs_done(out) < wanted or not workers(process)) and process.poll() is None:
            assert time.monotonic() < until
            time.sleep(0.02)
        busy = workers(process)
        process.send_signal(number)
        _, errors = process.communicate(timeout=PATIENCE_S)
        if number == signal.SIGTERM:
            assert process.returncode == 130, errors[-2000:]
            assert errors.splitlines()[-1] == "interrupted: stopped by SIGTERM; go on with --resume"
        _, alive = psutil.wait_procs(busy, timeout=60)
        assert not alive, "workers end with the study"
    finish(begin(place, out, "--resume"))
    assert digests(out) == whole
