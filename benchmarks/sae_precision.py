"""bfloat16 beside float32 on a model's SAEs: `python -m benchmarks.sae_precision --ckpt MODEL`.

Writes benchmarks/results/sae_precision.csv: l0, fvu, dead_fraction and ce_recovered. It needs a trained model, so
`python -m benchmarks` leaves it out.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from itertools import permutations
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from benchmarks.turns import RESULTS
from workbench.analyses.sae_train.head_saes import sae_train
from workbench.data.text_windows import analysis_tokens
from workbench.extend import parse_integers
from workbench.models.load import load

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


def main(ckpt: str, layers: list[int] | None, n_tokens: int, n_eval_tokens: int, n_ce_tokens: int, l1: float) -> None:
    """Train three seeds in both precisions and write the table."""
    model = load(ckpt, "cpu")
    n_ctx = min(512, model.cfg.n_ctx)
    tokens, held_out = (
        analysis_tokens(model, n_sequences=n // n_ctx, n_ctx=n_ctx, split=split)
        for n, split in ((n_tokens, "train"), (n_eval_tokens, "held_out"))
    )
    table = compare_precisions(
        model, tokens, layers, l1, seeds=(0, 1, 2), held_out=held_out, normalize="mean_norm", n_ce_tokens=n_ce_tokens,
        n_train_tokens=None, batch_size=512, lr=6e-3,
    )  # fmt: skip
    summary = precision_summary(table)
    print(summary.to_string(index=False))
    RESULTS.mkdir(exist_ok=True)
    summary.to_csv(RESULTS / "sae_precision.csv", index=False)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--ckpt", required=True)
    parser.add_argument("--layers")
    parser.add_argument("--n-tokens", type=int, default=200_000)
    parser.add_argument("--n-eval-tokens", type=int, default=100_352)
    parser.add_argument("--n-ce-tokens", type=int, default=8192)
    parser.add_argument("--l1", type=float, default=2.0)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", str(given.threads))
    torch.set_num_threads(given.threads)
    main(given.ckpt, parse_integers(given.layers), given.n_tokens, given.n_eval_tokens, given.n_ce_tokens,
         given.l1)  # fmt: skip
