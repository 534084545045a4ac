"""What an analysis would take, before any text is read or a file written: tokens, bytes on disk and in memory, seconds.

Seconds come from timing a small part on made-up tokens, on the machine as busy as it is. Memory is the peak of this
very process, libraries and weights included, after a batch as large as the run's, plus what grows with the run.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

import probes
from workbench.analyses.ablate.ablation import MEMORY_BUDGET_BYTES, check_ablation, iterate_ablation
from workbench.analyses.ablate.engine import bytes_per_sequence
from workbench.analyses.compare import mean_pooled
from workbench.analyses.harvest.storing import SHARD_BYTES, probe_shapes, sequence_bytes
from workbench.analyses.probe.stability import N_PERMUTATIONS, N_SEEDS, is_repeated, stability_rows
from workbench.analyses.probe.states import TEMPLATES, TOKENS_A_BATCH, build_prompts, state_hooks, tokenizer_of
from workbench.analyses.spectra import matrix_spectra
from workbench.data.concepts import ConceptSet
from workbench.memory import planned_bytes
from workbench.models import HookedLM
from workbench.models.checks import choose
from workbench.models.streams import default_batch_size, stream

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
    size = min(n_sequences, default_batch_size(model.cfg, n_ctx, hooks) if batch_size is None else batch_size)
    tokens = made_up_tokens(model, size, n_ctx)
    shapes, stored = probe_shapes(model, tokens, hooks, dtype)
    a_sequence = sequence_bytes(shapes, n_ctx, stored)
    n_bytes = n_sequences * a_sequence
    seconds = fastest(lambda: next(stream(model, tokens, hooks, size)), model.cfg.device)
    a_shard = min(max(shard_bytes, a_sequence), n_bytes)
    return {
        "n_tokens": n_sequences * n_ctx,
        "bytes_on_disk": n_bytes,
        "n_shards": math.ceil(n_bytes / a_shard),
        # a shard is held as tensors, as the bytes of each, and as the file's
        **planned_bytes(model.cfg.device, on_host=3 * a_shard),
        "seconds": round(seconds * n_sequences / size, 1),
    }


def plan_ablation(
    model: HookedLM,
    n_sequences: int,
    n_ctx: int,
    layers: Sequence[int] | int | None = None,
    heads: Sequence[int] | int | None = None,
    *,
    components: Sequence[str] = ("head",),
    n_resamples: int = 1,
    memory_budget_bytes: int = MEMORY_BUDGET_BYTES,
) -> dict[str, Any]:
    """Facts about `ablate`; arguments and errors as there. The cost of a layer is linear in the layers behind it, so
    the first and the last of those chosen are timed."""
    cfg = model.cfg
    chosen = choose("layers", layers, cfg.n_layers)
    limits: dict[str, Any] = {"components": components, "memory_budget_bytes": memory_budget_bytes}
    parts, sizes = check_ablation(model, made_up_tokens(model, 1, n_ctx), layers, heads, **limits)
    size = min(n_sequences, sizes.batch_size)
    tokens = made_up_tokens(model, size, n_ctx)

    def run(layer: int) -> Callable[[], object]:
        return lambda: list(iterate_ablation(model, tokens, [layer], heads, **limits))

    mean = (fastest(run(chosen[0]), cfg.device) + fastest(run(chosen[-1]), cfg.device)) / 2
    # one layer's clean states were kept at a time; the run keeps those of all
    n_kept = len(chosen) - 1 if isinstance(model, HookedLM) else 0
    kept = n_kept * (bytes_per_sequence(model, n_ctx, 2, 1)[0] - bytes_per_sequence(model, n_ctx, 1, 1)[0])
    return {
        "n_tokens": n_sequences * n_ctx,
        "n_ablations": len(parts),
        "n_batches": math.ceil(n_sequences / size),
        "bytes_on_disk": 8 * n_sequences * (1 + 3 * len(parts)),
        **planned_bytes(model.cfg.device, on_device=size * kept),
        "seconds": round(mean * len(chosen) * n_resamples * n_sequences / size, 1),
    }


def plan_reading(
    model: HookedLM, n_sequences: int, n_ctx: int, measure: Callable[[Int64[Tensor, "n n_ctx"]], object]
) -> dict[str, Any]:
    """Facts about an analysis whose cost is linear in sequences: `measure` is run on a few and scaled up."""
    size = min(n_sequences, default_batch_size(model.cfg, n_ctx))
    tokens = made_up_tokens(model, size, n_ctx)
    seconds = fastest(lambda: measure(tokens), model.cfg.device)
    return {
        "n_tokens": n_sequences * n_ctx,
        **planned_bytes(model.cfg.device),
        "seconds": round(seconds * n_sequences / size, 1),
    }


def plan_compare(pair: tuple[HookedLM, HookedLM], n_sequences: int, n_ctx: int) -> dict[str, Any]:
    """Facts about `compare`: the tokens of one model; memory and seconds of both, the spectra of their weights too."""
    plans = [plan_reading(m, n_sequences, n_ctx, lambda tokens, m=m: mean_pooled(m, tokens)) for m in pair]
    spectra = sum(fastest(lambda m=m: matrix_spectra(m), "cpu", 1) for m in pair)
    total = round(sum(plan["seconds"] for plan in plans) + spectra, 1)
    return plans[0] | planned_bytes(pair[0].cfg.device) | {"seconds": total}


def plan_probe(
    models: Sequence[HookedLM],
    sets: Sequence[ConceptSet],
    n_text_tokens: int,
    *,
    n_permutations: int = 9999,
    n_points: int = 4096,
    n_stability_seeds: int = N_SEEDS,
    n_stability_permutations: int = N_PERMUTATIONS,
    templates: Sequence[str] = TEMPLATES,
) -> dict[str, Any]:
    """Facts about `probe`; arguments and errors as there. Tests cost by pairs of words, states and permutations, the
    intrinsic dimension by the square of the points: the largest set and one layer are timed."""
    n_points = min(n_points, n_text_tokens)
    n_states = sum(len(state_hooks(model)) for model in models)
    n_tokens, seconds, n_bytes = 0, 0.0, 0
    for model in models:
        own = sum(len(p.tokens) for p in build_prompts(tokenizer_of(model), sets, templates)[0])
        own += n_text_tokens if n_points else 0
        length = min(model.cfg.n_ctx, 64)
        tokens, hooks = made_up_tokens(model, TOKENS_A_BATCH // length, length), state_hooks(model)
        seconds += fastest(lambda m=model, t=tokens, h=hooks: next(stream(m, t, h)), model.cfg.device, 1) * (
            own / tokens.numel()
        )
        n_tokens += own
        n_bytes += len(hooks) * model.cfg.d_model * n_points * max(4, model.cfg.dtype.itemsize)  # states of the text
    rng = np.random.default_rng(0)
    tested = [len(one.words) for one in sets if one.topology not in ("free", "paired")]
    if tested:
        n_pairs = max(tested) * (max(tested) - 1) // 2
        xs = rng.random((n_states, n_pairs))
        run = fastest(lambda: probes.mantel_many(xs, xs[0], n_resamples=n_permutations).confidence_interval, "cpu", 1)
        # twice: raw, and given the spelling
        seconds += 2 * run * sum(n * (n - 1) // 2 for n in tested) / n_pairs
    if n_stability_seeds and (repeated := [one for one in sets if is_repeated(one)]):
        largest = max(repeated, key=lambda one: len(one.words))
        n = len(largest.words)
        given = (largest, rng.random((2, n * (n - 1) // 2)), probes.ordinal_distances(n))
        run = fastest(lambda: stability_rows({}, *given, n_seeds=1, n_permutations=n_stability_permutations), "cpu", 1)
        seconds += run * n_stability_seeds * len(models) * sum((len(one.words) / n) ** 2 for one in repeated)
    if n_points:
        cloud = rng.standard_normal((n_points, max(model.cfg.d_model for model in models))).astype(np.float32)
        seconds += 2 * n_states * fastest(lambda: probes.two_nn(cloud), "cpu", 1)
    return {
        "n_models": len(models),
        "n_sets": len(sets),
        "n_words": sum(len(one.all_words) for one in sets),
        "n_tokens": n_tokens,
        **planned_bytes(models[0].cfg.device, on_host=n_bytes),
        "seconds": round(seconds, 1),
    }


def made_up_tokens(model: HookedLM, n: int, n_ctx: int) -> Int64[Tensor, "n n_ctx"]:
    """Some token ids of the vocabulary; which, does not matter for time."""
    return torch.arange(n * n_ctx).reshape(n, n_ctx) % model.cfg.d_vocab


def fastest(run: Callable[[], object], device: str, n_timed: int = N_TIMED) -> float:
    """Seconds of the fastest of n_timed runs."""
    seconds = []
    for _ in range(n_timed):
        start = time.perf_counter()
        run()
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds)
