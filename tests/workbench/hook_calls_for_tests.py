"""One list of calls of the hook interface, to be run on our classes and on TransformerLens's: what each call answers.

Run as a script, it prints TransformerLens's answers as JSON: those of the version that is found first.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn


def toy(hooks: ModuleType) -> Any:
    """Two blocks over [batch pos 4], with hooks of streams, heads and maps; equal weights whatever the classes."""

    class Attention(nn.Module):
        def __init__(self, weight: Tensor) -> None:
            super().__init__()
            self.W = nn.Parameter(weight)
            self.hook_z, self.hook_pattern = hooks.HookPoint(), hooks.HookPoint()

        def forward(self, x: Tensor) -> Tensor:
            pattern = self.hook_pattern(torch.softmax(x @ x.mT, -1)[:, None])
            z = self.hook_z((pattern[:, 0] @ x @ self.W).unflatten(-1, (2, 2)))
            return z.flatten(2)

    class Block(nn.Module):
        def __init__(self, weight: Tensor) -> None:
            super().__init__()
            self.attn = Attention(weight)
            self.hook_resid_pre, self.hook_resid_post = hooks.HookPoint(), hooks.HookPoint()

        def forward(self, x: Tensor) -> Tensor:
            x = self.hook_resid_pre(x)
            return self.hook_resid_post(x + self.attn(x))

    class Toy(hooks.HookedRootModule):
        def __init__(self) -> None:
            super().__init__()
            generator = torch.Generator().manual_seed(0)
            self.hook_embed = hooks.HookPoint()
            self.blocks = nn.ModuleList(Block(torch.randn(4, 4, generator=generator) / 2) for _ in range(2))
            self.setup()

        def forward(self, x: Tensor, scalar: bool = False) -> Tensor:
            x = self.hook_embed(x)
            for block in self.blocks:
                x = block(x)
            return x.square().mean() if scalar else x

    return Toy()


def inputs(n: int = 2) -> Tensor:
    """[n 3 4], small integers over four."""
    return (torch.arange(n * 12) % 7).reshape(n, 3, 4) / 4


def plain(x: Any) -> Any:
    """Tensors as lists, so that answers can be written down and compared."""
    if isinstance(x, Tensor):
        return [list(x.shape), str(x.dtype), [round(v, 6) for v in x.detach().double().flatten().tolist()]]
    if isinstance(x, dict):
        return {str(name): plain(value) for name, value in x.items()}
    return [plain(value) for value in x] if isinstance(x, list | tuple) else x


Call = Callable[[Any], Any]
CALLS: dict[str, Call] = {}


def call(f: Call) -> Call:
    """A call of the list, by its name."""
    CALLS[f.__name__] = f
    return f


def standing(model: Any) -> dict[str, list[int]]:
    """How many hooks stand on each point, forward and backward."""
    return {name: [len(p.fwd_hooks), len(p.bwd_hooks)] for name, p in model.hook_dict.items()}


@call
def names(model: Any) -> Any:
    return [list(model.hook_dict), sorted(model.mod_dict), [p.name for p in model.hook_points()]]


@call
def layers(model: Any) -> Any:
    return [p.layer() for name, p in model.hook_dict.items() if name.startswith("blocks.")]


@call
def a_hook_that_reads(model: Any) -> Any:
    seen: list[Any] = []
    out = model.run_with_hooks(
        inputs(), fwd_hooks=[("blocks.1.attn.hook_z", lambda x, hook: seen.append((hook.name, x)))]
    )
    return [out, seen, standing(model)]


@call
def a_hook_that_replaces(model: Any) -> Any:
    def zero(x: Tensor, hook: Any) -> Tensor:
        return torch.zeros_like(x)

    return model.run_with_hooks(inputs(), fwd_hooks=[("blocks.0.attn.hook_z", zero)])


@call
def a_hook_that_writes(model: Any) -> Any:
    def write(x: Tensor, hook: Any) -> None:
        x[:, 0] = 1.0

    return model.run_with_hooks(inputs(), fwd_hooks=[("blocks.0.attn.hook_z", write)])


@call
def several_hooks_in_order(model: Any) -> Any:
    double, add = (lambda x, hook: 2 * x), (lambda x, hook: x + 1)
    name = "blocks.0.hook_resid_pre"
    return [
        model.run_with_hooks(inputs(), fwd_hooks=hooks)
        for hooks in ([(name, double), (name, add)], [(name, add), (name, double)])
    ]


@call
def a_predicate(model: Any) -> Any:
    order: list[str] = []
    model.run_with_hooks(
        inputs(), fwd_hooks=[(lambda name: "hook_resid" in name, lambda x, hook: order.append(hook.name))]
    )
    return order


@call
def hooks_that_stay(model: Any) -> Any:
    model.run_with_hooks(inputs(), fwd_hooks=[("hook_embed", lambda x, hook: x + 1)], reset_hooks_end=False)
    before = [standing(model), model(inputs())]
    model.reset_hooks()
    return [*before, standing(model), model(inputs())]


@call
def nested_contexts(model: Any) -> Any:
    note = lambda x, hook: None  # noqa: E731
    counts = []
    with model.hooks(fwd_hooks=[("hook_embed", note)]):
        with model.hooks(
            fwd_hooks=[("hook_embed", note), (lambda name: "attn" in name, note)], bwd_hooks=[("hook_embed", note)]
        ):
            counts.append([standing(model), model.context_level])
        counts.append([standing(model), model.context_level])
    return [*counts, standing(model), model.context_level]


@call
def a_hook_that_fails(model: Any) -> Any:
    def fail(x: Tensor, hook: Any) -> None:
        raise RuntimeError("of the user's")

    try:
        model.run_with_hooks(inputs(), fwd_hooks=[("blocks.0.hook_resid_pre", fail)])
    except RuntimeError as error:
        return [str(error), standing(model), model.context_level]


@call
def permanent_hooks(model: Any) -> Any:
    model.add_perma_hook("hook_embed", lambda x, hook: x + 1)
    model.add_hook(lambda name: name.endswith("hook_z"), lambda x, hook: 2 * x)
    steps = [[standing(model), model(inputs())]]
    model.reset_hooks()
    steps.append([standing(model), model(inputs())])
    with model.hooks(fwd_hooks=[("hook_embed", lambda x, hook: 3 * x)]):
        steps.append([standing(model), model(inputs())])
    model.reset_hooks(including_permanent=True)
    return [*steps, standing(model), model(inputs())]


@call
def prepended_hooks(model: Any) -> Any:
    order: list[int] = []
    for i, first in enumerate((False, False, True)):
        model.add_hook("hook_embed", lambda x, hook, i=i: order.append(i), prepend=first)
    model(inputs())
    point = model.hook_dict["hook_embed"]
    return [order, [handle.context_level for handle in point.fwd_hooks], [h.is_permanent for h in point.fwd_hooks]]


@call
def levels(model: Any) -> Any:
    note = lambda x, hook: None  # noqa: E731
    for level in (None, 1, 2):
        model.add_hook("hook_embed", note, level=level)
    point = model.hook_dict["hook_embed"]
    counts = [[point.has_hooks(level=level) for level in (None, 1, 2, 3)]]
    model.reset_hooks(level=1)
    counts.append([point.has_hooks(level=level) for level in (None, 1, 2, 3)])
    point.remove_hooks("both")
    return [*counts, point.has_hooks()]


@call
def directions(model: Any) -> Any:
    note = lambda x, hook: None  # noqa: E731
    model.add_hook("hook_embed", note)
    model.add_hook("hook_embed", note, dir="bwd")
    point, found = model.hook_dict["hook_embed"], []
    for dir in ("fwd", "bwd", "both"):
        found.append([point.has_hooks(dir), {name: len(own) for name, own in model.list_hooks(dir=dir).items()}])
    model.remove_all_hook_fns("bwd")
    found.append(standing(model))
    point.remove_hooks()
    return [*found, standing(model), model.list_hooks()]


@call
def listed_hooks(model: Any) -> Any:
    note = lambda x, hook: None  # noqa: E731
    model.add_hook(lambda name: "blocks.0" in name, note)
    model.add_perma_hook("hook_embed", note)
    filters = (None, "hook_embed", ["hook_embed", "blocks.0.attn.hook_z"], lambda name: "attn" in name)
    return [
        {name: len(own) for name, own in model.list_hooks(chosen, including_permanent=permanent).items()}
        for chosen in filters
        for permanent in (True, False)
    ]


@call
def gradients_read(model: Any) -> Any:
    seen: list[Any] = []
    hooks = [(lambda name: "hook_z" in name, lambda grad, hook: seen.append([hook.name, grad]))]
    with model.hooks(bwd_hooks=hooks):
        model(inputs(), scalar=True).backward()
    return [seen, [p.grad for p in model.parameters()]]


@call
def gradients_replaced(model: Any) -> Any:
    for result in (lambda grad, hook: 2 * grad, lambda grad, hook: (3 * grad,)):
        model.add_hook("blocks.0.hook_resid_post", result, dir="bwd")
    model(inputs(), scalar=True).backward()
    return [p.grad for p in model.parameters()]


@call
def caches(model: Any) -> Any:
    filters = (None, "hook_embed", ["blocks.0.attn.hook_z", "hook_embed"], lambda name: "pattern" in name)
    found = []
    for chosen in filters:
        out, cache = model.run_with_cache(inputs(), names_filter=chosen)
        found.append([out, dict(cache), standing(model)])
    return found


@call
def a_cache_of_gradients(model: Any) -> Any:
    out, cache = model.run_with_cache(inputs(), True, names_filter=lambda name: "hook_z" in name, incl_bwd=True)
    return [out, dict(cache)]


@call
def a_cache_without_batch(model: Any) -> Any:
    return dict(model.run_with_cache(inputs(1), remove_batch_dim=True)[1])


@call
def a_cache_elsewhere(model: Any) -> Any:
    return dict(model.run_with_cache(inputs(), device="cpu", names_filter="hook_embed")[1])


@call
def positions(model: Any) -> Any:
    slices = (0, -1, (1,), (1, 3), (0, 3, 2), [0, 2], torch.tensor([2, 0]), slice(1, None))
    return [
        dict(model.run_with_cache(inputs(1), pos_slice=own, remove_batch_dim=no_batch)[1])
        for own in slices
        for no_batch in (False, True)
    ]


@call
def caching_hooks_that_stay(model: Any) -> Any:
    mine: dict[str, Tensor] = {}
    cache = model.add_caching_hooks("blocks.0.attn.hook_z", cache=mine)
    flag = model.is_caching
    model(inputs())
    first = dict(cache)
    model.reset_hooks()
    model(inputs(1))
    return [cache is mine, flag, first, dict(cache), model.is_caching]


@call
def hooks_for_a_cache(model: Any) -> Any:
    cache, forward, backward = model.get_caching_hooks(lambda name: "resid" in name, incl_bwd=True)
    with model.hooks(fwd_hooks=forward, bwd_hooks=backward):
        model(inputs(), True).backward()
    return [dict(cache), [name for name, _ in forward], [name for name, _ in backward]]


@call
def what_hooks_keep(model: Any) -> Any:
    def keep(x: Tensor, hook: Any) -> None:
        hook.ctx["sum"] = x.sum()

    kept = []
    for clears in (False, True):
        model.run_with_hooks(inputs(), fwd_hooks=[("hook_embed", keep)], clear_contexts=clears)
        kept.append(dict(model.hook_dict["hook_embed"].ctx))
    keep(inputs(), model.hook_dict["hook_embed"])
    model.reset_hooks(clear_contexts=False)
    kept.append(dict(model.hook_dict["hook_embed"].ctx))
    model.clear_contexts()
    return [*kept, dict(model.hook_dict["hook_embed"].ctx)]


@call
def how_a_point_is_shown(model: Any) -> Any:
    model.add_hook("hook_embed", lambda x, hook: None)
    bare = type(model.hook_dict["hook_embed"])()
    return [repr(model.hook_dict[name]) for name in ("hook_embed", "blocks.0.attn.hook_z")] + [repr(bare)]


def answers(hooks: ModuleType, names: Iterable[str] = CALLS) -> Iterator[tuple[str, Any]]:
    """What each call answers of a fresh model of these classes."""
    for name in names:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield name, json.loads(json.dumps(plain(CALLS[name](toy(hooks)))))


def of_transformer_lens() -> ModuleType:
    """Its two classes, as a module."""
    import transformer_lens
    from transformer_lens.hook_points import HookPoint

    found = ModuleType("hooks")
    found.HookPoint, found.HookedRootModule = HookPoint, transformer_lens.HookedRootModule  # type: ignore[attr-defined]
    return found


if __name__ == "__main__":
    version = metadata.version("transformer-lens")
    sys.stdout.write(json.dumps(dict(answers(of_transformer_lens())) | {"version": version}))
