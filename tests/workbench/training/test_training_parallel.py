"""Two processes train as one does: DDP and FSDP2 over gloo, Muon's work shared out, one writer, exact resume.

The processes are forked from one that has loaded everything once, and joined as torchrun joins them, by environment.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tomli_w
import torch

import workbench
from reports.tables import read_table
from workbench.data.tokenizer import train_bpe
from workbench.data.tokens import WindowSampler
from workbench.models import HookedLM
from workbench.models.load import load
from workbench.models.weights import weights_sha256
from workbench.training import Recipe, apply_overrides, load_recipe
from workbench.training.objective import Batch, objective
from workbench.training.optimizers import Optimizer
from workbench.training.parallel import check_batches
from workbench.training.prescription import Moment, Prescription
from workbench.training.recipe import parse_recipe, phase_model
from workbench.training.sharded_optimizer import share_out
from workbench.training.training_data import open_feed

ROOT = Path(workbench.__file__).parent.parent
WORDS = "the a king queen forest river stone walked sang slept under over bright dark and then home away"
MODEL = {
    "n_layers": 3, "d_model": 16, "n_heads": 4, "n_key_value_heads": 2, "d_head": 4, "d_mlp": 24, "n_ctx": 16,
    "d_vocab": 300, "use_qk_norm": True, "tie_word_embeddings": True,
    "extensions": {"attn_res": {"boundaries": [0, 2]}},
}  # fmt: skip
LEARNED = {"boundaries": "learned", "n_blocks": 2}
MUON = {"muon": {"lr": 0.02, "momentum_start": 0.85, "n_momentum_steps": 5}, "adamw": {"lr": 3e-3}}
Z_LOSS = {"kind": "z-loss", "weight": 1e-5}

SCRIPT = """
import faulthandler, json, os, socket, sys, traceback
# pandas would load it, its allocator starts a thread, and a fork of a process with threads may crash
sys.modules["pyarrow"] = None
import torch
torch.set_num_threads(1)
from pathlib import Path
from workbench.cli.errors import describe, exit_code
from workbench.training import load_recipe, train
from workbench.training import state
from workbench.training.trainer import Trainer


def free_port():
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


def act(job, rank):
    del sys.modules["pyarrow"]
    sys.stderr = open(job["errors"] + str(rank), "w")
    faulthandler.enable(sys.stderr)  # a signal that ends the process names its place
    if job.get("signal") and rank == 1:  # the other one is told by this one alone
        real = Trainer._step
        def step(self):
            real(self)
            if self.position.step == 3:
                os.kill(os.getpid(), job["signal"])
        Trainer._step = step
    if job.get("full_disk"):
        def full(*args):
            raise OSError(28, "No space left on device")
        state._require_space = full
    try:
        train(load_recipe(job["recipe"]), job["out"], device="cpu", progress=False, **job["settings"])
    except Exception as error:
        print(describe(error), file=sys.stderr, flush=True)
        return exit_code(error)
    return 0


threads = Path("/proc/self/task")
assert not threads.is_dir() or len(list(threads.iterdir())) == 1, "a process that forks has one thread"
for job in json.loads(Path(sys.argv[1]).read_text()):
    port, children = str(free_port()), []
    for rank in range(job["n"]):
        pid = os.fork()
        if pid == 0:
            if job["n"] > 1:
                os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(job["n"]),
                               "MASTER_ADDR": "localhost", "MASTER_PORT": port}
            try:
                code = act(job, rank)
            except SystemExit as stop:
                code = stop.code
            except BaseException:
                traceback.print_exc()
                code = 99
            sys.stderr.flush()
            os._exit(code)
        children.append(pid)
    print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]), flush=True)
"""


def recipe_of(folder: Path, phases: list[dict], **changes) -> Recipe:
    data = {"source": str(folder / "text.jsonl"), "tokenizer": str(folder), "held_out_fraction": 0.1}
    settings = {
        "name": "tiny",
        "model": MODEL,
        "data": data | {"n_held_out_windows": 4},
        "phases": phases,
        "monitor": {"every": 10, "n_sequences": 2},
        "checkpoint": {"every": 10},
    }
    return apply_overrides(parse_recipe(settings), changes)


def recipes(folder: Path) -> dict[str, Recipe]:
    """AdamW; Muon after automata; pressure on the heads; blocks learned and frozen, attention in its own channel."""
    common = {"batch_size": 4, "n_accumulation": 2, "log_every": 5, "eval_every": 10, "interventions": [Z_LOSS]}
    adamw = common | {"n_steps": 20, "optimizer": {"adamw": {"lr": 3e-3, "weight_decay": 0.1}}}
    nca = common | {"name": "nca", "kind": "nca", "n_steps": 5, "nca": {"states": 4, "size": 4}, "optimizer": MUON}
    pressed = {"kind": "vsm", "controller": {"kind": "proportional", "n_warmup_steps": 4, "every": 2}}
    return {
        "adamw": recipe_of(folder, [adamw]),
        "lineage": recipe_of(folder, [nca, common | {"n_steps": 15, "optimizer": MUON}]),
        **{
            name: recipe_of(
                folder,
                [adamw | {"n_steps": 8, "interventions": [Z_LOSS, pressed | {"on": on}]}],
                **{"model.extensions.attn_res": None},
            )
            for name, on in (("vsm", "z"), ("residual", "residual"))
        },
        "odd": recipe_of(folder, [adamw | {"batch_size": 3}]),
        "learned": recipe_of(
            folder,
            [nca, common | {"n_steps": 10, "optimizer": MUON}],
            **{"model.extensions.attn_res": LEARNED, "phases.1.attn_res": "freeze"},
        ),
        "channel": recipe_of(folder, [adamw | {"n_steps": 10}], **{"model.extensions.attn_res.streams": "attention"}),
    }


def jobs(place: Path) -> list[dict]:
    """(name, recipe, processes, settings) in the order in which they run; `cut` stops, is refused, then goes on."""
    f64, fsdp, stopped = {"dtype": "float64"}, {"fsdp": True}, {"stop_after": 8}
    listed = [
        ("adamw-1", "adamw", 1, f64),
        ("adamw-2", "adamw", 2, f64),
        ("adamw-fsdp", "adamw", 2, f64 | fsdp),
        ("adamw32-1", "adamw", 1, {"dtype": "float32"}),
        ("adamw32-2", "adamw", 2, {"dtype": "float32"}),
        ("lineage-1", "lineage", 1, f64),
        ("lineage-2", "lineage", 2, f64),
        ("lineage-fsdp", "lineage", 2, f64 | fsdp),
        ("lineage32-1", "lineage", 1, {"dtype": "float32"}),
        ("lineage32-2", "lineage", 2, {"dtype": "float32"}),
        *((f"{name}-2", name, 2, f64) for name in ("vsm", "residual")),
        *((f"{name}-fsdp", name, 2, f64 | fsdp) for name in ("vsm", "residual")),
        ("cut", "lineage", 2, f64 | stopped),
        ("cut-other", "lineage", 1, f64 | {"resume": True}),
        ("cut-fsdp-other", "lineage", 2, f64 | fsdp | {"resume": True}),
        ("cut", "lineage", 2, f64 | {"resume": True}),
        ("cut-fsdp", "lineage", 2, f64 | fsdp | stopped),
        ("cut-fsdp", "lineage", 2, f64 | fsdp | {"resume": True}),
        ("taken", "adamw", 2, f64),
        ("odd", "odd", 2, {}),
        ("told", "adamw", 2, f64),
        ("full", "adamw", 2, f64),
        ("alone", "adamw", 1, fsdp),
        ("finished", "adamw", 2, f64 | {"resume": True}),
        *((f"{name}-1", name, 1, f64) for name in ("learned", "channel")),
        *((f"{name}-2", name, 2, f64) for name in ("learned", "channel")),
        *((f"{name}-fsdp", name, 2, f64 | fsdp) for name in ("learned", "channel")),
    ]
    where = {"cut-other": "cut", "cut-fsdp-other": "cut", "taken": "adamw-1", "finished": "adamw-2"}
    more = {"told": {"signal": signal.SIGTERM}, "full": {"full_disk": True}}
    return [
        {
            "recipe": str(place / f"{recipe}.toml"),
            "out": str(place / where.get(name, name)),
            "n": n,
            "settings": settings,
            "errors": str(place / f"{i}-{name}.errors."),
            "name": name,
        }
        | more.get(name, {})
        for i, (name, recipe, n, settings) in enumerate(listed)
    ]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Where every job of `jobs` has run, with their exit codes in codes.json."""
    folder, rng = tmp_path_factory.mktemp("parallel"), random.Random(0)
    rows = [{"text": " ".join(rng.choices(WORDS.split(), k=120))} for _ in range(40)]
    (folder / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    train_bpe((row["text"] for row in rows), 300).save(str(folder / "tokenizer.json"))
    for name, recipe in recipes(folder).items():
        (folder / f"{name}.toml").write_text(tomli_w.dumps(recipe.model_dump(mode="json", exclude_none=True)))
    (folder / "jobs.json").write_text(json.dumps(jobs(folder)))
    environment = os.environ | {"WORKBENCH_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SCRIPT, str(folder / "jobs.json")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert len(lines) == len(jobs(folder)), done.stdout + done.stderr
    (folder / "codes.json").write_text(json.dumps(lines))
    return folder


def outcome(place: Path, name: str, which: int = 0) -> tuple[list[int], str]:
    """(exit codes, all that was said on stderr) of the which-th job of that name."""
    index = [i for i, job in enumerate(jobs(place)) if job["name"] == name][which]
    codes = json.loads((place / "codes.json").read_text())[index]
    said = [Path(f"{jobs(place)[index]['errors']}{rank}").read_text() for rank in range(len(codes))]
    return codes, "".join(said)


def difference(a: Path, b: Path) -> float:
    """Largest difference of any weight."""
    left, right = load(a, device="cpu"), load(b, device="cpu")
    pairs = zip(left.named_parameters(), right.named_parameters(), strict=True)
    return max(float((p - q).detach().abs().max()) for (_, p), (_, q) in pairs)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("one", "two", "limit"),
    [
        ("adamw-1", "adamw-2", 1e-12),
        ("adamw-1", "adamw-fsdp", 1e-12),
        # float32 sums in another order, over 20 steps
        ("adamw32-1", "adamw32-2", 1e-5),
        ("lineage-1", "lineage-2", 1e-9),
        ("lineage-1", "lineage-fsdp", 1e-9),
        # Muon iterates in bfloat16, to which float32 sums in another order may be rounded another way, and lifts small
        # singular values with their error: what is left after 20 steps is less than one step's length, lr = .02
        ("lineage32-1", "lineage32-2", 2e-2),
        ("learned-1", "learned-2", 1e-9),
        ("learned-1", "learned-fsdp", 1e-9),
        ("channel-1", "channel-2", 1e-12),
        ("channel-1", "channel-fsdp", 1e-12),
    ],
)
def test_steps_of_two_processes_are_those_of_one(place, one, two, limit):
    assert outcome(place, one) == ([0], "")
    assert outcome(place, two) == ([0, 0], "")
    found = difference(place / one, place / two)
    print(f"{one} {two}: {found:.2e}")  # noqa: T201  (shown by -s: the figure for the record)
    assert found <= limit


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adamw-2", "adamw-fsdp", "lineage-2", "lineage-fsdp", "learned-fsdp"])
def test_process_0_leaves_what_one_process_would(place, name):
    alone = place / f"{name.split('-')[0]}-1"
    files = {str(p.relative_to(alone)) for p in alone.rglob("*")}
    assert {str(p.relative_to(place / name)) for p in (place / name).rglob("*")} == files
    assert not (place / f"{name}.lock").exists()
    ours, theirs = (read_table(d, "train_log").drop(columns="tokens_per_s") for d in (place / name, alone))
    assert list(ours.columns) == list(theirs.columns)
    for column in ("step", "n_tokens", "phase", "lr"):
        assert ours[column].equals(theirs[column])
    for column in ("loss", "held_out_loss", "grad_norm", "sigma_z", "nuclear_rank.W_O.1"):
        assert ours[column].isna().equals(theirs[column].isna())
        assert (ours[column] - theirs[column]).abs().max() < 1e-9, column
    steps = [max((place / d).glob("step_*")) / "train_state.json" for d in (name, alone.name)]
    info, wanted = (json.loads(path.read_text()) for path in steps)
    assert info["processes"] == f"2 processes, {'FSDP' if 'fsdp' in name else 'DDP'}"
    assert info["data"] == wanted["data"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cut", "cut-fsdp"])
def test_two_processes_go_on_exactly(place, name):
    codes, said = outcome(place, name)
    assert codes == [130, 130]
    assert said.startswith("interrupted: stopped after step 8 (stop_after = 8); state saved in ")
    assert said.count("\n") == 1
    assert outcome(place, name, 1) == ([0, 0], "")
    whole = "lineage-fsdp" if "fsdp" in name else "lineage-2"
    assert weights_sha256(load(place / name, device="cpu")) == weights_sha256(load(place / whole, device="cpu"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "codes", "message"),
    [
        ("cut-other", [1], "was saved by 2 processes, DDP; got one process; expected the same again"),
        ("cut-fsdp-other", [1, 1], "was saved by 2 processes, DDP; got 2 processes, FSDP; expected the same again"),
        ("taken", [1, 1], "already exists; expected a new directory, or --resume"),
        ("odd", [1, 1], "phases.0.batch_size: got 3 for 2 processes; expected a multiple of 2"),
        ("full", [1, 1], "No space left on device"),
        ("alone", [1], "fsdp: got one process; expected several, started by torchrun"),
    ],
)
def test_a_refusal_is_one_line_and_ends_all(place, name, codes, message):
    found, said = outcome(place, name)
    assert found == codes
    assert message in said
    assert said.count("\n") == 1


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both_after_the_step_and_saves(place):
    codes, said = outcome(place, "told")
    assert codes == [130, 130]
    assert said.startswith("interrupted: stopped after step 3 (a signal to another process); state saved in ")
    assert (place / "told.partial" / "latest").read_text() == "step_00000003\n"


@pytest.mark.slow
def test_a_finished_run_is_returned(place):
    assert outcome(place, "finished") == ([0, 0], "")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vsm", "residual"])
def test_pressure_compares_the_heads_of_each_process_own_rows(name, place):
    """Eight steps by hand: every global micro-batch in two halves, each with its own Gram matrix, all averaged."""
    recipe = load_recipe(place / f"{name}.toml")
    phase, model = recipe.phases[0], HookedLM(phase_model(recipe, 0), seed=0).double()
    prescription = Prescription(phase.interventions, model.cfg, phase.n_steps)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_CACHE", str(place / "cache"))
        sampler = WindowSampler(open_feed(recipe).train, 16, 4, seed=0)
    optimizer, weight, last = Optimizer(model, phase.optimizer), 0.0, 0.0
    for step in range(8):
        optimizer.start(step, 1.0)
        if step < 4:
            weight = 0.05 * step / 4
        elif step % 2 == 0:
            weight = min(max(weight + 0.5 * (last - 0.0035), 0.0), 0.25)
        parts = []
        for _ in range(2):
            for rows in sampler.next_batch().split(2):
                parts.append(objective(model, Batch(rows), prescription, Moment(step, {"vsm": {"lambda": weight}})))
                (parts[-1].total / 4).backward()
        last = sum(float(p.telemetry["vsm.sigma"]) for p in parts) / 4
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    for run in (f"{name}-2", f"{name}-fsdp"):
        assert outcome(place, run) == ([0, 0], "")
        trained = dict(load(place / run, device="cpu").named_parameters())
        for weight_name, parameter in model.named_parameters():
            torch.testing.assert_close(trained[weight_name], parameter, rtol=1e-9, atol=1e-11, msg=weight_name)


def test_matrices_are_shared_out_evenly():
    work = {f"w{i}": float(w) for i, w in enumerate([7, 5, 5, 3, 3, 2, 2, 1])}
    owner = share_out(work, 2)
    assert list(owner) == list(work)
    assert sorted(sum(work[n] for n in owner if owner[n] == rank) for rank in (0, 1)) == [14, 14]
    assert set(share_out({"only": 1.0}, 3).values()) == {0}


def test_batches_that_cannot_be_shared_are_named():
    recipe = load_recipe("p3-muon-nano")
    check_batches(recipe, 4)
    with pytest.raises(ValueError, match=r"phases.0.batch_size: got 16 for 3 processes; expected a multiple of 3"):
        check_batches(recipe, 3)


@pytest.mark.slow
def test_torchrun_trains_from_the_command_line(place, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "workbench"]
    arguments = ["train", str(place / "adamw.toml"), "--device", "cpu", "--dtype", "float64", "--out"]
    environment = os.environ | {"WORKBENCH_CACHE": str(place / "cache"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, *arguments, str(tmp_path / "run")],
        capture_output=True, text=True, cwd=ROOT, env=environment, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == f"{tmp_path / 'run'}\n"
    assert difference(tmp_path / "run", place / "adamw-2") == 0
