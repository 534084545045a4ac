"""VSM's rivals against explicit loops and numpy, by finite differences, and at work in training."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from models_for_tests import small_config, small_model, tokens_for

from reports.tables import read_table
from workbench import load
from workbench.models import HookedLM
from workbench.models.weights import weights_sha256
from workbench.training import apply_overrides, load_recipe, train
from workbench.training.interrupts import Interrupted
from workbench.training.interventions import find_intervention, parse_interventions
from workbench.training.interventions.attention_dropout import drop
from workbench.training.interventions.decov import covariance, decov
from workbench.training.interventions.output_disagreement import pair_cosines
from workbench.training.interventions.value_orthogonality import value_gram
from workbench.training.objective import Batch, Objective, objective
from workbench.training.prescription import Moment, Prescription
from workbench.training.recipe import Recipe
from workbench.training.telemetry import columns_of

SEEDS = [0, 1, 2]
COLUMNS = {
    "output-disagreement": ["loss", "cos"],
    "decov": ["loss", "correlation"],
    "attention-dropout": [],
    "head-dropout": [],
    "value-orthogonality": ["loss", "cos"],
}
DROPOUTS = {"attention-dropout": "pattern", "head-dropout": "z"}
RECIPES = ("disagreement", "decov", "attention-dropout", "head-dropout", "value-orthogonality", "residual")


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cosine(a: list[float], b: list[float]) -> float:
    return math.fsum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))


def act(model: HookedLM, settings: dict[str, Any], seed: int | None = None, autocast: Any = None) -> Objective:
    """One micro-batch of `model` under one intervention; with random numbers of `seed`."""
    prescription = Prescription(parse_interventions([settings]), model.cfg, n_steps=10)
    prescription.check_hooks(model)
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    moment = Moment(0, prescription.start(0), generator)
    return objective(model, Batch(tokens_for(model)), prescription, moment, autocast)


def cached(model: HookedLM, settings: dict[str, Any], hook: str, seed: int) -> torch.Tensor:
    """What a hook point passes on in that micro-batch."""
    prescription, found = Prescription(parse_interventions([settings]), model.cfg, n_steps=10), []
    moment = Moment(0, {}, torch.Generator().manual_seed(seed))
    with torch.no_grad(), prescription.acting(model, moment):
        handle = model.hook_dict[hook].register_forward_hook(lambda point, given, out: found.append(out.clone()))
        model(tokens_for(model), return_type="loss")
        handle.remove()
    return found[0]


# --- terms


@pytest.mark.parametrize("seed", SEEDS)
def test_disagreement_equals_the_loop_over_pairs_and_positions(seed):
    z = draw(seed, 2, 5, 4, 3)
    places = [[head.tolist() for head in place] for place in z.flatten(0, 1)]
    every = [[[cosine(a, b) for b in heads] for a in heads] for heads in places]
    of_all = np.mean(every)
    of_others = np.mean([own[i][j] for own in every for i, j in itertools.permutations(range(4), 2)])
    assert pair_cosines(z).tolist() == pytest.approx([of_all, of_others], abs=1e-14)


def test_a_dropped_head_has_no_cosine_and_no_gradient():
    z = draw(0, 2, 3, 4, 5)
    z[1, :, 2] = 0
    z.requires_grad_()
    rest = z.detach()[1][:, [0, 1, 3]]
    norms = rest / rest.norm(dim=-1, keepdim=True)
    mean = (pair_cosines(z.detach()[:1])[0] * 16 + norms.sum(1).square().sum(-1).mean()) / 32
    found = pair_cosines(z)
    assert float(found[0].detach()) == pytest.approx(float(mean), abs=1e-14)
    (gradient,) = torch.autograd.grad(found.sum(), z)
    assert gradient.isfinite().all()
    assert float(gradient[1, :, 2].abs().max()) == 0


@pytest.mark.parametrize("seed", SEEDS)
def test_covariance_equals_numpys(seed):
    z = draw(seed, 3, 5, 2, 4) + 10 * draw(seed + 9, 2, 4)  # means far from 0
    rows = z.reshape(15, 8).numpy()
    want = np.cov(rows, rowvar=False, bias=True)
    C = covariance(z)
    np.testing.assert_allclose(C[0].numpy(), want, rtol=0, atol=1e-12)
    loss = math.fsum(want[i, j] ** 2 for i, j in itertools.permutations(range(8), 2)) / 2
    assert float(decov(C)) == pytest.approx(loss, abs=1e-12)
    assert float(decov(C)) == pytest.approx((np.sum(want**2) - np.sum(np.diag(want) ** 2)) / 2, abs=1e-10)


@pytest.mark.parametrize("seed", SEEDS)
def test_value_cosines_equal_the_loop(seed):
    W_V = draw(seed, 3, 6, 2)
    rows = [own.flatten().tolist() for own in W_V]
    want = [[cosine(a, b) for b in rows] for a in rows]
    np.testing.assert_allclose(value_gram(W_V)[0].numpy(), want, rtol=0, atol=1e-14)


@pytest.mark.parametrize("seed", SEEDS)
def test_gradients_agree_with_finite_differences(seed):
    z, W_V = draw(seed, 2, 3, 3, 2).requires_grad_(), draw(seed + 5, 3, 4, 2).requires_grad_()
    assert torch.autograd.gradcheck(pair_cosines, z)
    assert torch.autograd.gradcheck(lambda own: decov(covariance(own)), z)
    assert torch.autograd.gradcheck(lambda own: torch.linalg.vector_norm(value_gram(own) - torch.eye(3)), W_V)


@pytest.mark.parametrize("kind", ["janus-v3", "kotodama", "attn-res", "recurrent"])
def test_terms_are_what_the_cache_and_the_weights_give(kind):
    model = small_model(kind).double()
    _, cache = model.run_with_cache(tokens_for(model), return_type="loss")
    n = model.cfg.n_layers
    zs = [cache[f"blocks.{layer}.attn.hook_z"].detach() for layer in range(n)]

    found = act(model, {"kind": "output-disagreement", "weight": 0.7})
    cosines = torch.stack([pair_cosines(z) for z in zs]).mean(0)
    assert float(found.telemetry["output-disagreement.loss"]) == pytest.approx(0.7 * float(cosines[0]), abs=1e-12)
    assert float(found.telemetry["output-disagreement.cos"]) == pytest.approx(float(cosines[1]), abs=1e-12)

    found = act(model, {"kind": "decov", "weight": 0.7})
    of_layers = [float(decov(covariance(z))) for z in zs]
    assert float(found.telemetry["decov.loss"]) == pytest.approx(0.7 * math.fsum(of_layers), rel=1e-12)
    correlations = [np.corrcoef(z.flatten(2).flatten(0, 1).numpy(), rowvar=False) for z in zs]
    units = len(correlations[0])
    off = [(np.abs(own).sum() - units) / (units * (units - 1)) for own in correlations]
    assert float(found.telemetry["decov.correlation"]) == pytest.approx(np.mean(off), abs=1e-9)

    found = act(model, {"kind": "value-orthogonality", "weight": 0.7})
    weights = [model.blocks[layer].attn.stored("W_V").detach() for layer in range(n)]
    assert len(weights[0]) == model.cfg.kv_heads
    grams = [value_gram(W_V)[0] - torch.eye(model.cfg.kv_heads) for W_V in weights]
    loss = 0.7 * math.fsum(float(own.norm()) for own in grams)
    assert float(found.telemetry["value-orthogonality.loss"]) == pytest.approx(loss, abs=1e-12)
    pairs = model.cfg.kv_heads * (model.cfg.kv_heads - 1)
    mean = np.mean([float(own.abs().sum()) / pairs for own in grams])
    assert float(found.telemetry["value-orthogonality.cos"]) == pytest.approx(mean, abs=1e-12)


@pytest.mark.parametrize("kind", ["output-disagreement", "decov", "value-orthogonality"])
def test_a_step_down_the_term_lowers_it_and_at_weight_0_there_is_none(kind):
    model = small_model("janus-v3").double()
    assert f"{kind}.loss" not in act(model, {"kind": kind, "weight": 0}).telemetry
    before = act(model, {"kind": kind})
    (before.total - act(model, {"kind": kind, "weight": 0}).total).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= 1e-3 * parameter.grad
    name = f"{kind}.loss"
    assert float(act(model, {"kind": kind}).telemetry[name]) < float(before.telemetry[name])


# --- what is dropped


@pytest.mark.parametrize("kind", DROPOUTS)
def test_what_is_dropped_follows_from_the_seed(kind):
    model, settings = small_model("janus-v3"), {"kind": kind, "rate": 0.5}
    first, again, other = (float(act(model, settings, seed).loss) for seed in (0, 0, 1))
    assert first == again != other
    state = torch.get_rng_state()
    act(model, settings, 0)
    assert torch.equal(torch.get_rng_state(), state), "the global generator is left alone"


@pytest.mark.parametrize("kind", DROPOUTS)
def test_rate_0_changes_nothing(kind):
    model = small_model("janus-v3")
    own = find_intervention(kind)(parse_interventions([{"kind": kind, "rate": 0}])[0])
    assert own.changes(model.cfg) == []
    assert torch.equal(act(model, {"kind": kind, "rate": 0}).total, model(tokens_for(model), return_type="loss"))


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_what_is_dropped_keeps_its_expectation(rate):
    x, generator, n = draw(0, 4, 3), torch.Generator().manual_seed(1), 20_000
    draws = torch.stack([drop(x, tuple(x.shape), rate, generator) for _ in range(n)])
    kept = draws != 0
    torch.testing.assert_close(draws[kept], (x / (1 - rate)).expand(n, 4, 3)[kept], rtol=1e-15, atol=0)
    error = x.abs() * math.sqrt(rate / (1 - rate) / n)  # standard error of each mean
    assert bool(((draws.mean(0) - x).abs() < 5 * error).all())


@pytest.mark.parametrize("per", ["sequence", "batch"])
def test_whole_heads_are_dropped(per):
    model, hook = small_model("janus-v3"), "blocks.0.attn.hook_z"
    z, n_dropped = cached(model, {"kind": "head-dropout", "rate": 0}, hook, 0), 0
    for seed in range(40):
        found = cached(model, {"kind": "head-dropout", "rate": 0.25, "per": per}, hook, seed)
        is_dropped = (found == 0).all(dim=(1, 3))
        want = torch.where(is_dropped[:, None, :, None], 0, z / 0.75)
        assert torch.equal(found, want)
        assert per == "sequence" or torch.equal(is_dropped[0], is_dropped[1])
        n_dropped += int(is_dropped.sum())
    n = 40 * (8 if per == "sequence" else 4)
    share = n_dropped / (40 * 8)
    assert abs(share - 0.25) < 4 * math.sqrt(0.25 * 0.75 / n)


def test_layers_and_sequences_draw_for_themselves():
    model = small_model("janus-v3", n_heads=16, d_head=2)
    settings = {"kind": "head-dropout", "rate": 0.5}
    drawn = {
        tuple((row == 0).all(dim=(0, 2)).tolist())
        for layer in range(3)
        for row in cached(model, settings, f"blocks.{layer}.attn.hook_z", 0)
    }
    assert len(drawn) == 6


def test_entries_of_maps_are_dropped():
    model, hook = small_model("janus-v3"), "blocks.0.attn.hook_pattern"
    pattern = cached(model, {"kind": "attention-dropout", "rate": 0}, hook, 0)
    found = cached(model, {"kind": "attention-dropout", "rate": 0.25}, hook, 0)
    is_dropped = (found == 0) & (pattern != 0)
    assert torch.equal(found, torch.where(is_dropped, 0, pattern / 0.75))
    n = int((pattern != 0).sum())
    assert abs(int(is_dropped.sum()) / n - 0.25) < 4 * math.sqrt(0.25 * 0.75 / n)


def test_dropped_heads_are_what_the_terms_see():
    """Heads that are dropped are zero to a term that follows in the recipe, and its gradient is finite."""
    model = small_model("janus-v3")
    settings = parse_interventions([{"kind": "head-dropout", "rate": 0.5}, {"kind": "output-disagreement"}])
    prescription = Prescription(settings, model.cfg, n_steps=1)
    generator = torch.Generator().manual_seed(0)
    found = objective(model, Batch(tokens_for(model)), prescription, Moment(0, {}, generator))
    plain = act(model, {"kind": "output-disagreement"})
    assert float(found.telemetry["output-disagreement.loss"]) != float(plain.telemetry["output-disagreement.loss"])
    found.total.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


# --- at work


@pytest.mark.parametrize("kind", COLUMNS)
def test_bfloat16(kind):
    model = small_model("janus-v3")
    wide, found = act(model, {"kind": kind}, 0), act(model, {"kind": kind}, 0, torch.bfloat16)
    for name, value in found.telemetry.items():
        assert value.dtype == torch.float32
        assert float(value) == pytest.approx(float(wide.telemetry[name]), rel=0.05, abs=2e-3)
    found.total.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("kind", COLUMNS)
def test_columns_are_known_before_a_step_is_taken(kind):
    for model in ("janus-v3", "kotodama"):
        found = columns_of(parse_interventions([{"kind": kind}]), small_config(model))
        assert found == [f"{kind}.{key}" for key in COLUMNS[kind]]


@pytest.mark.parametrize("kind", [kind for kind in COLUMNS if kind != "attention-dropout"])
def test_bad_models_of_one_head(kind):
    own = find_intervention(kind)(parse_interventions([{"kind": kind}])[0])
    own.check(small_config("kotodama"))
    with pytest.raises(ValueError, match=f"model.n_heads: got 1; expected 2 or more, or no {kind}"):
        own.check(small_config("janus-v3", n_heads=1))


def test_bad_value_weights_of_one_head():
    own = find_intervention("value-orthogonality")(parse_interventions([{"kind": "value-orthogonality"}])[0])
    with pytest.raises(ValueError, match="model.n_key_value_heads: got 1; expected 2 or more"):
        own.check(small_config("kotodama", n_key_value_heads=1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "head-dropout", "rate": 1.0}, "rate"),
        ({"kind": "attention-dropout", "rate": -0.1}, "rate"),
        ({"kind": "head-dropout", "per": "layer"}, "per"),
        ({"kind": "decov", "weight": -1}, "weight"),
        ({"kind": "head-dropouts"}, "nearest: head-dropout"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        parse_interventions([settings])


TINY = {
    "model.n_layers": 2, "model.d_model": 16, "model.n_heads": 2, "model.d_head": 8, "model.d_mlp": 16,
    "model.n_ctx": 16, "data.n_held_out_windows": 4, "phases.0.n_steps": 4, "phases.0.batch_size": 2,
    "phases.0.log_every": 1, "phases.0.schedule.n_warmup_steps": 0, "monitor.every": 0,
}  # fmt: skip


@pytest.mark.parametrize("kind", DROPOUTS)
def test_held_out_text_is_read_without_dropout(kind, tmp_path):
    logs = []
    for name in ("control", kind):
        recipe = apply_overrides(load_recipe(f"janus-v3-{name}-nano"), TINY)
        logs.append(run(recipe, tmp_path / name))
    first, second = (log["held_out_loss"].iloc[0] for log in logs)
    assert first == second, "the weights of step 0 are the same, and so is their loss"
    losses = [log["loss"].dropna() for log in logs]
    assert len(losses[0]) == len(losses[1]) == 4
    assert losses[0].iloc[0] != losses[1].iloc[0], "what is trained on is read with dropout"


def test_a_resumed_training_drops_what_one_that_never_stopped_drops(tmp_path):
    recipe = apply_overrides(load_recipe("janus-v3-head-dropout-nano"), TINY)
    whole = run(recipe, tmp_path / "whole")
    with pytest.raises(Interrupted):
        run(recipe, tmp_path / "parts", stop_after=2)
    parts = run(recipe, tmp_path / "parts", resume=True)
    assert parts.drop(columns="tokens_per_s").equals(whole.drop(columns="tokens_per_s"))
    digests = [weights_sha256(load(tmp_path / name, device="cpu")) for name in ("whole", "parts")]
    assert digests[0] == digests[1]


def run(recipe: Recipe, out: Path, **settings: Any) -> pd.DataFrame:
    """The log of a training."""
    own = {"device": "cpu", "dtype": "float32", "progress": False, "cache": out.parent / "cache"}
    return read_table(train(recipe, out, **own, **settings), "train_log")


@pytest.mark.parametrize("size", ["", "-nano"])
@pytest.mark.parametrize("short", RECIPES)
def test_recipes_differ_from_their_base_in_one_intervention(short, size):
    recipe, control = load_recipe(f"janus-v3-{short}{size}"), load_recipe(f"janus-v3-control{size}")
    without = recipe.phases[0].model_copy(update={"interventions": ()})
    own = {"name": control.name, "description": control.description, "phases": (without,)}
    assert recipe.model_copy(update=own) == control
    (settings,) = recipe.phases[0].interventions
    if short == "residual":
        (z,) = load_recipe(f"janus-v3-adaptive{size}").phases[0].interventions
        assert settings == z.model_copy(update={"on": "residual"})
    else:
        assert settings.kind in COLUMNS
