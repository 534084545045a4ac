"""Where attention residuals commit, read off a trained model: layers of like stable rank make a block, or the blocks
that were trained with the routing, each layer in the nearest."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from workbench.models import HookedLM
from workbench.models.load import load
from workbench.models.transformer import check_ours
from workbench.training.monitor import weight_ranks
from workbench.training.recipe import Recipe, apply_overrides

NO_STEP = -1e4  # of a logit: its exponential is 0 in every dtype


def segment(profile: Sequence[float], n_blocks: int) -> tuple[int, ...]:
    """First layers of the n_blocks runs of layers with the least Σ_blocks Σ_layers (x − mean of the block)².

    Exact, by dynamic programming over (blocks, last layer): O(n_blocks·L²). Of equal sums the one whose last blocks
    start earliest.

    Raises:
        ValueError: for fewer layers than blocks, no block, or a profile with a number that is not finite.
    """
    n = len(profile)
    if not 1 <= n_blocks <= n:
        raise ValueError(f"boundaries: got {n_blocks} blocks for {n} layers; expected 1 to {n}")
    if not all(map(math.isfinite, profile)):
        raise ValueError(f"boundaries: got the profile {list(profile)}; expected finite numbers")
    spread = [[_spread(profile[i:j]) for j in range(n + 1)] for i in range(n)]
    return _cheapest_runs(n, n_blocks, lambda block, i, j: spread[i][j])


def nearest_boundaries(positions: Sequence[float], n_blocks: int) -> tuple[int, ...]:
    """First layers of the n_blocks runs of layers with the least Σ_ℓ (position of ℓ − number of its run)².

    Where rounding the positions leaves no block out, this is rounding. Of equal sums the one whose last blocks start
    earliest.
    """
    n = len(positions)
    assert 1 <= n_blocks <= n, (n_blocks, n)
    return _cheapest_runs(
        n, n_blocks, lambda block, i, j: math.fsum((position - block) ** 2 for position in positions[i:j])
    )


def _cheapest_runs(n: int, n_blocks: int, cost: Callable[[int, int, int], float]) -> tuple[int, ...]:
    """First layers of the n_blocks runs that n layers are cut into with the least Σ cost(block, first, behind last)."""
    # least[j]: the least sum over the layers before j in so many blocks, and the boundaries that give it
    least: list[tuple[float, tuple[int, ...]]] = [(0.0, ())] + [(math.inf, ())] * n
    for block in range(n_blocks):
        least = [(math.inf, ())] + [
            min(
                ((least[i][0] + cost(block, i, j), (*least[i][1], i)) for i in range(j)),
                key=lambda found: (found[0], found[1][::-1]),
            )
            for j in range(1, n + 1)
        ]
    return least[n][1]


def learned_boundaries(model: HookedLM) -> tuple[int, ...]:
    """The list of boundaries nearest to those that `model` has learned (`nearest_boundaries`): the list to freeze.

    Raises:
        ValueError: a model without learned boundaries.
    """
    attn_res = model.cfg.extensions.attn_res
    if attn_res is None or not attn_res.is_learned:
        raise ValueError(f"boundaries: {model.cfg.model_name} has none that were learned; expected a model that has")
    return nearest_boundaries(model.boundaries.positions().tolist(), attn_res.n_sums)


@torch.no_grad()
def freeze(model: HookedLM) -> None:
    """Replace the learned boundaries of `model` by the nearest list: every step is 0 or 1 from then on."""
    increments = model.boundaries.increments
    starts = learned_boundaries(model)[1:]
    increments.fill_(NO_STEP)
    increments[torch.tensor(starts, device=increments.device) - 1] = 0.0


def stable_rank_profile(model: HookedLM) -> list[float]:
    """Per layer the mean over its hidden matrices (q, k, v, o, gate, in, out) of the stable rank ‖W‖_F²/σ₁²."""
    ranks = weight_ranks(model)
    of_layers = [
        [value for name, value in ranks.items() if name.startswith("stable_rank.") and name.endswith(f".{layer}")]
        for layer in range(model.cfg.n_layers)
    ]
    return [math.fsum(values) / len(values) for values in of_layers]


def resolve_boundaries(recipe: Recipe) -> Recipe:
    """The recipe with the list of boundaries in place of the name of a model that they are read off.

    "profile:N:MODEL" becomes N boundaries by that model's stable ranks, "learned:MODEL" the list nearest to those that
    it has learned. MODEL: a run directory, or whatever `load` takes. Any other recipe comes back as it is.

    Raises:
        ValueError: for a model that cannot be read, one of another depth, or without learned boundaries.
    """
    attn_res = recipe.model.extensions.attn_res
    if attn_res is None or attn_res.source is None:
        return recipe
    n_blocks, source = attn_res.source
    model, n_layers = load(source, device="cpu"), recipe.model.n_layers
    check_ours("attn_res.boundaries", model)
    if model.cfg.n_layers != n_layers:
        raise ValueError(f"attn_res.boundaries: {source} has {model.cfg.n_layers} layers; expected {n_layers}")
    found = segment(stable_rank_profile(model), n_blocks) if n_blocks is not None else learned_boundaries(model)
    return apply_overrides(recipe, {"model.extensions.attn_res.boundaries": found})


def _spread(values: Sequence[float]) -> float:
    if not values:
        return 0.0
    mean = math.fsum(values) / len(values)
    return math.fsum((v - mean) ** 2 for v in values)
