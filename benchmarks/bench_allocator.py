"""Training with the allocator setting of the command line, on beside off, each run in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys

from benchmarks.turns import add, compare, write

STEPS = """
import time
from workbench.runs.allocator import keep_large_blocks
keep_large_blocks()
import torch
from workbench.training import build
from benchmarks.bench_model import tokens, trainer
recipe, batch, pos, n_steps = {arguments}
model = build(recipe, seed=0)
ids = tokens(batch, pos) % model.cfg.d_vocab
def loss():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return model(ids, return_type="loss")
step = trainer(model, loss)
step()
seconds = []
for _ in range(n_steps):
    started = time.perf_counter()
    step()
    seconds.append(time.perf_counter() - started)
print(sorted(seconds)[len(seconds) // 2])
"""
CASES = (("janus-v3-control", 4, 512, 4), ("janus-v3-control-nano", 16, 128, 40))


def seconds_a_step(arguments: tuple, switch: str) -> float:
    """Median seconds of a bf16 training step in a fresh process with the allocator setting on or off."""
    code = STEPS.replace("{arguments}", repr(arguments))
    environment = os.environ | {"WORKBENCH_ALLOCATOR": switch}
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def main(n_runs: int = 3) -> None:
    """Run every case and write benchmarks/results/allocator.csv."""
    rows = []
    for case in CASES:
        times: tuple[list[float], list[float]] = ([], [])
        for _ in range(n_runs):
            for into, switch in zip(times, ("on", "off"), strict=True):
                into.append(seconds_a_step(case, switch))
        name = f"train step bf16, {case[0]}, {case[1]} x {case[2]}"
        add(rows, compare(name, "tokens/s", times, "allocator setting off", "", case[1] * case[2]))
    print(write("allocator", rows))


if __name__ == "__main__":
    main()
