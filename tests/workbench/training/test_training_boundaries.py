"""Boundaries from a profile and from learned blocks: against every way to cut, and as a recipe asks for them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from models_for_tests import small_model, tokens_for

from workbench.models import AttnRes, Extensions, HookedLM
from workbench.models.checkpoint import save
from workbench.models.load import load
from workbench.training import apply_overrides, build, load_recipe
from workbench.training.boundaries import (
    freeze,
    learned_boundaries,
    nearest_boundaries,
    resolve_boundaries,
    segment,
    stable_rank_profile,
)

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
        ([1.0, 2.0], 3, "got 3 blocks for 2 layers; expected 1 to 2"),
        ([1.0, 2.0], 0, "got 0 blocks"),
        ([1.0, float("nan")], 1, "expected finite numbers"),
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
    named = apply_overrides(load_recipe("p3-attnres-nano"), {KEY: f"profile:3:{tmp_path}"})
    recipe = resolve_boundaries(named)
    attn_res = recipe.model.extensions.attn_res
    assert attn_res is not None
    assert attn_res.boundaries == segment(stable_rank_profile(model), 3)
    assert resolve_boundaries(recipe) is recipe
    assert build(named).cfg.extensions.attn_res == attn_res
    plain = resolve_boundaries(apply_overrides(load_recipe("p3-muon-nano"), {KEY: f"profile:2:{tmp_path}"}))
    assert plain.model.extensions.attn_res is not None


def test_a_recipe_is_validated_without_the_model_that_it_names():
    named = apply_overrides(load_recipe("p3-attnres-nano"), {KEY: "profile:2:no/such/run"})
    assert named.model.extensions.attn_res == AttnRes(boundaries="profile:2:no/such/run")
    with pytest.raises(ValueError, match=r"got 'profile:2:no/such/run', a model's name; expected them read off it"):
        HookedLM(named.model)


@pytest.mark.parametrize("value", ["profile", "profile:2", "profile:two:x", "uniform:2:x", "profile:-1:x", "learned:"])
def test_other_words_are_refused(value):
    with pytest.raises(ValueError, match=r"expected a list of layers, learned, learned:MODEL or profile:N:MODEL"):
        apply_overrides(load_recipe("p3-attnres-nano"), {KEY: value})


def test_a_model_of_another_depth_is_refused(tmp_path):
    save(small_model("kotodama"), tmp_path)
    with pytest.raises(ValueError, match="has 3 layers; expected 6"):
        resolve_boundaries(apply_overrides(load_recipe("p3-attnres-nano"), {KEY: f"profile:2:{tmp_path}"}))
    with pytest.raises(ValueError, match="no/such/run"):
        resolve_boundaries(apply_overrides(load_recipe("p3-attnres-nano"), {KEY: "profile:2:no/such/run"}))


# --- learned with the routing


def with_blocks(n_blocks: int, n_layers: int = 6, seed: int = 0):
    extensions = Extensions(attn_res=AttnRes(boundaries="learned", n_blocks=n_blocks))
    return small_model("attn-res", seed, n_layers=n_layers, extensions=extensions)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("n_blocks", [2, 3, 6])
def test_no_other_list_is_nearer(seed, n_blocks):
    steps = np.random.default_rng(seed).dirichlet(np.full(5, 0.5)) * (n_blocks - 1)
    positions = [0.0, *np.cumsum(steps)]

    def distance(boundaries: tuple[int, ...]) -> float:
        blocks = np.searchsorted(boundaries, range(6), side="right") - 1
        return float(((np.array(positions) - blocks) ** 2).sum())

    cuts = [(0, *c) for c in itertools.combinations(range(1, 6), n_blocks - 1)]
    found = nearest_boundaries(positions, n_blocks)
    assert found in cuts
    assert distance(found) == pytest.approx(min(map(distance, cuts)), abs=1e-12)


def test_the_nearest_list_is_rounding_where_that_leaves_no_block_out():
    assert nearest_boundaries([0.0, 0.4, 0.6, 1.2, 1.9, 2.0], 3) == (0, 2, 4)
    assert nearest_boundaries([0.0, 0.2, 1.9, 2.0], 3) == (0, 1, 2)  # rounding would step over block 1


@pytest.mark.parametrize("seed", range(3))
def test_a_frozen_model_is_that_of_the_nearest_list(seed):
    model = with_blocks(3, seed=seed).double()
    found = learned_boundaries(model)
    before = model(tokens_for(model))
    freeze(model)
    assert learned_boundaries(model) == found
    assert sorted(set(model.boundaries.memberships().flatten().tolist())) == [0.0, 1.0]
    listed = small_model("attn-res", n_layers=6, extensions=Extensions(attn_res=AttnRes(boundaries=found))).double()
    with torch.no_grad():
        for name, parameter in listed.named_parameters():
            parameter.copy_(model.get_parameter(name))
    torch.testing.assert_close(model(tokens_for(model)), listed(tokens_for(model)), rtol=1e-9, atol=1e-9)
    assert not torch.allclose(before, model(tokens_for(model)), atol=1e-3)


def test_a_recipe_takes_the_list_that_a_run_has_learned(tmp_path):
    model = with_blocks(3)
    save(model, tmp_path)
    assert learned_boundaries(load(tmp_path, device="cpu")) == learned_boundaries(model)
    for name in ("lang-ddv1-nano", "lang-baseline-nano", "lang-ddv1-learned-nano"):
        changes = {KEY: f"learned:{tmp_path}", "phases.1.attn_res": "carry"}
        recipe = resolve_boundaries(apply_overrides(load_recipe(name), changes))
        assert recipe.model.extensions.attn_res == AttnRes(boundaries=learned_boundaries(model))
    save(small_model("attn-res", n_layers=6), tmp_path)
    with pytest.raises(ValueError, match="custom has none that were learned; expected a model that has"):
        resolve_boundaries(apply_overrides(load_recipe("lang-ddv1-nano"), {KEY: f"learned:{tmp_path}"}))


def test_freezing_needs_what_to_freeze():
    recipe = load_recipe("lang-ddv1-learned-nano")
    for changes in ({KEY: [0, 2], "model.extensions.attn_res.n_blocks": None}, {"phases.0.attn_res": "off"}):
        with pytest.raises(ValueError, match=r'phases.1.attn_res: got "freeze" without boundaries learned'):
            apply_overrides(recipe, changes)
    with pytest.raises(ValueError, match=r"phases.0.attn_res: got .freeze."):
        apply_overrides(recipe, {"phases.0.attn_res": "freeze"})
