"""Head ablation: what the loss becomes without one head, for every head, on the same tokens.

zero sets z_h := 0, which is what attention probabilities × 0 give; mean sets z_h to its mean over all the tokens given;
resample sets z_h to that of another sequence at the same position.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import torch
from einops import rearrange
from jaxtyping import Float, Float64, Int, Int64
from torch import Tensor

from workbench.experiments.ablation_engine import Sizes, ablate_batch, plan_sizes
from workbench.experiments.harvest import run_watched, stream
from workbench.experiments.impacts import check_bootstrap, impacts
from workbench.experiments.subject import checked_tokens, choose, device_of
from workbench.models import HookedLM

Kind = Literal["zero", "mean", "resample"]
KINDS: tuple[str, ...] = get_args(Kind)
MEMORY_BUDGET_BYTES = 1 << 30


@dataclass(frozen=True)
class SequenceLosses:
    """Mean loss of each sequence, nats a token: without intervention, and with each (layer, head) ablated."""

    layers: Int64[Tensor, " row"]
    heads: Int64[Tensor, " row"]
    base: Float64[Tensor, " sequence"]
    ablated: Float64[Tensor, "row sequence"]
    kl: Float64[Tensor, "row sequence"]
    """mean KL(base‖ablated) of the next-token prediction, nats"""


def join(parts: Sequence[SequenceLosses]) -> SequenceLosses:
    """The losses of several runs of sequences as one."""
    return SequenceLosses(
        parts[0].layers,
        parts[0].heads,
        torch.cat([p.base for p in parts]),
        torch.cat([p.ablated for p in parts], dim=1),
        torch.cat([p.kl for p in parts], dim=1),
    )


def ablate(
    model: Any,
    tokens: Int[Tensor, "n n_ctx"],
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    kind: Kind = "zero",
    seed: int = 0,
    *,
    n_resamples: int = 1,
    n_bootstrap: int = 2000,
    memory_budget_bytes: int = MEMORY_BUDGET_BYTES,
    name: str | None = None,
    on_progress: Callable[[float], None] | None = None,
) -> pd.DataFrame:
    """The impact of every head: ablation_results.csv's columns, then n_sequences and n_ctx; one row a (layer, head).

    base_loss and ablated_loss are nats over n_tokens predictions; impact_pct = 100·(ablated − base)/base; stderr is
    paired over sequences and ci_low, ci_high a 95 % bootstrap interval over sequences (see `impacts`), all three in per
    cent of the base loss, nan for a single sequence; kl is KL(base‖ablated) of the prediction, nats.

    Args:
        model: a `HookedLM` (all heads of a layer continue together from the clean stream), or a TransformerLens model
            (one forward a head).
        layers, heads: which; all unless given. heads are the same in every layer.
        kind: "zero", "mean" or "resample".
        seed: of the donors of resample and of the bootstrap; fills the column seed.
        n_resamples: donors of each sequence, averaged over; resample only.
        memory_budget_bytes: for what is held besides weights and tokens.
        name: the column model; the config's name unless given.

    Raises:
        ValueError: layers or heads out of range or none, an unknown kind, tokens that do not fit, more resamples than
            other sequences, a budget too small for one head of one sequence.
    """
    check_bootstrap(n_bootstrap)
    options = {"n_resamples": n_resamples, "memory_budget_bytes": memory_budget_bytes, "on_progress": on_progress}
    losses = join(list(iterate_ablation(model, tokens, layers, heads, kind, seed, **options)))
    return ablation_table(
        losses, tokens.shape[1], kind=kind, seed=seed, name=name or model.cfg.model_name, n_bootstrap=n_bootstrap
    )


def ablation_table(
    losses: SequenceLosses, n_ctx: int, *, kind: str, seed: int, name: str, n_bootstrap: int = 2000
) -> pd.DataFrame:
    """ablation_results' rows from the losses of each sequence; see `ablate`."""
    base, ablated = losses.base.numpy(), losses.ablated.numpy()
    found = impacts(base, ablated, np.random.default_rng(seed), n_bootstrap)
    return pd.DataFrame(
        {
            "model": name,
            "seed": seed,
            "layer": losses.layers.numpy(),
            "head": losses.heads.numpy(),
            "kind": kind,
            "base_loss": base.mean(),
            "ablated_loss": ablated.mean(1),
            "impact_pct": found.impact_pct,
            "stderr": found.stderr,
            "ci_low": found.ci_low,
            "ci_high": found.ci_high,
            "kl": losses.kl.numpy().mean(1),
            "n_tokens": len(base) * (n_ctx - 1),
            "n_sequences": len(base),
            "n_ctx": n_ctx,
        }
    )


def iterate_ablation(
    model: Any,
    tokens: Int[Tensor, "n n_ctx"],
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    kind: Kind = "zero",
    seed: int = 0,
    *,
    n_resamples: int = 1,
    memory_budget_bytes: int = MEMORY_BUDGET_BYTES,
    start: int = 0,
    on_progress: Callable[[float], None] | None = None,
) -> Iterator[SequenceLosses]:
    """The losses of consecutive sequences, a few at a time, beginning with sequence `start`.

    What comes for a sequence does not depend on `start`, so that a run stopped between two batches can go on. Arguments
    and errors as `ablate`, raised before the first batch.
    """
    tokens = checked_tokens("ablate", model, tokens, min_ctx=2)
    limits = {"n_resamples": n_resamples, "memory_budget_bytes": memory_budget_bytes}
    selection, sizes = check_ablation(model, tokens, layers, heads, kind, **limits)
    n = len(tokens)
    donors = _donors(n, n_resamples, seed) if kind == "resample" else None
    if not 0 <= start < n or start % sizes.batch_size:
        raise ValueError(f"start: got {start}; want a multiple of {sizes.batch_size} below {n}")
    means = _mean_z(model, tokens, list(selection), sizes.batch_size) if kind == "mean" else None
    run = ablate_batch if isinstance(model, HookedLM) else ablate_batch_generic
    return _batches(model, tokens, selection, donors, means, sizes, run, start, on_progress)


def check_ablation(
    model: Any,
    tokens: Int[Tensor, "n n_ctx"],
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    kind: Kind = "zero",
    *,
    n_resamples: int = 1,
    memory_budget_bytes: int = MEMORY_BUDGET_BYTES,
) -> tuple[dict[int, tuple[int, ...]], Sizes]:
    """(heads by layer, how the work is cut), before anything is run. Arguments and errors as `ablate`."""
    tokens = checked_tokens("ablate", model, tokens, min_ctx=2)
    cfg = model.cfg
    chosen = choose("heads", heads, cfg.n_heads)
    selection = dict.fromkeys(choose("layers", layers, cfg.n_layers), chosen)
    if kind not in KINDS:
        raise ValueError(f"kind: got {kind!r}; want one of {', '.join(KINDS)}")
    n = len(tokens)
    if kind == "resample" and not 1 <= n_resamples < n:
        raise ValueError(f"n_resamples: got {n_resamples} with {n} sequences; want 1 to the {n - 1} others")
    size = plan_sizes if isinstance(model, HookedLM) else plan_generic
    return selection, size(model, tokens.shape[1], len(selection), len(chosen), memory_budget_bytes)


def _batches(model, tokens, selection, donors, means, sizes, run, start, on_progress) -> Iterator[SequenceLosses]:
    device, n = device_of(model), len(tokens)
    rows = [(layer, head) for layer, heads in selection.items() for head in heads]
    layers, heads = torch.tensor(rows).T
    for first in range(start, n, sizes.batch_size):
        which = slice(first, min(first + sizes.batch_size, n))
        replacements = _replacements(model, tokens, selection, donors, means, which)
        base, ablated, kl = torch.empty(0), [], []
        with torch.no_grad():
            for layer, _, loss, divergence in run(model, tokens[which].to(device), selection, replacements, sizes):
                if layer < 0:
                    base = loss
                    continue
                ablated.append(loss)
                kl.append(divergence)
                if on_progress is not None:
                    share = sum(len(p) for p in ablated) / len(rows)
                    on_progress((first - start + share * (which.stop - first)) / (n - start))
        yield SequenceLosses(layers, heads, base, torch.cat(ablated), torch.cat(kl))


# --- what z becomes


def _donors(n: int, n_resamples: int, seed: int) -> Int64[Tensor, "resample sequence"]:
    """For each sequence the others that lend it their z: one random cycle through all of them, followed 1, 2, … steps.

    Each row is a derangement, and no sequence meets the same donor twice.
    """
    cycle = torch.from_numpy(np.random.default_rng([seed, 1]).permutation(n))
    donors = torch.empty(n_resamples, n, dtype=torch.long)
    for step in range(n_resamples):
        donors[step, cycle] = cycle.roll(-step - 1)
    return donors


def _mean_z(
    model: Any, tokens: Tensor, layers: Sequence[int], batch_size: int
) -> dict[int, Float[Tensor, "head d_head"]]:
    """Mean z of each head over all tokens, by layer."""
    names = {layer: f"blocks.{layer}.attn.hook_z" for layer in layers}
    sums: dict[int, Tensor] = {}
    kind = torch.float32
    for batch in stream(model, tokens, list(names.values()), batch_size):
        for layer, name in names.items():
            kind = batch[name].dtype
            sums[layer] = sums.get(layer, 0) + batch[name].double().sum((0, 1))
    return {layer: (total / tokens.numel()).to(kind) for layer, total in sums.items()}


@torch.no_grad()
def _replacements(model, tokens, selection, donors, means, which: slice) -> list[Mapping[int, Tensor | None]]:
    """z' by layer for the sequences `which`, one mapping a resample."""
    if means is not None:
        return [means]
    if donors is None:
        return [dict.fromkeys(selection)]
    names = {layer: f"blocks.{layer}.attn.hook_z" for layer in selection}
    found = []
    for of_step in donors:
        lent = run_watched(model, tokens[of_step[which]].to(device_of(model)), list(names.values()), max(selection) + 1)
        found.append({layer: lent[name] for layer, name in names.items()})
    return found


# --- any model with hooks


def plan_generic(model: Any, n_ctx: int, n_layers: int, n_heads: int, budget: int) -> Sizes:
    """The cut for `ablate_batch_generic`; arguments and errors as `plan_sizes`."""
    cfg = model.cfg
    logits = 4 * n_ctx * cfg.d_vocab
    width = 8 * cfg.d_model + 3 * (cfg.d_mlp or 0) + 8 * cfg.n_heads * cfg.d_head
    # clean and ablated logits, one copy that the model's own forward may make, and the chunk compared
    held = 4 * logits + 4 * n_ctx * (width + n_layers * 2 * cfg.n_heads * cfg.d_head + 2 * cfg.n_heads * n_ctx)
    if held > budget:
        raise ValueError(f"memory_budget_bytes: got {budget}; want at least {held} for one head of one sequence")
    batch_size = max(1, min(budget // held, 8192 // n_ctx))
    return Sizes(batch_size, batch_size, max(cfg.d_vocab, min(1 << 22, logits)))


def ablate_batch_generic(
    model: Any,
    tokens: Int[Tensor, "batch pos"],
    selection: Mapping[int, Sequence[int]],
    replacements: Sequence[Mapping[int, Tensor | None]],
    sizes: Sizes,
) -> Iterator[tuple[int, tuple[int, ...], Tensor, Tensor]]:
    """As `ablate_batch`, by one whole forward a head with z replaced at its hook."""
    clean = model(tokens, return_type="logits")
    losses, _ = _losses_and_kl(clean, clean, tokens, sizes.logits_held)
    yield -1, (), losses, torch.zeros_like(losses)
    for layer, heads in selection.items():
        for head in heads:
            found = []
            for replacement in replacements:
                hook = (f"blocks.{layer}.attn.hook_z", _replacer(head, replacement[layer]))
                logits = model.run_with_hooks(tokens, return_type="logits", fwd_hooks=[hook])
                found.append(torch.stack(_losses_and_kl(logits, clean, tokens, sizes.logits_held)))
            loss, kl = torch.stack(found).mean(0)
            yield layer, (head,), loss[None], kl[None]


def _replacer(head: int, replacement: Tensor | None) -> Callable[[Tensor, object], Tensor]:
    def replace(z: Tensor, hook: object) -> Tensor:
        z = z.clone()
        z[:, :, head] = 0.0 if replacement is None else replacement[..., head, :]
        return z

    return replace


def _losses_and_kl(
    logits: Float[Tensor, "batch pos d_vocab"], clean: Tensor, tokens: Tensor, logits_held: int
) -> tuple[Float64[Tensor, " batch"], Float64[Tensor, " batch"]]:
    """Mean next-token loss of each sequence, and mean KL(clean‖logits) at the same positions."""
    flat, flat_clean = (rearrange(t[:, :-1], "batch pos vocab -> (batch pos) vocab") for t in (logits, clean))
    targets, n = tokens[:, 1:].flatten(), max(1, logits_held // logits.shape[-1])
    losses, divergences = [], []
    for rows, rows_clean, target in zip(flat.split(n), flat_clean.split(n), targets.split(n), strict=True):
        wide = torch.promote_types(rows.dtype, torch.float32)
        log_p, log_clean = (torch.log_softmax(t.to(wide), -1) for t in (rows, rows_clean))
        losses.append(-log_p.gather(1, target[:, None]).squeeze(1))
        divergences.append((log_clean.exp() * (log_clean - log_p)).sum(-1))
    means = [torch.cat(p).cpu().double().view(len(tokens), -1).mean(1) for p in (losses, divergences)]
    return means[0], means[1]
