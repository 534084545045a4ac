"""Activations of a model as it computes them: one forward after another, at any hooks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jaxtyping import Int
from torch import Tensor

from workbench.models.checks import check_hooks, checked_tokens, device_of, last_layer, run_watched
from workbench.models.hooks import MAPS

TOKENS_A_BATCH = 8192
MAP_ELEMENTS_A_BATCH = 1 << 26  # of all maps of a batch together: 256 MiB in float32


def stream(
    model: Any, tokens: Int[Tensor, "n n_ctx"], hooks: Sequence[str], batch_size: int | None = None
) -> Iterator[dict[str, Tensor]]:
    """Activations {hook: tensor [batch pos …]} of consecutive sequences, from one forward a batch.

    The forward ends with the last layer that a hook needs. Tensors are the model's own, on its device and in its dtype.

    Args:
        batch_size: sequences per forward; by default about 8,192 tokens, and fewer where maps would take more than
            256 MiB in float32.

    Raises:
        ValueError: a hook that does not exist (the nearest are named) or did not fire, or tokens that do not fit.
    """
    tokens = checked_tokens("stream", model, tokens)
    check_hooks(model, hooks)
    batch_size = default_batch_size(model.cfg, tokens.shape[1], hooks) if batch_size is None else batch_size
    if batch_size < 1:
        raise ValueError(f"batch_size: got {batch_size}; expected at least 1")
    stop = last_layer(hooks)
    for part in tokens.split(batch_size):
        yield run_watched(model, part.to(device_of(model)), hooks, stop)


def default_batch_size(cfg: Any, n_ctx: int, hooks: Sequence[str] = ()) -> int:
    """Sequences of about 8,192 tokens in all, whose maps at these hooks have at most 2²⁶ elements, or one sequence."""
    n_elements = sum(is_map(name) for name in hooks) * cfg.n_heads * n_ctx**2
    size = TOKENS_A_BATCH // n_ctx
    return max(1, min(size, MAP_ELEMENTS_A_BATCH // n_elements) if n_elements else size)


def is_map(name: str) -> bool:
    """Whether a hook shows an attention map, [batch head query key]."""
    return name.endswith(MAPS)


def check_rows(who: str, found: Mapping[str, Tensor], shape: tuple[int, int], n_axes: int = 2) -> None:
    """Raise ValueError naming a hook whose activations are not [batch pos …] of this shape, with n_axes axes
    or more."""
    for name, tensor in found.items():
        if is_map(name):
            raise ValueError(f"{who}: {name} is [batch head query key]; expected a hook with one row per token")
        if tensor.ndim < n_axes or tuple(tensor.shape[:2]) != shape:
            raise ValueError(f"{who}: {name} has shape {list(tensor.shape)}; expected [batch pos …], one row per token")
