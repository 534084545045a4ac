"""A model's vocabulary as tasks use it: the ids of a prompt, whether a filler is one token, which ids are frequent."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from workbench.data.tasks.records import Prompt
from workbench.data.text_windows import spread_windows
from workbench.models.tokenizer_files import begin_ids, encode, special_ids, tokenizer_of

MIN_COUNT = 10  # occurrences in the text that is read of a token that counts as frequent
N_READ = 1_000_000  # tokens of the training text in which they are counted


@dataclass(frozen=True)
class Vocabulary:
    """What a tokenizer makes of prompts, and how often each id stands in the text that the model was trained on."""

    tokenizer: Any
    """None: ids alone"""
    n_ctx: int
    d_vocab: int
    counts: Int64[Tensor, " d_vocab"] | None = None
    """occurrences of each id in the training text; None where that is not known: every id then counts as frequent"""
    _known: dict[str, list[int]] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def lead(self) -> list[int]:
        """What the tokenizer puts before a text, often nothing."""
        return [] if self.tokenizer is None else begin_ids(self.tokenizer)

    def encode(self, text: str) -> list[int]:
        """The ids of a text and nothing around it."""
        if text not in self._known:
            self._known[text] = encode(self.tokenizer, text)
        return self._known[text]

    def is_frequent(self, token: int) -> bool:
        """Whether the training text has it MIN_COUNT times; True where that text is not known."""
        return self.counts is None or int(self.counts[token]) >= MIN_COUNT

    def usable_ids(self) -> Int64[Tensor, " id"]:
        """Ids of the vocabulary that are frequent and no special tokens, in ascending order."""
        is_usable = torch.ones(self.d_vocab, dtype=torch.bool)
        if self.tokenizer is not None:
            known = [token for token in self.tokenizer.get_vocab().values() if token < self.d_vocab]
            is_usable = torch.zeros_like(is_usable)
            is_usable[known] = True
            is_usable[[token for token in special_ids(self.tokenizer) if token < self.d_vocab]] = False
        if self.counts is not None:
            is_usable &= self.counts >= MIN_COUNT
        return is_usable.nonzero()[:, 0]

    def follower(self, prompt: str, answer: str) -> int | None:
        """The id of an answer that is one token behind its prompt; None where it is not."""
        alone, both = self.encode(prompt), self.encode(prompt + answer)
        return both[-1] if len(both) == len(alone) + 1 and both[:-1] == alone else None

    def place(self, prompt: Prompt, start: int, end: int) -> int | None:
        """The index, lead included, of the one token that characters start to end are, with a space before them; None
        where they are not one token of the whole prompt."""
        text = prompt.text
        before = text[: start - 1] if start and text[start - 1] == " " else text[:start]
        whole, head, through = self.encode(text), self.encode(before) if before else [], self.encode(text[:end])
        is_one = len(through) == len(head) + 1 and whole[: len(through)] == through and through[:-1] == head
        return len(self.lead) + len(head) if is_one else None


def vocabulary_of(model: Any, cache: str | Path | None = None) -> Vocabulary:
    """The vocabulary of a model; of a run of ours with how often its training text has each token.

    cache: where packed tokens are kept; the user's cache by default.

    Raises:
        ValueError: a training text that cannot be read.
    """
    tokenizer, counts = tokenizer_of(model), None
    if tokenizer is not None and getattr(model, "trained_on", None) is not None:
        n_ctx = min(model.cfg.n_ctx, 256)
        windows = spread_windows(model, None, n_tokens=N_READ, n_ctx=n_ctx, split="train", cache=cache)
        counts = torch.bincount(windows.flatten(), minlength=model.cfg.d_vocab)
    return Vocabulary(tokenizer, model.cfg.n_ctx, model.cfg.d_vocab, counts)
