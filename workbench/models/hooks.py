"""Hook points and the module that holds them: TransformerLens's interface, with names that are checked.

Names, arguments and results are those of its `HookPoint` and `HookedRootModule` (3.9 to 4.x), so that code written for
one runs on the other; its deprecated `cache_all` and `cache_some` and what its bridge adds for itself (conversions,
aliases) are not here. Three things differ. A hook that does not exist, or a named one that does not fire, is an error.
Per-head inputs and results are cached only if named. `pos_slice` slices positions at every hook, also where the axis
behind the position is that of heads.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from numbers import Integral
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

# Hooks whose activation is as large as n_heads residual streams: they exist only while watched, and "cache everything"
# does not mean them (TransformerLens keeps them off in the same way, behind config flags).
PER_HEAD_INPUTS = ("hook_attn_in", "hook_q_input", "hook_k_input", "hook_v_input", "hook_mlp_in", "hook_result")
MAPS = ("hook_attn_scores", "hook_pattern")  # [batch head query key]; everything else has positions behind the batch

Direction = Literal["fwd", "bwd"]
HookFunction = Callable[..., Any]  # (tensor, hook) -> a tensor in its place, or None
NamesFilter = str | Iterable[str] | Callable[[str], bool] | None


@dataclass
class LensHandle:
    """A hook that stands on a point."""

    hook: RemovableHandle
    is_permanent: bool = False
    context_level: int | None = None
    """the depth of nested `hooks` contexts that it belongs to"""
    user_hook: HookFunction | None = None
    """the function as it was given"""

    def is_meant(self, including_permanent: bool, level: int | None) -> bool:
        """Whether a call for hooks of this level (all, with None) means it."""
        if self.is_permanent and not including_permanent:
            return False
        return level is None or self.context_level == level


class HookPoint(nn.Module):
    """The identity, at a place where hooks may read or replace an activation, and its gradient.

    `name` is its path in the model, set by `HookedRootModule.setup`; `ctx` is a dictionary for what hooks keep.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fwd_hooks: list[LensHandle] = []
        self.bwd_hooks: list[LensHandle] = []
        self.ctx: dict[Any, Any] = {}
        self.name: str | None = None

    def forward(self, x: Tensor) -> Tensor:
        """x itself."""
        return x

    def __repr__(self) -> str:
        counts = [f"{len(handles)} {of}" for of, handles in self._handles("both") if handles]
        return f"HookPoint({', '.join(([f'name={self.name!r}'] if self.name else []) + counts)})"

    def _handles(self, dir: Direction | Literal["both"]) -> list[tuple[str, list[LensHandle]]]:
        if dir not in ("fwd", "bwd", "both"):
            raise ValueError(f"dir: got {dir!r}; expected 'fwd', 'bwd' or 'both'")
        return [(of, getattr(self, f"{of}_hooks")) for of in ("fwd", "bwd") if dir in (of, "both")]

    def add_hook(
        self,
        hook: HookFunction,
        dir: Direction = "fwd",
        is_permanent: bool = False,
        level: int | None = None,
        prepend: bool = False,
    ) -> LensHandle:
        """Call hook(tensor, hook=self) with each activation (or, "bwd", gradient); what it returns takes its place.

        prepend: before the hooks that stand there, instead of behind them.
        """
        [(_, handles)] = self._handles(dir)
        if dir == "fwd":

            def run(module: nn.Module, input: Any, output: Tensor) -> Tensor | None:
                return hook(output, hook=self)

            registered = self.register_forward_hook(run, prepend=prepend)
        else:

            def run_backward(module: nn.Module, grad_input: Any, grad_output: Any) -> tuple[Tensor] | None:
                result = hook(grad_output[0], hook=self)
                return result if result is None or isinstance(result, tuple) else (result,)

            registered = self.register_full_backward_hook(run_backward, prepend=prepend)
        handle = LensHandle(registered, is_permanent, level, hook)
        handles.insert(0 if prepend else len(handles), handle)
        return handle

    def add_perma_hook(self, hook: HookFunction, dir: Direction = "fwd") -> LensHandle:
        """A hook that `reset_hooks` leaves unless it is told `including_permanent`."""
        return self.add_hook(hook, dir, is_permanent=True)

    def has_hooks(
        self, dir: Direction | Literal["both"] = "both", including_permanent: bool = True, level: int | None = None
    ) -> bool:
        """Whether any such hook stands here."""
        return any(h.is_meant(including_permanent, level) for _, handles in self._handles(dir) for h in handles)

    def remove_hooks(
        self, dir: Direction | Literal["both"] = "fwd", including_permanent: bool = False, level: int | None = None
    ) -> None:
        """Take these hooks away."""
        for _, handles in self._handles(dir):
            for handle in [h for h in handles if h.is_meant(including_permanent, level)]:
                self._remove(handle, handles)

    @contextmanager
    def watched_by(self, hook: HookFunction) -> Iterator[None]:
        """A hook before all others that stands for a while, whatever else comes and goes."""
        handle = self.add_hook(hook, is_permanent=True, prepend=True)
        try:
            yield
        finally:
            self._remove(handle, self.fwd_hooks)

    @staticmethod
    def _remove(handle: LensHandle, handles: list[LensHandle]) -> None:
        handle.hook.remove()
        handles[:] = [other for other in handles if other is not handle]

    def clear_context(self) -> None:
        """Empty `ctx`."""
        self.ctx = {}

    def layer(self) -> int:
        """The number in a name `blocks.{layer}.…`.

        Raises:
            ValueError: no name, or one of another form.
        """
        if self.name is None:
            raise ValueError("layer: this hook point has no name; expected one in a model")
        return int(self.name.split(".")[1])


class HookedRootModule(nn.Module):
    """A module whose hook points are called by name, and which answers a wrong name with the nearest right ones.

    Hooks are pairs (name or predicate of names, function(tensor, hook)).
    """

    mod_dict: dict[str, nn.Module]
    hook_dict: dict[str, HookPoint]

    def __init__(self, *_: Any) -> None:
        super().__init__()
        self.is_caching = False
        self.context_level = 0

    def setup(self) -> None:
        """Name every module; to be called at the end of a model's `__init__`."""
        self.mod_dict = {name: module for name, module in self.named_modules() if name}
        for name, module in self.mod_dict.items():
            module.name = name  # type: ignore[assignment]  # TransformerLens's custom
        self.hook_dict = {name: module for name, module in self.mod_dict.items() if isinstance(module, HookPoint)}

    def hook_points(self) -> Iterable[HookPoint]:
        """All of them, in the order of `hook_dict`."""
        return self.hook_dict.values()

    # --- names

    def check_hook_names(self, names: Iterable[str]) -> None:
        """Raise ValueError naming the first name that is no hook point, with its nearest neighbours."""
        for name in names:
            if name not in self.hook_dict:
                near = difflib.get_close_matches(name, self.hook_dict, n=3, cutoff=0.4)
                raise ValueError(f"hook {name!r} does not exist; nearest: {', '.join(near) or 'none'}")

    def _chosen(self, names: NamesFilter, who: str) -> list[str]:
        """The hooks that a filter selects, in the model's order.

        Raises:
            ValueError: a name that does not exist, or a predicate that matches none.
        """
        if names is None:
            return list(self.hook_dict)
        if callable(names):
            chosen = [name for name in self.hook_dict if names(name)]
            if not chosen:
                raise ValueError(f"{who}: the name filter matches no hook point of this model")
            return chosen
        wanted = [names] if isinstance(names, str) else list(names)
        self.check_hook_names(wanted)
        return [name for name in self.hook_dict if name in set(wanted)]

    # --- hooks that stay

    def add_hook(
        self,
        name: str | Callable[[str], bool],
        hook: HookFunction,
        dir: Direction = "fwd",
        is_permanent: bool = False,
        level: int | None = None,
        prepend: bool = False,
    ) -> None:
        """Add a hook to the point of that name, or to all whose name the predicate takes.

        Raises:
            ValueError: there is none.
        """
        for chosen in self._chosen(name, "add_hook"):
            self.hook_dict[chosen].add_hook(hook, dir, is_permanent, level, prepend)

    def add_perma_hook(self, name: str | Callable[[str], bool], hook: HookFunction, dir: Direction = "fwd") -> None:
        """A hook that `reset_hooks` leaves unless it is told `including_permanent`."""
        self.add_hook(name, hook, dir, is_permanent=True)

    def list_hooks(
        self,
        name_filter: NamesFilter = None,
        dir: Direction | Literal["both"] = "both",
        including_permanent: bool = True,
    ) -> dict[str, list[LensHandle]]:
        """The hooks that stand on these points, by name; points without any are left out."""
        standing = {
            name: [
                handle
                for _, handles in self.hook_dict[name]._handles(dir)
                for handle in handles
                if handle.is_meant(including_permanent, None)
            ]
            for name in self._chosen(name_filter, "list_hooks")
        }
        return {name: handles for name, handles in standing.items() if handles}

    def remove_all_hook_fns(
        self,
        direction: Direction | Literal["both"] = "both",
        including_permanent: bool = False,
        level: int | None = None,
    ) -> None:
        """Take hooks away from all points."""
        for point in self.hook_points():
            point.remove_hooks(direction, including_permanent, level)

    def clear_contexts(self) -> None:
        """Empty every point's `ctx`."""
        for point in self.hook_points():
            point.clear_context()

    def reset_hooks(
        self,
        clear_contexts: bool = True,
        direction: Direction | Literal["both"] = "both",
        including_permanent: bool = False,
        level: int | None = None,
    ) -> None:
        """Take hooks away from all points, and what they kept."""
        if clear_contexts:
            self.clear_contexts()
        self.remove_all_hook_fns(direction, including_permanent, level)
        self.is_caching = False

    # --- hooks for a while

    @contextmanager
    def hooks(
        self,
        fwd_hooks: Sequence[tuple[str | Callable[[str], bool], HookFunction]] = (),
        bwd_hooks: Sequence[tuple[str | Callable[[str], bool], HookFunction]] = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
    ) -> Iterator[HookedRootModule]:
        """The model with these hooks, which go when the context ends unless `reset_hooks_end` is False.

        Raises:
            ValueError: a name that does not exist, or a predicate that matches none.
        """
        try:
            self.context_level += 1
            for dir, hooks in (("fwd", fwd_hooks), ("bwd", bwd_hooks)):
                for name, hook in hooks:
                    self.add_hook(name, hook, dir, level=self.context_level)  # type: ignore[arg-type]
            yield self
        finally:
            if reset_hooks_end:
                self.reset_hooks(clear_contexts, level=self.context_level)
            self.context_level -= 1

    def run_with_hooks(
        self,
        *model_args: Any,
        fwd_hooks: Sequence[tuple[str | Callable[[str], bool], HookFunction]] = (),
        bwd_hooks: Sequence[tuple[str | Callable[[str], bool], HookFunction]] = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
        **model_kwargs: Any,
    ) -> Any:
        """Run forward with temporary hooks, removed at the end.

        A backward hook needs `reset_hooks_end=False`, or the context `hooks` around the backward pass.

        Raises:
            ValueError: for a hook name that does not exist, a predicate that matches none, or a named hook that did
                not fire in this run (for instance behind `stop_at_layer`).
        """
        if bwd_hooks and reset_hooks_end:
            warnings.warn(
                "run_with_hooks: backward hooks are removed before a backward pass can run; expected "
                "reset_hooks_end=False, or `with model.hooks(bwd_hooks=…)` around both passes",
                stacklevel=2,
            )
        fired: set[str] = set()
        self.check_hook_names(name for name, _ in fwd_hooks if isinstance(name, str))
        names = list(dict.fromkeys(name for name, _ in fwd_hooks if isinstance(name, str)))

        def note(_: Tensor, hook: HookPoint) -> None:
            fired.add(str(hook.name))

        with ExitStack() as watchers:
            for name in names:
                watchers.enter_context(self.hook_dict[name].watched_by(note))
            with self.hooks(fwd_hooks, bwd_hooks, reset_hooks_end, clear_contexts):
                out = self(*model_args, **model_kwargs)
        _check_fired(names, fired, model_kwargs)
        return out

    def get_caching_hooks(
        self,
        names_filter: NamesFilter = None,
        incl_bwd: bool = False,
        device: torch.device | str | None = None,
        remove_batch_dim: bool = False,
        cache: dict[str, Tensor] | None = None,
        pos_slice: Any = None,
    ) -> tuple[dict[str, Tensor], list, list]:
        """(cache, forward hooks, backward hooks) that, once in place, fill cache[name], and cache[name + "_grad"]."""
        store: dict[str, Tensor] = {} if cache is None else cache
        self.is_caching = True

        def save(tensor: Tensor, hook: HookPoint, suffix: str) -> None:
            name = str(hook.name)
            kept = tensor.detach().to(device) if device is not None else tensor.detach()
            kept = _at_positions(kept, pos_slice, 2 if name.endswith(MAPS) else 1)
            if remove_batch_dim:
                if len(kept) != 1:
                    raise ValueError(f"remove_batch_dim: got a batch of {len(kept)} at {name}; expected 1")
                kept = kept[0]
            store[name + suffix] = kept

        chosen = self._chosen(names_filter, "run_with_cache")
        forward = [(name, partial(save, suffix="")) for name in chosen]
        backward = [(name, partial(save, suffix="_grad")) for name in chosen] if incl_bwd else []
        return store, forward, backward

    def add_caching_hooks(
        self,
        names_filter: NamesFilter = None,
        incl_bwd: bool = False,
        device: torch.device | str | None = None,
        remove_batch_dim: bool = False,
        cache: dict[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Put caching hooks in place, to stay until `reset_hooks`, and return the dictionary that later runs fill."""
        store, forward, backward = self.get_caching_hooks(names_filter, incl_bwd, device, remove_batch_dim, cache)
        for dir, hooks in (("fwd", forward), ("bwd", backward)):
            for name, hook in hooks:
                self.add_hook(name, hook, dir)  # type: ignore[arg-type]
        return store

    def run_with_cache(
        self,
        *model_args: Any,
        names_filter: NamesFilter = None,
        device: torch.device | str | None = None,
        remove_batch_dim: bool = False,
        incl_bwd: bool = False,
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
        pos_slice: Any = None,
        return_cache_object: bool = True,
        **model_kwargs: Any,
    ) -> tuple[Any, Any]:
        """Run forward and return (output, activations by hook name) of the hooks that `names_filter` selects.

        Args:
            names_filter: a name, a list of names, a predicate, or None for every hook except the per-head inputs and
                results (`hook_result`, `hook_q_input` …), which must be asked for.
            device: where activations are kept; where they are made by default.
            remove_batch_dim: leave out the batch axis, of a batch of one.
            incl_bwd: run the backward pass of the output, a scalar, as well and keep gradients under name + "_grad".
            pos_slice: positions to keep: one (its axis stays), a `slice`, a tuple of a slice's arguments, or a list or
                array of indices; of attention maps, queries. TransformerLens's `Slice` is taken too.
            return_cache_object: TransformerLens's `ActivationCache`, where that is installed; else a dictionary.

        Raises:
            ValueError: for a name that does not exist or did not fire, or a predicate that matches none.
        """
        if names_filter is None:
            names_filter = lambda name: not name.endswith(PER_HEAD_INPUTS)  # noqa: E731
        elif not isinstance(names_filter, str) and not callable(names_filter):
            names_filter = list(names_filter)
        cache, forward, backward = self.get_caching_hooks(
            names_filter, incl_bwd, device, remove_batch_dim, pos_slice=pos_slice
        )
        with self.hooks(forward, backward, reset_hooks_end, clear_contexts):
            out = self(*model_args, **model_kwargs)
            if incl_bwd:
                out.backward()
        self.is_caching = False
        if not callable(names_filter):
            _check_fired([name for name, _ in forward], set(cache), model_kwargs)
        return out, self._as_cache_object(cache, remove_batch_dim) if return_cache_object else cache

    def _as_cache_object(self, cache: dict[str, Tensor], remove_batch_dim: bool) -> Any:
        try:
            from transformer_lens import ActivationCache  # seconds; only who reads a cache waits for them
        except ModuleNotFoundError as error:
            if error.name != "transformer_lens":
                raise
            return cache
        return ActivationCache(cache, self, has_batch_dim=not remove_batch_dim)  # type: ignore[arg-type]


def _at_positions(x: Tensor, pos_slice: Any, axis: int) -> Tensor:
    pos_slice = getattr(pos_slice, "slice", pos_slice)  # of TransformerLens's Slice
    if isinstance(pos_slice, Integral):
        pos_slice = [int(pos_slice)]
    if pos_slice is None or x.ndim <= axis:
        return x
    if isinstance(pos_slice, tuple):
        pos_slice = slice(*pos_slice)
    return x[(slice(None),) * axis + (pos_slice,)]


def _check_fired(names: Sequence[str], fired: Set[str], model_kwargs: dict[str, Any]) -> None:
    silent = [name for name in names if name not in fired]
    if silent:
        span = {k: model_kwargs[k] for k in ("start_at_layer", "stop_at_layer") if model_kwargs.get(k) is not None}
        where = f" with {', '.join(f'{k} = {v}' for k, v in span.items())}" if span else ""
        raise ValueError(f"hook {silent[0]!r} exists but did not fire in this run{where}")
