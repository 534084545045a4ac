"""Kills while SAEs train from a model or from shards, and while shards are written: every byte comes out the same."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = """
import hashlib, json, os, signal, sys, warnings
import torch
torch.set_num_threads(1)
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from models_for_tests import small_model, tokens_for
import sae.train
from workbench.analyses.harvest.storing import harvest
from workbench.analyses.sae_train.head_saes import sae_train

root, points = Path(sys.argv[2]), sys.argv[3:]
warnings.simplefilter("ignore")
model = small_model("janus-v3", n_layers=2)
tokens, held_out = tokens_for(model, batch=60, pos=16), tokens_for(model, batch=6, pos=16, seed=9)
hooks = [f"blocks.{layer}.attn.hook_z" for layer in range(2)]
kinds = {"hook": ("z", "hook_resid_post"), "architecture": ("relu", "matryoshka"), "k": (3,)}
pairs = {"hook": ("hook_mlp_out", "ln2.hook_normalized:hook_mlp_out"), "architecture": ("relu", "skip_transcoder")}
pairs |= {"activation": ("relu", "topk"), "k": (3,), "l1": [0.5], "seeds": [0], "n_train_tokens": 1280}
kinds |= {"l1": [0.5], "seeds": [0], "n_train_tokens": 1280}
settings = {"l1": [0.5, 8.0], "seeds": [0, 1], "held_out": held_out, "batch_size": 32, "buffer_tokens": 128,
            "lr": 3e-2, "expansion": 8, "n_ce_tokens": 32, "n_train_tokens": 4800}
work = {
    "stream": lambda out, resume: sae_train(model, tokens, out=out, resume=resume, **settings),
    "kinds": lambda out, resume: sae_train(model, tokens, out=out, resume=resume, **settings | kinds),
    "pairs": lambda out, resume: sae_train(model, tokens, out=out, resume=resume, **settings | pairs),
    "shards": lambda out, resume: sae_train(model, root / "harvested", out=out, resume=resume, **settings),
    "harvest": lambda out, resume: harvest(model, tokens, hooks, out, resume=resume, shard_bytes=14_000),
}


def die_at(owner, name, n, after):
    # SIGKILL before, or after, the n-th call of this process
    real, left = getattr(owner, name), [n]

    def counted(*args, **kwargs):
        left[0] -= 1
        result = real(*args, **kwargs) if left[0] >= 0 or after else None
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, counted)


def count_calls(kill_at=None):
    # calls of Python functions so far in this process, whatever else the machine does; SIGKILL at one of them
    n = [0]

    def count(frame, event, argument):
        n[0] += event == "call"
        if n[0] == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(count)
    return n


def run(kind, out, resume, point=None):
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            if point and point[0] == "fsync":
                die_at(os, "fsync", int(point[1]), after=False)
            if point and point[0] == "resample":
                die_at(sae.train, "resample_dead", int(point[1]), after=True)
            if point and point[0] == "share":
                count_calls(kill_at=int(float(point[1]) * n_calls[kind]))
            counted = count_calls() if point == "count" else None
            work[kind](out, resume)
            if counted:
                sys.setprofile(None)
                (root / f"{kind}-calls").write_text(str(counted[0]))
            code = 0
        except BaseException as error:
            print(type(error), error, file=sys.stderr)
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def digests(out):
    files = (p for p in out.rglob("*") if p.is_file() and p.name not in ("env.json", "manifest.json"))
    return {str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


harvest(model, tokens, hooks, root / "harvested", shard_bytes=14_000)
n_calls, wanted, found = {}, {}, []
for point in points:
    kind, *point = point.split(":")
    if kind not in wanted:
        assert run(kind, root / f"{kind}-whole", False, "count") == 0
        n_calls[kind] = int((root / f"{kind}-calls").read_text())
        wanted[kind] = digests(root / f"{kind}-whole")
    out = root / f"{kind}-cut-{len(found)}"
    code = run(kind, out, False, point)
    left = out.with_name(out.name + ".partial")
    state = left / "train_state.safetensors"
    had = len(list(left.glob("shard_*.safetensors"))) if kind == "harvest" else int(state.is_file())
    assert run(kind, out, True) == 0, point
    found.append({"kind": kind, "point": point, "killed": code == -signal.SIGKILL, "had": had,
                  "same": digests(out) == wanted[kind]})
print(json.dumps({"found": found, "n_files": {kind: len(own) for kind, own in wanted.items()}}))
"""


def kill_at(points: list[str], place: Path) -> dict:
    """What came of a kill at each point: `killed` if it hit, `had` what was saved by then, `same` after the resume."""
    here = Path(__file__).parents[1]
    command = [sys.executable, "-c", SCRIPT, str(here), str(place), *points]
    done = subprocess.run(command, capture_output=True, text=True, cwd=here.parents[1], timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_killed_runs_go_on_to_the_same_bytes(tmp_path):
    """In the middle of a save, right behind a resampling that was not saved yet, after a share of all calls."""
    points = ["stream:fsync:4", "stream:resample:1", "stream:share:0.5", "shards:fsync:5", "shards:resample:0",
              "shards:share:0.4", "harvest:fsync:9", "harvest:share:0.5", "kinds:resample:2", "kinds:fsync:27",
              "kinds:share:0.4", "pairs:resample:2", "pairs:share:0.4"]  # fmt: skip
    result = kill_at(points, tmp_path)
    assert len(result["found"]) == len(points)
    assert all(one["same"] for one in result["found"]), result
    assert all(one["killed"] for one in result["found"]), result
    assert any(one["had"] for one in result["found"]), "some had saved nothing: they began again, which proves less"
    assert result["n_files"]["stream"] >= 7


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0])
def test_twenty_random_kills_each_from_a_model_and_from_shards(tmp_path, seed, record_property):
    draws = np.random.default_rng(seed)
    points = [f"{kind}:share:{share:.4f}" for kind in ("stream", "shards") for share in draws.uniform(0.02, 0.75, 18)]
    points += [f"{kind}:resample:{n}" for kind in ("stream", "shards") for n in range(2)]
    points += [f"harvest:share:{share:.4f}" for share in draws.uniform(0.02, 0.75, 10)]
    result = kill_at(points, tmp_path)
    assert all(one["same"] for one in result["found"]), result
    for kind in ("stream", "shards", "harvest"):
        own = [one for one in result["found"] if one["kind"] == kind]
        n_hit = sum(one["killed"] for one in own)
        n_saved = sum(one["killed"] and one["had"] > 0 for one in own)
        record_property(f"{kind}: kills that hit, those that had saved, all", f"{n_hit}, {n_saved}, {len(own)}")
        assert n_hit == len(own), own
        assert n_saved >= 1, own
