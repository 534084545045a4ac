"""A study of two tiny models, end to end: what it leaves, what it merges, how it goes on, and its verbs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tomli_w
from studies_for_tests import TABLES, context_of, tables_of, write_place
from typer.testing import CliRunner

from reports.tables import COLUMNS, find_tables, read_table
from workbench.analyses.ablate.ablation import ablate
from workbench.analyses.atlas.features import atlas_features
from workbench.analyses.sae_train.head_saes import find_stack, one_a_slot
from workbench.analyses.sae_train.settings import read_l1, shown_l1
from workbench.cli.app import app
from workbench.data.ngrams import ngram_baselines
from workbench.data.tokens import held_out_windows
from workbench.models.load import load
from workbench.runs import verify_manifest
from workbench.study import job_runners
from workbench.study import study as module
from workbench.study.claims import judge_claims
from workbench.study.job_runners import make_job
from workbench.study.jobs import Context, PlannedJob, left_out, plan_jobs
from workbench.study.plan import plan
from workbench.study.recipe import DEFAULT, load_study, study_names
from workbench.study.study import study
from workbench.training import Interrupted, load_recipe
from workbench.training.training_data import open_feed

# too few held-out tokens for ranks, in the smallest studies
pytestmark = [
    pytest.mark.filterwarnings("ignore:topology. .* tokens:probes.SmallSampleWarning"),
    pytest.mark.usefixtures("cache"),
]
RUN = CliRunner()


class Killed(BaseException):
    """What no job's failure is: the end of the process."""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A text, its tokenizer, two training recipes of it and a study of both."""
    return write_place(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def made(place) -> Path:
    """The study, made once."""
    return study(place / "tiny.toml", place / "made", seeds=2, device="cpu", command="workbench study tiny")


# --- the recipe


def test_the_default_study_is_the_janus_pair() -> None:
    recipe = load_study(None)
    assert recipe.name == DEFAULT
    assert DEFAULT in study_names()
    assert [own.name for own in recipe.train_recipes()] == ["janus-v3-control-nano", "janus-v3-adaptive-nano"]
    saes: Any = recipe.settings_of("sae-train")
    assert saes.normalize == "mean_norm"
    assert saes.n_eval_tokens >= 100_000, "dead features need so many held-out tokens"
    recipes = [own.model_dump() for own in recipe.train_recipes()]
    for own in recipes:
        acting = [of["kind"] for of in own["phases"][0].pop("interventions")]
        assert acting == (["vsm"] if own["name"] == "janus-v3-adaptive-nano" else [])
        own.pop("name")
        own.pop("description")
    assert recipes[0] == recipes[1], "the two models differ in the pressure alone"


@pytest.mark.parametrize("size", ["", "-nano"])
@pytest.mark.parametrize(
    ("first", "variant", "key", "value"),
    [
        ("adaptive", "pattern", "on", "pattern"),
        ("adaptive", "uniform", "steering", 0.0),
        ("pattern", "pattern-uniform", "steering", 0.0),
    ],
)
def test_the_variants_of_the_pressure_differ_in_one_setting(size, first, variant, key, value) -> None:
    adaptive, other = (load_recipe(f"janus-v3-{name}{size}").model_dump() for name in (first, variant))
    adaptive["phases"][0]["interventions"][0][key] = value
    for own in (adaptive, other):
        own.pop("name")
        own.pop("description")
    assert adaptive == other


@pytest.mark.parametrize("name", study_names())
def test_every_study_that_ships_can_be_planned(name) -> None:
    recipe = load_study(name)
    assert recipe.name == name
    assert recipe.description
    jobs = plan_jobs(recipe)
    assert {job.kind for job in jobs} == {"train", *recipe.analyses}
    plain = [
        model for model in recipe.models if model.startswith("recurrent-plain")
    ]  # beside the recurrent model alone
    expected = [
        f"No {verb} of {own}: it has no depth recurrence." for verb in ("ladder", "mechanisms") for own in plain
    ]
    assert left_out(recipe) == expected


def test_settings_reach_the_study_and_every_model(place) -> None:
    overrides = {"train.phases.0.n_steps": 9, "settings.sae-train.batch_size": 32, "settings.atlas.n_contexts": 7}
    recipe = load_study(place / "tiny.toml", overrides)
    assert [own.phases[0].n_steps for own in recipe.train_recipes()] == [9, 9]
    assert recipe.settings_of("sae-train").model_dump()["batch_size"] == 32
    assert recipe.settings_of("atlas").model_dump()["n_contexts"] == 7
    assert load_study(recipe, {"n_seeds": 3}).settings["sae-train"]["batch_size"] == 32


@pytest.mark.parametrize(
    ("source", "overrides", "message"),
    [
        ("janus-nan", {}, "no study or file 'janus-nan'; nearest: janus-nano"),
        (None, {"n_seed": 1}, "set n_seed: unknown key 'n_seed'; nearest: n_seeds"),
        (None, {"n_seeds.deep": 1}, "'n_seeds' is a single value"),
        (None, {"n_seeds": 0}, "n_seeds: Input should be greater than or equal to 1"),
        (None, {"settings.atlas.n_contexts": 0}, "atlas: n_contexts: Input should be greater than or equal to 1"),
        (None, {"settings.atls.n_contexts": 1}, "analysis: got 'atls'; nearest: atlas"),
        (None, {"settings.atlas": {}}, "names no setting; expected settings.ANALYSIS.KEY"),
        (None, {"analyses": ["abblate"]}, "analysis: got 'abblate'; nearest: ablate"),
        (None, {"analyses": ["ablate", "ablate"]}, "expected each once"),
        (None, {"analyses": ["match"]}, "'match' reads 'sae-train'; expected 'sae-train' among them"),
        (
            None,
            {"settings.sae-train.architecture": "topk", "settings.sae-train.k": 4},
            r"l1: got \[2.0, 4.0\] for topk, which k alone makes",
        ),
        (None, {"settings.sae-train.bach_size": 1}, "unknown key 'bach_size'; nearest: batch_size"),
        (None, {"settings.sae-train.l1": []}, "l1: Tuple should have at least 1 item"),
        (None, {"sae_l1": []}, r"expected \[settings.sae-train\] l1 = …"),
        (None, {"measure.n_contexts": 1}, r"expected \[settings.ANALYSIS\]"),
        (None, {"models": ["janus-v3-control-nano"] * 2}, "expected each once"),
    ],
)
def test_a_wrong_study_is_refused_by_name(source, overrides, message) -> None:
    with pytest.raises(ValueError, match=message):
        load_study(source, overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"train.phases.0.n_stps": 3}, "unknown key 'n_stps'; nearest: n_steps"),
        ({"models": ["janus-v3-control-nano", "nope"]}, "no recipe or file 'nope'"),
        ({"roles.control": "nope"}, "roles.control: got 'nope'; expected one of the models"),
    ],
)
def test_a_wrong_training_is_refused_before_anything_is_made(overrides, message, tmp_path) -> None:
    with pytest.raises(ValueError, match=message):
        study(None, tmp_path / "out", overrides=overrides)
    assert not list(tmp_path.iterdir())


def test_files_that_are_no_study(tmp_path) -> None:
    (tmp_path / "a.toml").write_text("name = ")
    with pytest.raises(ValueError, match="is not TOML"):
        load_study(tmp_path / "a.toml")
    (tmp_path / "b.toml").write_bytes(b"x" * (2 << 20))
    with pytest.raises(ValueError, match="2097152 bytes; expected at most"):
        load_study(tmp_path / "b.toml")
    with pytest.raises(ValueError, match="n_seeds: Input should be greater"):
        study(None, tmp_path / "out", seeds=0)


@pytest.mark.parametrize(
    ("l1", "shown", "read"),
    [((2.0,), 2.0, 2.0), ((4.0, 2.0), 2.0, 4.0), ((1.0, 5.0, 2.0), 2.0, 2.0), ((1, 2, 4, 8), 2, 4)],
)
def test_one_coefficient_of_a_sweep_is_shown_and_the_sparser_of_two_read(l1, shown, read) -> None:
    assert (shown_l1(l1), read_l1(l1)) == (shown, read)


@pytest.mark.parametrize("name", ["janus-nano", "janus-variants-nano", "janus-rivals-nano"])
def test_nano_studies_train_gated_saes(name) -> None:
    own = load_study(name).settings_of("sae-train")
    assert (own.architecture, own.expansion, own.l1) == (("gated",), (4,), (2.0, 4.0))


def test_the_published_setting_stays_a_study_that_differs_in_its_saes_alone() -> None:
    gated, relu = load_study("janus-nano"), load_study("janus-relu-nano")
    own = relu.settings_of("sae-train")
    assert (own.architecture, own.expansion, own.l1) == (("relu",), (8,), (2.0, 4.0))
    named = {"name", "title", "description"}
    same = [study.model_dump(exclude=named) for study in (gated, relu)]
    for of_study in same:
        for key in ("architecture", "expansion"):
            del of_study["settings"]["sae-train"][key]
    assert same[0] == same[1]


# --- the jobs


def test_jobs_stand_behind_what_they_need(place) -> None:
    jobs = plan_jobs(load_study(place / "tiny.toml", {"n_seeds": 2}))
    names = [job.name for job in jobs]
    assert len(set(names)) == len(names)
    for i, job in enumerate(jobs):
        assert set(job.needs) <= set(names[:i])
    kinds = pd.Series([job.kind for job in jobs]).value_counts().to_dict()
    of_all = ("train", "sae-train", "ablate", "topology", "attention", "attention-patterns")
    assert kinds == {**dict.fromkeys(of_all, 4), "atlas": 2, "match": 1}
    assert jobs[0].name == "models/tiny-control-seed0"
    (match,) = (job for job in jobs if job.kind == "match")
    assert match.models == (("tiny-control", 0), ("tiny-adaptive", 0))


def test_models_of_different_texts_are_not_matched(place, tmp_path) -> None:
    recipe = load_recipe(place / "adaptive.toml").model_dump(mode="json", exclude_none=True)
    recipe["data"]["held_out_fraction"] = 0.2
    (tmp_path / "other.toml").write_text(tomli_w.dumps(recipe))
    own = load_study(place / "tiny.toml", {"models": [str(place / "control.toml"), str(tmp_path / "other.toml")]})
    assert not [job for job in plan_jobs(own) if job.kind == "match"]


# --- what it leaves


def test_everything_is_there_and_whole(made) -> None:
    for name in TABLES:
        assert set(COLUMNS[name]) <= set(read_table(made, name)), name
    for page in ("report.html", "heads.html", "atlas.html"):
        assert (made / page).stat().st_size > 10_000
    verify_manifest(made)
    for job in plan_jobs(load_study(made / "config.toml")):
        verify_manifest(made / job.name)
    assert not list(made.rglob("*.partial"))
    assert not list(made.rglob("*.lock"))


def test_tables_hold_every_model_and_seed(made) -> None:
    runs = {(model, seed) for model in ("tiny-control", "tiny-adaptive") for seed in (0, 1)}
    for name in (
        "ablation_results",
        "attention_stats",
        "head_cosines",
        "sae_training_results",
        "topology_stats",
        "train_log",
    ):
        table = read_table(made, name)
        assert set(zip(table["model"], table["seed"], strict=True)) == runs, name
    results = read_table(made, "sae_training_results")
    # 2 models × 2 seeds × 4 heads × 2 coefficients × 3 dictionaries
    assert len(results) == 2 * 2 * 4 * 2 * 3
    assert set(results["n_train_tokens"]) == {0, 512}
    density = read_table(made, "sae_density")
    assert set(density["l1"]) == {0.5}, "the page adds up what it is given"
    assert density["n_features"].sum() == 2 * 2 * 4 * 12
    features = read_table(made, "feature_atlas")
    assert set(features["seed"]) == {0}
    assert len(features) == 2 * 4 * 12
    assert not features.duplicated(["model", "layer", "head", "feature"]).any()
    curves = read_table(made, "sae_curves")
    assert set(zip(curves["model"], curves["seed"], strict=True)) == runs


def test_a_table_is_what_its_function_says_of_the_model(made) -> None:
    context = context_of(made)
    model = load(made / "models" / "tiny-adaptive-seed1")
    job = PlannedJob("ablate", (("tiny-adaptive", 1),))
    tokens = make_job(job, context, context.recipe.settings_of("ablate")).tokens
    assert tokens.shape == (16, 16)
    want = ablate(model, tokens, seed=1, name="tiny-adaptive")
    found = read_table(made, "ablation_results").query("model == 'tiny-adaptive' and seed == 1").reset_index(drop=True)
    pd.testing.assert_frame_equal(found, want, check_dtype=False)
    stack = one_a_slot(find_stack(made / "sae-train" / "tiny-control-seed0"), 1.0)
    atlas = atlas_features(
        load(made / "models" / "tiny-control-seed0"), stack, tokens, n_contexts=2, name="tiny-control"
    )
    features = read_table(made, "feature_atlas").query("model == 'tiny-control'").reset_index(drop=True)
    pd.testing.assert_frame_equal(features.drop(columns="match"), atlas.drop(columns="match"), check_dtype=False)


def test_tokens_come_from_the_split_and_the_size_asked_for(made) -> None:
    context = context_of(made)
    job = make_job(PlannedJob("ablate", (("tiny-control", 0),)), context, context.recipe.settings_of("ablate"))
    feed = open_feed(context.training("tiny-control"), None)
    for split, file in (("held_out", feed.held_out), ("train", feed.train)):
        tokens = job.windows(split=split, n_tokens=160)
        assert tokens.shape == (10, 16)
        np.testing.assert_array_equal(tokens, held_out_windows(file, 16, 10))
    assert job.windows(n_tokens=10**9).shape[0] == feed.held_out.n_tokens // 16


def test_matches_name_the_other_model_in_both_directions(made) -> None:
    features = read_table(made, "feature_atlas")
    for model, other in (("tiny-control", "tiny-adaptive"), ("tiny-adaptive", "tiny-control")):
        own = features[features["model"] == model]
        found = [json.loads(cell) for cell in own["match"] if cell]
        assert found
        assert {name for name, *_ in found} == {other}
        n_heads = own["head"].nunique()
        assert all(0 <= head < n_heads and 0 <= feature < 12 and -1 <= r <= 1 for _, head, feature, r in found)
        # a feature without a match does not fire, here or there
        assert (own.loc[own["match"] == "", "density"] < 1).all()


def test_the_record_says_what_ran(made) -> None:
    record = json.loads((made / "study.json").read_text())
    assert record["title"] == "Two tiny models"
    assert record["command"] == "workbench study tiny"
    assert [(m["name"], m["seed"]) for m in record["models"]] == [
        ("tiny-control", 0), ("tiny-adaptive", 0), ("tiny-control", 1), ("tiny-adaptive", 1),
    ]  # fmt: skip
    model = load(made / "models" / "tiny-control-seed0")
    assert record["models"][0]["n_parameters"] == model.n_parameters()
    assert record["models"][0]["n_parameters_no_embedding"] == model.n_parameters(embeddings=False)
    assert set(record["timings"]) == {job.name for job in plan_jobs(load_study(made / "config.toml"))}
    assert record["device"].startswith("cpu, ")
    assert not any("One seed" in note for note in record["notes"])
    assert "Two tiny models" in (made / "report.html").read_text()


def test_the_ledger_is_judged_from_the_merged_tables(made) -> None:
    tables = {name: read_table(made, name) for name in find_tables(made) if name not in ("claims", "feature_atlas")}
    want = judge_claims(tables, {"control": "tiny-control", "adaptive": "tiny-adaptive"})
    found = read_table(made, "claims")
    assert list(found["claim_id"]) == list(want["claim_id"])
    assert list(found["verdict"]) == list(want["verdict"])
    assert "own" in set(found["interval"]), "two seeds have the interval of the text"
    np.testing.assert_array_equal(found["n"], want["n"])


def test_baselines_are_those_of_the_text_that_judges_training(made) -> None:
    context = context_of(made)
    recipe = context.training("tiny-control")
    feed = open_feed(recipe, None)
    want = ngram_baselines(feed.train, held_out_windows(feed.held_out, 16, recipe.data.n_held_out_windows))
    found = read_table(made, "baselines").set_index("name")
    assert list(found.index) == ["unigram", "bigram"]
    for name in found.index:
        assert found.loc[name, "nats"] == pytest.approx(want[name].nats)
        assert found.loc[name, "perplexity"] == pytest.approx(np.exp(want[name].nats))
        assert found.loc[name, "n_tokens"] == want[name].n_tokens


def test_a_model_is_as_published_where_nothing_of_its_recipe_is_changed(place) -> None:
    def found(name, overrides=None) -> frozenset[str]:
        recipe = load_study(name, overrides)
        return module.as_published(Context(recipe, tuple(recipe.train_recipes()), place))

    assert found("recurrent") == {"recurrent-golf", "recurrent-plain"}
    assert found("recurrent", {"train.phases.0.n_steps": 100}) == frozenset()
    assert found(place / "tiny.toml") == frozenset()


def test_effective_sizes_are_those_of_every_model_against_the_reference(made) -> None:
    found = read_table(made, "effective_size")
    assert found[["model_a", "model_b"]].drop_duplicates().to_numpy().tolist() == [["tiny-adaptive", "tiny-control"]]
    assert found[["seed_a", "seed_b", "layer_a"]].to_numpy().tolist() == [[0, 0, -1], [1, 1, -1], [0, 0, 0], [1, 1, 0]]
    model = load(made / "models/tiny-adaptive-seed0", "cpu")
    assert set(found["n_parameters"]) == {sum(p.numel() for p in model.parameters())}
    without = sum(p.numel() for name, p in model.named_parameters() if not name.startswith(("embed", "unembed")))
    assert set(found["n_parameters_no_embedding"]) == {without}
    assert json.loads((made / "study.json").read_text())["roles"] == load_study(made.parent / "tiny.toml").roles


# --- going on


def test_a_finished_study_is_checked_and_left_alone(made, place) -> None:
    before = (made / "report.html").stat().st_mtime_ns
    with pytest.raises(ValueError, match="already exists"):
        study(place / "tiny.toml", made, seeds=2, device="cpu")
    assert study(place / "tiny.toml", made, seeds=2, device="cpu", resume=True) == made
    assert (made / "report.html").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="resume: recipe.n_seeds is 2"):
        study(place / "tiny.toml", made, seeds=1, device="cpu", resume=True)
    verify_manifest(made)  # and it is whole still


@pytest.fixture
def no_pages():
    """Pages are drawn in other tests; here they would only take time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "write_report", lambda directory, **given: None)
        patch.setattr(module, "write_heads", lambda directory: None)
        patch.setattr(module, "write_atlas", lambda directory, out: None)
        yield


@pytest.fixture(scope="module")
def one_seed(place):
    """Digests of the tables of the study with one seed that nothing stopped."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "write_report", lambda directory, **given: None)
        patch.setattr(module, "write_heads", lambda directory: None)
        patch.setattr(module, "write_atlas", lambda directory, out: None)
        return tables_of(study(place / "tiny.toml", place / "one-seed", device="cpu"))


@pytest.mark.usefixtures("no_pages")
@pytest.mark.parametrize("kind", ["sae-train", "atlas", "match", "merge"])
def test_a_study_that_died_goes_on_to_the_same_tables(place, tmp_path, monkeypatch, one_seed, kind) -> None:
    run_job = job_runners.run_job
    done: list[str] = []

    def dies(job, context, tell, **rest):
        if job.kind == kind and job.model == "tiny-adaptive":
            raise Killed
        run_job(job, context, tell, **rest)

    def dies_merging(jobs, context):
        raise Killed

    if kind == "merge":
        monkeypatch.setattr(module, "merge_tables", dies_merging)
    monkeypatch.setattr(job_runners, "run_job", dies)
    with pytest.raises(Killed):
        study(place / "tiny.toml", tmp_path / "out", device="cpu")
    monkeypatch.undo()
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="is an unfinished run; expected --resume"):
        study(place / "tiny.toml", tmp_path / "out", device="cpu")

    def counts(job, context, tell, **rest):
        done.append(job.name)
        run_job(job, context, tell, **rest)

    monkeypatch.setattr(job_runners, "run_job", counts)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out.partial" / "models").rglob("*.safetensors")}
    out = study(place / "tiny.toml", tmp_path / "out", device="cpu", resume=True)
    assert all((out / p.relative_to(tmp_path / "out.partial")).stat().st_mtime_ns == t for p, t in before.items())
    assert tables_of(out) == one_seed
    jobs = plan_jobs(load_study(place / "tiny.toml"))
    stopped = [i for i, job in enumerate(jobs) if job.kind == kind and job.model == "tiny-adaptive"]
    assert done == [job.name for job in jobs[(*stopped, len(jobs))[0] :]], "what is done is not begun again"


@pytest.mark.usefixtures("no_pages")
def test_an_altered_job_is_named_before_the_study_goes_on(place, tmp_path, monkeypatch) -> None:
    def dies(jobs, context):
        raise Killed

    monkeypatch.setattr(module, "merge_tables", dies)
    with pytest.raises(Killed):
        study(place / "tiny.toml", tmp_path / "out", device="cpu")
    monkeypatch.undo()
    file = tmp_path / "out.partial" / "ablate" / "tiny-control-seed0" / "ablation_results.csv"
    file.write_text(file.read_text().replace("zero", "mean", 1))
    with pytest.raises(ValueError, match="ablation_results.csv is altered"):
        study(place / "tiny.toml", tmp_path / "out", device="cpu", resume=True)


@pytest.mark.usefixtures("no_pages")
def test_progress_is_told_job_by_job(place, tmp_path) -> None:
    import contextlib

    labels: list[str] = []

    @contextlib.contextmanager
    def show(label):
        shares: list[float] = []
        labels.append(label)
        yield shares.append
        # a match or an attention map may be one batch
        assert not shares or (shares == sorted(shares) and shares[-1] == pytest.approx(1)), label

    one = {"models": [str(place / "control.toml")], "roles": {}, "settings.sae-train.l1": [1.0]}
    out = study(place / "tiny.toml", tmp_path / "out", device="cpu", overrides=one, show=show)
    assert labels[0] == "[2/7] ablate/tiny-control-seed0"
    assert len(labels) == 6
    record = json.loads((out / "study.json").read_text())
    assert not (out / "claims.csv").exists()
    assert any("One seed" in note for note in record["notes"])
    assert set(read_table(out, "feature_atlas")["match"]) == {""}


# --- the verbs


def test_the_verb_makes_the_study_and_says_where(place, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = RUN.invoke(app, ["study", str(place / "tiny.toml"), "--out", "out", "--device", "cpu", "--json"])
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert Path(answer["out"]) == tmp_path / "out"
    assert Path(answer["report"]).is_file()
    again = RUN.invoke(app, ["study", str(place / "tiny.toml"), "--out", "out", "--device", "cpu"])
    assert again.exit_code == 1
    assert "already exists" in again.stderr
    # the page from the CSVs alone
    shutil.copytree("out", "copy", ignore=shutil.ignore_patterns("*.html", "models", "sae-train"))
    assert RUN.invoke(app, ["report", "copy"]).exit_code == 0
    assert RUN.invoke(app, ["atlas", "copy"]).exit_code == 0
    for page in ("report.html", "heads.html", "atlas.html"):
        assert Path("copy", page).read_bytes() == Path("out", page).read_bytes()
    assert RUN.invoke(app, ["report", "nowhere"]).exit_code == 1


def test_a_plan_makes_nothing(place, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = RUN.invoke(app, ["study", str(place / "tiny.toml"), "--seeds", "3", "--dry-run", "--json"])
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert facts["n_jobs"] == len(plan_jobs(load_study(place / "tiny.toml", {"n_seeds": 3})))
    assert facts["trainings"]["tiny-control"]["n_steps"] == 4
    assert facts["n_train_tokens"] == 3 * 2 * 4 * 2 * 16
    told = RUN.invoke(app, ["study", str(place / "tiny.toml"), "--dry-run"])
    assert told.exit_code == 0, told.output
    assert all(name in told.stdout for name in facts["trainings"])
    assert not list(tmp_path.iterdir())


def test_a_plan_counts_what_the_saes_hold(place) -> None:
    """2²⁴ activations of 4 heads in float32, 4 wide: trainings of a thousandth of it were all that was planned."""
    large = plan(place / "tiny.toml", device="cpu", overrides={"settings.sae-train.buffer_tokens": 1 << 24})
    assert large["bytes_in_memory"] > (1 << 24) * 4 * 4 * 4
    assert large["bytes_in_memory"] > max(own["bytes_in_memory"] for own in large["trainings"].values()) + (1 << 29)


def test_saes_and_an_atlas_by_hand(made, place, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = str(made / "models" / "tiny-control-seed1")
    common = ["--ckpt", model, "--data", str(place / "text.jsonl"), "--device", "cpu"]
    train = ["sae-train", *common, "--layer", "1", "--heads", "0-1", "--l1", "0.5,2", "--seeds", "0,1", "--out", "saes"]
    train += ["--n-train-tokens", "512", "--n-eval-tokens", "256", "--set", "batch_size=64", "--set", "expansion=2"]
    result = RUN.invoke(app, train)
    assert result.exit_code == 0, result.output
    table = read_table("saes", "sae_training_results")
    assert set(table["model"]) == {"tiny-control"}
    assert set(table["seed"]) == {1}
    assert set(table["layer"]) == {1}
    assert sorted(set(zip(table["l1"], table["sae_seed"], strict=True))) == [(0.5, 0), (0.5, 1), (2.0, 0), (2.0, 1)]
    assert RUN.invoke(app, [*train, "--resume"]).exit_code == 0
    show = ["atlas", "--sae", "saes", *common, "--n-tokens", "128", "--l1", "2", "--out", "atlas"]
    result = RUN.invoke(app, show)
    assert result.exit_code == 0, result.output
    assert set(read_table("atlas", "feature_atlas")["l1"]) == {2.0}
    assert Path("atlas/atlas.html").is_file()
    wrong = RUN.invoke(
        app, [*show[:2], "saes", "--ckpt", str(made / "models" / "tiny-adaptive-seed1"), *show[5:-1], "b"]
    )
    assert wrong.exit_code == 1
    assert "the SAEs belong to tiny-control with sha256" in wrong.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["atlas"], 2, "got neither a directory nor --ckpt"),
        (["atlas", "--sae", "x"], 2, "got neither a directory nor --ckpt"),
        (["sae-train", "--ckpt", "nowhere", "--l1", "a"], 2, "--l1: got 'a'; expected numbers"),
        (["sae-train", "--ckpt", "nowhere", "--layers", "1-"], 2, "--layers: got '1-'"),
        (["study", "nowhere"], 1, "no study or file 'nowhere'"),
        (["study", "--set", "n_contexts"], 2, "expected key=value"),
    ],
)
def test_wrong_command_lines_end_in_one_line(arguments, code, message, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = RUN.invoke(app, arguments)
    assert result.exit_code == code
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.usefixtures("no_pages")
def test_an_interrupt_of_a_training_ends_the_verb_with_130(place, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)

    def interrupted(*_, **__):
        raise Interrupted("stopped after step 3")

    monkeypatch.setattr(job_runners, "train", interrupted)
    result = RUN.invoke(app, ["study", str(place / "tiny.toml"), "--out", "out", "--device", "cpu", "--json"])
    assert result.exit_code == 130
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    result = RUN.invoke(
        app, ["study", str(place / "tiny.toml"), "--out", "out", "--device", "cpu", "--json", "--resume"]
    )
    assert result.exit_code == 0, result.output
