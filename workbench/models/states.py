"""Operations on the residual state of any architecture that act alike on every tensor of it: parts of it along batch or
positions, copies, and another state in the place of some positions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from workbench.models.attn_residuals import RoutedStream
from workbench.models.block import Attended, State
from workbench.models.learned_blocks import SegmentedStream
from workbench.models.recurrence import RecurrentStream

AnyState = State | Attended
_STREAMS = ("x", "x0", "value", "start", "summary", "gate", "remaining")


def map_states(function: Callable[..., Tensor], *states: Any) -> Any:
    """The state whose every tensor, [batch pos …], is the function of the same tensor of these states, which belong to
    one place of one model. What a state keeps for a forward pass in common (`SharedMeans`) is not taken over."""
    first = states[0]
    if first is None or isinstance(first, Tensor):
        return None if first is None else function(*states)

    def of(name: str) -> Any:
        return map_states(function, *(getattr(state, name) for state in states))

    if isinstance(first, Attended):
        return Attended(of("running"), of("resid_pre"), of("written"))
    if isinstance(first, RoutedStream):
        sums = zip(*(state.committed for state in states), strict=True)
        return RoutedStream(tuple(function(*own) for own in sums), of("partial"), of("main"))
    if isinstance(first, SegmentedStream):
        sums = torch.stack([function(*own) for own in zip(*(state.sums for state in states), strict=True)])
        return replace(first, sums=sums, partial=of("partial"), main=of("main"))
    assert isinstance(first, RecurrentStream), type(first)
    kept = tuple(
        (own[0][0], function(*(tensor for _, tensor in own)))
        for own in zip(*(state.kept for state in states), strict=True)
    )
    return RecurrentStream(**{name: of(name) for name in _STREAMS}, kept=kept)


def from_position(state: Any, start: int) -> Any:
    """The state at position `start` and those behind it, as views."""
    return map_states(lambda x: x[:, start:], state) if start else state


def repeat_state(state: Any, n: int) -> Any:
    """The state n times over along the batch."""
    return map_states(lambda x: x.repeat(n, *[1] * (x.ndim - 1)), state) if n > 1 else state


def at_positions(state: Any, positions: Tensor) -> Any:
    """The state at one position of each sequence, [batch 1 …]."""
    rows = torch.arange(len(positions), device=positions.device)
    return map_states(lambda x: x[rows, positions][:, None], state)


def exchange(state: Any, other: Any, where: Bool[Tensor, "batch pos"]) -> Any:
    """The state with another in its place where `where` is True."""
    return map_states(lambda x, y: torch.where(where if x.ndim == 2 else where[..., None], y, x), state, other)


def add_written(block: Any, state: Any, change: Tensor) -> Any:
    """The state after a block's attention, had its heads written `change` [batch pos d_model] more: added to the stream,
    or, where a norm stands behind attention, to what heads wrote ahead of it."""
    if isinstance(state, Attended) and state.written is not None:
        written = state.written + change
        return Attended(state.resid_pre + block.behind_attention(written), state.resid_pre, written)
    return state + change
