"""Boundaries from a profile: against every way to cut it, and as a recipe asks for them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from models_for_tests import small_model

from workbench.models.load import save
from workbench.training import apply_overrides, load_recipe
from workbench.training.boundaries import segment, stable_rank_profile

KEY = "model.extensions.attn_res.boundaries"


def cost(profile: list[float], boundaries: tuple[int, ...]) -> float:
    blocks = np.split(np.array(profile), boundaries[1:])
    return float(sum(((block - block.mean()) ** 2).sum() for block in blocks))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("n_blocks", [1, 2, 3, 5, 8])
def test_no_other_cut_has_less_variance_within(seed, n_blocks):
    profile = np.random.default_rng(seed).normal(size=8).tolist()
    found = segment(profile, n_blocks)
    assert len(found) == n_blocks
    cuts = [(0, *c) for c in itertools.combinations(range(1, 8), n_blocks - 1)]
    assert found in cuts
    assert cost(profile, found) == pytest.approx(min(cost(profile, c) for c in cuts), abs=1e-12)


def test_plateaus_are_found_and_ties_are_settled():
    profile = [3.0] * 3 + [9.0] * 4 + [5.0] * 5 + [1.0] * 9
    assert segment(profile, 4) == (0, 3, 7, 12)
    assert segment([2.0] * 5, 3) == (0, 1, 2)


@pytest.mark.parametrize(
    ("profile", "n_blocks", "message"),
    [
        ([1.0, 2.0], 3, "got 3 blocks for 2 layers; want 1 to 2"),
        ([1.0, 2.0], 0, "got 0 blocks"),
        ([1.0, float("nan")], 1, "want finite numbers"),
    ],
)
def test_what_cannot_be_cut_is_refused(profile, n_blocks, message):
    with pytest.raises(ValueError, match=f"boundaries: .*{message}"):
        segment(profile, n_blocks)


def test_the_profile_is_the_mean_stable_rank_of_a_layers_matrices():
    model = small_model("kotodama")
    wanted = []
    for block in model.blocks:
        heads = [block.attn.W_Q, block.attn.stored("W_K"), block.attn.stored("W_V")]
        matrices = [w.permute(1, 0, 2).flatten(1) for w in heads] + [block.attn.W_O.flatten(0, 1)]
        matrices += [block.mlp.W_gate, block.mlp.W_in, block.mlp.W_out]
        sigmas = [np.linalg.svd(w.detach().double().numpy(), compute_uv=False) for w in matrices]
        wanted.append(np.mean([(s**2).sum() / s[0] ** 2 for s in sigmas]))
    assert stable_rank_profile(model) == pytest.approx(wanted, rel=1e-9)


def test_a_recipe_names_the_checkpoint(tmp_path):
    model = small_model("kotodama", n_layers=6)
    save(model, tmp_path)
    recipe = apply_overrides(load_recipe("p3-attnres-nano"), {KEY: f"profile:3:{tmp_path}"})
    attn_res = recipe.model.extensions.attn_res
    assert attn_res is not None
    assert attn_res.boundaries == segment(stable_rank_profile(model), 3)
    plain = apply_overrides(load_recipe("p3-muon-nano"), {KEY: f"profile:2:{tmp_path}"})
    assert plain.model.extensions.attn_res is not None


@pytest.mark.parametrize("value", ["profile", "profile:2", "profile:two:x", "uniform:2:x", "profile:-1:x"])
def test_other_words_are_refused(value):
    with pytest.raises(ValueError, match=r"want a list of layers, or profile:N:MODEL"):
        apply_overrides(load_recipe("p3-attnres-nano"), {KEY: value})


def test_a_model_of_another_depth_is_refused(tmp_path):
    save(small_model("kotodama"), tmp_path)
    with pytest.raises(ValueError, match="has 3 layers; want 6"):
        apply_overrides(load_recipe("p3-attnres-nano"), {KEY: f"profile:2:{tmp_path}"})
    with pytest.raises(ValueError, match="no/such/run"):
        apply_overrides(load_recipe("p3-attnres-nano"), {KEY: "profile:2:no/such/run"})
