"""What an armed monitor costs: generation with and without a gate, SmolLM2-135M and a chassis of 40M parameters."""

from __future__ import annotations

import warnings

import torch

from benchmarks.bench_generate import N_NEW, weights
from benchmarks.turns import add, by_turns, compare, write
from workbench.models import HookedLM
from workbench.models.gates import Gate
from workbench.models.generate import generate
from workbench.models.load import load
from workbench.models.monitors import Action, Monitor
from workbench.training import load_recipe

N_PROMPTS = 8


def armed(model: HookedLM, action: Action) -> Gate:
    """A gate on the stream at the middle layer that fires at the first token, so that its action acts throughout."""
    d_model, generator = model.cfg.d_model, torch.Generator().manual_seed(0)
    weights = torch.randn(d_model, generator=generator, dtype=torch.float64)
    value = None if action == "log" else torch.zeros(d_model)
    hook = f"blocks.{model.cfg.n_layers // 2}.hook_resid_post"
    return Gate(model, Monitor(hook, weights, 0.0, -1e9, action=action, value=value))


@torch.no_grad()
def main(n_runs: int = 9) -> None:
    """Run all cases and write benchmarks/results/monitor.csv."""
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    recipe = load_recipe("janus-v3-control")
    models = {"SmolLM2-135M": load(weights()), "40M chassis": HookedLM(recipe.model, seed=0)}
    rows: list[dict[str, object]] = []
    for name, model in models.items():
        ids = torch.randint(0, model.cfg.d_vocab, (N_PROMPTS, 24), generator=torch.Generator().manual_seed(0))
        for action in ("log", "steer"):
            gate = armed(model, action)  # once for many batches: it takes a hash of the weights
            times = by_turns(
                lambda model=model, ids=ids, gate=gate: generate(model, ids, N_NEW, temperature=0.0, gate=gate),
                lambda model=model, ids=ids: generate(model, ids, N_NEW, temperature=0.0),
                n_runs,
            )
            case = f"{name}, {N_PROMPTS} prompts, {N_NEW} new tokens, {action}"
            add(rows, compare(case, "tokens/s", times, "the same without a gate", "", N_PROMPTS * N_NEW))
    print(write("monitor", rows))


if __name__ == "__main__":
    main()
