"""Training on a CUDA device: the CPU's losses, no needless waiting for the device, and resumed to the bit."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from processes import environment
from waits import waits

from workbench.models.load import load
from workbench.models.weights import weights_sha256
from workbench.training import Interrupted, apply_overrides, load_recipe, train
from workbench.training.objective import autocast_dtype
from workbench.training.recipe import Phase, Recipe
from workbench.training.telemetry import telemetry_columns
from workbench.training.trainer import Trainer
from workbench.training.training_data import open_feed

# every intervention: none, VSM on z and on maps, Muon, routing, automata, recurrence with all of its losses
RECIPES = (
    "janus-small-nano", "janus-v3-control-nano", "janus-v3-adaptive-nano", "janus-v3-pattern-nano", "p3-muon-nano",
    "p3-attnres-nano", "lang-ddv1-nano", "recurrent-nano",
)  # fmt: skip
N_STEPS = 6


def follows_sigma(phase: Phase) -> bool:
    """Whether a controller reads a number of the device to set its weight."""
    return any(own.kind == "vsm" and own.controller.kind == "proportional" for own in phase.interventions)


def short(name: str) -> Recipe:
    """A recipe of so few steps that λ, automata and all are met in them."""
    recipe = load_recipe(name)
    few = {"checkpoint.every": 2, "monitor.every": 3, "monitor.n_sequences": 2, "data.n_held_out_windows": 4}
    for i, phase in enumerate(recipe.phases):
        few |= {f"phases.{i}.n_steps": N_STEPS, f"phases.{i}.eval_every": 3, f"phases.{i}.log_every": 1}
        few |= {f"phases.{i}.schedule.n_warmup_steps": 1} if phase.schedule.n_warmup_steps else {}
        if follows_sigma(phase):
            controller = f"phases.{i}.interventions.vsm.controller"
            few |= {f"{controller}.n_warmup_steps": 2, f"{controller}.every": 2}
    return apply_overrides(recipe, few)


def losses(run: Path) -> list[float]:
    with (run / "train_log.csv").open() as file:
        return [float(row["loss"]) for row in csv.DictReader(file) if row["loss"]]


# automata are others on another kind of device
@pytest.mark.parametrize("name", [name for name in RECIPES if name != "lang-ddv1-nano"])
def test_the_same_losses_as_on_the_cpu(tmp_path: Path, name: str) -> None:
    recipe = short(name)
    runs = [train(recipe, tmp_path / d, device=d, dtype="float64", progress=False) for d in ("cpu", "cuda")]
    on_cpu, on_device = map(losses, runs)
    assert len(on_cpu) == N_STEPS * len(recipe.phases)
    # Muon orthogonalises in bfloat16 on either, in another order: a rounding there is .4 % of a step
    limit = 2e-3 if any(p.optimizer.muon for p in recipe.phases) else 1e-8
    assert on_device == pytest.approx(on_cpu, rel=limit)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", RECIPES)
def test_stopped_and_resumed_to_the_bit(tmp_path: Path, name: str, dtype: str) -> None:
    recipe = short(name)
    options = {"device": "cuda", "dtype": dtype, "progress": False}
    whole = train(recipe, tmp_path / "whole", **options)
    cut = tmp_path / "cut"
    for n in (1, 2, 100):  # at a step that is no checkpoint's, then at one
        try:
            train(recipe, cut, **options, stop_after=n, resume=n != 1)
        except Interrupted:
            continue
    assert cut.is_dir()
    assert losses(cut) == losses(whole)
    assert weights_sha256(load(cut)) == weights_sha256(load(whole))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", RECIPES)
def test_replayed_graphs_train_what_launched_kernels_train(tmp_path: Path, name: str, dtype: str) -> None:
    recipe, options = short(name), {"device": "cuda", "dtype": dtype, "progress": False}
    runs = [train(recipe, tmp_path / str(graphs), graphs=graphs, **options) for graphs in (True, False)]
    assert losses(runs[0]) == losses(runs[1])
    assert weights_sha256(load(runs[0])) == weights_sha256(load(runs[1]))


@pytest.mark.parametrize("name", ["janus-v3-adaptive", "p3-attnres", "recurrent-golf"])
def test_a_model_of_full_size_too(tmp_path: Path, name: str) -> None:
    """Attention and embedding of this size have faster kernels whose sums have no fixed order."""
    recipe = short(name)
    tokenizer = "embedded-1024" if recipe.model.d_vocab < 4096 else "embedded"
    recipe = apply_overrides(recipe, {
        "data.source": "embedded", "data.tokenizer": tokenizer, "data.held_out_fraction": 0.05, "monitor.every": 0,
        "data.documents": None, "data.held_out_split": None,
        **{f"phases.{i}.n_accumulation": 2 for i in range(len(recipe.phases))},
    })  # fmt: skip
    whole = train(recipe, tmp_path / "whole", device="cuda", progress=False)
    with pytest.raises(Interrupted):
        train(recipe, tmp_path / "cut", device="cuda", progress=False, stop_after=3)
    cut = train(recipe, tmp_path / "cut", device="cuda", progress=False, resume=True)
    assert losses(cut) == losses(whole)
    assert weights_sha256(load(cut)) == weights_sha256(load(whole))


@pytest.mark.parametrize("name", RECIPES)
def test_a_step_does_not_wait_for_the_device(tmp_path: Path, name: str) -> None:
    """CUDA raises on every read of a tensor's value: a step queues its kernels and reads nothing."""
    recipe = short(name)
    trainer = Trainer(
        recipe,
        telemetry_columns(recipe),
        open_feed(recipe),
        tmp_path,
        0,
        "cuda",
        autocast=autocast_dtype("cuda", "auto"),
    )
    for _ in range(3):  # kernels are loaded, a controller is past its rise
        trainer._step()
    reads = follows_sigma(recipe.phases[0])
    n_reads = 0
    with waits("error"):
        for _ in range(2):
            try:
                trainer._step()
            except RuntimeError as error:
                if "synchroniz" not in str(error) or not reads:
                    raise
                n_reads += 1
    assert n_reads <= int(reads)


def test_bfloat16_learns_what_float32_learns(tmp_path: Path) -> None:
    recipe = apply_overrides(load_recipe("janus-v3-control-nano"), {"phases.0.n_steps": 150, "monitor.every": 0})
    ends = {}
    for dtype in ("float32", "bfloat16"):
        found = losses(train(recipe, tmp_path / dtype, device="cuda", dtype=dtype, progress=False))
        assert found[-1] < found[0] - 2
        ends[dtype] = found[-1]
    assert ends["bfloat16"] == pytest.approx(ends["float32"], rel=0.02)


def test_a_checkpoint_of_the_device_opens_on_the_cpu(tmp_path: Path) -> None:
    run = train(short("janus-v3-control-nano"), tmp_path / "run", device="cuda", dtype="float32", progress=False)
    model = load(run, device="cpu")
    assert {p.device.type for p in model.parameters()} == {"cpu"}
    tokens = torch.arange(64)[None]
    torch.testing.assert_close(model(tokens), load(run, device="cuda")(tokens.cuda()).cpu(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["janus-v3-adaptive-nano", "lang-ddv1-nano"])
def test_a_plan_says_what_the_device_will_hold(tmp_path: Path, name: str) -> None:
    """In a process of its own: the allocator's peak is that of all that the process has done."""
    few = ("n_steps=6", "schedule.n_warmup_steps=1")
    settings = [f"--set=phases.{i}.{one}" for i in range(len(load_recipe(name).phases)) for one in few]
    command = [sys.executable, "-m", "workbench", "train", name, *settings, "--device", "cuda", "--json"]
    runs = [
        subprocess.run([*command, *more], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False)
        for more in (["--dry-run"], ["--out", "run"])
    ]
    assert [run.returncode for run in runs] == [0, 0], [run.stderr[-500:] for run in runs]
    planned, env = json.loads(runs[0].stdout), json.loads((tmp_path / "run" / "env.json").read_text())
    assert planned["bytes_on_device"] == pytest.approx(env["peak_device_memory_bytes"], rel=0.25)
    assert planned["flops"] > 0
