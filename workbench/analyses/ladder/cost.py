"""What `ladder` takes, by formula."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from workbench.extend import Cost, TextSize

if TYPE_CHECKING:
    from workbench.training.recipe import Recipe


def cost(recipe: Recipe, settings: Any, text: TextSize) -> Cost:
    """One training after another, a rung each, and its plain windows of text read once."""
    from workbench.analyses.ladder.rungs import ladder_recipes
    from workbench.models.costs import forward_flops
    from workbench.training.plan import cost_of_training
    from workbench.training.recipe import phase_model

    rungs = [own for _, own in ladder_recipes(recipe)]
    whole = cost_of_training(rungs[-1])  # of the recipe itself, which holds most
    evaluations = [Cost(flops=forward_flops(phase_model(own, -1), text.n_windows, text.n_ctx)) for own in rungs]
    return sum(evaluations, Cost(len(rungs) * whole.flops, bytes_on_device=whole.bytes_on_device)) + Cost(
        bytes_in_memory=whole.bytes_in_memory, bytes_on_disk=len(rungs) * whole.bytes_on_disk
    )
