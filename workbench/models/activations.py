"""Activations as SAEs read them: which hook and head each input is, and shuffled batches of them from a model.

The layout is [slot token d_in]: a slot is one head of one layer, or all of one hook, and every slot of a batch holds
the same tokens in the same order, since they come from the same forward pass.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.models import tokenizer_files
from workbench.models.checks import choose, count_bad, device_of, run_watched

PER_HEAD, CONCATENATED = "z", "z_concat"  # what `hook` may be besides the name of a hook within a block
_ORDER, _ROWS = 0, 1  # streams of the buffer's seed


@dataclass(frozen=True)
class Slot:
    """Where one SAE input comes from."""

    hook_name: str
    """full name of the hook, e.g. blocks.9.attn.hook_z"""
    layer: int
    """layer of the hook"""
    head: int | None = None
    """head of the hook; None for all of it"""

    @property
    def column(self) -> int:
        """The head as tables write it: −1 for all heads together."""
        return -1 if self.head is None else self.head


def choose_slots(
    cfg: Any, layers: Sequence[int] | int | None = None, heads: Sequence[int] | int | str = "all", hook: str = PER_HEAD
) -> list[Slot]:
    """The slots of these layers and heads, layer by layer and head by head.

    Args:
        cfg: a model's configuration; n_layers and n_heads are read.
        layers: all where none are given.
        heads: "all" or a list, for hook "z" alone.
        hook: "z" (attn.hook_z, a slot per head), "z_concat" (all heads' z side by side), or a hook of a block such as
            "hook_resid_post" or "mlp.hook_post".

    Raises:
        ValueError: no layers or heads, one out of range or given twice, or heads for a hook that has none.
    """
    chosen_layers = choose("layers", layers, cfg.n_layers)
    if hook != PER_HEAD:
        if heads != "all":
            raise ValueError(f"heads: got {heads!r} for hook {hook!r}, which is read whole; expected 'all'")
        name = "attn.hook_z" if hook == CONCATENATED else hook
        return [Slot(f"blocks.{layer}.{name}", layer) for layer in chosen_layers]
    if isinstance(heads, str) and heads != "all":
        raise ValueError(f"heads: got {heads!r}; expected 'all' or a list of heads")
    chosen_heads = choose("heads", None if isinstance(heads, str) else heads, cfg.n_heads)
    return [Slot(f"blocks.{layer}.attn.hook_z", layer, head) for layer in chosen_layers for head in chosen_heads]


def special_ids(model: Any) -> frozenset[int]:
    """The ids of the special tokens of the model's tokenizer; none for a model without one."""
    tokenizer = tokenizer_files.tokenizer_of(model)
    return frozenset() if tokenizer is None else tokenizer_files.special_ids(tokenizer)


@dataclass(frozen=True)
class Positions:
    """Which positions of a window are trained and measured on: all but position 0 and special tokens, whose
    activations are outliers in most models (attention rests there); with include_special all."""

    special: frozenset[int] = frozenset()
    """ids of special tokens"""
    include_special: bool = False

    def of(self, tokens: Int[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos"]:
        """True where a token counts; the windows are as the model is given them."""
        return self.among(tokens, torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens))

    def among(self, tokens: Int[Tensor, "*n"], position: Int[Tensor, "*n"]) -> Bool[Tensor, "*n"]:
        """True where a token at that position of its window counts."""
        if self.include_special:
            return torch.ones_like(tokens, dtype=torch.bool)
        special = torch.tensor(sorted(self.special), dtype=tokens.dtype, device=tokens.device)
        return (position > 0) & ~torch.isin(tokens, special)


EVERYWHERE = Positions(include_special=True)


@torch.no_grad()
def collect(
    model: Any, tokens: Int[Tensor, "batch pos"], slots: Sequence[Slot], batch: int = 0
) -> Float[Tensor, "slot tokens d_in"]:
    """Activations of every slot in float32, tokens in the order batch, pos; one forward, stopped at the last layer.

    `batch` is what an error calls these tokens.

    Raises:
        ValueError: a hook that does not exist, slots of unequal width, or an activation that is nan or infinite (hook
            and batch are named).
    """
    (x,) = collect_groups(model, tokens, [slots], batch)
    return x


@torch.no_grad()
def collect_groups(
    model: Any, tokens: Int[Tensor, "batch pos"], groups: Sequence[Sequence[Slot]], batch: int = 0
) -> list[Float[Tensor, "slot tokens d_in"]]:
    """What `collect` gives for each group of slots, from one forward for all; groups may differ in width.

    Raises:
        ValueError: as `collect`.
    """
    every = [slot for slots in groups for slot in slots]
    names = list(dict.fromkeys(slot.hook_name for slot in every))
    found = run_watched(model, tokens.to(device_of(model)), names, max(slot.layer for slot in every) + 1)
    rows = {name: activation.float() for name, activation in found.items()}
    for name, activations in rows.items():
        if n_bad := count_bad(activations):
            raise ValueError(
                f"activations: {name} has {n_bad} nan or inf in batch {batch}; expected finite activations"
            )
    return [_stack(rows, slots) for slots in groups]


def _stack(rows: Mapping[str, Tensor], slots: Sequence[Slot]) -> Float[Tensor, "slot tokens d_in"]:
    parts = [
        rows[slot.hook_name].flatten(2) if slot.head is None else rows[slot.hook_name][:, :, slot.head]
        for slot in slots
    ]
    widths = {part.shape[-1] for part in parts}
    if len(widths) > 1:
        names = list(dict.fromkeys(slot.hook_name for slot in slots))
        raise ValueError(f"activations: hooks {names} are {sorted(widths)} wide; expected one width in a stack")
    return rearrange(torch.stack(parts), "slot batch pos d_in -> slot (batch pos) d_in")


def at(
    is_counted: Bool[Tensor, "batch pos"], x: Float[Tensor, "slot tokens d_in"]
) -> Float[Tensor, "slot counted d_in"]:
    """What `collect` gave of the tokens that count."""
    if bool(is_counted.all()):
        return x
    return x.index_select(1, is_counted.flatten().nonzero().squeeze(1).to(x.device))


class ShuffledActivations:
    """Batches of shuffled activations, as many as are asked for; the i-th is a function of (seed, i) and nothing else.

    Sequences come in a new random order each time through `tokens`. Those of one block (buffer_tokens tokens at
    `positions`, on average) are run through the model, these tokens are permuted in memory, and batches are cut from
    the block; what is left of it, less than a batch, is dropped. So a run that stops after batch i is resumed by asking
    for batch i + 1: at most one block is computed again. All slots of a batch share their tokens.

    Slots of unequal width are given as several groups, which one forward feeds: their batches hold the same tokens in
    the same order, and are those that the group has by itself.

    Memory: n_slots · buffer_tokens · d_in · 4 bytes for each group, whatever the number of tokens.
    """

    def __init__(
        self,
        model: Any,
        tokens: Int[Tensor, "n_sequences n_ctx"],
        *groups: Sequence[Slot],
        batch_size: int,
        buffer_tokens: int,
        model_tokens: int = 4096,
        seed: int = 0,
        positions: Positions = EVERYWHERE,
    ) -> None:
        """groups: slots of one width each. batch_size: tokens in a batch. buffer_tokens: tokens in a block, at least a
        batch. model_tokens: tokens in a forward pass. positions: those whose tokens are given. Raises ValueError for
        tokens that are not [n_sequences, n_ctx], none of them at the positions, or a batch larger than a block."""
        if tokens.ndim != 2 or tokens.is_floating_point() or not tokens.numel():
            raise ValueError(
                f"tokens: got shape {tuple(tokens.shape)} of {tokens.dtype}; expected integers [n_sequences, n_ctx]"
            )
        if batch_size < 1 or buffer_tokens < batch_size:
            raise ValueError(
                f"buffer_tokens: got {buffer_tokens} for batches of {batch_size}; expected at least one batch"
            )
        self._model, self._tokens, self._groups, self._seed = model, tokens, [list(own) for own in groups], seed
        self.batch_size = batch_size
        self._is_counted = positions.of(tokens)
        self._counts = self._is_counted.sum(dim=1)
        self.n_tokens = int(self._counts.sum())
        """tokens at the positions, in all sequences"""
        if not self.n_tokens:
            raise ValueError("tokens: all are special or at position 0; expected others, or include_special")
        self._n_rows = -(-buffer_tokens * len(tokens) // self.n_tokens)  # sequences in a block
        self._n_forward = max(1, model_tokens // tokens.shape[1])
        self._capacity = self._n_rows * int(self._counts.max())  # tokens of the fullest block
        self.batches_per_block = self._capacity // batch_size
        """at most; fewer in a block of sequences with fewer tokens at the positions"""
        self._first = [0]  # number of the first batch of each block, as far as they were asked for
        self._block_index, self._n_in_block = -1, 0
        self._blocks: list[Float[Tensor, "slot tokens d_in"]] = []

    def batch(self, index: int, group: int = 0) -> Float[Tensor, "slot tokens d_in"]:
        """Batch `index` of a group, from 0; a view of the block, good until a batch of another block is asked for."""
        while self._first[-1] <= index:
            n = int(self._counts[self._rows_of(len(self._first) - 1)].sum())
            self._first.append(self._first[-1] + n // self.batch_size)
        block = bisect_right(self._first, index) - 1
        start = (index - self._first[block]) * self.batch_size
        return self.block(block, group)[:, start : start + self.batch_size]

    def block(self, index: int, group: int = 0) -> Float[Tensor, "slot tokens d_in"]:
        """All tokens of a group's block `index`, shuffled; overwritten when another block is asked for."""
        if index != self._block_index:
            self._fill(index)
        return self._blocks[group][:, : self._n_in_block]

    def _fill(self, block: int) -> None:
        rows = self._rows_of(block)
        self._n_in_block = int(self._counts[rows].sum())
        places = torch.from_numpy(self._generator(_ROWS, block).permutation(self._n_in_block))
        start = 0
        parts = rows.split(self._n_forward)
        for number, part in enumerate(parts, start=block * len(parts)):
            found = collect_groups(self._model, self._tokens[part], self._groups, number)
            fresh = [at(self._is_counted[part], x) for x in found]
            if not self._blocks:
                self._blocks = [x.new_empty(x.shape[0], self._capacity, x.shape[2]) for x in fresh]
            for block_of_group, x in zip(self._blocks, fresh, strict=True):
                block_of_group.index_copy_(1, places[start : start + x.shape[1]].to(x.device), x)
            start += fresh[0].shape[1]
        self._block_index = block

    def _rows_of(self, block: int) -> Int[Tensor, "n"]:
        return self._sequences(block * self._n_rows, self._n_rows)

    def _sequences(self, start: int, n: int) -> Int[Tensor, "n"]:
        """Rows of `tokens` at places start … start + n of the endless stream of random orders."""
        size = len(self._tokens)
        rows: list[int] = []
        while len(rows) < n:
            epoch, place = divmod(start + len(rows), size)
            order = self._generator(_ORDER, epoch).permutation(size)
            rows += order[place : place + n - len(rows)].tolist()
        return torch.tensor(rows, dtype=torch.int64)

    def _generator(self, stream: int, index: int) -> np.random.Generator:
        return np.random.default_rng([self._seed, stream, index])
