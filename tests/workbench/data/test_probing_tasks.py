"""Labelled examples: what they are of, and that no document or word is on both sides of the split."""

from __future__ import annotations

import numpy as np

from workbench.data.corpus import Document
from workbench.data.probing_tasks import passage_family, word_families


def test_examples_are_split_by_document_and_word() -> None:
    passages = passage_family(30, 400)
    assert passages.tasks == ("austen", "grimm", "sotu")
    for family in (passages, *word_families()):
        is_train = family.is_train()
        groups = [{e.group for e, t in zip(family.examples, is_train, strict=True) if t == part} for part in (0, 1)]
        assert groups[0]
        assert not groups[0] & groups[1]
        assert 0.5 < is_train.mean() < 0.7
        labels = np.array([example.label for example in family.examples])
        for task in family.tasks:
            for part in (is_train, ~is_train):
                assert 0 < (labels == task)[part].mean() < 1
        texts = [example.text for example in family.examples]
        assert len(set(texts)) == len(texts)
    assert all(len(example.text) <= 400 for example in passages.examples)


def test_sources_of_few_documents_are_left_out_and_passages_begin_with_words() -> None:
    text = "alpha beta gamma delta " * 40
    many = [Document("many", str(i), f"{i} {text}") for i in range(25)]
    few = [Document("few", str(i), f"{i} {text}") for i in range(3)]
    family = passage_family(50, 100, many + few)
    assert family.tasks == ("many",)
    assert len(family.examples) == 50  # two of each
    words = set(text.split()) | {str(i) for i in range(25)}
    assert all(example.text.split()[0] in words for example in family.examples)
    assert len({example.group for example in family.examples}) == 25
