"""An ablation that is killed goes on and leaves what it would have left."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from models_for_tests import worded_model
from typer.testing import CliRunner

from workbench.cli.app import app
from workbench.models.checkpoint import save
from workbench.runs import sha256_file, verify_manifest

# the command line in a process that kills itself in the middle of writing its n-th file of losses
KILLED = """
import os, signal, sys
from pathlib import Path
from workbench.cli import app
from workbench import runs

replace, left, prefix = Path.replace, [int(sys.argv.pop(1))], sys.argv.pop(1)

def replace_or_die(self, target):
    if Path(target).name.startswith(prefix):
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
    return replace(self, target)

Path.replace = replace_or_die
app.main()
"""
FILES = (
    "ablation_results.csv", "ablation_results_blocks.csv", "ablation_summary.csv", "ablation_pairs.csv",
    "sequence_losses.safetensors", "pair_losses.safetensors",
)  # fmt: skip


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    """The verb on a small model, with a budget that cuts its 9 sequences into batches of a few."""
    place = tmp_path_factory.mktemp("kill")
    model = worded_model("kotodama")
    save(model, place)
    text = place / "text.txt"
    text.write_text("".join(f"Line {i} tells of cat number {i * i} and its river.\n" for i in range(3000)))
    options = ["--kind", "resample", "--n-resamples", 2, "--components", "head,mlp", "--pairs", "0.1+0.3,0.0+2.2"]
    options += ["--n-tokens", 9 * model.cfg.n_ctx, "--memory-gib", 0.002]
    return [str(a) for a in ["--ckpt", place, "--data", text, *options]]


@pytest.mark.parametrize(("prefix", "n"), [("part_heads", 2), ("part_pairs", 3)])
def test_a_killed_run_goes_on_to_the_same_bytes(arguments, prefix, n, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    whole = CliRunner().invoke(app, ["ablate", *arguments, "--out", "whole"])
    assert whole.exit_code == 0, whole.output
    command = [sys.executable, "-c", KILLED, str(n), prefix, "ablate", *arguments, "--out", "cut"]
    killed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    left = sorted(path.name for path in Path("cut.partial").glob(f"{prefix}_*"))
    assert len(left) == n - 1, "each batch but the one that was being written"
    assert any(path.name.endswith(".tmp") for path in Path("cut.partial").iterdir()), "which was cut off"
    again = CliRunner().invoke(app, ["ablate", *arguments, "--out", "cut", "--resume"])
    assert again.exit_code == 0, again.output
    assert {name: sha256_file(Path("cut", name)) for name in FILES} == {
        name: sha256_file(Path("whole", name)) for name in FILES
    }
    assert again.stdout.splitlines()[:-1] == whole.stdout.splitlines()[:-1]
    verify_manifest("cut")
