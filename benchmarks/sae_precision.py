"""bfloat16 beside float32 on a model's SAEs: `python -m benchmarks.sae_precision --ckpt MODEL`.

Writes benchmarks/results/sae_precision.csv: l0, fvu, dead_fraction and ce_recovered. It needs a trained model, so
`python -m benchmarks` leaves it out.
"""

from __future__ import annotations

import argparse
import os

import torch

from benchmarks.turns import RESULTS
from workbench.analyses.sae_train.precision import compare_precisions, precision_summary
from workbench.cli.cli_args import parse_list
from workbench.data.text_windows import analysis_tokens
from workbench.models.load import load


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
        batch_size=512, lr=6e-3,
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
    main(given.ckpt, parse_list(given.layers, "--layers"), given.n_tokens, given.n_eval_tokens, given.n_ce_tokens,
         given.l1)  # fmt: skip
