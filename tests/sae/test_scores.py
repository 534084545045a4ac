"""Scores of SAEs against naive loops, whatever the batches; and how far ratios of single tokens are from them."""

from __future__ import annotations

import pytest
import torch
from stacks_for_tests import KINDS, random_stack

from sae import SAEConfig, ScoreSums, StackedSAE, weight_scores
from sae.metrics import max_cosine


def activations(n_saes=2, n=37, d_in=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n_saes, n, d_in, generator=generator, dtype=torch.float64) + 1.5


def scored(config, x, acts, recon, sizes):
    sums = ScoreSums(config)
    for own in zip(*(part.split(sizes, dim=1) for part in (x, acts, recon)), strict=True):
        sums.update(*own)
    return sums.result()


@pytest.mark.parametrize("seed", range(5))
def test_scores_are_those_of_a_naive_loop_whatever_the_batches(seed) -> None:
    config = SAEConfig(n_saes=2, d_in=5, d_sae=7)
    x = activations(seed=seed)
    generator = torch.Generator().manual_seed(seed + 100)
    acts = torch.randn(2, 37, 7, generator=generator, dtype=torch.float64).relu()
    recon = 0.7 * x + 0.2 * torch.randn(x.shape, generator=generator, dtype=torch.float64)
    recon[1, 3] = 0  # has no direction
    whole, parts = (scored(config, x, acts, recon, sizes) for sizes in (37, [1, 20, 16]))
    for k in range(2):
        rows = [(a.tolist(), b.tolist(), f.tolist()) for a, b, f in zip(x[k], recon[k], acts[k], strict=True)]
        dot = lambda a, b: sum(p * q for p, q in zip(a, b, strict=True))  # noqa: E731
        cosines = [dot(a, b) / (dot(a, a) * dot(b, b)) ** 0.5 for a, b, _ in rows if dot(b, b) > 0]
        expected = {
            "cosine": sum(cosines) / len(cosines),
            "norm_in": sum(dot(a, a) ** 0.5 for a, _, _ in rows) / 37,
            "norm_out": sum(dot(b, b) ** 0.5 for _, b, _ in rows) / 37,
            "l1_norm": sum(sum(f) for _, _, f in rows) / 37,
            "reconstruction_bias": sum(dot(b, b) for _, b, _ in rows) / sum(dot(a, b) for a, b, _ in rows),
        }
        for name, value in expected.items():
            for found in (whole, parts):
                assert float(getattr(found, name)[k]) == pytest.approx(value, rel=1e-12), name
    assert torch.allclose(whole.norm_ratio, whole.norm_out / whole.norm_in)


@pytest.mark.parametrize("seed", range(5))
def test_reconstruction_bias_is_the_divisor_of_least_error(seed) -> None:
    config, x = SAEConfig(n_saes=1, d_in=5, d_sae=2), activations(1, seed=seed)
    recon = 0.6 * x + 0.1 * activations(1, seed=seed + 50)
    gamma = float(scored(config, x, torch.ones(1, 37, 2).double(), recon, 37).reconstruction_bias)
    errors = [float((recon / g - x).square().sum()) for g in (gamma * 0.999, gamma, gamma * 1.001)]
    assert errors[1] < min(errors[0], errors[2])


def test_what_is_undefined_is_nan() -> None:
    config = SAEConfig(n_saes=1, d_in=3, d_sae=2)
    none = ScoreSums(config).result()
    zero = torch.zeros(1, 4, 3)
    silent = scored(config, zero, torch.zeros(1, 4, 2), zero, 4)
    for name in ("l1_norm", "cosine", "norm_in", "norm_ratio", "reconstruction_bias"):
        assert getattr(none, name).isnan().all(), name
    for name in ("cosine", "norm_ratio", "reconstruction_bias"):
        assert getattr(silent, name).isnan().all(), name
    assert silent.dense_share(0.01).isnan().all()
    assert none.dense(0.01).isnan().all()
    assert float(silent.alive) == 0


def test_frequencies_of_features() -> None:
    config = SAEConfig(n_saes=1, d_in=2, d_sae=4)
    acts = torch.zeros(1, 200, 4)
    for feature, n in enumerate((0, 1, 10, 100)):  # densities 0, .005, .05, .5
        acts[0, :n, feature] = 1
    x = torch.ones(1, 200, 2)
    found = scored(config, x, acts, x, 200)
    assert float(found.alive) == pytest.approx(3 / 4)
    assert [float(found.dense(limit)) for limit in (0.01, 0.1)] == [0.5, 0.25]
    shares = [float(found.dense_share(limit)) for limit in (0.01, 0.1)]
    assert shares == pytest.approx([110 / 111, 100 / 111])


def test_means_of_ratios_are_far_from_the_ratio_of_sums() -> None:
    """SAEBench's core (commit 10e0728) averages each token's 1 − ‖x − x̂‖²/‖x − mean x‖², the mean being its batch's,
    and each batch's mse over its own number of tokens. Two kinds of token show how far that goes."""
    far, near = torch.tensor([[10.0, 0.0], [-10.0, 0.0]]), torch.tensor([[0.0, 0.1], [0.0, -0.1]])
    x = torch.cat([far, near]).repeat(8, 1).double()[None]
    recon = x.clone()
    recon[..., 1] += 0.2  # an error that is nothing to the long tokens and twice the short ones' length
    acts, config = torch.ones(1, 32, 3).double(), SAEConfig(n_saes=1, d_in=2, d_sae=3)
    right = scored(config, x, acts, recon, 32)
    error, spread = (x - recon).square().sum(-1), (x - x.mean(dim=1, keepdim=True)).square().sum(-1)
    assert float(right.metrics.explained_variance) == pytest.approx(float(1 - error.sum() / spread.sum()))
    assert float(right.metrics.explained_variance) > 0.99
    assert float((1 - error / spread).mean()) < -0.9  # of the same reconstructions
    # a batch whose own mean is taken has less variance: here the batches are one kind of sign each
    shifted = torch.cat([x + 100, x - 100], dim=1)
    off = shifted + 3
    whole = scored(config, shifted, torch.ones(1, 64, 3).double(), off, 32)
    batches = [
        1 - 18 / float((part - part.mean(dim=1, keepdim=True)).square().sum(-1).mean())
        for part in shifted.split(32, dim=1)
    ]
    assert float(whole.metrics.explained_variance) == pytest.approx(1 - 18 / (100**2 * 2 + 50.005), abs=1e-6)
    assert max(batches) < 0.65 < 0.999 < float(whole.metrics.explained_variance)
    # mse: a mean, which batches of half the size leave as it is and dividing by their tokens doubles
    halves = scored(config, x, acts, recon, 16)
    assert float(halves.metrics.mse) == pytest.approx(float(right.metrics.mse), rel=1e-12)
    theirs = [torch.cat([part.sum(-1) / part.shape[1] for part in own]) for own in
              ([(x - recon).square()], (x - recon).square().split(16, dim=1))]  # fmt: skip
    assert float(theirs[1].mean()) == pytest.approx(2 * float(theirs[0].mean()))


@pytest.mark.parametrize(("architecture", "k"), KINDS)
def test_directions_and_weights_of_every_architecture(architecture, k) -> None:
    sae = random_stack(architecture, k).requires_grad_(requires_grad=False)
    n_saes, d_sae = sae.config.n_saes, sae.config.d_sae
    directions, origin = sae.directions, sae.decode(torch.zeros(n_saes, 1, d_sae, dtype=sae.dtype))[:, 0]
    acts = torch.rand(n_saes, 6, d_sae, generator=torch.Generator().manual_seed(1)).to(sae.dtype)
    torch.testing.assert_close(acts @ directions + origin[:, None], sae.decode(acts), rtol=1e-9, atol=1e-9)
    density = torch.ones(n_saes, d_sae)
    density[:, 0] = 0
    found = weight_scores(sae, density)
    for k in range(n_saes):
        cosines, nearest = [], []
        for j in range(1, d_sae):
            column, row = sae.W_enc[k, :, j].double(), sae.W_dec[k, j].double()
            cosines.append(float(column @ row / (column.norm() * row.norm())))
            others = torch.cat([sae.W_dec[k, 1:j], sae.W_dec[k, j + 1 :]])
            nearest.append(float(max_cosine(row[None], others)))
        assert float(found.encoder_decoder_cosine[k]) == pytest.approx(sum(cosines) / len(cosines), abs=1e-6)
        assert float(found.max_decoder_cosine[k]) == pytest.approx(sum(nearest) / len(nearest), abs=1e-6)
    assert weight_scores(sae, torch.zeros(n_saes, d_sae)).encoder_norm.isnan().all()


def test_scaling_activations_changes_no_score_of_weights() -> None:
    sae = StackedSAE(SAEConfig(n_saes=1, d_in=4, d_sae=6), torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        sae.b_enc.normal_(generator=torch.Generator().manual_seed(1))
    before = weight_scores(sae, torch.ones(1, 6))
    with torch.no_grad():
        for tensor in (sae.W_enc, sae.b_enc):
            tensor.mul_(7)
        sae.W_dec.div_(7)
    after = weight_scores(sae, torch.ones(1, 6))
    for own, other in zip(before, after, strict=True):
        torch.testing.assert_close(own, other)


def test_bad_densities_are_refused() -> None:
    sae = StackedSAE(SAEConfig(n_saes=1, d_in=4, d_sae=6), torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=r"density has shape \(1, 5\); expected \(1, 6\)"):
        weight_scores(sae, torch.ones(1, 5))
