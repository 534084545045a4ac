"""VSM's loss against definitions, the cache and finite differences; λ over the steps against numbers worked out."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from interventions_for_tests import objective_under
from pydantic import ValidationError

from workbench.models import AttnRes, Extensions, HookedLM, ModelConfig
from workbench.training.head_grams import head_gram, orthogonality, pattern_gram, residual_gram, sigma
from workbench.training.interventions import vsm
from workbench.training.objective import Batch

CFG = ModelConfig(n_layers=3, d_model=16, n_ctx=12, d_vocab=40, n_heads=4, n_key_value_heads=2, d_head=4, d_mlp=24)
ROUTED = CFG.model_copy(update={"extensions": Extensions(attn_res=AttnRes(boundaries=(0, 2)))})
CONTROLLERS = [vsm.Fixed(weight=0.1), vsm.Proportional(), vsm.Trapezoid(), vsm.Sigmoid()]


def settings(**given) -> dict:
    return {"kind": "vsm"} | given


def tokens(seed: int = 0, rows: int = 3) -> torch.Tensor:
    return torch.randint(0, 40, (rows, 12), generator=torch.Generator().manual_seed(seed))


def rough_model(cfg: ModelConfig, seed: int = 0) -> HookedLM:
    """Weights ten times as large as at the start, so that attention is far from uniform."""
    return HookedLM(cfg.model_copy(update={"initializer_range": 0.2}), seed=seed).double()


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pressure_of(controller: vsm.Controller) -> vsm.Vsm:
    return vsm.Vsm(vsm.Vsm.Settings(controller=controller))


# --- the loss


def test_depth_weights():
    assert vsm.depth_weights(4, 3.0) == [1 / 64, 8 / 64, 27 / 64, 1.0]
    assert vsm.depth_weights(3, 0.0) == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_loss_weighs_layers_by_depth(seed):
    grams = [head_gram(draw(seed + i, 2, 5, 4, 3)) for i in range(3)]
    expected = sum(((layer + 1) / 3) ** 3 * float(orthogonality(gram)) for layer, gram in enumerate(grams))
    assert float(vsm.vsm_loss(grams, 3.0)) == pytest.approx(expected, abs=1e-12)


def test_descent_makes_heads_orthogonal():
    z = (draw(0, 2, 8, 4, 4) + draw(1, 2, 8, 1, 4)).requires_grad_()
    before = float(sigma(head_gram(z.detach())))
    for _ in range(200):
        (gradient,) = torch.autograd.grad(vsm.vsm_loss([head_gram(z)], 0.0), z)
        z = (z - gradient).detach().requires_grad_()
    assert float(sigma(head_gram(z.detach()))) < before / 10


@pytest.mark.parametrize("cfg", [CFG, ROUTED], ids=["plain", "routed"])
@pytest.mark.parametrize("on", ["z", "pattern", "residual"])
@pytest.mark.parametrize(("seed", "group_size"), [(0, None), (1, 2)])
def test_it_is_what_the_cache_gives(cfg, on, seed, group_size):
    model, x = rough_model(cfg, seed), tokens(seed)
    found = objective_under(model, Batch(x), settings(on=on, group_size=group_size), vsm={"lambda": 0.7})
    loss, cache = model.run_with_cache(x, return_type="loss")
    grams = []
    for layer in range(3):
        z, pattern = (cache[f"blocks.{layer}.attn.hook_{what}"] for what in ("z", "pattern"))
        if on == "residual":
            grams.append(residual_gram(z, model.blocks[layer].attn.W_O, group_size))
        else:
            grams.append(head_gram(z, group_size) if on == "z" else pattern_gram(pattern, group_size))
    expected = 0.7 * float(vsm.vsm_loss(grams, 3.0).detach())
    assert set(found.telemetry) == {"vsm.loss", "vsm.sigma"}
    assert float(found.loss) == pytest.approx(float(loss.detach()), abs=1e-12)
    assert float(found.telemetry["vsm.loss"]) == pytest.approx(expected, abs=1e-12)
    mean = np.mean([float(sigma(g).detach()) for g in grams])
    assert float(found.telemetry["vsm.sigma"]) == pytest.approx(mean, abs=1e-12)
    assert float(found.total.detach()) == pytest.approx(float(found.loss) + expected, abs=1e-12)


@pytest.mark.parametrize("on", ["z", "pattern", "residual"])
def test_gradient_agrees_with_finite_differences(on):
    model, batch, own = rough_model(CFG), Batch(tokens()), settings(on=on)
    objective_under(model, batch, own, vsm={"lambda": 0.5}).total.backward()
    generator, h = torch.Generator().manual_seed(1), 1e-5
    for name in ("blocks.0.attn.W_Q", "blocks.1.attn._W_V", "blocks.2.attn.W_O", "embed.W_E", "blocks.0.mlp.W_in"):
        weight = model.get_parameter(name)
        direction = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
        assert weight.grad is not None
        slope = float((weight.grad * direction).sum())
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                weight += sign * h * direction
                values.append(float(objective_under(model, batch, own, vsm={"lambda": 0.5}).total))
                weight -= sign * h * direction
        # central differences: error h² times the third derivative, far below the tolerance
        assert (values[0] - values[1]) / (2 * h) == pytest.approx(slope, rel=1e-5, abs=1e-7), name


def test_maps_are_formed_only_while_they_weigh_something():
    model, x = HookedLM(CFG), Batch(tokens())

    def under(weight: float, **given):
        return objective_under(model, x, settings(**given), vsm={"lambda": weight})

    idle = under(0.0, on="pattern")
    assert not idle.telemetry
    assert "vsm.sigma" in under(0.1, on="pattern").telemetry
    # the σ that a controller needs is there at λ = 0 too: else λ would never leave it
    for on in ("z", "residual"):
        assert "vsm.sigma" in under(0.0, on=on).telemetry
    followed = under(0.0, on="pattern", controller={"kind": "proportional"})
    assert "vsm.sigma" in followed.telemetry
    assert float(followed.total.detach()) == float(idle.total.detach())
    assert not any(point._forward_hooks for point in model.hook_dict.values())


# --- λ over the steps


@pytest.mark.parametrize(
    ("step", "weight", "last_sigma", "expected"),
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
def test_proportional_controller_numbers(step, weight, last_sigma, expected):
    assert vsm.proportional_weight(vsm.Proportional(), step, weight, last_sigma) == pytest.approx(expected, abs=1e-15)


def test_pressure_follows_the_proportional_rule_over_a_run():
    cfg = vsm.Proportional(n_warmup_steps=20, every=5, target=0.1, gain=0.2, maximum=0.3)
    pressure = pressure_of(cfg)
    weight, last_sigma = 0.0, 0.0
    for step in range(60):
        weight = vsm.proportional_weight(cfg, step, weight, last_sigma)
        assert pressure.schedule(step, 60) == {"lambda": pytest.approx(weight, abs=1e-15)}
        last_sigma = 0.3 * math.sin(step) ** 2
        pressure.observe({"sigma": torch.tensor(last_sigma, dtype=torch.float64)})


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
    pressure = pressure_of(vsm.Proportional(every=every, n_warmup_steps=n_ignition))
    found = []
    for step in range(n_steps):
        found.append(pressure.schedule(step, n_steps)["lambda"])
        pressure.observe({"sigma": measured[step]})
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
    n = 1700 if controller.kind == "proportional" else 100

    def weights(pressure: vsm.Vsm, steps: range) -> list[float]:
        seen = []
        for step in steps:
            seen.append(pressure.schedule(step, n)["lambda"])
            pressure.observe({"sigma": torch.tensor(0.002 * (step % 7))})
        return seen

    whole = weights(pressure_of(controller), range(n))
    first, second = pressure_of(controller), pressure_of(controller)
    begun = weights(first, range(n // 2 + 1))
    second.load_state_dict(first.state_dict())
    assert begun + weights(second, range(n // 2 + 1, n)) == whole
    with pytest.raises(ValueError, match="controller state"):
        second.load_state_dict({"weight": 0.1})


def test_a_step_without_sigma_leaves_the_last_one():
    pressure = pressure_of(vsm.Proportional(n_warmup_steps=0, every=1, target=0.0, gain=1.0))
    pressure.observe({"sigma": torch.tensor(0.125)})
    pressure.observe({})
    assert pressure.schedule(1, 9) == {"lambda": 0.125}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"on": "q"}, "'z', 'pattern' or 'residual'"),
        ({"steering": -1}, "greater than or equal to 0"),
        ({"group_size": 1}, "greater than or equal to 2"),
        ({"controller": {"kind": "trapezoid", "hold_from": 0.1}}, "rising order"),
        ({"controller": {"kind": "proportional", "every": 0}}, "greater than or equal to 1"),
        ({"controller": {"kind": "pid"}}, "expected tags"),
        ({"coherence": 0.1}, "Extra inputs"),
        ({"kind": "coherence"}, "kind"),
    ],
)
def test_bad_settings_are_refused(given, message):
    with pytest.raises(ValidationError, match=message):
        vsm.Vsm.Settings.model_validate(given)
