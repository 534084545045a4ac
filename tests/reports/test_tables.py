"""Tables: what is written comes back digit for digit, and every fault is named."""

from __future__ import annotations

import math
import os

import numpy as np
import pandas as pd
import pytest

from reports.tables import COLUMNS, find_tables, read_table, write_table

HOSTILE = ["</script>", 'a"b', "a,b", "line\nbreak", "\r", "\r\n", "x\ry", "NA", "nan", "", "007", "null", " "]
HOSTILE += ["\u202eabc", "🦊", "\x00", "a\x00b", "'", "#", "\ufeff", "\u2028"]


def baselines(**columns) -> pd.DataFrame:
    return pd.DataFrame({"name": ["unigram"], "nats": [6.63], "n_tokens": [1000], **columns})


def read_raw(directory, name, text):
    (directory / f"{name}.csv").write_text(text)
    return read_table(directory, name)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_floats_round_trip_exactly(tmp_path, seed):
    rng = np.random.default_rng(seed)
    edges = [0.1, 1 / 3, 5e-324, 1.7976931348623157e308, math.inf]
    nats = np.concatenate([rng.standard_normal(200) * 10.0 ** rng.integers(-300, 300, 200), edges])
    df = pd.DataFrame({"name": [f"b{i}" for i in range(len(nats))], "nats": nats, "n_tokens": np.arange(len(nats))})
    write_table(df, tmp_path, "baselines")
    back = read_table(tmp_path, "baselines")
    np.testing.assert_array_equal(back["nats"].to_numpy(), nats)  # exact: repr tells floats apart
    assert back["n_tokens"].dtype == np.int64


def test_missing_number_is_nan_and_back(tmp_path):
    write_table(baselines(nats=[float("nan")]), tmp_path, "baselines")
    assert math.isnan(read_table(tmp_path, "baselines")["nats"][0])


def test_integers_are_written_as_such_beside_empty_cells(tmp_path):
    layers = [0.0, float("nan"), 11.0]
    row = {column: [1.5] * 3 for column in COLUMNS["seed_means"]}
    for column, values, written in (
        ("layer", layers, ["0", "", "11"]),
        ("layer", [0.5, *layers[1:]], ["0.5", "", "11.0"]),  # not whole: as it is
        ("layer", [float("inf"), *layers[1:]], ["inf", "", "11.0"]),
        ("mean", layers, ["0.0", "", "11.0"]),  # a number
    ):
        path = write_table(pd.DataFrame(row | {column: values}), tmp_path, "seed_means")
        assert list(pd.read_csv(path, dtype=str, keep_default_na=False)[column]) == written


def test_text_columns_stay_text(tmp_path):
    columns = {column: ["0"] * len(HOSTILE) for column in COLUMNS["feature_atlas"]}
    df = pd.DataFrame({**columns, "top_token": HOSTILE, "feature": range(len(HOSTILE))})
    write_table(df, tmp_path, "feature_atlas")
    back = read_table(tmp_path, "feature_atlas")
    assert back["top_token"].tolist() == HOSTILE
    assert back["model"].tolist() == ["0"] * len(HOSTILE)
    assert back["feature"].tolist() == list(range(len(HOSTILE)))


def test_lone_surrogates_are_replaced(tmp_path):
    df = baselines().astype({"name": object})
    df.loc[0, "name"] = "a\ud800b\ud83e\udd8a"
    write_table(df, tmp_path, "baselines")
    assert read_table(tmp_path, "baselines")["name"][0] == "a\ufffdb🦊"


def test_leading_columns_come_first_and_the_rest_keep_their_order(tmp_path):
    df = baselines(zebra=[1], apple=[2])[["zebra", "n_tokens", "apple", "nats", "name"]]
    path = write_table(df, tmp_path / "new" / "dir", "baselines")
    assert path.read_text().splitlines()[0] == "name,nats,n_tokens,zebra,apple"
    assert path == tmp_path / "new" / "dir" / "baselines.csv"


def test_a_failed_write_leaves_the_old_table_and_no_litter(tmp_path, monkeypatch):
    path = write_table(baselines(), tmp_path, "baselines")
    before = path.read_bytes()

    def fail(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        write_table(baselines(nats=[1.0]), tmp_path, "baselines")
    assert path.read_bytes() == before
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["baselines.csv", "datapackage.json"]


def test_writing_twice_gives_the_same_bytes(tmp_path):
    one = write_table(baselines(), tmp_path / "a", "baselines").read_bytes()
    assert write_table(read_table(tmp_path / "a", "baselines"), tmp_path / "b", "baselines").read_bytes() == one


def test_find_tables_takes_known_names_at_the_top_level_only(tmp_path):
    write_table(baselines(), tmp_path, "baselines")
    write_table(baselines(), tmp_path / "models", "baselines")
    (tmp_path / "other.csv").write_text("a\n1\n")
    assert find_tables(tmp_path) == {"baselines": tmp_path / "baselines.csv"}


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda d: write_table(baselines().drop(columns="nats"), d, "baselines"), r"baselines: the table lacks nats;"),
        (lambda d: write_table(baselines(), d, "baseline"), r"table: got 'baseline'; expected one of baselines"),
        (lambda d: read_table(d, "claims"), r"claims.csv: no such file; expected the table claims"),
        (lambda d: read_table(d, "nothing_like_it"), r"table: got 'nothing_like_it'; expected one of"),
        (lambda d: read_raw(d, "claims", ""), r"claims.csv: the file is empty"),
        (lambda d: read_raw(d, "baselines", "name\nx\n"), r"baselines.csv: the columns nats, n_tokens are missing"),
        (lambda d: find_tables(d / "absent"), r"absent: not a directory"),
    ],
)  # fmt: skip
def test_faults_are_named(tmp_path, act, message):
    with pytest.raises(ValueError, match=message):
        act(tmp_path)


def test_every_model_table_leads_with_model():
    for name, columns in COLUMNS.items():
        assert len(set(columns)) == len(columns), name
        assert columns[0] in {"model", "model_a", "name", "claim", "claim_id", "measure", "table"}, name
