"""Ablation: what the loss becomes without a head, without a layer's attention, without an MLP, on the same tokens.

zero sets z_h := 0, which is what attention probabilities × 0 give; mean sets z_h to its mean over all the tokens given;
resample sets z_h to that of another sequence at the same position. An MLP's output is replaced in the same three ways.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float64, Int, Int64
from torch import Tensor

from workbench.analyses.ablate.engine import Sizes, ablate_batch, plan_sizes
from workbench.analyses.ablate.generic import ablate_batch_generic, plan_generic
from workbench.analyses.ablate.impacts import Margin, check_bootstrap, impacts, summarize, top_margin
from workbench.analyses.ablate.load_bearing import N_PERMUTATIONS, load_bearing
from workbench.analyses.ablate.precision import N_CHECKED, as_float32, in_precision, is_narrow, measure_errors
from workbench.analyses.ablate.records import COMPONENTS, Part, Replacements, SequenceLosses, join
from workbench.data.blocks import block_numbers
from workbench.models.checks import check_hooks, check_read, checked_tokens, choose, device_of, is_whole, run_watched
from workbench.models.costs import MEMORY_BUDGET_BYTES
from workbench.models.streams import stream

Kind = Literal["zero", "mean", "resample"]
KINDS: tuple[str, ...] = get_args(Kind)


def ablate(
    model: Any,
    tokens: Int[Tensor, "n n_ctx"],
    layers: Sequence[int] | int | None = None,
    heads: Sequence[int] | int | None = None,
    kind: Kind = "zero",
    seed: int = 0,
    *,
    components: Sequence[str] = ("head",),
    n_resamples: int = 1,
    n_bootstrap: int = 2000,
    has_estimate: bool = True,
    dtype: str | None = None,
    memory_budget_bytes: int = MEMORY_BUDGET_BYTES,
    name: str | None = None,
    on_progress: Callable[[float], None] | None = None,
) -> pd.DataFrame:
    """The impact of every head, one row per ablated part: the columns of ablation_results.csv, then those of
    `ablation_table`.

    base_loss and ablated_loss are nats over n_tokens predictions; impact_pct = 100·(ablated − base)/base; stderr is
    paired over sequences and ci_low, ci_high a 95 % bootstrap interval over sequences (see `impacts`), all three in per
    cent of the base loss, nan for a single sequence; kl is KL(base‖ablated) of the prediction, nats.

    Args:
        model: a `HookedLM` (all heads of a layer continue together from the clean stream), or a TransformerLens model
            (one forward pass per part).
        layers, heads: all by default, each layer must then have heads; heads are the same in every layer.
        kind: "zero", "mean" or "resample".
        seed: for the donors of resample and for the bootstrap; fills the column seed.
        components: what to ablate in each layer: "head" (each of `heads` by itself), "layer" (all its heads together),
            "mlp". In rows of the last two, head is -1.
        n_resamples: donors of each sequence, averaged over; only for resample.
        has_estimate: whether to compute the gradient's estimate (`attribution`) too; otherwise estimate_pct is nan.
        dtype: what a `HookedLM`, or a model by the generic path, runs in: float32 unless it is float64, or "bfloat16",
            whose error on the impacts is then measured on the first sequences (`ablation_precision`).
        memory_budget_bytes: for everything held besides weights and tokens.
        name: fills the column model; the config's name by default.

    Raises:
        ValueError: layers or heads out of range or none, an unknown kind, component or dtype, a component that the
            model or one of the layers has not, or that its forward does not read from the hook, tokens that do not fit,
            more resamples than other sequences, a budget too small for one head of one sequence.
    """
    check_bootstrap(n_bootstrap)
    subject = in_precision(model, dtype)
    limits: dict[str, Any] = {"components": components, "n_resamples": n_resamples, "has_estimate": has_estimate}
    options: dict[str, Any] = limits | {"memory_budget_bytes": memory_budget_bytes}
    selection = (layers, heads, kind, seed)
    losses = join(list(iterate_ablation(subject, tokens, *selection, **options, on_progress=on_progress)))
    errors = rounding_errors(model, subject, tokens, losses, *selection, **options)
    about = {"kind": kind, "seed": seed, "name": name or model.cfg.model_name, "n_bootstrap": n_bootstrap}
    return ablation_table(losses, tokens.shape[1], **about, dtype=subject.cfg.dtype, errors=errors)


def rounding_errors(
    model: Any,
    subject: Any,
    tokens: Int[Tensor, "n n_ctx"],
    losses: SequenceLosses,
    layers: Sequence[int] | int | None,
    heads: Sequence[int] | int | None,
    kind: Kind,
    seed: int,
    **options: Any,
) -> Float64[np.ndarray, " row"]:
    """|impact_pct of `subject` − impact_pct of the model in float32| of each row, on the first batches,
    N_CHECKED sequences at least; nan where the subject is not narrower than float32, or cannot be had in that."""
    if not is_narrow(subject):
        return np.full(len(losses.ablated), np.nan)
    runs, n_done = [], 0
    own: dict[str, Any] = options | {"has_estimate": False}
    for run in iterate_ablation(as_float32(model), tokens, layers, heads, kind, seed, **own):
        runs.append(run)
        n_done += len(run.base)
        if n_done >= N_CHECKED:
            break
    return measure_errors(losses, join(runs))


def ablation_table(
    losses: SequenceLosses,
    n_ctx: int,
    *,
    kind: str,
    seed: int,
    name: str,
    n_bootstrap: int = 2000,
    dtype: torch.dtype = torch.float32,
    errors: Float64[np.ndarray, " row"] | None = None,
) -> pd.DataFrame:
    """ablation_results' rows from the losses of each sequence; see `ablate`.

    Behind the table's own columns: n_sequences, n_ctx; component ("head", "layer" or "mlp"); estimate_pct, what the
    gradient alone says impact_pct would be; dtype, and error_pct, the measured error of a narrower one than float32.
    """
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
            "component": [part.component for part in losses.parts],
            "estimate_pct": 100 * losses.estimate.numpy().mean(1) / base.mean(),
            "dtype": str(dtype).removeprefix("torch."),
            "error_pct": np.nan if errors is None else errors,
        }
    )


def without_blocks(losses: SequenceLosses) -> pd.DataFrame:
    """ablation_results_blocks' rows but for model, seed and kind: what the table says of each part without each block
    of the sequences; none of fewer than 8 sequences."""
    numbers = np.array(block_numbers(len(losses.base)))
    parts = []
    for block in range(numbers.max() + 1 if numbers.max() else 0):
        kept = numbers != block
        base, ablated = losses.base.numpy()[kept].mean(), losses.ablated.numpy()[:, kept].mean(1)
        columns = {"base_loss": base, "ablated_loss": ablated, "impact_pct": 100 * (ablated - base) / base}
        place = {"layer": losses.layers.numpy(), "head": losses.heads.numpy(), "block": block}
        parts.append(pd.DataFrame(place | columns | {"kl": losses.kl.numpy()[:, kept].mean(1)}))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def summary_table(
    table: pd.DataFrame, losses: SequenceLosses, seed: int = 0, *, n_bootstrap: int = 2000
) -> pd.DataFrame:
    """ablation_summary's rows of one model: `summarize`, with the load-bearing test wherever it is defined, that is
    with two sequences and two heads per layer at least, and with margins wherever there are two heads."""
    n_heads = sum(part.component == "head" and part.layer == losses.parts[0].layer for part in losses.parts)
    is_defined = len(losses.base) > 1 and n_heads > 1
    tested = load_bearing(losses, seed) if is_defined else None
    return summarize(table, tested, head_margins(losses, seed, n_bootstrap), N_PERMUTATIONS)


def head_margins(losses: SequenceLosses, seed: int = 0, n_bootstrap: int = 2000) -> dict[int, Margin]:
    """Layer -> `top_margin` of its heads, and under −1 that of all heads; of two heads or more."""
    rng = np.random.default_rng(seed)
    heads = [i for i, part in enumerate(losses.parts) if part.component == "head"]
    layers = [int(losses.layers[i]) for i in heads]
    groups = {
        layer: [i for i, own in zip(heads, layers, strict=True) if own == layer] for layer in dict.fromkeys(layers)
    }
    base, ablated = losses.base.numpy(), losses.ablated.numpy()
    return {
        layer: Margin(*top_margin(base, ablated[rows], rng, n_bootstrap))
        for layer, rows in {**groups, -1: heads}.items()
        if len(rows) > 1
    }


def iterate_ablation(
    model: Any,
    tokens: Int[Tensor, "n n_ctx"],
    layers: Sequence[int] | int | None = None,
    heads: Sequence[int] | int | None = None,
    kind: Kind = "zero",
    seed: int = 0,
    *,
    components: Sequence[str] = ("head",),
    n_resamples: int = 1,
    has_estimate: bool = True,
    memory_budget_bytes: int = MEMORY_BUDGET_BYTES,
    start: int = 0,
    on_progress: Callable[[float], None] | None = None,
) -> Iterator[SequenceLosses]:
    """The losses of consecutive sequences, a few at a time, beginning with sequence `start`, in the model's own dtype.

    What comes for a sequence does not depend on `start`, so that a run stopped between two batches can go on. Arguments
    and errors as `ablate`, raised before the first batch.
    """
    tokens = checked_tokens("ablate", model, tokens, min_ctx=2)
    limits = {"n_resamples": n_resamples, "memory_budget_bytes": memory_budget_bytes}
    parts, sizes = check_ablation(model, tokens, layers, heads, kind, components=components, **limits)
    check_start(start, len(tokens), sizes)
    if not is_whole(model):
        check_read(model, tokens, list(dict.fromkeys(part.hook for part in parts)))
    stand_in = stand_ins(model, tokens, parts, kind, seed, n_resamples, sizes.batch_size)
    return _batches(model, tokens, parts, stand_in, sizes, has_estimate, start, on_progress)


def check_ablation(
    model: Any,
    tokens: Int[Tensor, "n n_ctx"],
    layers: Sequence[int] | int | None = None,
    heads: Sequence[int] | int | None = None,
    kind: Kind = "zero",
    *,
    components: Sequence[str] = ("head",),
    n_resamples: int = 1,
    memory_budget_bytes: int = MEMORY_BUDGET_BYTES,
) -> tuple[tuple[Part, ...], Sizes]:
    """(parts in the table's order, how the work is cut), before anything is run. Arguments and errors as `ablate`."""
    tokens = checked_tokens("ablate", model, tokens, min_ctx=2)
    cfg = model.cfg
    parts = choose_parts(model, layers, heads, components)
    if "mlp" in components and getattr(cfg, "attn_only", False):
        raise ValueError("components: got 'mlp' for a model of attention alone; expected head or layer")
    check_hooks(model, list(dict.fromkeys(part.hook for part in parts)))
    check_kind(kind, n_resamples, len(tokens))
    size = plan_sizes if is_whole(model) else plan_generic
    n_layers = cfg.n_layers - parts[0].layer
    n_parts = max(sum(part.layer == own.layer for own in parts) for part in parts)
    return parts, size(cfg, tokens.shape[1], n_layers, n_parts, memory_budget_bytes)


def choose_parts(
    model: Any, layers: Sequence[int] | int | None, heads: Sequence[int] | int | None, components: Sequence[str]
) -> tuple[Part, ...]:
    """The parts chosen, layer by layer, heads first; errors as `ablate`."""
    if isinstance(components, str) or not components or set(components) - set(COMPONENTS):
        raise ValueError(f"components: got {components!r}; expected some of {', '.join(COMPONENTS)}")
    of_layer: list[tuple[Any, int]] = []
    chosen_heads = choose("heads", heads, model.cfg.n_heads)
    for component in COMPONENTS:
        if component in components:
            of_layer += [("head", head) for head in chosen_heads] if component == "head" else [(component, -1)]
    chosen = choose("layers", layers, model.cfg.n_layers)
    return tuple(Part(layer, component, head) for layer in chosen for component, head in of_layer)


def check_kind(kind: str, n_resamples: int, n: int) -> None:
    """Raise ValueError for an unknown kind, or more donors than there are other sequences."""
    if kind not in KINDS:
        raise ValueError(f"kind: got {kind!r}; expected one of {', '.join(KINDS)}")
    if kind == "resample" and not 1 <= n_resamples < n:
        raise ValueError(f"n_resamples: got {n_resamples} with {n} sequences; expected 1 to the {n - 1} others")


def check_start(start: int, n: int, sizes: Sizes) -> None:
    """Raise ValueError for a sequence at which no batch begins."""
    if not 0 <= start < n or start % sizes.batch_size:
        raise ValueError(f"start: got {start}; expected a multiple of {sizes.batch_size} below {n}")


def _batches(model, tokens, parts, stand_in, sizes, has_estimate, start, on_progress) -> Iterator[SequenceLosses]:
    device, n = device_of(model), len(tokens)
    run = ablate_batch if is_whole(model) else ablate_batch_generic

    def tell_of(which: slice) -> Callable[[int], None]:
        def tell(n_done: int) -> None:
            if on_progress is not None:
                share = n_done / len(parts)
                on_progress((which.start - start + share * (which.stop - which.start)) / (n - start))

        return tell

    for first in range(start, n, sizes.batch_size):
        which = slice(first, min(first + sizes.batch_size, n))
        with torch.no_grad():
            given = (tokens[which].to(device), parts, stand_in(which), sizes, has_estimate, tell_of(which))
            losses = run(model, *given)
        yield losses


# --- what takes an activation's place


def stand_ins(
    model: Any, tokens: Tensor, parts: Sequence[Part], kind: str, seed: int, n_resamples: int, batch_size: int
) -> Callable[[slice], Replacements]:
    """A function of a run of sequences that gives their replacements."""
    names = list(dict.fromkeys(part.hook for part in parts))
    if kind == "zero":
        return lambda which: [dict.fromkeys(names)]
    if kind == "mean":
        means = _means(model, tokens, names, batch_size)
        return lambda which: [means]
    donors, stop = draw_donors(len(tokens), n_resamples, seed), max(part.layer for part in parts) + 1

    def lent(which: slice) -> Replacements:
        device = device_of(model)
        return [run_watched(model, tokens[of_step[which]].to(device), names, stop) for of_step in donors]

    return lent


def draw_donors(n: int, n_resamples: int, seed: int) -> Int64[Tensor, "resample sequence"]:
    """For each sequence the others that lend it their z: one random cycle through all of them, followed 1, 2, … steps.

    Each row is a derangement, and no sequence meets the same donor twice.
    """
    cycle = torch.from_numpy(np.random.default_rng([seed, 1]).permutation(n))
    donors = torch.empty(n_resamples, n, dtype=torch.long)
    for step in range(n_resamples):
        donors[step, cycle] = cycle.roll(-step - 1)
    return donors


def _means(model: Any, tokens: Tensor, names: Sequence[str], batch_size: int) -> dict[str, Tensor | None]:
    """Mean activation over all tokens, by hook name."""
    sums: dict[str, Tensor] = {}
    kinds: dict[str, torch.dtype] = {}
    for batch in stream(model, tokens, names, batch_size):
        for name, activation in batch.items():
            kinds[name] = activation.dtype
            sums[name] = sums.get(name, 0) + activation.double().sum((0, 1))
    return {name: (total / tokens.numel()).to(kinds[name]) for name, total in sums.items()}
