"""Pairs of prompts that differ in what decides the answer, as tokens of a model's vocabulary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor

Measure = Literal["logit_difference", "probability_difference"]
DIRECTIONS = ("denoise", "noise")


@dataclass(frozen=True)
class PairTokens:
    """Pairs of prompts of equal length, shorter pairs filled up behind, with what follows them and what might.

    A pair's two prompts have the same length and the same named positions, so that an activation of one has its place
    in the other.
    """

    name: str
    """of the task"""
    clean: Int[Tensor, "pair pos"]
    corrupt: Int[Tensor, "pair pos"]
    is_token: Bool[Tensor, "pair pos"]
    """False at the filling behind"""
    answers: Int[Tensor, "pair answer"]
    """ids that may follow the clean prompt; −1 fills rows of fewer"""
    foils: Int[Tensor, "pair foil"]
    """ids that may follow the corrupt one, likewise"""
    clusters: Int[Tensor, " pair"]
    """pairs that share fillers have one number: what intervals are over"""
    positions: Mapping[str, Int[Tensor, " pair"]] = field(default_factory=dict)
    """named places in both prompts; `end`, the last token, is always one"""
    measure: Measure = "logit_difference"
    """logit_difference: of one answer and one foil; probability_difference: Σ p over answers − Σ p over foils"""

    def __len__(self) -> int:
        return len(self.clean)

    @property
    def last(self) -> Int64[Tensor, " pair"]:
        """The position of each prompt's last token, where the answer is read."""
        return self.is_token.sum(dim=1) - 1

    def take(self, rows: Sequence[int] | Tensor | slice) -> PairTokens:
        """Some of the pairs."""
        names = ("clean", "corrupt", "is_token", "answers", "foils", "clusters")
        own = {name: getattr(self, name)[rows] for name in names}
        return replace(self, **own, positions={name: at[rows] for name, at in self.positions.items()})

    def sides(self, direction: str) -> tuple[Int[Tensor, "pair pos"], Int[Tensor, "pair pos"]]:
        """(base, source): denoise, the corrupt prompts and the clean ones that lend activations; noise, the reverse."""
        assert direction in DIRECTIONS
        return (self.corrupt, self.clean) if direction == "denoise" else (self.clean, self.corrupt)

    def effect(self, logits: Float[Tensor, "pair d_vocab"]) -> Float[Tensor, " pair"]:
        """The task's measure m of logits behind each prompt: answer less foil, as `measure` says.

        Differentiable. Higher is nearer to the clean prompt's answer, whichever prompt the logits are of.
        """
        if self.measure == "logit_difference":
            both = torch.stack([self.answers[:, 0], self.foils[:, 0]], dim=1).to(logits.device)
            found = logits.gather(1, both)
            return found[:, 0] - found[:, 1]
        p = logits.softmax(dim=-1)
        return _sum_at(p, self.answers) - _sum_at(p, self.foils)

    def logprob(self, logits: Float[Tensor, "pair d_vocab"]) -> Float[Tensor, " pair"]:
        """Log-probability of the answer, of several together, nats."""
        ids = self.answers.to(logits.device)
        found = logits.log_softmax(dim=-1).gather(1, ids.clamp_min(0))
        return found.masked_fill(ids < 0, -torch.inf).logsumexp(dim=-1)


def _sum_at(values: Tensor, ids: Tensor) -> Tensor:
    ids = ids.to(values.device)
    return (values.gather(1, ids.clamp_min(0)) * (ids >= 0)).sum(dim=1)
