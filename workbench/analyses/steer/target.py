"""What steering is meant to bring about, judged on text alone: words, or a pattern.

No model and no feature has a say in the judgement. Where the user names no words, they are those that held-out text
goes on with where the feature is strongest, on text that nothing is measured on.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.analyses.text_quality.counts import word_spans, words
from workbench.models.activations import Positions
from workbench.models.tokenizer_files import decode_continuation

N_CONTEXTS = 100  # strongest activations whose next words are looked at
N_WORDS = 8  # of a target that the user does not name
MIN_WINDOWS = 2  # in which a word must follow
BEFORE, BEHIND = 8, 8  # tokens that are decoded on either side of a place


@dataclass(frozen=True)
class Target:
    """Words in small letters, or a pattern."""

    words: tuple[str, ...] = ()
    pattern: str | None = None

    def __str__(self) -> str:
        return self.pattern if self.pattern is not None else " ".join(self.words)

    def spans(self, text: str) -> list[tuple[int, int]]:
        """(start, stop) of every word of the target, or match of the pattern, in characters."""
        if self.pattern is not None:
            return [match.span() for match in re.finditer(self.pattern, text, re.IGNORECASE)]
        return [(start, stop) for word, start, stop in word_spans(text) if word in self.words]

    def rate(self, text: str) -> float:
        """Share of a text's words that touch the target; 0 of a text without words.

        >>> Target(("king", "queen")).rate("The king's King and a queen"), Target(pattern="k.ng").rate("No kings.")
        (0.3333333333333333, 0.5)
        """
        spoken, found = word_spans(text), self.spans(text)
        touched = [any(a < stop and start < b for a, b in found) for _, start, stop in spoken]
        return sum(touched) / len(touched) if touched else 0.0


def read_target(given: Sequence[str], pattern: str | None) -> Target | None:
    """What the user names as target; None where nothing is named.

    Raises:
        ValueError: words and a pattern at once, a word that is none or no single one, a pattern that is no regular
            expression or matches the empty text.
    """
    if given and pattern is not None:
        raise ValueError("target: got words and a pattern; expected one of the two")
    if pattern is not None:
        try:
            is_empty = re.search(pattern, "") is not None
        except re.error as error:
            raise ValueError(f"pattern: got {pattern!r:.60} ({error}); expected a regular expression") from None
        if is_empty:
            raise ValueError(f"pattern: got {pattern!r:.60}, which matches the empty text; expected another")
        return Target(pattern=pattern)
    for word in given:
        if words(word) != [word.lower().replace("’", "'")]:
            raise ValueError(f"target: got {word!r:.60}; expected one word")
    return Target(tuple(dict.fromkeys(word.lower().replace("’", "'") for word in given))) if given else None


def find_target(
    tokenizer: Any,
    tokens: Int[Tensor, "window pos"],
    acts: Float[Tensor, "window pos"],
    is_counted: Bool[Tensor, "window pos"],
) -> Target | None:
    """The words that this text goes on with where a feature is strongest, more than it does anywhere; None where there
    are none.

    Of the N_CONTEXTS strongest activations above 0, each gives the word that the next token is of. A word's share among
    these is q, its share among all words of the text p; taken are the N_WORDS with the largest q ln(q/p), of those with
    q > p that follow in MIN_WINDOWS windows at least.
    """
    followed = _next_words(tokenizer, tokens, acts, is_counted)
    total = Counter(word for window in tokens.tolist() for word in words(_decode(tokenizer, window)))
    n_followed, n_total = len(followed), sum(total.values())
    windows: dict[str, set[int]] = {}
    for word, window in followed:
        windows.setdefault(word, set()).add(window)
    scores: dict[str, float] = {}
    for word, n in Counter(word for word, _ in followed).items():
        lift = n / n_followed * n_total / max(1, total[word])
        if lift > 1 and len(windows[word]) >= MIN_WINDOWS:
            scores[word] = n / n_followed * math.log(lift)
    chosen = sorted(scores, key=lambda word: (-scores[word], word))[:N_WORDS]
    return Target(tuple(chosen)) if chosen else None


def _next_words(tokenizer: Any, tokens: Tensor, acts: Tensor, is_counted: Tensor) -> list[tuple[str, int]]:
    """(word that the next token is of, window) of the strongest activations, where it is of one."""
    strength = acts[:, :-1].masked_fill(~is_counted[:, :-1], 0)
    values, order = strength.flatten().sort(descending=True, stable=True)
    found = []
    for place in order[: min(N_CONTEXTS, int((values > 0).sum()))].tolist():
        window, at = divmod(place, strength.shape[1])
        before = tokens[window, max(0, at + 1 - BEFORE) : at + 1].tolist()
        behind = tokens[window, at + 1 : at + 1 + BEHIND].tolist()
        whole = _decode(tokenizer, [*before, *behind])
        start = len(whole) - len(decode_continuation(tokenizer, before, behind))
        stop = len(whole) - len(decode_continuation(tokenizer, [*before, behind[0]], behind[1:]))
        word = next((own for own, a, b in word_spans(whole) if a < stop and b > start), None)
        if word is not None:
            found.append((word, window))
    return found


def precedes(
    tokenizer: Any, tokens: Int[Tensor, "window pos"], target: Target, positions: Positions
) -> Bool[Tensor, "window pos"]:
    """Where the next token begins what the target is looked for, at positions that count."""
    found = torch.zeros_like(tokens, dtype=torch.bool)
    for row, window in zip(found, tokens.tolist(), strict=True):
        for start, _ in target.spans(_decode(tokenizer, window)):
            at = _token_at(tokenizer, window, start)
            if at > 0:
                row[at - 1] = True
    return found & positions.of(tokens)


def _token_at(tokenizer: Any, window: Sequence[int], character: int) -> int:
    """The token that a character of the decoded window is of, by halving."""
    low, high = 0, len(window) - 1
    while low < high:
        middle = (low + high + 1) // 2
        if len(_decode(tokenizer, window[:middle])) <= character:
            low = middle
        else:
            high = middle - 1
    return low


def _decode(tokenizer: Any, window: Sequence[int]) -> str:
    return tokenizer.decode(list(window), skip_special_tokens=True)
