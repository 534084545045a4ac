"""Labelled text: rules by hand, labels by characters, documents on one side of the split, a user's lines."""

from __future__ import annotations

import json

import numpy as np
import pytest

from workbench.data.monitoring import (
    PHRASE,
    MarkedText,
    find_numbers,
    find_phrase,
    find_quotations,
    read_spans,
    read_target,
    split_documents_of,
    token_labels,
)


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        ("no marks", []),
        ("a “b” c “d e” f", ["b", "d e"]),
        ('a "b" c "d', ["b", "d"]),
        ("“open\n\nnot any more “x”", ["open", "x"]),
        ("“” empty", []),
        ("it's 'single' marks", []),
        ('“a "b” c', ['a "b']),
    ],
)
def test_what_is_inside_quotation_marks(text, inside):
    assert [text[a:b] for a, b in find_quotations(text)] == inside


def test_numbers_and_what_is_behind_a_phrase():
    text = "In 1812, 3,000.50 men; 7."
    assert [text[a:b] for a, b in find_numbers(text)] == ["1812", "3,000.50", "7"]
    assert find_phrase("men")(text) == [(text.index("men") + 3, len(text))]
    assert find_phrase("7.")(text) == []
    assert find_phrase("nowhere")(text) == []


@pytest.mark.parametrize("seed", range(5))
def test_labels_are_those_of_a_loop_over_characters(seed):
    rng = np.random.default_rng(seed)
    ends = np.sort(rng.choice(np.arange(1, 60), 12, replace=False)).tolist()
    offsets = list(zip([0, *ends[:-1]], ends, strict=True))
    edges = np.sort(rng.choice(60, 6, replace=False)).tolist()
    spans = [(edges[i], edges[i + 1]) for i in (0, 2, 4)]
    positive = {at for start, end in spans for at in range(start, end)}
    expected = [bool(positive & set(range(*own))) for own in offsets]
    assert token_labels(spans, offsets).tolist() == expected


@pytest.mark.parametrize("target", ["quotation", "number", "topic:grimm", "phrase"])
def test_targets_of_the_embedded_text(target):
    own = read_target(target, 300, 400, np.random.default_rng(0))
    assert all(len(text.text) >= 400 for text in own.texts)
    share = np.mean([bool(text.spans) for text in own.texts])
    assert 0.02 < share < 0.6
    if own.find is not None:
        assert all(tuple(own.find(text.text)) == text.spans for text in own.texts)
    if target == "phrase":
        marked = [text for text in own.texts if text.spans]
        assert all(text.text[: text.spans[0][0]].endswith(PHRASE) for text in marked)
        assert {text.document for text in marked}.isdisjoint({t.document for t in own.texts if not t.spans})
    part = split_documents_of(own.texts, np.random.default_rng(1))
    for number in range(3):
        inside = {t.document for t, at in zip(own.texts, part, strict=True) if at == number}
        outside = {t.document for t, at in zip(own.texts, part, strict=True) if at != number}
        assert inside
        assert inside.isdisjoint(outside)
    again = split_documents_of(own.texts, np.random.default_rng(1))
    assert np.array_equal(part, again)


def test_shares_of_the_split_hold_for_both_kinds_of_documents():
    texts = [MarkedText(str(i), "x", ((0, 1),) if i < 40 else ()) for i in range(100)]
    part = split_documents_of(texts, np.random.default_rng(0))
    assert np.bincount(part[:40]).tolist() == [24, 8, 8]
    assert np.bincount(part[40:]).tolist() == [36, 12, 12]


def test_a_users_lines(tmp_path):
    file = tmp_path / "mine.jsonl"
    rows = [{"text": "ab cd", "spans": [[3, 5], [0, 1]]}, {"text": "x", "spans": [], "document": "d"}]
    file.write_text("\n".join(map(json.dumps, rows)) + "\n\n", encoding="utf-8")
    assert read_spans(file) == [MarkedText("line 1", "ab cd", ((0, 1), (3, 5))), MarkedText("d", "x", ())]
    target = read_target(str(file), 1, 1, np.random.default_rng(0))
    assert (target.name, target.find, target.is_whole) == ("mine.jsonl", None, True)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1: not JSON"),
        ("[" * 100_000, "line 1: not JSON"),
        ("[]", "expected an object with a text"),
        ('{"text": " ", "spans": []}', "expected an object with a text that is not blank"),
        ('{"text": "ab"}', "got spans None; expected"),
        ('{"text": "ab", "spans": [[0, 3]]}', "0 ≤ from < to ≤ 2"),
        ('{"text": "ab", "spans": [[1, 1]]}', "0 ≤ from < to ≤ 2"),
        ('{"text": "ab", "spans": [[true, 2]]}', "0 ≤ from < to ≤ 2"),
        ('{"text": "abc", "spans": [[0, 2], [1, 3]]}', "expected none overlapping"),
        ('{"text": "ab", "spans": [], "label": 1}', "got ['label']"),
        ("", "no line; expected"),
    ],
)
def test_bad_lines_are_named(tmp_path, line, message):
    file = tmp_path / "bad.jsonl"
    file.write_text(line, encoding="utf-8")
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        read_spans(file)
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("target", ["", "nowhere.jsonl", "quotation:x", "topic:cooking", "topic:"])
def test_no_such_target(target):
    with pytest.raises(ValueError, match=r"target: got .*expected"):
        read_target(target, 10, 100, np.random.default_rng(0))


def test_a_phrase_that_the_text_has_is_refused():
    with pytest.raises(ValueError, match="which the text has"):
        read_target("phrase:of the", 10, 100, np.random.default_rng(0))
