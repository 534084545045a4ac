"""Auxiliary losses by hand and by finite differences; the int8 form of a model and what comes back from it."""

from __future__ import annotations

import math
import zlib

import pytest
import torch
from models_for_tests import ARCHITECTURES, small_model, tokens_for

from workbench.models.cross_entropy import linear_cross_entropy
from workbench.training.auxiliary import Auxiliary, bernoulli_entropy, entropy_bonus
from workbench.training.monitor import MonitorConfig, measure, monitor_columns, weight_ranks
from workbench.training.objective import Batch, objective
from workbench.training.optimizers import Optimizer, OptimizerConfig
from workbench.training.quantization import (
    LARGEST,
    dequantize_rows,
    int8_distance,
    pack_model,
    quantize_rows,
    unpack_model,
)
from workbench.training.recipe import Phase, load_recipe, parse_recipe
from workbench.training.vsm import Vsm

EVERY = Auxiliary(td=0.001, gate_entropy=0.005, thermodynamic=0.05, temperature=0.5, compression=0.1)


def phase(**settings) -> Phase:
    return Phase(n_steps=1, batch_size=2, **settings)


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
    assert entropy_bonus(EVERY, 0) == pytest.approx(0.05 * 0.5)
    assert entropy_bonus(EVERY, 5000) == pytest.approx(0.05 * 0.5 / math.e)
    assert entropy_bonus(Auxiliary(), 0) == 0


# --- the sum


def test_the_total_is_what_the_cache_gives():
    model = small_model("recurrent").double()
    tokens = tokens_for(model)
    found = objective(model, Batch(tokens), phase(auxiliary=EVERY), 0.0, step=300)
    gates = [f"pass.{i}.hook_exit_gate" for i in (0, 1)]
    corrections = [f"pass.{i}.hook_td" for i in (1, 2)]
    bonus = 0.05 * 0.5 * math.exp(-300 / 5000)
    loss, cache = model.run_with_cache(
        tokens, return_type="loss", entropy_bonus=bonus, names_filter=[*gates, *corrections]
    )
    expected = loss
    expected = expected + 0.001 * sum(cache[name].square().mean() for name in corrections) / 2
    entropy = sum(-(g * g.log() + (1 - g) * (1 - g).log()).mean() for g in (cache[name] for name in gates)) / 2
    expected = expected + 0.005 * entropy + 0.1 * int8_distance(model)
    torch.testing.assert_close(found.total, expected)
    torch.testing.assert_close(found.loss, loss.detach())
    assert not any(point._forward_hooks for point in model.hook_points()), "the hooks are gone"


@pytest.mark.parametrize("kind", ["recurrent", "janus-v3"])
def test_scalars_that_lie_in_tensors_make_the_same_gradients(kind):
    """As a recorded graph has them: it cannot read λ and the step, which change behind it."""
    of = {"auxiliary": EVERY} if kind == "recurrent" else {"vsm": Vsm()}
    found = []
    for weight, step in ((0.07, 300), (torch.tensor(0.07), torch.tensor(300))):
        model = small_model(kind)
        part = objective(model, Batch(tokens_for(model)), phase(**of), weight, step=step)
        part.total.backward()
        found.append((part.total.detach(), [p.grad for p in model.parameters() if p.grad is not None]))
    (total, gradients), (again, others) = found
    assert torch.equal(total, again)
    assert len(gradients) == len(others) > 0
    assert all(map(torch.equal, gradients, others))


def test_no_weights_no_change():
    model = small_model("recurrent")
    batch = Batch(tokens_for(model))
    plain, with_zeros = (objective(model, batch, phase(auxiliary=a), 0.0).total for a in (None, Auxiliary()))
    assert torch.equal(plain, with_zeros)


@pytest.mark.parametrize(("weight", "name"), [("td", "td.W_B"), ("gate_entropy", "exit_gate.weight")])
def test_gradients_of_auxiliary_losses(weight, name):
    model = small_model("recurrent").double()
    with torch.no_grad():  # the two that cut gradients
        model.get_parameter("mechanisms.memory.strength").zero_()
        model.get_parameter("mechanisms.confidence.direction").zero_()
    settings = phase(auxiliary=Auxiliary(**{weight: 1.0}))
    batch = Batch(tokens_for(model, batch=1, pos=6))
    objective(model, batch, settings, 0.0).total.backward()
    parameter, totals = model.get_parameter(f"mechanisms.{name}"), []
    direction = torch.randn(parameter.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for sign in (1, -1):
            parameter.add_(direction, alpha=sign * 1e-6)
            totals.append(float(objective(model, batch, settings, 0.0).total))
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
    ("settings", "message"), [({"td": 0.1}, "without td_rank"), ({"gate_entropy": 0.1}, "without exit_gate")]
)
def test_a_loss_on_a_mechanism_that_is_not_there(settings, message):
    data = load_recipe("p3-muon-nano").model_dump(mode="json")
    data["phases"][0]["auxiliary"] = settings
    with pytest.raises(ValueError, match=message):
        parse_recipe(data)


# --- int8


def test_rows_come_back_within_half_a_step():
    W = torch.randn(20, 33, generator=torch.Generator().manual_seed(0)) * torch.logspace(-6, 3, 20)[:, None]
    W[3] = 0
    q, scale = quantize_rows(W)
    assert q.dtype == torch.int8
    assert scale.dtype == torch.float16
    assert int(q.abs().max()) == LARGEST
    normal = scale.float() > 6.2e-5  # below, float16 has fewer digits for the scale itself
    back = dequantize_rows(q, scale)
    # half a step, and what the largest entry loses where float16 rounded the scale down
    limit = scale.float()[:, None] * (0.5 + LARGEST * 2**-11)
    assert bool(((W - back).abs() <= limit)[normal].all())
    assert torch.equal(back[3], torch.zeros(33))
    again, same = quantize_rows(back)
    assert torch.equal(again[normal], q[normal])


def test_weights_that_int8_cannot_hold_are_named():
    model = small_model("recurrent")
    with torch.no_grad():
        model.get_parameter("unique_blocks.1.mlp.W_in")[0, 0] = 1e9
    with pytest.raises(ValueError, match=r"unique_blocks.1.mlp.W_in reaches 1e\+09; expected finite weights"):
        pack_model(model)
    model = small_model("recurrent")
    with torch.no_grad():
        model.ln_final.w[0] = 1e6
    with pytest.raises(ValueError, match=r"ln_final.w reaches 1e\+06; expected at most 65504"):
        pack_model(model)


def test_the_distance_pulls_towards_the_grid():
    model = small_model("recurrent")
    distance = int8_distance(model)
    distance.backward()
    W = model.get_parameter("unique_blocks.0.mlp.W_in")
    rows = W.detach().T
    error = rows - dequantize_rows(*quantize_rows(rows))
    n = sum(p.numel() for name, p in model.named_parameters() if name.rsplit(".", 1)[-1].lstrip("_").startswith("W_"))
    torch.testing.assert_close(W.grad, (error.sign() / n).T)


@pytest.mark.parametrize("kind", sorted(ARCHITECTURES))
def test_a_packed_model_comes_back(kind):
    model = small_model(kind)
    data = pack_model(model)
    again = unpack_model(data)
    assert again.cfg == model.cfg
    for name, parameter in model.named_parameters():
        difference = (again.get_parameter(name) - parameter).detach().abs().max()
        assert float(difference) <= 0.006 * float(parameter.detach().abs().max()), name
    assert torch.equal(unpack_model(pack_model(again))(tokens_for(model)), again(tokens_for(model)))
    n_large = sum(p.numel() for p in model.parameters())
    assert len(data) < 2 * n_large + 4000


@pytest.mark.parametrize("damage", ["cut", "other", "header", "short"])
def test_packed_models_that_are_no_such(damage):
    data = pack_model(small_model("janus-v3"))
    raw = zlib.decompress(data)
    bad = {
        "cut": data[:-40],
        "other": b"not zlib",
        "header": zlib.compress((4).to_bytes(8, "little") + b"null"),
        "short": zlib.compress(raw[:-100]),
    }[damage]
    with pytest.raises(ValueError, match="packed model"):
        unpack_model(bad)


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
    objective(model, Batch(tokens_for(model)), phase(auxiliary=EVERY), 0.0).total.backward()
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
