"""Whether a model does a task at all: accuracy and gap on its pairs, with intervals over clusters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from probes.bootstrap import ConfidenceInterval
from probes.paired_effects import Gap, mean_gap
from workbench.data.pairs import PairTokens
from workbench.models.checks import checked_tokens, device_of, run_hooked

NUMBERS_TOGETHER = 2**26  # logits held at once
CHANCE = 0.5


@dataclass(frozen=True)
class Gate:
    """What a model makes of a task's pairs, m being the task's measure (`PairTokens.effect`)."""

    accuracy: float
    """share of pairs with m > 0 behind the clean prompt, ties counted half"""
    accuracy_interval: ConfidenceInterval
    """95 %, over clusters"""
    gap: Gap
    """m behind the clean prompt − m behind the corrupt one"""
    corrupt_accuracy: float
    """share of pairs with m > 0 behind the corrupt prompt, ties counted half"""
    logprob: float
    """mean log-probability of the answer behind the clean prompt, nats"""
    chance: float
    """accuracy of a model that does not look at the prompt: .5 of pairs with mirrors; of a task measured by
    probabilities, the accuracy with the answers and foils of other pairs, where that is more"""
    clean: Float[np.ndarray, " pair"]
    """m behind each clean prompt"""
    corrupt: Float[np.ndarray, " pair"]

    @property
    def is_passed(self) -> bool:
        """Whether the lower bound of accuracy is above chance and that of the gap above 0."""
        return bool(self.accuracy_interval.low > self.chance and self.gap.interval.low > 0)


def gate(model: Any, pairs: PairTokens, rng: np.random.Generator | None = None, n_draws: int = 2000) -> Gate:
    """Accuracy and gap of a model on pairs, by one forward pass of every prompt, clean and corrupt: of most tasks a
    pair's corrupt prompt is another's clean one.

    rng: of the bootstrap; by default seeded with 0.

    Raises:
        ValueError: tokens that do not fit the model.
    """
    rng = rng or np.random.default_rng(0)
    prompts, at = torch.unique(torch.cat([pairs.clean, pairs.corrupt]), dim=0, return_inverse=True)
    last = torch.zeros(len(prompts), dtype=torch.int64).index_put((at,), pairs.last.repeat(2))
    logits, at = last_logits(model, prompts, last), at.view(2, -1)
    clean, corrupt = (pairs.effect(logits[own]).double().numpy() for own in at)
    logprob = float(pairs.logprob(logits[at[0]]).double().mean())
    chance = CHANCE
    if pairs.measure == "probability_difference":
        chance = max(CHANCE, float(_is_right(_shuffled(pairs, rng).effect(logits[at[0]]).double().numpy()).mean()))
    clusters, right = pairs.clusters.numpy(), _is_right(clean)
    accuracy = mean_gap(right, rng, clusters, n_draws)
    gap = mean_gap(clean - corrupt, rng, clusters, n_draws)
    wrong = float(_is_right(corrupt).mean())
    return Gate(accuracy.mean, accuracy.interval, gap, wrong, logprob, chance, clean, corrupt)


def check_pairs(who: str, model: Any, pairs: PairTokens) -> None:
    """Raise ValueError for what is no pairs of prompts of the model's vocabulary, the two of each equally long, any
    filling behind their tokens."""
    if not isinstance(pairs, PairTokens):
        raise ValueError(f"{who}: got pairs of {type(pairs).__name__}; expected PairTokens (workbench.data.tasks)")
    clean, corrupt = (checked_tokens(who, model, own) for own in (pairs.clean, pairs.corrupt))
    if clean.shape != corrupt.shape or pairs.is_token.shape != clean.shape:
        got = f"{list(clean.shape)} and {list(corrupt.shape)}"
        raise ValueError(f"{who}: got clean and corrupt prompts {got}; expected prompts of one length, pair by pair")
    if not bool(pairs.is_token[:, 0].all()):
        raise ValueError(f"{who}: got a prompt that begins with filling; expected tokens first, filling behind them")
    if bool((pairs.is_token[:, 1:] & ~pairs.is_token[:, :-1]).any()):
        raise ValueError(f"{who}: got filling between the tokens of a prompt; expected it behind them")


@torch.no_grad()
def last_logits(
    model: Any, tokens: Int[Tensor, "pair pos"], last: Int[Tensor, " pair"]
) -> Float[Tensor, "pair d_vocab"]:
    """Logits behind each prompt's last token, float32 on the CPU."""
    tokens = checked_tokens("tasks", model, tokens)
    size = max(1, NUMBERS_TOGETHER // (tokens.shape[1] * model.cfg.d_vocab))
    found = []
    for some, at in zip(tokens.split(size), last.split(size), strict=True):
        logits = run_hooked(model, some.to(device_of(model)), [], return_type="logits")
        found.append(logits[torch.arange(len(some)), at].float().cpu())
    return torch.cat(found)


def _is_right(m: np.ndarray) -> np.ndarray:
    return (m > 0) + 0.5 * (m == 0)


def _shuffled(pairs: PairTokens, rng: np.random.Generator) -> PairTokens:
    """The pairs with the answers and foils of one another."""
    other = pairs.take(torch.from_numpy(rng.permutation(len(pairs))))
    return PairTokens(
        pairs.name, pairs.clean, pairs.corrupt, pairs.is_token, other.answers, other.foils, pairs.clusters,
        pairs.positions, pairs.measure,
    )  # fmt: skip
