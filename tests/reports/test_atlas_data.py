"""The packed atlas read back by a decoder written here, against the table it came from."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest
from fake_study import HOSTILE, feature_atlas

from reports.atlas import with_effects
from reports.atlas_data import encode_atlas, fit
from reports.tables import read_table, replace_surrogates


def decode(data: bytes) -> dict:
    """Read an atlas as the module's first lines describe it, with nothing of its code."""
    length = int.from_bytes(data[:4], "little")
    header = json.loads(data[4 : 4 + length].decode("utf-8"))
    body = data[4 + length :]
    for name, (dtype, offset, size) in header["arrays"].items():
        assert (4 + length + offset) % 8 == 0, name
        header[name] = np.frombuffer(body, dtype=np.dtype(dtype).newbyteorder("<"), count=size, offset=offset)
    return header


def number(atlas: dict, name: str, at: int, row: int) -> float:
    """A number stored in units of its feature's last decimal."""
    stored = int(atlas[f"{name}_value"][at])
    return math.nan if stored == atlas["missing"] else stored / 10.0 ** int(atlas[f"{name}_decimals"][row])


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return feature_atlas(np.random.default_rng(3), ("control", "adaptive"), 2, 2, 12, 4, 12, hostile=True, empty=False)


@pytest.fixture(scope="module")
def atlas(table) -> dict:
    return decode(encode_atlas(table, {"title": "t"}))


def test_numbers_of_features_come_back(table, atlas):
    assert [atlas["models"][i] for i in atlas["model"]] == table["model"].tolist()
    for column in ("layer", "head", "feature"):
        assert atlas[column].tolist() == table[column].tolist()
    for column in ("density", "max_act", "mean_act"):
        np.testing.assert_array_equal(atlas[column], table[column])
    assert atlas["dead"].tolist() == table["dead"].astype(int).tolist()
    assert atlas["title"] == "t"


def test_contexts_come_back_token_by_token(table, atlas):
    context = active = interval = 0
    for row, cells in enumerate(zip(table["top_contexts"], table["interval_contexts"], strict=True)):
        strongest, of_intervals = map(json.loads, cells)
        assert atlas["n_contexts"][row] == len(strongest) + len(of_intervals)
        assert atlas["n_strongest"][row] == len(strongest)
        for own in of_intervals:
            assert (atlas["interval_low"][interval], atlas["interval_high"][interval]) == (own["low"], own["high"])
            interval += 1
        for wanted in [*strongest, *of_intervals]:
            start, size = atlas["context_start"][context], atlas["context_n_tokens"][context]
            tokens = [atlas["vocabulary"][token] for token in atlas["line_token"][start : start + size]]
            assert tokens == [replace_surrogates(token) for token in wanted["tokens"]]
            assert atlas["context_peak"][context] == wanted["peak"]
            assert number(atlas, "context", context, row) == wanted["value"]
            acts = [0.0] * size
            for _ in range(atlas["context_n_active"][context]):
                acts[atlas["active_place"][active]] = number(atlas, "active", active, row)
                active += 1
            assert acts == wanted["acts"]
            context += 1
    assert context == len(atlas["context_start"])
    assert active == len(atlas["active_value"])


@pytest.mark.parametrize("name", ["logit_promoted", "logit_suppressed"])
def test_logits_come_back(table, atlas, name):
    at = 0
    for row, text in enumerate(table[name]):
        pairs = json.loads(text)
        assert atlas[f"{name}_n"][row] == len(pairs)
        for token, value in pairs:
            assert atlas["vocabulary"][atlas[f"{name}_token"][at]] == replace_surrogates(token)
            assert number(atlas, name, at, row) == value
            at += 1


def test_neighbours_and_matches_come_back(table, atlas):
    at = 0
    for row, (near, match) in enumerate(zip(table["neighbours"], table["match"], strict=True)):
        for feature, cosine in json.loads(near):
            assert atlas["neighbour_feature"][at] == feature
            assert number(atlas, "neighbour", at, row) == cosine
            at += 1
        model, head, feature, cosine = json.loads(match)
        assert atlas["models"][atlas["match_model"][row]] == model
        assert atlas["match_head"][row] == head
        assert atlas["match_feature"][row] == feature
        assert number(atlas, "match", row, row) == cosine


def test_histograms_come_back(table, atlas):
    at = 0
    for row, cell in enumerate(table["histogram"]):
        histogram = json.loads(cell or '{"zero": 0, "width": 0, "counts": []}')
        n = int(atlas["histogram_n"][row])
        assert atlas["histogram_count"][at : at + n].tolist() == histogram["counts"]
        assert (atlas["histogram_zero"][row], atlas["histogram_width"][row]) == (histogram["zero"], histogram["width"])
        at += n
    assert at == len(atlas["histogram_count"]) > 0


def test_a_table_made_before_bins_and_layer_wide_matches_is_read(table):
    """Its matches name no head: they are of the feature's own."""
    old = table.drop(columns=["histogram", "interval_contexts"])
    matches = [json.loads(cell) for cell in table["match"]]
    own = decode(encode_atlas(old.assign(match=[json.dumps([m, f, r]) for m, _, f, r in matches]), {}))
    assert "histogram_n" not in own
    assert own["n_strongest"].tolist() == own["n_contexts"].tolist()
    assert own["match_head"].tolist() == table["head"].tolist()
    assert own["match_feature"].tolist() == [feature for _, _, feature, _ in matches]


def test_frequent_tokens_have_small_numbers(atlas):
    numbers = atlas["line_token"]
    assert np.median(numbers) < len(atlas["vocabulary"]) / 4


def test_every_hostile_token_survives():
    contexts = json.dumps([{"tokens": list(HOSTILE), "acts": [1.0] * len(HOSTILE), "peak": 0, "value": 1.0}])
    row = {"model": "m", "layer": 0, "head": 0, "feature": 0, "density": 0.1, "max_act": 1.0, "mean_act": 0.5}
    row |= {"top_token": "\x00", "top_contexts": contexts, "logit_promoted": "[]", "logit_suppressed": ""}
    atlas = decode(encode_atlas(pd.DataFrame([row]), {}))
    tokens = [atlas["vocabulary"][token] for token in atlas["line_token"]]
    assert tokens == [replace_surrogates(token) for token in HOSTILE]
    assert atlas["vocabulary"][atlas["top_token"][0]] == "\x00"


def one_feature(**cells) -> pd.DataFrame:
    row = {"model": "m", "layer": 0, "head": -1, "feature": 0, "density": 0.0, "max_act": 0.0, "mean_act": 0.0}
    row |= {"top_token": "", "top_contexts": "[]", "logit_promoted": "[]", "logit_suppressed": "[]"}
    return pd.DataFrame([{**row, **cells}])


def test_a_token_may_be_more_active_than_the_peak_and_is_shown_as_it_is():
    """Position 0, which the largest activation leaves out, may lie in the window."""
    contexts = [
        {"tokens": ["a", "b", "c"], "acts": [9.0, 0.0, 2.0], "peak": 2, "value": 2.0},
        {"tokens": ["a", "b"], "acts": [3.0, 1.0], "peak": 1, "value": 1.0},
    ]
    atlas = decode(encode_atlas(one_feature(max_act=2.0, density=0.1, top_contexts=json.dumps(contexts)), {}))
    assert atlas["context_peak"].tolist() == [2, 1]
    assert [number(atlas, "context", i, 0) for i in range(2)] == [2.0, 1.0]
    assert [number(atlas, "active", i, 0) for i in range(4)] == [9.0, 2.0, 3.0, 1.0]
    assert atlas["has_stronger"] is True
    plain = json.dumps([{**contexts[1], "acts": [1.0, 1.0]}])
    assert decode(encode_atlas(one_feature(max_act=1.0, top_contexts=plain), {}))["has_stronger"] is False


def test_an_activation_that_is_not_measured_is_neither_zero_nor_a_peak():
    contexts = [{"tokens": ["a", "b", "c"], "acts": [None, 0.0, 0.25], "value": 0.25}]
    atlas = decode(encode_atlas(one_feature(max_act=0.25, density=0.1, top_contexts=json.dumps(contexts)), {}))
    assert (atlas["context_peak"].tolist(), atlas["active_place"].tolist()) == ([2], [0, 2])
    values = [number(atlas, "active", i, 0) for i in range(2)]
    assert math.isnan(values[0])
    assert values[1] == 0.25
    assert atlas["has_stronger"] is False


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ([0.1, 0.12, 0.1234], [0.1, 0.12, 0.1234]),
        ([68.9123, 5e-4], [68.9123, 5e-4]),
        ([1.234e-7, 9.9e-8], [1.234e-7, 9.9e-8]),
        ([123456.0, -2.5], [123456.0, -2.5]),
        ([0.0, 0.0], [0.0, 0.0]),
        ([1e-320, math.inf, math.nan], [0.0, math.nan, math.nan]),
        ([math.pi], [3.14159265]),
        ([4e12, 1e5], [4e12, pytest.approx(1e5, abs=5e3)]),
    ],
)
def test_numbers_keep_every_digit_that_json_wrote(values, wanted):
    logits = json.dumps([["t", value] for value in values])
    atlas = decode(encode_atlas(one_feature(logit_promoted=logits), {}))
    found = [number(atlas, "logit_promoted", i, 0) for i in range(len(values))]
    assert [value if value == value else None for value in found] == [
        None if isinstance(value, float) and value != value else value for value in wanted
    ]


def test_a_dead_feature_of_all_heads_has_no_context():
    atlas = decode(encode_atlas(one_feature(), {}))
    assert (atlas["dead"][0], atlas["head"][0], atlas["n_contexts"][0]) == (1, -1, 0)
    assert "match_model" not in atlas
    assert atlas["seeds"] == [""]


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ({"top_contexts": "[{"}, r"top_contexts of row 0 is not JSON"),
        ({"top_contexts": "{}"}, r"top_contexts of row 0 is a dict; expected a JSON list"),
        ({"top_contexts": "[1]"}, r"a context of row 0 has no list of tokens"),
        ({"top_contexts": '[{"tokens": ["a"], "acts": [1, 2]}]'}, r"has 1 tokens and 2 acts"),
        ({"top_contexts": '[{"tokens": [1], "acts": [1]}]'}, r"tokens as strings"),
        ({"top_contexts": '[{"tokens": [], "acts": []}]'}, r"at least one"),
        ({"top_contexts": '[{"tokens": ["a"], "acts": [1], "peak": 1}]'}, r"has its peak at 1; expected 0…0"),
        ({"top_contexts": '[{"tokens": ["a"], "acts": [1], "peak": "a"}]'}, r"has its peak at 'a'"),
        ({"top_contexts": '[{"tokens": ["a"], "acts": ["1"]}]'}, r"acts or a value that are no numbers"),
        ({"top_contexts": '[{"tokens": ["a"], "acts": [1], "value": null}]'}, r"acts or a value that are no numbers"),
        ({"logit_promoted": '["a"]'}, r"logit_promoted of row 0 holds no pairs"),
        ({"neighbours": "[[1, 2, 3]]"}, r"neighbours of row 0 holds no pairs"),
        ({"histogram": "[1]"}, r"histogram of row 0 is '\[1\]'; expected JSON with zero, width and counts"),
        ({"histogram": '{"zero": 1, "width": 0, "counts": []}'}, r"histogram of row 0 is"),
        ({"histogram": '{"zero": 1, "width": 1, "counts": [0.5]}'}, r"histogram of row 0 is"),
        (
            {"interval_contexts": '[{"tokens": ["a"], "acts": [1], "low": 2, "high": 2}]'},
            r"an interval of row 0 is from 2 to 2; expected two numbers, low < high",
        ),
        ({"interval_contexts": '[{"tokens": ["a"], "acts": [1]}]'}, r"an interval of row 0 is from None to None"),
    ],
)
def test_malformed_cells_are_named(cells, message):
    with pytest.raises(ValueError, match=message):
        encode_atlas(one_feature(**cells), {})


@pytest.mark.parametrize(
    ("largest", "dtype"), [(0, "uint8"), (255, "uint8"), (256, "uint16"), (65535, "uint16"), (65536, "uint32")]
)
def test_whole_numbers_take_the_smallest_type(largest, dtype):
    assert fit([0, largest]).dtype == dtype


def effects_of(table):
    """feature_effects of every feature, exact for the first of each head."""
    own = table[["model", "seed", "layer", "head", "feature", "l1"]].reset_index(drop=True)
    is_exact = own["feature"] == 0
    numbers = {"estimate": np.arange(len(own)) * 1e-5, "delta_loss": np.where(is_exact, 2e-4, np.nan)}
    return own.assign(**numbers, ci_low=np.where(is_exact, -1e-4, np.nan), ci_high=np.where(is_exact, 3e-4, np.nan))


def test_effects_come_to_their_features_and_to_no_other_sae_s(made_study):
    table = read_table(made_study, "feature_atlas").assign(seed=0, l1=2.0)
    effects = effects_of(table)
    found = with_effects(table, effects.sample(frac=1, random_state=0))
    assert found["feature"].tolist() == table["feature"].tolist()
    np.testing.assert_array_equal(found["effect_estimate"], effects["estimate"])
    np.testing.assert_array_equal(found["effect"], effects["delta_loss"])
    np.testing.assert_array_equal(found["effect_high"], effects["ci_high"])
    assert with_effects(table, effects.assign(l1=0.5))["effect_estimate"].isna().all()
    assert with_effects(table, effects.drop(columns="l1"))["effect_estimate"].notna().all()
    some = with_effects(table, effects.iloc[3:])
    assert some["effect_estimate"].isna().sum() == 3
    packed = decode(encode_atlas(some, {}))
    for name in ("effect", "effect_low", "effect_high", "effect_estimate"):
        np.testing.assert_array_equal(packed[name], some[name])
    assert "effect" not in decode(encode_atlas(table, {}))


def test_bad_effects_are_refused(made_study):
    table = read_table(made_study, "feature_atlas").assign(seed=0, l1=2.0)
    effects = effects_of(table)
    for bad, message in (
        (effects.drop(columns="ci_low"), "feature_effects: the columns ci_low are missing"),
        (pd.concat([effects, effects.iloc[:1]]), "stands in several rows; expected one for each feature"),
        (effects.assign(estimate="x"), "feature_effects: estimate holds text; expected numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            with_effects(table, bad)
