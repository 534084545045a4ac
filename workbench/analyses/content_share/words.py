"""Documents as tokens of a model, each token with the word that it is of and whether that is a content word."""

from __future__ import annotations

import functools
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from workbench.analyses.text_quality.tagging import PlacedWord, load_word_tagger
from workbench.data.tokenizer import text_encoder
from workbench.models.tokenizer_files import begin_ids, tokenizer_of
from workbench.models.transformer import check_tokenized

# universal parts of speech (de Marneffe et al. 2021); all others (numbers, punctuation, symbols, interjections, X) are
# neither, and so is a token of white space alone
CONTENT = frozenset(("NOUN", "PROPN", "VERB", "ADJ", "ADV"))
FUNCTION = frozenset(("ADP", "DET", "PRON", "AUX", "CCONJ", "SCONJ", "PART"))
IS_CONTENT, IS_FUNCTION, IS_NEITHER = 1, 0, -1


@dataclass(frozen=True)
class WordedDocument:
    """One document: its tokens, what begins a text before them, and the word of each."""

    ids: Int64[np.ndarray, " token"]
    word: Int64[np.ndarray, " token"]
    """number of the token's word among `words`; −1 for a token of no word"""
    label: Int64[np.ndarray, " token"]
    """IS_CONTENT, IS_FUNCTION or IS_NEITHER"""
    words: tuple[str, ...]
    """as the text has them"""
    number: int
    """of the document among the texts given, those without a token included"""


@dataclass(frozen=True)
class DocumentWindows:
    """Documents cut into windows, one after another; the last window of each is filled up behind."""

    tokens: Int64[Tensor, "window pos"]
    is_token: Bool[Tensor, "window pos"]
    """False at the filling"""
    document: tuple[int, ...]
    """of each window"""
    start: tuple[int, ...]
    """the window's first token in its document"""


@functools.lru_cache(maxsize=1)
def tagged_words(texts: tuple[str, ...], tagger: str | None) -> tuple[str, tuple[tuple[PlacedWord, ...], ...]]:
    """(title of the spaCy pipeline, the words of each text). The last texts are remembered: the models of a study are
    measured on the same."""
    title, tag = load_word_tagger(tagger)
    return title, tuple(tag(texts))


def word_documents(
    model: Any, texts: Sequence[str], tagged: Sequence[Sequence[PlacedWord]]
) -> tuple[WordedDocument, ...]:
    """The texts in a model's vocabulary; those without a token are left out.

    A token belongs to the word that holds its first character that is no white space, by the offsets that the tokenizer
    itself gives: of a token " the" the word "the"; of a token that spans two of the tagger's words the first; every
    token of a word of several has that word's label. What begins a text belongs to none.

    Raises:
        ValueError: a model without tokenizer.
    """
    check_tokenized("content-share", model)
    tokenizer = tokenizer_of(model)
    if tokenizer is None:
        raise ValueError("content-share: this model has no tokenizer; expected one, documents are text")
    encoder, lead = text_encoder(tokenizer), begin_ids(tokenizer)
    found = []
    encoded = encoder.encode_batch(list(texts), add_special_tokens=False)
    for number, (text, words, encoding) in enumerate(zip(texts, tagged, encoded, strict=True)):
        if not encoding.ids:
            continue
        starts = [word.start for word in words]
        own = [-1] * len(lead)
        for first, stop in encoding.offsets:
            own.append(_word_at(words, starts, text, first, stop))
        label = [IS_NEITHER if i < 0 else label_of(words[i].pos) for i in own]
        found.append(
            WordedDocument(
                np.array([*lead, *encoding.ids]),
                np.array(own),
                np.array(label),
                tuple(word.text for word in words),
                number,
            )
        )
    return tuple(found)


def _word_at(words: Sequence[PlacedWord], starts: Sequence[int], text: str, first: int, stop: int) -> int:
    while first < stop and text[first].isspace():
        first += 1
    at = bisect_right(starts, first) - 1
    return at if first < stop and at >= 0 and first < starts[at] + len(words[at].text) else -1


def label_of(pos: str) -> int:
    """What a part of speech is: IS_CONTENT, IS_FUNCTION or IS_NEITHER.

    >>> label_of("NOUN"), label_of("DET"), label_of("NUM")
    (1, 0, -1)
    """
    return IS_CONTENT if pos in CONTENT else IS_FUNCTION if pos in FUNCTION else IS_NEITHER


def cut_windows(documents: Sequence[WordedDocument], n_ctx: int) -> DocumentWindows:
    """The documents as windows of n_ctx tokens, filled up behind by each window's own first token, which nothing before
    it reads."""
    rows, is_token, document, start = [], [], [], []
    for number, own in enumerate(documents):
        for first in range(0, len(own.ids), n_ctx):
            ids = own.ids[first : first + n_ctx]
            rows.append(np.concatenate([ids, np.full(n_ctx - len(ids), ids[0])]))
            is_token.append(np.arange(n_ctx) < len(ids))
            document.append(number)
            start.append(first)
    return DocumentWindows(
        torch.from_numpy(np.stack(rows)), torch.from_numpy(np.stack(is_token)), tuple(document), tuple(start)
    )
