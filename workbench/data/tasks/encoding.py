"""Pairs of prompts from text to ids, and what is left out on the way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from workbench.data.pairs import Measure, PairTokens
from workbench.data.tasks.records import Pair, Prompt
from workbench.data.tasks.vocabulary import Vocabulary


@dataclass(frozen=True)
class EncodedPair:
    """One pair as ids."""

    clean: list[int]
    corrupt: list[int]
    answers: list[int]
    foils: list[int]
    positions: Mapping[str, int]
    cluster: int


class LeftOut(ValueError):
    """A pair or word that a vocabulary has no place for."""


def encode_pair(vocabulary: Vocabulary, pair: Pair, cluster: int) -> EncodedPair:
    """A pair as ids.

    Raises:
        LeftOut: fillers, answers or foils that are not one frequent token in context; prompts of unequal lengths or
            positions, or longer than the context.
    """
    texts = pair.clean.text, pair.corrupt.text
    clean, corrupt = ([*vocabulary.lead, *vocabulary.encode(text)] for text in texts)
    if len(clean) != len(corrupt):
        raise LeftOut(f"{texts[0]!r:.50} has {len(clean)} tokens, {texts[1]!r:.50} {len(corrupt)}")
    if len(clean) > vocabulary.n_ctx:
        raise LeftOut(f"{texts[0]!r:.50} has {len(clean)} tokens, more than the context of {vocabulary.n_ctx}")
    places, others = (find_places(vocabulary, prompt) for prompt in (pair.clean, pair.corrupt))
    if places != others:
        raise LeftOut(f"{texts[0]!r:.50} and {texts[1]!r:.50} have their positions at other tokens")
    answers, foils = (
        [follower(vocabulary, text, texts) for text in followers] for followers in (pair.answer, pair.foil)
    )
    if set(answers) & set(foils):
        raise LeftOut(f"an answer and a foil behind {texts[0]!r:.50} are the same token")
    return EncodedPair(clean, corrupt, answers, foils, {**places, "end": len(clean) - 1}, cluster)


def find_places(vocabulary: Vocabulary, prompt: Prompt, list_name: str | None = None) -> dict[str, int]:
    """The tokens of a prompt's named positions; every filler, or every one from a list, is one frequent token.

    Raises:
        LeftOut: for one that is not.
    """
    found = {}
    for span in prompt.spans:
        if list_name not in (None, span.list_name):
            continue
        word, at = prompt.text[span.start : span.end], vocabulary.place(prompt, span.start, span.end)
        if at is None:
            raise LeftOut(f"{word!r:.30} is not one token in {prompt.text!r:.50}")
        check_frequent(vocabulary, vocabulary.encode(prompt.text)[at - len(vocabulary.lead)], word)
        if span.position:
            found[span.position] = at
    return found


def follower(vocabulary: Vocabulary, text: str, prompts: Sequence[str]) -> int:
    """The id of an answer or foil, the same one token behind each prompt.

    Raises:
        LeftOut: where it is not one frequent token.
    """
    ids = {vocabulary.follower(prompt, text) for prompt in prompts}
    if None in ids or len(ids) != 1:
        raise LeftOut(f"{text!r:.30} is not one token behind {prompts[0]!r:.50}")
    found = ids.pop()
    assert found is not None
    check_frequent(vocabulary, found, text)
    return found


def check_frequent(vocabulary: Vocabulary, token: int, word: str) -> None:
    """Raise LeftOut for a token that the training text has too seldom."""
    if not vocabulary.is_frequent(token):
        assert vocabulary.counts is not None
        raise LeftOut(f"{word!r:.30} stands {int(vocabulary.counts[token])} times in the training text")


def join_pairs(name: str, pairs: Sequence[EncodedPair], measure: Measure = "logit_difference") -> PairTokens:
    """Encoded pairs together, shorter ones filled up behind; positions are those that all of them have."""
    clean, is_token = pad_behind([own.clean for own in pairs], 0)
    corrupt, _ = pad_behind([own.corrupt for own in pairs], 0)
    answers, foils = (pad_behind([getattr(own, what) for own in pairs], -1)[0] for what in ("answers", "foils"))
    counted = Counter(position for own in pairs for position in own.positions)
    common = [position for position, n in counted.items() if n == len(pairs)]
    positions = {position: torch.tensor([own.positions[position] for own in pairs]) for position in common}
    clusters = torch.unique(torch.tensor([own.cluster for own in pairs]), return_inverse=True)[1]
    return PairTokens(name, clean, corrupt, is_token, answers, foils, clusters, positions, measure)


def pad_behind(rows: Sequence[Sequence[int]], filler: int) -> tuple[Int64[Tensor, "row pos"], Bool[Tensor, "row pos"]]:
    """(rows filled up behind to the longest, True where these are the rows')."""
    width = max(map(len, rows))
    padded = torch.tensor([[*row, *[filler] * (width - len(row))] for row in rows], dtype=torch.int64)
    return padded, torch.arange(width) < torch.tensor([[len(row)] for row in rows])
