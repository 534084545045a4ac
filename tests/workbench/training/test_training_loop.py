"""The loop as a whole: what it writes, that it learns, stops, resumes to the bit, and what it refuses."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tomli_w
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from typer.testing import CliRunner

import workbench
from reports.tables import COLUMNS, read_table
from workbench.cli.app import app
from workbench.data.tokens import WindowSampler
from workbench.models import HookedLM
from workbench.models.load import load
from workbench.models.weights import weights_sha256
from workbench.training import Interrupted, NonFiniteLoss, Recipe, apply_overrides, learned_boundaries, train
from workbench.training.plan import plan
from workbench.training.recipe import parse_recipe, phase_model
from workbench.training.telemetry import telemetry_columns
from workbench.training.trainer import Trainer
from workbench.training.training_data import Source, judging_batches, open_feed

WORDS = "the a king queen forest river stone walked sang slept under over bright dark and then home away"
pytestmark = pytest.mark.usefixtures("cache")
MODEL = {"n_layers": 2, "d_model": 16, "n_heads": 4, "d_head": 4, "d_mlp": 24, "n_ctx": 16, "d_vocab": 300}
PRESSURE = {"kind": "vsm", "controller": {"kind": "proportional", "n_warmup_steps": 4, "every": 2}}


def language(text: Path, **changes) -> Recipe:
    """One phase with VSM and a controller."""
    phase = {
        "n_steps": 12,
        "batch_size": 2,
        "n_accumulation": 2,
        "interventions": [PRESSURE],
        "eval_every": 5,
        "log_every": 2,
        "optimizer": {"adamw": {"lr": 3e-3, "weight_decay": 0.1}},
        "schedule": {"kind": "cosine", "n_warmup_steps": 3},
    }
    data = {
        "source": str(text / "text.jsonl"),
        "tokenizer": str(text),
        "held_out_fraction": 0.1,
        "n_held_out_windows": 8,
    }
    settings = {
        "name": "tiny",
        "model": MODEL,
        "data": data,
        "phases": [phase],
        "monitor": {"every": 6, "n_sequences": 3},
        "checkpoint": {"every": 4},
    }
    return apply_overrides(parse_recipe(settings), changes)


def lineage(text: Path) -> Recipe:
    """Automata first, then language with attention residuals, both under Muon: every kind of state there is."""
    muon = {"muon": {"lr": 0.02, "momentum_start": 0.85, "n_momentum_steps": 5}, "adamw": {"lr": 3e-3}}
    common = {"batch_size": 2, "optimizer": muon, "log_every": 1, "eval_every": 3}
    nca, z_loss = {"states": 4, "size": 4}, {"kind": "z-loss", "weight": 1e-5}
    settings = {
        "name": "tiny-lineage",
        "model": MODEL | {"extensions": {"attn_res": {"boundaries": [0, 1]}}},
        "data": {
            "source": str(text / "text.jsonl"),
            "tokenizer": str(text),
            "held_out_fraction": 0.1,
            "n_held_out_windows": 4,
        },
        "phases": [
            common
            | {"name": "nca", "kind": "nca", "n_steps": 4, "nca": nca, "attn_res": "off", "interventions": [z_loss]},
            common | {"name": "language", "n_steps": 6, "interventions": [z_loss, PRESSURE]},
        ],
        "monitor": {"every": 4, "n_sequences": 2},
        "checkpoint": {"every": 3, "keep": 1},
    }
    return parse_recipe(settings)


def test_automata_with_a_seed_of_their_own_are_the_same_in_every_run_and_judged_on_others(text):
    """A fixed seed fixes what is trained on; what judges stays what judges every run, and is not trained on."""
    recipe = lineage(text)
    seeded = apply_overrides(recipe, {"phases.0.nca.seed": 42})
    feed = open_feed(recipe)
    trained = [Source(seeded, 0, feed, seed, "cpu").next_batch().tokens for seed in (0, 1)]
    assert torch.equal(*trained)
    assert not torch.equal(trained[0], Source(recipe, 0, feed, 0, "cpu").next_batch().tokens)
    judging = [judging_batches(of, 0, feed, "cpu")[0].tokens for of in (recipe, seeded)]
    assert torch.equal(*judging)
    source = Source(seeded, 0, feed, 0, "cpu")
    read = {tuple(row.tolist()) for _ in range(8) for row in source.next_batch().tokens}
    assert not {tuple(row.tolist()) for row in judging[0]} <= read


def run(recipe: Recipe, out: Path, **settings) -> Path:
    return train(recipe, out, **({"device": "cpu", "dtype": "float32", "progress": False} | settings))


def digest(directory: Path) -> str:
    return weights_sha256(load(directory, device="cpu"))


def log_without_times(directory: Path):
    return read_table(directory, "train_log").drop(columns="tokens_per_s")


def test_a_run_leaves_what_it_should(text, tmp_path):
    out = run(language(text), tmp_path / "run")
    assert out == tmp_path / "run"
    assert sorted(p.name for p in out.iterdir()) == [
        "config.toml", "datapackage.json", "env.json", "latest", "manifest.json", "step_00000008", "step_00000012",
        "train_log.csv", "train_log_blocks.csv",
    ]  # fmt: skip
    assert (out / "latest").read_text() == "step_00000012\n"
    assert sorted(p.name for p in (out / "step_00000012").iterdir()) == [
        "hooked_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "train_state.json",
        "train_state.safetensors",
    ]  # fmt: skip
    model = load(out, device="cpu")
    assert model.cfg.n_layers == 2
    assert model.to_tokens("the king").shape[1] == 3

    log = read_table(out, "train_log")
    assert tuple(log.columns[: len(COLUMNS["train_log"])]) == COLUMNS["train_log"]
    assert log["step"].tolist() == [0, 2, 4, 5, 6, 8, 10, 12]
    assert log["n_tokens"].tolist() == [step * 4 * 16 for step in log["step"]]
    assert log["held_out_loss"].notna().tolist() == [s in (0, 5, 10, 12) for s in log["step"]]
    perplexities = [math.exp(loss) for loss in log["held_out_loss"]]
    assert log["held_out_perplexity"].tolist() == pytest.approx(perplexities, rel=1e-15, nan_ok=True)
    assert log["sigma_residual"].notna().tolist() == [s in (0, 6, 12) for s in log["step"]]
    trained = log[log["step"] > 0]
    for column in ("loss", "vsm.loss", "vsm.lambda", "vsm.sigma", "lr", "grad_norm", "tokens_per_s"):
        assert trained[column].notna().all(), column
    assert {"sigma_z.1", "sigma_pattern.0", "sigma_residual.1", "nuclear_rank.W_O.1", "bos_mass.0"} <= set(log.columns)
    assert set(log["model"]) == {"tiny"}
    assert set(log["phase"]) == {"language"}


def test_the_loop_does_what_a_loop_written_out_does(text, tmp_path):
    """Eight steps by hand in float64: sampling, accumulation, λ, clipping, AdamW, schedule."""
    recipe = language(text, **{"phases.0.n_steps": 8, "monitor.every": 0, "phases.0.clip_norm": 0.5})
    out = run(recipe, tmp_path / "run", dtype="float64", seed=3)
    model = HookedLM(phase_model(recipe, 0), seed=3).double()
    sampler = WindowSampler(open_feed(recipe).train, 16, 2, seed=3)
    decayed = [p for n, p in model.named_parameters() if ".W_" in n]
    rest = [p for n, p in model.named_parameters() if ".W_" not in n]
    adamw = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}], lr=3e-3
    )
    weight, last_sigma = 0.0, 0.0
    for step in range(8):
        if step < 4:
            weight = 0.05 * step / 4
        elif step % 2 == 0:
            weight = min(max(weight + 0.5 * (last_sigma - 0.0035), 0.0), 0.25)
        share = (step + 1) / 3 if step < 3 else (1 + math.cos(math.pi * (step - 3) / 5)) / 2
        for group in adamw.param_groups:
            group["lr"] = 3e-3 * share
        sigmas = []
        for _ in range(2):
            tokens = sampler.next_batch()
            seen: list[torch.Tensor] = []
            hooks = [(f"blocks.{layer}.attn.hook_z", lambda z, hook, seen=seen: seen.append(z)) for layer in range(2)]
            loss = model.run_with_hooks(tokens, return_type="loss", fwd_hooks=hooks)
            for z, depth in zip(seen, (1 / 8, 1.0), strict=True):
                z = z.permute(2, 0, 1, 3).flatten(1)
                unit = z / z.norm(dim=1, keepdim=True)
                gram = unit @ unit.T
                loss = loss + weight * depth * torch.linalg.norm(gram - torch.eye(4))
                sigmas.append(float((gram.detach().abs().sum() - 4) / 12))
            (loss / 2).backward()
        last_sigma = sum(sigmas) / 4
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        adamw.step()
        adamw.zero_grad()
    trained = dict(load(out, device="cpu").named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(trained[name], parameter, rtol=1e-9, atol=1e-11, msg=name)


def test_training_lowers_the_held_out_loss(text, tmp_path):
    recipe = language(text, **{"phases.0.n_steps": 100, "phases.0.optimizer.adamw.lr": 1e-2, "monitor.every": 0})
    log = read_table(run(recipe, tmp_path / "run"), "train_log")
    held_out = log["held_out_loss"].dropna().tolist()
    assert held_out[0] == pytest.approx(math.log(300), abs=0.1)
    # eighteen words in random order: ln 18 = 2.9 nats is the best possible
    assert held_out[-1] < 3.6
    assert log["loss"].iloc[-1] < 3.6


def test_pressure_lowers_sigma(text, tmp_path):
    # at initialisation the heads of so small a model share little: strong pressure, all layers alike
    free = language(text, **{"phases.0.interventions": [], "phases.0.n_steps": 40})
    strong = {"kind": "vsm", "controller": {"kind": "fixed", "weight": 1.0}, "steering": 0.0}
    pressed = language(text, **{"phases.0.n_steps": 40, "phases.0.interventions": [strong]})
    sigmas = {}
    for name, recipe in (("free", free), ("pressed", pressed)):
        log = read_table(run(recipe, tmp_path / name), "train_log")
        sigmas[name] = log["sigma_z"].dropna().iloc[-1]
        assert ("vsm.lambda" in log) == (name == "pressed")
    assert sigmas["pressed"] < 0.5 * sigmas["free"]


@pytest.mark.parametrize("kind", [language, lineage], ids=["vsm", "lineage"])
def test_the_same_seed_gives_the_same_weights_and_another_seed_others(kind, text, tmp_path):
    digests = [digest(run(kind(text), tmp_path / f"{i}", seed=seed)) for i, seed in enumerate((0, 0, 1))]
    assert digests[0] == digests[1]
    assert digests[0] != digests[2]
    a, b = (log_without_times(tmp_path / str(i)) for i in (0, 1))
    assert a.equals(b)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("stop", [1, 6])
def test_an_interrupted_run_ends_as_one_that_never_stopped(text, tmp_path, stop, dtype):
    whole = run(language(text), tmp_path / "whole", dtype=dtype)
    with pytest.raises(Interrupted, match=rf"stopped after step {stop} .*step_0000000{stop}"):
        run(language(text), tmp_path / "cut", dtype=dtype, stop_after=stop)
    assert not (tmp_path / "cut").exists()
    with pytest.raises(Interrupted, match=f"step {stop + 2}"):
        run(language(text), tmp_path / "cut", dtype=dtype, resume=True, stop_after=2)
    cut = run(language(text), tmp_path / "cut", dtype=dtype, resume=True)
    assert digest(cut) == digest(whole)
    assert log_without_times(cut).equals(log_without_times(whole))


def test_the_transition_resumes_exactly(text, tmp_path):
    whole = run(lineage(text), tmp_path / "whole")
    for stop in (2, 4, 5):
        out = tmp_path / f"cut{stop}"
        with pytest.raises(Interrupted):
            run(lineage(text), out, stop_after=stop)
        assert digest(run(lineage(text), out, resume=True)) == digest(whole)
    log = read_table(whole, "train_log")
    assert log["phase"].tolist()[:5] == ["nca"] * 5
    assert set(log["phase"].tolist()[5:]) == {"language"}


def test_what_the_transition_keeps_and_what_it_draws_anew(text, tmp_path):
    recipe, feed = lineage(text), open_feed(lineage(text))
    tmp_path.joinpath("run").mkdir()
    trainer = Trainer(recipe, (), feed, tmp_path / "run", seed=0, device="cpu")
    first = trainer.model
    assert (first.cfg.d_vocab, first.cfg.extensions.attn_res, first.tokenizer) == (4**4 + 2, None, None)
    with torch.no_grad():
        for parameter in first.parameters():
            parameter += 1
    trainer._enter(1, first)
    second = trainer.model
    assert second.cfg.d_vocab == 300
    assert second.tokenizer is not None
    for name, parameter in second.named_parameters():
        if "route_" in name:
            assert float(parameter.detach().abs().sum()) == (0 if name.endswith("query") else 16), name
        elif name.startswith(("embed.", "unembed.")):
            assert float(parameter.detach().abs().max()) < 0.5, name
        else:
            assert torch.equal(parameter, first.get_parameter(name)), name
    assert not trainer.optimizer.state_dict()


@pytest.mark.parametrize("routing", ["carry", "reset"])
def test_routing_is_carried_or_reset(text, tmp_path, routing):
    settings = lineage(text).model_dump(mode="json")
    settings["phases"][0]["attn_res"], settings["phases"][1]["attn_res"] = "carry", routing
    tmp_path.joinpath("run").mkdir()
    recipe = parse_recipe(settings)
    trainer = Trainer(recipe, telemetry_columns(recipe), open_feed(recipe), tmp_path / "run", seed=0, device="cpu")
    with torch.no_grad():
        trainer.model.route_final.query.add_(1)
    trainer._enter(1, trainer.model)
    assert float(trainer.model.route_final.query.detach()[0]) == (1 if routing == "carry" else 0)


@pytest.mark.parametrize("routing", ["carry", "reset", "freeze"])
def test_learned_boundaries_outlive_the_transition(text, tmp_path, routing):
    """They move while they are trained, stay under a reset of the routing, and stand still once frozen."""
    settings = lineage(text).model_dump(mode="json")
    settings["model"]["extensions"]["attn_res"] = {"boundaries": "learned", "n_blocks": 2}
    settings["model"]["n_layers"] = 4
    settings["phases"][0]["attn_res"], settings["phases"][1]["attn_res"] = "carry", routing
    settings["phases"][0]["optimizer"]["adamw"]["boundary_lr"] = 0.5
    recipe = parse_recipe(settings)
    out = run(recipe, tmp_path / "whole")
    with pytest.raises(Interrupted):
        run(recipe, tmp_path / "cut", stop_after=5)
    assert digest(run(recipe, tmp_path / "cut", resume=True)) == digest(out)
    log = read_table(out, "train_log")
    assert list(log.columns[-5:]) == [*(f"block_position.{i}" for i in range(4)), "held_out_perplexity"]
    found = log.loc[log["block_position.1"].notna(), [f"block_position.{i}" for i in range(4)]].to_numpy()
    assert found[0] == pytest.approx([0, 1 / 3, 2 / 3, 1])
    after_automata, last = found[1], found[-1]
    assert abs(after_automata - found[0]).max() > 0.02  # .5 of Adam's steps, four of them
    assert after_automata[[0, 3]] == pytest.approx([0, 1])
    is_frozen = routing == "freeze"
    assert set(last) <= {0.0, 1.0} if is_frozen else not set(last) <= {0.0, 1.0}
    (tmp_path / "recipe.toml").write_text(tomli_w.dumps(recipe.model_dump(mode="json", exclude_none=True)))
    common = ["--out", str(out), "--resume", "--device", "cpu", "--dtype", "float32", "--json"]
    said = CliRunner().invoke(app, ["train", str(tmp_path / "recipe.toml"), *common])
    model = load(out, device="cpu")
    assert json.loads(said.stdout) == {"boundaries": list(learned_boundaries(model)), "out": str(out)}
    positions = model.boundaries.positions().tolist()
    assert last == pytest.approx(positions, abs=1e-6)
    state = load_file(out / "step_00000010" / "train_state.safetensors")
    assert ("optimizer/adamw/boundaries.increments/exp_avg" in state) == (not is_frozen)


SCRIPT = """
import os, signal, sys
import torch
torch.set_num_threads(1)
from pathlib import Path
from workbench.training import load_recipe, train
from workbench.training.trainer import Trainer
from workbench.training.plan import plan

recipe, out, points = load_recipe(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]


def die_at(kind, n):
    # SIGKILL at the n-th fsync (the moments of a save) or the n-th step of this process
    owner, name = (os, "fsync") if kind == "fsync" else (Trainer, "_step")
    real, left = getattr(owner, name), [n]

    def counted(*args):
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args)

    setattr(owner, name, counted)


def in_child(work):
    pid = os.fork()
    if pid == 0:
        work()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def attempt(directory, resume, kind=None, n=0):
    def work():
        if kind:
            die_at(kind, n)
        train(recipe, directory, dtype="float32", device="cpu", progress=False, resume=resume)

    return in_child(work)


assert attempt(out / "whole", False) == 0
killed, resume = 0, False
for point in points:
    kind, n = point.split(":")
    killed += attempt(out / "cut", resume, kind, int(n)) == -signal.SIGKILL
    resume = True
while attempt(out / "cut", True) != 0:
    pass
print(killed)
"""


def test_killed_runs_go_on_to_the_same_weights(text, tmp_path):
    """kill -9 in the middle of steps and saves, in the first phase, at the transition: one run, again and again."""
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(tomli_w.dumps(lineage(text).model_dump(mode="json", exclude_none=True)))
    points = ["step:2", "fsync:4", "fsync:9", "step:4", "fsync:12", "step:2"]
    command = [sys.executable, "-c", SCRIPT, str(recipe), str(tmp_path), *points]
    root = Path(workbench.__file__).parent.parent
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.split()[-1]) >= 5, done.stdout
    assert digest(tmp_path / "cut") == digest(tmp_path / "whole")
    assert log_without_times(tmp_path / "cut").equals(log_without_times(tmp_path / "whole"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_finish_the_step_and_save(text, tmp_path, number, monkeypatch):
    real = Trainer._step

    def step_then_signal(self):
        real(self)
        if self.position.step == 3:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(Trainer, "_step", step_then_signal)
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match=rf"step 3 \({number.name}\)"):
        run(language(text), tmp_path / "run")
    assert signal.getsignal(number) is before
    assert (tmp_path / "run.partial" / "latest").read_text() == "step_00000003\n"


@pytest.mark.parametrize("what", ["loss", "gradient norm"])
def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_state(text, tmp_path, what, monkeypatch):
    real = Trainer._step

    def poisoned(self):
        if self.position.step == 6:
            with torch.no_grad():
                self.model.ln_final.w[0] = math.nan if what == "loss" else 1e30
        real(self)

    monkeypatch.setattr(Trainer, "_step", poisoned)
    with pytest.raises(NonFiniteLoss, match=r"at step 7; the last good checkpoint is .*step_00000004"):
        run(language(text), tmp_path / "run")
    assert digest(tmp_path / "run.partial")
    monkeypatch.setattr(Trainer, "_step", real)
    assert digest(run(language(text), tmp_path / "run", resume=True)) == digest(run(language(text), tmp_path / "clean"))


def test_resuming_a_finished_run_returns_it(text, tmp_path):
    out = run(language(text), tmp_path / "run")
    before = time.time_ns()
    assert run(language(text), tmp_path / "run", resume=True) == out
    assert all(path.stat().st_mtime_ns < before for path in out.rglob("*"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seed": -1}, "seed: got -1"),
        ({"dtype": "int4"}, "dtype: got 'int4'"),
        ({"device": "abacus"}, "device: got 'abacus'"),
        ({"overrides": {"phases.0.n_steps": -1}}, "phases.0.n_steps"),
        ({"phases.0.n_stepps": 2}, "unknown key 'n_stepps'; nearest: n_steps"),
        ({"sede": 2}, "unknown key 'sede'"),
        ({"overrides": {"data.source": "no/such/text"}}, "no/such/text"),
        ({"overrides": {"data.tokenizer": "gpt2"}}, "gpt2 has 50257 entries; expected at most d_vocab = 300"),
        ({"overrides": {"model.n_ctx": 1 << 20}}, "text has .* tokens; expected at least n_ctx"),
        ({"resume": True, "overrides": {"phases.0.n_steps": 13}}, "n_steps is 12 .* got 13"),
        ({}, "already exists"),
    ],
)
def test_bad_input(text, tmp_path_factory, settings, message):
    directory = tmp_path_factory.getbasetemp() / "finished"
    if not directory.exists():
        run(language(text), directory)
    out = directory if settings.get("resume") or not settings else directory.parent / "new"
    with pytest.raises(ValueError, match=message):
        run(language(text), out, **settings)
    assert not (directory.parent / "new").exists()


@pytest.mark.parametrize("kind", [language, lineage], ids=["language", "nca"])
def test_a_run_does_not_go_on_with_another_text(kind, text, tmp_path):
    """Also where only the held-out part is another, which judges, and in a phase that reads automata."""
    own = tmp_path / "own.txt"
    lines = "".join(f"{line}\n" for line in (text / "text.jsonl").read_text().split(","))
    own.write_text(lines)
    recipe = apply_overrides(kind(text), {"data.source": str(own)})
    with pytest.raises(Interrupted):
        run(recipe, tmp_path / "run", stop_after=1)
    own.write_text(lines + "the")  # a text of one document is cut at a line break: its first part is as it was
    with pytest.raises(
        ValueError, match=r"data: the held-out text of '.*own.txt', or its tokenizer, has changed since"
    ):
        run(recipe, tmp_path / "run", resume=True)
    own.write_text(lines[1:])
    with pytest.raises(ValueError, match="data: the train text of"):
        run(recipe, tmp_path / "run", resume=True)
    own.write_text(lines)
    run(recipe, tmp_path / "run", resume=True)


def llama_like(directory: Path, **settings: object) -> Path:
    """A folder with a tokenizer.json of three special tokens, and what is said of it."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = ByteLevel(add_prefix_space=False), ByteLevelDecoder()
    special = ["<unk>", "<s>", "</s>"]
    trainer = BpeTrainer(vocab_size=280, special_tokens=special, initial_alphabet=ByteLevel.alphabet())
    tokenizer.train_from_iterator([WORDS], trainer)
    tokenizer.save(str(directory / "tokenizer.json"))
    if settings:
        (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return directory


@pytest.mark.parametrize("adds_bos", [True, False, None])
def test_a_model_reads_texts_as_the_folder_of_its_tokenizer_says(adds_bos, text, tmp_path):
    folder = llama_like(tmp_path, bos_token="<s>", eos_token="</s>", add_bos_token=adds_bos)
    recipe = language(text, **{"data.tokenizer": str(folder), "phases.0.n_steps": 4})
    model = load(run(recipe, tmp_path / "run"), "cpu")
    assert (model.tokenizer.bos_token, model.tokenizer.eos_token) == ("<s>", "</s>")
    assert model.to_tokens("the king")[0, 0].item() == (1 if adds_bos else model.tokenizer.encode("the king")[0])
    tokens = open_feed(recipe).train.tokens
    assert tokens[-1] == 2
    assert (tokens[0] == 1) == bool(adds_bos)


def test_a_tokenizer_that_does_not_say_what_ends_a_text_is_refused(text, tmp_path):
    recipe = language(text, **{"data.tokenizer": str(llama_like(tmp_path))})
    with pytest.raises(ValueError, match=r"which token ends a text \(special tokens: <unk>, <s>, </s>\); expected"):
        run(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("every", "keep", "n_kept"), [(4, None, 3), (5, None, 3), (3, None, 5), (100, 9, 2), (4, 2, 2), (10, None, 2)]
)
def test_the_plan_counts_the_checkpoints_that_a_run_leaves(text, tmp_path, every, keep, n_kept):
    recipe = apply_overrides(lineage(text), {"checkpoint.every": every, "checkpoint.keep": keep})  # 4 and 6 steps
    assert plan(recipe, device="cpu", dtype="float32")["n_checkpoints_kept"] == n_kept
    assert len(list(run(recipe, tmp_path / "run").glob("step_*"))) == n_kept


def test_the_progress_bar_goes_to_stderr(text, tmp_path, capfd):
    run(language(text), tmp_path / "run", progress=True)
    shown = capfd.readouterr()
    assert shown.out == ""
    assert "step 12/12" in shown.err
    assert "tokens/s" in shown.err


def test_the_plan_counts_right_and_writes_nothing(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = lineage(text)
    facts = plan(recipe, device="cpu", dtype="float32")
    model = HookedLM(phase_model(recipe, 1))
    assert facts["n_parameters"] == model.n_parameters()
    assert facts["n_tokens_by_phase"] == {"nca": 4 * 2 * 16, "language": 6 * 2 * 16}
    assert facts["n_steps"] == 10
    # weights, and between one and two moments each, for the checkpoint that is kept and the one being written
    assert 2 * 4 * 2 * model.n_parameters() < facts["bytes_on_disk"] < 2 * 4 * 3.1 * model.n_parameters()
    assert facts["bytes_in_memory"] > 4 * 4 * model.n_parameters()
    assert not {"seconds", "tokens_per_s_by_phase"} & set(facts)  # formulas know no machine
    assert list(tmp_path.iterdir()) == []
