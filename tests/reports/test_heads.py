"""The page of heads: what it carries is what the tables say, whatever they lack."""

from __future__ import annotations

import base64
import gzip
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fake_study import write_head_rows

from reports.atlas import write_atlas
from reports.heads import write_heads
from reports.page import write_report
from reports.tables import read_table, write_table

CONTROL = "janus-v3-control-nano"


def carried(path: Path | None, name: str) -> bytes:
    assert path is not None
    packed = re.search(rf'id="{name}">([^<]+)<', path.read_text(encoding="utf-8"))
    assert packed is not None
    return gzip.decompress(base64.b64decode(packed[1]))


def page_data(path: Path | None) -> dict:
    return json.loads(carried(path, "page-data"))


@pytest.fixture
def whole_copy(made_study, tmp_path) -> Path:
    return Path(shutil.copytree(made_study, tmp_path / "whole", ignore=shutil.ignore_patterns("*.html")))


@pytest.fixture
def data(made_study, tmp_path) -> dict:
    return page_data(write_heads(made_study, tmp_path / "heads.html"))


def test_every_number_of_a_head_is_its_rows(made_study, data):
    stats = read_table(made_study, "attention_stats").set_index(["model", "seed", "layer", "head"])
    kinds = read_table(made_study, "head_kinds").set_index(["model", "seed", "layer", "head", "measure"])
    ablated = read_table(made_study, "ablation_results").query("kind == 'zero' and head >= 0")
    ablated = ablated.set_index(["model", "seed", "layer", "head"])
    assert len(data["heads"]) == len(stats) == 16
    measures = {own["key"]: own for own in data["measures"]}
    (zero,) = (own for own in data["ablation"] if own["kind"] == "zero")
    for i, (model, seed, layer, head) in enumerate(data["heads"]):
        place = (model, int(seed), layer, head)
        for key, own in measures.items():
            row = kinds.loc[(*place, key)]
            measured = stats.loc[place, key] if key in stats else row["value"]
            assert own["value"][i] == pytest.approx(measured, rel=1e-6)
            assert own["uniform"][i] == pytest.approx(row["uniform"], rel=1e-6)
            assert own["z"][i] == pytest.approx(row["z"], rel=1e-6)
        chosen = [key for key in measures if kinds.loc[(*place, key), "is_kind"] == 1]
        assert data["kinds"]["of"][i] == (chosen[0] if chosen else "")
        for column in ("impact_pct", "ci_low", "ci_high", "stderr", "base_loss", "ablated_loss", "n_tokens"):
            assert zero[column][i] == pytest.approx(ablated.loc[place, column], rel=1e-6)


def test_maps_are_the_tables_to_their_last_decimal(made_study, tmp_path):
    path = write_heads(made_study, tmp_path / "heads.html")
    data, planes = page_data(path), np.frombuffer(carried(path, "heads-maps"), np.uint8).astype(int)
    weights = (planes[: len(planes) // 2] + 256 * planes[len(planes) // 2 :]) / 10_000
    table = read_table(made_study, "attention_examples").set_index(["model", "seed", "layer", "head", "sentence"])
    texts = read_table(made_study, "attention_sentences")
    starts, at = [], 0
    for run in data["runs"]:
        starts.append(at)
        at += sum(len(own["tokens"]) * (len(own["tokens"]) + 1) // 2 for own in data["sentences"][run])
    assert at == len(weights)
    assert len(data["sentences"]) == 1, "those of equal runs once"
    for i, (model, seed, layer, head) in enumerate(data["heads"]):
        at = starts[data["maps"][i]]
        for number, sentence in enumerate(data["sentences"][0]):
            own = texts.query("model == @model and sentence == @number")
            assert sentence["tokens"] == json.loads(own["tokens"].iloc[0])
            for row in json.loads(table.loc[(model, int(seed), layer, head, number), "weights"]):
                assert weights[at : at + len(row)].tolist() == row
                at += len(row)


def test_the_strongest_features_of_a_head_are_named(made_study, data):
    table = read_table(made_study, "feature_atlas")
    for i, (model, _, layer, head) in enumerate(data["heads"]):
        own = table[(table["model"] == model) & (table["layer"] == layer) & (table["head"] == head)]
        own = own[own["density"] > 0]
        want = own.sort_values("max_act", ascending=False, kind="stable").head(8)
        assert [feature for feature, *_ in data["features"][i]] == want["feature"].tolist()
        assert [token for *_, token, _ in data["features"][i]] == want["top_token"].tolist()


def test_other_tables_rows_and_the_head_that_is_most_alike(whole_copy):
    write_head_rows(whole_copy, CONTROL, 1, 2)
    data = page_data(write_heads(whole_copy))
    i = data["heads"].index([CONTROL, "0", 1, 2])
    said = dict(data["rows"][i])
    assert "recovery 0.44 [0.40, 0.50]" in said["patching"]
    assert said["sae_training_results"].startswith("SAE at λ₁ = 0.03: l0 ")
    cosines = read_table(whole_copy, "head_cosines")
    own = cosines.query(f"model == '{CONTROL}' and layer == 1 and basis == 'z' and head_i == 2 and head_j != 2")
    row = own.loc[own["cos"].abs().idxmax()]
    assert data["alike"][i] == [row["head_j"], pytest.approx(row["cos"], rel=1e-3)]


@pytest.mark.parametrize(
    "name", ["attention_examples", "attention_sentences", "head_kinds", "attention_stats", "ablation_results"]
)
def test_a_missing_table_costs_its_part_only(whole_copy, name):
    (whole_copy / f"{name}.csv").unlink()
    path = write_heads(whole_copy)
    data = page_data(path)
    assert len(data["heads"]) == 16
    has_maps = name not in ("attention_examples", "attention_sentences")
    assert (max(data["maps"]) >= 0) == has_maps
    assert (f"No attention maps: {name}.csv is not there" in path.read_text(encoding="utf-8")) != has_maps


@pytest.mark.parametrize("text", ["", "[[1", "[[1], [0.5]]", "[[2.0]]", "null", "[[1], 3]", '[["x"]]', "[[NaN]]"])
def test_a_broken_map_is_named(whole_copy, text):
    table = read_table(whole_copy, "attention_examples")
    table.loc[3, "weights"] = text
    table.to_csv(whole_copy / "attention_examples.csv", index=False)
    page = write_heads(whole_copy)
    assert page_data(page)["maps"] == [-1] * 16
    assert "No attention maps: " in page.read_text(encoding="utf-8")


def test_a_study_without_heads_has_no_page_and_no_links(made_study, tmp_path):
    write_table(read_table(made_study, "train_log"), tmp_path, "train_log")
    assert write_heads(tmp_path) is None
    assert not (tmp_path / "heads.html").exists()
    assert "heads.html" not in write_report(tmp_path).read_text(encoding="utf-8")


def test_the_other_pages_lead_to_it(whole_copy):
    for page in (write_report(whole_copy), write_atlas(whole_copy, whole_copy / "atlas.html")):
        text = page.read_text(encoding="utf-8")
        assert '<a href="heads.html">Attention heads</a>' in text
        assert '<script type="text/plain" id="heads-address">heads.html</script>' in text


def test_the_page_is_the_same_every_time_and_names_no_address_outside(made_study, tmp_path):
    pages = [write_heads(made_study, tmp_path / name) for name in ("a.html", "b.html")]
    text = pages[0].read_text(encoding="utf-8")
    assert text == pages[1].read_text(encoding="utf-8")
    bare = re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    assert not re.search(r"""(?:src|href)=["'](?!#|data:,|atlas\.html|report\.html)""", bare)
    assert "plotly-source" not in text


def test_seeds_are_heads_of_their_own(whole_copy):
    for name in ("attention_stats", "head_kinds", "attention_examples", "attention_sentences"):
        table = read_table(whole_copy, name)
        write_table(pd.concat([table, table.assign(seed=1)]), whole_copy, name)
    data = page_data(write_heads(whole_copy))
    assert len(data["heads"]) == 32
    assert {seed for _, seed, _, _ in data["heads"]} == {"0", "1"}
    assert sorted(data["maps"]) == list(range(32))
