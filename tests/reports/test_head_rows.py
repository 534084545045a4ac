"""From a head to what a study's tables say of it."""

from __future__ import annotations

import base64
import gzip
import json
import re
import shutil

import pandas as pd
from fake_study import write_head_rows

from reports.atlas import known_heads, write_atlas
from reports.contract import Column, Table
from reports.head_rows import head_rows
from reports.page import write_report

CONTROL = "janus-v3-control-nano"


def page_data(path) -> dict:
    packed = re.search(r'id="page-data">([^<]+)<', path.read_text(encoding="utf-8"))
    assert packed is not None
    return json.loads(gzip.decompress(base64.b64decode(packed[1])))


def test_the_strongest_row_of_each_head_is_found_by_a_loop():
    values = [0.1, -0.3, 0.2, float("nan"), 0.05, 0.05]
    df = pd.DataFrame(
        {"model": "m", "seed": 0, "layer": [0, 0, 0, 1, 2, 2], "head": [0, 0, 1, 0, -1, 3], "share": values, "at": "x"}
    ).assign(share_low=0.0, share_high=1.0)
    table = Table("own", ("model", "seed", "layer", "head", "at"), [Column("share"), Column("share_low")])
    found = head_rows({"own": df}, {"own": table}, ["own"])
    assert set(found) == {"m|0|0", "m|0|1", "m|1|0", "m|2|3"}  # -1 is no head
    assert found["m|0|0"] == [("own", "share −0.30 [0, 1.0] (seed 0, x), the largest of 2 rows")]
    assert found["m|1|0"] == [("own", "no share (1 row)")]


def test_a_path_is_a_row_of_both_its_heads():
    key = ("model", "seed", "layer_a", "head_a", "layer_b", "head_b")
    df = pd.DataFrame([("m", 0, 0, 1, 1, 2, 0.5), ("m", 0, 0, -1, 1, 2, 0.25)], columns=[*key, "effect"])
    found = head_rows({"own": df}, {"own": Table("own", key, [Column("effect")])}, ["own"])
    assert set(found) == {"m|0|1", "m|1|2"}
    assert "(sender, seed 0, layer b 1, head b 2)" in found["m|0|1"][0][1]
    assert "effect 0.50 (receiver, seed 0, layer a 0, head a 1), the largest of 2" in found["m|1|2"][0][1]


def test_pages_lead_to_heads_that_have_rows_and_to_panels_that_are_drawn(made_study, tmp_path):
    study = shutil.copytree(made_study, tmp_path / "study", ignore=shutil.ignore_patterns("*.html"))
    assert known_heads(study) == []
    assert 'id="one-head"' not in write_report(study).read_text(encoding="utf-8")
    write_head_rows(study, CONTROL, 1, 2)
    assert known_heads(study) == [f"{CONTROL}|1|2"]
    page = write_report(study)
    data = page_data(page)
    assert list(data["heads"]) == ["control|1|2"]
    for table, _ in data["heads"]["control|1|2"]:
        assert data["panels"][table].startswith("Figure") or data["panels"][table].startswith("Table")
        assert f'<figure id="{table}"' in page.read_text(encoding="utf-8")
    assert page_data(write_atlas(study, study / "atlas.html"))["known"] == [f"{CONTROL}|1|2"]
