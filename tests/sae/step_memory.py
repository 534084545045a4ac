"""What a training step of an SAE holds at once, by the tensors that its operations make."""

from __future__ import annotations

from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from sae import SAEConfig, StackedSAE, loss_and_gradients
from sae.architectures import find_architecture


def count_step_numbers(**config: Any) -> float:
    """Numbers per token and feature that a step holds at its widest moment, counted on 256 tokens and features of one
    SAE of two dimensions, all of whose features are dead where that makes a term. What a single operation holds within
    itself is not counted."""
    own = SAEConfig(n_saes=1, d_in=2, d_sae=256, **config)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 256, 2, generator=generator)
    y = x if find_architecture(own.architecture).reads_pair else None
    sae = StackedSAE(own, generator, data=y)
    dead = torch.ones(1, 256, dtype=torch.bool) if sae.architecture.uses_dead else None
    with _LiveBytes() as live:
        loss_and_gradients(sae, x, torch.ones(1), dead=dead, y=y)
    return live.peak / 4 / 256**2


class _LiveBytes(TorchDispatchMode):
    """Bytes of the tensors that operations within the block made and that are still there; their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {own.untyped_storage()._cdata for own in _tensors((args, kwargs))}
        made = func(*args, **(kwargs or {}))
        for own in _tensors(made):
            storage = own.untyped_storage()
            if storage._cdata not in given:
                self._live[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self._live = {key: own for key, own in self._live.items() if not own[0].expired()}
        self.peak = max(self.peak, sum(n for _, n in self._live.values()))
        return made


def _tensors(given: Any) -> list[torch.Tensor]:
    return [own for own in torch.utils._pytree.tree_leaves(given) if isinstance(own, torch.Tensor)]
