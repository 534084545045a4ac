"""What a training step holds on each GPU, from shapes alone: no weight is allocated, no step is taken.

The model is built on torch's `meta` device; what a forward pass keeps for the backward pass comes from running it on
fake tensors, which have shapes, strides and dtypes and no numbers. Bytes are those of tensors: what CUDA, NCCL and the
allocator's gaps take comes on top.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, UntypedStorage

from workbench.models import HookedLM
from workbench.models.costs import faked, on_meta
from workbench.models.cross_entropy import chunk_bytes
from workbench.training.monitor import monitor_bytes
from workbench.training.objective import Batch, objective
from workbench.training.optimizers import OptimizerConfig, is_hidden_matrix
from workbench.training.prescription import Moment, Prescription
from workbench.training.recipe import Phase, Recipe, phase_model
from workbench.training.sharded_optimizer import share_matrices
from workbench.training.telemetry import on_shapes, pressing

N_GPUS = (1, 2, 4, 8)
WIDE = 4  # bytes of a weight, a gradient, a moment: float32


@dataclass(frozen=True)
class Footprint:
    """Bytes of one GPU of `n_gpus`; with several, FSDP2 shards weights, gradients and moments (`--fsdp`)."""

    n_gpus: int
    parameters_bytes: int
    """its part of the weights"""
    optimizer_bytes: int
    """its part of AdamW's two moments, and momentum and copies of the matrices for which it takes Muon's step"""
    gradients_bytes: int
    """its part; all of them, unsharded, where micro-batches are accumulated before gradients are exchanged"""
    gathered_bytes: int
    """weights gathered from the others at once: those outside blocks, and two blocks"""
    activations_bytes: int
    """kept for the backward pass (narrow copies of the weights among it), in the making, and a chunk of logits"""
    step_bytes: int
    """of an optimizer step beside weights, gradients and moments: Muon's gradients, and matrices sent around"""
    whole_bytes: int
    """of the copy of all weights that is measured and saved; 0 with one GPU, which has them"""
    total_bytes: int
    """at the largest moment: backward pass, step or measurement"""


def footprints(
    recipe: Recipe, autocast: torch.dtype | None = torch.bfloat16, n_gpus: Sequence[int] = N_GPUS
) -> list[Footprint]:
    """What each of so many GPUs holds while `recipe` trains, the largest over its phases; the numbers of GPUs that do
    not divide a phase's micro-batch are left out.

    Activations are those of float32 weights under `autocast` (None: of float32 throughout).
    """
    per_phase = [_of_phase(recipe, index, autocast, n_gpus) for index in range(len(recipe.phases))]
    fitting = [n for n in n_gpus if all(phase.batch_size % n == 0 for phase in recipe.phases)]
    return [max((found[n] for found in per_phase), key=lambda footprint: footprint.total_bytes) for n in fitting]


def _of_phase(recipe: Recipe, index: int, autocast: torch.dtype | None, n_gpus: Sequence[int]) -> dict[int, Footprint]:
    phase, cfg = recipe.phases[index], phase_model(recipe, index)
    model, found = on_meta(cfg), {}
    rows = sorted({phase.batch_size // n for n in n_gpus if n > 1 and phase.batch_size % n == 0})
    model.shares_routing = False  # as FSDP has it
    kept = {n: kept_bytes(model, phase, n, cfg.n_ctx, autocast) for n in rows[:2]}
    for n in n_gpus:
        if phase.batch_size % n:
            continue
        n_rows = phase.batch_size // n
        if n == 1:
            model.shares_routing = True
            of_forward = kept_bytes(model, phase, n_rows, cfg.n_ctx, autocast)
        else:
            of_forward = _on_the_line(kept, n_rows)
        width = (autocast or cfg.dtype).itemsize
        logits = chunk_bytes(n_rows * cfg.n_ctx, cfg.d_vocab, width, cfg.output_logits_soft_cap)
        # while a block's gradients are made they take about what the block has kept
        activations = of_forward + of_forward // cfg.n_layers + logits
        found[n] = _footprint(model, phase.optimizer, n, activations, accumulates=phase.n_accumulation > 1)
    return found


def _on_the_line(kept: dict[int, int], n_rows: int) -> int:
    """What is kept of n_rows rows: a fixed part, and as much for each."""
    if n_rows in kept:
        return kept[n_rows]
    (few, at_few), (more, at_more) = sorted(kept.items())
    return at_few + (at_more - at_few) // (more - few) * (n_rows - few)


def _footprint(model: HookedLM, cfg: OptimizerConfig, n: int, activations: int, *, accumulates: bool) -> Footprint:
    sizes = {name: p.numel() * WIDE for name, p in model.named_parameters()}
    weights = sum(sizes.values())
    hidden = {name: p for name, p in model.named_parameters() if cfg.muon and is_hidden_matrix(name)}
    matrices = sum(sizes[name] for name in hidden)
    owners = share_matrices(hidden, n)
    owned = max((sum(sizes[m] for m, o in owners.items() if o == rank) for rank in range(n)), default=0)
    blocks = [sum(p.numel() * WIDE for p in block.parameters()) for block in model.blocks]
    own = -(-weights // n)
    optimizer = 2 * -(-(weights - matrices) // n) + 2 * owned
    gathered = weights - sum(blocks) + sum(sorted(blocks)[-2:]) if n > 1 else 0
    gradients = weights if n == 1 or accumulates else own + max(blocks)
    # its matrices' gradients, laid out for Muon; with several GPUs all matrices too, whole, as each owner sends its own
    step = owned if n == 1 else owned + matrices
    copy = weights if n > 1 else 0
    total = own + optimizer + max(gradients + gathered + activations, min(gradients, own) + step, copy)
    return Footprint(n, own, optimizer, gradients, gathered, activations, step, copy, total)


def bytes_of_phase(recipe: Recipe, index: int, autocast: torch.dtype | None) -> int:
    """Bytes of one process that trains a phase with float32 weights: at a step, or when its geometry is measured."""
    found = _of_phase(recipe, index, autocast, [1])[1]
    resting = found.parameters_bytes + found.optimizer_bytes
    return max(found.total_bytes, resting + monitor_bytes(phase_model(recipe, index), recipe.monitor))


def kept_bytes(model: HookedLM, phase: Phase, n_rows: int, n_ctx: int, autocast: torch.dtype | None) -> int:
    """Bytes of the tensors that autograd keeps of one micro-batch of a phase for its backward pass, the weights left
    out.

    model: of `on_meta`. It is run on fake tensors of a CPU, whose kernels for long sequences keep what a GPU's do.
    """
    kept: dict[int, UntypedStorage] = {}  # held, so that no other is taken for one of them

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage
        return tensor

    prescription = Prescription(phase.interventions, model.cfg, phase.n_steps)
    prescription.check_hooks(model)
    scalars = pressing(prescription.start(0))
    with faked(model):
        owned = {p.untyped_storage()._cdata for p in model.parameters()}
        tokens = torch.zeros(n_rows, n_ctx, dtype=torch.long)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            part = objective(model, Batch(tokens), prescription, Moment(0, scalars), autocast, on_shapes(model))
        del part
        return sum(storage.nbytes() for place, storage in kept.items() if place not in owned)
