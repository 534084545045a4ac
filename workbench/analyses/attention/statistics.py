"""Where heads look: entropy, mass on position 0, the two scores on repeated random tokens, and kinds of heads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Float64, Int, Int64
from torch import Tensor

from workbench.analyses.attention.settings import N_REPEATED
from workbench.data.blocks import block_numbers, block_runs, without_each
from workbench.models.activations import special_ids
from workbench.models.checks import checked_tokens, choose, device_of, run_hooked

MAP_ELEMENTS = 1 << 21  # attention weights of one layer held at once; more gain nothing on a CPU
MAX_REPEAT = 128  # tokens of the repeated half, at most
N_LATEST = 4  # positions that count as local
# measure -> value from which on a head is of the kind that it names, the first that holds. Even attention has less than
# a tenth of each but of local_mass on short windows, and of entropy_share, where it is 1
THRESHOLDS: Mapping[str, float] = MappingProxyType(
    {"induction": 0.3, "previous_token": 0.3, "bos_mass": 0.5, "local_mass": 0.5, "entropy_share": 0.95}
)
Reader = Callable[[Float[Tensor, "batch head query key"]], Float64[Tensor, " head"]]


def attention(
    model: Any,
    tokens: Int[Tensor, "n n_ctx"],
    layers: Sequence[int] | int | None = None,
    *,
    seed: int = 0,
    name: str | None = None,
    n_repeated: int = N_REPEATED,
    on_progress: Callable[[float], None] | None = None,
) -> pd.DataFrame:
    """The rows of attention_stats.csv, one per (layer, head): where each head looks.

    entropy: mean over queries of −Σ p ln p, nats. entropy_share: that over the same mean for attention spread evenly
    over the past, (1/T) Σ_t ln t. bos_mass: mean attention to position 0 from queries ≥ 1, of windows of T = n_ctx
    tokens; bos_uniform is what even attention would give, (1/(T−1)) Σ_{t=2..T} 1/t. On n_repeated sequences, each of
    n_half random tokens repeated once: induction is the mean attention from each token of the second half to the token
    after its first occurrence; previous_token, the mean attention from queries ≥ 1 to the token before. nan if there is
    no such query.

    Nothing of size [layers, heads, T, T] is kept: the map of each layer is reduced and discarded.

    Args:
        model: a `HookedLM` or a TransformerLens model.
        layers: all by default; each must have heads.
        seed: of the random tokens; fills the column seed.
        name: fills the column model; the config's name by default.
        n_repeated: number of sequences of repeated random tokens; with 0 their columns are nan.

    Raises:
        ValueError: layers out of range, none, or without an attention map; tokens that do not fit; n_repeated below 0.
    """
    own: dict[str, Any] = {"seed": seed, "name": name, "n_repeated": n_repeated, "on_progress": on_progress}
    return measure_attention(model, tokens, layers, **own)["attention_stats"]


def measure_attention(
    model: Any,
    tokens: Int[Tensor, "n n_ctx"],
    layers: Sequence[int] | int | None = None,
    *,
    seed: int = 0,
    name: str | None = None,
    n_repeated: int = N_REPEATED,
    on_progress: Callable[[float], None] | None = None,
) -> dict[str, pd.DataFrame]:
    """The tables of one pass over the tokens by name: that of `attention`; attention_stats_blocks, what it says of the
    text without each block of the sequences (no rows for fewer than 8 sequences); head_kinds."""
    tokens = checked_tokens("attention", model, tokens)
    if n_repeated < 0:
        raise ValueError(f"n_repeated: got {n_repeated}; expected 0 or more")
    chosen = choose("layers", layers, model.cfg.n_layers)
    n_ctx, n_half = tokens.shape[1], min(model.cfg.n_ctx // 2, MAX_REPEAT)
    has_repeats = n_repeated > 0 and n_half >= 2
    total = tokens.numel() + (2 * n_half * n_repeated if has_repeats else 0)
    progress = _Progress(on_progress, total)
    numbers = block_numbers(len(tokens))
    sums = _sum_blocks(model, tokens, numbers, chosen, TEXT_READERS, progress)
    text = {what: own.sum(0) / len(tokens) for what, own in sums.items()}
    repeats: dict[str, Float64[np.ndarray, "layer head"]] = {}
    if has_repeats:
        said_twice = repeated_random_tokens(model, n_repeated, n_half, seed)
        readers = {"induction": induction, "previous_token": previous_token}
        found = _sum_blocks(model, said_twice, (0,) * n_repeated, chosen, readers, progress)
        repeats = {what: own.sum(0) / n_repeated for what, own in found.items()}
    n_heads = model.cfg.n_heads
    undefined = np.full((len(chosen), n_heads), np.nan)
    place = {
        "model": name or model.cfg.model_name,
        "seed": seed,
        "layer": np.repeat(chosen, n_heads),
        "head": np.tile(np.arange(n_heads), len(chosen)),
    }
    local = {"local_mass": text["local_mass"].ravel()}
    stats = place | _of_text(text, n_ctx) | {
        "n_ctx": n_ctx,
        "n_tokens": tokens.numel(),
        "bos_uniform": (1 / np.arange(2, n_ctx + 1)).mean() if n_ctx > 1 else np.nan,
        "induction": repeats.get("induction", undefined).ravel(),
        "previous_token": repeats.get("previous_token", undefined).ravel(),
        "n_half": n_half if has_repeats else 0,
        "n_repeated": n_repeated if has_repeats else 0,
    }  # fmt: skip
    parts = []
    columns = {what: list(without_each(list(own), np.add)) for what, own in sums.items()}
    for block in range(len(columns["entropy"])):
        n_left = len(tokens) - numbers.count(block)
        left = _of_text({what: own[block] / n_left for what, own in columns.items()}, n_ctx)
        parts.append(pd.DataFrame(place | {"block": block} | left))
    return {
        "attention_stats": pd.DataFrame(stats),
        "attention_stats_blocks": pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(),
        "head_kinds": head_kinds(pd.DataFrame(stats | local)),
    }


def head_kinds(stats: pd.DataFrame) -> pd.DataFrame:
    """The rows of head_kinds.csv, one per head and measure of `THRESHOLDS`: of what kind each head is.

    uniform is what attention spread evenly over the past has: 1 of entropy_share, bos_uniform of bos_mass, over T
    tokens (1/T) Σ_q min(n, q + 1) / (q + 1) of local_mass (n = `N_LATEST` latest positions), and on n_half tokens said
    twice (1/(2 n_half − 1)) Σ_{q ≥ 1} 1/(q + 1) of previous_token, (1/n_half) Σ_i 1/(n_half + i + 1) of induction.
    z = (value − mean) / s over the heads that are given, s with n − 1; nan for one head, or where all are alike.
    is_kind: 1 for the first measure whose value reaches its threshold.

    Args:
        stats: of one model, the columns of attention_stats and local_mass.
    """
    n_ctx, n_half = int(stats["n_ctx"].iloc[0]), int(stats["n_half"].iloc[0])
    even = 1 / np.arange(1, max(n_ctx, 2 * n_half) + 1)  # of query q to each key
    uniform = {
        "induction": even[n_half : 2 * n_half].mean() if n_half else np.nan,
        "previous_token": even[1 : 2 * n_half].mean() if n_half else np.nan,
        "bos_mass": float(stats["bos_uniform"].iloc[0]),
        "local_mass": np.minimum(1, N_LATEST * even[:n_ctx]).mean(),
        "entropy_share": 1.0,
    }
    parts, is_open = [], np.ones(len(stats), dtype=bool)
    for measure, threshold in THRESHOLDS.items():
        values = stats[measure].to_numpy(dtype=float)
        spread = values.std(ddof=1) if len(values) > 1 else 0.0
        is_kind = is_open & (values >= threshold)
        is_open &= ~is_kind
        z = (values - values.mean()) / spread if spread > 0 else np.full_like(values, np.nan)
        own = {"measure": measure, "value": values, "uniform": uniform[measure], "z": z, "threshold": threshold}
        parts.append(stats[["model", "seed", "layer", "head"]].assign(**own, is_kind=is_kind.astype(int)))
    order = pd.concat(parts).sort_values(["layer", "head"], kind="stable")
    return order.reset_index(drop=True)


def _of_text(means: Mapping[str, Float64[np.ndarray, "layer head"]], n_ctx: int) -> dict[str, np.ndarray]:
    """The columns that a text gives, of means over its sequences."""
    ceiling = np.log(np.arange(1, n_ctx + 1)).mean()
    share = means["entropy"] / ceiling if n_ctx > 1 else np.full_like(means["entropy"], np.nan)
    return {"entropy": means["entropy"].ravel(), "entropy_share": share.ravel(), "bos_mass": means["bos_mass"].ravel()}


def repeated_random_tokens(model: Any, n: int, n_half: int, seed: int) -> Int64[Tensor, "n pos"]:
    """Random tokens, each sequence said twice; those of one half differ from each other where the vocabulary allows.

    Distinct tokens, so that a token's first mention is one place. Ids that the tokenizer calls special are left out.
    """
    special = special_ids(model)
    ids = np.array([i for i in range(model.cfg.d_vocab) if i not in special])
    rng = np.random.default_rng([seed, 2])
    halves = np.stack([rng.choice(ids, n_half, replace=len(ids) < n_half) for _ in range(n)])
    return torch.from_numpy(np.concatenate([halves, halves], axis=1))


# --- readers of one batch's map: sums over sequences of means over queries


def entropy(pattern: Float[Tensor, "batch head query key"]) -> Float64[Tensor, " head"]:
    """Σ over sequences of the mean over queries of −Σ p ln p, nats."""
    # float32 terms, each good to 1e-7 of itself, added up in float64
    per_query = torch.special.entr(pattern.to(torch.promote_types(pattern.dtype, torch.float32))).sum(-1)
    return per_query.cpu().double().mean(-1).sum(0)


def bos_mass(pattern: Float[Tensor, "batch head query key"]) -> Float64[Tensor, " head"]:
    """Σ over sequences of the mean attention to position 0 from queries ≥ 1."""
    return pattern[:, :, 1:, 0].cpu().double().mean(-1).sum(0)


def local_mass(pattern: Float[Tensor, "batch head query key"]) -> Float64[Tensor, " head"]:
    """Σ over sequences of the mean attention from each query to the `N_LATEST` latest positions, its own among them."""
    n = pattern.shape[-1]
    latest = [pattern.diagonal(-back, -2, -1).cpu().double().sum(-1) for back in range(min(N_LATEST, n))]
    return torch.stack(latest).sum(0).sum(0) / n


def induction(pattern: Float[Tensor, "batch head query key"]) -> Float64[Tensor, " head"]:
    """Σ over sequences of the mean attention from token i of the second half to token i + 1 of the first."""
    n_half = pattern.shape[-1] // 2
    # query n_half + i, key i + 1: the diagonal 1 − n_half, of which the first entry belongs to the first half
    return pattern.diagonal(1 - n_half, -2, -1)[..., 1:].cpu().double().mean(-1).sum(0)


def previous_token(pattern: Float[Tensor, "batch head query key"]) -> Float64[Tensor, " head"]:
    """Σ over sequences of the mean attention from queries ≥ 1 to the token before."""
    return pattern.diagonal(-1, -2, -1).cpu().double().mean(-1).sum(0)


TEXT_READERS: Mapping[str, Reader] = MappingProxyType(
    {"entropy": entropy, "bos_mass": bos_mass, "local_mass": local_mass}
)


class _Progress:
    def __init__(self, tell: Callable[[float], None] | None, total: int) -> None:
        self.tell, self.total, self.done = tell, total, 0

    def add(self, n_tokens: int) -> None:
        self.done += n_tokens
        if self.tell is not None:
            self.tell(self.done / self.total)


def _sum_blocks(
    model: Any,
    tokens: Tensor,
    numbers: Sequence[int],
    layers: Sequence[int],
    readers: Mapping[str, Reader],
    progress: _Progress,
) -> dict[str, Float64[np.ndarray, "block layer head"]]:
    """What each reader says of each layer's map, summed over the sequences of each block."""
    n_heads, done = model.cfg.n_heads, 0
    shape = (max(numbers) + 1, len(layers), n_heads)
    sums = {what: torch.zeros(shape, dtype=torch.float64) for what in readers}

    def reader(row: int) -> Callable[[Tensor, object], None]:
        def read(pattern: Tensor, hook: object) -> None:
            for block, own in block_runs(numbers[done : done + len(pattern)]):
                for what, function in readers.items():
                    sums[what][block, row] += function(pattern[own])

        return read

    hooks = [(f"blocks.{layer}.attn.hook_pattern", reader(row)) for row, layer in enumerate(layers)]
    batch_size = max(1, MAP_ELEMENTS // (n_heads * tokens.shape[1] ** 2))
    with torch.no_grad():
        for part in tokens.split(batch_size):
            run_hooked(model, part.to(device_of(model)), hooks, stop_at_layer=max(layers) + 1, return_type=None)
            done += len(part)
            progress.add(part.numel())
    return {what: total.numpy() for what, total in sums.items()}
