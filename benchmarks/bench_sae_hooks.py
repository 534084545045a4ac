"""SAEs of four hooks fed by one forward, beside SAELens's `MultiSAETrainingRunner`, which does the same.

Janus v3 chassis with random weights (time does not depend on them), layer 6: its z of all heads, attention's and the
MLP's output, and the stream behind it, an SAE of 2,048 features for each, relu at one l1. Sequences of 512 tokens, all
positions, batches of 1,024, blocks of 2,048 tokens; no warm-up, no decay, no input scale, no resampling. A turn trains
on 2,048 tokens, activations computed within it.

Of SAELens's runner what `run` does until `fit` is the set-up, and its trainer's steps are timed: no logging, no
checkpoints, no evaluation.
"""

from __future__ import annotations

import argparse
import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks.bench_model import CONFIG
from benchmarks.bench_sae_model import ALL_STEPS, N_CTX, sequences
from benchmarks.turns import add, by_turns, compare, write
from workbench.analyses.sae_train.head_saes import HeadSaeJob
from workbench.analyses.sae_train.plan import make_plans
from workbench.analyses.sae_train.settings import HeadSaeSettings
from workbench.analyses.sae_train.stack_training import StackTraining
from workbench.models import HookedLM
from workbench.models.transformer_lens import to_hooked_transformer

LAYER, HOOKS, D_SAE = 6, ("attn.hook_z", "hook_attn_out", "hook_mlp_out", "hook_resid_post"), 2048
BATCH, BLOCK, L1, LR = 1024, 2048, 2.0, 3e-4
Turn = Callable[[], None]


def our_turn(model: HookedLM, tokens: torch.Tensor, **settings: Any) -> Turn:
    """A block's steps of all four SAEs with the forward that feeds them."""
    own = HeadSaeSettings(
        hook=HOOKS, expansion=(D_SAE // CONFIG.d_model,), batch_size=BATCH, buffer_tokens=BLOCK, lr=LR,
        normalize="none", schedule=(0, 0), n_resamples=0, include_special=True,
        n_train_tokens=ALL_STEPS * BATCH, **settings,
    )  # fmt: skip
    plans = make_plans(model, [LAYER], "all", L1, 0, own)
    assert {plan.config.d_sae for plan in plans} == {D_SAE}
    job = HeadSaeJob(model, tokens, tokens[:1], plans, own, "chassis", 0, lambda share: None)
    stacks = [StackTraining(plan, own, ALL_STEPS, job._source.block(0, i)) for i, plan in enumerate(plans)]

    def turn() -> None:
        for _ in range(BLOCK // BATCH):
            step = stacks[0].n_steps_done
            for i, stack in enumerate(stacks):
                stack.step(job._source.batch(step, i), is_logged=False)

    return turn


def their_turn(model: Any, tokens: torch.Tensor, *, autocast: bool) -> Turn:
    """As many steps of SAELens's trainer of several SAEs, with its activations store."""
    from datasets import Dataset
    from sae_lens import LoggingConfig, MultiSAETrainingRunner, MultiSAETrainingRunnerConfig, StandardTrainingSAEConfig
    from sae_lens.training.multi_sae_trainer import MultiSAETrainer

    widths = {hook: CONFIG.n_heads * CONFIG.d_head if hook == HOOKS[0] else CONFIG.d_model for hook in HOOKS}
    device = str(CONFIG.device)
    saes = {
        hook: StandardTrainingSAEConfig(
            d_in=width, d_sae=D_SAE, l1_coefficient=L1, device=device, reshape_activations="none"
        )
        for hook, width in widths.items()
    }
    config = MultiSAETrainingRunnerConfig(
        saes=saes, hook_names={hook: f"blocks.{LAYER}.{hook}" for hook in HOOKS}, model_name="chassis",
        context_size=N_CTX, n_batches_in_buffer=BLOCK // N_CTX, store_batch_size_prompts=BATCH // N_CTX,
        training_tokens=ALL_STEPS * BATCH, train_batch_size_tokens=BATCH, prepend_bos=False, streaming=False,
        disable_concat_sequences=True, device=device, autocast=autocast, autocast_lm=autocast, lr=LR, lr_end=LR,
        logger=LoggingConfig(log_to_wandb=False), checkpoint_path=None, output_path=None,
    )  # fmt: skip
    data = Dataset.from_dict({"tokens": tokens.tolist()})
    runner = MultiSAETrainingRunner(config, override_dataset=data, override_model=model)
    batches = runner.activations_store.get_multi_hook_data_loader()
    trainer = MultiSAETrainer(
        cfg=config.to_sae_trainer_config(), saes=runner.saes, hook_names=config.hook_names_per_sae,
        data_provider=batches, evaluator=None,
    )  # fmt: skip

    def turn() -> None:
        for _ in range(BLOCK // BATCH):
            batch = next(batches)
            for name, own in trainer.trainers.items():
                own.step(batch[config.hook_names_per_sae[name]])

    return turn


CASES = {"fp32": torch.float32, "bf16 (SAELens: autocast)": torch.bfloat16}


def main(n_runs: int = 5, cases: Sequence[str] = tuple(CASES)) -> None:
    """Run the cases and write benchmarks/results/sae_hooks.csv."""
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module="sae_lens")
    tokens, rows = sequences(16 * BLOCK), []
    model = HookedLM(CONFIG).eval()
    hooked = to_hooked_transformer(model)
    for case in cases:
        is_bf16 = CASES[case] == torch.bfloat16
        ours = our_turn(model.to(CASES[case]), tokens, use_bf16=is_bf16, use_compile=is_bf16)
        theirs = their_turn(hooked, tokens, autocast=is_bf16)
        times, peer = by_turns(ours, theirs, n_runs), "SAELens, MultiSAETrainingRunner"
        add(rows, compare(f"SAEs of four hooks from the model, {case}", "token/s", times, peer, "≥ 3", BLOCK))
    print(write("sae_hooks", rows))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=tuple(CASES))
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", str(arguments.threads))
    torch.set_num_threads(arguments.threads)
    main(arguments.runs, arguments.cases)
