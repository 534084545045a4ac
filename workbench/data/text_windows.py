"""Tokens to analyse a model on: windows of a text's held-out part, in the model's own vocabulary."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from workbench.data.corpus import as_trained, read_parts
from workbench.data.tokens import TokenFile, pack_cached
from workbench.models.tokenizer_files import separator_text

MAX_N_CTX = 512  # tokens per window unless told otherwise: the context of the published models; longer only on request
SPLITS = ("held_out", "train")


def analysis_tokens(
    model: Any,
    data: str | Path = "embedded",
    *,
    n_sequences: int,
    n_ctx: int | None = None,
    split: str = "held_out",
    seed: int = 0,
    held_out_fraction: float | None = None,
    cache: str | Path | None = None,
) -> Int64[Tensor, "n_sequences n_ctx"]:
    """Windows of consecutive tokens, none overlapping, spread evenly over the text: the same for every model of one
    vocabulary.

    The packed text is cut into windows; these are cut into n_sequences equal runs, and one window is drawn of each, so
    that a few windows still come from all of the text. Nothing is prepended: a window starts wherever it starts.

    Args:
        model: its tokenizer is used.
        data: as in a recipe: "embedded", a file, a folder or a hub name.
        n_ctx: tokens per window; the model's n_ctx, at most 512, by default.
        split: "held_out" or "train", cut by document as in training.
        seed: which window of each run.
        held_out_fraction: of the documents; none: as in the training of this model, where `data` is what a run of ours
            was trained on (its official split included), so that held-out text is what it never saw; a twentieth of any
            other text.
        cache: where packed tokens are kept; the user's cache by default.

    Raises:
        ValueError: a model without tokenizer, a tokenizer without a token that ends a text, an unknown split, a window
            longer than the model's context, or a text shorter than the windows asked for.
    """
    tokenizer = getattr(model, "tokenizer", None)
    if tokenizer is None:
        raise ValueError("data: this model has no tokenizer; expected a model with one, or token ids")
    if split not in SPLITS:
        raise ValueError(f"split: got {split!r}; expected one of {', '.join(SPLITS)}")
    length = window_length(model, n_ctx)
    if n_sequences < 1:
        raise ValueError(f"n_sequences: got {n_sequences}; expected at least 1")
    text = as_trained(data, getattr(model, "trained_on", None))
    if held_out_fraction is not None:
        text = replace(text, held_out_fraction=held_out_fraction, held_out_split=None)
    train, held_out = read_parts(text, separator_text(tokenizer))
    packed = pack_cached(train if split == "train" else held_out, tokenizer, cache)
    return _draw_windows(packed, n_sequences, length, seed, f"{data} ({split.replace('_', '-')})")


def window_length(model: Any, n_ctx: int | None) -> int:
    """Tokens a window: n_ctx where given, else the model's, at most 512.

    Raises:
        ValueError: not between 2 and the model's n_ctx.
    """
    limit = model.cfg.n_ctx
    length = min(limit, MAX_N_CTX) if n_ctx is None else n_ctx
    if not 2 <= length <= limit:
        raise ValueError(f"n_ctx: got {length}; expected 2 to the model's n_ctx = {limit}")
    return length


def _draw_windows(packed: TokenFile, n: int, n_ctx: int, seed: int, source: str) -> Int64[Tensor, "n n_ctx"]:
    n_windows = packed.n_tokens // n_ctx
    if n_windows < n:
        raise ValueError(
            f"data: {source} has {packed.n_tokens} tokens, {n_windows} windows of {n_ctx}; expected at least {n}"
        )
    edges = np.arange(n + 1) * n_windows // n
    draws = np.random.default_rng(seed).random(n)
    starts = (edges[:-1] + np.floor(draws * np.diff(edges)).astype(np.int64)) * n_ctx
    return torch.from_numpy(packed.tokens[starts[:, None] + np.arange(n_ctx)].astype(np.int64))
