"""One analysis over training: each step's rows are those of its checkpoint alone, whatever stops it."""

from __future__ import annotations

import csv
import gc
import json
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from studies_for_tests import write_place
from typer.testing import CliRunner, Result

import workbench
from docs.plugins import gap
from reports.contract import over_training
from reports.tables import read_contracts, read_table
from workbench.analyses import all_analyses, find_analysis
from workbench.cli.app import app
from workbench.cli.verbs import make_verb
from workbench.extend import Analysis, Column, Settings, Table
from workbench.models.interop import export
from workbench.models.load import load
from workbench.runs import verify_manifest
from workbench.study import measuring, plan
from workbench.study.over_training import parse_steps, steps_of_revisions
from workbench.training import train
from workbench.training.recipe import apply_overrides, load_recipe

STEPS = [1, 2, 3, 4]
FEW = {
    "ablate": ["--n-tokens", "64", "--n-bootstrap", "100"],
    "attention": ["--n-tokens", "64", "--n-repeated", "1"],
    "attention-patterns": ["--n-tokens", "64", "--n-sentences", "1"],
    "evaluate": ["--n-bytes", "900"],
    "probe": [
        "--sets", "things", "--concepts", "concepts.toml", "--template", "{X}", "--n-permutations", "9",
        "--n-points", "32",
    ],
    "spectra": [],
    "tasks": ["--tasks", "induction", "--n-pairs", "32", "--n-bootstrap", "100"],
    "topology": ["--n-tokens", "64"],
}  # fmt: skip
pytestmark = pytest.mark.filterwarnings("ignore:topology. .* tokens:probes.SmallSampleWarning")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a training that kept every step, and a set of concepts."""
    place = write_place(tmp_path_factory.mktemp("runs"))
    words = "words = ['river', 'forest', 'stone', 'king', 'queen']"
    (place / "concepts.toml").write_text(f"[things]\ncategory = 'thing'\ntopology = 'ordinal'\n{words}\n")
    recipe = apply_overrides(load_recipe(place / "control.toml"), {"checkpoint.every": 1, "checkpoint.keep": None})
    for seed in (3, 4):
        train(recipe, place / f"run{seed}", seed=seed, progress=False, cache=place / "cache", device="cpu")
    return place


@pytest.fixture(autouse=True)
def at_home(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("WORKBENCH_CACHE", str(place / "cache"))
    monkeypatch.setenv("COLUMNS", "200")


def call(*words: str, code: int = 0) -> Result:
    found = CliRunner().invoke(app, [*words, "--device", "cpu"])
    assert found.exit_code == code, found.output
    return found


def cells(path: Path) -> list[dict[str, str]]:
    """The rows of a table as they are written."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_all_that_follow_training_are_compared() -> None:
    assert {own.name for own in all_analyses() if own.over_training} == FEW.keys()


@pytest.mark.filterwarnings("ignore")  # of so few tokens
@pytest.mark.parametrize("analysis", FEW)
def test_the_rows_of_a_step_are_those_of_its_checkpoint_alone(analysis: str, place: Path, tmp_path: Path) -> None:
    call(analysis, "--ckpt", "run3", "--steps", "2-3,4", *FEW[analysis], "--out", str(tmp_path / "all"))
    tables = sorted(path.name for path in (tmp_path / "all").glob("*.csv"))
    for step in (2, 3, 4):
        alone = tmp_path / f"step{step}"
        call(analysis, "--ckpt", f"run3@step{step}", *FEW[analysis], "--out", str(alone))
        assert sorted(path.name for path in alone.glob("*.csv")) == tables
        for name in tables:
            rows = [row for row in cells(tmp_path / "all" / name) if row["step"] == str(step)]
            assert [list(row)[:3] for row in rows] == [["model", "seed", "step"]] * len(rows)
            assert [{k: v for k, v in row.items() if k != "step"} for row in rows] == cells(alone / name)
    verify_manifest(tmp_path / "all")


def test_a_reader_knows_the_steps(tmp_path: Path) -> None:
    call("spectra", "--ckpt", "run3", "--steps", "all", "--out", str(tmp_path / "all"))
    table = read_table(tmp_path / "all", "weight_spectra")
    assert table["step"].dtype == "int64"
    assert table["step"].unique().tolist() == STEPS
    own = next(own for own in find_analysis("spectra").tables if own.name == "weight_spectra")
    assert read_contracts(tmp_path / "all")["weight_spectra"] == over_training(own)
    assert read_contracts(tmp_path)["weight_spectra"] == own


def test_several_runs_stand_in_one_table_without_what_they_give_together(tmp_path: Path) -> None:
    words = ["topology", "--ckpt", "run3", "--ckpt", "run4", "--steps", "1,4", *FEW["topology"]]
    call(*words, "--out", str(tmp_path / "both"))
    table = read_table(tmp_path / "both", "topology_stats")
    assert list(dict.fromkeys(zip(table["seed"], table["step"], strict=True))) == [(3, 1), (3, 4), (4, 1), (4, 4)]
    assert not (tmp_path / "both" / "effective_size.csv").exists()


@pytest.mark.parametrize("n_done", [0, 2])
def test_a_killed_run_goes_on_with_the_checkpoint_where_it_was(
    n_done: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["topology", "--ckpt", "run3", "--steps", "all", *FEW["topology"]]
    call(*words, "--out", str(tmp_path / "whole"))
    measured, measure_job = [], measuring.measure_job

    def dying(analysis: Analysis, job: measuring.Job) -> measuring.Tables:
        measured.append(job.subject.source)
        if len(measured) == n_done + 1:
            raise KeyboardInterrupt
        return measure_job(analysis, job)

    monkeypatch.setattr(measuring, "measure_job", dying)
    call(*words, "--out", str(tmp_path / "killed"), code=130)
    assert not (tmp_path / "killed").exists()
    call(*words, "--out", str(tmp_path / "killed"), "--resume")
    sources = [f"run3@step{step}" for step in STEPS]
    assert measured == [*sources[: n_done + 1], *sources[n_done:]]
    call(*words, "--out", str(tmp_path / "killed"), "--resume")
    assert len(measured) == len(STEPS) + 1, "a finished one is verified and not measured"
    for path in (tmp_path / "whole").glob("*.csv"):
        assert path.read_bytes() == (tmp_path / "killed" / path.name).read_bytes()
    other = call(*words[:4], "1,2", *words[5:], "--out", str(tmp_path / "killed"), "--resume", code=1)
    assert "steps" in other.stderr


def test_tables_over_training_are_not_made_again_as_those_of_one_checkpoint(tmp_path: Path) -> None:
    call("ablate", "--ckpt", "run3", "--steps", "4", *FEW["ablate"], "--out", str(tmp_path / "out"))
    before = (tmp_path / "out" / "ablation_results.csv").read_bytes()
    found = CliRunner().invoke(app, ["tabulate", str(tmp_path / "out")])
    assert found.exit_code == 1
    assert "keeps no state of one model" in found.stderr
    assert (tmp_path / "out" / "ablation_results.csv").read_bytes() == before


def test_one_model_is_in_memory_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from workbench.models import load as module

    loaded, load_one = [], module.load

    def only(*given: object) -> object:
        gc.collect()
        assert not any(own() for own in loaded)
        model = load_one(*given)
        loaded.append(weakref.ref(model))
        return model

    monkeypatch.setattr(module, "load", only)
    call("topology", "--ckpt", "run3", "--steps", "all", *FEW["topology"], "--out", str(tmp_path / "out"))
    assert len(loaded) == len(STEPS)


def test_a_plan_adds_up_work_and_takes_the_memory_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    memory, describe_cost = [], plan.describe_cost

    def noting(cost: plan.Cost, device: str, *, loading: int = 0) -> dict:
        memory.append((cost.bytes_on_device, cost.bytes_in_memory, loading))
        return describe_cost(cost, device, loading=loading)

    monkeypatch.setattr(plan, "describe_cost", noting)
    words = ["topology", "--ckpt", "run3", *FEW["topology"], "--dry-run", "--json"]
    one, four = (json.loads(call(*words, "--steps", steps).stdout) for steps in ("4", "all"))
    assert (one["n_checkpoints"], four["n_checkpoints"], four["n_models"]) == (1, 4, 1)
    assert four["n_tokens"] == 4 * one["n_tokens"]
    assert four["flops"] == 4 * one["flops"]
    assert memory[0] == memory[1]
    alone = json.loads(call(*words[:2], "run3@step4", *words[3:]).stdout)
    assert memory[2] == memory[0]
    assert "n_checkpoints" not in alone


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("--ckpt run3 --steps 9", 1, "steps: got 9; expected steps that run3 kept: 1, 2, 3, 4"),
        ("--ckpt run3 --steps 1,7-9", 1, "steps: got 7-9; expected steps that run3 kept: 1, 2, 3, 4"),
        ("--ckpt run3 --steps all --revisions a,b", 2, "--steps, --revisions: got both; expected one of the two"),
        ("--ckpt run3@step2 --steps all", 1, "steps: got run3@step2, a checkpoint; expected the run's directory alone"),
        ("--ckpt run3/step_00000002 --steps all", 1, "which has no checkpoints of a training; expected a run"),
        ("--ckpt run3 --steps 4-2", 2, "--steps: got '4-2'; expected a range that rises"),
        ("--ckpt run3 --steps x", 2, "--steps: got 'x'; expected all, or steps and ranges such as 0,50,100-400"),
        ("--ckpt run3 --revisions main", 1, "revisions: got run3, a run directory of ours; expected a hub name, or"),
        ("--ckpt a/b@main --revisions main", 1, "revisions: got a/b@main, a revision; expected the hub name alone"),
        ("--ckpt a/b --revisions main,main", 2, "--revisions: got 'main,main'; expected names such as"),
        ("--ckpt a/b --revisions step1,1", 1, "revisions: got step1, 1, both of step 1; expected each step once"),
        ("--ckpt run3/step_00000002 --revisions main", 1, "step_00000002@main: a folder has no revisions"),
    ],
)
def test_what_cannot_be_followed_is_one_line(words: str, code: int, message: str, tmp_path: Path) -> None:
    found = call("spectra", *words.split(), "--out", str(tmp_path / "out"), code=code)
    assert message in found.stderr
    assert len(found.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_checkpoints_that_cannot_read_one_text_are_refused_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from workbench.study import over_training as module

    def wider_at_first(source: str) -> tuple:
        cfg, is_ours = load_config(source)
        return (cfg.model_copy(update={"d_vocab": 999}) if source.endswith(("1", "2")) else cfg), is_ours

    load_config = module.load_config
    monkeypatch.setattr(module, "load_config", wider_at_first)
    found = call("topology", "--ckpt", "run3", "--steps", "all", "--out", str(tmp_path / "out"), code=1)
    assert "run3@step4 has d_vocab = 300, and the steps 1, 2 another" in found.stderr
    assert "expected some of 3, 4" in found.stderr
    assert list(tmp_path.iterdir()) == []
    call("spectra", "--ckpt", "run3", "--steps", "all", "--out", str(tmp_path / "out"))  # reads none


# --- of a hub's repository


@pytest.fixture
def hub(place: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, int]], None]:
    """Makes someone/something a repository whose revisions are these steps of the training."""
    import huggingface_hub

    def fill(revisions: dict[str, int]) -> None:
        def snapshot(name: str, *, revision: str, **given: object) -> str:
            assert name == "someone/something"
            folder = place / f"hf{revisions[revision]}"
            return str(folder if folder.is_dir() else export(load(f"run3@step{revisions[revision]}"), "hf", folder))

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)

    return fill


def test_revisions_give_their_steps_in_order(hub: Callable, tmp_path: Path) -> None:
    hub({"step1000": 1, "step200": 2})
    words = ["topology", "--ckpt", "someone/something", *FEW["topology"], "--data", "text.jsonl"]
    call(*words, "--revisions", "step1000,step200", "--out", str(tmp_path / "all"))
    rows = cells(tmp_path / "all" / "topology_stats.csv")
    assert list(dict.fromkeys((row["step"], row["revision"]) for row in rows)) == [
        ("200", "step200"), ("1000", "step1000")
    ]  # fmt: skip
    words[2] = "someone/something@step200"
    call(*words, "--out", str(tmp_path / "alone"))
    own = [{k: v for k, v in row.items() if k not in ("step", "revision")} for row in rows if row["step"] == "200"]
    assert own == cells(tmp_path / "alone" / "topology_stats.csv")


def test_revisions_that_name_no_step_stand_in_the_order_given(hub: Callable, tmp_path: Path) -> None:
    hub({"step7": 4, "main": 1, "0012": 2})
    found = workbench.over_training("spectra", "someone/something", revisions=["main", "0012", "step7"], device="cpu")
    table = found["weight_spectra"]
    assert list(dict.fromkeys(zip(table["step"], table["revision"], strict=True))) == [
        (0, "main"), (1, "0012"), (2, "step7")
    ]  # fmt: skip


def test_the_step_in_a_revisions_name() -> None:
    names = ["step3", "12", "stage1-step1000-tokens5B", "step_40", "STEP-50"]
    assert steps_of_revisions(names) == [3, 12, 1000, 40, 50]
    for unnamed in ("main", "3f1a2b", "step10k", "steps", "v1.0"):
        assert steps_of_revisions(["step3", unnamed]) == [0, 1]


# --- in Python, and of a user's own


def test_python_gives_the_verbs_tables(tmp_path: Path) -> None:
    call("spectra", "--ckpt", "run3", "--steps", "1,4", "--out", str(tmp_path / "verb"))
    found = workbench.over_training("spectra", "run3", steps="1,4", device="cpu")
    assert found.keys() == {"rank_budget", "singular_values", "weight_spectra"}
    for name, table in found.items():
        assert table.equals(read_table(tmp_path / "verb", name))
    with pytest.raises(ValueError, match="got compare; expected an analysis that is over training"):
        workbench.over_training("compare", "run3", steps="all")
    with pytest.raises(ValueError, match="got both or neither"):
        workbench.over_training("spectra", "run3")


def test_all_steps_are_all_and_a_range_holds_its_ends() -> None:
    assert all(step in parse_steps("all")[0] for step in (0, 10**9))
    assert [step for step in range(9) if any(step in own for own in parse_steps("0, 3-5"))] == [0, 3, 4, 5]


def options_of(analysis: Analysis) -> set[str]:
    single = typer.Typer()
    single.command()(make_verb(analysis))
    return {flag for parameter in typer.main.get_command(single).params for flag in parameter.opts}


def test_an_analysis_of_ones_own_gets_the_options_by_its_record() -> None:
    assert {"--steps", "--revisions"} <= options_of(gap.spectral_gap)
    for other in ("compare", "sae-train", "text-quality"):
        assert not {"--steps", "--revisions"} & options_of(find_analysis(other))


def test_a_record_that_cannot_be_over_training_is_refused() -> None:
    class Own(Settings):
        steps: int = 3

    given = {"name": "own", "summary": "…", "measure": lambda job: {}, "over_training": True}
    plain = {"settings": Settings, "tables": [Table("own", key=("model", "seed"), columns=[Column("x")])]}
    for change, message in (
        ({"takes": "pair"}, "takes 'pair'"),
        ({"needs": ("sae-train",)}, "no needs"),
        ({"settings": Own}, "the setting 'steps'"),
        ({"tables": [Table("own", key=("model", "seed", "step"))]}, "steps of its own in own"),
    ):
        with pytest.raises(ValueError, match=message):
            Analysis(**given | plain | change)
    Analysis(**given | plain)
