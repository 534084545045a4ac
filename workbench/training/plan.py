"""What a training run would take, before anything is read or written: parameters, tokens, disk, memory, time."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workbench.data.nca_sampler import block_bytes
from workbench.data.tokenizer import is_local
from workbench.models import HookedLM
from workbench.models.cross_entropy import chunk_bytes
from workbench.models.load import resolve_device
from workbench.runs.memory import peak_bytes
from workbench.training.footprint import on_meta
from workbench.training.gradients import Gradients, RecordedGradients
from workbench.training.monitor import measure
from workbench.training.objective import Batch, autocast_dtype, held_out_loss, weights_dtype
from workbench.training.optimizers import Optimizer, is_hidden_matrix
from workbench.training.recipe import Phase, Recipe, automata, n_tokens_per_step, phase_model
from workbench.training.training_data import open_feed

MOST_TRIED = 500_000_000  # parameters; of a larger model no step is taken to see what it costs
TIMED_TOKENS = 2048  # a micro-batch of about this many tokens is timed
N_TIMED = 2  # times, of which the faster counts: the first warms caches and allocators


@dataclass(frozen=True)
class PhaseCost:
    """What one phase takes."""

    seconds: float
    """of all its steps, without evaluation, monitoring and saving"""
    checkpoint_bytes: int
    """weights and optimizer state"""
    memory_bytes: int
    """of the process at the peak of a step"""
    device_bytes: int | None
    """of a GPU at the peak of a step; None on a CPU"""


def plan(recipe: Recipe, *, device: str = "auto", dtype: str = "auto") -> dict[str, Any]:
    """Parameters, tokens, bytes on disk and in memory, and estimated seconds of a recipe, by name.

    Time and memory come from real steps of each phase on made-up tokens: a small micro-batch, scaled up to the
    recipe's; memory, from the peak of this process after it and after another of twice the size. Of a model of more
    than `MOST_TRIED` parameters no step is taken and nothing allocated: in place of seconds it says the floating-point
    operations, 6 for each parameter and token, and `footprints` says what a GPU holds. Nothing is downloaded or
    written.

    Raises:
        ValueError: for a device or dtype that cannot be had.
    """
    import workbench.training.loop  # noqa: F401 - what it loads counts among the bytes in memory

    device = resolve_device(device)
    autocast = autocast_dtype(device, dtype)
    stored = weights_dtype(dtype)
    is_tried = not is_planned_from_shapes(recipe)
    costs, models = [], [on_meta(phase_model(recipe, index)) for index in range(len(recipe.phases))]
    for index, shapes in enumerate(models):
        if is_tried:
            model = HookedLM(phase_model(recipe, index), 0).to(device, stored)
            costs.append(_measure(model, recipe, index, device, autocast))
        else:
            costs.append(_counted(shapes, recipe, index, stored.itemsize))
    n_steps = sum(phase.n_steps for phase in recipe.phases)
    tokens = [phase.n_steps * n_tokens_per_step(recipe, i) for i, phase in enumerate(recipe.phases)]
    on_device = [c.device_bytes for c in costs if c.device_bytes is not None]
    every, ends = recipe.checkpoint.every, itertools.accumulate(phase.n_steps for phase in recipe.phases)
    n_checkpoints = n_steps // every + sum(end % every != 0 for end in ends)  # at every phase's end too
    kept = min(recipe.checkpoint.keep or n_checkpoints, n_checkpoints)
    rates = {p.name: round(t / c.seconds) for p, t, c in zip(recipe.phases, tokens, costs, strict=True) if is_tried}
    flops = sum(6 * m.n_parameters() * t for m, t in zip(models, tokens, strict=True))
    return {
        "recipe": recipe.name,
        "device": device,
        "precision": str(autocast or stored).removeprefix("torch."),
        "n_parameters": models[-1].n_parameters(),
        "n_parameters_without_embeddings": models[-1].n_parameters(embeddings=False),
        "n_steps": n_steps,
        "n_tokens": sum(tokens),
        "n_tokens_by_phase": {p.name: t for p, t in zip(recipe.phases, tokens, strict=True)},
        "n_checkpoints_kept": kept,
        # while a later one is being written there is one more
        "bytes_on_disk": max(c.checkpoint_bytes for c in costs) * min(kept + 1, n_checkpoints),
        "bytes_in_memory": max(c.memory_bytes for c in costs),
        **({"bytes_on_device": max(on_device)} if on_device else {}),
        **({"tokens_per_s_by_phase": rates} if is_tried else {"flops": flops}),
        **({"seconds": round(sum(c.seconds for c in costs))} if is_tried else {}),
    }


def is_planned_from_shapes(recipe: Recipe) -> bool:
    """Whether a model of the recipe is too large for a step to be tried."""
    return max(on_meta(phase_model(recipe, i)).n_parameters() for i in range(len(recipe.phases))) > MOST_TRIED


def _counted(shapes: HookedLM, recipe: Recipe, index: int, itemsize: int) -> PhaseCost:
    """The cost of a phase that is not tried: what a checkpoint holds, and the host while it is written."""
    cfg = recipe.phases[index].optimizer
    hidden = sum(p.numel() for name, p in shapes.named_parameters() if cfg.muon and is_hidden_matrix(name))
    n = shapes.n_parameters()
    checkpoint = itemsize * (n + 2 * (n - hidden) + hidden)  # AdamW has two moments, Muon one
    return PhaseCost(math.nan, checkpoint, peak_bytes() + checkpoint, None)


def count_text(recipe: Recipe) -> dict[str, int]:
    """Tokens to train on and held out, by name, of a recipe's text; nothing of one, or of a tokenizer, that would have
    to be fetched from a hub. The text is packed into the cache, where the training finds it.

    Raises:
        ValueError: as `open_feed`.
    """
    data = recipe.data
    local = data.source == "embedded" or Path(data.source).expanduser().exists()
    if not local or not is_local(data.tokenizer):
        return {}
    feed = open_feed(recipe)
    return {
        "n_train_tokens": feed.train.n_tokens,
        "n_held_out_tokens": feed.held_out.n_tokens,
        "n_train_documents": feed.train.n_documents,
        "n_held_out_documents": feed.held_out.n_documents,
    }


def _measure(model: HookedLM, recipe: Recipe, index: int, device: str, autocast: torch.dtype | None) -> PhaseCost:
    phase, n_ctx, is_cuda = recipe.phases[index], recipe.model.n_ctx, device.startswith("cuda")
    optimizer, gradients = Optimizer(model, phase.optimizer), Gradients(model, phase, autocast)
    n_rows = max(1, min(phase.batch_size, TIMED_TOKENS // n_ctx))

    def made_up(n: int) -> Batch:
        return Batch(torch.arange(n * n_ctx, device=device).reshape(n, n_ctx) % model.cfg.d_vocab)

    def run(n: int) -> None:
        gradients(made_up(n), 0.01, 0)

    micro_s, step_s = [], []
    for _ in range(N_TIMED):
        start = _clock(device)
        run(n_rows)
        between = _clock(device)
        optimizer.step()
        micro_s.append(between - start)
        step_s.append(_clock(device) - between)
    scale = phase.batch_size / n_rows
    state = sum(t.numel() * t.element_size() for t in optimizer.state_dict().values())
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    at_peak = on_device = _peak_of_step(model, phase, n_ctx, run, n_rows, autocast)
    if is_cuda:  # of its memory libraries take no part, in which what judges the training would vanish
        held_out_loss(model, made_up(min(phase.batch_size, recipe.data.n_held_out_windows)), phase.batch_size)
        if recipe.monitor.every:
            measure(model, made_up(recipe.monitor.n_sequences).tokens, recipe.monitor)
        on_device = max(at_peak, _peak(device))
        micro_s = _replays(RecordedGradients(model, phase, autocast), made_up(n_rows), device)
    drawn = block_bytes(automata(phase), n_ctx, device) if phase.kind == "nca" else 0
    return PhaseCost(
        seconds=phase.n_steps * (phase.n_accumulation * scale * min(micro_s) + min(step_s)),
        checkpoint_bytes=weights + state,
        memory_bytes=peak_bytes() + weights + state if is_cuda else at_peak + drawn,  # a checkpoint passes the host
        device_bytes=on_device + drawn if is_cuda else None,
    )


def _replays(gradients: RecordedGradients, batch: Batch, device: str) -> list[float]:
    """Seconds of N_TIMED micro-batches as one GPU trains them, after one that records."""
    gradients(batch, 0.01, 0)
    seconds = []
    for _ in range(N_TIMED):
        start = _clock(device)
        gradients(batch, 0.01, 0)
        seconds.append(_clock(device) - start)
    return seconds


def _peak_of_step(
    model: HookedLM, phase: Phase, n_ctx: int, run: Callable[[int], None], n_rows: int, autocast: torch.dtype | None
) -> int:
    """The peak at the phase's whole micro-batch, of which n_rows rows were run: it grows with them in a straight line,
    but for the logits, of which no more than a chunk is held. The line rises by what the peak has grown over twice the
    rows; on a CPU, where libraries may have made the first peak, at least by what backward needs of a row, and half
    as much again for gradients on their way."""
    device = model.cfg.device
    before, n_more = _peak(device), min(2 * n_rows, phase.batch_size)
    per_row = 0.0
    if n_more > n_rows:
        kept = _kept_for_backward(model, lambda: run(n_more))
        of_logits = _logits(model, n_more * n_ctx, autocast) - _logits(model, n_rows * n_ctx, autocast)
        grown = (_peak(device) - before - of_logits) / (n_more - n_rows)
        per_row = max(0.0 if device.startswith("cuda") else 1.5 * kept / n_more, grown)
    more_logits = _logits(model, phase.batch_size * n_ctx, autocast) - _logits(model, n_more * n_ctx, autocast)
    return _peak(device) + more_logits + int(per_row * (phase.batch_size - n_more))


def _peak(device: str) -> int:
    """The most that a GPU has had allocated, or this process in memory."""
    return torch.cuda.max_memory_allocated(device) if device.startswith("cuda") else peak_bytes()


def _kept_for_backward(model: HookedLM, run: Callable[[], None]) -> int:
    """Bytes of the tensors that autograd keeps while it runs, the weights left out."""
    owned = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in owned:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run()
    return sum(kept.values())


def _logits(model: HookedLM, n_tokens: int, autocast: torch.dtype | None) -> int:
    cfg = model.cfg
    return chunk_bytes(n_tokens, cfg.d_vocab, (autocast or cfg.dtype).itemsize, cfg.output_logits_soft_cap)


def _clock(device: str) -> float:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return time.perf_counter()
