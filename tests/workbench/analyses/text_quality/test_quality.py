"""The table of text quality: ratios and intervals against plain loops; with and without a tagger."""

from __future__ import annotations

import json
import math
import sys

import numpy as np
import pandas as pd
import pytest
from models_for_tests import small_model, worded_model

from workbench.analyses.text_quality import continuations
from workbench.analyses.text_quality.continuations import Continuation, sample_continuations
from workbench.analyses.text_quality.quality import (
    COUNTED,
    TAGGED,
    Ratio,
    TextQuality,
    TextQualityWarning,
    battery_ratios,
    count,
    ratio_table,
    text_quality,
)
from workbench.analyses.text_quality.tagging import TaggerMissing, load_tagger
from workbench.data.batteries import Battery, PairSet, PromptSet, RecallSet, battery_items

PROMPTS = (PromptSet(kind="a", prompts=("The king", "In the garden there was")), PromptSet(kind="b", prompts=("He",)))
HATS = RecallSet(
    kind="hats",
    statement="{name} has a {value} hat.",
    question="{name} has a {value}",
    names=("Anna", "John", "Mary", "Henry"),
    values=("red", "white"),
)
PLURALS = PairSet(kind="plurals", scenarios=(("The dog", "is", "The dogs", "are"), ("A cat", "has", "Cats", "have")))
BATTERY = Battery(name="form", sets=(PLURALS,))
SMALL = {"n_samples": 2, "max_new_tokens": 33, "recall": (HATS,), "batteries": (BATTERY,)}
COLUMNS = [
    "model", "seed", "measure", "value", "ci_low", "ci_high", "n", "unit", "per", "n_per", "chance", "n_continuations",
    "tagger",
]  # fmt: skip


@pytest.fixture(scope="module")
def model():
    return worded_model("janus-v3", n_ctx=48)


def test_what_stands_in_the_table(model):
    told = []
    found = text_quality(model, PROMPTS, tagger="none", seed=3, name="m", on_progress=told.append, **SMALL)
    table = found.table.set_index("measure")
    assert list(found.table.columns) == COLUMNS
    assert list(table.index) == [
        "interrogative_share", "discourse_markers", "dialogue_markers", "distinct_1", "distinct_2", "distinct_3",
        "loop_rate", "loop_increment", "loop_enumeration", "n_words",
        "recall", "recall_margin", "recall_hats", "recall_margin_hats", "form", "form_margin",
        "form_plurals", "form_margin_plurals",
    ]  # fmt: skip
    assert set(found.table["model"]) == {"m"}
    assert set(found.table["seed"]) == {3}
    assert table.loc["n_words", ["n", "unit", "n_per", "n_continuations"]].tolist() == [3, "prompt", 6, 6]
    assert table.loc["recall", ["n", "unit", "n_per", "chance"]].tolist() == [2, "scenario", 16, 0.5]
    assert table.loc["form_plurals", ["n", "unit", "n_per", "chance"]].tolist() == [2, "scenario", 4, 0.5]
    assert told == sorted(told)
    assert told[-1] == pytest.approx(1.0)


def test_the_continuations_as_lines(model):
    found = text_quality(model, PROMPTS, tagger="none", seed=3, **SMALL)
    lines = [json.loads(line) for line in found.to_jsonl().splitlines()]
    assert [(line["kind"], line["prompt"], line["sample"]) for line in lines] == [
        (one.kind, prompt, i) for one in PROMPTS for prompt in one.prompts for i in range(2)
    ]
    for line in lines:
        assert line["seed"] == 3
        assert 0 < line["n_tokens"] <= 33
        assert line["is_ended"] == (line["n_tokens"] < 33)


def test_a_continuation_depends_on_its_own_prompt_sample_and_seed_alone(model):
    double = small_model("janus-v3", d_vocab=4096, n_ctx=48).double()  # float32 sums depend on what is batched
    double.tokenizer = model.tokenizer
    settings = {"max_new_tokens": 12, "seed": 5}
    many = sample_continuations(double, PROMPTS, n_samples=3, **settings)
    alone = sample_continuations(double, PROMPTS[1:], n_samples=2, **settings)
    assert alone == [one for one in many if one.kind == "b" and one.sample < 2]
    assert len({one.tokens for one in many}) == len(many)
    other = sample_continuations(double, PROMPTS, n_samples=3, max_new_tokens=12, seed=6)
    assert all(a.tokens != b.tokens for a, b in zip(many, other, strict=True))


def test_no_two_continuations_are_drawn_with_the_same_numbers(model, monkeypatch):
    drawn = []

    def record(model, prompts, max_new_tokens, uniforms, **_):
        drawn.extend(map(tuple, uniforms.tolist()))
        return [[1]] * len(prompts)

    monkeypatch.setattr(continuations, "continue_prompts", record)
    for seed in (0, 1):
        sample_continuations(model, PROMPTS, n_samples=3, max_new_tokens=5, seed=seed)
    assert len(set(drawn)) == len(drawn) == 18


def made_up(prompt, *texts):
    return [Continuation("k", prompt, i, text, tuple(range(40)), False) for i, text in enumerate(texts)]


HOSTILE = [
    "</script><script>alert(1)</script>",
    "\u202eright to left\u202c", "nul\0 and bell\a", "line\u2028end\x85and\u2029more\r\n",
    "🦊👩‍👩‍👧", "\ufffd\ufffd", '"""“““', "??!!...", "", " ", "\n\n\n", "A" * 5000, "and so " * 400, "Ünïcödé Straße",
]  # fmt: skip


def test_hostile_text_is_counted_and_written():
    found = made_up("Once", *HOSTILE)
    tag = pytest.importorskip("spacy") and load_tagger()[1]
    table = ratio_table(list(count(found, tag)), 0)
    assert np.isfinite(table["value"]).all()
    written = TextQuality(table.assign(model="m"), found, 0).to_jsonl()
    assert [json.loads(line)["text"] for line in written.splitlines()] == HOSTILE


def test_ratios_are_sums_over_all_continuations():
    found = made_up("Once", " he came. Why? He said so.", " she went. However, it rained") + made_up(
        "Yes", " I do! So it is."
    )
    rows = {one.measure: one for one in count(found, None)}
    assert rows["interrogative_share"].numerator.tolist() == [1, 0]
    assert rows["interrogative_share"].denominator.tolist() == [4, 2]
    assert rows["n_words"].numerator.tolist() == [11, 5]
    table = ratio_table(list(rows.values()), 0).set_index("measure")["value"]
    assert table["interrogative_share"] == pytest.approx(1 / 6)
    assert table["discourse_markers"] == pytest.approx(100 * 1 / 16)
    assert table["dialogue_markers"] == pytest.approx(100 * 1 / 16)
    assert table["distinct_1"] == pytest.approx((10 + 5) / 16), "`he` twice in the samples of one prompt"
    assert table["loop_rate"] == 0


def test_what_is_undefined_is_nan():
    none = Ratio("x", np.zeros(4), np.zeros(4), "y")
    single = Ratio("x", np.ones(1), np.ones(1), "y")
    table = ratio_table([none, single], 0)
    assert table["value"].isna().tolist() == [True, False]
    assert table["ci_low"].isna().all()
    assert table["ci_high"].isna().all()


def test_a_model_with_a_favourite_has_chance_and_one_that_reads_has_all():
    items = battery_items(Battery(name="recall", sets=(HATS,)))
    favourite = np.array([2.0 if item.right == "red" else -2.0 for item in items])
    reads = np.ones(len(items))
    ties = np.zeros(len(items))
    for margins, share, mean in ((favourite, 0.5, 0.0), (reads, 1.0, 1.0), (ties, 0.5, 0.0)):
        table = ratio_table(battery_ratios(items, margins), 0).set_index("measure")
        assert table.loc["recall", "value"] == share
        assert table.loc["recall_margin", "value"] == mean
        assert table.loc["recall_hats", "chance"] == 0.5


def test_without_a_tagger_a_line_says_what_is_left_out(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "spacy", None)
    settings = SMALL | {"recall": (), "batteries": (), "max_new_tokens": 4}
    with pytest.warns(TextQualityWarning, match=r"entity_fabrication, .*, clause_depth left out: tagger: no module"):
        found = text_quality(model, PROMPTS, **settings)
    assert not set(TAGGED) & set(found.table["measure"])
    assert set(found.table["tagger"]) == {"none"}
    with pytest.raises(TaggerMissing, match="expected spaCy and an English pipeline: pip install"):
        text_quality(model, PROMPTS, tagger="en_core_web_sm", **settings)


def test_bad_input_is_refused(model):
    for arguments, message in (
        ({"n_samples": 0}, "n_samples: got 0"),
        ({"max_new_tokens": 0}, "max_new_tokens: got 0"),
        ({"max_new_tokens": 47}, "expected 1 to 1, 47 new ones short of the model's n_ctx = 48"),
        ({"temperature": -1.0}, "temperature: got -1.0"),
        ({"prompts": ()}, "prompts: got none"),
        ({"batteries": "grammar.toml"}, "batteries: got 'grammar.toml'; expected a list of what read_battery returns"),
        ({"batteries": (BATTERY, BATTERY)}, "batteries: 'form' stands twice"),
        (
            {"batteries": (Battery(name="loop", sets=(PLURALS.model_copy(update={"kind": "rate"}),)),)},
            "loop_rate would",
        ),
        ({"tagger": "no_such_pipeline"}, "no pipeline 'no_such_pipeline'"),
    ):
        with pytest.raises(ValueError, match=message):
            text_quality(model, **{"prompts": PROMPTS, "tagger": "none"} | SMALL | arguments)
    bare = small_model("janus-v3")
    with pytest.raises(ValueError, match="this model has no tokenizer"):
        text_quality(bare, PROMPTS, tagger="none")


def test_a_pipeline_that_does_not_parse_is_refused(tmp_path):
    spacy = pytest.importorskip("spacy")
    for lang, message in (("en", "has no tagger and no parser"), ("de", "has no tagger")):
        spacy.blank(lang).to_disk(tmp_path / lang)
        with pytest.raises(ValueError, match=message):
            load_tagger(str(tmp_path / lang))


def test_nan_and_text_survive_the_file(model, tmp_path):
    from reports.tables import read_table, write_table

    table = text_quality(model, PROMPTS, tagger="none", **SMALL).table
    write_table(table, tmp_path, "text_quality")
    pd.testing.assert_frame_equal(read_table(tmp_path, "text_quality"), table, check_dtype=False)
    assert math.isnan(table.set_index("measure").loc["n_words", "chance"])


def test_recall_does_not_depend_on_the_other_batteries(model):
    settings = {"n_samples": 1, "max_new_tokens": 2, "tagger": "none", "recall": (HATS,)}
    alone = text_quality(model, PROMPTS, batteries=(), **settings).table
    beside = text_quality(model, PROMPTS, batteries=(BATTERY,), **settings).table
    pd.testing.assert_frame_equal(alone, beside[: len(alone)], check_exact=True)


def test_every_counted_measure_is_known_by_name(model):
    found = [one.measure for one in count(made_up("Once", " he came."), None)]
    assert found == list(COUNTED)
