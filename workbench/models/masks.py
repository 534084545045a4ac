"""Which keys a query may read: none after it, none before its window, and no padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Int, Integer
from torch import Tensor

PaddingSide = Literal["left", "right"]
AttentionMask = Bool[Tensor, "batch pos"] | Integer[Tensor, "batch pos"]


def causal(n_queries: int, n_keys: int, device: torch.device, window: int | None = None) -> Bool[Tensor, "query key"]:
    """True where a key is not after its query, and among the last `window` up to it; queries are the last positions."""
    queries = torch.arange(n_keys - n_queries, n_keys, device=device)[:, None]
    keys = torch.arange(n_keys, device=device)[None, :]
    return keys <= queries if window is None else (keys <= queries) & (keys > queries - window)


class Padding:
    """Where one forward pass has tokens and where padding, the positions that its cache already holds included.

    Attributes:
        is_token: [batch key], False at padding.
        places: [batch query], how many tokens its text has before each of the new ones: what positional embeddings and
            rotations count by. Padding has the place of the token before it, or 0.
    """

    def __init__(self, is_token: Bool[Tensor, "batch key"], n_queries: int) -> None:
        self.is_token, self._n_queries = is_token, n_queries
        self._places_of_keys = (is_token.long().cumsum(1) - 1).clamp_min(0)
        self.places: Int[Tensor, "batch query"] = self._places_of_keys[:, -n_queries:]
        self._allowed: dict[int | None, Tensor] = {}
        self._elsewhere: dict[torch.device, Padding] = {}

    def allowed(self, window: int | None) -> Bool[Tensor, "batch 1 query key"]:
        """As `causal`, without padding, and a window of so many tokens of the text; made once for all layers.

        Padding reads itself as well: a softmax over no key would be nan, and so would be what follows it.
        """
        if window not in self._allowed:
            n_keys, device = self.is_token.shape[1], self.is_token.device
            itself = causal(self._n_queries, n_keys, device, window=1)
            may = causal(self._n_queries, n_keys, device) & (self.is_token[:, None] | itself)
            if window is not None:
                may &= self._places_of_keys[:, None] > self.places[:, :, None] - window
            self._allowed[window] = may[:, None]
        return self._allowed[window]

    def at(self, device: torch.device) -> Padding:
        """The same padding on another device, made once for each."""
        if device == self.is_token.device:
            return self
        if device not in self._elsewhere:
            self._elsewhere[device] = Padding(self.is_token.to(device), self._n_queries)
        return self._elsewhere[device]

    def pairs(self) -> Bool[Tensor, "batch pairs"]:
        """[batch, pos − 1] of the new positions, where a loss counts: one and the next are tokens, as in
        TransformerLens.

        Raises:
            ValueError: there is no such pair.
        """
        is_new = self.is_token[:, -self._n_queries :]
        is_pair = is_new[:, :-1] & is_new[:, 1:]
        if not bool(is_pair.any()):
            raise ValueError("attention_mask: got no two tokens side by side; expected some, where a loss is wanted")
        return is_pair


def read_padding(
    attention_mask: AttentionMask | None,
    shape: tuple[int, int],
    past: Bool[Tensor, "batch key"] | None = None,
    n_past: int | None = None,
) -> Padding | None:
    """The padding of one forward pass; None where there is none, also under a mask of ones.

    Args:
        attention_mask: of the new positions, 1 or True at a token; none: all are tokens.
        shape: (batch, pos), of the new positions.
        past: as `Padding.is_token`, of what the cache holds; None where that has no padding.
        n_past: how many positions it holds; None without a cache.

    Raises:
        ValueError: a mask of another shape, not of zeros and ones, or of a text without any token (with a cache that
            may still come).
    """
    if attention_mask is None and past is None:
        return None
    n_batch, n_new = shape
    if attention_mask is not None:
        is_token = _checked(attention_mask, (n_batch, n_new))
    else:
        assert past is not None, "returned above"
        is_token = past.new_ones(n_batch, n_new)
    if past is None:
        if bool(is_token.all()):
            return None
        if n_past is None and not bool(is_token.any(1).all()):
            row = is_token.any(1).tolist().index(False)
            raise ValueError(f"attention_mask: got padding alone in row {row}; expected a token in every row")
        past = is_token.new_ones(n_batch, n_past or 0)
    elif len(past) != n_batch:
        raise ValueError(f"past_kv_cache: got {n_batch} sequences; expected {len(past)}, as in earlier calls")
    return Padding(torch.cat((past[:, :n_past], is_token), dim=1), n_new)


def _checked(attention_mask: Tensor, shape: tuple[int, int]) -> Bool[Tensor, "batch pos"]:
    if tuple(attention_mask.shape) != shape:
        got = list(attention_mask.shape)
        raise ValueError(f"attention_mask: got shape {got}; expected [batch pos] = {list(shape)}, as the new tokens")
    if attention_mask.is_floating_point():  # of 0 and −∞, say, which would read as the opposite
        raise ValueError(f"attention_mask: got {attention_mask.dtype}; expected booleans or integers, 1 at a token")
    is_token = attention_mask.bool()
    if bool((attention_mask != is_token).any()):
        wrong = attention_mask[attention_mask != is_token][0].item()
        raise ValueError(f"attention_mask: got the value {wrong}; expected 1 at a token and 0 at padding")
    return is_token


def pad_rows(
    rows: Sequence[Sequence[int]], pad_id: int, side: PaddingSide
) -> tuple[Int[Tensor, "batch pos"], Bool[Tensor, "batch pos"]]:
    """Rows of ids side by side, padded to the longest, and where they have tokens.

    >>> tokens, is_token = pad_rows([[5, 6, 7], [8]], 0, "left")
    >>> tokens.tolist(), is_token.int().tolist()
    ([[5, 6, 7], [0, 0, 8]], [[1, 1, 1], [0, 0, 1]])
    """
    width = max(map(len, rows), default=0)
    tokens = torch.full((len(rows), width), pad_id, dtype=torch.long)
    is_token = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        at = slice(width - len(row), width) if side == "left" else slice(len(row))
        tokens[i, at], is_token[i, at] = torch.tensor(row, dtype=torch.long), True
    return tokens, is_token
