"""Gram matrices and cosines of heads against explicit loops, and the properties their definitions promise."""

from __future__ import annotations

import math

import pytest
import torch

from workbench.models import geometry

SEEDS = [0, 1, 2]


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def causal_maps(seed: int, batch: int, heads: int, n: int) -> torch.Tensor:
    mask = torch.full((n, n), -torch.inf, dtype=torch.float64).triu(1)
    return torch.softmax(2 * draw(seed, batch, heads, n, n) + mask, dim=-1)


def naive_cosines(rows: list[torch.Tensor]) -> torch.Tensor:
    out = torch.zeros(len(rows), len(rows), dtype=torch.float64)
    for i, a in enumerate(rows):
        for j, b in enumerate(rows):
            dot = sum(x * y for x, y in zip(a.flatten().tolist(), b.flatten().tolist(), strict=True))
            out[i, j] = dot / math.sqrt(
                sum(x * x for x in a.flatten().tolist()) * sum(y * y for y in b.flatten().tolist())
            )
    return out


def cosines(z: torch.Tensor, W_O: torch.Tensor | None = None, pattern: torch.Tensor | None = None) -> torch.Tensor:
    """Of the outputs, with W_O of the residual contributions, with a pattern of the attention maps."""
    heads = geometry.HeadRedundancy()
    heads.add(z, pattern)
    return heads.cosines("pattern" if pattern is not None else "z" if W_O is None else "residual", W_O)


@pytest.mark.parametrize("seed", SEEDS)
def test_cosines_equal_the_double_loop(seed):
    z, W_O, pattern = draw(seed, 2, 5, 3, 4), draw(seed + 10, 3, 4, 6), causal_maps(seed, 2, 3, 5)
    heads = range(3)
    close = {"rtol": 0, "atol": 1e-12}  # float64 sums of some hundred products
    torch.testing.assert_close(cosines(z), naive_cosines([z[:, :, h] for h in heads]), **close)
    torch.testing.assert_close(cosines(z, pattern=pattern), naive_cosines([pattern[:, h] for h in heads]), **close)
    written = [z[:, :, h] @ W_O[h] for h in heads]
    torch.testing.assert_close(cosines(z, W_O), naive_cosines(written), **close)


@pytest.mark.parametrize("seed", SEEDS)
def test_only_the_residual_basis_is_free_of_the_value_gauge(seed):
    z, W_O = draw(seed, 2, 40, 4, 8), draw(seed + 1, 4, 8, 16)
    rotation = torch.linalg.qr(draw(seed + 2, 4, 8, 8)).Q
    turned_z = torch.einsum("bthd,hde->bthe", z, rotation)
    turned_W_O = torch.einsum("hde,hdm->hem", rotation, W_O)
    before, after = cosines(z, W_O), cosines(turned_z, turned_W_O)
    torch.testing.assert_close(after, before, rtol=0, atol=1e-12)
    assert (cosines(turned_z) - cosines(z)).abs().max() > 1e-2


def test_cosines_are_symmetric_bounded_free_of_scale_and_follow_a_permutation():
    z, order = draw(3, 3, 7, 5, 2), torch.tensor([4, 2, 0, 1, 3])
    cos = cosines(z)
    assert torch.equal(cos, cos.T)
    assert cos.abs().max() <= 1
    assert torch.equal(cos.diagonal(), torch.ones(5, dtype=torch.float64))
    torch.testing.assert_close(cosines(1e-3 * z), cos, rtol=0, atol=1e-14)
    torch.testing.assert_close(cosines(z[:, :, order]), cos[order][:, order], rtol=0, atol=1e-14)


def test_equal_and_opposite_heads_are_at_one_and_minus_one():
    z = draw(0, 1, 6, 1, 3)
    cos = cosines(torch.cat((z, z, -2 * z), dim=2))
    torch.testing.assert_close(cos[0], torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64), rtol=0, atol=1e-15)
    assert geometry.mean_abs_cos(cos) == pytest.approx(1)
    assert geometry.max_abs_cos(cos) == pytest.approx(1)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_stream_of_batches_gives_what_the_whole_gives(seed):
    z, W_O, pattern = draw(seed, 7, 6, 3, 4), draw(seed, 3, 4, 5), causal_maps(seed, 7, 3, 6)
    heads = geometry.HeadRedundancy()
    for part, maps in zip(z.split(3), pattern.split(3), strict=True):
        heads.add(part, maps)
    close = {"rtol": 0, "atol": 1e-13}
    torch.testing.assert_close(heads.cosines("z"), cosines(z), **close)
    torch.testing.assert_close(heads.cosines("pattern"), cosines(z, pattern=pattern), **close)
    torch.testing.assert_close(heads.cosines("residual", W_O), cosines(z, W_O), **close)
    assert heads.n_tokens == 42


def test_what_is_undefined_is_nan():
    z = draw(0, 2, 4, 3, 2)
    z[:, :, 1] = 0
    cos = cosines(z)
    assert cos[1].isnan().all()
    assert cos[:, 1].isnan().all()
    assert not cos[[0, 2]][:, [0, 2]].isnan().any()
    assert math.isnan(geometry.mean_abs_cos(cos))
    one = cosines(z[:, :, :1])
    assert math.isnan(geometry.mean_abs_cos(one))
    assert math.isnan(geometry.max_abs_cos(one))


def test_bfloat16_input_is_summed_in_float64():
    z = draw(0, 2, 64, 4, 8).bfloat16()
    torch.testing.assert_close(cosines(z), cosines(z.double()), rtol=0, atol=1e-15)


def test_attention_statistics_of_known_maps():
    n = 8
    uniform = (torch.ones(n, n).tril() / torch.arange(1, n + 1)[:, None]).expand(2, 1, n, n)
    first = torch.zeros(2, 1, n, n)
    first[..., 0] = 1
    pattern = torch.cat((uniform, first), dim=1)
    entropy = geometry.head_entropy(pattern)
    # float32 maps: ln k is right to 1e-7
    assert entropy[0] == pytest.approx(sum(math.log(k) for k in range(1, n + 1)) / n, abs=1e-6)
    assert entropy[1] == 0
    mass = geometry.bos_mass(pattern)
    assert mass[0] == pytest.approx(sum(1 / k for k in range(2, n + 1)) / (n - 1), abs=1e-6)
    assert mass[1] == 1


@pytest.mark.parametrize(
    ("basis", "message"),
    [("logits", "basis: got 'logits'"), ("pattern", "no batch that holds it"), ("residual", "got no W_O")],
)
def test_bad_requests_are_refused(basis, message):
    heads = geometry.HeadRedundancy()
    heads.add(draw(0, 1, 2, 2, 2))
    with pytest.raises(ValueError, match=message):
        heads.cosines(basis)
    with pytest.raises(ValueError, match="no batch"):
        geometry.HeadRedundancy().cosines("z")
