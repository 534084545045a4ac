"""What the pages see of a study directory, and how they say what is not there."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pandas as pd
import pytest

from reports.page import write_report
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
        ("[]", r"study.json: got a list; expected an object"),
        (json.dumps({"models": "two"}), r"models is a str; expected a list"),
        (json.dumps({"corpus": 3}), r"corpus is a int; expected a str or dict"),
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


@pytest.mark.parametrize(
    ("table", "column", "value", "said"),
    [
        ("topology_stats", "model", "", "topology_stats.csv has a row without a name in the column model."),
        ("topology_stats", "layer", "inf", "topology_stats.csv has a row without a whole number in the column layer."),
        ("head_cosines", "head_j", "inf", "head_cosines.csv has a row without a whole number in the column head_j."),
        ("head_cosines", "layer", "", "head_cosines.csv has a row without a whole number in the column layer."),
        ("ablation_results", "seed", "", "ablation_results.csv has a row without a whole number in the column seed."),
        ("ablation_results", "head", "0.5", "ablation_results.csv has a row without a whole number in the column head"),
        ("sae_training_results", "layer", "-inf", "sae_training_results.csv has a row without a whole number in the"),
        ("sae_density", "log10_density_bin", "low", "neither a number nor dead in the column log10_density_bin."),
        ("train_log", "step", "", "train_log.csv has a row without a whole number in the column step."),
    ],
)
@pytest.mark.parametrize("rows", ["one", "all"])
def test_a_row_without_a_place_costs_the_figures_that_need_it_and_no_more(study_copy, table, column, value, said, rows):
    path = study_copy / f"{table}.csv"
    df = pd.read_csv(path, dtype=str, keep_default_na=False)
    df.loc[df.index[:1] if rows == "one" else df.index, column] = value
    df.to_csv(path, index=False)
    page = write_report(study_copy).read_text(encoding="utf-8")
    assert said in page
    assert "<strong>Figure 2." in page


def test_numbers_without_end_and_a_lone_embedding_are_drawn(made_study, tmp_path):
    shutil.copytree(made_study, tmp_path / "study")
    for table in ("topology_stats", "ablation_results"):
        df = pd.read_csv(tmp_path / "study" / f"{table}.csv")
        df.assign(n_tokens=np.inf, max_cos=np.inf).to_csv(tmp_path / "study" / f"{table}.csv", index=False)
    df = pd.read_csv(tmp_path / "study" / "concept_mantel.csv")
    df[df["layer"] == -1].to_csv(tmp_path / "study" / "concept_mantel.csv", index=False)
    assert "n not given (held-out tokens" in write_report(tmp_path / "study").read_text(encoding="utf-8")


def test_a_table_of_saes_without_costs_still_shows_the_other_measures(study_copy):
    path = study_copy / "sae_training_results.csv"
    pd.read_csv(path).drop(columns="ce_base").to_csv(path, index=False)
    page = write_report(study_copy).read_text(encoding="utf-8")
    assert "(c) FVU" in page
    assert "(e) cross-entropy recovered" not in page
