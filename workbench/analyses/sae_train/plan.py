"""What stacks of SAEs are made of: hooks, layers, heads, architectures, sizes, sparsity coefficients and seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import torch
from numpy.typing import ArrayLike
from pydantic import ValidationError

from sae.config import SAEConfig, TrainConfig, as_list
from sae.stack import spawn_generators
from workbench.analyses.sae_train.evaluation import check_stand_ins
from workbench.analyses.sae_train.settings import HeadSaeSettings, Kind, check_coefficients, check_numbers, hooks_of
from workbench.models.activations import (
    CONCATENATED,
    PER_HEAD,
    Positions,
    Slot,
    choose_slots,
    special_ids,
)
from workbench.models.checks import check_hooks, device_of, run_hooked, run_watched
from workbench.models.streams import check_rows
from workbench.runs.memory import check_memory
from workbench.runs.records import describe_errors

START, RESAMPLE, CONTROL, SHUFFLE = 0, 1, 2, 3  # streams of an SAE's seed
# tokens × SAEs from which compiling pays: on one CPU thread it makes bfloat16 steps 1.6 to 3.3 times as fast, float32
# ones, whose blocks stay in the cache as they are, no faster, and takes up to a minute
COMPILED_TOKENS = 10_000_000
DECODER_INIT_NORM = 0.1  # of decoder rows that are free to grow


@dataclass(frozen=True)
class Plan:
    """What one stack is: its SAE k reads slot `slot_index[k]` with coefficient `l1[k]` from seed `seeds[k]`."""

    kind: Kind
    name: str
    """its folder within sae/, and which it is in tables and messages; "" for a stack that is alone"""
    config: SAEConfig
    slots: list[Slot]
    slot_index: list[int]
    l1: list[float]
    seeds: list[int]
    positions: Positions
    outs: list[Slot] | None = None
    """of transcoders, what is reconstructed from each slot; None: the slot itself"""

    @property
    def groups(self) -> dict[str, list[Slot]]:
        """The slots of each hook that is read, in the order of `kind.hooks`: the one, or a transcoder's two."""
        return dict(zip(self.kind.hooks, [self.slots] if self.outs is None else [self.slots, self.outs], strict=True))

    @property
    def sources(self) -> list[tuple[Slot, float, int]]:
        """(slot, l1, seed) of every SAE, in the stack's order."""
        return [(self.slots[i], l1, seed) for i, l1, seed in zip(self.slot_index, self.l1, self.seeds, strict=True)]

    def generators(self, stream: int) -> list[torch.Generator]:
        """A generator per SAE, from its own layer, head and seed: the same whatever it is trained together with."""
        own = []
        for slot, _, seed in self.sources:
            base = torch.Generator().manual_seed(seed)
            own += spawn_generators(base, 1, [(stream, slot.layer, slot.column + 1)])
        return own


def numbers(what: str, given: Any, kind: type = Real) -> list[Any]:
    """The numbers given, as Python's own; a single one is a list of one. Raises ValueError as `check_numbers`."""
    listed = as_list(what, given)
    check_numbers(what, listed, kind)
    return [int(n) if kind is Integral else float(n) for n in listed]


def parse_settings(settings: dict[str, Any]) -> HeadSaeSettings:
    """The settings that keywords describe. Raises ValueError naming every wrong one."""
    try:
        return HeadSaeSettings.model_validate(settings)
    except ValidationError as error:
        raise ValueError(f"sae_train: {describe_errors(error, HeadSaeSettings.model_fields)}") from None


def make_plans(
    model: Any,
    layers: Sequence[int] | int | None,
    heads: Sequence[int] | int | str | None,
    l1: ArrayLike,
    seeds: ArrayLike,
    settings: HeadSaeSettings,
) -> list[Plan]:
    """A plan for each of the settings' kinds, in their order, with its SAEs in theirs.

    Raises ValueError for anything out of range, given twice or not given, a hook without a row per token or in whose
    place nothing can stand, a pair of hooks that is passed the other way round, and for what memory cannot hold.
    """
    coefficients, seeds = numbers("l1", l1), numbers("seeds", seeds, Integral)
    check_coefficients(coefficients, settings.kinds)
    positions = Positions(special_ids(model), settings.include_special)
    parts = dict.fromkeys(part for hook in settings.hook for part in hooks_of(hook))
    slots_of = {part: slots_of_hook(model.cfg, layers, heads, part, settings.hook) for part in parts}
    check_hooks(model, list(dict.fromkeys(slot.hook_name for slots in slots_of.values() for slot in slots)))
    widths = {hook: _width(model, slots) for hook, slots in slots_of.items()}
    pairs = [hooks_of(hook) for hook in settings.hook if len(hooks_of(hook)) > 1]
    if pairs:
        _check_order(model, [own for a, b in pairs for own in zip(slots_of[a], slots_of[b], strict=True)])
    plans = []
    for kind in settings.kinds:
        slots, *outs = (slots_of[part] for part in kind.hooks)
        d_in, *d_out = (widths[part] for part in kind.hooks)
        swept = coefficients if kind.is_penalised else [0.0]
        every = [(i, c, s) for i in range(len(slots)) for c in swept for s in seeds]
        index, own_l1, own_seeds = (list(column) for column in zip(*every, strict=True))
        name = kind.called(d_in) if len(settings.kinds) > 1 else ""
        config = stack_config(settings, kind, len(every), d_in, *d_out)
        plans.append(Plan(kind, name, config, slots, index, own_l1, own_seeds, positions, *outs))
    _check_memory(model, plans, settings.buffer_tokens)
    for part in dict.fromkeys(hooks_of(hook)[-1] for hook in settings.hook):
        check_stand_ins(model, slots_of[part])
    return plans


def slots_of_hook(cfg: Any, layers: Any, heads: Any, hook: str, hooks: Sequence[str]) -> list[Slot]:
    """The slots of one of several hooks; heads are z's where it is among them. Raises ValueError as `choose_slots`, and
    for a z within a pair of them."""
    if odd := [own for own in hooks if len(hooks_of(own)) > 1 and PER_HEAD in hooks_of(own)]:
        raise ValueError(f"hook: got {odd[0]}; expected two that are read whole: {CONCATENATED}, not {PER_HEAD}")
    is_for_another = hook != PER_HEAD and PER_HEAD in hooks
    return choose_slots(cfg, layers, "all" if heads is None or is_for_another else heads, hook)


def _width(model: Any, slots: list[Slot]) -> int:
    """d_in of these slots. Raises ValueError for a hook without a row per token, or per head."""
    names = list(dict.fromkeys(slot.hook_name for slot in slots))
    token = torch.zeros(1, 1, dtype=torch.int64, device=device_of(model))  # its activations say how wide they are
    found = run_watched(model, token, names, max(slot.layer for slot in slots) + 1)
    check_rows("sae_train", found, (1, 1), n_axes=3)
    shape = next(iter(found.values())).shape[2:]
    if slots[0].head is not None and (len(shape) != 2 or shape[0] != model.cfg.n_heads):
        raise ValueError(
            f"sae_train: {names[0]} has {list(shape)} per token; expected [{model.cfg.n_heads} d_head], a row for each "
            f"head, or hook {CONCATENATED}"
        )
    return shape[-1] if slots[0].head is not None else math.prod(shape)


@torch.no_grad()
def _check_order(model: Any, pairs: list[tuple[Slot, Slot]]) -> None:
    """Raise ValueError for a hook that is passed behind the one that is reconstructed from it."""
    passed: list[str] = []
    names = dict.fromkeys(slot.hook_name for pair in pairs for slot in pair)
    hooks = [(name, lambda _, hook, name=name: passed.append(name)) for name in names]
    token = torch.zeros(1, 1, dtype=torch.int64, device=device_of(model))
    span = {"stop_at_layer": max(slot.layer for pair in pairs for slot in pair) + 1, "return_type": None}
    run_hooked(model, token, hooks, **span)
    for read, out in pairs:
        if passed.index(read.hook_name) > passed.index(out.hook_name):
            raise ValueError(
                f"hook: got {read.hook_name}:{out.hook_name}, of which the second is passed first; expected what is "
                "read ahead of what is reconstructed from it"
            )


def _check_memory(model: Any, plans: list[Plan], buffer_tokens: int) -> None:
    """Raise ValueError unless the stacks' parameters, gradients and moments and the buffers have room together."""
    stacks = " and ".join(f"{plan.config.n_saes} SAEs of {plan.config.d_sae:,} features" for plan in plans[:3])
    further = f" and {len(plans) - 3} more stacks" if len(plans) > 3 else ""
    sizes = [own.config for own in plans]
    read = {
        hook: len(slots) * width
        for plan in plans
        for (hook, slots), width in zip(plan.groups.items(), (plan.config.d_in, plan.config.d_target), strict=False)
    }
    check_memory(
        f"a stack of {stacks}{further} beside a buffer of {buffer_tokens:,} tokens",
        sum(16 * own.n_saes * ((own.d_in + own.d_target) * own.d_sae + own.d_target + own.d_sae) for own in sizes)
        + sum(4 * buffer_tokens * width for width in read.values()),
        device_of(model),
    )


def train_config(settings: HeadSaeSettings, n_steps: int, n_saes: int = 1) -> TrainConfig:
    """The schedules of n_steps steps: warm-up, decay and resampling are shares of them. A feature that fired on no
    token of the last tenth of all steps is dead. n_saes SAEs decide with n_steps whether compiling pays."""
    rise, fall = settings.schedule
    use_compile = settings.use_compile
    if use_compile is None:
        use_compile = settings.use_bf16 and n_steps * settings.batch_size * n_saes >= COMPILED_TOKENS
    at = [round(2 / 3 * n_steps * (i + 1) / (settings.n_resamples + 1)) for i in range(settings.n_resamples)]
    return TrainConfig(
        n_steps=n_steps,
        lr=settings.lr,
        lr_warm_up_steps=int(rise * n_steps),
        lr_decay_steps=int(fall * n_steps),
        l1_warm_up_steps=int(rise * n_steps),
        dead_window=max(1, n_steps // 10),
        resample_steps=tuple(sorted({step for step in at if 1 <= step < n_steps})),
        use_bf16=settings.use_bf16,
        use_compile=use_compile,
    )


def stack_config(settings: HeadSaeSettings, kind: Kind, n_saes: int, d_in: int, d_out: int | None = None) -> SAEConfig:
    """The configuration of a stack of this kind; d_out: of transcoders. Raises ValueError for options that do not
    fit."""
    options: dict[str, Any] = settings.options_of(kind) | {"k": kind.k, "activation": kind.activation, "d_out": d_out}
    try:
        return SAEConfig(
            n_saes=n_saes,
            d_in=d_in,
            d_sae=kind.expansion * d_in,
            architecture=kind.architecture,
            **options,
            use_unit_norm_decoder=settings.use_unit_norm_decoder,
            decoder_init_norm=1.0 if settings.use_unit_norm_decoder else DECODER_INIT_NORM,
        )
    except ValidationError as error:
        raise ValueError(f"sae_train: {describe_errors(error, SAEConfig.model_fields)}") from None
