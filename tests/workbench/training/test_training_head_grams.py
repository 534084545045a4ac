"""Cosines of heads against explicit loops, against the vectors written out, and by finite differences."""

from __future__ import annotations

import math

import pytest
import torch

from workbench.training.head_grams import head_gram, orthogonality, pattern_gram, residual_gram, sigma

SEEDS = [0, 1, 2]


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def naive_gram(rows: list[torch.Tensor]) -> list[list[float]]:
    units = [(r.flatten() / math.sqrt(sum(x * x for x in r.flatten().tolist()))).tolist() for r in rows]
    return [[sum(x * y for x, y in zip(a, b, strict=True)) for b in units] for a in units]


@pytest.mark.parametrize("seed", SEEDS)
def test_grams_equal_the_double_loop(seed):
    z = draw(seed, 2, 5, 4, 3)
    want = torch.tensor(naive_gram([z[:, :, h] for h in range(4)]), dtype=torch.float64)
    torch.testing.assert_close(head_gram(z), want[None], rtol=0, atol=1e-13)
    pattern = torch.softmax(z.permute(0, 2, 1, 3), dim=-1)
    want = torch.tensor(naive_gram([pattern[:, h] for h in range(4)]), dtype=torch.float64)
    torch.testing.assert_close(pattern_gram(pattern), want[None], rtol=0, atol=1e-13)
    W_O = draw(seed + 5, 4, 3, 7)
    written = [z[:, :, h] @ W_O[h] for h in range(4)]
    want = torch.tensor(naive_gram(written), dtype=torch.float64)
    torch.testing.assert_close(residual_gram(z, W_O), want[None], rtol=0, atol=1e-13)


@pytest.mark.parametrize("seed", SEEDS)
def test_orthogonality_and_sigma_equal_the_definitions(seed):
    z = draw(seed, 2, 5, 4, 3)
    gram = naive_gram([z[:, :, h] for h in range(4)])
    square = sum((gram[i][j] - (i == j)) ** 2 for i in range(4) for j in range(4))
    assert float(orthogonality(head_gram(z))) == pytest.approx(math.sqrt(square), abs=1e-12)
    mean = sum(sum(abs(gram[i][j]) for j in range(4) if j != i) / 3 for i in range(4)) / 4
    assert float(sigma(head_gram(z))) == pytest.approx(mean, abs=1e-13)


def test_groups_compare_only_their_own_heads():
    z, W_O = draw(0, 2, 5, 6, 3), draw(1, 6, 3, 7)
    for full, groups in (
        (head_gram(z)[0], head_gram(z, 2)),
        (residual_gram(z, W_O)[0], residual_gram(z, W_O, 2)),
    ):
        assert groups.shape == (3, 2, 2)
        for g in range(3):
            torch.testing.assert_close(groups[g], full[2 * g : 2 * g + 2, 2 * g : 2 * g + 2], rtol=0, atol=1e-14)
        off = torch.stack([full[0, 1], full[2, 3], full[4, 5]])
        assert float(orthogonality(groups)) == pytest.approx(float((2 * off.square()).sum().sqrt()), abs=1e-13)
        assert float(sigma(groups)) == pytest.approx(float(off.abs().mean()), abs=1e-13)
    for of in (lambda: head_gram(z, 4), lambda: residual_gram(z, W_O, 4)):
        with pytest.raises(ValueError, match="group_size: got 4; expected a divisor of 6"):
            of()


def test_a_rotation_of_a_heads_basis_changes_z_and_not_what_is_written():
    """Which is why pressure on what is written cannot be met by turning bases."""
    z, W_O = draw(0, 2, 5, 4, 3), draw(1, 4, 3, 7)
    turn = torch.linalg.qr(draw(2, 4, 3, 3)).Q
    turned, back = torch.einsum("bphd,hde->bphe", z, turn), turn.transpose(1, 2) @ W_O
    torch.testing.assert_close(residual_gram(turned, back), residual_gram(z, W_O), rtol=0, atol=1e-13)
    assert not torch.allclose(head_gram(turned), head_gram(z), atol=1e-2)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("group_size", [None, 2])
def test_gradients_agree_with_finite_differences(seed, group_size):
    z, W_O = draw(seed, 2, 3, 4, 2).requires_grad_(), draw(seed + 5, 4, 2, 5).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: orthogonality(head_gram(z, group_size)), (z,))
    assert torch.autograd.gradcheck(lambda z, W_O: orthogonality(residual_gram(z, W_O, group_size)), (z, W_O))
    scores = draw(seed, 2, 4, 3, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: orthogonality(pattern_gram(torch.softmax(s, -1), group_size)), (scores,))


def test_orthogonal_and_zero_heads_have_finite_gradients():
    eye = torch.eye(4, dtype=torch.float64).reshape(1, 1, 4, 4).requires_grad_()  # four orthogonal heads
    loss = orthogonality(head_gram(eye))
    assert float(loss.detach()) == 0
    assert torch.equal(torch.autograd.grad(loss, eye)[0], torch.zeros_like(eye))
    z, W_O = draw(0, 2, 3, 3, 2), draw(1, 3, 2, 5)
    z[:, :, 1] = 0
    for of in (head_gram, lambda z: residual_gram(z, W_O)):
        leaf = z.clone().requires_grad_()
        gradient = torch.autograd.grad(orthogonality(of(leaf)), leaf)[0]
        assert gradient.isfinite().all()
        assert float(gradient[:, :, 1].abs().max()) == 0


def test_bfloat16_heads_are_compared_in_float32_also_under_autocast():
    z, W_O = draw(0, 2, 64, 4, 8).bfloat16(), draw(1, 4, 8, 16).float()
    with torch.autocast("cpu", torch.bfloat16):
        grams = head_gram(z), residual_gram(z, W_O)
    for gram, exact in zip(grams, (head_gram(z.double()), residual_gram(z.double(), W_O.double())), strict=True):
        assert gram.dtype == torch.float32
        torch.testing.assert_close(gram.double(), exact, rtol=0, atol=1e-6)
    leaf, weights = z.clone().requires_grad_(), W_O.clone().requires_grad_()
    (orthogonality(head_gram(leaf)) + orthogonality(residual_gram(leaf, weights))).backward()
    assert leaf.grad is not None
    assert weights.grad is not None
    assert (leaf.grad.dtype, weights.grad.dtype) == (torch.bfloat16, torch.float32)
