"""atlas.html: what it takes, what it refuses, what it weighs. What it does is tested in a browser."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest
from fake_study import feature_atlas, write_fake_study

from reports.atlas import ablation_data, write_atlas
from reports.tables import read_table


def test_a_directory_and_its_tables_give_the_same_features(made_study, tmp_path):
    tables = {name: read_table(made_study, name) for name in ("feature_atlas", "ablation_results")}
    from_directory = write_atlas(made_study, tmp_path / "a.html").read_text(encoding="utf-8")
    from_tables = write_atlas(tables, tmp_path / "sub" / "b.html").read_text(encoding="utf-8")
    data = [re.search(r'id="page-data">([^<]*)<', page)[1] for page in (from_directory, from_tables)]
    assert data[0] == data[1]
    assert "384 sparse-autoencoder features of 2 models" in from_tables
    assert 'href="report.html"' not in from_tables
    assert 'href="report.html"' not in from_directory  # it lies elsewhere


def test_a_page_beside_the_report_leads_to_it(study_copy):
    page = write_atlas(study_copy, study_copy / "other.html")
    assert 'href="report.html"' in page.read_text(encoding="utf-8")


def test_the_page_is_the_same_every_time(made_study, tmp_path):
    pages = [write_atlas(made_study, tmp_path / name).read_bytes() for name in ("a.html", "b.html")]
    assert pages[0] == pages[1]


def test_no_token_stands_in_the_page_as_written(made_study, tmp_path):
    page = write_atlas(made_study, tmp_path / "a.html").read_text(encoding="utf-8")
    assert "pwned" not in page
    assert page.lower().count("</script>") == len(re.findall(r"<script\b", page))


@pytest.mark.parametrize(
    ("drop", "message"),
    [
        (["top_contexts", "density"], r"feature_atlas: the columns density, top_contexts are missing"),
        (None, r"no feature_atlas among ablation_results; expected feature_atlas.csv"),
    ],
)
def test_what_it_cannot_draw_is_named(made_study, tmp_path, drop, message):
    tables = {"ablation_results": read_table(made_study, "ablation_results")}
    if drop:
        tables["feature_atlas"] = read_table(made_study, "feature_atlas").drop(columns=drop)
    with pytest.raises(ValueError, match=message):
        write_atlas(tables, tmp_path / "a.html")


def test_leading_columns_are_enough(made_study, tmp_path):
    table = read_table(made_study, "feature_atlas").drop(columns=["seed", "dead", "neighbours", "match"])
    assert write_atlas({"feature_atlas": table}, tmp_path / "a.html").is_file()


def test_impacts_of_heads_are_of_the_features_seed_or_of_none(made_study):
    tables = {name: read_table(made_study, name) for name in ("feature_atlas", "ablation_results")}
    names = {model: model for model in tables["feature_atlas"]["model"].unique()}
    seedless = tables["feature_atlas"].drop(columns="seed")
    two = pd.concat([tables["ablation_results"], tables["ablation_results"].assign(seed=1)])
    seeds = {head[1] for head in ablation_data(tables | {"ablation_results": two}, names)["heads"]}
    assert seeds == {"0", "1"}
    assert {head[1] for head in ablation_data(tables | {"feature_atlas": seedless}, names)["heads"]} == {""}
    assert ablation_data({"feature_atlas": seedless, "ablation_results": two}, names)["heads"] == []


def test_an_atlas_without_features_is_drawn(made_study, tmp_path):
    assert write_atlas(
        {"feature_atlas": read_table(made_study, "feature_atlas").iloc[:0]}, tmp_path / "a.html"
    ).is_file()


def test_one_model_with_nothing_but_dead_features_is_drawn(tmp_path):
    write_fake_study(tmp_path, models=("solo",), n_layers=1, n_heads=1, d_sae=4, empty_sae=True)
    assert write_atlas(tmp_path, tmp_path / "atlas.html").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n_layers", "n_heads", "d_sae", "n_contexts", "limit"),
    [
        (4, 8, 128, 5, 6_000_000),
        (5, 5, 512, 10, 12_500_000),
    ],  # 12.4 MB, of which histograms and weaker contexts take .46
    ids=["nano: 64 heads", "50 heads of 512"],
)
def test_sizes(tmp_path, n_layers, n_heads, d_sae, n_contexts, limit):
    models = ("control", "adaptive")
    rng = np.random.default_rng(0)
    table = feature_atlas(rng, models, n_layers, n_heads, d_sae, n_contexts, 32, hostile=True, empty=False)
    assert len(table) == 2 * n_layers * n_heads * d_sae
    assert write_atlas({"feature_atlas": table}, tmp_path / "a.html").stat().st_size < limit


def test_an_impact_without_end_is_drawn_as_missing(made_study, tmp_path):
    """An ablation may take the loss itself beyond what a float holds."""
    tables = {name: read_table(made_study, name) for name in ("feature_atlas", "ablation_results")}
    tables["ablation_results"].loc[0, ["impact_pct", "ci_high"]] = np.inf
    assert write_atlas(tables, tmp_path / "a.html").is_file()
    assert ablation_data(tables, {m: m for m in tables["feature_atlas"]["model"]})["heads"][0][4] is None


def test_an_atlas_of_no_features_and_of_tiny_activations_is_drawn(made_study, tmp_path):
    table = read_table(made_study, "feature_atlas")
    table.iloc[:0].to_csv(tmp_path / "feature_atlas.csv", index=False)
    assert "0 sparse-autoencoder features" in write_atlas(tmp_path, tmp_path / "a.html").read_text(encoding="utf-8")
    assert write_atlas({"feature_atlas": table.assign(max_act=1e-320)}, tmp_path / "b.html").is_file()


@pytest.mark.parametrize(
    ("name", "column", "value", "message"),
    [
        ("feature_atlas", "layer", np.nan, r"layer is no whole number in some row; expected one in each"),
        ("feature_atlas", "feature", np.inf, r"feature_atlas: feature is no whole number"),
        ("feature_atlas", "head", 0.5, r"feature_atlas: head is no whole number"),
        ("ablation_results", "layer", np.inf, r"ablation_results: layer of some row is no whole number"),
        ("ablation_results", "head", "first", r"ablation_results: head of some row is no number"),
    ],
)
def test_a_row_without_a_place_is_refused_by_name(made_study, tmp_path, name, column, value, message):
    tables = {name: read_table(made_study, name) for name in ("feature_atlas", "ablation_results")}
    tables[name] = tables[name].astype({column: object if isinstance(value, str) else float})
    tables[name].loc[0, column] = value
    with pytest.raises(ValueError, match=message):
        write_atlas(tables, tmp_path / "a.html")
