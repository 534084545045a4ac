"""The text of a measurement in blocks of whole sequences, each of which is left out once.

Blocks are of consecutive sequences, as equal in number as can be: neighbouring windows of one document are alike, and
stay together. Two models that read the same text have the same blocks. Documents that are read each by itself are
sequences too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import TypeVar

N_BLOCKS = 16
MIN_BLOCKS = 8  # below, a standard error over blocks is hardly known

Sums = TypeVar("Sums")


def block_numbers(n_sequences: int) -> tuple[int, ...]:
    """The block of each sequence: 16 blocks, or as many as there are sequences where these are fewer; of fewer than 8
    sequences a single one, which cannot be left out.

    >>> block_numbers(9), block_numbers(3)
    ((0, 1, 2, 3, 4, 5, 6, 7, 8), (0, 0, 0))
    """
    n = min(N_BLOCKS, n_sequences) if n_sequences >= MIN_BLOCKS else 1
    return tuple(i * n // n_sequences for i in range(n_sequences))


def block_runs(numbers: Sequence[int]) -> Iterator[tuple[int, slice]]:
    """Yield each run of equal numbers, and where it is.

    >>> list(block_runs([3, 3, 4]))
    [(3, slice(0, 2, None)), (4, slice(2, 3, None))]
    """
    start = 0
    for number, own in groupby(numbers):
        stop = start + sum(1 for _ in own)
        yield number, slice(start, stop)
        start = stop


def without_each(parts: Sequence[Sums], add: Callable[[Sums, Sums], Sums]) -> Iterator[Sums]:
    """Yield, for each part, the sum of all others: added up and never subtracted, so that no digit is lost. Nothing for
    fewer than 8 parts.

    >>> list(without_each([1, 2, 4, 8, 16, 32, 64, 128], int.__add__))
    [254, 253, 251, 247, 239, 223, 191, 127]
    """
    if len(parts) < MIN_BLOCKS:
        return
    behind = [parts[-1]]
    for own in parts[-2:0:-1]:
        behind.append(add(own, behind[-1]))
    yield behind.pop()
    before = parts[0]
    for own in parts[1:-1]:
        yield add(before, behind.pop())
        before = add(before, own)
    yield before
