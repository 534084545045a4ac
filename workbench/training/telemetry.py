"""The columns that interventions have in train_log.csv, known before a step is taken."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from workbench.extend import Intervention
from workbench.models import HookedLM
from workbench.models.config import ModelConfig
from workbench.models.costs import faked, on_meta
from workbench.models.cross_entropy import Scalar, weighs
from workbench.training.objective import Batch, objective
from workbench.training.prescription import Moment, Prescription, Scalars
from workbench.training.recipe import Recipe, phase_model

PRESSING = 0.01  # a weight, where it acts at all


def telemetry_columns(recipe: Recipe) -> list[str]:
    """Names of the columns `<intervention>.<key>` of all phases, each once.

    Raises:
        ValueError: as `columns_of`, naming the phase.
    """
    found: dict[str, None] = {}
    for index, phase in enumerate(recipe.phases):
        try:
            found |= dict.fromkeys(columns_of(phase.interventions, phase_model(recipe, index)))
        except ValueError as error:
            raise ValueError(f"phases.{index}: {error}") from error
    return list(found)


def columns_of(settings: Sequence[Any], cfg: ModelConfig) -> list[str]:
    """Names of the columns that a phase's interventions have in train_log.csv: their scalars, then what they report.

    Found by running them once on tensors without numbers.

    Raises:
        ValueError: a hook that the model has not, an intervention that reads a tensor's value.
    """
    if not settings:
        return []
    prescription = Prescription(settings, cfg, n_steps=1)
    scalars = pressing(prescription.start(0))
    columns = [f"{name}.{key}" for name, of in scalars.items() for key in of]
    kinds = [type(own) for own in prescription.interventions.values()]
    n_with_options = sum(kind.loss_options is not Intervention.loss_options for kind in kinds)
    if n_with_options < 2 and all(kind.terms is Intervention.terms for kind in kinds):
        return columns  # nothing that a forward pass would tell
    model = on_meta(cfg)
    prescription.check_hooks(model)

    with faked(model):
        tokens = torch.zeros(1, min(cfg.n_ctx, 8), dtype=torch.long)
        try:
            found = objective(model, Batch(tokens), prescription, Moment(0, scalars), call=on_shapes(model))
        except RuntimeError as error:
            names = ", ".join(prescription.interventions)
            raise ValueError(f"interventions {names}: fail on tensors without numbers ({str(error):.200})") from error
    if twice := sorted(found.telemetry.keys() & set(columns)):
        raise ValueError(f"interventions: {twice[0]} is scheduled and reported too; expected another key to report")
    columns += found.telemetry
    for column in columns:  # columns of layers end in a number
        if not column.rpartition(".")[2].isidentifier():
            raise ValueError(f"interventions: got the column {column!r}; expected a key of letters, digits and _")
    return columns


def on_shapes(model: HookedLM) -> Callable[..., Tensor]:
    """What to call in a model's place on tensors without numbers: past the check of ids, which would read them."""

    def call(tokens: Tensor, **options: Any) -> Tensor:
        return model(model.embed_state(tokens), start_at_layer=0, tokens=tokens, **options)

    return call


def pressing(scalars: Scalars) -> dict[str, dict[str, Scalar]]:
    """The scalars with something in place of zeros: what a phase does where everything acts."""
    return {
        name: {key: value if weighs(value) else PRESSING for key, value in own.items()} for name, own in scalars.items()
    }
