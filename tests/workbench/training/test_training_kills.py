"""kill -9 at random moments, by the clock, over runs with automata, a transition and many saves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tomli_w

import workbench
from workbench.models.load import load, weights_sha256
from workbench.training import apply_overrides, load_recipe

N_KILLS = 20
SMALL = {
    "model.n_layers": 2, "model.d_model": 32, "model.d_head": 8, "model.d_mlp": 64, "model.n_ctx": 64,
    "model.extensions.attn_res.boundaries": [0, 1], "data.n_held_out_windows": 4, "monitor.n_sequences": 2,
    "monitor.every": 10, "checkpoint.every": 4, "phases.0.n_steps": 24, "phases.1.n_steps": 36,
    "phases.0.batch_size": 2, "phases.1.batch_size": 2, "phases.0.schedule.n_warmup_steps": 4,
    "phases.1.schedule.n_warmup_steps": 4,
}  # fmt: skip

SCRIPT = """
import json, os, random, signal, sys, time
import torch
torch.set_num_threads(1)
from pathlib import Path
from workbench.training import load_recipe, train

recipe, out, n_kills = load_recipe(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])


def begin(directory):
    pid = os.fork()
    if pid == 0:
        train(recipe, directory, dtype="float32", device="cpu", progress=False, resume=True)
        os._exit(0)
    return pid


def code(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


for name in ("first", "whole"):  # the first packs the text
    start = time.monotonic()
    assert code(begin(out / name)) == 0
    whole_s = time.monotonic() - start
rng, kills, runs = random.Random(os.urandom(8)), [], 0
while len(kills) < n_kills:
    directory = out / f"run{runs}"
    while not directory.exists() and len(kills) < n_kills:
        pid, begun = begin(directory), time.monotonic()
        time.sleep(rng.uniform(0, 0.6 * whole_s))
        os.kill(pid, signal.SIGKILL)
        if code(pid) == -signal.SIGKILL:
            partial = directory.with_name(directory.name + ".partial")
            latest = partial / "latest"
            half = any(partial.glob(".step_*.tmp")) if partial.exists() else False
            kills.append([runs, latest.read_text().strip() if latest.exists() else "none", half])
    if not directory.exists():
        assert code(begin(directory)) == 0
    runs += 1
print(json.dumps({"kills": kills, "runs": runs, "whole_s": whole_s}))
"""


@pytest.mark.slow
def test_twenty_kills_leave_no_trace(tmp_path):
    recipe = apply_overrides(load_recipe("lang-ddv1-nano"), SMALL)
    path = tmp_path / "recipe.toml"
    path.write_text(tomli_w.dumps(recipe.model_dump(mode="json", exclude_none=True)))
    root = Path(workbench.__file__).parent.parent
    environment = os.environ | {"WORKBENCH_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-c", SCRIPT, str(path), str(tmp_path), str(N_KILLS)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found["kills"]) == N_KILLS
    wanted = weights_sha256(load(tmp_path / "whole", device="cpu"))
    right = [weights_sha256(load(tmp_path / f"run{i}", device="cpu")) == wanted for i in range(found["runs"])]
    print(f"{N_KILLS} kills over {found['runs']} runs, {sum(right)} right: {found}")  # noqa: T201  (shown by -s)
    assert all(right)
