"""What is counted without a tagger, against texts whose counts are known by reading."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.analyses.text_quality.counts import (
    count_dialogue,
    count_discourse,
    count_distinct,
    count_sentences,
    sentences,
    words,
)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        ("Mr. Hill met Dr. J. Black. He left.", ["Mr. Hill met Dr. J. Black.", "He left."]),
        ("“Where?” said she. “Here.” And so on.", ["“Where?” said she.", "“Here.”", "And so on."]),
        ('"Go!" "No," he said.', ['"Go!"', '"No," he said.']),
        ("It is I. You too.", ["It is I.", "You too."]),
        ("He paid 3.5 dollars... Nobody saw.", ["He paid 3.5 dollars...", "Nobody saw."]),
        ("Well… so it went on.", ["Well… so it went on."]),
        ("A HEADING\n\nA line\nthat runs on. An end that is cut", ["A line\nthat runs on."]),
        ("(He came.) She went.", ["(He came.)", "She went."]),
        ("  \n\n ...", ["..."]),
        ("", []),
    ],
)
def test_sentences(text, wanted):
    assert [text[start:stop] for start, stop in sentences(text)] == wanted


@given(st.text(alphabet="ab A.?!…\"'”’() \n", max_size=60))
def test_sentences_follow_each_other_inside_the_text(text):
    end = 0
    for start, stop in sentences(text):
        assert end <= start < stop <= len(text)
        assert not text[start].isspace()
        assert any(mark in text[start:stop] for mark in ".?!…")
        end = stop


def test_sentences_count_where_they_end():
    assert count_sentences("He came. She", " saw. Did he go? Yes") == (1, 2), "the cut one is not counted"
    assert count_sentences("Who came?", " He did.") == (0, 1), "the prompt's own question is not the continuation's"
    assert count_sentences("Who came?", "") == (0, 0)


def test_words_are_letters_with_inner_marks():
    assert words("Don’t touch the well-known 3rd “thing’”, O'Hara_x!") == [
        "don't", "touch", "the", "well-known", "rd", "thing", "o'hara", "x",
    ]  # fmt: skip


def test_discourse_markers_are_whole_phrases_counted_once():
    assert count_discourse("However, it rained; THEREFORE, in other\nwords, we stayed, though wet.") == 4
    assert count_discourse("Even though it rained") == 1, "the longest phrase, and not `though` within it"
    assert count_discourse("thorough howevers still-born Yeti") == 0


def test_dialogue_markers_are_openings_verbs_and_speakers():
    assert count_dialogue("", '"Yes," said he. "No," she asked. “Who?”') == 5
    assert count_dialogue('"I have', ' it," cried he. "Go') == 2, "the prompt's quotation is closed, then one is opened"
    assert count_dialogue("", 'He said "come\n\n"Go," he went') == 3, "an empty line ends what was not closed"
    assert count_dialogue("", "KING: Come.\nMr. Hill: No.\nIt was ten:30 at\n one: two") == 2


def test_distinct_n_grams():
    texts = [["a", "b", "a", "b"], ["a", "b"]]
    assert count_distinct(texts, 1) == (2, 6)
    assert count_distinct(texts, 2) == (2, 4), "none across two texts"
    assert count_distinct(texts, 3) == (2, 2)
    assert count_distinct([["a"], []], 2) == (0, 0)
