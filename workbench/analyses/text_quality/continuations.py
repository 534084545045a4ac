"""Continuations sampled from a model: what text quality counts."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from workbench.data.batteries import PromptSet
from workbench.models.generate import continue_prompts
from workbench.models.tokenizer_files import decode_continuation, stop_ids, tokenizer_of

ROWS_TOGETHER = 64  # continuations that grow side by side; more gain little and hold more keys and values


@dataclass(frozen=True)
class Continuation:
    """One sampled continuation of one prompt."""

    kind: str
    prompt: str
    sample: int
    text: str
    """what was added to the prompt, as the decoder writes it behind the prompt"""
    tokens: tuple[int, ...]
    """the same as tokens, without the one that ends a text"""
    is_ended: bool
    """the model ended the text itself"""


def sample_continuations(
    model: Any,
    prompts: Sequence[PromptSet],
    *,
    n_samples: int = 4,
    max_new_tokens: int = 96,
    temperature: float = 0.7,
    seed: int = 0,
    on_progress: Callable[[float], None] | None = None,
) -> list[Continuation]:
    """n_samples continuations of every prompt, in the order of the prompts.

    Each is drawn with numbers of its own, from (seed, text of the prompt, sample): it does not depend on the other
    prompts. Before a prompt stands what the tokenizer begins a text with; a text ends at any token of `stop_ids`.

    Raises:
        ValueError: a model without tokenizer, n_samples or max_new_tokens below 1, a temperature below 0, and prompts
            that with their new tokens are longer than the model's context.
    """
    if n_samples < 1:
        raise ValueError(f"n_samples: got {n_samples}; expected 1 or more")
    encoded = encode_prompts(model, prompts, max_new_tokens)
    tokenizer = model.tokenizer
    wanted = [(one.kind, prompt, i) for one in prompts for prompt in one.prompts for i in range(n_samples)]
    # like lengths together, so that little is read past what a prompt needs
    order = sorted(range(len(wanted)), key=lambda i: len(encoded[wanted[i][1]]))
    grown: dict[int, list[int]] = {}
    for start in range(0, len(order), ROWS_TOGETHER):
        batch = order[start : start + ROWS_TOGETHER]
        uniforms = np.stack([_uniforms(seed, *wanted[i][1:], max_new_tokens) for i in batch])
        new = continue_prompts(
            model,
            [encoded[wanted[i][1]] for i in batch],
            max_new_tokens,
            torch.from_numpy(uniforms),
            temperature=temperature,
            stop_at=stop_ids(model),
        )
        grown |= dict(zip(batch, new, strict=True))
        if on_progress is not None:
            on_progress(len(grown) / len(order))
    return [
        Continuation(
            *wanted[i],
            text=decode_continuation(tokenizer, encoded[wanted[i][1]], grown[i]),
            tokens=tuple(grown[i]),
            is_ended=len(grown[i]) < max_new_tokens,
        )
        for i in range(len(wanted))
    ]


def encode_prompts(model: Any, prompts: Sequence[PromptSet], max_new_tokens: int) -> dict[str, list[int]]:
    """The tokens of every prompt.

    Raises:
        ValueError: no prompt, a model without tokenizer, or a prompt that with max_new_tokens more is longer than the
            model's context.
    """
    if tokenizer_of(model) is None:
        raise ValueError("text_quality: this model has no tokenizer; expected one, prompts are text")
    texts = [prompt for one in prompts for prompt in one.prompts]
    if not texts:
        raise ValueError("prompts: got none; expected at least one")
    encoded = {text: model.to_tokens(text, truncate=False)[0].tolist() for text in texts}
    limit = model.cfg.n_ctx - max_new_tokens
    if limit < 1:
        raise ValueError(
            f"max_new_tokens: got {max_new_tokens}; expected less than the model's n_ctx = {model.cfg.n_ctx}"
        )
    for text, tokens in encoded.items():
        if not 1 <= len(tokens) <= limit:
            raise ValueError(
                f"prompts: {text!r} has {len(tokens)} tokens; "
                f"expected 1 to {limit}, {max_new_tokens} new ones short of "
                f"the model's n_ctx = {model.cfg.n_ctx}"
            )
    return encoded


def _uniforms(seed: int, prompt: str, sample: int, n: int) -> np.ndarray:
    """The n numbers in [0, 1) that one continuation is drawn with."""
    return np.random.default_rng([seed, zlib.crc32(prompt.encode()), sample]).random(n)
