"""Labelled text as windows of tokens, and what a model's hooks show there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.data.monitoring import Span, Target, split_documents_of, token_labels
from workbench.data.tokenizer import text_encoder
from workbench.models.activations import Positions, special_ids
from workbench.models.checks import count_bad, device_of, last_layer, run_watched
from workbench.models.monitor_sites import Site
from workbench.models.tokenizer_files import begin_ids, tokenizer_of

PARTS = ("training", "validation", "test")
BATCH_TOKENS = 4096
MIN_TOKENS = 4  # of a window: a shorter one is left out


@dataclass(frozen=True)
class Windows:
    """Windows of labelled text, shorter ones filled up behind."""

    tokens: Int[Tensor, "window pos"]
    is_token: Bool[Tensor, "window pos"]
    labels: Bool[Tensor, "window pos"]
    part: Int[Tensor, " window"]
    """0, 1, 2: training, validation, test"""
    document: Int[Tensor, " window"]
    """by number"""
    is_first: Bool[Tensor, " window"]
    """whether it begins where its text begins"""

    def take(self, rows: Tensor) -> Windows:
        """Some of the windows."""
        return Windows(*(getattr(self, own.name)[rows] for own in fields(self)))

    def of_part(self, part: int) -> Windows:
        """Those of one part."""
        return self.take((self.part == part).nonzero()[:, 0])

    def __len__(self) -> int:
        return len(self.tokens)


def read_windows(model: Any, target: Target, n_ctx: int, rng: np.random.Generator) -> Windows:
    """A target's texts as windows of n_ctx tokens, each behind what the tokenizer puts before a text; of texts that
    are read to their end as many as they have. Documents are split as `split_documents_of` does.

    Raises:
        ValueError: no window of at least MIN_TOKENS tokens, or a part without positive or without negative tokens.
    """
    tokenizer = tokenizer_of(model)
    lead, encoder = begin_ids(tokenizer), text_encoder(tokenizer)
    part = split_documents_of(target.texts, rng)
    number = {name: i for i, name in enumerate(dict.fromkeys(text.document for text in target.texts))}
    size, rows = n_ctx - len(lead), []
    encodings = encoder.encode_batch([text.text for text in target.texts], add_special_tokens=False)
    for text, own, encoding in zip(target.texts, part.tolist(), encodings, strict=True):
        ids, labels = encoding.ids, token_labels(text.spans, encoding.offsets)
        for start in range(0, len(ids), size) if target.is_whole else (0,):
            end = min(len(ids), start + size)
            if end - start >= MIN_TOKENS:
                rows.append((ids[start:end], labels[start:end], own, number[text.document], start == 0))
    if not rows:
        raise ValueError(f"target: {target.name} has no text of {MIN_TOKENS} tokens; expected some")
    n, width = len(rows), len(lead) + max(len(ids) for ids, *_ in rows)
    tokens = torch.zeros(n, width, dtype=torch.long)
    is_token, labels = torch.zeros(n, width, dtype=torch.bool), torch.zeros(n, width, dtype=torch.bool)
    for row, (ids, own, *_) in enumerate(rows):
        tokens[row, : len(lead) + len(ids)] = torch.tensor([*lead, *ids])
        is_token[row, : len(lead) + len(ids)] = True
        labels[row, len(lead) : len(lead) + len(ids)] = torch.from_numpy(own)
    about = [torch.tensor([row[i] for row in rows]) for i in (2, 3, 4)]
    return Windows(tokens, is_token, labels, *about)


def check_parts(windows: Windows, name: str) -> None:
    """Raise ValueError for a part of the split that has no positive or no negative token."""
    for part, called in enumerate(PARTS):
        own = windows.of_part(part)
        labels = own.labels[own.is_token]
        if not len(labels) or bool(labels.all()) or not bool(labels.any()):
            got = "no" if not len(labels) else "no negative" if bool(labels.all()) else "no positive"
            n = len(own.document.unique())
            raise ValueError(
                f"target: {name} has {got} token in the {called} part, {n} documents; expected both classes in each"
            )


def spread(windows: Windows, n_max: int) -> Windows:
    """So many windows at most, the same share of each part, spread evenly over it."""
    if len(windows) <= n_max:
        return windows
    rows = []
    for part in range(len(PARTS)):
        own = (windows.part == part).nonzero()[:, 0]
        n = max(1, round(n_max * len(own) / len(windows)))
        rows.append(own[torch.arange(n) * len(own) // n] if len(own) else own)
    return windows.take(torch.cat(rows))


@dataclass(frozen=True)
class Tokens:
    """The counted tokens of some windows, one below the other."""

    x: Float[np.ndarray, "n d"]
    """what the site shows"""
    whole: Float[np.ndarray, "n d_in"]
    """the activation that the site is read from: x itself, or what a feature's SAE reads"""
    embedded: Float[np.ndarray, "n d_model"]
    ids: Int[np.ndarray, " n"]
    labels: Bool[np.ndarray, " n"]
    document: Int[np.ndarray, " n"]


@torch.no_grad()
def read_tokens(model: Any, site: Site, windows: Windows) -> Tokens:
    """What the site and the embedding show of the windows' tokens, but position 0 and special ones.

    Raises:
        ValueError: an activation that is nan or infinite, or no token that counts.
    """
    positions = Positions(special_ids(model))
    is_counted = positions.of(windows.tokens) & windows.is_token
    names = list(dict.fromkeys((site.hook, "hook_embed")))
    found: dict[str, list[np.ndarray]] = {"x": [], "whole": [], "embedded": []}
    for batch, counted in _batches(windows.tokens, is_counted):
        seen = run_watched(model, batch.to(device_of(model)), names, last_layer(names))
        if n_bad := count_bad(seen[site.hook]):
            raise ValueError(f"monitor: {site.hook} shows {n_bad} numbers that are nan or inf; expected finite ones")
        own = {"x": site.read(seen[site.hook]), "whole": site.stood_for(seen[site.hook])}
        for name, x in (own | {"embedded": seen["hook_embed"]}).items():
            found[name].append(x[counted.to(x.device)].float().cpu().numpy())
    if not bool(is_counted.any()):
        raise ValueError("monitor: got no token but special ones and position 0; expected others")
    arrays = {name: np.concatenate(parts) for name, parts in found.items()}
    documents = windows.document[:, None].expand_as(windows.tokens)
    about = (windows.tokens, windows.labels, documents)
    return Tokens(arrays["x"], arrays["whole"], arrays["embedded"], *(own[is_counted].numpy() for own in about))


def _batches(tokens: Tensor, is_counted: Tensor) -> Sequence[tuple[Tensor, Tensor]]:
    size = max(1, BATCH_TOKENS // tokens.shape[1])
    return list(zip(tokens.split(size), is_counted.split(size), strict=True))


def text_offsets(tokenizer: Any, ids: Sequence[int]) -> tuple[str, list[Span]]:
    """The text of ids and the characters of each in it: prefixes are decoded, so that bytes that make a character
    together are of the token that completes it."""
    settings = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    whole, ends = tokenizer.decode(list(ids), **settings), [0]
    for n in range(1, len(ids) + 1):
        head = tokenizer.decode(list(ids[:n]), **settings).rstrip("\ufffd")
        ends.append(min(len(whole), max(ends[-1], len(head))))
    ends[-1] = len(whole)
    return whole, list(zip(ends[:-1], ends[1:], strict=True))
