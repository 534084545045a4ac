"""What a study's tables say of a head, in words."""

from __future__ import annotations

import pandas as pd

from reports.contract import Column, Table
from reports.head_rows import head_rows


def test_the_strongest_row_of_each_head_is_found_by_a_loop():
    values = [0.1, -0.3, 0.2, float("nan"), 0.05, 0.05, 0.7]
    df = pd.DataFrame(
        {"model": "m", "seed": [0] * 6 + [1], "layer": [0, 0, 0, 1, 2, 2, 0], "head": [0, 0, 1, 0, -1, 3, 0],
         "share": values, "at": "x"}
    ).assign(share_low=0.0, share_high=1.0)  # fmt: skip
    table = Table("own", ("model", "seed", "layer", "head", "at"), [Column("share"), Column("share_low")])
    found = head_rows({"own": df}, {"own": table}, ["own"])
    assert set(found) == {("m", "0", 0, 0), ("m", "0", 0, 1), ("m", "0", 1, 0), ("m", "0", 2, 3), ("m", "1", 0, 0)}
    assert found["m", "0", 0, 0] == [("own", "share −0.30 [0, 1.0] (x), the largest of 2 rows")]
    assert found["m", "1", 0, 0] == [("own", "share 0.70 [0, 1.0] (x)")]
    assert found["m", "0", 1, 0] == [("own", "no share (1 row)")]


def test_a_path_is_a_row_of_both_its_heads():
    key = ("model", "seed", "layer_a", "head_a", "layer_b", "head_b")
    df = pd.DataFrame([("m", 0, 0, 1, 1, 2, 0.5), ("m", 0, 0, -1, 1, 2, 0.25)], columns=[*key, "effect"])
    found = head_rows({"own": df}, {"own": Table("own", key, [Column("effect")])}, ["own"])
    assert set(found) == {("m", "0", 0, 1), ("m", "0", 1, 2)}
    assert "(sender, layer b 1, head b 2)" in found["m", "0", 0, 1][0][1]
    assert "effect 0.50 (receiver, layer a 0, head a 1), the largest of 2" in found["m", "0", 1, 2][0][1]


def test_a_table_without_seeds_is_of_any():
    table = Table("own", ("model", "layer", "head"), [Column("share")])
    df = pd.DataFrame({"model": ["m"], "layer": [0], "head": [1], "share": [0.5]})
    assert head_rows({"own": df}, {"own": table}, ["own"]) == {("m", "", 0, 1): [("own", "share 0.50")]}
