"""Training: recipes, the loop over their phases, head-orthogonality pressure, checkpoints and exact resume."""

from workbench.training.boundaries import learned_boundaries
from workbench.training.interrupts import Interrupted
from workbench.training.loop import build, train
from workbench.training.recipe import Recipe, apply_overrides, load_recipe, parse_override, recipe_names
from workbench.training.trainer import NonFiniteLoss

__all__ = [
    "Interrupted",
    "NonFiniteLoss",
    "Recipe",
    "apply_overrides",
    "build",
    "learned_boundaries",
    "load_recipe",
    "parse_override",
    "recipe_names",
    "train",
]
