"""Stacks of SAEs on a CUDA device: the CPU's steps, compiled ones, and resumed to the bit."""

from __future__ import annotations

import warnings

import pytest
import torch
from waits import waits

from sae import SAEConfig, StackedSAE, TrainConfig, Trainer

ARCHITECTURES = (
    {},
    {"architecture": "topk", "k": 4},
    {"architecture": "batchtopk", "k": 4},
    {"architecture": "jumprelu"},
    {"architecture": "gated"},
    {"architecture": "matryoshka", "k": 4},
)
IDS = ("relu", "topk", "batchtopk", "jumprelu", "gated", "matryoshka")
N_STEPS = 8


def stack_on(device: str, dtype: torch.dtype, settings: dict) -> StackedSAE:
    sae = StackedSAE(SAEConfig(n_saes=3, d_in=16, d_sae=64, **settings), torch.Generator().manual_seed(0))
    return sae.to(device, dtype)


def trainer_on(device: str, dtype: torch.dtype, settings: dict, **training) -> Trainer:
    config = TrainConfig(n_steps=N_STEPS, lr=1e-3, dead_window=2, resample_steps=(4,), **training)
    return Trainer(stack_on(device, dtype, settings), config, 0.1, torch.Generator().manual_seed(1))


def batches(dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(3, 512, 16, generator=generator, dtype=dtype) for _ in range(N_STEPS)]


@pytest.mark.parametrize("settings", ARCHITECTURES, ids=IDS)
def test_the_same_training_as_on_the_cpu(settings: dict) -> None:
    weights = []
    for device in ("cpu", "cuda"):
        trainer = trainer_on(device, torch.float64, settings)
        for x in batches(torch.float64):
            stats = trainer.step(x.to(device))
        weights.append({n: t.cpu() for n, t in trainer.sae.state_dict().items()})
        assert bool(stats.loss.isfinite().all())
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("settings", ARCHITECTURES, ids=IDS)
@pytest.mark.parametrize("use_bf16", [False, True])
def test_resumed_to_the_bit(settings: dict, use_bf16: bool) -> None:
    data = [x.cuda() for x in batches(torch.float32)]
    whole = trainer_on("cuda", torch.float32, settings, use_bf16=use_bf16)
    for x in data:
        whole.step(x)
    first = trainer_on("cuda", torch.float32, settings, use_bf16=use_bf16)
    for x in data[:3]:
        first.step(x)
    second = trainer_on("cuda", torch.float32, settings, use_bf16=use_bf16)
    second.load_state_dict(first.state_dict())
    for x in data[3:]:
        second.step(x)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(second.state_dict()[name], tensor), name


@pytest.mark.parametrize("use_bf16", [False, True])
def test_compiled_is_the_same_arithmetic(use_bf16: bool) -> None:
    losses = []
    for use_compile in (False, True):
        trainer = trainer_on("cuda", torch.float32, {}, use_bf16=use_bf16, use_compile=use_compile)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the compiler's own
            stats = [trainer.step(x.cuda()) for x in batches(torch.float32)]
        assert stats[-1].is_compiled is use_compile
        losses.append(torch.stack([s.loss for s in stats]).cpu())
    # bfloat16: the compiler keeps float32 between fused operations, the plain form rounds some of them
    torch.testing.assert_close(losses[1], losses[0], rtol=2e-2 if use_bf16 else 1e-5, atol=0)


def test_a_step_waits_for_the_device_once() -> None:
    """The loss is read, so that training stops before a nan reaches the weights; nothing else is."""
    trainer, data = trainer_on("cuda", torch.float32, {}), [x.cuda() for x in batches(torch.float32)]
    trainer.step(data[0])
    with warnings.catch_warnings(record=True) as seen, waits("warn"):
        warnings.simplefilter("always")
        trainer.step(data[1])
    reads = [str(w.message) for w in seen if "synchroniz" in str(w.message)]
    assert len(reads) <= 1, reads
