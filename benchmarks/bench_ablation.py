"""Head ablation beside TransformerLens's run_with_hooks loop; its memory, error in bfloat16 and how its cost grows;
attention statistics beside a plain forward with patterns.

Janus v3 chassis of bench_model, random weights, all 96 heads on windows of 512 tokens. The peer's forward costs the
same whichever head is zeroed, so its turns are one head a layer, counted as so many token·heads; ours are all heads.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
import warnings

import numpy as np
import torch

from benchmarks.bench_model import CONFIG
from benchmarks.turns import add, by_turns, compare, machine, write
from workbench.analyses.ablate.ablation import ablate
from workbench.analyses.attention.statistics import MAP_ELEMENTS, attention
from workbench.models import HookedLM, ModelConfig
from workbench.models.transformer_lens import to_hooked_transformer
from workbench.runs.memory import peak_bytes as process_peak_bytes

BUDGETS = (256 << 20, 1 << 30)
SMOKE = CONFIG.model_copy(update={"n_layers": 3, "d_model": 64, "d_head": 8, "d_mlp": 96, "d_vocab": 997, "n_ctx": 64})


def tokens(config: ModelConfig, batch: int) -> torch.Tensor:
    """Random ids [batch n_ctx]."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, config.d_vocab, (batch, config.n_ctx), generator=generator)


@torch.no_grad()
def loop(model, ids: torch.Tensor, heads: list[tuple[int, int]]) -> dict[tuple[int, int], float]:
    """Impact in per cent of zeroing each (layer, head), as one would write it with TransformerLens."""
    base = float(model(ids, return_type="loss"))
    found = {}
    for layer, head in heads:

        def zero(z, hook, head=head):
            z[:, :, head] = 0
            return z

        loss = model.run_with_hooks(ids, return_type="loss", fwd_hooks=[(f"blocks.{layer}.attn.hook_z", zero)])
        found[layer, head] = 100 * (float(loss) - base) / base
    return found


def figure(case: str, quantity: str, ours: float, target: str, *, peer: float | None = None, name: str = "") -> dict:
    """A row of one measured number, beside what it is measured against."""
    blank = dict.fromkeys(("peer", "ratio", "ratio_low", "ratio_high"), "")
    if peer is not None:
        blank |= {"peer": f"{peer:.4g}", "ratio": f"{ours / peer:.3f}"}
    row = {"case": case, "quantity": quantity, "ours": f"{ours:.4g}", "n_runs": 1, "target": target, "peer_name": name}
    return row | blank | {"machine": machine()}


def speed_rows(config: ModelConfig, n_runs: int):
    """Rows of token·heads/s of both in both dtypes, and of how far the impacts are apart."""
    ids, model = tokens(config, 1), HookedLM(config)
    every = [(layer, head) for layer in range(config.n_layers) for head in range(config.n_heads)]
    some = [(layer, layer % config.n_heads) for layer in range(config.n_layers)]
    hooked = to_hooked_transformer(model)
    for dtype, target in (("float32", "≥ 2.5"), ("bfloat16", "≥ 5")):
        subject, peer = (m if dtype == "float32" else m.to(torch.bfloat16) for m in (model, hooked))
        tables = []

        def ours(subject=subject, dtype=dtype, tables=tables) -> None:
            # a narrow model's error is measured below, not in the time
            run = ablate_only(subject, ids, dtype)
            tables.append(run)

        times = by_turns(ours, lambda peer=peer: loop(peer, ids, some), n_runs)
        # the same number of token·heads for both
        scaled = times[0], [t * len(every) / len(some) for t in times[1]]
        n = ids.numel() * len(every)
        yield compare(f"zero-ablation of all heads, {dtype}", "token·heads/s", scaled, "TransformerLens", target, n)
        if dtype == "float32":
            theirs = loop(hooked, ids, every)
            apart = max(abs(theirs[key] - value) for key, value in tables[0].items())
            largest = max(abs(value) for value in theirs.values())
            yield figure("largest |Δ impact|, float32", "% of the loss", apart, "≤ 1e-4", peer=largest, name="impact")
    table = ablate(HookedLM(config), ids, dtype="bfloat16", has_estimate=False, n_bootstrap=100)
    largest = float(table["impact_pct"].abs().max())
    yield figure(
        "largest error in bfloat16", "% of the loss", float(table["error_pct"].max()), "", peer=largest, name="impact"
    )


def ablate_only(model, ids: torch.Tensor, dtype: str) -> dict[tuple[int, int], float]:
    """Impacts by (layer, head), with everything a table holds but the check of a narrow dtype."""
    from workbench.analyses.ablate.ablation import ablation_table, iterate_ablation
    from workbench.analyses.ablate.records import join

    losses = join(list(iterate_ablation(model, ids)))
    table = ablation_table(losses, ids.shape[1], kind="zero", seed=0, name=dtype)
    return {(row.layer, row.head): row.impact_pct for row in table.itertuples()}


def memory_rows(is_smoke: bool):
    """Rows of the memory that ablating a layer's heads adds, in processes of their own."""
    for budget in BUDGETS:
        command = [sys.executable, "-m", "benchmarks.bench_ablation", "--peak", str(budget)]
        command += ["--smoke"] if is_smoke else []
        added = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
        case = f"memory added by ablation, budget {budget >> 20} MiB"
        yield figure(case, "bytes", added, "ours ≤ budget", peer=budget, name="budget")


def print_peak(config: ModelConfig, budget: int) -> None:
    """Print the bytes that an ablation adds to model and tokens."""
    model, ids = HookedLM(config), tokens(config, 8)
    with torch.no_grad():
        model(ids[:1, :2])  # what a first forward sets up
    before = process_peak_bytes()
    ablate(model, ids, layers=[0], memory_budget_bytes=budget, n_bootstrap=100)
    print(process_peak_bytes() - before)


def growth_rows(config: ModelConfig):
    """Rows of seconds by tokens and by layer, and of how well a straight line fits."""
    model, middle = HookedLM(config), config.n_layers // 2
    seconds = {n: fastest(model, tokens(config, n), middle) for n in (1, 2, 4)}
    for n, value in seconds.items():
        yield figure(f"heads of layer {middle}, {n * config.n_ctx} tokens", "s", value, "")
    ratio = seconds[4] / seconds[1]
    yield figure("4 times the tokens", "times the seconds", ratio, "4", peer=4.0, name="linear")
    layers = sorted({0, config.n_layers // 4, middle, 3 * config.n_layers // 4, config.n_layers - 1})
    by_layer = [fastest(model, tokens(config, 1), layer) for layer in layers]
    for layer, value in zip(layers, by_layer, strict=True):
        yield figure(f"heads of layer {layer}, {config.n_layers - 1 - layer} layers behind", "s", value, "")
    r = float(np.corrcoef(layers, by_layer)[0, 1])
    yield figure("seconds against layers behind", "R² of a straight line", r * r, "≥ 0.95")


def fastest(model: HookedLM, ids: torch.Tensor, layer: int, n_runs: int = 3) -> float:
    """Seconds of the fastest of a few ablations of one layer's heads."""
    seconds = []
    for _ in range(n_runs):
        started = time.perf_counter()
        ablate(model, ids, layers=[layer], has_estimate=False, n_bootstrap=100)
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def attention_row(config: ModelConfig, n_runs: int) -> dict:
    """Row of seconds of the statistics and of a forward that makes all patterns and looks at none."""
    model, ids = HookedLM(config), tokens(config, 4)
    size = max(1, MAP_ELEMENTS // (config.n_heads * config.n_ctx**2))
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(config.n_layers)]

    @torch.no_grad()
    def forward() -> None:
        for part in ids.split(size):
            hooks = [(name, lambda pattern, hook: None) for name in names]
            model.run_with_hooks(part, fwd_hooks=hooks, stop_at_layer=config.n_layers, return_type=None)

    times = by_turns(lambda: attention(model, ids, n_repeated=0), forward, n_runs)
    return compare("attention statistics", "s", times, "a forward with patterns", "≥ 0.5")


def main(n_runs: int = 3, is_smoke: bool = False) -> None:
    """Run every case and write benchmarks/results/ablation.csv."""
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    config = SMOKE if is_smoke else CONFIG
    rows = []
    for group in (speed_rows(config, n_runs), growth_rows(config), memory_rows(is_smoke)):
        for row in group:
            add(rows, row)
    add(rows, attention_row(config, 2 * n_runs))
    if not is_smoke:
        print(write("ablation", rows))


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
