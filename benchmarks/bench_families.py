"""Every family's forward pass beside transformers' own (eager attention, same dtype): 8 layers of d_model 512, 8 heads,
vocabulary 8,000, random weights, 4 sequences of 256 tokens, logits of all."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.turns import add, by_turns, compare, write
from workbench.models.families import BUILT_IN
from workbench.models.load import load

SIZES: dict[str, Any] = {
    "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8,
    "num_key_value_heads": 8, "vocab_size": 8000, "max_position_embeddings": 512, "head_dim": 64,
    "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None,
}  # fmt: skip
OWN: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 512, "n_head": 8, "n_layer": 8, "n_positions": 512, "vocab_size": 8000},
    "gpt_neo": {
        "num_layers": 8, "num_heads": 8, "hidden_size": 512, "vocab_size": 8000, "max_position_embeddings": 512,
        "attention_types": [[["global", "local"], 4]], "window_size": 128,
    },
    "mistral": SIZES | {"sliding_window": 128}, "gemma2": SIZES | {"sliding_window": 128},
    "gemma3_text": SIZES | {"sliding_window": 128},
}  # fmt: skip


def main(n_runs: int = 7) -> None:
    """Run every case and write benchmarks/results/families.csv."""
    warnings.simplefilter("ignore")
    rows: list[dict[str, object]] = []
    tokens = torch.randint(2, 8000, (4, 256), generator=torch.Generator().manual_seed(0))
    for family in BUILT_IN:
        config = transformers.AutoConfig.for_model(family, **OWN.get(family, SIZES))
        for dtype in (torch.float32, torch.bfloat16):
            theirs = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").to(dtype).eval()
            with tempfile.TemporaryDirectory() as folder:
                theirs.save_pretrained(folder)
                ours = load(Path(folder))
            with torch.inference_mode():
                run, peer = (lambda m=ours: m(tokens)), (lambda m=theirs: m(tokens, use_cache=False).logits)
                off = float((run() - peer()).abs().max())
                times = by_turns(run, peer, n_runs)
            kind = str(dtype).removeprefix("torch.")
            case = f"{family} forward, {kind} (max |Δ logits| {off:.1e})"
            add(rows, compare(case, "tokens/s", times, "transformers, eager", "≥ 1", tokens.numel()))
    write("families", rows)


if __name__ == "__main__":
    main()
