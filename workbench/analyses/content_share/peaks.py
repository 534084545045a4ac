"""Where each feature fires most in each document, kept for the documents in which it fires most strongly.

Of every feature the k strongest documents are kept and as many more as the largest block of documents has: whichever
block is left out, the k strongest of the others are among them. Counts are kept by block.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from sae.stack import StackedSAE
from workbench.analyses.content_share.words import DocumentWindows
from workbench.analyses.sae_train.evaluation import BLOCK_TOKENS
from workbench.models.activations import Positions, Slot, collect
from workbench.models.checks import device_of

ACTS_HELD = 1 << 24  # activations of one forward pass that are held at once
DOCUMENTS_TOGETHER = 8  # documents whose peaks wait for being sorted in


@dataclass(frozen=True)
class Peaks:
    """The strongest documents of every feature, and its strongest token in each."""

    blocks: tuple[int, ...]
    """of each document, its block"""
    values: Float[Tensor, "n_saes d_sae kept"]
    """largest activation in the document, largest first; 0 where it fires in fewer documents"""
    documents: Int64[Tensor, "n_saes d_sae kept"]
    """the document; −1 where the value is 0"""
    places: Int64[Tensor, "n_saes d_sae kept"]
    """the token of the document (the first of equals)"""
    n_active: Float64[Tensor, "block n_saes d_sae"]
    """tokens of each block on which it fires"""
    n_documents: Float64[Tensor, "block n_saes d_sae"]
    """documents of each block in which it fires"""
    is_counted: Bool[Tensor, "window pos"]
    """tokens at which SAEs were measured"""


@torch.no_grad()
def find_peaks(
    model: Any,
    sae: StackedSAE,
    slots: Sequence[Slot],
    windows: DocumentWindows,
    k: int,
    blocks: Sequence[int],
    positions: Positions,
    on_progress: Callable[[float], None] | None = None,
) -> Peaks:
    """One pass over the windows: of every feature the k documents of largest activation, without any one block too, on
    the CPU.

    slots: what each SAE reads; several SAEs may read one slot. blocks: of each document; a single one is not left out.
    """
    unique = list(dict.fromkeys(slots))
    index = torch.tensor([unique.index(slot) for slot in slots])
    n_features, n_ctx = len(slots) * sae.config.d_sae, windows.tokens.shape[1]
    keeper = _Keeper(len(slots), sae.config.d_sae, k, blocks, device_of(sae))
    is_counted = positions.of(windows.tokens) & windows.is_token
    n_rows = max(1, min(4096, ACTS_HELD // n_features) // n_ctx)
    for first in range(0, len(windows.tokens), n_rows):
        batch, counted = windows.tokens[first : first + n_rows], is_counted[first : first + n_rows]
        x = collect(model, batch, unique, first // n_rows)
        acts = torch.empty(len(slots), x.shape[1], sae.config.d_sae, device=keeper.device)
        parts = (x.split(BLOCK_TOKENS, dim=1), acts.split(BLOCK_TOKENS, dim=1))
        for block, out in zip(*parts, strict=True):
            out.copy_(sae.encode(block[index]))
        acts[:, ~counted.flatten().to(acts.device)] = 0
        by_window = rearrange(acts, "sae (row pos) feature -> row sae pos feature", pos=n_ctx)
        for row, own in enumerate(by_window):
            keeper.add(own, windows.document[first + row], windows.start[first + row])
        if on_progress is not None:
            on_progress(min(1.0, (first + n_rows) / len(windows.tokens)))
    return keeper.peaks(is_counted)


class _Keeper:
    """The strongest documents of each feature while windows stream past, those of a document side by side."""

    def __init__(self, n_saes: int, d_sae: int, k: int, blocks: Sequence[int], device: torch.device) -> None:
        self.device = device
        n_blocks = max(blocks) + 1
        largest = max(Counter(blocks).values()) if n_blocks > 1 else 0
        self._blocks, self._n_kept, self._document = tuple(blocks), k + largest, -1
        self._values = torch.zeros(n_saes, d_sae, 0, device=device)
        self._documents = torch.zeros(n_saes, d_sae, 0, dtype=torch.int64, device=device)
        self._places = torch.zeros_like(self._documents)
        self._n_active = torch.zeros(n_blocks, n_saes, d_sae, dtype=torch.float64, device=device)
        self._n_documents = torch.zeros_like(self._n_active)
        self._best = torch.zeros(n_saes, d_sae, device=device)
        self._at = torch.zeros(n_saes, d_sae, dtype=torch.int64, device=device)
        self._waiting: list[tuple[Tensor, int, Tensor]] = []

    def add(self, acts: Float[Tensor, "sae pos feature"], document: int, start: int) -> None:
        """Take the next window; activations are 0 at positions that do not count."""
        if document != self._document:
            self._end_document()
            self._document = document
        self._n_active[self._blocks[document]] += (acts > 0).sum(dim=1)
        largest, where = acts.max(dim=1)
        is_new = largest > self._best
        self._best = torch.where(is_new, largest, self._best)
        self._at = torch.where(is_new, where + start, self._at)

    def _end_document(self) -> None:
        if self._document < 0:
            return
        self._n_documents[self._blocks[self._document]] += self._best > 0
        self._waiting.append((self._best, self._document, self._at))
        self._best, self._at = torch.zeros_like(self._best), torch.zeros_like(self._at)
        if len(self._waiting) == DOCUMENTS_TOGETHER:
            self._sort_in()

    def _sort_in(self) -> None:
        """Keep the strongest; of equal ones the document that came first."""
        best, numbers, at = zip(*self._waiting, strict=True)
        self._waiting.clear()
        values = torch.cat([self._values, torch.stack(best, dim=-1)], dim=-1)
        fresh = torch.tensor(numbers, device=self.device).expand(*values.shape[:2], -1)
        documents = torch.cat([self._documents, fresh], dim=-1)
        places = torch.cat([self._places, torch.stack(at, dim=-1)], dim=-1)
        order = values.argsort(dim=-1, descending=True, stable=True)[..., : self._n_kept]
        self._values = values.gather(-1, order)
        self._documents, self._places = documents.gather(-1, order), places.gather(-1, order)

    def peaks(self, is_counted: Bool[Tensor, "window pos"]) -> Peaks:
        """What is kept of all windows."""
        self._end_document()
        self._document = -1
        if self._waiting:
            self._sort_in()
        documents = self._documents.where(self._values > 0, -1)
        return Peaks(
            self._blocks,
            self._values.cpu(),
            documents.cpu(),
            self._places.cpu(),
            self._n_active.cpu(),
            self._n_documents.cpu(),
            is_counted,
        )
