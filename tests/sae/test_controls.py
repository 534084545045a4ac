"""The random dictionary's sparsity and the shuffled activations' margins."""

from __future__ import annotations

import pytest
import torch
from stacks_for_tests import seeded

from sae import SAEConfig, random_dictionary, shuffle_coordinates


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("fit_scale", [False, True])
def test_random_dictionary_has_the_asked_sparsity_and_random_unit_features(seed, fit_scale):
    x = torch.randn(3, 500, 8, generator=seeded(seed)) + 2
    config = SAEConfig(n_saes=3, d_in=8, d_sae=32, architecture="topk", k=4)
    wanted = torch.tensor([0.5, 4.0, 20.0])
    sae = random_dictionary(config, x, wanted, seeded(seed), fit_scale=fit_scale)
    with torch.no_grad():
        acts, recon = sae(x)
    l0 = (acts > 0).sum(dim=-1).double().mean(dim=-1)
    torch.testing.assert_close(l0, wanted.double(), atol=1 / 500, rtol=0)
    torch.testing.assert_close(sae.W_enc.norm(dim=1), torch.ones(3, 32))
    torch.testing.assert_close(sae.b_dec.detach(), x.mean(dim=1))
    assert bool((sae.b_enc == sae.b_enc[:, :1]).all())
    scale = sae.W_dec.norm(dim=-1)
    torch.testing.assert_close(scale, scale[:, :1].expand(3, 32))
    torch.testing.assert_close(sae.W_dec, sae.W_enc.transpose(1, 2) * scale[:, :1, None])
    if fit_scale:
        # the best scale leaves the residual orthogonal to the reconstruction
        centred, part = x - sae.b_dec[:, None], recon - sae.b_dec[:, None]
        alignment = ((centred - part) * part).sum(dim=(1, 2)) / part.square().sum(dim=(1, 2))
        assert alignment.abs().max() < 1e-4
        assert bool(((x - recon).square().sum(dim=(1, 2)) < centred.square().sum(dim=(1, 2))).all())
    else:
        torch.testing.assert_close(scale, torch.ones(3, 32))


@pytest.mark.parametrize("seed", [0, 1])
def test_shuffling_keeps_every_coordinate_and_breaks_their_dependence(seed):
    latent = torch.randn(2, 2000, 1, generator=seeded(seed))
    x = latent * torch.tensor([1.0, -2.0, 0.5]) + 0.01 * torch.randn(2, 2000, 3, generator=seeded(seed + 1))
    shuffled = shuffle_coordinates(x, seeded(seed + 2))
    assert torch.equal(shuffled.sort(dim=1).values, x.sort(dim=1).values)
    for s in range(2):
        correlation = torch.corrcoef(shuffled[s].T)[~torch.eye(3, dtype=torch.bool)]
        # standard error 1/sqrt(2000) = .022; 5 of them
        assert correlation.abs().max() < 0.11
        assert torch.corrcoef(x[s].T).abs().min() > 0.99
    assert torch.equal(shuffle_coordinates(x, seeded(seed + 2)), shuffled)


X = torch.randn(2, 50, 4, generator=seeded())


@pytest.mark.parametrize(
    ("x", "l0", "message"),
    [
        (X[:1], [1, 1], "x has shape"),
        (X[..., :3], [1, 1], r"expected \(2, tokens ≥ 1, 4\)"),
        (X[:, :0], [1, 1], "tokens ≥ 1"),
        (X * torch.nan, [1, 1], "nan or inf"),
        (X, [1], "expected 2 numbers"),
        (X, [1, 0], "l0 is"),
        (X, [1, 8], r"in \(0, d_sae\)"),
        (X, [1, float("nan")], "l0 is"),
    ],
)
def test_bad_inputs_are_named(x, l0, message):
    with pytest.raises(ValueError, match=message):
        random_dictionary(SAEConfig(n_saes=2, d_in=4, d_sae=8), x, l0, seeded())


def test_bad_shapes_are_not_shuffled():
    with pytest.raises(ValueError, match="shuffle_coordinates: x has shape"):
        shuffle_coordinates(torch.zeros(3, 4), seeded())
