"""What exchanging an activation does change, by `patch`, in the cells and the metric that estimates are of."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float64
from torch import Tensor

from workbench.analyses.attribute.sites import Cell
from workbench.analyses.patch.patching import iterate_patching, joined, make_plan
from workbench.analyses.patch.records import READINGS, LayerReadings
from workbench.analyses.patch.sites import Place
from workbench.analyses.paths.measures import Metric
from workbench.data.pairs import PairTokens
from workbench.models import HookedLM


def exchange(
    model: HookedLM,
    pairs: PairTokens,
    direction: str,
    cells: Sequence[Cell],
    places: Sequence[Place],
    metric: Metric = "effect",
    tell: Callable[[float], None] = lambda share: None,
) -> Float64[Tensor, "place cell pair"]:
    """Change of the metric by every cell at every place: the source's activation in the base's forward pass."""
    sites, layers = list(dict.fromkeys(cell.site for cell in cells)), sorted({cell.layer for cell in cells})
    plan = make_plan(model, pairs, sites, [place.name for place in places], [direction], layers=layers)
    parts: list[LayerReadings] = []
    for part in iterate_patching(model, pairs, plan):
        parts.append(part)
        tell(len(parts) / len(plan.parts))
    change = _change(joined(plan, parts)[direction], metric)
    made = itertools.product(plan.layers, plan.cells)
    row = {(own.site, layer, own.head, own.place): i for i, (layer, own) in enumerate(made)}
    return torch.stack([change[[row[*cell, place.name] for cell in cells]] for place in places])


def _change(found: LayerReadings, metric: Metric) -> Float64[Tensor, "cell pair"]:
    """What the exchanges change of the metric in the base."""
    if metric == "prob":
        return found.logprob.exp() - found.base[READINGS.index("logprob")].exp()
    return getattr(found, metric) - found.base[READINGS.index(metric)]
