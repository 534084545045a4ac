"""The tagger against fifty sentences tagged by hand, and the counts against sentences whose tags are given."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from workbench.analyses.text_quality.quality import count, ratio_table
from workbench.analyses.text_quality.tagging import TaggedSentence, TaggedWord, count_words, load_tagger

GOLDEN = Path(__file__).parent / "golden" / "tagged.txt"
MARK = re.compile(r"([A-Za-z][A-Za-z'’]*)~([NPRV])")
KIND = {"N": "noun", "P": "name", "R": "pronoun"}
pytest.importorskip("spacy", reason="needs the extra `text`")


@pytest.fixture(scope="module")
def tag():
    return load_tagger()[1]


def read_golden():
    """(source, clause depth, text, character -> mark) of every sentence."""
    for line in GOLDEN.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            continue
        source, depth, marked = line.split("\t")
        text, marks, at = "", {}, 0
        for match in MARK.finditer(marked):
            text += marked[at : match.start()]
            marks[len(text)] = match[2]
            text, at = text + match[1], match.end()
        yield source, int(depth), text + marked[at:], marks


@pytest.mark.parametrize("is_generated", [False, True])
def test_the_tagger_agrees_with_a_reader(tag, is_generated, record_property):
    golden = [row for row in read_golden() if (row[0] == "nano") == is_generated]
    assert len(golden) == 25
    seen: Counter[tuple[str, str]] = Counter()
    depths = []
    for (_, depth, text, marks), found in zip(golden, tag([row[2] for row in golden]), strict=True):
        own = {word.start: word for sentence in found for word in sentence.words}
        assert set(marks) <= set(own), text
        seen.update((KIND.get(marks.get(start, ""), "other"), word.kind) for start, word in own.items())
        depths.append((depth, max(sentence.clause_depth for sentence in found)))
    agreement = sum(n for (a, b), n in seen.items() if a == b) / seen.total()
    difference = np.array([b - a for a, b in depths])
    where = "generated" if is_generated else "real"
    record_property(f"agreement on {seen.total()} words, {where}", round(agreement, 4))
    for kind in KIND.values():
        both = seen[kind, kind]
        recall = both / sum(n for (a, _), n in seen.items() if a == kind)
        precision = both / sum(n for (_, b), n in seen.items() if b == kind)
        record_property(f"{kind}, {where}: recall, precision", f"{recall:.3f}, {precision:.3f}")
        assert min(recall, precision) >= 0.85, kind
    record_property(
        f"clause depth, {where}: exact share, mean difference", f"{np.mean(difference == 0)}, {difference.mean()}"
    )
    assert agreement >= 0.96
    assert abs(difference).max() <= 1
    assert abs(difference.mean()) <= 0.2


def depth_of(tag, text):
    (sentences,) = tag([text])
    return [sentence.clause_depth for sentence in sentences]


def test_clause_depth(tag):
    assert depth_of(tag, "The dog sleeps in the old house.") == [1]
    assert depth_of(tag, "The dog sleeps and the cat eats.") == [1], "clauses side by side"
    assert depth_of(tag, "He knew that she had left.") == [2]
    assert depth_of(tag, "He knew that she would leave if it rained.") == [3]
    assert depth_of(tag, "I met the man who said that he knew where she lived.") == [4]


def word(text, start, place, tag):
    return TaggedWord(text, start, place, tag)


def test_counts_are_of_what_begins_behind_the_prompt():
    # "Emma saw | Mr. Hill and Emma. Nobody in Bath saw him"
    first = (
        word("Emma", 0, 0, "NNP"), word("saw", 5, 1, "VBD"), word("Mr.", 9, 2, "NNP"), word("Hill", 13, 3, "NNP"),
        word("and", 18, 4, "CC"), word("Emma", 22, 5, "NNP"),
    )  # fmt: skip
    second = (
        word("Nobody", 28, 7, "NN"), word("in", 35, 8, "IN"), word("Bath", 38, 9, "NNP"), word("saw", 43, 10, "VBD"),
        word("him", 47, 11, "PRP"),
    )  # fmt: skip
    tagged = (TaggedSentence(first, 27, True, 3), TaggedSentence(second, 50, False, 2))
    found = count_words("Emma saw", tagged)
    assert found.n_tagged == 9
    assert found.n_nouns == 4, "Mr., Hill, Emma, Bath; an indefinite pronoun is none"
    assert found.n_proper == 4
    assert found.n_new_names == 2, "Mr. Hill and Bath; Emma stands in the prompt"
    assert found.n_pronouns == 1
    assert (found.n_sentences, found.depth_sum) == (1, 3), "the sentence that is cut off does not count"


def test_measures_of_a_text_that_can_be_counted_by_hand(tag):
    from workbench.analyses.text_quality.continuations import Continuation

    text = " to London with her brother. They knew that Henry Tilney was ill."
    one = Continuation("k", "Emma went", 0, text, tuple(range(40)), False)
    table = ratio_table(list(count([one], tag)), 0).set_index("measure")["value"]
    assert table["n_words"] == 12
    assert table["entity_fabrication"] == pytest.approx(100 * 2 / 12), "London, Henry Tilney"
    assert table["distinct_proper_nouns"] == 3
    assert table["noun_ratio"] == pytest.approx(4 / 12), "London, brother, Henry, Tilney"
    assert table["pronoun_noun_ratio"] == pytest.approx(2 / 4), "her, They"
    assert table["clause_depth"] == pytest.approx(1.5)
