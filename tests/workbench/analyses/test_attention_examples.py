"""Example sentences and their maps against the model's own, and what kind of head one is against a loop."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
from models_for_tests import small_model, tokens_for

from workbench.analyses.attention.statistics import THRESHOLDS, head_kinds, local_mass, measure_attention
from workbench.analyses.attention_patterns.examples import (
    Example,
    attention_examples,
    find_examples,
    token_texts,
)
from workbench.data.tokenizer import load_tokenizer
from workbench.models.tokenizer_files import wrap_tokenizer

TEXT = (
    " came home. The old man went down to the sea and looked at the ships. He slept! No. It was the third morning of a "
    "long and silent winter, and nobody had seen the doctor since the storm? The “café” was naïve and closed early on. "
)


@pytest.fixture
def model():
    """A small model that reads with the embedded tokenizer, and a window of text."""
    own = small_model("janus-v3", n_layers=2, d_vocab=4096, n_ctx=96)
    own.tokenizer = wrap_tokenizer(load_tokenizer("embedded"))
    return own


def window(model, text: str = TEXT, n: int = 96) -> torch.Tensor:
    ids = model.tokenizer.encode(text, add_special_tokens=False)
    return torch.tensor([(ids * 9)[:n]])


def test_a_sentence_is_taken_whole_and_one_is_said_twice(model):
    found = find_examples(model, window(model), n_sentences=1)
    assert [own.kind for own in found] == ["sentence", "said twice"]
    lead = found[0].n_lead
    assert model.tokenizer.decode(found[0].ids[lead:]) == " The old man went down to the sea and looked at the ships."
    assert found[1].ids == found[0].ids[:lead] + 2 * found[0].ids[lead:]


def test_examples_are_the_same_for_all_models_of_a_tokenizer(model):
    other = small_model("kotodama", n_layers=3, d_vocab=4096, n_ctx=96)
    other.tokenizer = model.tokenizer
    tokens = torch.cat([window(model), window(model, " A king. The queen walked to the river and never came back.")])
    assert find_examples(model, tokens) == find_examples(other, tokens)


def test_a_text_without_sentences_gives_beginnings_of_windows():
    model = small_model("janus-v3")
    tokens = tokens_for(model, 5)
    found = find_examples(model, tokens, n_sentences=2, max_tokens=9)
    assert [own.kind for own in found[:2]] == ["window", "window"]
    assert [list(own.ids[own.n_lead :]) for own in found[:2]] == tokens[:2, :9].tolist()
    assert find_examples(model, tokens, n_sentences=0) == []


def test_sentences_that_are_given_are_cut(model):
    (found,) = find_examples(model, window(model), sentence=["The king and the queen went home"], max_tokens=3)
    assert found.kind == "given"
    assert model.tokenizer.decode(found.ids[found.n_lead :]) == "The king and"
    with pytest.raises(ValueError, match="no tokenizer; expected a model with one"):
        find_examples(small_model("janus-v3"), tokens_for(small_model("janus-v3")), sentence=["a"])


def test_texts_of_tokens_join_to_the_whole(model):
    text = "The “café” saw 🦊 and naïve </script> \n\n words."
    ids = model.tokenizer.encode(text, add_special_tokens=False)
    texts = token_texts(model, ids)
    assert len(texts) == len(ids)
    assert "".join(texts) == text
    assert "\ufffd" not in "".join(texts)
    assert token_texts(small_model("janus-v3"), [3, 5]) == ["[3]", "[5]"]


@pytest.mark.parametrize("kind", ["janus-small", "kotodama", "attn-res", "recurrent"])
def test_weights_are_those_of_the_models_maps(kind):
    model = small_model(kind)
    ids = tokens_for(model, 1)[0, :7].tolist()
    sentences, rows = attention_examples(
        model, [Example(tuple(ids), "given"), Example((1, 2), "given")], seed=3, name="m"
    )
    assert sentences["sentence"].tolist() == [0, 1]
    assert json.loads(sentences["ids"][0]) == ids
    assert rows[["layer", "head", "sentence"]].drop_duplicates().shape[0] == len(rows)
    assert len(rows) == 2 * model.cfg.n_layers * model.cfg.n_heads
    assert set(zip(rows["model"], rows["seed"], strict=True)) == {("m", 3)}
    for row in rows[rows["sentence"] == 0].itertuples():
        name = f"blocks.{row.layer}.attn.hook_pattern"
        own = model.run_with_cache(torch.tensor([ids]), names_filter=name)[1][name][0, row.head]
        weights = json.loads(row.weights)
        assert [len(keys) for keys in weights] == list(range(1, 8))
        for q, keys in enumerate(weights):
            assert keys == pytest.approx(own[q, : q + 1].tolist(), abs=5.1e-5)


def test_local_mass_by_a_loop():
    rng = np.random.default_rng(0)
    maps = np.tril(rng.random((2, 3, 9, 9)))
    maps /= maps.sum(-1, keepdims=True)
    want = [np.mean([maps[s, h, q, max(0, q - 3) : q + 1].sum() for s in range(2) for q in range(9)]) for h in range(3)]
    np.testing.assert_allclose(local_mass(torch.from_numpy(maps)).numpy() / 2, want, rtol=1e-12)
    two = np.tril(np.ones((1, 1, 2, 2)))
    assert local_mass(torch.from_numpy(two / two.sum(-1, keepdims=True))).item() == pytest.approx(1)


def test_a_head_is_of_the_first_kind_that_it_reaches():
    measured = {
        "induction": [0.9, 0.0, 0.1, 0.0], "previous_token": [0.9, 0.31, 0.1, 0.0], "bos_mass": [0.0, 0.0, 0.5, 0.1],
        "local_mass": [0.0, 0.9, 0.2, 0.2], "entropy_share": [0.2, 0.2, 0.2, 0.2],
    }  # fmt: skip
    place = {"model": "m", "seed": 0, "layer": [0, 0, 1, 1], "head": [0, 1, 0, 1]}
    table = head_kinds(pd.DataFrame(place | measured | {"n_ctx": 6, "n_half": 3, "bos_uniform": 0.29}))
    kinds = table[table["is_kind"] == 1].set_index(["layer", "head"])["measure"].to_dict()
    assert kinds == {(0, 0): "induction", (0, 1): "previous_token", (1, 0): "bos_mass"}
    for measure, values in measured.items():
        own = table[table["measure"] == measure]
        assert own["value"].tolist() == values
        assert set(own["threshold"]) == {THRESHOLDS[measure]}
        spread = np.std(values, ddof=1)
        want = (np.array(values) - np.mean(values)) / spread if spread else np.full(4, np.nan)
        np.testing.assert_allclose(own["z"], want)
    uniform = table.groupby("measure")["uniform"].first()
    assert uniform["induction"] == pytest.approx(np.mean([1 / 4, 1 / 5, 1 / 6]))
    assert uniform["previous_token"] == pytest.approx(np.mean([1 / 2, 1 / 3, 1 / 4, 1 / 5, 1 / 6]))
    assert uniform["local_mass"] == pytest.approx(np.mean([1, 1, 1, 1, 4 / 5, 4 / 6]))
    assert (uniform["bos_mass"], uniform["entropy_share"]) == (0.29, 1)


def test_even_attention_has_what_uniform_says():
    model = small_model("janus-v3")
    for block in model.blocks:
        block.attn.hook_pattern.add_hook(lambda pattern, hook: _even(pattern))
    found = measure_attention(model, tokens_for(model, 4), n_repeated=2)["head_kinds"]
    np.testing.assert_allclose(found["value"], found["uniform"], rtol=1e-5)
    assert found["z"].isna().all() or found["z"].abs().max() < 3
    kinds = found[found["is_kind"] == 1]
    assert len(kinds) == model.cfg.n_layers * model.cfg.n_heads


def _even(pattern: torch.Tensor) -> torch.Tensor:
    lower = torch.tril(torch.ones_like(pattern))
    return lower / lower.sum(-1, keepdim=True)
