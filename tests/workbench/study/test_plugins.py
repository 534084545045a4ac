"""An analysis in one file outside the package: verb, dry run, resume after a kill, study job, merged table, page."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from reports.page import write_report
from reports.tables import read_table, write_table
from workbench.runs import sha256_file
from workbench.study.effects import write_effects

ROOT = Path(__file__).parents[3]
PLUGINS = ROOT / "docs" / "plugins"
FEW = ["train.phases.0.n_steps=2", "train.phases.0.schedule.n_warmup_steps=0", "train.monitor.every=0"]
FEW += ["train.data.n_held_out_windows=4", "train.phases.0.eval_every=2"]
STUDY = """
name = "plugins"
models = ["janus-v3-control-nano", "janus-v3-adaptive-nano"]
analyses = ["spectral-gap", "position-loss", "prediction-kl"]
[settings.spectral-gap]
index = 2
[settings.position-loss]
n_tokens = 1024
[settings.prediction-kl]
n_tokens = 512
"""
FILES = [str(PLUGINS / f"{name}.py") for name in ("gap", "position_loss", "prediction_kl")]
WITH = [word for file in FILES for word in ("--plugin", file)]


def begin(place: Path, *words: str) -> subprocess.Popen:
    env = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "workbench", *words]
    return subprocess.Popen(command, cwd=place, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def run(place: Path, *words: str) -> str:
    process = begin(place, *words)
    out, err = process.communicate(timeout=500)
    assert process.returncode == 0, err[-2000:]
    return out


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a finished study of three plug-ins."""
    place = tmp_path_factory.mktemp("plugins")
    (place / "mine.toml").write_text(STUDY)
    settings = [word for setting in FEW for word in ("--set", setting)]
    run(place, *WITH, "study", "mine.toml", "--out", "study", "--threads", "1", *settings)
    return place


@pytest.mark.slow
def test_a_study_measures_merges_and_shows_them(place: Path) -> None:
    study = place / "study"
    names = ["janus-v3-control-nano", "janus-v3-adaptive-nano"]
    assert read_table(study, "spectral_gap").groupby("model", sort=False).size().to_dict() == dict.fromkeys(names, 4)
    assert read_table(study, "position_loss")["n_tokens"].sum() == 2 * (1024 - 1024 // 128)
    (row,) = read_table(study, "prediction_kl").to_dict("records")
    assert [row["model_a"], row["model_b"]] == names
    assert row["kl"] > 0
    page = (study / "report.html").read_text(encoding="utf-8")
    for table in ("spectral_gap", "position_loss", "prediction_kl"):
        assert f'<figure id="{table}"' in page
    assert "sortable" in page


@pytest.mark.slow
def test_the_verb_gives_the_rows_of_the_job_and_plans_without_making(place: Path) -> None:
    model = "study/models/janus-v3-control-nano-seed0"
    words = (*WITH, "position-loss", "--ckpt", model, "--n-tokens", "1024", "--json")
    planned = json.loads(run(place, *words, "--dry-run"))
    assert planned["n_tokens"] == 1024
    assert planned["flops"] > 0
    assert not (place / "runs").exists()
    run(place, *words, "--out", "alone")
    job = place / "study" / "position-loss" / "janus-v3-control-nano-seed0" / "position_loss.csv"
    assert (place / "alone" / "position_loss.csv").read_bytes() == job.read_bytes()


@pytest.mark.slow
def test_a_killed_run_goes_on_from_its_state(place: Path) -> None:
    model = "study/models/janus-v3-control-nano-seed0"
    words = (*WITH, "position-loss", "--ckpt", model, "--n-tokens", "16384", "--batch-size", "1")
    run(place, *words, "--out", "whole")
    process = begin(place, *words, "--out", "killed")
    state = place / "killed.partial" / "sums.safetensors"
    while not state.is_file():
        assert process.poll() is None, "it ended before it saved a state"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (place / "killed").exists()
    run(place, *words, "--out", "killed", "--resume")
    tables = [(place / name / "position_loss.csv").read_bytes() for name in ("whole", "killed")]
    assert tables[0] == tables[1]


@pytest.mark.slow
def test_a_changed_plugin_is_measured_anew_and_nothing_else(place: Path) -> None:
    changed = place / "gap.py"
    changed.write_text((PLUGINS / "gap.py").read_text())
    words = ["--plugin", str(changed), *WITH[2:], "study", "mine.toml", "--out", "study", "--threads", "1", "--resume"]
    words += [word for setting in FEW for word in ("--set", setting)]
    study = place / "study"
    times = {path: path.stat().st_mtime_ns for path in study.glob("*/*/manifest.json")}
    before = read_table(study, "spectral_gap")
    run(place, *words)
    assert {path: path.stat().st_mtime_ns for path in study.glob("*/*/manifest.json")} == times
    changed.write_text(changed.read_text().replace("s[i - 1] / s[i]", "s[i - 1] / s[i] - 1"))
    run(place, *words)
    anew = {path.parent.parent.name for path, time_ns in times.items() if path.stat().st_mtime_ns != time_ns}
    assert anew == {"spectral-gap"}
    after = read_table(study, "spectral_gap")
    pd.testing.assert_series_equal(after["gap"], before["gap"] - 1)


def test_faults_of_plugins_are_one_line(tmp_path: Path) -> None:
    from workbench.analyses import load_plugin

    (tmp_path / "empty.py").write_text("x = 1\n")
    (tmp_path / "broken.py").write_text("x = y\n")
    taken = (PLUGINS / "gap.py").read_text().replace('name="spectral-gap"', 'name="topology"')
    (tmp_path / "taken.py").write_text(taken)
    for name, message in {
        "empty.py": "holds neither",
        "broken.py": "fails .NameError",
        "taken.py": "the name 'topology' is taken",
        "absent.py": "no file",
        "no_such_module": "No module named",
    }.items():
        source = str(tmp_path / name) if name.endswith(".py") else name
        with pytest.raises(ValueError, match=message) as caught:
            load_plugin(source)
        assert len(str(caught.value).splitlines()) == 1


def test_the_files_of_architectures_are_part_of_what_trains_saes(tmp_path: Path, monkeypatch) -> None:
    """They are imported by their names, the package's and a plug-in's: no import statement leads to them."""
    from sae import architectures
    from workbench import analyses
    from workbench.study import fingerprint

    monkeypatch.setattr(analyses, "_PLUGINS", [])
    monkeypatch.setattr(architectures, "_FOUND", {})
    names = ("sae-train", "attention")

    def digests() -> list[str]:
        return [fingerprint.fingerprint(analyses.find_analysis(name)) for name in names]

    before, own = digests(), fingerprint._named()
    assert {f"sae.architectures.{name}" for name in architectures.BUILT_IN} == set(own)
    (tmp_path / "annealed_more.py").write_text((PLUGINS / "p_annealed.py").read_text())
    analyses.load_plugin(str(tmp_path / "annealed_more.py"))
    assert [a == b for a, b in zip(before, digests(), strict=True)] == [False, True]
    others = tuple(name for name in own if name != "sae.architectures.matryoshka")  # which no other file imports
    monkeypatch.setattr(fingerprint, "_named", lambda: others)
    assert digests()[0] != before[0]


INTERVENTION = str(PLUGINS / "mlp_orthogonality.py")
PRESSED = """
name = "pressed"
base = "janus-v3-control-nano"
[[phases]]
name = "language"
n_steps = 40
log_every = 1
schedule = { n_warmup_steps = 0 }
[[phases.interventions]]
kind = "mlp-orthogonality"
weight = 0.5
[monitor]
every = 0
[checkpoint]
every = 5
"""


def test_an_intervention_is_found_however_its_base_is_imported(tmp_path: Path, monkeypatch) -> None:
    """And whatever else the file holds: an array compares by element."""
    from workbench import analyses
    from workbench.training import interventions

    monkeypatch.setattr(analyses, "_PLUGINS", [])
    monkeypatch.setattr(interventions, "_FOUND", {})
    lines = ["import numpy as np", "import workbench.extend as wb", "X = np.arange(3)"]
    file = tmp_path / "by_module.py"
    file.write_text("\n".join([*lines, "class ByModule(wb.Intervention):", "    pass", ""]))
    analyses.load_plugin(str(file))
    assert interventions.find_intervention("by-module").__name__ == "ByModule"


@pytest.mark.slow
def test_an_intervention_trains_logs_resumes_after_a_kill_and_is_drawn(tmp_path: Path) -> None:
    (tmp_path / "pressed.toml").write_text(PRESSED)
    (tmp_path / "free.toml").write_text(PRESSED.replace("weight = 0.5", "weight = 0.0").replace('"pressed"', '"free"'))
    words = ("--plugin", INTERVENTION, "train", "pressed.toml", "--device", "cpu")
    run(tmp_path, *words, "--out", "whole")
    run(tmp_path, *words[:3], "free.toml", *words[4:], "--out", "free")
    logs = {name: pd.read_csv(tmp_path / name / "train_log.csv") for name in ("whole", "free")}
    ends = {name: log["mlp-orthogonality.cos"].iloc[-1] for name, log in logs.items()}
    assert ends["whole"] < 0.5 * ends["free"]
    assert logs["whole"]["mlp-orthogonality.loss"].iloc[-1] == pytest.approx(0.5 * ends["whole"], rel=1e-6)
    process = begin(tmp_path, *words, "--out", "killed")
    while not (tmp_path / "killed.partial" / "step_00000010").is_dir():
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    run(tmp_path, *words, "--out", "killed", "--resume")
    weights = [next((tmp_path / name).glob("step_00000040/*.safetensors")) for name in ("whole", "killed")]
    assert sha256_file(weights[0]) == sha256_file(weights[1])
    write_table(pd.concat(list(logs.values())), tmp_path / "study", "train_log")
    write_effects(tmp_path / "study")
    page = write_report(tmp_path / "study").read_text(encoding="utf-8")
    assert '<figure id="telemetry"' in page
    assert "mlp-orthogonality" in page


@pytest.mark.slow
def test_a_recipe_with_an_intervention_that_is_not_loaded_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "pressed.toml").write_text(PRESSED)
    process = begin(tmp_path, "train", "pressed.toml", "--out", "out", "--device", "cpu")
    _, err = process.communicate(timeout=500)
    assert process.returncode == 1
    assert "got 'mlp-orthogonality'" in err
    assert "--plugin FILE" in err
    assert not (tmp_path / "out").exists()
