"""Mean attention maps of heads without the first token, for pictures: what heads look at besides the sink."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float64, Int
from torch import Tensor

from workbench.analyses.attention.statistics import MAP_ELEMENTS
from workbench.analyses.attention_patterns.settings import WINDOW
from workbench.models.checks import checked_tokens, choose, device_of, middle_layer, run_hooked

N_DIGITS = 3  # decimals of a share


def attention_patterns(
    model: Any,
    tokens: Int[Tensor, "n n_ctx"],
    layers: Sequence[int] | int | None = None,
    *,
    window: int = WINDOW,
    seed: int = 0,
    name: str | None = None,
) -> pd.DataFrame:
    """The rows of attention_patterns.csv, one per (layer, head): the mean map over sequences, without position 0.

    Of the first `window` tokens of each sequence, P[q, k] = Σ_s p_s[q, k] / Σ_s (1 − p_s[q, 0]), 1 ≤ k ≤ q: what the
    query gives to k, of all that it does not give to position 0. Rows sum to 1. `pattern` is JSON, a list a query from
    1, of a number a key from 1, three decimals; null where all sequences rest on position 0 alone. `rest` is what is
    left, the mean of 1 − p[q, 0] over queries ≥ 1: where it is small, the map is of little attention.

    Args:
        model: a `HookedLM` or a TransformerLens model.
        layers: the first, that at the depth of layer 14 of 28, and the last by default.
        window: tokens of each sequence that are read; all of them where there are fewer.
        seed: fills the column seed.
        name: fills the column model; the config's name by default.

    Raises:
        ValueError: layers out of range, none, or without an attention map; tokens that do not fit, windows of fewer
            than 2 tokens; a window below 2.
    """
    if window < 2:
        raise ValueError(f"window: got {window}; expected at least 2")
    tokens = checked_tokens("attention_patterns", model, tokens, min_ctx=2)[:, :window]
    n_layers = model.cfg.n_layers
    usual = sorted({0, middle_layer(n_layers), n_layers - 1})
    chosen = choose("layers", usual if layers is None else layers, n_layers)
    sums = _sum_maps(model, tokens, chosen) / len(tokens)
    rows = []
    for layer, maps in zip(chosen, sums, strict=True):
        for head, mean in enumerate(maps):
            rest = mean[1:, 1:].sum(axis=1)
            rows.append(
                {
                    "model": name or model.cfg.model_name,
                    "seed": seed,
                    "layer": layer,
                    "head": head,
                    "n_ctx": tokens.shape[1],
                    "n_sequences": len(tokens),
                    "rest": float(rest.mean()),
                    "pattern": json.dumps(_shares(mean[1:, 1:], rest), separators=(",", ":")),
                }
            )
    return pd.DataFrame(rows)


def _shares(mean: Float64[np.ndarray, "query key"], rest: Float64[np.ndarray, " query"]) -> list[list[float | None]]:
    """The lower triangle by rows, each as shares of its rest."""
    return [
        [None if rest[q] == 0 else round(float(mean[q, k] / rest[q]), N_DIGITS) for k in range(q + 1)]
        for q in range(len(mean))
    ]


def _sum_maps(model: Any, tokens: Tensor, layers: Sequence[int]) -> Float64[np.ndarray, "layer head query key"]:
    """The maps of each layer, summed over sequences."""
    n_heads, n_ctx = model.cfg.n_heads, tokens.shape[1]
    sums = torch.zeros(len(layers), n_heads, n_ctx, n_ctx, dtype=torch.float64)

    def adder(row: int) -> Any:
        def add(pattern: Tensor, hook: object) -> None:
            sums[row] += pattern.cpu().double().sum(0)

        return add

    hooks = [(f"blocks.{layer}.attn.hook_pattern", adder(row)) for row, layer in enumerate(layers)]
    with torch.no_grad():
        for part in tokens.split(max(1, MAP_ELEMENTS // (n_heads * n_ctx**2))):
            run_hooked(model, part.to(device_of(model)), hooks, stop_at_layer=max(layers) + 1, return_type=None)
    return sums.numpy()
