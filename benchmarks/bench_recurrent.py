"""A training step of the depth-recurrent model beside a plain model of nine layers of the same width, and evaluation
over sliding windows beside plain ones.

nano: width 128, vocabulary 4,096, 16 sequences of 128 tokens; golf: width 768, vocabulary 1,024, sequences of 2,048.
Ours is the recipe with every mechanism and loss; the peer the same blocks with weights of their own and full
keys, trained by the same optimizer. Ratios are peer ÷ ours: a step of 1.25 times the peer's is .8.
"""

from __future__ import annotations

import argparse

import torch

from benchmarks.turns import add, by_turns, compare, write
from workbench.analyses.evaluate.bits import STRIDE, EncodedText, plan_windows, token_nats
from workbench.models import Extensions, HookedLM, ModelConfig
from workbench.training import load_recipe
from workbench.training.objective import Batch, objective
from workbench.training.optimizers import Optimizer
from workbench.training.prescription import Moment, Prescription
from workbench.training.recipe import Phase


def plain_config(cfg: ModelConfig) -> ModelConfig:
    """The same width and depth without recurrence: every layer has weights of its own, keys are full."""
    return cfg.model_copy(update={"extensions": Extensions()})


def stepper(cfg: ModelConfig, phase: Phase, batch: Batch, dtype: torch.dtype | None):
    """A closure that makes one step of the recipe's optimizer on a fixed batch."""
    model = HookedLM(cfg)
    optimizer = Optimizer(model, phase.optimizer)
    prescription = Prescription(phase.interventions, cfg, phase.n_steps)

    def step() -> None:
        optimizer.start(0, 0.01)
        objective(model, batch, prescription, Moment(0), dtype).total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def compare_steps(recipe_name: str, n_sequences: int, n_runs: int, dtype: torch.dtype | None) -> dict[str, object]:
    """A row: seconds of a step of the recipe and of its plain peer."""
    recipe = load_recipe(recipe_name)
    cfg, phase = recipe.model, recipe.phases[0]
    generator = torch.Generator().manual_seed(0)
    batch = Batch(torch.randint(0, cfg.d_vocab, (n_sequences, cfg.n_ctx), generator=generator))
    plain = phase.model_copy(update={"interventions": ()})
    times = by_turns(stepper(cfg, phase, batch, dtype), stepper(plain_config(cfg), plain, batch, dtype), n_runs)
    kind = "bf16" if dtype else "fp32"
    case = f"train step {recipe_name}, {n_sequences}×{cfg.n_ctx} tokens, {kind}"
    return compare(case, "s", times, "plain 9 layers", "≥ 0.80")


def compare_windows(n_runs: int) -> dict[str, object]:
    """A row: seconds a scored token of sliding windows (stride 64 of 512) and of plain ones; nothing can be reused."""
    cfg = load_recipe("recurrent-nano").model.model_copy(update={"n_ctx": 512})
    model = HookedLM(cfg).eval()
    tokens = torch.randint(0, cfg.d_vocab, (4097,), generator=torch.Generator().manual_seed(0))
    text = EncodedText(tokens, torch.ones(4097, dtype=torch.bool), 4096)
    sliding, plain = (plan_windows(4097, 512, stride) for stride in (STRIDE, None))
    times = by_turns(lambda: token_nats(model, text, sliding), lambda: token_nats(model, text, plain), n_runs)
    return compare("sliding windows, stride 64 of 512", "s", times, "plain windows", "≥ 0.33 where a cache allows")


def main(n_runs: int = 5, sizes: tuple[str, ...] = ("nano", "golf")) -> None:
    """Run every case and write benchmarks/results/recurrent.csv."""
    rows = []
    for size in sizes:
        for dtype in (None, torch.bfloat16):
            add(rows, compare_steps(f"recurrent-{size}", 16 if size == "nano" else 1, n_runs, dtype))
    add(rows, compare_windows(n_runs))
    print(write("recurrent", rows))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--sizes", nargs="+", choices=["nano", "golf"], default=["nano", "golf"])
    arguments = parser.parse_args()
    main(arguments.runs, tuple(arguments.sizes))
