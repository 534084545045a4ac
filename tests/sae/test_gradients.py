"""Loss and gradients by hand against the definition, finite differences and autograd."""

from __future__ import annotations

import pytest
import torch
from stacks_for_tests import KINDS, random_stack, seeded
from torch import Tensor

from sae import SAEConfig, StackedSAE, gradients, loss_and_gradients
from sae.architecture import Architecture, Batch
from sae.gradients import split_evenly


def naive_gated_loss(sae: StackedSAE, x: Tensor, l1: Tensor) -> Tensor:
    """Rajamanoharan et al. 2024a by autograd; gate_detach False: as SAELens has it."""
    config, losses = sae.config, []
    for s in range(config.n_saes):
        W_dec, b_dec = sae.W_dec[s], sae.b_dec[s]
        inputs = x[s] - b_dec if config.apply_b_dec_to_input else x[s]
        gates = torch.relu(inputs @ sae.W_enc[s] + sae.b_gate[s])
        acts = (gates > 0) * torch.relu(inputs @ (sae.W_enc[s] * sae.r_mag[s].exp()) + sae.b_mag[s])
        frozen = (W_dec, b_dec) if config.gate_detach is False else (W_dec.detach(), b_dec.detach())
        errors = acts @ W_dec + b_dec - x[s], gates @ frozen[0] + frozen[1] - x[s]
        penalty = (gates * frozen[0].norm(dim=-1)).sum(-1)
        losses.append((sum(error.square().sum(-1) for error in errors) + l1[s] * penalty).mean())
    return torch.stack(losses)


def naive_matryoshka_loss(sae: StackedSAE, x: Tensor, l1: Tensor, dead: Tensor | None = None) -> Tensor:
    """Bussmann et al. 2025 by autograd, width by width; the term of dead features as SAELens's, token by token."""
    config, losses = sae.config, []
    for s in range(config.n_saes):
        W_dec, norms = sae.W_dec[s], sae.W_dec[s].norm(dim=-1)
        z = norms * ((x[s] - sae.b_dec[s] * config.apply_b_dec_to_input) @ sae.W_enc[s] + sae.b_enc[s])
        least = z.flatten().sort(descending=True).values[int(config.k * len(z)) - 1]
        acts = torch.where((z >= least) & (z > 0), z, 0)
        rows = W_dec / norms.unsqueeze(-1)
        errors = [acts[:, :width] @ rows[:width] + sae.b_dec[s] - x[s] for width in config.widths]
        loss = sum(error.square().sum(-1).mean() for error in errors) + l1[s] * acts.sum(-1).mean()
        if dead is not None and (n_dead := int(dead[s].sum())) > 0:
            most = config.d_in // 2
            n = min(most, n_dead)
            chosen = [own.topk(n) for own in z[:, dead[s]]]
            by_dead = [own.values @ rows[dead[s]][own.indices] for own in chosen]
            left = (torch.stack(by_dead) + errors[-1].detach()).square().sum(-1).mean()
            loss = loss + 1 / 32 * min(1, n_dead / most) * left
        losses.append(loss)
    return torch.stack(losses)


def naive_loss(sae: StackedSAE, x: Tensor, l1: Tensor, slots: list[int] | None = None) -> Tensor:
    """metrics' definition, one token and one feature at a time; batchtopk keeps the batch's largest k·tokens."""
    config = sae.config
    losses = []
    if config.architecture in OF_THEIR_OWN:
        return OF_THEIR_OWN[config.architecture](sae, x, l1)
    for s in range(config.n_saes):
        own = x[s if slots is None else slots[s]]
        total = own.new_zeros(())
        pres = []
        for token in own:
            inputs = token - sae.b_dec[s] if config.apply_b_dec_to_input else token
            pres.append(torch.stack([inputs @ sae.W_enc[s, :, f] + sae.b_enc[s, f] for f in range(config.d_sae)]))
        ranked = sorted((float(z.detach()) for pre in pres for z in pre), reverse=True)
        for token, pre in zip(own, pres, strict=True):
            recon = sae.b_dec[s].clone()
            penalty = own.new_zeros(())
            for f, z in enumerate(pre):
                is_kept = bool(z > 0)
                if config.architecture == "topk":
                    is_kept = is_kept and sum(bool(other > z) for other in pre) < int(config.k)
                elif config.architecture == "batchtopk":
                    is_kept = is_kept and float(z.detach()) >= ranked[int(config.k * len(own)) - 1]
                elif config.architecture == "jumprelu":
                    is_kept = bool(z > sae.threshold[s, f])
                if is_kept:
                    recon = recon + z * sae.W_dec[s, f]
                    penalty = penalty + (1 if config.architecture == "jumprelu" else z * sae.W_dec[s, f].norm())
            total = total + (recon - token).square().sum() + l1[s] * penalty
        losses.append(total / len(own))
    return torch.stack(losses)


OF_THEIR_OWN = {"gated": naive_gated_loss, "matryoshka": naive_matryoshka_loss}
CASES = [(name, k, {"widths": (2, 7, 11)} if name == "matryoshka" else {}) for name, k in KINDS]
NO_STOP = ("gated", None, {"gate_detach": False})  # where no gradient is stopped, differences of the loss show it all


def total(result) -> Tensor:
    return result.squared_error + result.auxiliary


@pytest.mark.parametrize(("architecture", "k", "options"), [*CASES, NO_STOP])
@pytest.mark.parametrize("apply_b_dec_to_input", [True, False])
@pytest.mark.parametrize("seed", [0, 3])
def test_loss_is_the_definition_and_gradients_are_its_derivatives(architecture, k, options, apply_b_dec_to_input, seed):
    sae = random_stack(architecture, k, seed=seed, apply_b_dec_to_input=apply_b_dec_to_input, **options)
    x = torch.randn(3, 8, 5, generator=seeded(seed + 50), dtype=torch.float64)
    l1 = torch.tensor([0.0, 0.3, 2.0], dtype=torch.float64)
    result = loss_and_gradients(sae, x, l1)
    loss = naive_loss(sae, x, l1)
    torch.testing.assert_close(total(result) + l1 * result.sparsity, loss, rtol=1e-12, atol=1e-12)
    loss.sum().backward()
    for name, parameter in sae.named_parameters():
        if name != "threshold":
            torch.testing.assert_close(result.gradients[name], parameter.grad, rtol=1e-10, atol=1e-12)
    assert set(result.gradients) == {name for name, _ in sae.named_parameters()}


@pytest.mark.parametrize("seed", [0, 3])
@pytest.mark.parametrize("n_dead", [1, 5])
def test_dead_features_learn_what_the_living_leave(seed, n_dead):
    sae = random_stack("matryoshka", 2.5, seed=seed, widths=(2, 7, 11))
    x = torch.randn(3, 8, 5, generator=seeded(seed + 50), dtype=torch.float64)
    dead = torch.zeros(3, 11, dtype=torch.bool)
    dead[:2, 4 : 4 + n_dead] = True  # the third has none
    l1 = torch.zeros(3, dtype=torch.float64)
    result, loss = loss_and_gradients(sae, x, l1, dead=dead), naive_matryoshka_loss(sae, x, l1, dead)
    torch.testing.assert_close(total(result), loss, rtol=1e-12, atol=1e-12)
    loss.sum().backward()
    for name, parameter in sae.named_parameters():
        torch.testing.assert_close(result.gradients[name], parameter.grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("architecture", "k", "options"), [case for case in CASES if case[0] != "gated"] + [NO_STOP])
def test_gradients_equal_central_differences_of_the_loss(architecture, k, options):
    sae = random_stack(architecture, k, seed=2, **options)
    x = torch.randn(3, 16, 5, generator=seeded(9), dtype=torch.float64)
    l1 = torch.tensor([0.1, 0.5, 1.5], dtype=torch.float64)
    grads = loss_and_gradients(sae, x, l1).gradients

    def loss() -> Tensor:
        now = loss_and_gradients(sae, x, l1)
        return total(now) + l1 * now.sparsity

    step = 1e-6
    for name, parameter in sae.named_parameters():
        if name == "threshold":
            continue
        for seed in range(3):
            direction = torch.randn(parameter.shape, generator=seeded(seed), dtype=torch.float64)
            with torch.no_grad():
                parameter += step * direction
                above = loss()
                parameter -= 2 * step * direction
                below = loss()
                parameter += step * direction
            expected = (above - below) / (2 * step)
            got = (grads[name] * direction).flatten(1).sum(1)
            # truncation ~step² and rounding ~1e-16/step; 1e-6 leaves room for both
            torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-7)


class _JumpStep(torch.autograd.Function):
    """[z > θ] with the pseudo-derivative of Rajamanoharan et al. 2024, eq. 12."""

    @staticmethod
    def forward(ctx, z, theta, width):
        ctx.save_for_backward(z, theta)
        ctx.width = width
        return (z > theta).to(z)

    @staticmethod
    def backward(ctx, grad):
        z, theta = ctx.saved_tensors
        kernel = (((z - theta) / ctx.width).abs() < 0.5).to(z)
        return None, (-kernel / ctx.width * grad).sum(0), None


class _JumpReLU(torch.autograd.Function):
    """z·[z > θ] with the pseudo-derivative of eq. 11."""

    @staticmethod
    def forward(ctx, z, theta, width):
        ctx.save_for_backward(z, theta)
        ctx.width = width
        return z * (z > theta)

    @staticmethod
    def backward(ctx, grad):
        z, theta = ctx.saved_tensors
        kernel = (((z - theta) / ctx.width).abs() < 0.5).to(z)
        return grad * (z > theta), (-theta / ctx.width * kernel * grad).sum(0), None


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_jumprelu_threshold_gradient_is_the_straight_through_one(seed):
    sae = random_stack("jumprelu", seed=seed, bandwidth=0.8)
    x = torch.randn(3, 20, 5, generator=seeded(seed + 5), dtype=torch.float64)
    l1 = torch.tensor([0.0, 0.4, 3.0], dtype=torch.float64)
    total = x.new_zeros(())
    for s in range(3):
        pre = (x[s] - sae.b_dec[s]) @ sae.W_enc[s] + sae.b_enc[s]
        acts = _JumpReLU.apply(pre, sae.threshold[s], 0.8)
        count = _JumpStep.apply(pre, sae.threshold[s], 0.8).sum(-1)
        recon = acts @ sae.W_dec[s] + sae.b_dec[s]
        total = total + ((recon - x[s]).square().sum(-1) + l1[s] * count).mean()
    total.backward()
    grads = loss_and_gradients(sae, x, l1).gradients
    assert sae.threshold.grad.abs().max() > 0
    for name, parameter in sae.named_parameters():
        torch.testing.assert_close(grads[name], parameter.grad, rtol=1e-10, atol=1e-12)


def test_a_loss_by_hand():
    """d_in 1, two features, x = 3 and −1: acts (3, 0) and (0, 2), recon 3·2 and 2·(−1) → errors 3² and 1²;
    Σ acts·‖W_dec‖ = 6 and 2. loss = (9+1)/2 + .5·(6+2)/2 = 7. dL/dW_dec[0] = 2·3·3/2 + .5·3/2 = 9.75."""
    sae = StackedSAE(SAEConfig(n_saes=1, d_in=1, d_sae=2), seeded(), dtype=torch.float64)
    with torch.no_grad():
        sae.W_enc.copy_(torch.tensor([[[1.0, -2.0]]]))
        sae.W_dec.copy_(torch.tensor([[[2.0], [-1.0]]]))
    x = torch.tensor([[[3.0], [-1.0]]], dtype=torch.float64)
    result = loss_and_gradients(sae, x, torch.tensor([0.5], dtype=torch.float64))
    assert float(result.squared_error) == 5
    assert float(result.sparsity) == 4
    assert result.n_active.tolist() == [[1.0, 1.0]]
    assert float(result.gradients["W_dec"][0, 0, 0]) == pytest.approx(9.75, abs=1e-14)
    # dL/dW_dec[1]: 2·(−1)·2/2 − .5·2/2
    assert float(result.gradients["W_dec"][0, 1, 0]) == pytest.approx(-2.5, abs=1e-14)


@pytest.mark.parametrize(("architecture", "k"), [("relu", None), ("topk", 3), ("batchtopk", 2.5)])
def test_autograd_of_the_plain_definition_gives_the_same(architecture, k):
    """What a file gets that brings no gradients of its own."""
    sae = random_stack(architecture, k)
    x = torch.randn(3, 40, 5, generator=seeded(4), dtype=torch.float64)
    l1 = torch.tensor([0.0, 0.3, 2.0], dtype=torch.float64)
    batch = Batch(l1, l1[0], None)
    sums = Architecture.sum_block(sae.architecture, sae.config, sae.tensors, x, batch)
    plain = Architecture.finish(sae.architecture, sae.config, sae.tensors, l1, 40, sums)
    by_hand = loss_and_gradients(sae, x, l1)
    for name, value in by_hand.gradients.items():
        torch.testing.assert_close(plain.gradients[name], value, rtol=1e-12, atol=1e-12)
    for field in ("squared_error", "sparsity", "n_active", "least_active", "auxiliary"):
        torch.testing.assert_close(getattr(plain, field), getattr(by_hand, field), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("architecture", "k"), KINDS)
def test_blocks_do_not_change_the_sums(architecture, k, monkeypatch):
    sae = random_stack(architecture, k, n_saes=5)
    x = torch.randn(5, 37, 5, generator=seeded(4), dtype=torch.float64)
    l1 = torch.full((5,), 0.3, dtype=torch.float64)
    whole = loss_and_gradients(sae, x, l1)
    monkeypatch.setattr(gradients, "_BLOCK_ACTS", {"cpu": 2 * 8 * 11})
    monkeypatch.setattr(gradients, "_BLOCK_TOKENS", 8)
    parts = loss_and_gradients(sae, x, l1)
    for name, value in whole.gradients.items():
        torch.testing.assert_close(parts.gradients[name], value, rtol=1e-12, atol=1e-13)
    for field in ("squared_error", "sparsity", "n_active", "least_active", "auxiliary"):
        torch.testing.assert_close(getattr(parts, field), getattr(whole, field), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("slots", [[0, 1, 1], [1, 1, 1], [1, 0, 1], [0, 0, 0]])
def test_input_index_equals_copied_inputs(slots):
    sae = random_stack()
    x = torch.randn(2, 9, 5, generator=seeded(4), dtype=torch.float64)
    l1 = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    mapped = loss_and_gradients(sae, x, l1, torch.tensor(slots))
    copied = loss_and_gradients(sae, x[slots], l1)
    for name, value in copied.gradients.items():
        torch.testing.assert_close(mapped.gradients[name], value, rtol=1e-13, atol=0)
    torch.testing.assert_close(mapped.squared_error, copied.squared_error, rtol=1e-13, atol=0)


@pytest.mark.parametrize("architecture", ["relu", "gated"])
def test_bf16_products_are_close_to_float32(architecture):
    sae = random_stack(architecture, dtype=torch.float32, d_in=64, d_sae=256)
    x = torch.randn(3, 512, 64, generator=seeded(4)) + 20
    with torch.no_grad():
        sae.b_dec.copy_(x.mean(dim=1))
    l1 = torch.full((3,), 0.5)
    wide = loss_and_gradients(sae, x, l1)
    narrow = loss_and_gradients(sae, x, l1, use_bf16=True)
    # bfloat16 has 8 bits: 2^-8 relative in single products, less in sums; the mean of 20 must not cost more
    torch.testing.assert_close(narrow.squared_error, wide.squared_error, rtol=0.01, atol=0)
    torch.testing.assert_close(narrow.sparsity, wide.sparsity, rtol=0.01, atol=0)
    for name, value in wide.gradients.items():
        assert narrow.gradients[name].dtype == torch.float32
        error = (narrow.gradients[name] - value).norm() / value.norm()
        assert error < 0.02, name


def test_zero_decoder_row_has_a_finite_gradient():
    sae = random_stack()
    with torch.no_grad():
        sae.W_dec[0, 0] = 0
    x = torch.randn(3, 9, 5, generator=seeded(4), dtype=torch.float64)
    grads = loss_and_gradients(sae, x, torch.ones(3, dtype=torch.float64)).gradients
    assert all(bool(g.isfinite().all()) for g in grads.values())


@pytest.mark.parametrize(("n", "most"), [(1, 1), (7, 3), (4096, 256), (5, 100), (10, 0)])
def test_split_evenly_covers_in_at_most_two_lengths(n, most):
    parts = split_evenly(n, most)
    assert [i for part in parts for i in range(n)[part]] == list(range(n))
    lengths = {part.stop - part.start for part in parts}
    assert max(lengths) <= max(1, most)
    assert len(lengths) <= 2


@pytest.mark.parametrize(
    ("x", "l1", "input_index", "message"),
    [
        (torch.zeros(3, 5), torch.zeros(3), None, "x has shape"),
        (torch.zeros(3, 4, 6), torch.zeros(3), None, r"expected floating-point \(n_inputs, tokens ≥ 1, 5\)"),
        (torch.zeros(3, 0, 5), torch.zeros(3), None, "tokens ≥ 1"),
        (torch.zeros(3, 4, 5, dtype=torch.int32), torch.zeros(3), None, "torch.int32"),
        (torch.zeros(3, 4, 5), torch.zeros(2), None, r"l1 has shape \(2,\); expected \(3,\)"),
        (torch.zeros(2, 4, 5), torch.zeros(3), None, "input_index: got None with 2 inputs"),
        (torch.zeros(2, 4, 5), torch.zeros(3), [0, 1], "expected 3 slots"),
        (torch.zeros(2, 4, 5), torch.zeros(3), [0, 1, 2], "expected 3 slots"),
    ],
)
def test_bad_inputs_are_named(x, l1, input_index, message):
    with pytest.raises(ValueError, match=message):
        loss_and_gradients(random_stack(dtype=torch.float32), x, l1, input_index)
