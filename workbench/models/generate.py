"""Sampling from a model, one token at a time."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from workbench.models.checks import run_hooked
from workbench.models.gates import Gate
from workbench.models.layers import KeyValueCache
from workbench.models.masks import AttentionMask, read_padding
from workbench.models.tokenizer_files import decode_continuation
from workbench.models.transformer import HookedLM, check_ours, check_tokenized

LOGITS_HELD = 1 << 26  # of whole forward passes: 256 MiB in float32


@torch.no_grad()
def generate(
    model: Any,
    tokens: Int[Tensor, "batch pos"],
    max_new_tokens: int = 50,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop_at: int | Collection[int] | None = None,
    generator: torch.Generator | None = None,
    use_cache: bool = True,
    attention_mask: AttentionMask | None = None,
    gate: Gate | None = None,
) -> Int[Tensor, "batch length"]:
    """The prompts with up to max_new_tokens more tokens each.

    At temperature 0 the likeliest token is taken. A sequence that has produced a token of `stop_at` is padded with it;
    generation ends when all have, or at the model's n_ctx. With `use_cache` a `HookedLM` reads each token once; a model
    by the generic path reads all of them for each new one.

    Prompts of unequal lengths are padded in front, and `attention_mask` says where (`model.to_batch(texts,
    padding_side="left")` gives both; `continue_texts` takes the texts themselves). At temperature 0 each then grows as
    it would alone. Draws are of one generator for the whole batch, so that with other prompts beside it a prompt
    grows otherwise; `continue_prompts` draws each prompt by numbers of its own.

    Args:
        temperature: logits are divided by this, ≥ 0.
        top_k: sample only from this many of the likeliest tokens.
        top_p: sample only from the smallest set of likeliest tokens that hold this much probability, 0 < top_p ≤ 1.
        stop_at: id of the token that ends a sequence, or several (`stop_ids` of the model, say).
        generator: source of randomness, on the CPU; needed at a temperature above 0.
        attention_mask: 1 at the prompts' tokens, 0 at the padding in front of them.
        gate: a monitor armed on this model, which is asked before each new token; a sequence that it stops is padded
            with its last token. What it saw is then its `firings`.

    Raises:
        ValueError: neither a `HookedLM` nor a `Generic`, a setting out of its range, an empty or too long prompt
            (padded ones must leave room for max_new_tokens in n_ctx), no generator where one is needed, padding behind
            a prompt or of a `Generic`, a gate of another model, or as `HookedLM.forward` of a mask.
    """
    check_tokenized("generate", model)
    _check(temperature, top_k, top_p, max_new_tokens)
    if gate is not None and gate.model is not model:
        raise ValueError("generate: got a gate of another model; expected one of this model")
    if temperature > 0 and generator is None:
        raise ValueError("generate: no generator given; expected a torch.Generator, or temperature 0")
    if tokens.ndim != 2:
        raise ValueError(f"generate: the prompts have shape {tuple(tokens.shape)}; expected [batch pos]")
    n_prompt, limit = tokens.shape[1], model.cfg.n_ctx
    if not 1 <= n_prompt < limit:
        raise ValueError(f"generate: the prompt has {n_prompt} tokens; expected 1 to {limit - 1}")
    tokens, end = tokens.to(model.cfg.device), min(limit, n_prompt + max_new_tokens)
    mask = _mask_in_front(attention_mask, tokens, limit - max_new_tokens, limit)
    cache = KeyValueCache(end) if use_cache and isinstance(model, HookedLM) else None
    stops = torch.tensor(sorted(_stops(stop_at)), dtype=torch.long, device=tokens.device)
    is_done = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
    may_end = len(stops) > 0 or gate is not None
    start = 0  # of what is unread
    with nullcontext() if gate is None else gate.armed(n_prompt):
        while tokens.shape[1] < end and not (may_end and bool(is_done.all())):
            unread = tokens if cache is None else tokens[:, start:]
            logits = last_logits(model, unread, cache=cache, attention_mask=mask)[:, -1].float()
            start = tokens.shape[1]
            if gate is not None and bool((is_done := is_done | gate.stopped).all()):
                break
            new = _draw(logits, temperature, top_k, top_p, generator)
            if may_end:
                new = torch.where(is_done, tokens[:, -1], new)
                is_done = is_done | torch.isin(new, stops)
                if gate is not None:
                    gate.end(is_done)
            tokens = torch.cat((tokens, new[:, None]), dim=1)
            if mask is not None:  # a cache keeps it
                mask = F.pad(mask, (0, 1), value=True) if cache is None else None
    return tokens


def continue_texts(
    model: Any,
    texts: Sequence[str],
    max_new_tokens: int = 50,
    *,
    stop_at: int | Collection[int] | None = None,
    **settings: Any,
) -> list[str]:
    """What the model adds to each text, side by side: up to max_new_tokens, or to one of `stop_at`, left out.

    Args:
        model: with a tokenizer.
        stop_at: as for `generate`.
        settings: others of `generate`.

    Raises:
        ValueError: as `generate` and `HookedLM.to_batch`.
    """
    check_ours("continue_texts", model)
    if isinstance(texts, str) or not texts:
        raise ValueError(f"texts: got {texts!r}; expected a list of at least one text")
    tokens, mask = model.to_batch(list(texts), padding_side="left", truncate=False)
    grown = generate(model, tokens, max_new_tokens, stop_at=stop_at, attention_mask=mask, **settings)
    n_prompt, stops = tokens.shape[1], _stops(stop_at)
    return [
        decode_continuation(model.tokenizer, row[n_prompt - n_own : n_prompt], _until(stops, row[n_prompt:]))
        for row, n_own in zip(grown.tolist(), mask.sum(1).tolist(), strict=True)
    ]


def _mask_in_front(
    attention_mask: AttentionMask | None, tokens: Int[Tensor, "batch pos"], n_room: int, limit: int
) -> Bool[Tensor, "batch pos"] | None:
    """Where the prompts have tokens, if there is padding in front of some."""
    if attention_mask is None:
        return None
    shape = (tokens.shape[0], tokens.shape[1])
    padding = read_padding(torch.as_tensor(attention_mask, device=tokens.device), shape)
    if padding is None:
        return None
    is_last = padding.is_token[:, -1]
    if not bool(is_last.all()):
        row = is_last.tolist().index(False)
        raise ValueError(
            f"attention_mask: got padding behind the prompt in row {row}; expected it in front, as "
            "to_batch(texts, padding_side='left') gives it"
        )
    if tokens.shape[1] > n_room:  # the end of n_ctx would cut short the others with the longest
        raise ValueError(
            f"generate: the longest of the padded prompts has {tokens.shape[1]} tokens; expected at most {n_room}, "
            f"max_new_tokens short of the model's n_ctx = {limit}"
        )
    return padding.is_token


@torch.no_grad()
def continue_prompts(
    model: Any,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    uniforms: Float64[Tensor, "prompt max_new_tokens"],
    *,
    temperature: float = 1.0,
    stop_at: int | Collection[int] | None = None,
) -> list[list[int]]:
    """The new tokens of each prompt, up to max_new_tokens or to one of `stop_at`, which is left out; prompts of any
    lengths.

    All are read side by side from position 0, without padding: while the longer ones are still being read, the shorter
    ones grow. Token i of a prompt is where the cumulated probability first exceeds uniforms[prompt, i], so that a
    prompt grows as it would alone (but for what batching changes in the last digits).

    Raises:
        ValueError: as `generate`; a prompt with its new tokens longer than the model's n_ctx; uniforms misshapen.
    """
    check_tokenized("generate", model)
    if not prompts:
        raise ValueError("prompts: got none; expected at least one")
    _check(temperature, None, None, max_new_tokens)
    lengths = [len(prompt) for prompt in prompts]
    limit = model.cfg.n_ctx - max_new_tokens
    if not 1 <= min(lengths) <= max(lengths) <= limit:
        raise ValueError(
            f"prompts: {min(lengths)} to {max(lengths)} tokens long; "
            f"expected 1 to {limit}, {max_new_tokens} new tokens "
            f"short of the model's n_ctx = {model.cfg.n_ctx}"
        )
    if uniforms.shape != (len(prompts), max_new_tokens):
        raise ValueError(f"uniforms: shape {list(uniforms.shape)}; expected {[len(prompts), max_new_tokens]}")
    device = model.cfg.device
    n_given = torch.tensor(lengths, device=device)
    end = max(lengths) + max_new_tokens
    tokens = torch.zeros(len(prompts), end, dtype=torch.long, device=device)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[: len(prompt)] = torch.tensor(prompt)
    stops = _stops(stop_at)
    endings = torch.tensor(sorted(stops), dtype=torch.long, device=device)
    is_done = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    cache = KeyValueCache(end) if isinstance(model, HookedLM) else None
    rows, start = torch.arange(len(prompts)), 0
    for n in range(min(lengths), end):
        logits = last_logits(model, tokens[:, 0 if cache is None else start : n], cache=cache)[:, -1].float()
        start, step = n, (n - n_given).cpu()  # index of the new token in each prompt; below 0 while it is being read
        own = uniforms[rows, step.clamp(0, max_new_tokens - 1)].to(device)
        new = logits.argmax(-1) if temperature == 0 else _draw_at(logits / temperature, own)
        is_growing = n >= n_given
        tokens[:, n] = torch.where(is_growing, new, tokens[:, n])
        is_done |= is_growing & torch.isin(new, endings)
        is_done |= n + 1 - n_given >= max_new_tokens
        if bool(is_done.all()):
            break
    found = [row[n : n + max_new_tokens] for row, n in zip(tokens.tolist(), lengths, strict=True)]
    return [_until(stops, row) for row in found]


def _until(stops: set[int], tokens: list[int]) -> list[int]:
    """The tokens before the first of `stops`."""
    return tokens[: next((i for i, token in enumerate(tokens) if token in stops), len(tokens))]


def _stops(stop_at: int | Collection[int] | None) -> set[int]:
    return set() if stop_at is None else {stop_at} if isinstance(stop_at, int) else set(stop_at)


def _draw_at(logits: Float[Tensor, "batch d_vocab"], uniforms: Float64[Tensor, " batch"]) -> Int[Tensor, " batch"]:
    """The token at which the cumulated probability first exceeds `uniforms`, each in [0, 1)."""
    cumulated = torch.softmax(logits, dim=-1).double().cumsum(-1)
    # by the last sum, not by 1, so that rounding leaves no place behind the last token
    found = torch.searchsorted(cumulated, uniforms[:, None] * cumulated[:, -1:], right=True)[:, 0]
    return found.clamp(max=logits.shape[-1] - 1)  # the product itself may round up to the last sum


def last_logits(
    model: Any,
    tokens: Int[Tensor, "batch pos"],
    n: int = 1,
    cache: KeyValueCache | None = None,
    attention_mask: AttentionMask | None = None,
) -> Float[Tensor, "batch n d_vocab"]:
    """Logits at the last n positions. Of a `HookedLM` no others are made, and with a cache only new tokens are given;
    of a model by the generic path all are, of as many sequences at once as LOGITS_HELD allows."""
    if isinstance(model, HookedLM):
        state = model(tokens, return_type=None, past_kv_cache=cache, attention_mask=attention_mask)
        return model.to_logits(last_positions(state, n))
    if attention_mask is not None:
        raise ValueError("attention_mask: got padding for a model by the generic path; expected prompts of one length")
    size = max(1, LOGITS_HELD // (tokens.shape[1] * model.cfg.d_vocab))
    return torch.cat([run_hooked(model, part, [], return_type="logits")[:, -n:] for part in tokens.split(size)])


def last_positions(state: Any, n: int = 1) -> Any:
    """The state at the last n positions only: the unembedding need read no other."""
    return state[:, -n:] if isinstance(state, Tensor) else state.last(n)


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


def _check(temperature: float, top_k: int | None, top_p: float | None, max_new: int) -> None:
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature: got {temperature}; expected a finite number, 0 or more")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k: got {top_k}; expected 1 or more")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p: got {top_p}; expected 0 < top_p ≤ 1")
    if max_new < 1:
        raise ValueError(f"max_new_tokens: got {max_new}; expected 1 or more")
