"""The register of architectures, and one from a file of a user's own: docs/plugins/p_annealed.py, by autograd."""

from __future__ import annotations

import pytest
import torch
from stacks_for_tests import random_stack, seeded
from test_train import batches_of, sparse_data

from docs.plugins.p_annealed import ARCHITECTURE, P_END, PAnnealed
from sae import SAEConfig, StackedSAE, TrainConfig, Trainer, architectures, loss_and_gradients, max_cosine, train_stack
from sae.architecture import LINEAR


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setattr(architectures, "_FOUND", {})
    architectures.register(ARCHITECTURE)


def test_names_are_found_and_taken_ones_refused():
    assert architectures.architecture_names() == [*architectures.BUILT_IN, "p-annealed"]
    for name in architectures.architecture_names():
        own = architectures.find_architecture(name)
        assert own.name == name
        assert own.tensors(SAEConfig(n_saes=1, d_in=4, d_sae=8)).keys() >= {"W_enc", "W_dec", "b_dec"}
    architectures.register(ARCHITECTURE)  # again, as by a file loaded twice
    architectures.register(architectures.find_architecture("relu"))  # which a file of analyses may import
    with pytest.raises(ValueError, match="the architecture 'p-annealed' is taken; expected another name"):
        architectures.register(PAnnealed())
    with pytest.raises(
        ValueError, match="architecture: got 'p-anealed'; expected one of batchtopk, .*, p-annealed, or"
    ):
        architectures.find_architecture("p-anealed")


@pytest.mark.parametrize("progress", [0.0, 0.6])
def test_gradients_by_autograd_equal_central_differences(progress):
    sae = random_stack("p-annealed", seed=2)
    assert sae.tensors.keys() == LINEAR.keys()
    x = torch.randn(3, 16, 5, generator=seeded(9), dtype=torch.float64)
    l1 = torch.tensor([0.1, 0.5, 1.5], dtype=torch.float64)
    result = loss_and_gradients(sae, x, l1, progress=progress)
    sizes = sae.encode(x) * sae.W_dec.norm(dim=-1).unsqueeze(1)
    expected = sizes.pow(1 - (1 - P_END) * progress).where(sizes > 0, 0).sum(-1).mean(-1)
    torch.testing.assert_close(result.sparsity, expected)
    for name, parameter in sae.named_parameters():
        direction = 1e-6 * torch.randn(parameter.shape, generator=seeded(1), dtype=torch.float64)
        sides = []
        with torch.no_grad():
            for move in (direction, -2 * direction):
                parameter += move
                now = loss_and_gradients(sae, x, l1, progress=progress)
                sides.append(now.squared_error + l1 * now.sparsity)
            parameter += direction
        got = (result.gradients[name] * direction).flatten(1).sum(1)
        # truncation ~step², more where p < 1 bends at small activations, and rounding ~1e-16/step
        torch.testing.assert_close(got / 1e-6, (sides[0] - sides[1]) / 2e-6, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_recovers_known_features_and_resumes(seed):
    features, x = sparse_data(1, 20_000, 16, 40, seed=seed)
    config = TrainConfig(
        n_steps=500, lr=5e-3, lr_decay_steps=200, l1_warm_up_steps=100, dead_window=100, resample_steps=(200,)
    )
    batches = batches_of(x, 500, 256, seed)

    def fresh(seed: int) -> Trainer:
        sae = StackedSAE(SAEConfig(n_saes=1, d_in=16, d_sae=64, architecture="p-annealed"), seeded(seed))
        return Trainer(sae, config, 0.2, seeded(seed))

    whole, again = fresh(seed), fresh(seed + 50)
    for batch in batches[:250]:
        whole.step(batch)
    state = whole.state_dict()
    train_stack(whole, batches[250:])
    assert max_cosine(features[0], whole.sae.W_dec[0]).mean() >= 0.9
    again.load_state_dict(state)
    train_stack(again, batches[250:])
    assert torch.equal(again.sae.W_dec, whole.sae.W_dec)


def test_a_sae_of_a_stack_trains_as_alone():
    x = sparse_data(1, 600, 12, 30, seed=1)[1].double()
    ends = []
    for n in (1, 3):
        config = SAEConfig(n_saes=n, d_in=12, d_sae=40, architecture="p-annealed")
        sae = StackedSAE(config, [seeded(k) for k in range(n)], dtype=torch.float64)
        streams = [seeded(k) for k in range(n)]
        trainer = Trainer(sae, TrainConfig(n_steps=40, lr=3e-3), 0.1, streams, input_index=[0] * n)
        train_stack(trainer, batches_of(x, 40, 48))
        ends.append(sae.W_dec[0])
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=1e-10)
