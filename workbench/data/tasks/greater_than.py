"""Greater than: a span of years ends later than it begins."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from workbench.data.pairs import Measure, PairTokens
from workbench.data.tasks.encoding import EncodedPair, LeftOut, check_frequent, find_places, join_pairs
from workbench.data.tasks.records import Prompt, Span, Task, TaskUnavailable, check_counts
from workbench.data.tasks.vocabulary import Vocabulary

NOUNS = (
    "war", "siege", "strike", "trial", "reign", "project", "conflict", "voyage", "drought", "famine", "alliance",
    "campaign", "marriage", "tour", "truce", "dispute",
)  # fmt: skip
CENTURIES = ("13", "14", "15", "16", "17", "18", "19")
DRAWS_PER_PAIR = 20


@dataclass(frozen=True)
class _Digits:
    """The form of the years: how many digits a prompt leaves open."""

    n: int
    ids: tuple[int, ...]
    """of each number, in order"""

    @property
    def base(self) -> int:
        """The corrupt prompts' number, below almost all others."""
        return 1 if self.n == 2 else 0


@dataclass(frozen=True)
class GreaterThan(Task):
    """ "The N lasted from the year XXYY to the year XX": Σ p of what is above YY − Σ p of what is not; corrupt YY = 01.

    Where a tokenizer writes years digit by digit, "… the year XYZU to the year XYZ" and the last digit alone, corrupt
    U = 0. The mirror of YY has 98 − YY (of U, 8 − U): as many numbers above it as YY has not above it.
    """

    name: str = "greater_than"
    about: str = "A span of years ends in a later year than it begins."
    measure: Measure = "probability_difference"

    def make(self, vocabulary: Vocabulary, n_pairs: int, rng: np.random.Generator) -> PairTokens:
        """As `Task.make`; a noun, a century and a year with its mirror are a cluster."""
        if vocabulary.tokenizer is None:
            raise TaskUnavailable(f"task {self.name}: the model has no tokenizer; expected one, for prompts of words")
        digits = _find_digits(vocabulary)
        if digits is None:
            raise TaskUnavailable(
                f"task {self.name}: the tokenizer has years neither as two tokens of two digits nor digit by digit; "
                "expected one of both"
            )
        left_out: Counter[str] = Counter()
        made: list[EncodedPair] = []
        seen: set[tuple[str, str, int]] = set()
        mirror_sum = 10**digits.n - 2
        for draw in range(DRAWS_PER_PAIR * n_pairs):
            if len(made) >= n_pairs:
                break
            noun, number = NOUNS[rng.integers(len(NOUNS))], int(rng.integers(digits.base + 1, mirror_sum // 2))
            head = CENTURIES[rng.integers(len(CENTURIES))] + (str(rng.integers(10)) if digits.n == 1 else "")
            if (noun, head, number) in seen:
                continue
            seen.add((noun, head, number))
            try:
                made += [_encode(vocabulary, noun, head, own, digits, draw) for own in (number, mirror_sum - number)]
            except LeftOut as error:
                left_out[str(error)] += 1
        why = "".join(f"left out: {reason}" for reason, _ in left_out.most_common(1))
        check_counts(self.name, len(made), len({own.cluster for own in made}), why)
        return join_pairs(self.name, made, self.measure)


def _prompt(noun: str, head: str, number: str) -> Prompt:
    """The prompt, its open number marked."""
    before = f"The {noun} lasted from the year {head}"
    text = f"{before}{number} to the year {head}"
    return Prompt(
        text, (Span(4, 4 + len(noun), "noun", "noun"), Span(len(before), len(before) + len(number), "number", "number"))
    )


def _find_digits(vocabulary: Vocabulary) -> _Digits | None:
    """Two digits where every number of two is one token behind a century, else one, else None."""
    for n in (2, 1):
        heads = CENTURIES if n == 2 else [century + str(tens) for century in CENTURIES for tens in range(10)]
        ids = []
        for number in range(10**n):
            written = f"{number:0{n}}"
            # a tokenizer may have some whole years as one token: the number's own id is found behind another century
            found = (vocabulary.follower(_prompt(NOUNS[0], head, "0" * n).text, written) for head in heads)
            ids.append(next((token for token in found if token is not None), None))
        if None not in ids and len(set(ids)) == len(ids):
            return _Digits(n, tuple(ids))
    return None


def _encode(vocabulary: Vocabulary, noun: str, head: str, number: int, digits: _Digits, cluster: int) -> EncodedPair:
    """One pair.

    Raises:
        LeftOut: a noun or number that is not one frequent token in context, or prompts of unequal lengths.
    """
    prompts = [_prompt(noun, head, f"{own:0{digits.n}}") for own in (number, digits.base)]
    places = [find_places(vocabulary, prompt) for prompt in prompts]
    clean, corrupt = ([*vocabulary.lead, *vocabulary.encode(prompt.text)] for prompt in prompts)
    written = [ids[at["number"]] for ids, at in zip((clean, corrupt), places, strict=True)]
    if places[0] != places[1] or len(clean) != len(corrupt):
        raise LeftOut(f"{prompts[0].text!r:.60} and {prompts[1].text!r:.60} have other tokens")
    if written != [digits.ids[number], digits.ids[digits.base]]:
        raise LeftOut(f"the years of {prompts[0].text!r:.60} are other tokens than their numbers")
    if len(clean) > vocabulary.n_ctx:
        raise LeftOut(f"{prompts[0].text!r:.60} has {len(clean)} tokens, more than the context of {vocabulary.n_ctx}")
    check_frequent(vocabulary, digits.ids[number], f"{number:0{digits.n}}")
    above, others = list(digits.ids[number + 1 :]), list(digits.ids[: number + 1])
    return EncodedPair(clean, corrupt, above, others, {**places[0], "end": len(clean) - 1}, cluster)
