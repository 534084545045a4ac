"""Sampling from a model, one token at a time."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.models.layers import KeyValueCache
from workbench.models.recurrence import RecurrentStream


@torch.no_grad()
def generate(
    model: Any,
    tokens: Int[Tensor, "batch pos"],
    max_new_tokens: int = 50,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop_at: int | None = None,
    generator: torch.Generator | None = None,
    use_cache: bool = True,
) -> Int[Tensor, "batch length"]:
    """The prompts with up to max_new_tokens more tokens each, all prompts equally long.

    At temperature 0 the likeliest token is taken. Sequences that have produced `stop_at` are filled with it; when all
    have, generation ends. It ends too at the model's n_ctx. With `use_cache` each token is read once.

    Args:
        temperature: logits are divided by this, ≥ 0.
        top_k: only so many likeliest tokens may be drawn.
        top_p: only the smallest set of likeliest tokens with this much probability, 0 < top_p ≤ 1.
        stop_at: id of the token that ends a sequence (the tokenizer's EOS, say).
        generator: source of the draws, on the CPU; needed at a temperature above 0.

    Raises:
        ValueError: a setting out of its range, an empty or too long prompt, or no generator where one is needed.
    """
    _check(temperature, top_k, top_p, max_new_tokens, generator)
    n_prompt, limit = tokens.shape[1], model.cfg.n_ctx
    if not 1 <= n_prompt < limit:
        raise ValueError(f"generate: the prompt has {n_prompt} tokens; want 1 to {limit - 1}")
    tokens = tokens.to(model.cfg.device)
    end = min(limit, n_prompt + max_new_tokens)
    cache = KeyValueCache(end) if use_cache else None
    is_done = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
    unread = tokens
    while tokens.shape[1] < end and not (stop_at is not None and bool(is_done.all())):
        state = model(unread, return_type=None, past_kv_cache=cache) if use_cache else model(tokens, return_type=None)
        logits = model.to_logits(_last(state))[:, -1].float()
        new = _draw(logits, temperature, top_k, top_p, generator)
        if stop_at is not None:
            new = torch.where(is_done, stop_at, new)
            is_done |= new == stop_at
        unread = new[:, None]
        tokens = torch.cat((tokens, unread), dim=1)
    return tokens


def _last(state: Any) -> Any:
    """The state at the last position only: the unembedding reads no other."""
    if isinstance(state, Tensor):
        return state[:, -1:]
    if isinstance(state, RecurrentStream):
        return RecurrentStream(state.x[:, -1:])
    partial = None if state.partial is None else state.partial[:, -1:]
    return type(state)(tuple(v[:, -1:] for v in state.committed), partial)


def _draw(
    logits: Float[Tensor, "batch d_vocab"],
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    generator: torch.Generator | None,
) -> Int[Tensor, "batch"]:
    if temperature == 0:
        return logits.argmax(-1)
    logits = logits / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        least = logits.topk(top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    probabilities = torch.softmax(logits, dim=-1)
    if top_p is not None and top_p < 1:
        ordered, order = probabilities.sort(dim=-1, descending=True)
        # a token stays while the likelier ones have not yet reached top_p, so the likeliest always does
        dropped = ordered.cumsum(-1) - ordered >= top_p
        probabilities = probabilities.scatter(-1, order, ordered.masked_fill(dropped, 0.0))
    return torch.multinomial(probabilities.cpu(), 1, generator=generator)[:, 0].to(logits.device)


def _check(
    temperature: float, top_k: int | None, top_p: float | None, max_new: int, generator: torch.Generator | None
) -> None:
    if temperature < 0:
        raise ValueError(f"temperature: got {temperature}; want 0 or more")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k: got {top_k}; want 1 or more")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p: got {top_p}; want 0 < top_p ≤ 1")
    if max_new < 1:
        raise ValueError(f"max_new_tokens: got {max_new}; want 1 or more")
    if temperature > 0 and generator is None:
        raise ValueError("generate: no generator given; want a torch.Generator, or temperature 0")
