"""Interventions as tests ask for them: by the tables of a recipe, for a model at hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from workbench.models import HookedLM
from workbench.training.interventions import parse_interventions
from workbench.training.objective import Batch, Objective, objective
from workbench.training.prescription import Moment, Prescription


def prescribe(model: HookedLM, *tables: Mapping[str, Any], n_steps: int = 1) -> Prescription:
    """The interventions that these tables of a recipe name."""
    return Prescription(parse_interventions([dict(table) for table in tables]), model.cfg, n_steps)


def objective_under(
    model: HookedLM, batch: Batch, *tables: Mapping[str, Any], step: int | Tensor = 0, **scalars: Any
) -> Objective:
    """The loss of a micro-batch under interventions; scalars: name of one, `_` for `-` -> its scalars, else those that
    its schedule gives for the first step."""
    prescription = prescribe(model, *tables)
    given = {name.replace("_", "-"): own for name, own in scalars.items()}
    return objective(model, batch, prescription, Moment(step, {**prescription.start(0), **given}))
