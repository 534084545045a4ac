"""Where heads look: entropy, mass on position 0, and the two scores on repeated random tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Float64, Int, Int64
from torch import Tensor

from workbench.analyses.attention.settings import N_REPEATED
from workbench.models.activations import special_ids
from workbench.models.checks import checked_tokens, choose, device_of, run_hooked

MAP_ELEMENTS = 1 << 21  # attention weights of one layer held at once; more gain nothing on a CPU
MAX_REPEAT = 128  # tokens of the repeated half, at most
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
    tokens = checked_tokens("attention", model, tokens)
    if n_repeated < 0:
        raise ValueError(f"n_repeated: got {n_repeated}; expected 0 or more")
    chosen = choose("layers", layers, model.cfg.n_layers)
    n_ctx, n_half = tokens.shape[1], min(model.cfg.n_ctx // 2, MAX_REPEAT)
    has_repeats = n_repeated > 0 and n_half >= 2
    total = tokens.numel() + (2 * n_half * n_repeated if has_repeats else 0)
    progress = _Progress(on_progress, total)
    text = _mean_over_sequences(model, tokens, chosen, {"entropy": entropy, "bos_mass": bos_mass}, progress)
    repeats: dict[str, Float64[np.ndarray, "layer head"]] = {}
    if has_repeats:
        said_twice = repeated_random_tokens(model, n_repeated, n_half, seed)
        readers = {"induction": induction, "previous_token": previous_token}
        repeats = _mean_over_sequences(model, said_twice, chosen, readers, progress)
    ceiling = np.log(np.arange(1, n_ctx + 1)).mean()
    bos_uniform = (1 / np.arange(2, n_ctx + 1)).mean() if n_ctx > 1 else np.nan
    n_heads = model.cfg.n_heads
    undefined = np.full((len(chosen), n_heads), np.nan)
    share = text["entropy"] / ceiling if n_ctx > 1 else undefined
    return pd.DataFrame(
        {
            "model": name or model.cfg.model_name,
            "seed": seed,
            "layer": np.repeat(chosen, n_heads),
            "head": np.tile(np.arange(n_heads), len(chosen)),
            "entropy": text["entropy"].ravel(),
            "entropy_share": share.ravel(),
            "bos_mass": text["bos_mass"].ravel(),
            "n_ctx": n_ctx,
            "n_tokens": tokens.numel(),
            "bos_uniform": bos_uniform,
            "induction": repeats.get("induction", undefined).ravel(),
            "previous_token": repeats.get("previous_token", undefined).ravel(),
            "n_half": n_half if has_repeats else 0,
            "n_repeated": n_repeated if has_repeats else 0,
        }
    )


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


def induction(pattern: Float[Tensor, "batch head query key"]) -> Float64[Tensor, " head"]:
    """Σ over sequences of the mean attention from token i of the second half to token i + 1 of the first."""
    n_half = pattern.shape[-1] // 2
    # query n_half + i, key i + 1: the diagonal 1 − n_half, of which the first entry belongs to the first half
    return pattern.diagonal(1 - n_half, -2, -1)[..., 1:].cpu().double().mean(-1).sum(0)


def previous_token(pattern: Float[Tensor, "batch head query key"]) -> Float64[Tensor, " head"]:
    """Σ over sequences of the mean attention from queries ≥ 1 to the token before."""
    return pattern.diagonal(-1, -2, -1).cpu().double().mean(-1).sum(0)


class _Progress:
    def __init__(self, tell: Callable[[float], None] | None, total: int) -> None:
        self.tell, self.total, self.done = tell, total, 0

    def add(self, n_tokens: int) -> None:
        self.done += n_tokens
        if self.tell is not None:
            self.tell(self.done / self.total)


def _mean_over_sequences(
    model: Any, tokens: Tensor, layers: Sequence[int], readers: dict[str, Reader], progress: _Progress
) -> dict[str, Float64[np.ndarray, "layer head"]]:
    """Mean over sequences of what each reader says of each layer's map."""
    n_heads = model.cfg.n_heads
    sums = {what: torch.zeros(len(layers), n_heads, dtype=torch.float64) for what in readers}

    def reader(row: int) -> Callable[[Tensor, object], None]:
        def read(pattern: Tensor, hook: object) -> None:
            for what, function in readers.items():
                sums[what][row] += function(pattern)

        return read

    hooks = [(f"blocks.{layer}.attn.hook_pattern", reader(row)) for row, layer in enumerate(layers)]
    batch_size = max(1, MAP_ELEMENTS // (n_heads * tokens.shape[1] ** 2))
    with torch.no_grad():
        for part in tokens.split(batch_size):
            run_hooked(model, part.to(device_of(model)), hooks, stop_at_layer=max(layers) + 1, return_type=None)
            progress.add(part.numel())
    return {what: (total / len(tokens)).numpy() for what, total in sums.items()}
