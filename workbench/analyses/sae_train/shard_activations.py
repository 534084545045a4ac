"""Batches of activations from a harvest's shards, in place of a model's forward passes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from einops import rearrange
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from torch import Tensor

from workbench.data.shards import Shard, Shards, check_shard, read_shard
from workbench.models.activations import EVERYWHERE, Positions, Slot
from workbench.models.checks import count_bad


class ShardActivations:
    """Batches of a harvest's rows in the order in which they lie, which the harvest shuffled once; the i-th is a
    function of the shards and i, and nothing else.

    Batch i holds rows i·b … (i+1)·b of the shards' rows at `positions`, laid end to end, over and over. A shard is
    compared with its sha256 whenever it is read. It offers what `ShuffledActivations` does.

    Memory: one shard, and a batch of every group in float32, whatever the number of tokens.
    """

    def __init__(
        self,
        shards: Shards,
        *groups: Sequence[Slot],
        batch_size: int,
        buffer_tokens: int,
        device: torch.device | str = "cpu",
        positions: Positions = EVERYWHERE,
    ) -> None:
        """groups: slots of one width each. batch_size: tokens in a batch. buffer_tokens: tokens that `block` gives.
        positions: those whose rows are given.

        Raises ValueError for a harvest that is not finished or has no row at the positions, or a hook that it does not
        hold.
        """
        if (n_rows := sum(shard.rows for shard in shards.shards)) != shards.n_tokens:
            raise ValueError(
                f"shards: {shards.path} holds {n_rows} of {shards.n_tokens} tokens; "
                f"expected a finished harvest (--resume)"
            )
        for slot in (own for slots in groups for own in slots):
            shape = shards.hooks.get(slot.hook_name)
            if shape is None:
                raise ValueError(
                    f"shards: {shards.path} has no {slot.hook_name!r}; expected some of {', '.join(shards.hooks)}"
                )
            assert slot.head is None or (len(shape) == 2 and slot.head < shape[0]), (slot, shape)
        self._shards, self._groups, self._device = shards, [list(own) for own in groups], device
        self._rows_of = [counted_rows(shards, shard, positions) for shard in shards.shards]
        self.n_tokens = sum(len(rows) for rows in self._rows_of)
        """rows at the positions"""
        if not self.n_tokens:
            raise ValueError(
                f"shards: all tokens of {shards.path} are special or at position 0; expected others, or include_special"
            )
        self._names = list(dict.fromkeys(slot.hook_name for slots in groups for slot in slots))
        self._buffer_tokens = buffer_tokens
        self.batch_size = batch_size
        self._number = -1  # shard held
        self._held: dict[str, Tensor] = {}
        self._taken: tuple[int, int, list[Tensor]] | None = None  # of several groups: the rows taken last, and which

    def batch(self, index: int, group: int = 0) -> Float[Tensor, "slot tokens d_in"]:
        """Batch `index` of a group, from 0, in float32."""
        return self._rows(index * self.batch_size, self.batch_size, str(index))[group]

    def block(self, index: int, group: int = 0) -> Float[Tensor, "slot tokens d_in"]:
        """The `index`-th buffer_tokens rows of a group, or all there are where there are fewer."""
        n = min(self._buffer_tokens, self.n_tokens)
        return self._rows(index * n, n, f"block {index}")[group]

    def _rows(self, start: int, n: int, batch: str) -> list[Float[Tensor, "slot tokens d_in"]]:
        """Of every group; kept where the others' are asked for next, as they may lie in two shards."""
        if len(self._groups) == 1:
            return self._read_rows(start, n, batch)
        if self._taken is None or self._taken[:2] != (start, n):
            self._taken = None  # the old rows go before the new ones come
            self._taken = (start, n, self._read_rows(start, n, batch))
        return self._taken[2]

    def _read_rows(self, start: int, n: int, batch: str) -> list[Float[Tensor, "slot tokens d_in"]]:
        parts: list[list[Tensor]] = []
        while n > 0:
            number, offset = self._find(start % self.n_tokens)
            rows = self._rows_of[number][offset : offset + n]
            n_here = len(rows)
            parts.append(self._take(number, rows, batch))
            start, n = start + n_here, n - n_here
        return [own[0] if len(own) == 1 else torch.cat(own, dim=1) for own in zip(*parts, strict=True)]

    def _find(self, row: int) -> tuple[int, int]:
        """(shard, place among its rows) of a row."""
        for number, rows in enumerate(self._rows_of):
            if row < len(rows):
                return number, row
            row -= len(rows)
        raise AssertionError(f"row {row} lies behind the last shard")

    def _take(self, number: int, rows: Int[Tensor, "n"], batch: str) -> list[Float[Tensor, "slot tokens d_in"]]:
        shard = self._shards.shards[number]
        if number != self._number:
            self._held, self._number = {}, -1  # the old shard goes before the new one comes
            tensors = read_shard(self._shards.path, shard)
            self._held = {name: tensors[name] for name in self._names}
            self._number = number
        for name, held in self._held.items():
            if n_bad := count_bad(held[rows]):
                raise ValueError(
                    f"activations: {name} has {n_bad} nan or inf in batch {batch} ({self._shards.path / shard.file}, "
                    f"rows {rows[0]} to {rows[-1]}); expected finite activations"
                )
        return [self._stack(slots, rows) for slots in self._groups]

    def _stack(self, slots: Sequence[Slot], rows: Int[Tensor, "n"]) -> Float[Tensor, "slot tokens d_in"]:
        own = [self._slice(slot, rows) for slot in slots]
        widths = {part.shape[-1] for part in own}
        if len(widths) > 1:
            names = list(dict.fromkeys(slot.hook_name for slot in slots))
            raise ValueError(f"activations: hooks {names} are {sorted(widths)} wide; expected one width in a stack")
        return torch.stack(own).to(self._device)

    def _slice(self, slot: Slot, rows: Int[Tensor, "n"]) -> Float[Tensor, "tokens d_in"]:
        held = self._held[slot.hook_name][rows]
        return (held.flatten(1) if slot.head is None else held[:, slot.head]).float()


def counted_rows(shards: Shards, shard: Shard, positions: Positions) -> Int[Tensor, "n"]:
    """Rows of a shard whose tokens are at the positions, in order; its activations are not read."""
    if positions.include_special:
        return torch.arange(shard.rows)
    token, position = _columns(shards, shard, "token", "position")
    return positions.among(token, position).nonzero().squeeze(1)


def check_shards(shards: Shards, model_sha256: str, held_out: Int[Tensor, "n n_ctx"]) -> None:
    """Raise ValueError for shards of another model, an altered shard, and a shard that holds a sequence of
    the held-out tokens (named).

    Every shard is read once. Sequences are compared whole, so windows that overlap without being equal pass.
    """
    if shards.model_sha256 != model_sha256:
        raise ValueError(
            f"shards: {shards.path} holds activations of the model with sha256 {shards.model_sha256}; "
            f"expected this model's, {model_sha256}"
        )
    wanted = {row.contiguous().numpy().tobytes() for row in held_out}
    for shard in shards.shards:
        check_shard(shards.path, shard)
        for tokens in shard_sequences(shards, shard):
            if tokens.numpy().tobytes() in wanted:
                raise ValueError(
                    f"shards: {shards.path / shard.file} holds a sequence of the held-out tokens; "
                    f"expected shards of other "
                    "text (harvest --split train)"
                )


def shards_sha256(shards: Shards) -> str:
    """One hash of all shards' contents and their order."""
    return hashlib.sha256("".join(shard.sha256 for shard in shards.shards).encode()).hexdigest()


def shard_sequences(shards: Shards, shard: Shard) -> Int[Tensor, "sequence n_ctx"]:
    """The tokens of a shard, put back in order; its activations are not read."""
    token, sequence, position = _columns(shards, shard, "token", "sequence", "position")
    own = token[(sequence * shards.n_ctx + position).argsort()]
    return rearrange(own, "(sequence pos) -> sequence pos", pos=shards.n_ctx)


def _columns(shards: Shards, shard: Shard, *names: str) -> list[Int[Tensor, "rows"]]:
    file = shards.path / shard.file
    try:
        with safe_open(file, framework="pt") as opened:
            return [opened.get_tensor(name) for name in names]
    except (OSError, SafetensorError) as error:
        raise ValueError(f"shards: {file} cannot be read ({error}); expected the file that the harvest wrote") from None
