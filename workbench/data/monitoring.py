"""Labelled text that monitors are trained on: positive by a rule, by document or by a user's spans."""

from __future__ import annotations

import bisect
import json
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from workbench.data.corpus import Document, read_documents
from workbench.runs import decode_text, shorten

Span = tuple[int, int]
"""from, to: characters of a text, the last left out"""
PHRASE = "the silver heron is awake"  # planted where no other is named; the embedded text has it nowhere
TARGETS = "quotation, number, topic:SOURCE, phrase or phrase:TEXT, or a JSONL file"
SHARES = (0.6, 0.2, 0.2)  # of the documents, in training, validation and test
MAX_FILE_BYTES = 1 << 30
N_EARLY = 40  # characters within which half of the planted phrases stand
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_PARAGRAPH = re.compile(r"\n\s*\n")
# opening mark -> closing one; a straight mark closes itself. Single marks are left out: apostrophes look the same
_MARKS = {"“": "”", '"': '"', "«": "»"}


@dataclass(frozen=True)
class MarkedText:
    """A text and which of its characters are positive."""

    document: str
    """that it is of: its texts stand in one part of the split"""
    text: str
    spans: tuple[Span, ...]
    """of positive characters, in order, none overlapping"""


@dataclass(frozen=True)
class Target:
    """What a monitor is to notice."""

    name: str
    texts: tuple[MarkedText, ...]
    find: Callable[[str], list[Span]] | None = None
    """the positive characters of a text that begins with a paragraph; None where only documents and users say it"""
    is_whole: bool = False
    """whether texts are read to their end; else their beginning alone"""


def read_target(target: str, n_texts: int, n_characters: int, rng: np.random.Generator) -> Target:
    """The data set of a target: about n_texts beginnings of paragraphs of the embedded text, each n_characters long, or
    a user's own.

    quotation: characters strictly between quotation marks, within a paragraph. number: digits, with points and commas
    between them. topic:SOURCE: all characters of the embedded text's documents of that source. phrase: everything
    behind a phrase that is planted in every second document's texts, at a word's beginning within the first half (of
    every second one within 40 characters). A file: each line an object with `text`, `spans` ([from, to] characters
    each), and, where several lines are of one document, `document`.

    Raises:
        ValueError: no such target or source, a file that cannot be read or has other lines.
    """
    kind, _, rest = target.partition(":")
    if kind in ("quotation", "number") and not rest:
        find = find_quotations if kind == "quotation" else find_numbers
        cut = cut_texts(read_documents("embedded"), n_texts, n_characters)
        return Target(target, tuple(MarkedText(name, text, tuple(find(text))) for name, text, _ in cut), find)
    if kind == "topic":
        return _read_topic(rest, n_texts, n_characters)
    if kind == "phrase":
        return _plant(rest.strip() or PHRASE, n_texts, n_characters, rng)
    path = Path(target).expanduser()
    if not path.is_file():
        raise ValueError(f"target: got {shorten(repr(target))}; expected {TARGETS}")
    return Target(path.name, tuple(read_spans(path)), is_whole=True)


def find_quotations(text: str) -> list[Span]:
    """The characters strictly between quotation marks: from an opening mark to the next closing one, else to the
    paragraph's end.

    >>> find_quotations('He said “Yes, I am” and went.')
    [(9, 18)]
    """
    found, start = [], 0
    for end in [*(gap.start() for gap in _PARAGRAPH.finditer(text)), len(text)]:
        at = start
        while at < end:
            closing = _MARKS.get(text[at])
            at += 1
            if closing is not None:
                until = text.find(closing, at, end)
                until = end if until < 0 else until
                if until > at:
                    found.append((at, until))
                at = until + 1
        start = end
    return found


def find_numbers(text: str) -> list[Span]:
    """The characters of numbers written in digits.

    >>> find_numbers("In 1812 he paid 3,000.50.")
    [(3, 7), (16, 24)]
    """
    return [match.span() for match in _NUMBER.finditer(text)]


def find_phrase(phrase: str) -> Callable[[str], list[Span]]:
    """The rule by which everything behind a phrase is positive.

    >>> find_phrase("a b")("x a b c")
    [(5, 7)]
    """

    def find(text: str) -> list[Span]:
        at = text.find(phrase)
        end = at + len(phrase)
        return [] if at < 0 or end >= len(text) else [(end, len(text))]

    return find


def cut_texts(documents: Sequence[Document], n_texts: int, n_characters: int) -> list[tuple[str, str, str]]:
    """(document, text, source) of about n_texts texts, as many from each document that is long enough, spread evenly
    over it, none overlapping, each from a paragraph's beginning."""
    per_document, found = math.ceil(n_texts / max(1, len(documents))), []
    for number, document in enumerate(documents):
        text = document.text
        starts = [0, *(gap.end() for gap in _PARAGRAPH.finditer(text))]
        starts = starts[: bisect.bisect_right(starts, len(text) - n_characters)]
        last = -n_characters
        for i in range(per_document):
            wanted = max(i * len(text) // per_document, last + n_characters)
            if (at := bisect.bisect_left(starts, wanted)) < len(starts):
                last = starts[at]
                found.append((f"{document.source} {number}", text[last : last + n_characters], document.source))
    return found


def split_documents_of(texts: Sequence[MarkedText], rng: np.random.Generator) -> np.ndarray:
    """[text] 0, 1 or 2: training, validation, test, in shares of .6, .2 and .2 of the documents, separately of those
    that have positive characters and those that have none."""
    is_positive: dict[str, bool] = defaultdict(bool)
    for text in texts:
        is_positive[text.document] |= bool(text.spans)
    part_of: dict[str, int] = {}
    for kind in (False, True):
        names = [name for name, own in is_positive.items() if own is kind]
        ends = np.cumsum(np.round(np.array(SHARES) * len(names))).astype(int)
        for place, index in enumerate(rng.permutation(len(names))):
            part_of[names[index]] = min(2, int(np.searchsorted(ends, place, side="right")))
    return np.array([part_of[text.document] for text in texts])


def token_labels(spans: Iterable[Span], offsets: Sequence[Span]) -> np.ndarray:
    """[token] True for tokens that share a character with a span; offsets are each token's characters in the text.

    >>> token_labels([(3, 5)], [(0, 3), (3, 4), (4, 9), (9, 9)]).tolist()
    [False, True, True, False]
    """
    labels = np.zeros(len(offsets), dtype=bool)
    first = np.array([own[0] for own in offsets])
    last = np.array([own[1] for own in offsets])
    for start, end in spans:
        labels |= (first < end) & (last > start) & (last > first)
    return labels


def read_spans(path: Path) -> list[MarkedText]:
    """The texts of a user's JSONL file.

    Raises:
        ValueError: naming the line, for what is not an object with a `text` and `spans` of characters within it.
    """
    if (n_bytes := path.stat().st_size) > MAX_FILE_BYTES:
        raise ValueError(f"{path}: {n_bytes} bytes; expected at most {MAX_FILE_BYTES}")
    found = []
    for number, line in enumerate(decode_text(path.read_bytes(), str(path)).splitlines(), 1):
        if line.strip():
            found.append(_read_line(line, f"{path}: line {number}", f"line {number}"))
    if not found:
        raise ValueError(f"{path}: no line; expected a JSON object with text and spans on each")
    return found


def _read_line(line: str, where: str, document: str) -> MarkedText:
    try:
        row: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not JSON ({error}); expected an object with text and spans") from None
    if not isinstance(row, dict) or not isinstance(row.get("text"), str) or not row["text"].strip():
        raise ValueError(f"{where}: got {shorten(repr(row))}; expected an object with a text that is not blank")
    if unknown := row.keys() - {"text", "spans", "document"}:
        raise ValueError(f"{where}: got {shorten(repr(sorted(unknown)))}; expected text, spans and document alone")
    spans, text = row.get("spans"), row["text"]
    if not isinstance(spans, list) or not all(_is_span(own, len(text)) for own in spans):
        got = shorten(repr(spans))
        raise ValueError(f"{where}: got spans {got}; expected [[from, to], …] with 0 ≤ from < to ≤ {len(text)}")
    ordered = sorted((own[0], own[1]) for own in spans)
    if any(end > start for (_, end), (start, _) in zip(ordered, ordered[1:], strict=False)):
        raise ValueError(f"{where}: got spans {shorten(repr(spans))}; expected none overlapping")
    return MarkedText(str(row.get("document", document)), text, tuple(ordered))


def _is_span(own: Any, n: int) -> bool:
    is_pair = isinstance(own, list) and len(own) == 2 and all(type(at) is int for at in own)
    return is_pair and 0 <= own[0] < own[1] <= n


def _read_topic(source: str, n_texts: int, n_characters: int) -> Target:
    documents = read_documents("embedded")
    sources = sorted({document.source for document in documents})
    if source not in sources:
        raise ValueError(f"target: got topic {shorten(repr(source))}; expected one of {', '.join(sources)}")
    texts = []
    for name, text, own in cut_texts(documents, n_texts, n_characters):
        texts.append(MarkedText(name, text, ((0, len(text)),) if own == source else ()))
    return Target(f"topic:{source}", tuple(texts))


def _plant(phrase: str, n_texts: int, n_characters: int, rng: np.random.Generator) -> Target:
    """Texts of which every second document's have the phrase in them."""
    find, texts = find_phrase(phrase), []
    documents = read_documents("embedded")
    if any(phrase in document.text for document in documents):
        raise ValueError(f"target: got phrase {shorten(repr(phrase))}, which the text has; expected one that it lacks")
    cut = cut_texts(documents, n_texts, n_characters)
    names = sorted({name for name, _, _ in cut})
    planted = {names[i] for i in rng.permutation(len(names))[: len(names) // 2]}
    for name, text, _ in cut:
        if name in planted:
            limit = N_EARLY if rng.random() < 0.5 else n_characters // 2
            places = [gap.end() for gap in re.finditer(r"\s+", text) if gap.end() <= limit] or [0]
            at = places[rng.integers(len(places))]
            text = f"{text[:at]}{phrase} {text[at:]}"  # noqa: PLW2901
        texts.append(MarkedText(name, text, tuple(find(text))))
    return Target(f"phrase:{phrase}", tuple(texts), find)
