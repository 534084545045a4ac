"""What an analysis would take, before any text is read or a file written: tokens, bytes on disk and in memory, seconds.

Seconds come from timing a small part on made-up tokens, on the machine as busy as it is.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from workbench.experiments.ablation import MEMORY_BUDGET_BYTES, iterate_ablation
from workbench.experiments.ablation_engine import plan_sizes
from workbench.experiments.harvest import INDEX_COLUMNS, SHARD_BYTES, default_batch_size, probe_shapes, stream
from workbench.experiments.subject import choose
from workbench.models import HookedLM
from workbench.training.plan import PROCESS_BYTES

N_TIMED = 2  # times, of which the faster counts: the first warms caches and allocators


def plan_harvest(
    model: HookedLM,
    n_sequences: int,
    n_ctx: int,
    hooks: Sequence[str],
    *,
    dtype: str | None = None,
    shard_bytes: int = SHARD_BYTES,
    batch_size: int | None = None,
) -> dict[str, Any]:
    """Facts about `harvest`; arguments and errors as there."""
    size = min(n_sequences, default_batch_size(n_ctx) if batch_size is None else batch_size)
    tokens = made_up_tokens(model, size, n_ctx)
    shapes, stored = probe_shapes(model, tokens, hooks, dtype)
    row_bytes = sum(math.prod(s) for s in shapes.values()) * stored.itemsize + 8 * len(INDEX_COLUMNS)
    n_tokens = n_sequences * n_ctx
    seconds = fastest(lambda: next(stream(model, tokens, hooks, size)), model.cfg.device)
    a_shard = min(max(shard_bytes, n_ctx * row_bytes), n_tokens * row_bytes)
    return {
        "n_tokens": n_tokens,
        "bytes_on_disk": n_tokens * row_bytes,
        "n_shards": math.ceil(n_tokens * row_bytes / a_shard),
        # a shard is held twice: as tensors, and as the bytes that are written
        "bytes_in_memory": PROCESS_BYTES + _weight_bytes(model) + 2 * a_shard + 2 * size * n_ctx * row_bytes,
        "seconds": round(seconds * n_sequences / size, 1),
    }


def plan_ablation(
    model: HookedLM,
    n_sequences: int,
    n_ctx: int,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    *,
    n_resamples: int = 1,
    memory_budget_bytes: int = MEMORY_BUDGET_BYTES,
) -> dict[str, Any]:
    """Facts about `ablate`; arguments and errors as there. The cost of a layer is linear in the layers behind it, so
    the first and the last of those chosen are timed."""
    cfg = model.cfg
    chosen = choose("layers", layers, cfg.n_layers)
    n_heads = len(choose("heads", heads, cfg.n_heads))
    sizes = plan_sizes(model, n_ctx, len(chosen), n_heads, memory_budget_bytes)
    size = min(n_sequences, sizes.batch_size)
    tokens = made_up_tokens(model, size, n_ctx)

    def run(layer: int) -> Callable[[], object]:
        return lambda: list(iterate_ablation(model, tokens, [layer], heads, memory_budget_bytes=memory_budget_bytes))

    mean = (fastest(run(chosen[0]), cfg.device) + fastest(run(chosen[-1]), cfg.device)) / 2
    return {
        "n_tokens": n_sequences * n_ctx,
        "n_ablations": len(chosen) * n_heads,
        "n_batches": math.ceil(n_sequences / size),
        "bytes_on_disk": 16 * n_sequences * (1 + len(chosen) * n_heads),
        "bytes_in_memory": PROCESS_BYTES + _weight_bytes(model) + memory_budget_bytes,
        "seconds": round(mean * len(chosen) * n_resamples * n_sequences / size, 1),
    }


def plan_reading(
    model: HookedLM, n_sequences: int, n_ctx: int, measure: Callable[[Int64[Tensor, "n n_ctx"]], object]
) -> dict[str, Any]:
    """Facts about an analysis whose cost is linear in sequences: `measure` is run on a few and scaled up."""
    size = min(n_sequences, default_batch_size(n_ctx))
    tokens = made_up_tokens(model, size, n_ctx)
    seconds = fastest(lambda: measure(tokens), model.cfg.device)
    return {
        "n_tokens": n_sequences * n_ctx,
        "bytes_in_memory": PROCESS_BYTES + _weight_bytes(model) + (256 << 20),
        "seconds": round(seconds * n_sequences / size, 1),
    }


def made_up_tokens(model: HookedLM, n: int, n_ctx: int) -> Int64[Tensor, "n n_ctx"]:
    """Some token ids of the vocabulary; which, does not matter for time."""
    return torch.arange(n * n_ctx).reshape(n, n_ctx) % model.cfg.d_vocab


def fastest(run: Callable[[], object], device: str) -> float:
    """Seconds of the faster of two runs."""
    seconds = []
    for _ in range(N_TIMED):
        start = time.perf_counter()
        run()
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _weight_bytes(model: HookedLM) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters())
