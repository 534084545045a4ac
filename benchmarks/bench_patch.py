"""Patching z of every head at all positions beside `transformer_lens.patching`, and the memory that it adds.

Janus v3 chassis of bench_model, random weights, 32 pairs of prompts: 96 cells, each with a gap, an effect and a KL of
every pair; the peer's metric is the mean effect. Its forward costs the same whichever head is exchanged, so that its
turns are one head a layer, counted as so many cells; ours are all. In the first case the prompts of a pair differ from
the first token on; in the second, as in most tasks, from their middle on, before which nothing can have changed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import warnings

import torch

from benchmarks.bench_ablation import SMOKE, figure
from benchmarks.bench_model import CONFIG
from benchmarks.turns import add, by_turns, compare, write
from workbench.analyses.patch.patching import iterate_patching, joined, make_plan
from workbench.data.pairs import PairTokens
from workbench.models import HookedLM, ModelConfig
from workbench.models.transformer_lens import to_hooked_transformer
from workbench.runs.memory import peak_bytes as process_peak_bytes

N_PAIRS, N_CTX = 32, 16
BUDGETS = (256 << 20, 1 << 30)


def pairs(config: ModelConfig, first: int, n_pairs: int = N_PAIRS) -> PairTokens:
    """Random prompts that differ from position `first` on."""
    g = torch.Generator().manual_seed(0)
    clean, corrupt = (torch.randint(0, config.d_vocab, (n_pairs, N_CTX), generator=g) for _ in range(2))
    corrupt[:, :first] = clean[:, :first]
    answers = torch.randint(0, config.d_vocab - 1, (n_pairs, 1), generator=g)
    is_token = torch.ones(n_pairs, N_CTX, dtype=torch.bool)
    return PairTokens("random", clean, corrupt, is_token, answers, answers + 1, torch.arange(n_pairs) // 2)


def our_map(model: HookedLM, own: PairTokens) -> torch.Tensor:
    """Mean effects [layer head]."""
    plan = make_plan(model, own)
    found = joined(plan, list(iterate_patching(model, own, plan)))["denoise"]
    return (found.effect - found.base[0]).mean(1).view(model.cfg.n_layers, -1)


def their_map(model, own: PairTokens) -> torch.Tensor:
    """The same of one head a layer, by TransformerLens."""
    import pandas as pd
    from transformer_lens import patching

    cfg = model.cfg
    some = pd.DataFrame([(layer, layer % cfg.n_heads) for layer in range(cfg.n_layers)], columns=["layer", "head"])

    with torch.no_grad():
        _, cache = model.run_with_cache(own.clean, names_filter=lambda name: name.endswith("hook_z"))
        base = own.effect(model(own.corrupt)[:, -1]).mean()
        metric = lambda logits: own.effect(logits[:, -1]).mean() - base  # noqa: E731
        setter = patching.layer_head_vector_patch_setter
        return patching.generic_activation_patch(model, own.corrupt, cache, metric, setter, "z", index_df=some)


def memory_rows(is_smoke: bool):
    """Rows of the memory that patching adds, in processes of their own."""
    for budget in BUDGETS:
        command = [sys.executable, "-m", "benchmarks.bench_patch", "--peak", str(budget)]
        command += ["--smoke"] if is_smoke else []
        added = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
        case = f"memory added by patching, budget {budget >> 20} MiB"
        yield figure(case, "bytes", added, "ours ≤ budget", peer=budget, name="budget")


def print_peak(config: ModelConfig, budget: int) -> None:
    """Print the bytes that patching one layer adds to the model."""
    model, own = HookedLM(config), pairs(config, 0, 4 * N_PAIRS)
    with torch.no_grad():
        model(own.clean[:1, :2])  # what a first forward sets up
    before = process_peak_bytes()
    plan = make_plan(model, own, ["z", "k", "resid_pre"], layers=[0], memory_budget_bytes=budget)
    joined(plan, list(iterate_patching(model, own, plan)))
    print(process_peak_bytes() - before)


def main(n_runs: int = 3, is_smoke: bool = False) -> None:
    """Run every case and write benchmarks/results/patch.csv."""
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    config = SMOKE if is_smoke else CONFIG
    model, rows = HookedLM(config), []
    hooked = to_hooked_transformer(model)
    n = config.n_layers * config.n_heads
    for first in (0, N_CTX // 2):
        own, maps = pairs(config, first), {}
        times = by_turns(
            lambda own=own, maps=maps: maps.update(ours=our_map(model, own)),
            lambda own=own, maps=maps: maps.update(theirs=their_map(hooked, own)),
            n_runs,
        )
        # the same number of cells for both
        times = times[0], [t * config.n_heads for t in times[1]]
        case = f"z of {n} heads at all {N_CTX} positions of {N_PAIRS} pairs that differ from token {first} on, fp32"
        add(rows, compare(case, "s", times, "transformer_lens.patching", "≥ 4"))
        ours = torch.stack([row[layer % config.n_heads] for layer, row in enumerate(maps["ours"])])
        theirs = maps["theirs"].flatten()
        apart, largest = float((ours - theirs).abs().max()), float(theirs.abs().max())
        add(rows, figure("largest |Δ effect|", "logits", apart, "≤ 1e-5", peer=largest, name="largest |effect|"))
    for row in memory_rows(is_smoke):
        add(rows, row)
    if not is_smoke:
        print(write("patch", rows))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--peak", type=int, metavar="BUDGET")
    parser.add_argument("--smoke", action="store_true", help="a tiny model, to see that it runs; writes nothing")
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    if arguments.peak:
        print_peak(SMOKE if arguments.smoke else CONFIG, arguments.peak)
    else:
        main(arguments.runs, arguments.smoke)
