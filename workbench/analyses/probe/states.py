"""States of concept words: prompts whose spans are known from how they are built, and the mean state of each word.

A word is put into templates behind what the tokenizer begins a text with, and read at its last token: at `hook_embed`
(layer −1 of every table) and at every `hook_resid_post`, the stream that the unembedding would read there, in every
architecture. Position 0 is never read: whatever stands there is mostly a place for attention to rest, with a state of
its own.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from probes import LowPrecisionWarning, ProbeWarning
from workbench.analyses.probe.settings import TEMPLATES
from workbench.data.concepts import ConceptSet
from workbench.models.checks import as_list, checked_tokens
from workbench.models.streams import stream
from workbench.models.tokenizer_files import begin_ids, tokenizer_of, unknown_id

PLACE = "{X}"
HALF = (torch.bfloat16, torch.float16)
OUTLYING = 3.0  # times the median norm: attention sinks lie far above, other states below
TOKENS_A_BATCH = 2048  # every state of every layer of a batch is held at once


@dataclass(frozen=True)
class Prompt:
    """One word in one template, as tokens."""

    set: str
    word: int
    """index in the set"""
    template: str
    tokens: tuple[int, ...]
    start: int
    """position of the word's first token"""
    stop: int
    """one behind its last; the state is read at stop − 1"""


@dataclass(frozen=True)
class ConceptStates:
    """Mean states over templates of every word: set -> float64 [word, state, d_model], state 0 the embedding's."""

    means: dict[str, Float64[np.ndarray, "word state d_model"]]
    n_outlying: dict[str, Int[np.ndarray, " state"]]
    """of each set, how many single states (a word in a template) are longer than 3 times the median of all sets'"""
    templates: tuple[str, ...]
    """those that were read: the bare word is left out where nothing stands in front of it"""
    n_prompts: int
    n_tokens: int


def state_hooks(model: Any) -> list[str]:
    """The hooks that states are read at, in the order of depth."""
    return ["hook_embed", *(f"blocks.{layer}.hook_resid_post" for layer in range(model.cfg.n_layers))]


def build_prompts(
    tokenizer: Any, sets: Sequence[ConceptSet], templates: Sequence[str] = TEMPLATES
) -> tuple[list[Prompt], tuple[str, ...]]:
    """Every word of every set in every template, and the templates used.

    A tokenizer that begins a text with no token leaves nothing to put in front: then the templates that begin with the
    word are left out, with a warning, for a word of one token would stand at position 0.

    Raises:
        ValueError: a template without exactly one {X}; no template left; a word that the tokenizer cannot place (its
            tokens do not begin and end where the word does, or are unknown), and two words of a set with the same
            tokens.
    """
    templates = as_list("templates", templates)
    if len(templates) == 0:
        raise ValueError(f"templates: got none; expected at least one, with {PLACE}")
    for template in templates:
        if template.count(PLACE) != 1:
            raise ValueError(f"templates: got {template!r}; expected exactly one {PLACE} in each")
    lead = begin_ids(tokenizer)
    used = tuple(t for t in templates if lead or not t.startswith(PLACE))
    if not used:
        raise ValueError(
            "templates: none puts a token in front of the word, and the tokenizer begins a text with none; expected "
            f"one with words before {PLACE}"
        )
    if len(used) < len(templates):
        left_out = ", ".join(repr(t) for t in templates if t not in used)
        message = f"concepts: the tokenizer begins a text with no token; {left_out} left out"
        warnings.warn(message, ProbeWarning, stacklevel=2)
    prompts = []
    for one in sets:
        seen: dict[tuple[tuple[int, ...], ...], str] = {}
        for index, word in enumerate(one.all_words):
            own = [_place(tokenizer, lead, one, index, template) for template in used]
            key = tuple(p.tokens for p in own)
            if key in seen:
                raise ValueError(
                    f"concepts: {one.name}: {seen[key]!r} and {word!r} have the same tokens; expected others"
                )
            seen[key] = word
            prompts += own
    return prompts, used


def _place(tokenizer: Any, lead: list[int], one: ConceptSet, index: int, template: str) -> Prompt:
    """The prompt of a word, its span from the lengths of the beginnings that are tokenized alone.

    The space before a word belongs to the word: byte-level and sentencepiece tokenizers both begin words with it.
    """
    word = one.all_words[index]
    before, after = (part.replace("{category}", one.category) for part in template.split(PLACE))
    head = before.rstrip(" ")
    middle = before[len(head) :] + word
    parts = [_encode(tokenizer, text) for text in (head, head + middle, head + middle + after)]
    start, stop = len(parts[0]), len(parts[1])
    is_exact = parts[1][:start] == parts[0] and parts[2][:stop] == parts[1] and start < stop
    if not is_exact or unknown_id(tokenizer) in parts[1][start:]:
        shown = tokenizer.convert_ids_to_tokens(parts[2])
        raise ValueError(
            f"concepts: {one.name}: the tokenizer cannot place {word!r} in {head + middle + after!r}, tokens {shown}; "
            "expected a word whose tokens begin and end where it does"
        )
    return Prompt(one.name, index, template, (*lead, *parts[2]), len(lead) + start, len(lead) + stop)


def _encode(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False)) if text else []


def concept_states(
    model: Any,
    sets: Sequence[ConceptSet],
    templates: Sequence[str] = TEMPLATES,
    on_progress: Callable[[float], None] | None = None,
) -> ConceptStates:
    """The mean state of every word of every set, all prompts in one harvest: sets together, batched by length.

    Means are sums in float64 of the model's own states. A model that computes in bfloat16 or float16 is warned about:
    distances between near states are then mostly rounding.

    Raises:
        ValueError: a model without tokenizer, prompts longer than its context, and as `build_prompts`.
    """
    tokenizer = required_tokenizer(model)
    prompts, used = build_prompts(tokenizer, sets, templates)
    _warn_half(model)
    hooks = state_hooks(model)
    offset, n_words = {}, 0
    for one in sets:
        offset[one.name], n_words = n_words, n_words + len(one.all_words)
    sums = np.zeros((n_words, len(hooks), model.cfg.d_model))
    norms: list[np.ndarray] = []
    owners: list[str] = []
    by_length: dict[int, list[Prompt]] = {}
    for prompt in prompts:
        by_length.setdefault(len(prompt.tokens), []).append(prompt)
    n_done = 0
    for length, own in sorted(by_length.items()):
        size = max(1, TOKENS_A_BATCH // length)
        for start in range(0, len(own), size):
            batch = own[start : start + size]
            rows = np.array([offset[p.set] + p.word for p in batch])
            places = torch.tensor([p.stop - 1 for p in batch])
            tokens = checked_tokens("concepts", model, torch.tensor([p.tokens for p in batch]))
            states = _states_at(model, tokens, places, hooks)
            np.add.at(sums, rows, states)
            norms.append(np.linalg.norm(states, axis=-1))
            owners += [p.set for p in batch]
            n_done += len(batch)
            if on_progress is not None:
                on_progress(n_done / len(prompts))
    sums /= len(used)
    means = {one.name: sums[offset[one.name] : offset[one.name] + len(one.all_words)] for one in sets}
    lengths = np.concatenate(norms)
    is_outlying = lengths > OUTLYING * np.median(lengths, axis=0)
    outlying = {one.name: is_outlying[np.array(owners) == one.name].sum(axis=0) for one in sets}
    return ConceptStates(means, outlying, used, len(prompts), sum(len(p.tokens) for p in prompts))


def _states_at(
    model: Any, tokens: Int[Tensor, "batch pos"], places: Int[Tensor, " batch"], hooks: list[str]
) -> Float64[np.ndarray, "batch state d_model"]:
    """States of one batch at one position of each sequence."""
    found = next(stream(model, tokens, hooks, len(tokens)))
    rows = torch.arange(len(tokens))
    picked = [found[name][rows.to(found[name].device), places.to(found[name].device)] for name in hooks]
    return torch.stack([p.cpu().double() for p in picked], dim=1).numpy()


def text_states(
    model: Any, tokens: Int[Tensor, "n n_ctx"], n_points: int, seed: int
) -> Float[np.ndarray, "state point d_model"]:
    """States at every hook of up to n_points tokens of a text, drawn from all positions but 0; float32, or float64
    where the model is.

    Raises:
        ValueError: windows of one token.
    """
    tokens = checked_tokens("text_states", model, tokens, min_ctx=2)
    hooks = state_hooks(model)
    n, n_ctx = tokens.shape
    rng = np.random.default_rng([seed, 3])
    n_points = min(n_points, n * (n_ctx - 1))
    chosen = np.sort(rng.choice(n * (n_ctx - 1), n_points, replace=False))
    sequence, position = chosen // (n_ctx - 1), chosen % (n_ctx - 1) + 1
    size = max(1, TOKENS_A_BATCH // n_ctx)
    is_double = next(model.parameters()).dtype == torch.float64
    kind, dtype = (torch.float64, np.float64) if is_double else (torch.float32, np.float32)
    states = np.empty((len(hooks), n_points, model.cfg.d_model), dtype=dtype)
    for start, batch in zip(range(0, n, size), stream(model, tokens, hooks, size), strict=True):
        where = np.flatnonzero((sequence >= start) & (sequence < start + size))
        rows, columns = torch.from_numpy(sequence[where] - start), torch.from_numpy(position[where])
        for index, name in enumerate(hooks):
            tensor = batch[name]
            states[index, where] = tensor[rows.to(tensor.device), columns.to(tensor.device)].to("cpu", kind).numpy()
    return states


def required_tokenizer(model: Any) -> Any:
    """The model's tokenizer. Raises ValueError where it has none."""
    tokenizer = tokenizer_of(model)
    if tokenizer is None:
        raise ValueError("concepts: this model has no tokenizer; expected a model with one")
    return tokenizer


def _warn_half(model: Any) -> None:
    dtype = next(model.parameters()).dtype
    if dtype in HALF:
        short = str(dtype).removeprefix("torch.")
        message = f"concepts: {model.cfg.model_name} computes in {short}; distances of near states are mostly rounding"
        warnings.warn(message, LowPrecisionWarning, stacklevel=3)
