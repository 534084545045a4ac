"""What exchanging an activation does change: the cells of a hook go on together, along the batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from workbench.analyses.attribute.sites import Cell
from workbench.analyses.patch.sites import Place, Replace, exchanging, hook_of
from workbench.analyses.paths.measures import Metric, measure_streams
from workbench.data.pairs import PairTokens
from workbench.models import HookedLM
from workbench.models.checks import check_hooks, device_of, run_watched

TOKENS_TOGETHER = 2048  # that go on together; more gain nothing on a CPU
ON_A_GPU = 16  # times as many


@torch.no_grad()
def exchange(
    model: HookedLM,
    pairs: PairTokens,
    direction: str,
    cells: Sequence[Cell],
    places: Sequence[Place],
    metric: Metric = "effect",
    tell: Callable[[float], None] = lambda share: None,
) -> Float64[Tensor, "place cell pair"]:
    """Change of the measure by every cell at every place: the source's activation in the base's forward pass.

    A model of one residual stream goes on from the layer of the cell, others from the embedding.
    """
    device = device_of(model)
    base, source = pairs.sides(direction)
    base, names = base.to(device), list(dict.fromkeys(hook_of(cell.site, cell.layer) for cell in cells))
    check_hooks(model, names)
    lent = run_watched(model, source.to(device), names, None)
    states, clean = _states(model, base), measure_inputs(model, pairs.clean.to(device), pairs)
    before = measure_streams(model, measure_inputs(model, base, pairs)[None], pairs, metric, clean)[0]
    found = torch.full((len(places), len(cells), len(pairs)), torch.nan, dtype=torch.float64)
    n_together = TOKENS_TOGETHER * (1 if device.type == "cpu" else ON_A_GPU)
    n_rows = max(1, n_together // base.numel())
    for done, name in enumerate(names):
        own = [(n, i) for n in range(len(places)) for i, c in enumerate(cells) if hook_of(c.site, c.layer) == name]
        for first in range(0, len(own), n_rows):
            part = own[first : first + n_rows]
            given = [
                exchanging(lent[name], places[n].mask(pairs).to(device), cells[i].head, cells[i].site) for n, i in part
            ]
            normed = _go_on(model, states, base, name, cells[part[0][1]].layer, given, pairs)
            after = measure_streams(model, normed, pairs, metric, clean)
            for (n, i), value in zip(part, after, strict=True):
                found[n, i] = value - before
        tell((done + 1) / len(names))
    return found


def measure_inputs(model: HookedLM, tokens: Tensor, pairs: PairTokens) -> Tensor:
    """What the unembedding reads at each prompt's last token, [pair d_model]."""
    return _read(model, model(tokens, return_type=None), pairs, 1)[0]


def _states(model: HookedLM, tokens: Tensor) -> list[Tensor] | None:
    """The stream that enters each layer; None of a model that has more than one."""
    state = model.embed_state(tokens)
    if not isinstance(state, Tensor):
        return None
    states = []
    for block in model.blocks:
        states.append(state)
        state = block(state)
    return states


def _go_on(
    model: HookedLM,
    states: list[Tensor] | None,
    tokens: Tensor,
    name: str,
    layer: int,
    given: Sequence[Replace],
    pairs: PairTokens,
) -> Tensor:
    """What the unembedding reads under each exchange at one hook, [exchange pair d_model]."""
    n = len(given)

    def replace(x: Tensor, hook: Any) -> Tensor:
        parts = x.chunk(n)
        return torch.cat([exchange(own, hook) for own, exchange in zip(parts, given, strict=True)])

    with model.hooks(fwd_hooks=[(name, replace)]):
        if states is None:
            final = model(tokens.repeat(n, 1), return_type=None)
        else:
            final = model(states[layer].repeat(n, 1, 1), start_at_layer=layer, return_type=None)
    return _read(model, final, pairs, n)


def _read(model: HookedLM, final: Any, pairs: PairTokens, n: int) -> Tensor:
    stream = model.read_out(final)
    rows = torch.arange(len(stream), device=stream.device)
    return model.ln_final(stream[rows, pairs.last.to(stream.device).repeat(n)]).unflatten(0, (n, -1))
