"""A stack of SAEs beside SAELens's trainers on activations in memory, from the same start on the same batches.

Eight SAEs of 64 → 512 (heads' z), batches of 4,096 tokens. One turn is one optimizer step of the stack, or of each of
eight SAELens trainers; a case's second row is the loss at the end of a training by both.
"""

from __future__ import annotations

import argparse
import os
import warnings

import torch

from benchmarks.turns import add, by_turns, compare, machine, write
from sae import SAEConfig, StackedSAE, TrainConfig, Trainer

SIZES = SAEConfig(n_saes=8, d_in=64, d_sae=512)
BATCH, N_TOKENS, LR, L1 = 4096, 65536, 3e-4, 1.0
# case, ours, SAELens under autocast, target
CASES = [
    ("fp32", {}, False, ""),
    ("fp32 compiled", {"use_compile": True}, False, "≥ 1.8"),
    ("bf16", {"use_bf16": True}, True, ""),
    ("bf16 compiled", {"use_bf16": True, "use_compile": True}, True, "≥ 4"),
]


def make_activations() -> torch.Tensor:
    """Sparse sums of 256 unit directions, 8 active a token, [n_saes, N_TOKENS, d_in]; norms near 3."""
    generator = torch.Generator().manual_seed(0)
    x = torch.empty(SIZES.n_saes, N_TOKENS, SIZES.d_in)
    for own in x:
        features = torch.nn.functional.normalize(torch.randn(256, SIZES.d_in, generator=generator), dim=-1)
        height = torch.rand(N_TOKENS, 256, generator=generator) + 0.5
        own.copy_((height * (torch.rand(height.shape, generator=generator) < 1 / 32)) @ features)
    return x


def make_sae_lens(start: StackedSAE, k: int, n_steps: int, autocast: bool, device: str = "cpu"):
    """SAELens's trainer of one standard SAE that starts where SAE k of a stack does."""
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.saes import StandardTrainingSAE, StandardTrainingSAEConfig
    from sae_lens.training.sae_trainer import SAETrainer

    sae = StandardTrainingSAE(
        StandardTrainingSAEConfig(d_in=SIZES.d_in, d_sae=SIZES.d_sae, l1_coefficient=L1, device=device)
    )
    with torch.no_grad():
        for name, parameter in start.named_parameters():
            getattr(sae, name).copy_(parameter[k])
    config = SAETrainerConfig(
        total_training_samples=n_steps * BATCH,
        train_batch_size_samples=BATCH,
        lr=LR,
        lr_end=LR,
        autocast=autocast,
        device=device,
        logger=LoggingConfig(log_to_wandb=False),
    )
    return SAETrainer(config, sae, iter([]))


def random_batches(x: torch.Tensor, n: int, seed: int):
    """`n` batches of BATCH random tokens, the same for every SAE's axis."""
    rows = torch.randint(x.shape[1], (n, BATCH), generator=torch.Generator().manual_seed(seed))
    return (x[:, index] for index in rows)


def compare_speed(case: str, settings: dict, autocast: bool, target: str, x: torch.Tensor, n_runs: int) -> dict:
    """Row of token·SAEs/s of one optimizer step of all SAEs."""
    stack = StackedSAE(SIZES, torch.Generator().manual_seed(0))
    theirs = [make_sae_lens(stack, k, n_runs + 2, autocast) for k in range(SIZES.n_saes)]
    ours = Trainer(stack, TrainConfig(n_steps=n_runs + 2, lr=LR, **settings), L1, torch.Generator().manual_seed(0))
    batch = next(random_batches(x, 1, seed=2))

    def step_all() -> None:
        for k, trainer in enumerate(theirs):
            trainer.step(batch[k])

    is_compiled = ours.step(batch).is_compiled
    times = by_turns(lambda: ours.step(batch), step_all, n_runs)
    if is_compiled != bool(settings.get("use_compile")):
        case += " (fell back to uncompiled)"
    return compare(f"SAE step, {case}", "token·SAEs/s", times, "SAELens", target, SIZES.n_saes * BATCH)


def compare_loss(case: str, settings: dict, autocast: bool, x: torch.Tensor, n_steps: int, n_saes: int = 2) -> dict:
    """Row of the mean loss over the last tenth of n_steps steps, of the stack's first SAEs."""
    start = StackedSAE(SIZES, torch.Generator().manual_seed(0)).select(range(n_saes))
    theirs = [make_sae_lens(start, k, n_steps, autocast) for k in range(n_saes)]
    config = TrainConfig(n_steps=n_steps, lr=LR, **settings)
    ours = Trainer(start.select(range(n_saes)), config, L1, torch.Generator().manual_seed(0))
    losses = []
    for batch in random_batches(x[:n_saes], n_steps, seed=1):
        their_loss = [float(trainer.step(batch[k]).loss.detach()) for k, trainer in enumerate(theirs)]
        losses.append([ours.step(batch).loss.tolist(), their_loss])
    # [runs, ours or theirs, SAEs]
    ends = torch.tensor(losses)[-max(1, n_steps // 10) :].mean(dim=0)
    ratios = ends[0] / ends[1]
    return {
        "case": f"SAE training, {case}",
        "quantity": f"loss after {n_steps} steps",
        "ours": f"{float(ends[0].mean()):.5g}",
        "peer": f"{float(ends[1].mean()):.5g}",
        "ratio": f"{float(ratios.mean()):.4f}",
        "ratio_low": f"{float(ratios.min()):.4f}",
        "ratio_high": f"{float(ratios.max()):.4f}",
        "n_runs": n_saes,
        "target": "0.99 to 1.01",
        "peer_name": "SAELens",
        "machine": machine(),
    }


def main(n_runs: int = 9, n_loss_steps: int = 300) -> None:
    """Run every case and write benchmarks/results/sae.csv."""
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    x, rows = make_activations(), []
    for case, settings, autocast, target in CASES:
        add(rows, compare_speed(case, settings, autocast, target, x, n_runs))
        if target:
            add(rows, compare_loss(case, settings, autocast, x, n_loss_steps))
    print(write("sae", rows))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--loss-steps", type=int, default=300)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", str(arguments.threads))
    torch.set_num_threads(arguments.threads)
    main(arguments.runs, arguments.loss_steps)
