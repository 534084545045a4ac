"""Activations kept in shuffled, checksummed shards, from which a killed run goes on."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, Int64
from safetensors.torch import save
from torch import Tensor

from workbench.data.shards import FORMAT, INDEX, INDEX_COLUMNS, MAPS_FORMAT, Shard, Shards, check_shard, open_shards
from workbench.models.checks import check_hooks, checked_tokens, count_bad, device_of
from workbench.models.config import parse_dtype
from workbench.models.streams import check_rows, default_batch_size, is_map, stream
from workbench.models.weights import weights_sha256
from workbench.runs import atomic_write, open_run

SHARD_BYTES = 256 << 20
SPARE_BYTES = 64 << 20  # left free on the disk beyond the shards


@dataclass(frozen=True)
class ShardPlan:
    """What is stored of a model's activations, and how it is cut into shards."""

    tokens: Int64[Tensor, "n n_ctx"]
    index: dict[str, Any]
    """of shards.json, but for the shards"""
    dtype: torch.dtype
    n_a_shard: int
    """sequences in a shard"""
    batch_size: int
    """sequences in a forward"""
    sequence_bytes: int
    seed: int


def harvest(
    model: Any,
    tokens: Int[Tensor, "n n_ctx"],
    hooks: Sequence[str],
    out: str | Path,
    *,
    seed: int = 0,
    dtype: str | torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
    batch_size: int | None = None,
    resume: bool = False,
    on_progress: Callable[[float], None] | None = None,
) -> Shards:
    """The activations of every token at `hooks`, written as a run directory of shards; see `read_shards`.

    The order is shuffled once, in advance, by the seed: first the sequences, then the rows within each shard. Attention
    maps are kept whole, one per sequence, in the order of the sequences: n_heads · n_ctx² numbers each. With
    resume=True a killed run continues after its last whole shard, having verified the shards before it.

    Args:
        out: directory that must not exist yet (unless resume).
        dtype: of the stored activations; the model's own by default.
        shard_bytes: largest size of a shard, unless a single sequence is larger.

    Raises:
        ValueError: as `stream`; a hook without one row per token that is no map; activations that are nan or infinite,
            or become it in the dtype (hook and sequence are named; scores that a mask made −inf stay so); a disk that
            will not hold the shards; a directory in the way; with resume, other settings, another model or an altered
            shard (named).
    """
    plan = plan_shards(model, tokens, hooks, seed=seed, dtype=dtype, shard_bytes=shard_bytes, batch_size=batch_size)
    config = plan.index | {
        "verb": "harvest",
        "hooks": list(hooks),
        "seed": seed,
        "sequences_a_shard": plan.n_a_shard,
        "batch_size": plan.batch_size,
        "tokens_sha256": hashlib.sha256(plan.tokens.numpy().tobytes()).hexdigest(),
    }
    with open_run(out, config, resume=resume, device=str(device_of(model)), seed=seed) as run:
        if not run.is_complete:
            write_shards(model, plan, run.path, on_progress)
    return open_shards(run.out)


def plan_shards(
    model: Any,
    tokens: Int[Tensor, "n n_ctx"],
    hooks: Sequence[str],
    *,
    seed: int = 0,
    dtype: str | torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
    batch_size: int | None = None,
) -> ShardPlan:
    """How `harvest` stores the activations; arguments and errors as there. One sequence is read, for the shapes."""
    tokens = checked_tokens("harvest", model, tokens)
    check_hooks(model, hooks)
    if shard_bytes < 1:
        raise ValueError(f"shard_bytes: got {shard_bytes}; expected at least 1")
    shapes, stored = probe_shapes(model, tokens, hooks, dtype)
    n, n_ctx = tokens.shape
    n_bytes = sequence_bytes(shapes, n_ctx, stored)
    n_a_shard = max(1, shard_bytes // n_bytes)
    size = default_batch_size(model.cfg, n_ctx, hooks) if batch_size is None else batch_size
    index = {
        "format": MAPS_FORMAT if any(map(is_map, hooks)) else FORMAT,
        "hooks": {name: list(shape) for name, shape in shapes.items()},
        "dtype": str(stored).removeprefix("torch."),
        "n_tokens": n * n_ctx,
        "n_ctx": n_ctx,
        "model_sha256": weights_sha256(model),
    }
    return ShardPlan(tokens, index, stored, n_a_shard, min(n_a_shard, size), n_bytes, seed)


def probe_shapes(
    model: Any, tokens: Tensor, hooks: Sequence[str], dtype: str | torch.dtype | None
) -> tuple[dict[str, tuple[int, ...]], torch.dtype]:
    """Shape of one row at each hook, of one sequence at maps, and the dtype to store."""
    first = next(stream(model, tokens[:1], hooks))
    check_rows("harvest", {name: found for name, found in first.items() if not is_map(name)}, (1, tokens.shape[1]))
    kind = parse_dtype(dtype) if dtype is not None else next(iter(first.values())).dtype
    return {name: tuple(tensor.shape[1 if is_map(name) else 2 :]) for name, tensor in first.items()}, kind


def sequence_bytes(shapes: Mapping[str, Sequence[int]], n_ctx: int, dtype: torch.dtype) -> int:
    """Bytes of all that a shard holds of one sequence."""
    n_maps = sum(math.prod(shape) for name, shape in shapes.items() if is_map(name))
    a_row = sum(math.prod(shape) for name, shape in shapes.items() if not is_map(name)) * dtype.itemsize
    index = n_ctx * 8 * len(INDEX_COLUMNS) + (8 * (1 + n_ctx) if n_maps else 0)
    return n_ctx * a_row + n_maps * dtype.itemsize + index


def write_shards(
    model: Any, plan: ShardPlan, directory: Path, on_progress: Callable[[float], None] | None = None
) -> None:
    """Write the shards that are not in the directory yet, having verified those that are; errors as `harvest`."""
    done = list(open_shards(directory).shards) if (directory / INDEX).is_file() else []
    for shard in done:
        check_shard(directory, shard)
    tokens, seed = plan.tokens, plan.seed
    order = torch.from_numpy(np.random.default_rng([seed, 0]).permutation(len(tokens)))
    groups = order.split(plan.n_a_shard)
    check_disk(directory, sum(len(group) for group in groups[len(done) :]) * plan.sequence_bytes)
    for number, group in list(enumerate(groups))[len(done) :]:
        rows = torch.from_numpy(np.random.default_rng([seed, 1, number]).permutation(group.numel() * tokens.shape[1]))
        data = save(_collect(model, plan, group, rows), metadata={"format": "pt"})
        name = f"shard_{number:05d}.safetensors"
        atomic_write(directory / name, data)
        done.append(Shard(name, len(rows), len(data), hashlib.sha256(data).hexdigest()))
        index = plan.index | {"shards": [asdict(shard) for shard in done]}
        atomic_write(directory / INDEX, json.dumps(index, indent=2) + "\n")
        if on_progress is not None:
            on_progress(len(done) / len(groups))


def _collect(
    model: Any, plan: ShardPlan, group: Int64[Tensor, " sequence"], rows: Int64[Tensor, " row"]
) -> dict[str, Tensor]:
    """One shard's tensors; row i of them is token rows[i] of the group's sequences laid end to end."""
    tokens, shapes, dtype, n_ctx = plan.tokens, plan.index["hooks"], plan.dtype, plan.tokens.shape[1]
    place = torch.empty_like(rows)
    place[rows] = torch.arange(len(rows))
    sizes = {name: len(group) if is_map(name) else len(rows) for name in shapes}
    tensors = {name: torch.empty(sizes[name], *shape, dtype=dtype) for name, shape in shapes.items()}
    start = 0
    for batch in stream(model, tokens[group], list(shapes), plan.batch_size):
        n_here = len(next(iter(batch.values())))
        where = place[start * n_ctx : (start + n_here) * n_ctx]
        for name, tensor in batch.items():
            values = tensor.to("cpu", dtype)
            if n_bad := count_bad(_unmasked(name, tensor, values)):
                raise ValueError(_describe_bad(name, tensor, values, n_bad, group[start:]))
            if is_map(name):
                tensors[name][start : start + n_here] = values
            else:
                tensors[name][where] = values.flatten(0, 1)
        start += n_here
    assert start == len(group), "every token of the group has its row"
    tensors["token"] = tokens[group].flatten()[rows]
    tensors["sequence"], tensors["position"] = group[rows // n_ctx], rows % n_ctx
    if any(map(is_map, shapes)):
        tensors["map_sequence"], tensors["map_tokens"] = group, tokens[group]
    return tensors


def _unmasked(name: str, tensor: Tensor, values: Tensor) -> Tensor:
    """The values as stored, 0 for scores that a mask had made −inf before they were stored."""
    if not name.endswith("hook_attn_scores"):
        return values
    return values.masked_fill((tensor == -torch.inf).to("cpu"), 0.0)


def _describe_bad(name: str, tensor: Tensor, stored: Tensor, n_bad: int, group: Int64[Tensor, " sequence"]) -> str:
    """What is wrong with a batch that has nan or inf as it would be stored; group: the sequences from its first on."""
    stored = _unmasked(name, tensor, stored)
    first = int((~stored.isfinite()).flatten(1).any(dim=1).nonzero()[0])
    where = f"harvest: {name} has {n_bad} nan or inf from sequence {int(group[first])} on"
    if count_bad(_unmasked(name, tensor, tensor.to("cpu"))):
        return f"{where}; expected finite activations"
    kind = str(stored.dtype).removeprefix("torch.")
    largest = torch.finfo(stored.dtype).max
    return f"{where} in {kind}, which ends at {largest:g}; expected bfloat16 or float32 (--store-dtype)"


def check_disk(directory: Path, n_bytes: int) -> None:
    """Raise ValueError where the disk of `directory` has less than n_bytes, and some to spare, free."""
    free = shutil.disk_usage(directory).free
    if n_bytes + SPARE_BYTES > free:
        raise ValueError(
            f"disk: {directory} has {free} bytes free; expected {n_bytes + SPARE_BYTES} for what is to be written"
        )
