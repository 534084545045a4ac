"""What bfloat16 products do to SAEs: the same training in both precisions, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int
from torch import Tensor

from workbench.analyses.sae_train.head_saes import sae_train

PRECISIONS = {"float32": False, "bfloat16": True}


def compare_precisions(
    model: Any,
    tokens: Int[Tensor, "n_sequences n_ctx"],
    layers: Sequence[int] | None = None,
    l1: float = 2.0,
    seeds: Sequence[int] = (0, 1, 2),
    **arguments: Any,
) -> pd.DataFrame:
    """sae_training_results of the trained SAEs with products in float32 and, from the same start on the same batches,
    in bfloat16: the column `precision` tells them apart.

    arguments: further ones of `sae_train`.
    """
    parts = []
    for precision, use_bf16 in PRECISIONS.items():
        _, results = sae_train(model, tokens, layers, l1=l1, seeds=seeds, use_bf16=use_bf16, **arguments)
        parts.append(results[results["dictionary"] == "trained"].assign(precision=precision))
    return pd.concat(parts, ignore_index=True)


def precision_summary(results: pd.DataFrame) -> pd.DataFrame:
    """A row for every seed of the SAEs and measure: means over SAEs in float32 and bfloat16, the mean and the largest
    absolute difference of one SAE, and, to judge these by, the mean absolute difference between two seeds in float32
    (nan for one seed)."""
    keys = ["layer", "head", "l1", "sae_seed"]
    full, half = (results[results["precision"] == name].set_index(keys).sort_index() for name in PRECISIONS)
    rows = []
    for measure in ("l0", "fvu", "dead_fraction", "ce_recovered"):
        by_seed = full[measure].unstack("sae_seed")
        between = [(by_seed[i] - by_seed[j]).abs().mean() for i, j in permutations(by_seed.columns, 2)]
        for seed in by_seed.columns:
            own, other = (table[measure].xs(seed, level="sae_seed") for table in (full, half))
            change = other - own
            rows.append(
                {
                    "sae_seed": seed,
                    "measure": measure,
                    "float32": own.mean(),
                    "bfloat16": other.mean(),
                    "mean_difference": change.mean(),
                    "largest_difference": change.abs().max(),
                    "between_seeds": float(np.mean(between)) if between else np.nan,
                    "n_saes": len(own),
                }
            )
    return pd.DataFrame(rows)
