"""Pairs of heads ablated together, and their interaction: what the pair costs beyond the two heads by themselves.

Two heads that can stand in for each other cost little each and much together: a positive interaction is redundancy.
The first head's stream is run on once and kept as the clean one is, and every second head is taken out of that.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from numbers import Integral
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float64, Int, Int64
from torch import Tensor

from workbench.analyses.ablate.ablation import Kind, check_kind, check_start, stand_ins
from workbench.analyses.ablate.engine import (
    Sizes,
    ablated_states,
    clean_pass,
    pass_behind,
    plan_sizes,
    residuals_without,
    sequence_means,
)
from workbench.analyses.ablate.generic import ablated_losses, losses_and_kl, plan_generic, replacing_hook
from workbench.analyses.ablate.impacts import check_bootstrap, impacts
from workbench.analyses.ablate.losses import compare, reference
from workbench.analyses.ablate.precision import as_float32
from workbench.analyses.ablate.records import CleanPass, Part, Replacements
from workbench.models import HookedLM
from workbench.models.checks import (
    as_list,
    check_hooks,
    check_read,
    checked_tokens,
    choose,
    device_of,
    is_whole,
    run_hooked,
)
from workbench.models.costs import MEMORY_BUDGET_BYTES

Head = tuple[int, int]
"""(layer, head)"""
Pair = tuple[Head, Head]


@dataclass(frozen=True)
class PairLosses:
    """Mean loss of each sequence, nats per token: as it is, without either head of a pair, and without both."""

    pairs: Int64[Tensor, "row 4"]
    """layer and head of the first, layer and head of the second"""
    base: Float64[Tensor, " sequence"]
    first: Float64[Tensor, "row sequence"]
    second: Float64[Tensor, "row sequence"]
    both: Float64[Tensor, "row sequence"]
    kl: Float64[Tensor, "row sequence"]
    """mean KL(base‖without both) of the next-token prediction, nats"""


def join_pairs(runs: Sequence[PairLosses]) -> PairLosses:
    """The losses of several runs of sequences as one."""
    across = {f.name: torch.cat([getattr(run, f.name) for run in runs], dim=-1) for f in fields(PairLosses)[1:]}
    return PairLosses(runs[0].pairs, **across)


def pairs_within_layers(
    model: Any, layers: Sequence[int] | int | None = None, heads: Sequence[int] | int | None = None
) -> list[Pair]:
    """Every pair of heads of one layer; errors as `ablate`."""
    chosen = choose("heads", heads, model.cfg.n_heads)
    return [
        ((layer, a), (layer, b))
        for layer in choose("layers", layers, model.cfg.n_layers)
        for a, b in itertools.combinations(chosen, 2)
    ]


def ablate_pairs(
    model: Any,
    tokens: Int[Tensor, "n n_ctx"],
    pairs: Sequence[Pair] | None = None,
    kind: Kind = "zero",
    seed: int = 0,
    *,
    n_resamples: int = 1,
    n_bootstrap: int = 2000,
    memory_budget_bytes: int = MEMORY_BUDGET_BYTES,
    name: str | None = None,
    on_progress: Callable[[float], None] | None = None,
) -> pd.DataFrame:
    """The rows of ablation_pairs.csv, one per pair of heads: impacts of the first, the second and both, and their
    interaction.

    interaction_pct = joint_pct − impact_a_pct − impact_b_pct; its stderr is paired over sequences, ci_low and ci_high
    its 95 % bootstrap interval over sequences, as for an impact (see `impacts`). kl is KL(base‖without both).

    Args:
        pairs: ((layer, head), (layer, head)) each; every pair within a layer by default.
        kind, seed, n_resamples, memory_budget_bytes, name: as in `ablate`; the donors are those of `ablate`.

    Raises:
        ValueError: no pairs, one given twice, of one head, or of heads that the model has not; what `ablate` raises.
    """
    check_bootstrap(n_bootstrap)
    limits: dict[str, Any] = {"n_resamples": n_resamples, "memory_budget_bytes": memory_budget_bytes}
    runs = iterate_pairs(as_float32(model), tokens, pairs, kind, seed, **limits, on_progress=on_progress)
    about = {"kind": kind, "seed": seed, "name": name or model.cfg.model_name, "n_bootstrap": n_bootstrap}
    return pairs_table(join_pairs(list(runs)), tokens.shape[1], **about)


def pairs_table(
    losses: PairLosses, n_ctx: int, *, kind: str, seed: int, name: str, n_bootstrap: int = 2000
) -> pd.DataFrame:
    """ablation_pairs' rows from the losses of each sequence; see `ablate_pairs`."""
    base, first, second, both = (getattr(losses, name).numpy() for name in ("base", "first", "second", "both"))
    # as the impact of an ablation that changes each sequence's loss by what the pair adds to its heads
    found = impacts(base, base + (both - first - second + base), np.random.default_rng(seed), n_bootstrap)
    single = {key: 100 * (value.mean(1) / base.mean() - 1) for key, value in (("a", first), ("b", second))}
    return pd.DataFrame(
        {
            "model": name,
            "seed": seed,
            "layer_a": losses.pairs[:, 0].numpy(),
            "head_a": losses.pairs[:, 1].numpy(),
            "layer_b": losses.pairs[:, 2].numpy(),
            "head_b": losses.pairs[:, 3].numpy(),
            "kind": kind,
            "impact_a_pct": single["a"],
            "impact_b_pct": single["b"],
            "joint_pct": 100 * (both.mean(1) / base.mean() - 1),
            "interaction_pct": found.impact_pct,
            "stderr": found.stderr,
            "ci_low": found.ci_low,
            "ci_high": found.ci_high,
            "kl": losses.kl.numpy().mean(1),
            "n_tokens": len(base) * (n_ctx - 1),
            "n_sequences": len(base),
            "n_ctx": n_ctx,
        }
    )


def iterate_pairs(
    model: Any,
    tokens: Int[Tensor, "n n_ctx"],
    pairs: Sequence[Pair] | None = None,
    kind: Kind = "zero",
    seed: int = 0,
    *,
    n_resamples: int = 1,
    memory_budget_bytes: int = MEMORY_BUDGET_BYTES,
    start: int = 0,
    on_progress: Callable[[float], None] | None = None,
) -> Iterator[PairLosses]:
    """The losses of consecutive sequences, a few at a time, from sequence `start`, as `iterate_ablation` gives them."""
    tokens = checked_tokens("ablate", model, tokens, min_ctx=2)
    limits = {"n_resamples": n_resamples, "memory_budget_bytes": memory_budget_bytes}
    chosen, sizes = check_pairs(model, tokens, pairs, kind, **limits)
    check_start(start, len(tokens), sizes)
    parts = [Part(layer, "head", head) for layer, head in _heads_of(chosen)]
    if not is_whole(model):
        check_read(model, tokens, list(dict.fromkeys(part.hook for part in parts)))
    stand_in = stand_ins(model, tokens, parts, kind, seed, n_resamples, sizes.batch_size)
    return _batches(model, tokens, chosen, stand_in, sizes, start, on_progress)


def check_pairs(
    model: Any,
    tokens: Int[Tensor, "n n_ctx"],
    pairs: Sequence[Pair] | None = None,
    kind: Kind = "zero",
    *,
    n_resamples: int = 1,
    memory_budget_bytes: int = MEMORY_BUDGET_BYTES,
) -> tuple[list[Pair], Sizes]:
    """(pairs, each with the earlier head first, in their order; how the work is cut); errors as `ablate_pairs`."""
    tokens = checked_tokens("ablate", model, tokens, min_ctx=2)
    chosen = pairs_within_layers(model) if pairs is None else [_as_pair(pair) for pair in as_list("pairs", pairs)]
    if not chosen:
        raise ValueError("pairs: got none; expected at least one pair of heads")
    for layer, head in _heads_of(chosen):
        if not (0 <= layer < model.cfg.n_layers and 0 <= head < model.cfg.n_heads):
            raise ValueError(
                f"pairs: got head {layer}.{head}; expected 0…{model.cfg.n_layers - 1}.0…{model.cfg.n_heads - 1}"
            )
    for a, b in chosen:
        if a == b:
            raise ValueError(f"pairs: got head {a[0]}.{a[1]} with itself; expected two heads")
    if len(set(chosen)) < len(chosen):
        raise ValueError("pairs: got one twice; expected each once")
    check_hooks(model, list(dict.fromkeys(Part(layer, "head", head).hook for layer, head in _heads_of(chosen))))
    check_kind(kind, n_resamples, len(tokens))
    size = plan_sizes if is_whole(model) else plan_generic
    n_layers = model.cfg.n_layers - min(a[0] for a, _ in chosen)
    sizes = size(model.cfg, tokens.shape[1], n_layers, model.cfg.n_heads, memory_budget_bytes, n_passes=2)
    return sorted(chosen), sizes


def _as_pair(given: Any) -> Pair:
    """The pair, its earlier head first; raises ValueError for what is not two heads of a layer and a head each."""
    heads = [tuple(as_list("pairs", head)) for head in as_list("pairs", given)]
    if len(heads) != 2 or not all(len(head) == 2 and all(isinstance(i, Integral) for i in head) for head in heads):
        raise ValueError(f"pairs: got {given!r:.80}; expected ((layer, head), (layer, head))")
    a, b = sorted(heads)
    return a, b


def _heads_of(pairs: Sequence[Pair]) -> list[Head]:
    return sorted({head for pair in pairs for head in pair})


def _batches(model, tokens, pairs, stand_in, sizes, start, on_progress) -> Iterator[PairLosses]:
    device, n = device_of(model), len(tokens)
    run = _pairs_of_batch if is_whole(model) else _pairs_of_batch_generic
    for begin in range(start, n, sizes.batch_size):
        which = slice(begin, min(begin + sizes.batch_size, n))
        with torch.no_grad():
            base, singles, both = run(model, tokens[which].to(device), pairs, stand_in(which), sizes)
        first, second = (torch.stack([singles[pair[i]] for pair in pairs]) for i in (0, 1))
        joint, kl = torch.stack([both[pair] for pair in pairs], dim=1)
        rows = torch.tensor([(*a, *b) for a, b in pairs])
        yield PairLosses(rows, base, first, second, joint, kl)
        if on_progress is not None:
            on_progress((which.stop - start) / (n - start))


def _pairs_of_batch(
    model: HookedLM, tokens: Int[Tensor, "batch pos"], pairs: Sequence[Pair], replacements: Replacements, sizes: Sizes
) -> tuple[Tensor, dict[Head, Tensor], dict[Pair, Tensor]]:
    """(base [batch], losses [batch] without each head, [loss or KL, batch] without each pair)."""
    n_batch = len(tokens)
    layers = sorted({layer for layer, _ in _heads_of(pairs)})
    clean = clean_pass(model, tokens, layers)
    base = reference(model, clean.final, tokens, sizes.logits_held)

    def values_of(kept: CleanPass, layer: int, heads: Sequence[int], replacement: Any) -> Tensor:
        """[loss or KL, head, batch] without each of these heads, from a pass with or without another."""
        parts = [Part(layer, "head", head) for head in heads]
        x = torch.cat(list(residuals_without(model, kept, parts, replacement, sizes.n_together)))
        return sequence_means(compare(model, x, base, sizes.logits_held), n_batch)

    singles: dict[Head, Tensor] = {}
    for layer in layers:
        heads = [head for own, head in _heads_of(pairs) if own == layer]
        losses = torch.stack([values_of(clean, layer, heads, own)[0] for own in replacements]).mean(0)
        singles |= {(layer, head): loss for head, loss in zip(heads, losses, strict=True)}
    sums: dict[Pair, Tensor] = {}
    for (layer, head), group in itertools.groupby(pairs, key=lambda pair: pair[0]):
        partners = [second for _, second in group]
        for replacement in replacements:
            kept = _without_first(model, clean, layer, head, replacement, [own for own, _ in partners])
            for later, of_layer in itertools.groupby(partners, key=lambda second: second[0]):
                heads = [other for _, other in of_layer]
                for other, value in zip(heads, values_of(kept, later, heads, replacement).unbind(1), strict=True):
                    pair = ((layer, head), (later, other))
                    sums[pair] = sums.get(pair, 0) + value
    both = {pair: total / len(replacements) for pair, total in sums.items()}
    return sequence_means((base.loss[None],), n_batch)[0, 0], singles, both


def _without_first(
    model: HookedLM, clean: CleanPass, layer: int, head: int, replacement: Any, layers: Sequence[int]
) -> CleanPass:
    """The forward without one head, kept as the clean one is at `layers`, which are that head's or later."""
    mid = ablated_states(model, clean, layer, [head], replacement[Part(layer, "head").hook])
    later = sorted({own for own in layers if own > layer})
    # without a later layer the final state is not read
    behind = pass_behind(model, mid, layer, later) if later else CleanPass({}, {}, clean.final)
    return CleanPass({**behind.mid, layer: mid}, {**behind.z, layer: clean.z[layer]}, behind.final)


def _pairs_of_batch_generic(
    model: Any, tokens: Int[Tensor, "batch pos"], pairs: Sequence[Pair], replacements: Replacements, sizes: Sizes
) -> tuple[Tensor, dict[Head, Tensor], dict[Pair, Tensor]]:
    """As `_pairs_of_batch`, by one whole forward per head and per pair."""
    clean = run_hooked(model, tokens, [], return_type="logits")
    base, _ = losses_and_kl(clean, clean, tokens, sizes.logits_held)

    def run(heads: Sequence[Head]) -> Tensor:
        found = []
        for replacement in replacements:
            hooks = [replacing_hook(Part(layer, "head", head), replacement) for layer, head in heads]
            found.append(ablated_losses(model, tokens, clean, hooks, sizes.logits_held))
        return torch.stack(found).mean(0)

    return base, {head: run([head])[0] for head in _heads_of(pairs)}, {pair: run(pair) for pair in pairs}
