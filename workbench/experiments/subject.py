"""What every experiment asks of its subject and its tokens."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from numbers import Integral, Number
from typing import Any

import torch
from jaxtyping import Int, Int64
from torch import Tensor

_BLOCK = re.compile(r"^blocks\.(\d+)\.")


def device_of(model: Any) -> torch.device:
    """The device of the model's weights."""
    return next(model.parameters()).device


def checked_tokens(who: str, model: Any, tokens: Int[Tensor, "n n_ctx"], min_ctx: int = 1) -> Int64[Tensor, "n n_ctx"]:
    """The tokens as int64 on the CPU.

    Raises:
        ValueError: not integers [n_sequences, n_ctx], no sequence, windows shorter than min_ctx or longer than the
            model's n_ctx, or ids outside its vocabulary.
    """
    cfg = model.cfg
    is_integer = isinstance(tokens, Tensor) and not (tokens.is_floating_point() or tokens.dtype == torch.bool)
    if not is_integer or tokens.ndim != 2 or not len(tokens):
        got = f"shape {list(tokens.shape)} of {tokens.dtype}" if isinstance(tokens, Tensor) else type(tokens).__name__
        raise ValueError(f"{who}: tokens are {got}; want integers [n_sequences, n_ctx], at least one sequence")
    if not min_ctx <= tokens.shape[1] <= cfg.n_ctx:
        raise ValueError(
            f"{who}: windows of {tokens.shape[1]} tokens; want {min_ctx} to the model's n_ctx = {cfg.n_ctx}"
        )
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= cfg.d_vocab:
        raise ValueError(f"{who}: token id {low if low < 0 else high}; want 0 ≤ id < d_vocab = {cfg.d_vocab}")
    return tokens.detach().cpu().long()


def check_hooks(model: Any, names: Sequence[str]) -> None:
    """Raise ValueError for no name, one given twice, and one that is no hook point (the nearest offered)."""
    if isinstance(names, str) or not names:
        raise ValueError(f"hooks: got {names!r}; want a list of at least one hook name")
    for name in names:
        if name not in model.hook_dict:
            near = difflib.get_close_matches(name, model.hook_dict, n=3, cutoff=0.4)
            raise ValueError(f"hook {name!r} does not exist; nearest: {', '.join(near) or 'none'}")
    if len(set(names)) < len(names):
        raise ValueError(f"hooks: got {list(names)}; want each name once")


def last_layer(names: Iterable[str]) -> int | None:
    """The layer before which a forward may stop and still pass all of these hooks; None: it must run to its end."""
    stop = 0
    for name in names:
        if match := _BLOCK.match(name):
            stop = max(stop, int(match[1]) + 1)
        elif name not in ("hook_embed", "hook_pos_embed", "hook_tokens"):
            return None
    return stop


def as_list(what: str, given: Any) -> list[Any]:
    """The things given; one number stands for a list of itself.

    Raises:
        ValueError: a string, which would be read letter by letter, and what is neither a number nor a list.
    """
    if isinstance(given, str | bytes):
        raise ValueError(f"{what}: got the string {given!r:.80}; expected a list")
    if hasattr(given, "tolist"):  # an array, a tensor, or one number of either
        given = given.tolist()
    if isinstance(given, Number):
        return [given]
    if not isinstance(given, Iterable):
        raise ValueError(f"{what}: got {given!r:.80}; expected a list")
    return list(given)


def choose(what: str, given: Sequence[int] | int | None, n: int) -> tuple[int, ...]:
    """The given indices in ascending order, or all n of them for None.

    Raises:
        ValueError: an empty selection, an index that is no integer or not in 0…n−1, one given twice, or a string.
    """
    if given is None:
        return tuple(range(n))
    given = as_list(what, given)
    if not given:
        raise ValueError(f"{what}: got an empty selection; want some of 0…{n - 1}")
    for index in given:
        if isinstance(index, bool) or not isinstance(index, Integral) or not 0 <= int(index) < n:
            raise ValueError(f"{what}: got {index!r}; want 0…{n - 1}")
    if len(set(given)) < len(given):
        raise ValueError(f"{what}: got {list(given)}; want each once")
    return tuple(sorted(int(index) for index in given))
