"""What the pages see of a study directory, and how they say what is not there."""

from __future__ import annotations

import json

import pytest

from reports.study import order_models, problems, read_record, read_study, short_names


@pytest.mark.parametrize(
    ("models", "names"),
    [
        (["janus-v3-control-nano", "janus-v3-adaptive-nano"], ["control", "adaptive"]),
        (["P1-AdamW", "P3-Muon"], ["P1-AdamW", "P3-Muon"]),
        (["a-nano", "a-b-nano"], ["a", "a-b"]),  # a name that is all shared words keeps one
        (["solo"], ["solo"]),
        (["a", "models-of-" + "x" * 30 + "-2026"], ["a", "models-of-xxxxxx…xxxxxx-2026"]),
        (["x" * 20 + name + "y" * 20 for name in "pq"], ["x" * 20 + name + "y" * 20 for name in "pq"]),
        (["x", "x-y"], ["x", "x-y"]),
        ([], []),
    ],
)
def test_short_names_drop_shared_words(models, names):
    found = short_names(models)
    assert list(found.values()) == names
    assert len(set(found.values())) == len(models)


def test_models_come_as_the_record_orders_them(made_study):
    study = read_study(made_study)
    assert study.models == ["control", "adaptive"]
    assert set(study.tables["topology_stats"]["model"]) == {"control", "adaptive"}
    assert set(study.tables["pc_cosine"]["model_a"]) == {"control"}


def test_without_a_record_a_control_comes_first(study_copy):
    (study_copy / "study.json").unlink()
    tables = {name: df.iloc[::-1] for name, df in read_study(study_copy).tables.items()}
    assert order_models({}, tables)[0] == "control"


def test_problems_name_table_column_and_type(study_copy):
    path = study_copy / "topology_stats.csv"
    path.write_text("model,layer,mean_cos\na,0,much\n")
    (study_copy / "sae_density.csv").write_text("model,seed\n")
    (study_copy / "claims.csv").write_text("")
    (study_copy / "baselines.csv").unlink()
    study = read_study(study_copy)
    assert problems(study, {"topology_stats": ("model", "layer")}) == []
    assert problems(study, {"topology_stats": ("model", "seed", "basis")}) == [
        "topology_stats.csv lacks the columns seed, basis."
    ]
    assert problems(study, {"topology_stats": ("mean_cos",)}) == [
        "topology_stats.csv holds text in the column mean_cos, where numbers are wanted."
    ]
    assert problems(study, {"sae_density": ("model",)}) == ["sae_density.csv has no rows."]
    assert problems(study, {"claims": ("claim",)}) == ["claims.csv is empty: it has not even a header."]
    assert problems(study, {"baselines": ("name",)}) == ["baselines.csv is not in this study."]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"study.json: not JSON"),
        ("[]", r"study.json: got a list; want an object"),
        (json.dumps({"models": "two"}), r"models is a str; want a list"),
        (json.dumps({"corpus": 3}), r"corpus is a int; want a str or dict"),
        (json.dumps({"models": ["one"]}), r"models holds something that is not an object"),
    ],
)
def test_a_malformed_record_is_refused(tmp_path, text, message):
    path = tmp_path / "study.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_record(path)


def test_a_record_may_be_absent_or_say_nothing(tmp_path):
    assert read_record(tmp_path / "study.json") == {}
    (tmp_path / "study.json").write_text('{"title": null}')
    assert read_record(tmp_path / "study.json") == {}


def test_a_directory_without_tables_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds no known table"):
        read_study(tmp_path)
