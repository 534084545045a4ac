"""A study's jobs as a graph: what a failure stops, what is reused, and that it does not matter who does the work."""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import tomli_w
import torch
import wikitext_for_tests as wikitext
from studies_for_tests import tables_of, write_place
from threadpoolctl import threadpool_info
from typer.testing import CliRunner

from reports.tables import read_table
from workbench.cli.app import app
from workbench.models.text_source import TextSource
from workbench.runs import verify_manifest
from workbench.runs.manifest import amend_manifest
from workbench.study import executors, job_runners, process_pool, reuse
from workbench.study import study as module
from workbench.study.executors import JobsFailed, threads
from workbench.study.jobs import TRAIN, Context, PlannedJob, left_out, plan_jobs
from workbench.study.recipe import StudyRecipe, load_study
from workbench.study.reuse import content_hashes, digest_of_text, find_elsewhere, read_record
from workbench.study.study import study, tabulate_study
from workbench.training import Interrupted, load_recipe

pytestmark = pytest.mark.filterwarnings("ignore:topology. .* tokens:probes.SmallSampleWarning")
FEW = {"analyses": ["attention", "compare", "spectra"], "roles": {}}
FEW_TABLES = (
    "attention_stats", "eigenspectra_divergence", "head_kinds", "pc_cosine", "rank_budget", "singular_values",
    "train_log", "weight_spectra",
)  # fmt: skip
RUN = CliRunner()


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return write_place(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module", autouse=True)
def surroundings(tmp_path_factory):
    """A cache of our own; pages are drawn in other tests, here they would only take time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(module, "write_report", lambda directory, **given: None)
        patch.setattr(module, "write_heads", lambda directory: None)
        patch.setattr(module, "write_atlas", lambda directory, out: None)
        yield


def run(place: Path, out: Path, **rest) -> Path:
    overrides = FEW | rest.pop("overrides", {})
    return study(place / "tiny.toml", out, device="cpu", overrides=overrides, **rest)


@pytest.fixture(scope="module")
def made(place) -> Path:
    """A small study, made once."""
    return run(place, place / "made")


@pytest.fixture
def begun(monkeypatch) -> list[str]:
    """Names of the jobs whose work is done anew."""
    names: list[str] = []
    run_job = job_runners.run_job

    def counts(job, context, tell, **rest):
        names.append(job.name)
        run_job(job, context, tell, **rest)

    monkeypatch.setattr(job_runners, "run_job", counts)
    return names


def failing(monkeypatch, *names: str) -> None:
    """The jobs of these names fail."""
    run_job = job_runners.run_job

    def fails(job, context, tell, **rest):
        if job.name in names:
            raise OSError("no space\nleft on device")
        run_job(job, context, tell, **rest)

    monkeypatch.setattr(job_runners, "run_job", fails)


# --- what a failure stops


def test_a_failed_job_stops_those_that_need_it_and_no_other(place, tmp_path, monkeypatch, made) -> None:
    failing(monkeypatch, "models/tiny-control-seed0")
    with pytest.raises(JobsFailed) as caught:
        run(place, tmp_path / "out")
    assert str(caught.value) == (
        "study: 1 of 7 jobs failed (models/tiny-control-seed0: OSError: no space left on device); "
        "3 that need them not begun, the others are done, --resume goes on"
    )
    assert isinstance(caught.value.__cause__, OSError)
    unfinished = tmp_path / "out.partial"
    assert sorted(read_record(unfinished)) == [
        f"{kind}/tiny-adaptive-seed0" for kind in ("attention", "models", "spectra")
    ]
    assert set(read_table(unfinished, "attention_stats")["model"]) == {"tiny-adaptive"}, "what is done is merged"
    said = json.loads((unfinished / "study.json").read_text())["notes"]
    assert any("models/tiny-control-seed0 failed: OSError" in note for note in said)
    assert any("Not begun" in note and "compare/tiny-control--tiny-adaptive-seed0" in note for note in said)
    monkeypatch.undo()
    out = run(place, tmp_path / "out", resume=True)
    assert tables_of(out, FEW_TABLES) == tables_of(made, FEW_TABLES)
    assert not any("failed" in note for note in json.loads((out / "study.json").read_text())["notes"])


def test_every_failure_is_told_and_the_verb_ends_with_1(place, tmp_path, monkeypatch) -> None:
    failing(monkeypatch, "attention/tiny-control-seed0", "spectra/tiny-adaptive-seed0")
    arguments = ["study", str(place / "tiny.toml"), "--out", str(tmp_path / "out"), "--device", "cpu", "--json"]
    arguments += ["--set", 'analyses=["attention", "spectra"]', "--set", "roles={}"]
    result = RUN.invoke(app, arguments)
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: study: 2 of 6 jobs failed (attention/tiny-control-seed0: OSError: no space left")
    assert "not begun" not in line
    monkeypatch.undo()
    assert RUN.invoke(app, [*arguments, "--resume"]).exit_code == 0


def test_nothing_that_was_done_leaves_no_page(place, tmp_path, monkeypatch) -> None:
    failing(monkeypatch, *(f"models/tiny-{name}-seed0" for name in ("control", "adaptive")))
    with pytest.raises(JobsFailed, match="2 of 7 jobs failed .* 5 that need them not begun"):
        run(place, tmp_path / "out")
    assert not (tmp_path / "out.partial" / "study.json").exists()


def test_an_interrupt_is_no_failure(place, tmp_path, monkeypatch) -> None:
    def interrupted(*_, **__):
        raise Interrupted("stopped after step 3")

    monkeypatch.setattr(job_runners, "train", interrupted)
    with pytest.raises(Interrupted):
        run(place, tmp_path / "out")
    assert not (tmp_path / "out.partial" / "study.json").exists()


# --- what is reused


def test_a_resumed_study_begins_no_finished_job(place, tmp_path, made, begun) -> None:
    shutil.copytree(made, tmp_path / "out.partial")
    run(place, tmp_path / "out", resume=True)
    assert begun == []
    verify_manifest(tmp_path / "out")


def test_more_seeds_and_another_analysis_reuse_what_another_study_did(place, tmp_path, made, begun) -> None:
    more = {"analyses": ["attention", "evaluate"], "n_seeds": 2}
    out = run(place, tmp_path / "out", overrides=more, reuse=[made])
    seeds = {name: {n for n in begun if n.startswith(name)} for name in ("models", "attention", "evaluate")}
    assert seeds["models"] == {"models/tiny-control-seed1", "models/tiny-adaptive-seed1"}
    assert seeds["attention"] == {"attention/tiny-control-seed1", "attention/tiny-adaptive-seed1"}
    assert len(seeds["evaluate"]) == 4
    whole = run(place, tmp_path / "whole", overrides=more)
    names = ("attention_stats", "evaluation", "train_log")
    assert tables_of(out, names) == tables_of(whole, names)
    verify_manifest(out)
    for name in read_record(out):
        verify_manifest(out / name)


def test_a_setting_a_seed_and_a_version_are_part_of_the_content(place, made, monkeypatch) -> None:
    def hashes(**overrides):
        recipe = load_study(place / "tiny.toml", FEW | overrides)
        return content_hashes(plan_jobs(recipe), Context(recipe, tuple(recipe.train_recipes()), made))

    base = hashes()
    assert base == read_record(made)
    assert len(set(base.values())) == len(base)
    changed = hashes(**{"settings.attention.n_tokens": 128})
    differ = {name for name in base if base[name] != changed[name]}
    assert differ == {"attention/tiny-control-seed0", "attention/tiny-adaptive-seed0"}
    assert not set(hashes(**{"train.phases.0.n_steps": 5}).values()) & set(base.values())
    assert hashes(n_seeds=2).items() > base.items()
    assert hashes(title="another", description="another") == base
    monkeypatch.setattr(reuse.importlib.metadata, "version", lambda name: "0.0.1")
    assert not set(hashes().values()) & set(base.values())


def test_a_changed_definition_is_measured_anew_and_nothing_else(place, tmp_path, monkeypatch, made, begun) -> None:
    known = reuse.fingerprint
    monkeypatch.setattr(reuse, "fingerprint", lambda own: "0" * 64 if own.name == "attention" else known(own))
    finished = tmp_path / "finished"
    shutil.copytree(made, finished)
    drawn = (finished / "models").stat().st_mtime_ns
    for out, rest in ((finished, {"resume": True}), (tmp_path / "another", {"reuse": [made]})):
        run(place, out, **rest)
        assert begun == [f"attention/tiny-{name}-seed0" for name in ("control", "adaptive")]
        assert tables_of(out, FEW_TABLES) == tables_of(made, FEW_TABLES)
        before, after = read_record(made), read_record(out)
        assert {name for name in before if before[name] != after[name]} == set(begun)
        verify_manifest(out)
        begun.clear()
    assert (finished / "models").stat().st_mtime_ns == drawn
    run(place, finished, resume=True)
    assert begun == []


def test_tables_are_made_again_from_what_the_jobs_keep(place, tmp_path) -> None:
    made = run(place, tmp_path / "made", overrides={"analyses": ["ablate", "spectra"]})
    job = "ablate/tiny-control-seed0"
    tables = ("ablation_results.csv", "ablation_summary.csv", "weight_spectra.csv", f"{job}/ablation_results.csv")
    before = {name: (made / name).read_bytes() for name in tables}
    record = json.loads((made / "study.json").read_text())
    for name in (tables[0], tables[3]):  # as another definition of the table would have written them
        (made / name).write_text((made / name).read_text().replace("tiny-control", "tiny-kontrol"))
    amend_manifest(made / job, ["ablation_results.csv"])
    amend_manifest(made, [tables[0], tables[3], f"{job}/manifest.json"])
    assert (made / tables[3]).read_bytes() != before[tables[3]]
    assert tabulate_study(made) == ["ablation_results", "ablation_results_blocks", "ablation_summary"]
    assert {name: (made / name).read_bytes() for name in tables} == before
    after = json.loads((made / "study.json").read_text())
    for key in ("created", "device", "models", "timings", "versions"):
        assert after[key] == record[key]
    verify_manifest(made)
    verify_manifest(made / job)


def test_a_text_that_has_changed_is_read_again(tmp_path, begun) -> None:
    (tmp_path / "place").mkdir()
    place = write_place(tmp_path / "place")
    first = run(place, tmp_path / "first")
    n_jobs = len(begun)
    shutil.copytree(first, tmp_path / "second.partial")
    text = place / "text.jsonl"
    text.write_text(text.read_text().replace("queen", "king"))
    second = run(place, tmp_path / "second", resume=True, reuse=[first])
    assert begun[n_jobs:] == begun[:n_jobs]
    assert tables_of(first, FEW_TABLES)["train_log"] != tables_of(second, FEW_TABLES)["train_log"]


def test_an_altered_job_of_another_study_is_not_taken(place, tmp_path, made) -> None:
    other = tmp_path / "other"
    shutil.copytree(made, other)
    file = other / "attention" / "tiny-control-seed0" / "attention_stats.csv"
    file.write_text(file.read_text().replace("tiny-control", "tiny-kontrol"))
    with pytest.raises(JobsFailed, match="attention_stats.csv is altered"):
        run(place, tmp_path / "out", reuse=[other])
    assert not (tmp_path / "out.partial" / "attention" / "tiny-control-seed0").exists()


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"format": "other"}', '{"format": "workbench-jobs/2", "jobs": {"a": 1}}']
)
def test_records_that_are_not_ours(tmp_path, content) -> None:
    with pytest.raises(ValueError, match="has no jobs.json; expected the directory of a study"):
        find_elsewhere([tmp_path], {})
    (tmp_path / "jobs.json").write_text(content)
    with pytest.raises(ValueError, match="jobs.json (cannot be read|has another format)"):
        read_record(tmp_path)


def test_a_record_cannot_point_outside_its_study(tmp_path) -> None:
    (tmp_path / "study").mkdir()
    (tmp_path / "secret").mkdir()
    reuse.write_record(tmp_path / "study", {"../secret": "a" * 64})
    assert find_elsewhere([tmp_path / "study"], {"x": "a" * 64}) == {}


def test_digests_of_texts(tmp_path) -> None:
    def digest(source, **settings):
        return digest_of_text(TextSource(str(source), **settings))

    assert digest("embedded") == digest("owner/name") == ""
    (tmp_path / "a.txt").write_text("x")
    file, folder = digest(tmp_path / "a.txt"), digest(tmp_path)
    (tmp_path / "notes.md").write_text("not read")
    assert digest(tmp_path) == folder
    (tmp_path / "b.txt").write_text("x")
    assert digest(tmp_path) != folder
    (tmp_path / "a.txt").write_text("y")
    assert digest(tmp_path / "a.txt") != file


@pytest.mark.parametrize("name", ["", "wiki.train.raw"])
def test_digests_of_texts_that_come_split(tmp_path, name) -> None:
    """Of the file that is held out as well, and not of those that are neither trained on nor held out."""
    folder = wikitext.write_raw(tmp_path / "w")
    text = TextSource(str(folder / name), documents="articles", held_out_split="validation")
    before = digest_of_text(text)
    (folder / "wiki.test.raw").write_text("of no account")
    assert digest_of_text(text) == before != ""
    (folder / "wiki.valid.raw").write_text(" = Other = \n")
    assert digest_of_text(text) != before


# --- models that do not go together


def test_a_study_of_models_of_other_depth_and_other_text(place, tmp_path) -> None:
    recipe = load_recipe(place / "adaptive.toml").model_dump(mode="json", exclude_none=True)
    (tmp_path / "deep.toml").write_text(
        tomli_w.dumps(recipe | {"name": "tiny-deep", "model": recipe["model"] | {"n_layers": 3}})
    )
    other = recipe["data"] | {"held_out_fraction": 0.2}
    (tmp_path / "apart.toml").write_text(tomli_w.dumps(recipe | {"name": "tiny-apart", "data": other}))
    models = [str(place / "control.toml"), str(tmp_path / "deep.toml"), str(tmp_path / "apart.toml")]
    overrides = {"models": models, "analyses": ["sae-train", "atlas", "match", "spectra", "compare"]}
    out = run(place, tmp_path / "out", overrides=overrides)
    jobs = plan_jobs(load_study(out / "config.toml"))
    assert [job.name for job in jobs if job.kind == "compare"] == ["compare/tiny-control--tiny-deep-seed0"]
    assert not [job for job in jobs if job.kind == "match"]
    said = json.loads((out / "study.json").read_text())["notes"]
    apart, deep = ("reads other tokens than tiny-control", "has other layers or heads than tiny-control")
    for analysis, model, reason in (
        ("compare", "tiny-apart", apart), ("match", "tiny-apart", apart), ("match", "tiny-deep", deep),
    ):  # fmt: skip
        assert f"No {analysis} of {model} beside tiny-control: it {reason}." in said
    assert set(read_table(out, "weight_spectra")["model"]) == {"tiny-control", "tiny-deep", "tiny-apart"}
    assert set(read_table(out, "pc_cosine")["model_b"]) == {"tiny-deep"}
    assert set(read_table(out, "sae_matched_l0")["model_b"]) == {"tiny-apart"}


def test_pairs_are_compared_beside_the_reference(place, tmp_path) -> None:
    recipe = load_recipe(place / "adaptive.toml").model_dump(mode="json", exclude_none=True)
    (tmp_path / "third.toml").write_text(tomli_w.dumps(recipe | {"name": "tiny-third"}))
    models = [str(place / "control.toml"), str(place / "adaptive.toml"), str(tmp_path / "third.toml")]
    overrides = {"models": models, "analyses": ["compare"], "pairs": [["tiny-adaptive", "tiny-third"]]}
    out = run(place, tmp_path / "out", overrides=overrides)
    table = read_table(out, "pc_cosine")
    assert set(zip(table["model_a"], table["model_b"], strict=True)) == {
        ("tiny-control", "tiny-adaptive"), ("tiny-control", "tiny-third"), ("tiny-adaptive", "tiny-third"),
    }  # fmt: skip
    for pair in (["tiny-third", "tiny-adaptive"], ["tiny-third", "tiny-third"], ["tiny-third", "nobody"]):
        with pytest.raises(ValueError, match=r"pairs: got \['tiny-third', .*expected two of the models in their order"):
            load_study(place / "tiny.toml", overrides | {"pairs": [pair]}).train_recipes()


def test_mechanisms_are_of_recurrent_models() -> None:
    recipe = StudyRecipe(
        name="x", models=("recurrent-nano", "p3-muon-nano"), analyses=("mechanisms", "ladder"), n_seeds=2
    )
    jobs = [job for job in plan_jobs(recipe) if job.kind != "train"]
    assert {job.model for job in jobs} == {"recurrent-nano"}
    assert [(job.kind, job.seed, len(job.needs)) for job in jobs] == [
        ("ladder", 0, 0), ("mechanisms", 0, 1), ("ladder", 1, 0), ("mechanisms", 1, 1),
    ]  # fmt: skip
    assert left_out(recipe) == [
        f"No {name} of p3-muon-nano: it has no depth recurrence." for name in ("ladder", "mechanisms")
    ]


# --- executors


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"executor": "threads"}, "executor: got 'threads'; expected one of in-process, processes, ray"),
        ({"ray_address": "here"}, "ray_address: got 'here' with executor 'in-process'"),
        ({"n_jobs": 2}, "jobs: got 2 with executor 'in-process'; expected at least 1, with executor 'processes'"),
        ({"n_jobs": 0, "executor": "processes"}, "jobs: got 0 with executor 'processes'; expected at least 1"),
        ({"n_threads": 0}, "threads: got 0; expected at least 1"),
        ({"reuse": ["nowhere"]}, "reuse: nowhere has no jobs.json"),
    ],
)
def test_wrong_ways_to_run_are_refused(place, tmp_path, settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        run(place, tmp_path / "out", **settings)


@contextlib.contextmanager
def killing(n_kills: int) -> Iterator[list[int]]:
    """The process ids of that many workers of this process, each killed as soon as it is there."""
    killed: list[int] = []
    is_over = threading.Event()

    def kill() -> None:
        while len(killed) < n_kills and not is_over.is_set():
            for child in psutil.Process().children():
                with contextlib.suppress(psutil.NoSuchProcess):
                    if child.pid not in killed and "spawn_main" in " ".join(child.cmdline()):
                        child.kill()
                        killed.append(child.pid)
                        break
            time.sleep(0.02)

    watch = threading.Thread(target=kill)
    watch.start()
    try:
        yield killed
    finally:
        is_over.set()
        watch.join()


def test_processes_make_the_same_tables_though_one_is_killed(place, tmp_path, made) -> None:
    shown = []

    @contextlib.contextmanager
    def show(label):
        yield lambda share: shown.append((label, share))

    with killing(1) as killed:
        out = run(place, tmp_path / "out", executor="processes", n_jobs=2, show=show)
    assert len(killed) == 1
    assert tables_of(out, FEW_TABLES) == tables_of(made, FEW_TABLES)
    assert read_record(out) == read_record(made)
    assert shown == [("jobs", (n + 1) / 7) for n in range(7)]
    assert not [child for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())]


@pytest.mark.slow
def test_a_job_whose_process_dies_again_and_again_has_failed(place, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(process_pool, "N_RETRIES", 1)
    analyses = {"analyses": ["attention", "evaluate"]}
    with killing(2), pytest.raises(JobsFailed, match="seed0: its process died, after 1 retries.* 2 that need them"):
        run(place, tmp_path / "out", executor="processes", n_jobs=1, overrides=analyses)


def test_threads_are_those_of_every_library() -> None:
    before = torch.get_num_threads()
    with threads(2):
        assert torch.get_num_threads() == 2
        assert {pool["num_threads"] for pool in threadpool_info()} == {2}
    assert torch.get_num_threads() == before


def test_jobs_begin_in_the_order_of_the_plan_as_their_needs_allow() -> None:
    """An executor of two slots whose tasks end last in, first out."""

    class Backwards:
        n_slots = 2

        def __init__(self):
            self.tasks, self.begun = [], []

        def begin(self, task):
            assert all(name in self.ended for name in task.job.needs)
            self.begun.append(task.job.name)
            self.tasks.append(task)
            assert len(self.tasks) <= 2

        ended: set[str] = set()

        def wait(self):
            task = self.tasks.pop()
            self.ended = self.ended | {task.job.name}
            return executors.Ended(task)

        def close(self):
            pass

    recipe = load_study("janus-nano")
    jobs = plan_jobs(recipe)
    engine = Backwards()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(executors, "write_record", lambda directory, record: None)
        context = Context(recipe, tuple(recipe.train_recipes()), Path("nowhere"))
        outcome = executors.run_jobs(jobs, context, engine)
    assert outcome.done == tuple(jobs)
    assert sorted(engine.begun) == sorted(job.name for job in jobs)
    assert engine.begun[:2] == [
        PlannedJob(TRAIN, ((f"janus-v3-{name}-nano", 0),)).name for name in ("control", "adaptive")
    ]
