"""Induction: what followed a token before follows it again."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from workbench.data.pairs import PairTokens
from workbench.data.tasks.records import Task, TaskUnavailable, check_enough
from workbench.data.tasks.vocabulary import Vocabulary

LENGTH = 32  # tokens of a prompt, at most
MIN_LENGTH = 8
FIRST_A = 0.25  # share of the prompt before A


@dataclass(frozen=True)
class Induction(Task):
    """Random tokens `… A B … A` → B rather than B′; corrupt `… A B′ … A`. All tokens of a prompt but A are different
    ones."""

    name: str = "induction"
    about: str = "Of random tokens, what followed the last one earlier follows it again."

    def make(self, vocabulary: Vocabulary, n_pairs: int, rng: np.random.Generator) -> PairTokens:
        """As `Task.make`; each pair and its mirror, which share all tokens, are a cluster."""
        lead, ids = vocabulary.lead, vocabulary.usable_ids().numpy()
        length = min(LENGTH, vocabulary.n_ctx - len(lead))
        if length < MIN_LENGTH or len(ids) < length + 1:
            raise TaskUnavailable(
                f"task {self.name}: got a context of {vocabulary.n_ctx} tokens and {len(ids)} tokens that may be used; "
                f"expected at least {MIN_LENGTH} and {length + 1}"
            )
        n = n_pairs // 2
        # A, B, B′ and what fills the rest
        drawn = torch.from_numpy(np.stack([rng.choice(ids, size=length, replace=False) for _ in range(n)]))
        a, b, other = drawn[:, 0], drawn[:, 1], drawn[:, 2]
        first = int(FIRST_A * length)
        told = torch.cat([drawn[:, 3 : 3 + first], a[:, None], b[:, None], drawn[:, 3 + first :], a[:, None]], dim=1)
        swapped = told.clone()
        swapped[:, first + 1] = other
        begin = torch.tensor(lead, dtype=torch.int64).expand(n, -1)
        told, swapped = (torch.cat([begin, own], dim=1) for own in (told, swapped))
        both = lambda one, two: torch.stack([one, two], dim=1).flatten(0, 1)  # noqa: E731
        clean, at = both(told, swapped), len(lead) + first
        places = {"first_a": at, "first_b": at + 1, "end": clean.shape[1] - 1}
        return check_enough(
            PairTokens(
                self.name, clean, both(swapped, told), torch.ones_like(clean, dtype=torch.bool),
                both(b, other)[:, None], both(other, b)[:, None], torch.arange(n).repeat_interleave(2),
                {name: torch.full((2 * n,), place) for name, place in places.items()},
            )
        )  # fmt: skip
