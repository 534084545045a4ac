"""Text to analyse a model on, in its own vocabulary: windows of tokens or documents, by one rule for every analysis.

The text is what the model was trained on where that is known, else the embedded one; its held-out part is the one that
training held out. Windows do not overlap and are spread evenly over it, so that a few come from all of it, and every
model of one text and vocabulary is measured on the same. Nothing is prepended: a window starts wherever it starts.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from workbench.data.corpus import TextSource, as_trained, local_files, read_documents, read_parts
from workbench.data.tokens import TokenFile, held_out_windows, pack_cached
from workbench.models.tokenizer_files import separator_text, tokenizer_of

MAX_N_CTX = 512  # tokens per window of a model that is no run of ours; longer only on request
SPLITS = ("held_out", "train")


def analysis_tokens(
    model: Any,
    data: str | Path | None = None,
    *,
    n_sequences: int,
    n_ctx: int | None = None,
    split: str = "held_out",
    held_out_fraction: float | None = None,
    cache: str | Path | None = None,
) -> Int64[Tensor, "n_sequences n_ctx"]:
    """So many windows of consecutive tokens, none overlapping, spread evenly over the text.

    Args:
        model: its tokenizer is used.
        data: as in a recipe: "embedded", a file, a folder or a hub name; by default what the model was trained on, or
            the embedded text where that is not known.
        n_ctx: tokens per window; see `window_length`.
        split: "held_out" or "train", cut by document as in training.
        held_out_fraction: of the documents; none: as in the training of this model, where `data` is what a run of ours
            was trained on (its official split included), so that held-out text is what it never saw; a twentieth of any
            other text.
        cache: where packed tokens are kept; the user's cache by default.

    Raises:
        ValueError: a model without tokenizer, a tokenizer without a token that ends a text, an unknown split, a window
            longer than the model's context, or a text shorter than the windows asked for.
    """
    if n_sequences < 1:
        raise ValueError(f"n_sequences: got {n_sequences}; expected at least 1")
    text = text_of(model, data)
    if held_out_fraction is not None:
        text = replace(text, held_out_fraction=held_out_fraction, held_out_split=None)
    length, packed = window_length(model, n_ctx), _pack(model, text, split, cache)
    _check_n_windows(packed, text, split, length, n_sequences)
    return held_out_windows(packed, length, n_sequences)


def spread_windows(
    model: Any,
    data: str | None,
    *,
    n_tokens: int | None = None,
    n_sequences: int | None = None,
    n_ctx: int | None = None,
    max_n_ctx: int | None = None,
    split: str = "held_out",
    cache: str | Path | None = None,
) -> Int64[Tensor, "n n_ctx"]:
    """`analysis_tokens` of as many windows as n_tokens make, or n_sequences, but no more than the text has; of all of
    them where neither is given. With n_tokens = 0 none, and no text is read."""
    length = window_length(model, n_ctx, max_n_ctx)
    if n_tokens == 0:
        return torch.zeros(0, length, dtype=torch.int64)
    n_max = n_sequences if n_tokens is None else max(1, n_tokens // length)
    text = text_of(model, data)
    packed = _pack(model, text, split, cache)
    _check_n_windows(packed, text, split, length, 1)
    return held_out_windows(packed, length, n_max)


def _check_n_windows(packed: TokenFile, text: TextSource, split: str, length: int, n_sequences: int) -> None:
    """Raise ValueError for a text that is shorter than so many windows."""
    if (n_windows := packed.n_tokens // length) < n_sequences:
        source = f"{text.source} ({split.replace('_', '-')})"
        raise ValueError(
            f"data: {source} has {packed.n_tokens} tokens, {n_windows} windows of {length}; expected at least "
            f"{n_sequences}"
        )


def spread_documents(
    text: TextSource, tokenizer: Any = None, *, split: str = "held_out", n_bytes: int | None = None
) -> list[str]:
    """The documents of a text, or of its held-out or training part; with n_bytes the beginning of each, the same share
    of all.

    tokenizer: documents of one file are parted where it says that a text ends.

    Raises:
        ValueError: an unknown split, a text that cannot be read, is not UTF-8, or has no held-out part.
    """
    separator = None if tokenizer is None else separator_text(tokenizer)
    return list(_documents(text, _state(text), separator, split, n_bytes))


def text_of(model: Any, data: str | Path | None) -> TextSource:
    """How a model's text is read: `data`, where it is what the model was trained on as then."""
    trained_on: TextSource | None = getattr(model, "trained_on", None)
    if data is None:
        return trained_on or TextSource("embedded")
    return as_trained(data, trained_on)


def window_length(model: Any, n_ctx: int | None, max_n_ctx: int | None = None) -> int:
    """Tokens per window: n_ctx where given, else the model's context, of a model that is no run of ours at most 512;
    and at most max_n_ctx.

    Raises:
        ValueError: not between 2 and the model's n_ctx.
    """
    limit = model.cfg.n_ctx
    default = limit if getattr(model, "trained_on", None) is not None else min(limit, MAX_N_CTX)
    length = min(default, max_n_ctx or default) if n_ctx is None else n_ctx
    if not 2 <= length <= limit:
        raise ValueError(f"n_ctx: got {length}; expected 2 to the model's n_ctx = {limit}")
    return length


# --- reading, remembered: a study reads one text for many jobs


def _pack(model: Any, text: TextSource, split: str, cache: str | Path | None) -> TokenFile:
    tokenizer = tokenizer_of(model)
    if tokenizer is None:
        raise ValueError("data: this model has no tokenizer; expected a model with one, or token ids")
    if split not in SPLITS:
        raise ValueError(f"split: got {split!r}; expected one of {', '.join(SPLITS)}")
    vocabulary = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()
    key = (text, _state(text), vocabulary, separator_text(tokenizer), split, None if cache is None else str(cache))
    if key not in _PACKED:
        documents = read_parts(text, separator_text(tokenizer))[SPLITS[::-1].index(split)]
        while len(_PACKED) >= N_REMEMBERED:
            _PACKED.pop(next(iter(_PACKED)))
        _PACKED[key] = pack_cached(documents, tokenizer, cache)
    return _PACKED[key]


N_REMEMBERED = 8
_PACKED: dict[Any, TokenFile] = {}  # memory-mapped: what is remembered is the place, not the text


def _state(text: TextSource) -> tuple[tuple[str, int, int], ...]:
    """Names, sizes and times of a local text's files: another state is another text."""
    return tuple((str(file), (stat := file.stat()).st_size, stat.st_mtime_ns) for file in local_files(text))


@functools.lru_cache(maxsize=1)
def _documents(
    text: TextSource, state: tuple, separator: str | None, split: str, n_bytes: int | None
) -> tuple[str, ...]:
    if split not in (*SPLITS, "all"):
        raise ValueError(f"split: got {split!r}; expected held_out, train or all")
    if split == "all" and text.held_out_split is None:
        settings = {"text_column": text.text_column, "separator": separator, "documents": text.documents}
        documents = read_documents(text.source, **settings)
    else:
        train, held_out = read_parts(text, separator)
        documents = {"train": train, "held_out": held_out, "all": train + held_out}[split]
    texts = [document.text for document in documents]
    total = sum(len(text.encode()) for text in texts)
    if n_bytes is None or total <= n_bytes:
        return tuple(texts)
    share = n_bytes / total
    return tuple(part for text in texts if (part := text[: int(len(text) * share)]))
