"""TransformerLens's hook interface, with names checked: a hook that does not exist or never fires is an error."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from transformer_lens import ActivationCache
from transformer_lens.hook_points import HookPoint
from transformer_lens.HookedRootModule import HookedRootModule

# Hooks whose activation is as large as n_heads residual streams: they exist only while watched, and "cache everything"
# does not mean them (TransformerLens keeps them off in the same way, behind config flags).
PER_HEAD_INPUTS = ("hook_attn_in", "hook_q_input", "hook_k_input", "hook_v_input", "hook_mlp_in", "hook_result")


class CheckedHooks(HookedRootModule):
    """A HookedRootModule that answers a wrong hook name with the nearest right ones."""

    def check_hook_names(self, names: Iterable[str]) -> None:
        """Raise ValueError naming the first name that is no hook point, with its nearest neighbours."""
        for name in names:
            if name not in self.hook_dict:
                near = difflib.get_close_matches(name, self.hook_dict, n=3, cutoff=0.4)
                raise ValueError(f"hook {name!r} does not exist; nearest: {', '.join(near) or 'none'}")

    def _enable_hook_with_name(self, name: str, hook: Callable, dir: Any) -> None:
        self.check_hook_names([name])
        super()._enable_hook_with_name(name, hook, dir)

    def add_hook(self, name, hook, *args, **kwargs):  # TransformerLens's signature
        if isinstance(name, str):
            self.check_hook_names([name])
        elif not any(name(n) for n in self.hook_dict):
            raise ValueError("add_hook: the name filter matches no hook point of this model")
        return super().add_hook(name, hook, *args, **kwargs)

    def run_with_hooks(self, *model_args: Any, fwd_hooks=(), bwd_hooks=(), **kwargs: Any) -> Any:
        """Run forward with temporary hooks [(name or predicate, function(tensor, hook))], removed at the end.

        Raises:
            ValueError: for a hook name that does not exist, a predicate that matches none, or a named hook that did
                not fire in this run (for instance behind `stop_at_layer`).
        """
        fired: set[str] = set()
        names = [n for n, _ in fwd_hooks if isinstance(n, str)]
        for name, _ in fwd_hooks:
            if not isinstance(name, str) and not any(name(n) for n in self.hook_dict):
                raise ValueError("run_with_hooks: a name filter matches no hook point of this model")

        def note(tensor: Any, hook: HookPoint) -> None:
            fired.add(str(hook.name))

        watch: list[Any] = [(n, note) for n in names]
        out = super().run_with_hooks(
            *model_args, fwd_hooks=watch + list(fwd_hooks), bwd_hooks=list(bwd_hooks), **kwargs
        )
        _check_fired(names, fired, kwargs)
        return out

    def run_with_cache(
        self, *model_args: Any, names_filter: Any = None, return_cache_object: bool = True, **kwargs: Any
    ):  # type: ignore[override]
        """Run forward and return (output, ActivationCache) of the hooks that `names_filter` selects.

        `names_filter` is a name, a list of names, a predicate, or None for every hook except the per-head inputs and
        results (`hook_result`, `hook_q_input` …), which must be asked for. Other arguments are TransformerLens's.

        Raises:
            ValueError: for a name that does not exist or did not fire, or a predicate that matches none.
        """
        names: list[str] = []
        chosen: Any = names_filter
        if names_filter is None:
            chosen = lambda name: not name.endswith(PER_HEAD_INPUTS)  # noqa: E731
        elif isinstance(names_filter, str) or not callable(names_filter):
            names = [names_filter] if isinstance(names_filter, str) else list(names_filter)
            self.check_hook_names(names)
            chosen = names
        elif not any(names_filter(n) for n in self.hook_dict):
            raise ValueError("run_with_cache: the name filter matches no hook point of this model")
        out, cache = super().run_with_cache(*model_args, names_filter=chosen, **kwargs)
        _check_fired(names, set(cache), kwargs)
        self.is_caching = False
        if not return_cache_object:
            return out, cache
        return out, ActivationCache(cache, self, has_batch_dim=not kwargs.get("remove_batch_dim", False))  # type: ignore[arg-type]


def _check_fired(names: Sequence[str], fired: set[str], kwargs: dict[str, Any]) -> None:
    silent = [n for n in names if n not in fired]
    if silent:
        span = {k: kwargs[k] for k in ("start_at_layer", "stop_at_layer") if kwargs.get(k) is not None}
        where = f" with {', '.join(f'{k} = {v}' for k, v in span.items())}" if span else ""
        raise ValueError(f"hook {silent[0]!r} exists but did not fire in this run{where}")
