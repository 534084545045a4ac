"""SAEs for 24 heads from the model's forward on, beside SAELens; memory; the atlas's data beside the forward.

Janus v3 chassis with random weights (time does not depend on them), the 8 heads of layers 3, 6 and 9, 512 features
each, sequences of 512 tokens, batches of 4,096. A turn trains on 8,192 tokens, activations computed within it.

Ours trains all 24 SAEs. SAELens has two ways, and one run of each is timed; what all 24 SAEs cost is that, times the
runs:

- a run a head: its ActivationsStore with hook_head_index, 24 runs. The head timed is of layer 6, whose forward is as
  long as the mean over the three layers.
- multi-hook: one forward feeds a head of each of the three layers (it takes one head of a hook), 8 runs.

Only its store and its trainer's step are timed: no logging, no checkpoints, no set-up.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable

import torch

from benchmarks.bench_model import CONFIG
from benchmarks.bench_sae import BATCH, L1, LR, SIZES, make_sae_lens
from benchmarks.turns import by_turns, compare, machine, write
from sae import StackedSAE, TrainConfig, Trainer
from workbench.analyses.atlas.features import scan
from workbench.analyses.sae_train.evaluation import forward_batches
from workbench.analyses.sae_train.head_saes import HeadSaeJob
from workbench.analyses.sae_train.plan import make_plans
from workbench.analyses.sae_train.settings import HeadSaeSettings
from workbench.models import HookedLM
from workbench.models.activations import ShuffledActivations, choose_slots, collect
from workbench.models.transformer_lens import to_hooked_transformer
from workbench.runs.memory import peak_bytes as process_peak_bytes

LAYERS = (3, 6, 9)
N_HEADS = len(LAYERS) * CONFIG.n_heads
N_CTX, TURN_TOKENS, ATLAS_TOKENS = CONFIG.n_ctx, 2 * BATCH, 8 * BATCH
ALL_STEPS = 10_000  # more than any run takes: only the length of schedules that are flat
MEMORY_TOKENS = (100_000, 400_000)
Turn = Callable[[], None]


def sequences(n_tokens: int) -> torch.Tensor:
    """Random ids [n_sequences, N_CTX]."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(CONFIG.d_vocab, (n_tokens // N_CTX, N_CTX), generator=generator)


def our_turn(model: HookedLM, tokens: torch.Tensor, **settings: bool) -> tuple[Turn, Trainer]:
    """Two steps of all 24 SAEs with the forward that feeds them; and the trainer, which says whether it compiled."""
    slots = choose_slots(model.cfg, LAYERS)
    source = ShuffledActivations(model, tokens, slots, batch_size=BATCH, buffer_tokens=TURN_TOKENS)
    sizes = SIZES.model_copy(update={"n_saes": N_HEADS})
    stack = StackedSAE(sizes, torch.Generator().manual_seed(0), device=model.cfg.device)
    config = TrainConfig(n_steps=ALL_STEPS, lr=LR, **settings)
    trainer = Trainer(stack, config, L1, torch.Generator().manual_seed(0))

    def turn() -> None:
        for _ in range(source.batches_per_block):
            trainer.step(source.batch(trainer.n_steps_done))

    return turn, trainer


def their_turn(model, tokens: torch.Tensor, *, is_multi_hook: bool, autocast: bool) -> Turn:
    """Two steps of one run of SAELens: of the SAE of a head, or of three SAEs fed by one forward."""
    from datasets import Dataset
    from sae_lens import ActivationsStore

    device = str(model.cfg.device)
    hooks = [f"blocks.{layer}.attn.hook_z" for layer in LAYERS]
    d_in = CONFIG.d_head
    common = {
        "model": model, "dataset": Dataset.from_dict({"tokens": tokens.tolist()}), "streaming": False,
        "context_size": N_CTX, "n_batches_in_buffer": TURN_TOKENS // N_CTX, "total_training_tokens": 1,
        "store_batch_size_prompts": BATCH // N_CTX, "train_batch_size_tokens": BATCH, "prepend_bos": False,
        "normalize_activations": "none", "device": torch.device(device), "dtype": "float32", "autocast_lm": autocast,
        "disable_concat_sequences": True,
    }  # fmt: skip
    start = StackedSAE(SIZES, torch.Generator().manual_seed(0))
    n_trainers = len(hooks) if is_multi_hook else 1
    trainers = [make_sae_lens(start, k, ALL_STEPS, autocast, device) for k in range(n_trainers)]
    if is_multi_hook:
        sizes, heads = dict.fromkeys(hooks, d_in), dict.fromkeys(hooks, 0)
        store = ActivationsStore.from_config_multi_hook(
            hook_names=hooks, hook_d_ins=sizes, hook_head_indices=heads, **common
        )
        batches = store.get_multi_hook_data_loader()
    else:
        batches = iter(ActivationsStore(hook_name=hooks[1], hook_head_index=0, d_in=d_in, **common))

    def turn() -> None:
        for _ in range(TURN_TOKENS // BATCH):
            batch = next(batches)
            own = [batch[hook] for hook in hooks] if is_multi_hook else [batch]
            for trainer, x in zip(trainers, own, strict=True):
                trainer.step(x)

    return turn


def compare_training(case: str, dtype: torch.dtype, target: str, n_runs: int, device: str = "cpu") -> list[dict]:
    """Rows of token·heads/s against both of SAELens's ways; the target is for the first."""
    tokens, is_bf16 = sequences(16 * TURN_TOKENS), dtype == torch.bfloat16
    model = HookedLM(CONFIG).eval().to(device)
    hooked = to_hooked_transformer(model)
    ours, trainer = our_turn(model.to(dtype), tokens, use_bf16=is_bf16, use_compile=True)
    ours()
    if not trainer._block.is_compiled:
        case += " (fell back to uncompiled)"
    rows = []
    for is_multi_hook, n_times, name in ((False, N_HEADS, "a run a head"), (True, CONFIG.n_heads, "multi-hook")):
        theirs = their_turn(hooked, tokens, is_multi_hook=is_multi_hook, autocast=is_bf16)
        own, other = by_turns(ours, theirs, n_runs)
        times = own, [n_times * seconds for seconds in other]
        peer = f"SAELens, {name} (one run × {n_times})"
        row = compare(
            f"SAEs of 24 heads from the model, {case}", "token·heads/s", times, peer,
            target if not is_multi_hook else "", N_HEADS * TURN_TOKENS,
        )  # fmt: skip
        print(row, flush=True)
        rows.append(row)
    return rows


def compare_atlas(n_runs: int, n_tokens: int = ATLAS_TOKENS) -> dict:
    """Row of the seconds that the atlas's pass takes, the forward included, beside the forward's alone."""
    model, tokens = HookedLM(CONFIG).eval(), sequences(n_tokens)
    slots = choose_slots(model.cfg, LAYERS)
    stack = StackedSAE(SIZES.model_copy(update={"n_saes": N_HEADS}), torch.Generator().manual_seed(0))
    with torch.no_grad():
        # random weights leave half of all features active; sparse as trained ones, at a twentieth
        x = collect(model, tokens[:2], slots)
        stack.b_enc.copy_(-(x @ stack.W_enc).quantile(0.95, dim=1))

    def forward() -> None:
        for batch in forward_batches(tokens, 1024):
            collect(model, batch, slots)

    own, alone = by_turns(lambda: scan(model, stack, tokens, slots, 10, 10), forward, n_runs)
    row = compare("atlas data of 24 heads × 512 features", "s", (own, alone), "the forward alone", "≥ 0.77 (1 / 1.3)")
    return row | {"quantity": f"s for {n_tokens} tokens, forward included"}


def peak_of_training(n_tokens: int) -> int:
    """Peak resident bytes of training 24 SAEs on so many tokens, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.bench_sae_model", "--peak", str(n_tokens)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def _print_peak(n_tokens: int) -> None:
    # of the first three layers, whose forward is short: memory is what is asked
    model = HookedLM(CONFIG).eval()
    settings = HeadSaeSettings(batch_size=BATCH, normalize="none", n_train_tokens=None)
    (plan,) = make_plans(model, [0, 1, 2], "all", L1, [0], settings)
    job = HeadSaeJob(model, sequences(n_tokens), sequences(BATCH), [plan], settings, "chassis", 0, lambda share: None)
    job.train(None)
    print(process_peak_bytes())


def compare_memory(n_tokens: tuple[int, ...]) -> list[dict]:
    """Rows of the peak at each number of tokens, beside the peak at the first."""
    peaks = [peak_of_training(n) for n in n_tokens]
    rows = []
    for n, peak in zip(n_tokens[1:], peaks[1:], strict=True):
        ratio = f"{peak / peaks[0]:.4f}"
        rows.append(
            {
                "case": f"SAE training of 24 heads on {n} tokens", "quantity": "peak resident bytes", "ours": peak,
                "peer": peaks[0], "ratio": ratio, "ratio_low": ratio, "ratio_high": ratio, "n_runs": 1,
                "target": "≤ 1.05", "peer_name": f"ours on {n_tokens[0]} tokens", "machine": machine(),
            }
        )  # fmt: skip
        print(rows[-1], flush=True)
    return rows


def main(n_runs: int = 3, memory_tokens: tuple[int, ...] = MEMORY_TOKENS, n_atlas_tokens: int = ATLAS_TOKENS) -> None:
    """Run every case and write benchmarks/results/sae_model.csv."""
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module="sae_lens")
    started = time.perf_counter()
    rows = [compare_atlas(n_runs, n_atlas_tokens)]
    print(rows[0], flush=True)
    rows += compare_training("fp32", torch.float32, "≥ 25", n_runs)
    rows += compare_training("bf16 (SAELens: autocast)", torch.bfloat16, "≥ 45", n_runs)
    rows += compare_memory(memory_tokens)
    print(write("sae_model", rows), f"{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory-tokens", type=int, nargs="+", default=MEMORY_TOKENS)
    parser.add_argument("--atlas-tokens", type=int, default=ATLAS_TOKENS)
    parser.add_argument("--peak", type=int, help="only print the peak memory of a training on so many tokens")
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", str(arguments.threads))
    torch.set_num_threads(arguments.threads)
    if arguments.peak:
        _print_peak(arguments.peak)
    else:
        main(arguments.runs, tuple(arguments.memory_tokens), arguments.atlas_tokens)
