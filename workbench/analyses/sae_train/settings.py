"""What SAEs are trained on a model: settings, and the layers, heads, sparsity coefficients and seeds of one stack."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator
from safetensors.torch import save
from torch import Tensor

from sae.config import Architecture, SAEConfig, TrainConfig, as_list
from sae.stack import StackedSAE, spawn_generators
from sae.train import Trainer
from workbench.analyses.harvest import check_rows
from workbench.analyses.sae_train.evaluation import (
    CONTROL_TOKENS,
    LeftOut,
    check_stand_ins,
    measure,
    random_control,
    splice,
    splice_batches,
)
from workbench.models.activations import (
    CONCATENATED,
    PER_HEAD,
    Positions,
    Slot,
    choose_slots,
    collect,
    special_ids,
)
from workbench.models.checks import check_hooks, device_of, run_watched
from workbench.runs import shorten
from workbench.runs.memory import check_memory, planned_bytes
from workbench.runs.records import Frozen, describe_errors

START, RESAMPLE, CONTROL, SHUFFLE = 0, 1, 2, 3  # streams of an SAE's seed
FORWARD_TOKENS = 4096  # tokens of the forward that `estimate` times
# tokens × SAEs from which compiling pays: on one CPU thread it makes bfloat16 steps 1.6 to 3.3 times as fast, float32
# ones, whose blocks stay in the cache as they are, no faster, and takes up to a minute
COMPILED_TOKENS = 10_000_000
N_TIMED = 3  # steps that it times, of which the fastest counts
DECODER_INIT_NORM = 0.1  # of decoder rows that are free to grow
Share = Annotated[float, Field(ge=0, le=0.5)]


class HeadSaeSettings(Frozen):
    """How the stack is made, trained and measured."""

    hook: str = Field(
        default=PER_HEAD, description="'z': one SAE per head; 'z_concat': one per layer; or a hook within a block"
    )
    architecture: Architecture = Field(default="relu", description="activation function; relu and jumprelu have an l1")
    k: float | None = Field(default=None, description="features kept per token, for topk and batchtopk", gt=0)
    expansion: int = Field(default=8, description="d_sae / d_in", ge=1)
    use_unit_norm_decoder: bool = Field(
        default=False, description="hold decoder rows at norm 1; else l1 weighs each activation by its row's norm"
    )
    normalize: Literal["none", "mean_norm"] = Field(
        default="none",
        description="mean_norm: train on x·√d_in/mean‖x‖, so that one l1 means the same for every head; folded away",
    )
    n_train_tokens: int | None = Field(
        default=None, description="tokens an SAE is trained on; none: as many as count of those given", ge=1
    )
    batch_size: int = Field(default=1024, description="tokens per step", ge=1)
    buffer_tokens: int = Field(default=32768, description="tokens shuffled together in memory", ge=1)
    lr: float = Field(default=3e-3, description="peak learning rate of Adam", gt=0)
    schedule: tuple[Share, Share] = Field(
        default=(0.1, 0.3),
        description="shares of steps, 0 to .5: the first, while lr and l1 rise; the last, while lr falls",
    )
    n_resamples: int = Field(
        default=2, description="times that dead features are resampled, in the first two thirds", ge=0
    )
    use_bf16: bool = Field(default=False, description="multiply in bfloat16; weights stay float32")
    use_compile: bool | None = Field(
        default=None, description="compile the step's arithmetic; none: where it gains, in long bfloat16 trainings"
    )
    include_special: bool = Field(
        default=False, description="train and measure on position 0 of each window and on special tokens as well"
    )
    n_ce_tokens: int = Field(default=8192, description="held-out tokens that ce_recovered is measured on", ge=2)

    @field_validator("*", mode="before")
    @classmethod
    def _no_number_is_text(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, str) and cls.model_fields[str(info.field_name)].annotation in (
            int,
            float,
            float | None,
            int | None,
        ):
            raise ValueError(f"got {shorten(repr(value))}; expected a number")
        return value

    @model_validator(mode="after")
    def _a_batch_fits(self) -> HeadSaeSettings:
        if self.buffer_tokens < self.batch_size:
            raise ValueError(
                f"buffer_tokens: got {self.buffer_tokens}; expected at least batch_size = {self.batch_size}"
            )
        return self


@dataclass(frozen=True)
class Plan:
    """What is trained: SAE k reads slot `slot_index[k]` with coefficient `l1[k]` from seed `seeds[k]`."""

    slots: list[Slot]
    slot_index: list[int]
    l1: list[float]
    seeds: list[int]
    positions: Positions

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
    """The numbers given, as Python's own; a single one is a list of one.

    Raises ValueError unless they are finite numbers (or integers) ≥ 0, each once.
    """
    listed = as_list(what, given)
    is_fit = all(isinstance(n, kind) and not isinstance(n, bool) and 0 <= n < math.inf for n in listed)
    if not listed or not is_fit or len(set(listed)) < len(listed):
        wanted = "integers" if kind is Integral else "finite numbers"
        raise ValueError(f"{what}: got {listed}; expected {wanted} ≥ 0, each once")
    return [int(n) if kind is Integral else float(n) for n in listed]


def parse_settings(settings: dict[str, Any]) -> HeadSaeSettings:
    """The settings that keywords describe. Raises ValueError naming every wrong one."""
    try:
        return HeadSaeSettings.model_validate(settings)
    except ValidationError as error:
        raise ValueError(f"sae_train: {describe_errors(error, HeadSaeSettings.model_fields)}") from None


def make_plan(
    model: Any,
    layers: Sequence[int] | int | None,
    heads: Sequence[int] | int | str,
    l1: Sequence[float] | float,
    seeds: Sequence[int] | int,
    settings: HeadSaeSettings,
) -> Plan:
    """The stack's SAEs, in its order.

    Raises ValueError for anything out of range, given twice or not given, a hook without a row per token or in whose
    place nothing can stand, and for what memory cannot hold.
    """
    slots = choose_slots(model.cfg, layers, heads, settings.hook)
    check_hooks(model, list(dict.fromkeys(slot.hook_name for slot in slots)))
    coefficients, seeds = numbers("l1", l1), numbers("seeds", seeds, Integral)
    every = [(i, c, s) for i in range(len(slots)) for c in coefficients for s in seeds]
    _check_memory(model, slots, len(every), settings)
    check_stand_ins(model, slots)
    positions = Positions(special_ids(model), settings.include_special)
    return Plan(slots, [i for i, _, _ in every], [c for _, c, _ in every], [s for _, _, s in every], positions)


def _check_memory(model: Any, slots: list[Slot], n_saes: int, settings: HeadSaeSettings) -> None:
    """Raise ValueError unless the parameters, gradients and moments of the stack and the buffer have room."""
    device = device_of(model)
    names = list(dict.fromkeys(slot.hook_name for slot in slots))
    token = torch.zeros(1, 1, dtype=torch.int64, device=device)  # its activations say how wide they are
    found = run_watched(model, token, names, max(slot.layer for slot in slots) + 1)
    check_rows("sae_train", found, (1, 1), n_axes=3)
    shape = next(iter(found.values())).shape[2:]
    if slots[0].head is not None and (len(shape) != 2 or shape[0] != model.cfg.n_heads):
        raise ValueError(
            f"sae_train: {names[0]} has {list(shape)} per token; expected [{model.cfg.n_heads} d_head], a row for each "
            f"head, or hook {CONCATENATED}"
        )
    d_in = shape[-1] if slots[0].head is not None else math.prod(shape)
    d_sae = settings.expansion * d_in
    check_memory(
        f"a stack of {n_saes} SAEs of {d_sae:,} features beside a buffer of {settings.buffer_tokens:,} tokens",
        16 * n_saes * (2 * d_in * d_sae + d_in + d_sae) + 4 * len(slots) * settings.buffer_tokens * d_in,
        device,
    )


def train_config(settings: HeadSaeSettings, n_steps: int, n_saes: int = 1) -> TrainConfig:
    """The schedules of n_steps steps: warm-up, decay and resampling are shares of them. A feature that fired on no
    token of the last tenth of all steps is dead. n_saes SAEs decide with n_steps whether compiling pays."""
    (rise, fall), use_compile = settings.schedule, settings.use_compile
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


def estimate(
    model: Any, plan: Plan, settings: HeadSaeSettings, n_ctx: int, shard_bytes: int | None = None
) -> dict[str, Any]:
    """Facts about a training by name, before any text is read: SAEs, sizes, steps, bytes, and seconds of the training.

    shard_bytes: size of the largest shard, where activations are read from shards and no forward is run.

    Seconds come from one forward and a few steps on made-up tokens, on the machine as busy as it is; measuring the
    trained SAEs comes on top. Memory is the peak of this process after that, after a state as it is saved and after a
    batch of each measurement and its control, and the buffer. Steps that would be compiled are, as the compiler takes
    memory too: seconds of work, which it leaves in a cache of its own.
    """
    device = device_of(model)
    tokens = torch.arange(n_ctx).remainder(model.cfg.d_vocab).expand(max(1, FORWARD_TOKENS // n_ctx), -1)
    start = time.perf_counter()
    x = collect(model, tokens, plan.slots)
    forward_s = (time.perf_counter() - start) / tokens.numel() if shard_bytes is None else 0.0
    d_in, n_tokens = x.shape[2], settings.n_train_tokens or 0
    n_steps = n_tokens // settings.batch_size
    config = stack_config(settings, len(plan.slot_index), d_in)
    use_compile = train_config(settings, n_steps, config.n_saes).use_compile
    trainer = Trainer(
        StackedSAE(config, plan.generators(START), device=device),
        train_config(settings, N_TIMED).model_copy(update={"resample_steps": (), "use_compile": use_compile}),
        plan.l1,
        plan.generators(RESAMPLE),
        input_index=plan.slot_index,
    )
    batch = x[:, torch.arange(settings.batch_size, device=device) % x.shape[1]]
    step_s = []
    for _ in range(N_TIMED):
        start = time.perf_counter()
        trainer.step(batch)
        step_s.append(time.perf_counter() - start)
    n_weights = sum(parameter.numel() for parameter in trainer.sae.parameters())
    save({name: tensor.contiguous() for name, tensor in trainer.state_dict().items()})
    _measure_batch(model, tokens, plan, trainer.sae, x)
    n_counted = n_ctx if settings.include_special else max(1, n_ctx - 1)
    buffered = 4 * len(plan.slots) * math.ceil(settings.buffer_tokens / n_counted) * n_counted * d_in
    return {
        "n_saes": config.n_saes,
        "d_in": d_in,
        "d_sae": config.d_sae,
        "n_tokens": n_tokens,
        "n_steps": n_steps,
        # the stack; while it trains, the state with its moments
        "bytes_on_disk": 4 * n_weights + 12 * n_weights,
        # the buffer, or a shard as a file and as tensors
        **planned_bytes(device, on_host=2 * (shard_bytes or 0), on_device=0 if shard_bytes is not None else buffered),
        "seconds": round(n_steps * min(step_s) + n_tokens * forward_s, 1),
    }


def _measure_batch(model: Any, tokens: Tensor, plan: Plan, sae: StackedSAE, x: Tensor) -> None:
    """What the evaluation of a trained stack does with a batch, for the memory that it takes."""
    control = random_control(sae, x[plan.slot_index, :CONTROL_TOKENS], plan.generators(CONTROL))
    dictionaries = {"trained": sae, "random": control}
    shuffler = torch.Generator().manual_seed(SHUFFLE)
    left_out = LeftOut(dictionaries, plan.slot_index)
    slots, index, positions = plan.slots, plan.slot_index, plan.positions
    measure(model, tokens, slots, index, dictionaries, generator=shuffler, positions=positions, left_out=left_out)
    a_batch = splice_batches(model, tokens, slots)[0]
    splice(model, a_batch, slots, index, dictionaries, positions=positions)


def stack_config(settings: HeadSaeSettings, n_saes: int, d_in: int) -> SAEConfig:
    """The configuration of the stack that these settings describe."""
    return SAEConfig(
        n_saes=n_saes,
        d_in=d_in,
        d_sae=settings.expansion * d_in,
        architecture=settings.architecture,
        k=settings.k,
        use_unit_norm_decoder=settings.use_unit_norm_decoder,
        decoder_init_norm=1.0 if settings.use_unit_norm_decoder else DECODER_INIT_NORM,
    )
