"""What a training run would take, before it begins."""

from __future__ import annotations

from typing import Any

import torch

from workbench.models import HookedLM
from workbench.training.recipe import Recipe, n_tokens_per_step, phase_model


def plan(recipe: Recipe) -> dict[str, Any]:
    """Parameters, tokens, bytes on disk and memory of a recipe; the model is laid out without being allocated.

    Memory counts float32 weights, gradients and two moments (Muon keeps one for its matrices, so this is an upper
    bound there), not the activations, which depend on the batch.
    """
    with torch.device("meta"):
        model = HookedLM(phase_model(recipe, len(recipe.phases) - 1).model_copy(update={"device": "meta"}), seed=None)
    n = model.n_parameters()
    tokens = [phase.n_steps * n_tokens_per_step(recipe, i) for i, phase in enumerate(recipe.phases)]
    kept = recipe.checkpoint.keep or sum(p.n_steps for p in recipe.phases) // recipe.checkpoint.every + 1
    return {
        "recipe": recipe.name,
        "n_parameters": n,
        "n_parameters_without_embeddings": model.n_parameters(embeddings=False),
        "n_steps": sum(phase.n_steps for phase in recipe.phases),
        "n_tokens": sum(tokens),
        "n_tokens_by_phase": {p.name: t for p, t in zip(recipe.phases, tokens, strict=True)},
        "state_bytes_in_memory": 16 * n,
        "checkpoint_bytes_on_disk": 12 * n * kept,
        "n_checkpoints_kept": kept,
    }
