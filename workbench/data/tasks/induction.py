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
FIRST_A, SECOND = 0.25, 0.5  # shares of the prompt before A B, and before the token ahead of C B′ of the swap


@dataclass(frozen=True)
class Induction(Task):
    """Random tokens `… A B … A` → B rather than B′; corrupt `… A B′ … A`. All tokens of a prompt but A are different
    ones."""

    name: str = "induction"
    about: str = "Of random tokens, what followed the last one earlier follows it again."
    is_swap: bool = False
    """`… A B … C B′ … A` → B rather than B′; corrupt `… C B … A B′ … A`: what stands before B and B′ is exchanged, not
    B, so that the two prompts differ in what a head at B reads of the token before it"""

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
        first, second = int(FIRST_A * length), int(SECOND * length) + 1
        told = torch.cat([drawn[:, 3 : 3 + first], a[:, None], b[:, None], drawn[:, 3 + first :], a[:, None]], dim=1)
        if self.is_swap:
            told[:, second + 1] = other
        swapped = told.clone()
        if self.is_swap:
            swapped[:, first], swapped[:, second] = told[:, second], a
        else:
            swapped[:, first + 1] = other
        begin = torch.tensor(lead, dtype=torch.int64).expand(n, -1)
        told, swapped = (torch.cat([begin, own], dim=1) for own in (told, swapped))
        both = lambda one, two: torch.stack([one, two], dim=1).flatten(0, 1)  # noqa: E731
        clean, a_at = both(told, swapped), torch.full((2 * n,), len(lead) + first)
        places = {"first_a": a_at, "first_b": a_at + 1}
        if self.is_swap:
            at = torch.where(torch.arange(2 * n) % 2 == 0, a_at, len(lead) + second)
            other_at = a_at + len(lead) + second - at
            places = {"before_answer": at, "answer": at + 1, "before_foil": other_at, "foil": other_at + 1}
        return check_enough(
            PairTokens(
                self.name, clean, both(swapped, told), torch.ones_like(clean, dtype=torch.bool),
                both(b, other)[:, None], both(other, b)[:, None], torch.arange(n).repeat_interleave(2),
                places | {"end": torch.full((2 * n,), clean.shape[1] - 1)},
            )
        )  # fmt: skip


def induction_swap() -> Induction:
    """Induction whose corrupt prompt exchanges what stands before the answer and the foil."""
    about = "As induction; the prompts differ in what stood before the answer and the foil."
    return Induction("induction_swap", about, is_swap=True)
