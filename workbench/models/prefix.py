"""Keys and values of a pass, kept so that others which differ from it only from some position on need not make those
before that position again."""

from __future__ import annotations

import torch
from torch import Tensor

from workbench.models.layers import KeyValueCache


class KeptKeys(KeyValueCache):
    """Records the keys and values of one whole pass, and the sums over positions that a recurrent model's carries read."""

    def __init__(self) -> None:
        super().__init__(capacity=0)

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keep both, which are of all positions."""
        self.pairs[layer] = (k, v)
        return k, v

    def prefix_sum(self, index: int, x: Tensor) -> Tensor:
        """Keep the sums up to each position."""
        self.sums[index] = x.cumsum(1)
        return self.sums[index]

    def before(self, start: int, n: int) -> KeyValueCache | None:
        """What a pass over the positions from `start` on reads of those before, n times over along the batch; None for
        start 0, where nothing is before."""
        return _Before(self, start, n) if start else None


class _Before(KeyValueCache):
    """A cache of the first positions of a kept pass, behind which nothing is stored."""

    def __init__(self, kept: KeptKeys, start: int, n: int) -> None:
        super().__init__(capacity=1 << 62)
        self.kept, self.n, self.length = kept, n, start
        self.start = start

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values of the layer: the kept ones before, and these."""
        first, second = (own[:, : self.start].repeat(self.n, 1, 1, 1) for own in self.kept.pairs[layer])
        return torch.cat((first, k), dim=1), torch.cat((second, v), dim=1)

    def prefix_sum(self, index: int, x: Tensor) -> Tensor:
        """Sums up to each position, those before included."""
        return x.cumsum(1) + self.kept.sums[index][:, self.start - 1 : self.start].repeat(self.n, 1, 1)
