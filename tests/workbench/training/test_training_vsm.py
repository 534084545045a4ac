"""VSM against explicit loops and finite differences; λ over the steps against numbers worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from workbench.training import vsm

SEEDS = [0, 1, 2]
CONTROLLERS = [vsm.Fixed(weight=0.1), vsm.Proportional(), vsm.Trapezoid(), vsm.Sigmoid()]


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def naive_gram(rows: list[torch.Tensor]) -> list[list[float]]:
    units = [(r.flatten() / math.sqrt(sum(x * x for x in r.flatten().tolist()))).tolist() for r in rows]
    return [[sum(x * y for x, y in zip(a, b, strict=True)) for b in units] for a in units]


@pytest.mark.parametrize("seed", SEEDS)
def test_gram_equals_the_double_loop(seed):
    z = draw(seed, 2, 5, 4, 3)
    want = torch.tensor(naive_gram([z[:, :, h] for h in range(4)]), dtype=torch.float64)
    torch.testing.assert_close(vsm.head_gram(z), want[None], rtol=0, atol=1e-13)
    pattern = torch.softmax(z.permute(0, 2, 1, 3), dim=-1)
    want = torch.tensor(naive_gram([pattern[:, h] for h in range(4)]), dtype=torch.float64)
    torch.testing.assert_close(vsm.pattern_gram(pattern), want[None], rtol=0, atol=1e-13)


@pytest.mark.parametrize("seed", SEEDS)
def test_loss_and_sigma_equal_the_definitions(seed):
    layers = [draw(seed + i, 2, 5, 4, 3) for i in range(3)]
    expected, sigmas = 0.0, []
    for layer, z in enumerate(layers):
        gram = naive_gram([z[:, :, h] for h in range(4)])
        square = sum((gram[i][j] - (i == j)) ** 2 for i in range(4) for j in range(4))
        expected += ((layer + 1) / 3) ** 3 * math.sqrt(square)
        sigmas.append(sum(sum(abs(gram[i][j]) for j in range(4) if j != i) / 3 for i in range(4)) / 4)
    grams = [vsm.head_gram(z) for z in layers]
    assert float(vsm.vsm_loss(grams, 3.0)) == pytest.approx(expected, abs=1e-12)
    assert [float(vsm.sigma(g)) for g in grams] == pytest.approx(sigmas, abs=1e-13)


def test_groups_compare_only_their_own_heads():
    z = draw(0, 2, 5, 6, 3)
    full, groups = vsm.head_gram(z)[0], vsm.head_gram(z, 2)
    assert groups.shape == (3, 2, 2)
    for g in range(3):
        torch.testing.assert_close(groups[g], full[2 * g : 2 * g + 2, 2 * g : 2 * g + 2], rtol=0, atol=1e-14)
    off = torch.stack([full[0, 1], full[2, 3], full[4, 5]])
    assert float(vsm.orthogonality(groups)) == pytest.approx(float((2 * off.square()).sum().sqrt()), abs=1e-13)
    assert float(vsm.sigma(groups)) == pytest.approx(float(off.abs().mean()), abs=1e-13)
    with pytest.raises(ValueError, match="group_size: got 4; expected a divisor of 6"):
        vsm.head_gram(z, 4)


def test_depth_weights():
    assert vsm.depth_weights(4, 3.0) == [1 / 64, 8 / 64, 27 / 64, 1.0]
    assert vsm.depth_weights(3, 0.0) == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("group_size", [None, 2])
def test_gradients_agree_with_finite_differences(seed, group_size):
    z = draw(seed, 2, 3, 4, 2).requires_grad_()
    other = draw(seed + 5, 2, 3, 4, 2).requires_grad_()

    def loss(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return vsm.vsm_loss([vsm.head_gram(a, group_size), vsm.head_gram(b, group_size)], 3.0)

    assert torch.autograd.gradcheck(loss, (z, other))

    def map_loss(scores: torch.Tensor) -> torch.Tensor:
        pattern = torch.softmax(scores, dim=-1)
        return vsm.vsm_loss([vsm.pattern_gram(pattern, group_size)], 0.0) + vsm.attention_entropy(pattern)

    assert torch.autograd.gradcheck(map_loss, (draw(seed, 2, 4, 3, 3).requires_grad_(),))


def test_orthogonal_zero_and_masked_input_give_finite_gradients():
    eye = torch.eye(4, dtype=torch.float64).reshape(1, 1, 4, 4).requires_grad_()  # four orthogonal heads
    loss = vsm.vsm_loss([vsm.head_gram(eye)], 3.0)
    assert float(loss.detach()) == 0
    assert torch.equal(torch.autograd.grad(loss, eye)[0], torch.zeros_like(eye))
    z = draw(0, 2, 3, 3, 2)
    z[:, :, 1] = 0
    z.requires_grad_()
    gradient = torch.autograd.grad(vsm.vsm_loss([vsm.head_gram(z)], 0.0), z)[0]
    assert gradient.isfinite().all()
    assert float(gradient[:, :, 1].abs().max()) == 0
    scores = draw(0, 1, 1, 3, 3).requires_grad_()
    mask = torch.full((3, 3), -torch.inf, dtype=torch.float64).triu(1)
    entropy = vsm.attention_entropy(torch.softmax(scores + mask, dim=-1))
    assert torch.autograd.grad(entropy, scores)[0].isfinite().all()


def test_descent_makes_heads_orthogonal():
    z = (draw(0, 2, 8, 4, 4) + draw(1, 2, 8, 1, 4)).requires_grad_()
    before = float(vsm.sigma(vsm.head_gram(z.detach())))
    for _ in range(200):
        (gradient,) = torch.autograd.grad(vsm.vsm_loss([vsm.head_gram(z)], 0.0), z)
        z = (z - gradient).detach().requires_grad_()
    assert float(vsm.sigma(vsm.head_gram(z.detach()))) < before / 10


def test_bfloat16_heads_are_compared_in_float32_also_under_autocast():
    z = draw(0, 2, 64, 4, 8).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        gram = vsm.head_gram(z)
    assert gram.dtype == torch.float32
    torch.testing.assert_close(gram.double(), vsm.head_gram(z.double()), rtol=0, atol=1e-6)
    scaled = z.clone().requires_grad_()
    vsm.vsm_loss([vsm.head_gram(scaled)], 0.0).backward()
    assert scaled.grad is not None
    assert scaled.grad.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("step", "weight", "sigma", "expected"),
    [
        (0, 0.0, 0.5, 0.0),
        (750, 0.0, 0.5, 0.025),
        (1499, 0.0, 0.5, 0.05 * 1499 / 1500),
        (1500, 0.05, 0.0135, 0.055),  # .05 + .5 (.0135 − .0035)
        (1501, 0.055, 0.9, 0.055),  # not a multiple of 50
        (1550, 0.055, 0.0035, 0.055),  # on target
        (1600, 0.055, 0.0015, 0.054),
        (1650, 0.2, 0.5, 0.25),  # at the ceiling
        (1700, 0.0005, 0.0, 0.0),  # at the floor
    ],
)
def test_proportional_controller_numbers(step, weight, sigma, expected):
    assert vsm.proportional_weight(vsm.Proportional(), step, weight, sigma) == pytest.approx(expected, abs=1e-15)


def test_pressure_follows_the_proportional_rule_over_a_run():
    cfg = vsm.Proportional(n_warmup_steps=20, every=5, target=0.1, gain=0.2, maximum=0.3)
    pressure = vsm.Pressure(cfg, n_steps=60)
    weight, sigma = 0.0, 0.0
    for step in range(60):
        weight = vsm.proportional_weight(cfg, step, weight, sigma)
        assert pressure.start(step) == pytest.approx(weight, abs=1e-15)
        sigma = 0.3 * math.sin(step) ** 2
        pressure.observe(torch.tensor(sigma, dtype=torch.float64))


def published_pressures(sigmas: Sequence[float | None], target: float, k: float, n_ignition: int) -> list[float]:
    """What the controller printed in Janus II, appendix B, makes of a σ at every step (None: none was measured)."""
    pressures, pressure = [], 0.0
    for step, measured in enumerate(sigmas):
        if step < n_ignition:  # open loop
            pressure = 0.05 * (step / n_ignition)
        elif measured is not None:  # closed loop: add a share of the error, stay within [0, .25]
            pressure += k * (measured - target)
            pressure = max(0.0, min(0.25, pressure))
        pressures.append(pressure)
    return pressures


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("every", "n_ignition"), [(50, 1500), (10, 300), (7, 300), (1, 0)])
def test_the_controller_is_the_published_one_to_the_last_bit(seed, every, n_ignition):
    """Over random σ, float32 as a training's, that drive λ to both of its limits and about between them."""
    rng = np.random.default_rng(seed)
    # of every update, the largest σ: below the target, until λ is 0; far above, until it is .25; then about the target
    largest = np.repeat([1e-3] * 40 + [0.5] * 20 + [7e-3] * 60, every)
    n_steps = n_ignition + len(largest)
    measured = np.concatenate([np.full(n_ignition, 1e-3), largest]) * rng.uniform(0, 1, n_steps)
    measured = torch.from_numpy(measured).float()
    pressure = vsm.Pressure(vsm.Proportional(every=every, n_warmup_steps=n_ignition), n_steps)
    found = []
    for step in range(n_steps):
        found.append(pressure.start(step))
        pressure.observe(measured[step])
    # every 50 steps the controller is told the σ of the step before
    told = [float(measured[step - 1]) if step and step % every == 0 else None for step in range(n_steps)]
    assert found == published_pressures(told, target=0.0035, k=0.5, n_ignition=n_ignition)
    assert {0.0, 0.25} <= set(found[n_ignition:])
    assert len(set(found[n_ignition:])) > 40
    changes = [step for step in range(n_ignition + 1, n_steps) if found[step] != found[step - 1]]
    assert all(step % every == 0 for step in changes)


@pytest.mark.parametrize(
    ("share", "expected"),
    [(0.0, 0), (0.299, 0), (0.3, 0), (0.35, 0.075), (0.4, 0.15), (0.79, 0.15), (0.9, 0.075), (1.0, 0)],
)
def test_trapezoid_numbers(share, expected):
    assert vsm.trapezoid_weight(vsm.Trapezoid(), share) == pytest.approx(expected, abs=1e-12)


def test_a_trapezoid_may_have_upright_sides():
    cfg = vsm.Trapezoid(ramp_from=0.5, hold_from=0.5, release_from=1.0, release_to=1.0, peak=0.2)
    assert [vsm.trapezoid_weight(cfg, t) for t in (0.49, 0.5, 0.99, 1.0)] == [0.0, 0.2, 0.2, 0.0]


def test_sigmoid_gives_the_published_pressure():
    assert vsm.sigmoid_weight(vsm.Sigmoid(), 4500 / 20000) == pytest.approx(0.009, abs=5e-5)
    assert vsm.sigmoid_weight(vsm.Sigmoid(), 0.5) == pytest.approx(0.075)


@pytest.mark.parametrize("slope", [2e3, 1e308, -2e3])
def test_a_sigmoid_may_be_as_steep_as_a_step(slope):
    steep = vsm.Sigmoid(slope=slope)
    low, high = (vsm.sigmoid_weight(steep, share) for share in ((0.0, 1.0) if slope > 0 else (1.0, 0.0)))
    assert low == pytest.approx(0.0, abs=1e-300)
    assert high == 0.15


@pytest.mark.parametrize("controller", CONTROLLERS, ids=lambda c: c.kind)
def test_pressure_goes_on_from_its_state(controller):
    def weights(pressure: vsm.Pressure, steps: range) -> list[float]:
        seen = []
        for step in steps:
            seen.append(pressure.start(step))
            pressure.observe(0.002 * (step % 7))
        return seen

    n = 1700 if controller.kind == "proportional" else 100
    whole = weights(vsm.Pressure(controller, n), range(n))
    first, second = vsm.Pressure(controller, n), vsm.Pressure(controller, n)
    begun = weights(first, range(n // 2 + 1))
    second.load_state_dict(first.state_dict())
    assert begun + weights(second, range(n // 2 + 1, n)) == whole
    with pytest.raises(ValueError, match="controller state"):
        second.load_state_dict({"weight": 0.1})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"on": "q"}, "'z' or 'pattern'"),
        ({"coherence": 0.1}, 'expected on = "pattern"'),
        ({"steering": -1}, "greater than or equal to 0"),
        ({"group_size": 1}, "greater than or equal to 2"),
        ({"controller": {"kind": "trapezoid", "hold_from": 0.1}}, "rising order"),
        ({"controller": {"kind": "proportional", "every": 0}}, "greater than or equal to 1"),
        ({"controller": {"kind": "pid"}}, "expected tags"),
        ({"pressure": 1}, "Extra inputs"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        TypeAdapter(vsm.Vsm).validate_python(settings)
