"""The losses of the recurrent model by hand and by finite differences, and its optimizer and monitor."""

from __future__ import annotations

import math

import pytest
import torch
from interventions_for_tests import objective_under
from models_for_tests import small_model, tokens_for

from workbench.models.cross_entropy import linear_cross_entropy
from workbench.training.interventions.gate_entropy import bernoulli_entropy
from workbench.training.interventions.thermodynamic import Thermodynamic, entropy_bonus
from workbench.training.monitor import MonitorConfig, measure, monitor_columns, weight_ranks
from workbench.training.objective import Batch
from workbench.training.optimizers import Optimizer, OptimizerConfig
from workbench.training.quantization import int8_distance
from workbench.training.recipe import load_recipe, parse_recipe

EVERY = (
    {"kind": "temporal-difference", "weight": 0.001},
    {"kind": "gate-entropy", "weight": 0.005},
    {"kind": "thermodynamic", "weight": 0.05, "temperature": 0.5},
    {"kind": "compression", "weight": 0.1},
)


# --- entropy in the cross-entropy


@pytest.mark.parametrize("cap", [-1.0, 5.0])
@pytest.mark.parametrize("per_row", [False, True])
def test_the_entropy_bonus_and_its_gradient(cap, per_row):
    generator = torch.Generator().manual_seed(0)
    x, W = (torch.randn(shape, generator=generator) for shape in ((7, 5), (5, 11)))
    targets = torch.randint(0, 11, (7,), generator=generator)
    results = []
    for dtype in (torch.float32, torch.float64):  # the fused path, and plain autograd
        own_x, own_W = (t.to(dtype, copy=True).requires_grad_() for t in (x, W))
        loss = linear_cross_entropy(
            own_x, own_W, targets, soft_cap=cap, z_loss=0.01, entropy_bonus=0.3, per_row=per_row
        ).mean()
        loss.backward()
        results.append([t.double() for t in (loss.detach(), own_x.grad, own_W.grad)])
    for fused, plain in zip(*results, strict=True):
        torch.testing.assert_close(fused, plain, atol=1e-5, rtol=1e-5)
    logits = x.double() @ W.double()
    log_p = torch.log_softmax(logits if cap < 0 else cap * torch.tanh(logits / cap), -1)
    by_hand = linear_cross_entropy(x.double(), W.double(), targets, soft_cap=cap, z_loss=0.01)
    by_hand = by_hand + 0.3 * (log_p.exp() * log_p).sum(-1).mean()
    torch.testing.assert_close(results[1][0], by_hand)


def test_temperature_falls():
    own = Thermodynamic.Settings.model_validate(EVERY[2])
    assert entropy_bonus(own, 0) == pytest.approx(0.05 * 0.5)
    assert entropy_bonus(own, 5000) == pytest.approx(0.05 * 0.5 / math.e)
    assert entropy_bonus(Thermodynamic.Settings(weight=0), 0) == 0


# --- the sum


def test_the_total_is_what_the_cache_gives():
    model = small_model("recurrent").double()
    tokens = tokens_for(model)
    found = objective_under(model, Batch(tokens), *EVERY, step=300)
    gates = [f"pass.{i}.hook_exit_gate" for i in (0, 1)]
    corrections = [f"pass.{i}.hook_td" for i in (1, 2)]
    bonus = 0.05 * 0.5 * math.exp(-300 / 5000)
    loss, cache = model.run_with_cache(
        tokens, return_type="loss", entropy_bonus=bonus, names_filter=[*gates, *corrections]
    )
    td = 0.001 * sum(cache[name].square().mean() for name in corrections) / 2
    entropy = sum(-(g * g.log() + (1 - g) * (1 - g).log()).mean() for g in (cache[name] for name in gates)) / 2
    distance = int8_distance(model)
    torch.testing.assert_close(found.total, loss + td + 0.005 * entropy + 0.1 * distance)
    reported = {
        "temporal-difference.loss": td, "gate-entropy.loss": 0.005 * entropy, "gate-entropy.entropy": entropy,
        "compression.loss": 0.1 * distance, "compression.distance": distance,
    }  # fmt: skip
    assert list(found.telemetry) == list(reported)
    for name, value in reported.items():
        torch.testing.assert_close(found.telemetry[name], value.detach())
    torch.testing.assert_close(found.loss, loss.detach())
    assert not any(point._forward_hooks for point in model.hook_points()), "the hooks are gone"


@pytest.mark.parametrize("kind", ["recurrent", "janus-v3"])
def test_scalars_that_lie_in_tensors_make_the_same_gradients(kind):
    """As a recorded graph has them: it cannot read λ and the step, which change behind it."""
    tables = EVERY if kind == "recurrent" else ({"kind": "vsm"},)
    found = []
    for weight, step in ((0.07, 300), (torch.tensor(0.07), torch.tensor(300))):
        model = small_model(kind)
        scalars = {} if kind == "recurrent" else {"vsm": {"lambda": weight}}
        part = objective_under(model, Batch(tokens_for(model)), *tables, step=step, **scalars)
        part.total.backward()
        found.append((part.total.detach(), [p.grad for p in model.parameters() if p.grad is not None]))
    (total, gradients), (again, others) = found
    assert torch.equal(total, again)
    assert len(gradients) == len(others) > 0
    assert all(map(torch.equal, gradients, others))


def test_no_weights_no_change():
    model = small_model("recurrent")
    batch = Batch(tokens_for(model))
    zeros = [{"kind": own["kind"], "weight": 0.0} for own in EVERY]
    plain, with_zeros = objective_under(model, batch), objective_under(model, batch, *zeros)
    assert torch.equal(plain.total, with_zeros.total)
    assert not with_zeros.telemetry


@pytest.mark.parametrize(("kind", "name"), [("temporal-difference", "td.W_B"), ("gate-entropy", "exit_gate.weight")])
def test_gradients_agree_with_finite_differences(kind, name):
    model = small_model("recurrent").double()
    with torch.no_grad():  # the two that cut gradients
        model.get_parameter("mechanisms.memory.strength").zero_()
        model.get_parameter("mechanisms.confidence.direction").zero_()
    own = {"kind": kind, "weight": 1.0}
    batch = Batch(tokens_for(model, batch=1, pos=6))
    objective_under(model, batch, own).total.backward()
    parameter, totals = model.get_parameter(f"mechanisms.{name}"), []
    direction = torch.randn(parameter.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for sign in (1, -1):
            parameter.add_(direction, alpha=sign * 1e-6)
            totals.append(float(objective_under(model, batch, own).total))
            parameter.add_(direction, alpha=-sign * 1e-6)
    assert parameter.grad is not None
    got = float((parameter.grad * direction).sum())
    assert got == pytest.approx((totals[0] - totals[1]) / 2e-6, rel=1e-4)


def test_entropy_of_certain_gates_is_zero():
    logits = torch.tensor([-200.0, 0.0, 200.0], requires_grad=True)
    entropy = bernoulli_entropy(torch.sigmoid(logits))
    assert entropy.tolist() == pytest.approx([0.0, math.log(2), 0.0], abs=2e-5)
    entropy.sum().backward()
    assert logits.grad is not None
    assert bool(logits.grad.isfinite().all()), "saturated gates do not break training"


@pytest.mark.parametrize(
    ("kind", "message"), [("temporal-difference", "without td_rank"), ("gate-entropy", "without exit_gate")]
)
def test_a_loss_on_a_mechanism_that_is_not_there(kind, message):
    data = load_recipe("p3-muon-nano").model_dump(mode="json")
    data["phases"][0]["interventions"] = [{"kind": kind, "weight": 0.1}]
    with pytest.raises(ValueError, match=rf"phases.0.interventions.{kind}: weight: got 0.1 for a model {message}"):
        parse_recipe(data)
    data["phases"][0]["interventions"][0]["weight"] = 0.0
    parse_recipe(data)


# --- optimizer and monitor


def test_factors_go_to_muon_and_tables_to_adam():
    model = small_model("recurrent")
    optimizer = Optimizer(model, OptimizerConfig.model_validate({"muon": {}, "adamw": {"lr": 0.04, "embed_lr": 0.05}}))
    assert {n.rsplit(".", 1)[-1] for n in optimizer._hidden} == {
        "W_Q", "W_K_in", "W_K_out", "_W_V", "W_O", "W_in", "W_out", "W_A", "W_B", "W_Az", "W_Bz", "W_Ah", "W_Bh",
    }  # fmt: skip
    rates = {optimizer._names[id(p)]: g["base_lr"] for g in optimizer._adamw.param_groups for p in g["params"]}
    assert rates["embed.W_E"] == rates["mechanisms.value_embed.W_E"] == 0.05
    assert rates["mechanisms.memory.strength"] == rates["unique_blocks.0.ln1.w"] == 0.04
    objective_under(model, Batch(tokens_for(model)), *EVERY).total.backward()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer.start(0, 1.0)
    optimizer.step()
    assert not [name for name, p in model.named_parameters() if torch.equal(p, before[name])], "every weight moves"


def test_the_monitor_measures_what_it_says():
    model, monitor = small_model("recurrent"), MonitorConfig()
    tokens = tokens_for(model)
    found = measure(model, tokens, monitor)
    assert set(found) - {"sigma_z", "sigma_pattern", "sigma_residual"} == set(monitor_columns(model.cfg, monitor))
    _, cache = model.run_with_cache(tokens, names_filter=lambda name: name.endswith("hook_exit_gate"))
    g0, g1 = cache["pass.0.hook_exit_gate"], cache["pass.1.hook_exit_gate"]
    assert found["exit_depth"] == pytest.approx(float((1 + g0 + g0 * g1).mean().detach()), rel=1e-6)
    assert {name.rsplit(".", 1)[-1] for name in weight_ranks(model)} == {"0", "1"}
