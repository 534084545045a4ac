"""Recall margins against plain whole forwards, item by item."""

from __future__ import annotations

import pytest
import torch
from models_for_tests import ARCHITECTURES, small_model

from workbench.data.batteries import RecallItem, RecallSet, recall_items
from workbench.data.tokenizer import load_tokenizer
from workbench.experiments.text_quality.recall import encode_item, recall_margins
from workbench.models.load import wrap_tokenizer

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
    return wrap_tokenizer(load_tokenizer("embedded"))


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
    items = recall_items([HATS]) + recall_items([HATS.model_copy(update={"values": ("ultramarine", "heliotrope")})])
    encoded = [encode_item(tokenizer, item) for item in items]
    assert {len(answer) for item in encoded for answer in item.answers} > {1}, "some answers are several tokens"
    wanted = [
        log_probability(model, e.prompt, e.answers[0]) - log_probability(model, e.prompt, e.answers[1]) for e in encoded
    ]
    torch.testing.assert_close(
        torch.from_numpy(recall_margins(model, items)), torch.tensor(wanted, dtype=torch.float64)
    )


def test_of_single_tokens_it_is_the_difference_of_logits(tokenizer):
    model = small_model("janus-v3", d_vocab=4096, n_ctx=48).double()
    model.tokenizer = tokenizer
    items = recall_items([HATS.model_copy(update={"values": ("house", "time")})])
    encoded = [encode_item(tokenizer, item) for item in items]
    assert {len(answer) for item in encoded for answer in item.answers} == {1}
    logits = [model(torch.tensor([e.prompt]))[0, -1].detach() for e in encoded]
    wanted = [float(row[e.answers[0][0]] - row[e.answers[1][0]]) for row, e in zip(logits, encoded, strict=True)]
    torch.testing.assert_close(
        torch.from_numpy(recall_margins(model, items)), torch.tensor(wanted, dtype=torch.float64)
    )


def test_the_text_begins_a_document_and_the_space_is_the_answers(tokenizer):
    item = encode_item(tokenizer, RecallItem("x", 0, "The hat is", "red", "white"))
    assert item.prompt[0] == tokenizer.eos_token_id
    assert tokenizer.decode(item.prompt[1:]) == "The hat is"
    assert [tokenizer.decode(answer) for answer in item.answers] == [" red", " white"]


def test_bad_items_are_refused(tokenizer):
    model = small_model("janus-v3", d_vocab=4096)
    with pytest.raises(ValueError, match="no tokenizer"):
        recall_margins(model, recall_items([HATS]))
    model.tokenizer = tokenizer
    long = HATS.model_copy(update={"statement": "{name} has a {value} hat" + " and so on" * 9})
    with pytest.raises(ValueError, match="tokens; want at most the model's n_ctx = 24"):
        recall_margins(model, recall_items([long]))
    with pytest.raises(ValueError, match="have the same tokens"):
        encode_item(tokenizer, RecallItem("x", 0, "The hat is", "red", "red"))
