"""How well gzip does on a history of tokens, and how much of that its places owe to each other: automata's measures."""

from __future__ import annotations

import zlib

import numpy as np
from jaxtyping import Int

_GZIP = 31  # window bits that ask zlib for gzip's header and trailer, 18 bytes that count


def gzip_size(tokens: Int[np.ndarray, "..."]) -> int:
    """Bytes of gzip level 9 of the tokens as little-endian int32, row by row."""
    return len(zlib.compress(np.ascontiguousarray(tokens, dtype="<i4").tobytes(), 9, wbits=_GZIP))


def compression_ratio(tokens: Int[np.ndarray, "frame place"]) -> float:
    """`gzip_size` over the four bytes of every token; delimiters must have been left out.

    Even uniform ids below 10,000 come to .6, since two bytes of the four are nearly empty; constant ones to almost 0.
    """
    return gzip_size(tokens) / (4 * tokens.size)


def independence(tokens: Int[np.ndarray, "frame place"], rng: np.random.Generator) -> float:
    """`gzip_size` over that of the same tokens with every place's history rotated in time, each by a random offset.

    A rotated place keeps its states, their frequencies and the order in which they follow one another; what is lost is
    what places do together. So 1, but for chance, where places know nothing of each other: noise of any distribution,
    also one that differs between places or that lasts from frame to frame, and what is frozen. Less where structures
    extend over several places or travel; least where whole frames repeat, unless their period divides the number of
    frames: those are 1 again.
    """
    n_frames, n_places = tokens.shape
    frame = (np.arange(n_frames)[:, None] + rng.integers(n_frames, size=n_places)) % n_frames
    return gzip_size(tokens) / gzip_size(np.take_along_axis(tokens, frame, axis=0))


def is_between(
    tokens: Int[np.ndarray, "frame place"],
    rng: np.random.Generator,
    ratios: tuple[float, float],
    independences: tuple[float, float],
) -> bool:
    """Whether compression ratio and independence are within these edges; the second is measured only where the first
    is."""
    least, largest = independences
    return ratios[0] <= compression_ratio(tokens) <= ratios[1] and least <= independence(tokens, rng) <= largest
