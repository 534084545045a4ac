"""Labelled text for probes, all of it shipped: passages by their source, words by their kind.

Of each family a task is one label against all others. Passages of one document, and a word, stand on one side of the
split into training and test.
"""

from __future__ import annotations

import tomllib
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from workbench.data.concepts import read_concepts
from workbench.data.corpus import Document, read_documents

MIN_DOCUMENTS = 20  # of a source, for a task of it
TRAIN_SHARE = 0.6  # of the documents or words of each label
MARKERS = Path(__file__).parent / "markers.toml"
SKIPPED_SETS = {"years_1990", "years_1800", "alphabet", "digits"}  # what a tokenizer gives away, or no words
WORD_TASKS = ("us_states", "number_words")  # labels of concept words with enough of them


@dataclass(frozen=True)
class Example:
    """A text with its label."""

    text: str
    label: str
    group: str
    """the document or word that it belongs to"""


@dataclass(frozen=True)
class Family:
    """Examples that share their labels, and which of them are tasks."""

    name: str
    is_passage: bool
    """whether features are averaged over the text, and not read at its last token"""
    examples: tuple[Example, ...]
    tasks: tuple[str, ...]
    """labels, each against all others"""

    def is_train(self) -> np.ndarray:
        """[example] True for what is trained on: of every label the first TRAIN_SHARE of its groups, which come in a
        fixed random order."""
        rng, train = np.random.default_rng(0), set()
        for label in sorted({example.label for example in self.examples}):
            groups = sorted({example.group for example in self.examples if example.label == label})
            train |= set(rng.permutation(groups)[: round(TRAIN_SHARE * len(groups))].tolist())
        return np.array([example.group in train for example in self.examples])


def passage_family(n_passages: int, n_characters: int, documents: list[Document] | None = None) -> Family:
    """Passages of the embedded text by source: about n_passages of each source with MIN_DOCUMENTS documents or more, as
    many from each of its documents, spread evenly over it, each beginning with a word.

    documents: other texts than the embedded ones.
    """
    by_source: dict[str, list[Document]] = defaultdict(list)
    for document in read_documents("embedded") if documents is None else documents:
        by_source[document.source].append(document)
    kept = {source: own for source, own in by_source.items() if len(own) >= MIN_DOCUMENTS}
    examples = []
    for source, own in sorted(kept.items()):
        n_taken = min(len(own), n_passages)
        for index in np.arange(n_taken) * len(own) // n_taken:
            document = own[index]
            for text in _passages(document.text, max(1, round(n_passages / n_taken)), n_characters):
                examples.append(Example(text, source, f"{source} {index}"))
    return Family("source", True, tuple(examples), tuple(sorted(kept)))


def _passages(text: str, n: int, n_characters: int) -> list[str]:
    """At most n stretches of the text, none overlapping, each from a word's beginning."""
    n = max(1, min(n, len(text) // n_characters))
    found = []
    for i in range(n):
        start = i * len(text) // n
        begin = 0 if start == 0 else text.find(" ", start) + 1
        found.append(text[begin : begin + n_characters].strip())
    return [passage for passage in found if passage]


def word_families() -> list[Family]:
    """Words of the concept sets by set, and markers of discourse (therefore …) against verbs of saying (answered …)."""
    label_of: dict[str, str] = {}
    for one in read_concepts():
        if one.name not in SKIPPED_SETS:
            for word in one.all_words:
                label_of.setdefault(word, one.name)
    kinds = tomllib.loads(MARKERS.read_text(encoding="utf-8"))
    marker_of = {word: kind for kind in kinds for word in kinds[kind]["words"] if " " not in word}
    return [
        Family(name, False, tuple(Example(word, label, word) for word, label in own.items()), tasks)
        for name, own, tasks in (("concept", label_of, WORD_TASKS), ("marker", marker_of, ("discourse",)))
    ]
