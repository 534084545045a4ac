"""The command line: verbs against the functions they wrap, exit codes, one-line errors, interrupts, quick help."""

from __future__ import annotations

import errno
import io
import json
import os
import resource
import signal
import subprocess
import sys
import tomllib
import warnings
from pathlib import Path

import pandas as pd
import pytest
import torch
import typer
import typer.main
from processes import environment
from pydantic import ValidationError
from rich.text import Text
from typer.testing import CliRunner

from reports.tables import read_table
from workbench import runs
from workbench.analyses.ablate import ablation
from workbench.analyses.ablate.ablation import ablate
from workbench.analyses.ablate.analysis import AblateSettings
from workbench.analyses.attention.statistics import attention
from workbench.analyses.attention_patterns.patterns import attention_patterns
from workbench.analyses.topology.heads import topology_tables
from workbench.cli.app import VERBS, app
from workbench.cli.errors import describe, guarded, show_warning
from workbench.cli.output import report
from workbench.data.shards import open_shards
from workbench.data.text_windows import analysis_tokens
from workbench.models.load import load
from workbench.study.recipe import load_study, study_names
from workbench.training import load_recipe, recipe_names
from workbench.training.log import TrainLog

pytestmark = pytest.mark.filterwarnings("ignore:topology. .* tokens:probes.SmallSampleWarning")
ROOT = Path(__file__).parents[3]
EXPECTED = "expected less at once: a smaller batch, window, budget or model"
HEAVY = ("torch", "pandas", "scipy", "plotly", "transformer_lens", "pydantic")


def call(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture
def subject(place):
    return ["--ckpt", place / "model", "--data", place / "text.txt", "--n-tokens", 6 * 24]


def harvested(place):
    return ["--ckpt", place / "model", "--data", place / "text.txt", "--n-sequences", 6]


def read(place, name="model", n=6):
    model = load(place / name)
    return model, analysis_tokens(model, place / "text.txt", n_sequences=n)


def same(found, wanted):
    """Two tables that are equal but for the last digits of what two batchings of float32 sums give."""
    pd.testing.assert_frame_equal(found.reset_index(drop=True), wanted.reset_index(drop=True), check_dtype=False)


# --- verbs


def test_ablate_writes_what_the_function_returns(place, subject):
    result = call("ablate", *subject, "--out", "a", "--seed", 3, "--layers", "0,2", "--heads", "1-2")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == str(Path.cwd() / "a")
    same(read_table("a", "ablation_results"), ablate(*read(place), [0, 2], [1, 2], seed=3))
    assert sorted(p.name for p in Path("a").iterdir()) == [
        "ablation.json", "ablation_results.csv", "ablation_summary.csv", "config.toml", "datapackage.json", "env.json",
        "manifest.json", "sequence_losses.safetensors",
    ]  # fmt: skip
    runs.verify_manifest("a")


def test_json_is_one_object_and_the_path(subject):
    result = call("ablate", *subject, "--out", "a", "--json", "--kind", "resample", "--set", "n_bootstrap=150")
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert answer["out"] == str(Path.cwd() / "a")
    assert len(answer["rows"]) == 12
    assert answer["rows"][0]["kind"] == "resample"
    assert runs.read_config("a")["settings"]["n_bootstrap"] == 150


def test_an_undefined_number_is_null_in_json(place):
    arguments = ["--ckpt", place / "model", "--data", place / "text.txt", "--n-tokens", 24, "--json"]
    row = json.loads(call("ablate", *arguments, "--out", "a").stdout)["rows"][0]
    assert row["stderr"] is None
    assert row["impact_pct"] is not None


def test_topology_takes_several_models(place, subject):
    result = call("topology", *subject, "--ckpt", place / "other", "--out", "t")
    assert result.exit_code == 0, result.output
    stats, cosines = read_table("t", "topology_stats"), read_table("t", "head_cosines")
    assert stats["model"].unique().tolist() == [str(place / "model"), str(place / "other")]
    for name in ("model", "other"):
        wanted = topology_tables(*read(place, name), name=str(place / name))
        same(stats[stats["model"] == str(place / name)], wanted[0])
        same(cosines[cosines["model"] == str(place / name)], wanted[1])
    sizes = read_table("t", "effective_size")
    assert sizes["model_a"].tolist() == [str(place / "other")] * 2, "against the first"
    assert set(sizes["model_b"]) == {str(place / "model")}
    assert sizes["layer_a"].tolist() == [-1, 1], "all layers, then the one nearest to 6 of 12"
    assert (sizes["n_parameters"] > 1000).all()


def test_attention_writes_what_the_functions_return(place):
    arguments = ["--ckpt", place / "model", "--data", place / "text.txt", "--n-tokens", 6 * 24, "--layers", "1"]
    result = call("attention", *arguments, "--n-repeated", 3)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == str(Path.cwd() / "runs" / "attention")
    same(read_table("runs/attention", "attention_stats"), attention(*read(place), [1], n_repeated=3))
    assert call("attention-patterns", *arguments, "--window", 8).exit_code == 0
    same(read_table("runs/attention-patterns", "attention_patterns"), attention_patterns(*read(place), [1], window=8))
    for verb, more, code, message in (
        ("attention", ["--layers", 9], 1, "layers: got 9; expected 0…2"),
        ("attention-patterns", ["--layers", 9], 1, "layers: got 9; expected 0…2"),
        ("attention", ["--n-repeated", -1], 2, "--n-repeated"),
        ("attention-patterns", ["--window", 1], 2, "--window"),
        ("attention-patterns", ["--max-tokens", 1], 2, "--max-tokens"),
        ("attention-patterns", ["--sentence", " "], 2, "sentence: got one without a word; expected text"),
        ("attention", ["--n-sequences", 6], 2, "--n-sequences"),
    ):
        failed = call(verb, *arguments, *more, "--out", "x")
        assert (failed.exit_code, message in failed.stderr) == (code, True), failed.output
        assert not list(Path().glob("x*"))


def test_harvest_names_its_shards(place):
    arguments = [
        *harvested(place),
        "--layers",
        "all",
        "--hook",
        "attn.hook_z",
        "--hook",
        "hook_resid_post",
        "--set",
        "shard_bytes=1",
    ]
    result = call("harvest", *arguments, "--out", "h", "--json")
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    shards = open_shards("h")
    assert list(shards.hooks) == answer["hooks"]
    assert answer["hooks"][:2] == ["blocks.0.attn.hook_z", "blocks.0.hook_resid_post"]
    assert answer["n_shards"] == 6
    assert answer["bytes_on_disk"] == sum(f.stat().st_size for f in Path("h").glob("shard_*"))


def test_hooks_lists_every_hook_with_its_shape(place):
    answer = json.loads(call("hooks", "--ckpt", place / "other", "--json").stdout)
    shapes = {row["name"]: row["shape"] for row in answer["rows"]}
    assert set(shapes) == set(load(place / "other").hook_dict)
    assert shapes["blocks.1.attn.hook_k"] == [1, 16, 2, 8]
    assert shapes["blocks.1.attn.hook_pattern"] == [1, 4, 16, 16]
    assert "blocks.0.attn.hook_z" in call("hooks", "--ckpt", place / "other").stdout


def test_recipes_are_listed():
    rows = json.loads(call("recipes", "--json").stdout)["rows"]
    assert "janus-v3-control-nano" in [row["name"] for row in rows]
    assert all(row["description"] for row in rows)
    assert "janus-v3-control-nano" in call("recipes").stdout
    assert "janus-variants-nano" in call("recipes", "--study").stdout


def test_a_printed_recipe_is_the_whole_of_it_and_can_be_run(tmp_path):
    for options, names, read in (([], recipe_names(), load_recipe), (["--study"], study_names(), load_study)):
        assert names
        for name in names:
            file = tmp_path / f"{name}.toml"
            file.write_text(call("recipes", name, *options).stdout, encoding="utf-8")
            assert "base" not in tomllib.loads(file.read_text(encoding="utf-8"))
            assert read(file) == read(name)
    facts = json.loads(call("recipes", "janus-v3-uniform-nano", "--json").stdout)
    assert facts["name"] == "janus-v3-uniform-nano"
    assert facts["model"]["d_model"] == 128, "which its base says"
    assert call("recipes", "nowhere").stderr.startswith("error: recipe: no recipe or file 'nowhere'")


def test_generate_goes_on_from_each_prompt_the_same_with_the_same_seed(place):
    arguments = ["generate", "--ckpt", place / "model", "The cat", "A river of", "--max-new-tokens", 6, "--json"]
    first, second = (json.loads(call(*arguments, "--seed", 1).stdout)["rows"] for _ in range(2))
    assert first == second
    assert [row["prompt"] for row in first] == ["The cat", "A river of"]
    assert first != json.loads(call(*arguments, "--seed", 2).stdout)["rows"]
    greedy = [call(*arguments, "--temperature", 0, "--seed", seed).stdout for seed in (1, 2)]
    assert greedy[0] == greedy[1]


@pytest.mark.parametrize("to", ["transformer-lens", "hf"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_export_and_import_keep_the_weights(place, to):
    result = call("export", "--ckpt", place / "other", "--to", to, "--out", "exported")
    assert result.exit_code == 0, result.output
    assert result.stdout == "exported\n"  # and nothing of what the libraries print
    assert Path("exported", "model.safetensors").is_file()
    if to == "hf":
        assert call("import", "exported", "--out", "again").exit_code == 0
        ours, again = load(place / "other"), load("again")
        tokens = torch.arange(20)[None]
        torch.testing.assert_close(again(tokens), ours(tokens), atol=1e-4, rtol=1e-4)


TINY = ["model.n_layers=1", "model.n_ctx=32", "phases.0.n_steps=4", "phases.0.batch_size=2", "monitor.every=0",
        "phases.0.eval_every=4", "data.n_held_out_windows=2", "phases.0.schedule.n_warmup_steps=1"]  # fmt: skip


def tiny(place, *more):
    settings = dict(setting.split("=", 1) for setting in (*TINY, *more))  # the later one counts
    pairs = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    return ["train", "janus-v3-control-nano", "--data", place / "text.txt", *pairs]


def test_train_makes_a_run_that_the_other_verbs_know_by_name_and_seed(place):
    result = call(*tiny(place), "--seed", 5, "--json")
    assert result.exit_code == 0, result.output
    out = Path(json.loads(result.stdout)["out"])
    assert out.name == "janus-v3-control-nano-seed5"
    assert out.samefile("runs/janus-v3-control-nano-seed5")
    arguments = ["--data", place / "text.txt", "--n-tokens", 64, "--out", "t"]
    assert call("topology", "--ckpt", out, *arguments).exit_code == 0
    stats = read_table("t", "topology_stats")
    assert set(stats["model"]) == {"janus-v3-control-nano"}
    assert set(stats["seed"]) == {5}


# --- plans


@pytest.mark.parametrize(
    "verb",
    [
        ["ablate", "--kind", "resample", "--n-resamples", 2],
        ["ablate", "--pairs", "within"],
        ["topology"],
        ["attention"],
        ["attention-patterns"],
    ],
)
def test_a_dry_run_plans_and_writes_nothing(place, verb):
    text = ["--data", place / "text.txt", "--n-tokens", 6 * 24]
    result = call(*verb, "--ckpt", place / "model", *text, "--dry-run", "--json")
    assert result.exit_code == 0, result.output
    plan = json.loads(result.stdout)
    assert set(plan) == {"n_models", "n_tokens", "flops", "bytes_in_memory"}
    assert plan["n_tokens"] == 6 * 24
    assert not list(Path.cwd().iterdir())


# --- resuming


def test_a_killed_ablation_goes_on_and_comes_out_the_same(subject, monkeypatch):
    # small batches: as with a small budget of memory
    plan_sizes = ablation.plan_sizes
    monkeypatch.setattr(ablation, "plan_sizes", lambda *a: plan_sizes(*a).__class__(2, 4, 1 << 16))
    assert call("ablate", *subject, "--out", "whole").exit_code == 0
    run = ablation.ablate_batch
    calls = []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return run(*arguments)

    monkeypatch.setattr(ablation, "ablate_batch", interrupted)
    result = call("ablate", *subject, "--out", "cut")
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1].startswith("interrupted: ")
    assert sorted(p.name for p in Path("cut.partial").glob("part_*")) == [
        "part_heads_000000000.safetensors", "part_heads_000000002.safetensors",
    ]  # fmt: skip
    calls.clear()
    monkeypatch.setattr(ablation, "ablate_batch", lambda *a: calls.append(1) or run(*a))
    assert call("ablate", *subject, "--out", "cut").exit_code == 1, "not without --resume"
    assert call("ablate", *subject, "--out", "cut", "--seed", 1, "--resume").exit_code == 1, "not with other settings"
    result = call("ablate", *subject, "--out", "cut", "--resume")
    assert result.exit_code == 0, result.output
    assert len(calls) == 1
    for name in ("ablation_results.csv", "sequence_losses.safetensors"):
        assert Path("cut", name).read_bytes() == Path("whole", name).read_bytes()


@pytest.mark.parametrize(
    "verb", [["ablate"], ["topology"], ["attention"], ["attention-patterns"], ["harvest", "--layers", "0"]]
)
def test_a_finished_run_is_checked_and_shown_again(place, subject, verb):
    if verb[0] == "harvest":
        subject = harvested(place)
    first = call(*verb, *subject, "--out", "x")
    assert first.exit_code == 0, first.output
    stamps = {p: p.stat().st_mtime_ns for p in Path("x").rglob("*")}
    again = call(*verb, *subject, "--out", "x", "--resume")
    assert again.exit_code == 0, again.output
    assert again.stdout == first.stdout
    assert stamps == {p: p.stat().st_mtime_ns for p in Path("x").rglob("*")}
    assert call(*verb, *subject, "--out", "x").exit_code == 1
    damaged = max(Path("x").glob("*.csv"), default=Path("x/shards.json"))
    damaged.write_text(damaged.read_text().replace("1", "2", 1))
    result = call(*verb, *subject, "--out", "x", "--resume")
    assert result.exit_code == 1
    assert str(damaged) in result.stderr


# --- faults


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["ablate"], 2, "--ckpt"),
        (["ablat"], 2, "ablat"),
        (["ablate", "--ckpt", "M", "--nonsense"], 2, "--nonsense"),
        (["ablate", "--ckpt", "M", "--n-tokens", "0"], 2, "--n-tokens"),
        (["ablate", "--ckpt", "M", "--n-tokens", "many"], 2, "--n-tokens"),
        (
            ["ablate", "--ckpt", "M", "--kind", "median"],
            2,
            "error: --kind: got 'median'; expected 'zero', 'mean' or 'resample'",
        ),
        (
            ["ablate", "--ckpt", "M", "--layers", "a"],
            2,
            "error: --layers: got 'a'; expected all, or numbers and ranges",
        ),
        (["ablate", "--ckpt", "M", "--layers", ""], 2, "error: --layers: got ''; expected all, or numbers"),
        (["ablate", "--ckpt", "M", "--layers", "3-1"], 2, "error: --layers: got '3-1'; expected a range that rises"),
        (
            ["ablate", "--ckpt", "M", "--set", "n_boot=3"],
            2,
            "error: set: unknown key 'n_boot'; nearest: n_bootstrap",
        ),
        (["ablate", "--ckpt", "M", "--set", "n_bootstrap"], 2, "error: set: got 'n_bootstrap'; expected key=value"),
        (["ablate", "--ckpt", "M", "--data", "T", "--set", "n_bootstrap=3"], 1, "error: n_bootstrap: got 3"),
        (["ablate", "--ckpt", "M", "--layers", "3"], 1, "error: layers: got 3; expected 0…2"),
        (["ablate", "--ckpt", "M", "--heads", "0,9"], 1, "error: heads: got 9; expected 0…3"),
        (["ablate", "--ckpt", "M", "--heads", "1,1"], 1, "error: heads: got [1, 1]; expected each once"),
        (["ablate", "--ckpt", "M", "--n-ctx", "99"], 1, "error: n_ctx: got 99; expected 2 to the model's n_ctx = 24"),
        (["ablate", "--ckpt", "M", "--data", "no.txt"], 1, "error: data: no file or folder 'no.txt'"),
        (["ablate", "--ckpt", "M", "--data", "S"], 1, "10 tokens, 0 windows of 24; expected at least 1"),
        (
            ["ablate", "--ckpt", "M", "--data", "T", "--memory-gib", "0"],
            1,
            "error: memory_budget_bytes: got 0; expected",
        ),
        (
            ["ablate", "--ckpt", "M", "--data", "T", "--kind", "resample", "--n-resamples", "172"],
            1,
            "error: n_resamples",
        ),
        (["ablate", "--ckpt", "M", "--device", "abacus"], 1, "error: device: got 'abacus'"),
        (["ablate", "--ckpt", "M", "--dtype", "int3"], 1, "error: dtype: got 'int3'; expected one of"),
        (["topology", "--ckpt", "M", "--layers", "5"], 1, "error: layers: got 5"),
        (
            ["sae-train", "--ckpt", "M", "--dry-run", "--n-train-tokens", "64"],
            2,
            "error: --n-train-tokens: got 64; expected at least batch_size = 1024",
        ),
        (["harvest", "--ckpt", "M"], 2, "error: harvest: got neither hook nor layers"),
        (
            ["harvest", "--ckpt", "M", "--data", "T", "--hook", "blocks.0.attn.hook_x"],
            1,
            "nearest: blocks.0.attn.hook_",
        ),
        (["export", "--ckpt", "M", "--to", "gguf"], 2, "error: --to: got 'gguf'; expected transformer-lens, hf or"),
        (["generate", "--ckpt", "M", "a", "--top-p", "2"], 1, "error: top_p: got 2"),
        (["generate", "--ckpt", "M"], 2, "PROMPT"),
        (["train", "no-such-recipe"], 1, "error: recipe: no recipe or file 'no-such-recipe'; nearest:"),
        (["train", "janus-v3-control-nano", "--set", "model.n_layer=3"], 1, "n_layers"),
    ],
)
def test_a_fault_is_one_line_and_the_right_code(place, arguments, code, message):
    (place / "short.txt").write_text("One line.\nAnother line.\n" * 20)
    stands_for = {"M": str(place / "model"), "T": str(place / "text.txt"), "S": str(place / "short.txt")}
    result = call(*(stands_for.get(a, a) for a in arguments))
    assert result.exit_code == code, result.output
    assert message in result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.output
    if message.startswith("error: "):
        assert len(result.stderr.strip().splitlines()) == 1
    assert not list(Path.cwd().rglob("*.csv")), "nothing half done"


def test_debug_lets_the_exception_through(place):
    result = call("ablate", "--ckpt", place / "model", "--layers", "3", "--debug")
    assert isinstance(result.exception, ValueError)


def test_a_fault_of_ours_says_so_without_a_traceback(place, monkeypatch):
    import workbench.models.load

    def broken(*arguments, **options):
        raise RuntimeError("two\nlines")

    monkeypatch.setattr(workbench.models.load, "load", broken)
    result = call("hooks", "--ckpt", place / "model")
    assert result.exit_code == 1
    assert result.stderr == "error: RuntimeError: two lines (--debug shows where)\n"


def test_a_warning_is_one_line(capsys, monkeypatch):
    monkeypatch.setattr(warnings, "showwarning", show_warning)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("too few\ntokens", UserWarning, stacklevel=1)
    assert capsys.readouterr() == ("", "warning: too few tokens\n")


# --- help, and real processes


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_verb_explains_itself(verb):
    result = call(verb, "--help")
    assert result.exit_code == 0
    assert "--debug" in result.stdout
    assert "--json" in result.stdout


def test_every_word_of_the_help_is_shown():
    for verb, command in typer.main.get_command(app).commands.items():
        for text in (command.help, *(p.help for p in command.params)):
            assert Text.from_markup(text).plain == text, f"{verb}: Rich takes the [brackets] of this text for markup"


def test_a_default_outside_the_signature_is_shown(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert "[default: (runs/VERB)]" in call("ablate", "--help").stdout
    assert "[default: (runs/RECIPE-seedN)]" in call("train", "--help").stdout


def test_help_loads_nothing_heavy():
    code = f"import sys, workbench.cli.app; print([m for m in {HEAVY} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize("arguments", [["--help"], ["ablate", "--help"]])
def test_help_is_quick(arguments):
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        result = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, cwd=ROOT, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        # time of the processor, not of the clock: the tests may share the machine
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < 1
    assert "Usage" in result.stdout


COMMAND = [sys.executable, "-c", "from workbench.cli.app import main; main()"]


def test_an_interrupted_training_exits_with_130_and_goes_on(place, monkeypatch):
    arguments = tiny(place, "phases.0.n_steps=12", "phases.0.log_every=1")
    assert call(*arguments, "--out", "whole").exit_code == 0
    write, rows = TrainLog.write, []

    def press_control_c(self, row):
        write(self, row)
        rows.append(row)
        if len(rows) == 5:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(TrainLog, "write", press_control_c)
    result = call(*arguments, "--out", "cut")
    assert result.exit_code == 130, result.output
    assert result.stderr.splitlines()[-1].startswith("interrupted: stopped after step 4 (SIGINT); state saved in ")
    assert result.stdout == ""
    assert call(*arguments, "--out", "cut", "--resume").exit_code == 0
    weights = [next(Path(out).glob("step_*12/model.safetensors")).read_bytes() for out in ("whole", "cut")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(("switch", "wanted"), [("on", "True 1"), ("off", "False None")])
@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_the_allocator_is_set_unless_it_is_switched_off(switch, wanted):
    code = (
        "import os; from workbench.runs.allocator import keep_large_blocks as keep\n"
        "print(keep(), os.environ.get('THP_MEM_ALLOC_ENABLE'))"
    )
    env = environment(WORKBENCH_ALLOCATOR=switch)
    env.pop("THP_MEM_ALLOC_ENABLE", None)
    result = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == wanted


def test_an_interrupt_that_a_library_swallows_is_an_interrupt(capsys) -> None:
    """Not a fault of whatever was read meanwhile; one that was noted in an earlier verb does not count in the next."""

    def read_badly(is_interrupted: bool) -> None:
        try:
            if is_interrupted:
                signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            pass
        raise ValueError("model.safetensors: damaged")

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        for is_interrupted, code, said in ((True, 130, "interrupted: stopped"), (False, 1, "error: model.safetensors")):
            with pytest.raises(typer.Exit) as ended:
                guarded(read_badly)(is_interrupted)
            assert ended.value.exit_code == code
            assert capsys.readouterr().err.startswith(said)
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize("arguments", [["--help"], ["topology", "--help"], ["--version"], ["recipes", "--json"]])
def test_what_cannot_be_printed_is_one_line(arguments):
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "workbench", *arguments]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=environment(), check=False)
    assert done.returncode == 1
    assert done.stderr == "error: [Errno 28] No space left on device\n"


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_json_is_of_letters_that_stdout_has(encoding, monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    name = os.fsdecode(b"r\xc3\xa9sum\xc3\xa9 \xff \xf0\x9f\x98\x80")
    report(as_json=True, out=Path(name))
    sys.stdout.flush()
    assert json.loads(raw.getvalue().decode(encoding)) == {"out": name}


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("no \x1b[31m\r\u2028 file"), "error: no \\x1b[31m\\r\\u2028 file"),
        (ValueError("résumé ≥ 3\nin two lines"), "error: résumé ≥ 3 in two lines"),
        (FileNotFoundError(2, "No such file", "bad\udcff"), "error: [Errno 2] No such file: 'bad\\udcff'"),
    ],
)
def test_an_error_is_of_letters_that_a_terminal_shows(error, line):
    assert describe(error) == line


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            OSError(errno.ENOMEM, "Cannot allocate memory", "lib/sympy"),
            "[Errno 12] Cannot allocate memory: 'lib/sympy'",
        ),
        (RuntimeError("Cannot allocate memory (os error 12)"), "Cannot allocate memory (os error 12)"),
        (caused(ValueError("resume: s is altered"), MemoryError()), "resume: s is altered"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "DefaultCPUAllocator: can't allocate memory"),
        (
            ImportError("_stats.so: cannot allocate memory in static TLS block"),
            "_stats.so: cannot allocate memory in static TLS block",
        ),
        (MemoryError(), "no room"),
    ],
)
def test_memory_that_ends_is_said_whatever_raised_it(error, said):
    assert describe(error) == f"error: out of memory ({said}); {EXPECTED}"


def test_an_extension_that_fails_without_a_word_has_no_memory_only_at_the_limit(monkeypatch):
    error = SystemError("error return without exception set")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert describe(error) == f"error: SystemError: {error} (--debug shows where)"
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    monkeypatch.setattr(resource, "getrlimit", lambda _: (held + (8 << 20), held + (8 << 20)))
    assert describe(error) == f"error: out of memory ({error}); {EXPECTED}"


def test_another_error_of_the_system_is_not_one_of_memory():
    assert describe(OSError(errno.ENOSPC, "No space left")) == "error: [Errno 28] No space left"


def test_an_error_says_which_setting_and_not_where_its_library_explains_itself(subject):
    result = call("ablate", *subject, "--dry-run", "--set", "n_bootstrap=0")
    said = "n_bootstrap: Input should be greater than or equal to 1 (got 0)"
    assert (result.exit_code, result.stderr) == (2, f"error: set: {said}\n")
    with pytest.raises(ValidationError) as refused:
        AblateSettings(n_bootstrap=0)
    assert describe(refused.value) == f"error: {said}"


def test_letters_that_stdout_lacks_undo_nothing(place, tmp_path):
    command = [sys.executable, "-m", "workbench", "attention", "--ckpt", place / "model", "--data", place / "text.txt"]
    command += ["--n-tokens", "48", "--set", "n_repeated=0", "--out", "☃"]
    own = environment(PYTHONIOENCODING="latin-1")
    done = subprocess.run(command, capture_output=True, cwd=tmp_path, env=own, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == os.fsencode(tmp_path) + rb"/\u2603"
    assert runs.verify_manifest(tmp_path / "☃")
