"""What every analysis checks of a model and its tokens, and the one way in which it runs the model under hooks."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral, Number
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, Int64
from torch import Tensor

from workbench.models import HookedLM
from workbench.models.hooks import MAPS
from workbench.runs import shorten

Hook = tuple[str, Callable[[Tensor, Any], Tensor | None]]
STREAMS = ("hook_embed", "hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_mlp_out")
_BLOCK = re.compile(r"^blocks\.(\d+)\.")


def device_of(model: Any) -> torch.device:
    """The device of the model's weights."""
    return next(model.parameters()).device


def is_whole(model: Any) -> bool:
    """Whether a model is one of ours on one device, so that analyses may go from layer to layer themselves; others are
    read by hooks alone."""
    return isinstance(model, HookedLM) and not model.is_spread


def check_whole(who: str, model: Any) -> None:
    """Raise ValueError for a model of ours whose layers are on several devices."""
    if not is_whole(model):
        raise ValueError(f"{who}: got a model on several devices; expected one")


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
        raise ValueError(f"{who}: tokens are {got}; expected integers [n_sequences, n_ctx], at least one sequence")
    if not min_ctx <= tokens.shape[1] <= cfg.n_ctx:
        raise ValueError(
            f"{who}: windows of {tokens.shape[1]} tokens; expected {min_ctx} to the model's n_ctx = {cfg.n_ctx}"
        )
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= cfg.d_vocab:
        raise ValueError(f"{who}: token id {low if low < 0 else high}; expected 0 ≤ id < d_vocab = {cfg.d_vocab}")
    return tokens.detach().cpu().long()


def check_hooks(model: Any, names: Sequence[str]) -> None:
    """Raise ValueError for no name, one given twice, and one that is no hook point: what has it is named, that is the
    layers with such a hook where there are some, else the nearest names."""
    if isinstance(names, str) or not names:
        raise ValueError(f"hooks: got {names!r}; expected a list of at least one hook name")
    for name in names:
        if name not in model.hook_dict:
            others = _layers_alike(name, model.hook_dict) if _layer_of(name) in range(model.cfg.n_layers) else []
            near = difflib.get_close_matches(name, model.hook_dict, n=3, cutoff=0.4)
            found = f"expected layers={others}, which have it" if others else f"nearest: {', '.join(near) or 'none'}"
            raise ValueError(f"hook {name!r} does not exist; {found}")
    if len(set(names)) < len(names):
        raise ValueError(f"hooks: got {list(names)}; expected each name once")


def run_hooked(model: Any, tokens: Int[Tensor, "batch pos"], hooks: Sequence[Hook], **span: Any) -> Any:
    """What one forward under the hooks returns. Every hook must be passed exactly once, and show what its name says:
    `hook_z` [batch pos n_heads d_head], a map [batch n_heads query key], a stream [batch pos d_model].

    So nothing that an analysis sums or replaces is left at its initial value, or counted twice.

    Args:
        hooks: (name, function of (tensor, hook)) each; none: a plain forward.
        span: return_type and stop_at_layer, as `run_with_hooks` takes them.

    Raises:
        ValueError: a hook that does not exist, does not fire, fires several times or shows something else; logits that
            are not [batch pos d_vocab]; a model of another library whose own forward fails.
    """
    names = [name for name, _ in hooks]
    if names:
        check_hooks(model, list(dict.fromkeys(names)))
    counts = [0] * len(hooks)
    faults: list[str] = []  # said when the forward is over, so that no model's own error handling takes them

    def counted(index: int) -> Callable[[Tensor, Any], Tensor | None]:
        name, function = hooks[index]

        def call(tensor: Tensor, hook: Any) -> Tensor | None:
            counts[index] += 1
            if fault := _describe_shape(f"hook {name!r}", tensor, _shape_of(name, model.cfg, tokens)):
                faults.append(fault)
                return None
            if not getattr(model, "is_spread", False):
                return function(tensor, hook)
            out = function(tensor.to(device_of(model)), hook)  # analyses combine what layers give on one device
            return None if out is None else out.to(tensor.device)

        return call

    with _in_evaluation(model), _computing_maps(model, names), showing(model, names):
        try:
            # without hooks any model will do that gives logits
            hooked = {"fwd_hooks": [(name, counted(i)) for i, name in enumerate(names)]}
            out = model.run_with_hooks(tokens, **hooked, **span) if hooks else model(tokens, **span)
        except Exception as error:
            if isinstance(model, HookedLM) or isinstance(error, torch.OutOfMemoryError):
                raise
            said = shorten(" ".join(str(error).split()), 300)
            what = f"{type(model).__name__}: its forward failed with {type(error).__name__}: {said}"
            raise ValueError(faults[0] if faults else what) from error
    if not faults and span.get("return_type") == "logits":
        faults += filter(None, [_describe_shape("logits", out, (*tokens.shape, model.cfg.d_vocab))])
    if faults:
        raise ValueError(faults[0])
    _check_counts(names, counts)
    return out


@torch.no_grad()
def run_watched(
    model: Any, tokens: Int[Tensor, "batch pos"], hooks: Sequence[str], stop: int | None
) -> dict[str, Tensor]:
    """What one forward, up to layer `stop` or to its end, passes through each hook; errors as `run_hooked`."""
    found: dict[str, Tensor] = {}

    def keeper(name: str) -> Callable[[Tensor, object], None]:
        def keep(tensor: Tensor, hook: object) -> None:
            found[name] = tensor

        return keep

    # the final norm and the unembedding run only for a hook behind the last block
    span = {"stop_at_layer": stop, "return_type": None} if stop is not None else {"return_type": "logits"}
    run_hooked(model, tokens, [(name, keeper(name)) for name in hooks], **span)
    return {name: found[name] for name in hooks}


def count_bad(values: Tensor) -> int:
    """How many of the values are nan or infinite."""
    # a finite sum is proof at one pass without a mask; a sum can also overflow, so the mask decides
    if bool(values.sum(dtype=torch.float32).isfinite()):
        return 0
    return int((~values.isfinite()).sum())


def check_read(model: Any, tokens: Int[Tensor, "n n_ctx"], names: Sequence[str]) -> None:
    """Raise ValueError for a hook whose value this model's forward does not read: putting another in its place would
    change nothing, and be taken for a measurement. Asked with nan, which passes weights of zero too."""
    few = tokens[:1, :2].to(device_of(model))
    with torch.no_grad():
        for name in names:
            hook = (name, lambda tensor, hook: torch.full_like(tensor, torch.nan))
            if not bool(run_hooked(model, few, [hook], return_type="logits").isnan().any()):
                raise ValueError(f"hook {name!r} fires, but what it returns is not read; expected a hook that is")


def _check_counts(names: Sequence[str], counts: Sequence[int]) -> None:
    for name, count in zip(names, counts, strict=True):
        if count != 1:
            what = "exists but did not fire" if count == 0 else f"fired {count} times in one forward"
            others = _layers_alike(name, (own for own, n in zip(names, counts, strict=True) if n == 1))
            where = f", as in layers={others}" if others else ""
            raise ValueError(f"hook {name!r} {what}; expected one that this model's forward passes once{where}")


def _layer_of(name: str) -> int | None:
    match = _BLOCK.match(name)
    return int(match[1]) if match else None


def _layers_alike(name: str, known: Iterable[str]) -> list[int]:
    """The layers of those hooks that differ from this one in their layer alone."""
    alike = {own for own in known if _BLOCK.sub("", own) == _BLOCK.sub("", name)}
    return sorted(layer for own in alike if (layer := _layer_of(own)) is not None)


def _shape_of(name: str, cfg: Any, tokens: Tensor) -> tuple[int | None, ...] | None:
    """The shape of a hook of a known meaning, None for an axis of any length; None for other hooks."""
    (batch, pos), leaf = tokens.shape, name.rsplit(".", 1)[-1]
    if leaf == "hook_z":
        return batch, pos, cfg.n_heads, None
    if leaf in MAPS:
        return batch, cfg.n_heads, pos, pos
    return (batch, pos, cfg.d_model) if leaf in STREAMS else None


def _describe_shape(what: str, value: Any, shape: tuple[int | None, ...] | None) -> str | None:
    """What is wrong with a value that is no tensor of that shape."""
    if not isinstance(value, Tensor):
        return f"{what}: got a {type(value).__name__}; expected a tensor"
    if shape is None or (
        value.ndim == len(shape) and all(want in (None, got) for want, got in zip(shape, value.shape, strict=True))
    ):
        return None
    wanted = ", ".join("…" if n is None else str(n) for n in shape)
    return f"{what}: got shape {list(value.shape)}; expected [{wanted}]"


@contextmanager
def _in_evaluation(model: Any) -> Iterator[None]:
    """Inside, a model of another library drops nothing out: one that transformers builds is in training mode until it
    is told otherwise. Afterwards every module is in the mode that it was in."""
    wholes = [] if isinstance(model, HookedLM) else [model, getattr(model, "original_model", None)]
    training = [module for whole in wholes if whole is not None for module in whole.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def _computing_maps(model: Any, names: Iterable[str]) -> Iterator[None]:
    """Inside, where a hook is a map, the transformers model behind a bridge computes its maps, as its fused kernels do
    not."""
    inner: Any = getattr(model, "original_model", None)
    if not hasattr(inner, "set_attn_implementation") or not any(name.endswith(MAPS) for name in names):
        yield
        return
    before = inner.config._attn_implementation
    inner.set_attn_implementation("eager")
    try:
        yield
    finally:
        inner.set_attn_implementation(before)


@contextmanager
def showing(model: Any, names: Sequence[str]) -> Iterator[None]:
    """Inside, a model of TransformerLens passes hook_mlp_in where that is among the names; otherwise it does so only if
    its configuration says so."""
    is_needed = any(name.endswith(".hook_mlp_in") for name in names) and hasattr(model, "set_use_hook_mlp_in")
    before = bool(is_needed and model.cfg.use_hook_mlp_in)
    if is_needed:
        model.set_use_hook_mlp_in(True)
    try:
        yield
    finally:
        if is_needed:
            model.set_use_hook_mlp_in(before)


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


def some_of(what: str, given: Any, known: Iterable[str]) -> tuple[str, ...]:
    """The names given, in their order.

    Raises:
        ValueError: none, one that is not known, one given twice, or a string.
    """
    names, known = as_list(what, given), list(known)
    if not names or set(names) - set(known) or len(set(names)) < len(names):
        got = ",".join(map(str, names))
        raise ValueError(f"{what}: got {got!r:.60}; expected some of {', '.join(known)}, each once")
    return tuple(names)


def matching_layer(layer: int, published: int, n_layers: int) -> int:
    """The layer of a model of n_layers whose (layer + 1) / n_layers is nearest to that of a layer of a published one;
    the earlier of two that are equally near."""
    return min(range(n_layers), key=lambda own: (abs((own + 1) * published - (layer + 1) * n_layers), own))


def middle_layer(n_layers: int) -> int:
    """The layer at the depth of layer 14 of 28, where the Kotodama report takes a model's middle."""
    return matching_layer(14, 28, n_layers)


def choose(what: str, given: Sequence[int] | np.ndarray | int | None, n: int) -> tuple[int, ...]:
    """The given indices in ascending order, or all n of them for None.

    Raises:
        ValueError: an empty selection, an index that is no integer or not in 0…n−1, one given twice, or a string.
    """
    if given is None:
        return tuple(range(n))
    given = as_list(what, given)
    if not given:
        raise ValueError(f"{what}: got an empty selection; expected some of 0…{n - 1}")
    for index in given:
        if isinstance(index, bool) or not isinstance(index, Integral) or not 0 <= int(index) < n:
            raise ValueError(f"{what}: got {index!r}; expected 0…{n - 1}")
    if len(set(given)) < len(given):
        raise ValueError(f"{what}: got {list(given)}; expected each once")
    return tuple(sorted(int(index) for index in given))
