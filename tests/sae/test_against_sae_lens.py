"""Our stack and SAELens's trainer from the same start, on the same batches: the same loss curve and end."""

from __future__ import annotations

import pytest
import torch
from stacks_for_tests import seeded

from sae import MetricSums, SAEConfig, StackedSAE, TrainConfig, Trainer, train_stack

N_STEPS, BATCH, D_IN, D_SAE = 150, 256, 24, 96
WIDTHS, DEAD_WINDOW = (12, 30, 96), 3


def activations(n_tokens: int, seed: int) -> torch.Tensor:
    features = torch.nn.functional.normalize(torch.randn(2, 60, D_IN, generator=seeded(seed)), dim=-1)
    acts = torch.rand(2, n_tokens, 60, generator=seeded(seed + 1)) + 0.5
    return (acts * (torch.rand(2, n_tokens, 60, generator=seeded(seed + 2)) < 0.05)) @ features


def their_sae(architecture: str, coefficient: float):
    saes = pytest.importorskip("sae_lens.saes")
    common = {"d_in": D_IN, "d_sae": D_SAE}
    if architecture == "relu":
        config = saes.StandardTrainingSAEConfig(**common, l1_coefficient=coefficient, l1_warm_up_steps=50)
        return saes.StandardTrainingSAE(config)
    if architecture == "topk":
        config = saes.TopKTrainingSAEConfig(**common, k=5, aux_loss_coefficient=0.0, rescale_acts_by_decoder_norm=False)
        return saes.TopKTrainingSAE(config)
    if architecture == "batchtopk":
        config = saes.BatchTopKTrainingSAEConfig(
            **common, k=5, aux_loss_coefficient=0.0, rescale_acts_by_decoder_norm=False
        )
        return saes.BatchTopKTrainingSAE(config)
    if architecture == "gated":
        return saes.GatedTrainingSAE(
            saes.GatedTrainingSAEConfig(**common, l1_coefficient=coefficient, l1_warm_up_steps=50)
        )
    if architecture == "matryoshka":
        config = saes.MatryoshkaBatchTopKTrainingSAEConfig(
            **common, k=5, matryoshka_widths=list(WIDTHS), aux_loss_coefficient=1 / 32
        )
        return saes.MatryoshkaBatchTopKTrainingSAE(config)
    config = saes.JumpReLUTrainingSAEConfig(**common, l0_coefficient=coefficient, l0_warm_up_steps=50)
    return saes.JumpReLUTrainingSAE(config)


def their_trainer():
    # importorskip also keeps the deprecations that SAELens meets at import from counting as errors
    return pytest.importorskip("sae_lens.config"), pytest.importorskip("sae_lens.training.sae_trainer").SAETrainer


def train_theirs(architecture: str, coefficient: float, start: StackedSAE, batches: list[torch.Tensor]):
    """(loss curve, the trained SAE) of SAELens's own trainer from the weights of a stack of one."""
    configs, SAETrainer = their_trainer()
    sae = their_sae(architecture, coefficient)
    with torch.no_grad():
        for name, parameter in start.named_parameters():
            getattr(sae, name).copy_(parameter[0])
    config = configs.SAETrainerConfig(
        total_training_samples=N_STEPS * BATCH, train_batch_size_samples=BATCH, lr=2e-3, lr_end=2e-3,
        lr_warm_up_steps=20, lr_decay_steps=50, dead_feature_window=DEAD_WINDOW,
        logger=configs.LoggingConfig(log_to_wandb=False),
    )  # fmt: skip
    trainer = SAETrainer(config, sae, iter(batches))
    losses = []
    for batch in batches:
        losses.append(trainer.step(batch).loss.detach())
        trainer.n_training_steps += 1
    return torch.stack(losses), sae


@pytest.mark.parametrize(
    ("architecture", "k", "coefficients"),
    [
        ("relu", None, [0.1, 0.4]),
        ("topk", 5, [0.0, 0.0]),
        ("batchtopk", 5, [0.0, 0.0]),
        ("jumprelu", None, [0.01, 0.03]),
        ("gated", None, [0.1, 0.4]),
        ("matryoshka", 5, [0.0, 0.0]),
    ],
)
def test_training_equals_sae_lens(architecture, k, coefficients):
    x = activations(6000, seed=0)
    rows = torch.randint(6000, (N_STEPS, BATCH), generator=seeded(9))
    # SAELens lets the gates' reconstruction move the decoder
    options = {"gated": {"gate_detach": False}, "matryoshka": {"widths": WIDTHS}}.get(architecture, {})
    sae = StackedSAE(SAEConfig(n_saes=2, d_in=D_IN, d_sae=D_SAE, architecture=architecture, k=k, **options), seeded())
    starts = [sae.select([s]) for s in range(2)]
    config = TrainConfig(
        n_steps=N_STEPS, lr=2e-3, lr_warm_up_steps=20, lr_decay_steps=50, l1_warm_up_steps=50,
        dead_window=DEAD_WINDOW + 1,  # theirs is dead that fired on none of more steps than the window
    )  # fmt: skip
    stats = train_stack(Trainer(sae, config, coefficients, seeded()), [x[:, index] for index in rows])
    sums = MetricSums(sae.config)
    held_out = activations(4000, seed=0)
    with torch.no_grad():
        sums.update(held_out, *sae(held_out))
    ours = sums.result()
    for s in range(2):
        curve, theirs = train_theirs(architecture, coefficients[s], starts[s], [x[s, index] for index in rows])
        # float32 sums in another order, carried through 150 steps of Adam: 2e-7 measured; 1 % is the bar
        torch.testing.assert_close(torch.stack([step.loss[s] for step in stats]), curve, rtol=1e-4, atol=0)
        if sae.architecture.chooses_in_batch:
            # their running threshold starts from 0, ours from the first batch
            continue
        theirs.eval()
        with torch.no_grad():
            acts = theirs.encode(held_out[s])
            recon = theirs.decode(acts)
        their_l0 = (acts > 0).double().sum(-1).mean()
        their_fvu = (held_out[s] - recon).square().sum() / (held_out[s] - held_out[s].mean(0)).square().sum()
        assert float(ours.l0[s]) == pytest.approx(float(their_l0), rel=1e-3)
        assert float(ours.fvu[s]) == pytest.approx(float(their_fvu), rel=1e-3)
