"""Edits at a feature against their formulas, and what they leave alone."""

from __future__ import annotations

import pytest
import torch
from stacks_for_tests import random_stack, seeded

from sae import set_feature, steer
from sae.edits import HOW


@pytest.fixture
def sae():
    return random_stack(n_saes=1, d_in=5, d_sae=11).requires_grad_(requires_grad=False)


@pytest.fixture
def x():
    return torch.randn(7, 5, generator=seeded(3), dtype=torch.float64)


def test_a_feature_is_set_with_the_error_kept(sae, x) -> None:
    """x̂(f′) + (x − x̂(f)), whatever the value; at f itself nothing changes, and twice is once."""
    acts, j = sae.encode(x), 4
    row = sae.W_dec[0, j]
    values = torch.rand(7, generator=seeded(1), dtype=torch.float64)
    for value in (0.0, float(acts[:, j].mean()), 3.0, values):
        changed = acts.clone()
        changed[:, j] = value
        expected = sae.decode(changed) + x - sae.decode(acts)
        torch.testing.assert_close(set_feature(x, row, acts[:, j], value), expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(set_feature(x, row, acts[:, j], acts[:, j]), x)
    once = set_feature(x, row, acts[:, j], 2.0)
    torch.testing.assert_close(set_feature(once, row, torch.full((7,), 2.0), 2.0), once)


def test_each_way_of_steering_is_its_formula(sae, x) -> None:
    acts = sae.encode(x)[:, 2]
    d = sae.W_dec[0, 2].detach()
    unit = d / d.norm()
    constants = {"acts": acts, "max_act": 1.5, "mean_norm": 2.5}
    for i in range(len(x)):
        for how, expected in (
            ("norm", x[i] + 0.7 * 2.5 * unit),
            ("max_act", x[i] + 0.7 * 1.5 * d),
            ("clamp", x[i] + (0.7 * 1.5 - acts[i]) * d),
            ("remove", x[i] - (x[i] @ unit) * unit),
        ):
            found = steer(x, d, how, 0.7, **constants)
            torch.testing.assert_close(found[i], expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(steer(x, d, "norm", 0.0, **constants), x)
    assert torch.equal(steer(x, d, "max_act", 0.0, **constants), x)
    removed = steer(x, d, "remove")
    torch.testing.assert_close(removed @ unit, torch.zeros(7, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(steer(removed, d, "remove"), removed)
    pushed = steer(x, d, "norm", -2.0, mean_norm=2.5)
    torch.testing.assert_close((pushed - x).norm(dim=1), torch.full((7,), 5.0, dtype=torch.float64))
    assert steer(x.float(), d, "clamp", 1.0, **constants).dtype == torch.float32


@pytest.mark.parametrize(
    ("how", "alpha", "constants", "message"),
    [
        ("push", 1.0, {}, "how: got 'push'; expected one of norm, max_act, clamp, remove"),
        *((how, float("nan"), {}, "alpha: got nan; expected a finite number") for how in HOW),
        ("norm", float("inf"), {"mean_norm": 1.0}, "alpha: got inf; expected a finite number"),
        ("norm", 1.0, {}, "mean_norm: got None with how = 'norm'; expected a finite number above 0"),
        ("max_act", 1.0, {"max_act": 0.0}, "max_act: got 0.0 with how = 'max_act'; expected a finite number above 0"),
        ("clamp", 1.0, {"max_act": float("nan")}, "max_act: got nan with how = 'clamp'; expected"),
        ("clamp", 1.0, {"max_act": 1.0}, "steer: got how = 'clamp' without acts; expected"),
    ],
)
def test_bad_steering_is_refused(x, how, alpha, constants, message) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        steer(x, torch.ones(5, dtype=x.dtype), how, alpha, **constants)
    assert str(caught.value).startswith(message)


def test_bad_directions_are_refused(x) -> None:
    with pytest.raises(ValueError, match="steer: got a decoder row of zeros; expected a direction"):
        steer(x, torch.zeros(5, dtype=x.dtype), "remove")
