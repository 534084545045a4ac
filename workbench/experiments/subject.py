"""What every experiment asks of its subject and its tokens, and the one way in which it runs it under hooks."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral
from typing import Any

import torch
from jaxtyping import Int, Int64
from torch import Tensor

Hook = tuple[str, Callable[[Tensor, Any], Tensor | None]]
MAPS = ("hook_pattern", "hook_attn_scores")  # [batch head query key]
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
    """Raise ValueError for no name, one given twice, and one that is no hook point: what has it is named, that is the
    layers with such a hook where there are some, else the nearest names."""
    if isinstance(names, str) or not names:
        raise ValueError(f"hooks: got {names!r}; want a list of at least one hook name")
    for name in names:
        if name not in model.hook_dict:
            others = _layers_alike(name, model.hook_dict) if _layer_of(name) in range(model.cfg.n_layers) else []
            near = difflib.get_close_matches(name, model.hook_dict, n=3, cutoff=0.4)
            found = f"expected layers={others}, which have it" if others else f"nearest: {', '.join(near) or 'none'}"
            raise ValueError(f"hook {name!r} does not exist; {found}")
    if len(set(names)) < len(names):
        raise ValueError(f"hooks: got {list(names)}; want each name once")


def run_hooked(model: Any, tokens: Int[Tensor, "batch pos"], hooks: Sequence[Hook], **span: Any) -> Any:
    """What one forward under the hooks returns. Every hook must be passed exactly once, and show what its name says:
    `hook_z` [batch pos n_heads d_head], a map [batch n_heads query key], a stream [batch pos d_model].

    So nothing that an analysis sums or replaces is left at its initial value, or counted twice.

    Args:
        hooks: (name, function of (tensor, hook)) each.
        span: return_type and stop_at_layer, as `run_with_hooks` takes them.

    Raises:
        ValueError: a hook that does not exist, does not fire, fires several times or shows something else.
    """
    names = [name for name, _ in hooks]
    check_hooks(model, list(dict.fromkeys(names)))
    counts = [0] * len(hooks)

    def counted(index: int) -> Callable[[Tensor, Any], Tensor | None]:
        name, function = hooks[index]

        def call(tensor: Tensor, hook: Any) -> Tensor | None:
            counts[index] += 1
            _check_shape(model, name, tensor, tokens)
            return function(tensor, hook)

        return call

    with _computing_maps(model, names):
        try:
            out = model.run_with_hooks(tokens, fwd_hooks=[(name, counted(i)) for i, name in enumerate(names)], **span)
        except (AssertionError, NotImplementedError) as error:  # so TransformerLens refuses hooks that are switched off
            raise ValueError(f"hooks {names}: {error}") from error
    for name, count in zip(names, counts, strict=True):
        if count != 1:
            what = "exists but did not fire" if count == 0 else f"fired {count} times in one forward"
            others = _layers_alike(name, (own for own, n in zip(names, counts, strict=True) if n == 1))
            where = f", as in layers={others}" if others else ""
            raise ValueError(f"hook {name!r} {what}; expected one that this model's forward passes once{where}")
    return out


def _layer_of(name: str) -> int | None:
    match = _BLOCK.match(name)
    return int(match[1]) if match else None


def _layers_alike(name: str, known: Iterable[str]) -> list[int]:
    """The layers of those hooks that differ from this one in their layer alone."""
    alike = {own for own in known if _BLOCK.sub("", own) == _BLOCK.sub("", name)}
    return sorted(layer for own in alike if (layer := _layer_of(own)) is not None)


def _check_shape(model: Any, name: str, tensor: Any, tokens: Tensor) -> None:
    """Raise ValueError unless a hook of a known meaning shows a tensor of that shape."""
    if not isinstance(tensor, Tensor):
        raise ValueError(f"hook {name!r} shows a {type(tensor).__name__}; expected a tensor")
    (batch, pos), leaf = tokens.shape, name.rsplit(".", 1)[-1]
    wanted: tuple[int, ...] | None = None
    if leaf == "hook_z":
        wanted = (batch, pos, model.cfg.n_heads, tensor.shape[-1])
    elif leaf in MAPS:
        wanted = (batch, model.cfg.n_heads, pos, pos)
    elif leaf in ("hook_embed", "hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_mlp_out"):
        wanted = (batch, pos, model.cfg.d_model)
    if wanted is not None and tuple(tensor.shape) != wanted:
        raise ValueError(f"hook {name!r} has shape {list(tensor.shape)} in this model; expected {list(wanted)}")


@contextmanager
def _computing_maps(model: Any, names: Iterable[str]) -> Iterator[None]:
    """Inside, where a hook is a map, the transformers model behind a bridge computes its maps, as its fused kernels do
    not."""
    inner = getattr(model, "original_model", None)
    if not hasattr(inner, "set_attn_implementation") or not any(name.endswith(MAPS) for name in names):
        yield
        return
    before = inner.config._attn_implementation
    inner.set_attn_implementation("eager")
    try:
        yield
    finally:
        inner.set_attn_implementation(before)


def last_layer(names: Iterable[str]) -> int | None:
    """The layer before which a forward may stop and still pass all of these hooks; None: it must run to its end."""
    stop = 0
    for name in names:
        if match := _BLOCK.match(name):
            stop = max(stop, int(match[1]) + 1)
        elif name not in ("hook_embed", "hook_pos_embed", "hook_tokens"):
            return None
    return stop


def choose(what: str, given: Sequence[int] | None, n: int) -> tuple[int, ...]:
    """The given indices in ascending order, or all n of them for None.

    Raises:
        ValueError: an empty selection, an index that is no integer or not in 0…n−1, or one given twice.
    """
    if given is None:
        return tuple(range(n))
    if not len(given):
        raise ValueError(f"{what}: got an empty selection; want some of 0…{n - 1}")
    for index in given:
        if isinstance(index, bool) or not isinstance(index, Integral) or not 0 <= index < n:
            raise ValueError(f"{what}: got {index!r}; want 0…{n - 1}")
    if len(set(given)) < len(given):
        raise ValueError(f"{what}: got {list(given)}; want each once")
    return tuple(sorted(int(index) for index in given))
