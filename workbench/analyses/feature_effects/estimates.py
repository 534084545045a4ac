"""What the gradient alone says ablating each feature would change: every feature of every SAE from one backward pass.

With f_j the activation of feature j, d_j its decoder row and f′_j what takes its place, the estimate is the sum over
positions of (f′_j − f_j) (∇_x loss · d_j), the slope of the loss along x − (f_j − f′_j) d_j at x. f′ is 0, the mean
activation, or the activation at the same position of another window.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float64, Int, Int64
from torch import Tensor

from workbench.analyses.ablate.engine import LOGITS_HELD
from workbench.analyses.ablate.losses import loss_gradient, reference
from workbench.models import HookedLM
from workbench.models.activations import Positions
from workbench.models.checks import device_of, run_watched
from workbench.models.sae_places import HookSAEs

GRAPH_TOKENS = 1024  # tokens whose graph is held for the backward pass
BLOCK_TOKENS = 512  # tokens encoded at once


@dataclass(frozen=True)
class Estimates:
    """Of every feature [n_saes d_sae], over all tokens at the positions that count."""

    n_tokens: int
    """tokens at these positions"""
    n_active: Float64[Tensor, "n_saes d_sae"]
    """those on which the feature fires"""
    value: Float64[Tensor, "n_saes d_sae"]
    """f′: 0, or the mean activation; 0 where it is of another window"""
    estimate: Float64[Tensor, "n_saes d_sae"]
    """change of the loss, nats per token"""


def estimate_effects(
    model: HookedLM,
    places: Sequence[HookSAEs],
    tokens: Int[Tensor, "n n_ctx"],
    positions: Positions,
    kind: str,
    on_progress: Callable[[float], None] | None = None,
    donors: Int64[Tensor, " n"] | None = None,
) -> Estimates:
    """The estimates from one forward and backward pass over the tokens; for kind "mean" a forward before it, for
    "source" one beside it. donors: for "source", the window that lends each window its activations."""
    n_saes, d_sae = sum(len(place.index) for place in places), places[0].sae.config.d_sae
    n_active = torch.zeros(n_saes, d_sae, dtype=torch.float64)
    total, value = torch.zeros_like(n_active), torch.zeros_like(n_active)
    size = max(1, GRAPH_TOKENS // tokens.shape[1])
    batches = tokens.split(size)
    lenders = [None] * len(batches) if donors is None else tokens[donors].split(size)
    if kind == "mean":
        value = _mean_acts(model, places, batches, positions, value)
    n_tokens = 0
    for number, (batch, lender) in enumerate(zip(batches, lenders, strict=True), 1):
        is_counted = positions.of(batch)
        n_tokens += int(is_counted.sum())
        lent = lent_activations(model, places, lender)
        is_changed = is_counted if lender is None else is_counted & positions.of(lender)
        for place, x, gradient in zip(places, *_gradients(model, places, batch), strict=True):
            index = list(place.index)
            other = None if lender is None else lent[place.hook_name]
            fired, change = sum_estimates(place, x, gradient, is_counted, value[index], other, is_changed)
            n_active[index] += fired
            total[index] += change
        if on_progress is not None:
            on_progress(number / len(batches))
    return Estimates(n_tokens, n_active, value, total / len(tokens))


def _gradients(
    model: HookedLM, places: Sequence[HookSAEs], tokens: Int[Tensor, "batch pos"]
) -> tuple[list[Tensor], list[Tensor]]:
    """(activations that are read, gradients of the sum of the sequences' mean losses by those that the SAEs stand in
    for) at each place."""
    tokens = tokens.to(device_of(model))
    final, activations, outputs = watched_forward(model, places, tokens)
    with torch.enable_grad():
        x = model.ln_final(model.read_out(final))[:, :-1]
    with torch.no_grad():
        base = reference(model, final, tokens, LOGITS_HELD)
        of_x = (loss_gradient(model, base, LOGITS_HELD) / x.shape[1]).to(x.dtype).view(x.shape)
    gradients = gradients_at(places, outputs, x, of_x)
    return [own.detach() for own in activations], gradients


def gradients_at(
    places: Sequence[HookSAEs], outputs: Sequence[Tensor], result: Tensor, of_result: Tensor | None = None
) -> list[Tensor]:
    """The gradients of a result, or of its product with `of_result`, by what each place's SAEs stand in for. Raises
    ValueError for a place that the result does not depend on."""
    gradients = torch.autograd.grad(result, outputs, of_result, allow_unused=True)
    for place, gradient in zip(places, gradients, strict=True):
        if gradient is None:
            raise ValueError(
                f"SAEs: got {place.hook_name_out}, which nothing reads in this model; expected another hook"
            )
    return list(gradients)


def watched_forward(
    model: HookedLM, places: Sequence[HookSAEs], tokens: Int[Tensor, "batch pos"]
) -> tuple[Any, list[Tensor], list[Tensor]]:
    """(the final state, what each place's SAEs read, what they stand in for), with the graph between them."""
    first = places[0].layer
    seen: dict[str, Tensor] = {}

    def watch(x: Tensor, hook: Any) -> Tensor:
        seen[hook.name] = x if x.requires_grad else x.detach().requires_grad_()
        return seen[hook.name]

    with torch.no_grad():
        state = model(tokens, stop_at_layer=first)
    with torch.enable_grad():
        names = dict.fromkeys(name for place in places for name in (place.hook_name, place.hook_name_out))
        hooks = [(name, watch) for name in names]
        final = model.run_with_hooks(state, start_at_layer=first, return_type=None, fwd_hooks=hooks)
    return final, [seen[place.hook_name] for place in places], [seen[place.hook_name_out] for place in places]


def lent_activations(
    model: HookedLM, places: Sequence[HookSAEs], lender: Int[Tensor, "batch pos"] | None
) -> dict[str, Tensor]:
    """What passes each hook that is read in the windows that lend their activations; nothing without any."""
    if lender is None:
        return {}
    names = [place.hook_name for place in places]
    return run_watched(model, lender.to(device_of(model)), names, places[-1].layer + 1)


@torch.no_grad()
def sum_estimates(
    place: HookSAEs,
    x: Tensor,
    gradient: Tensor,
    is_counted: Bool[Tensor, "batch pos"],
    value: Float64[Tensor, "n_saes d_sae"],
    other: Tensor | None,
    is_changed: Bool[Tensor, "batch pos"],
) -> tuple[Float64[Tensor, "n_saes d_sae"], Float64[Tensor, "n_saes d_sae"]]:
    """(tokens on which each feature fires, summed estimate) of a batch; other: what stands at these positions in the
    windows that lend their activations, where they do."""
    rows, slopes = place.read(x), place.reconstructed(gradient)
    slopes = slopes * is_changed.flatten().to(slopes)[:, None]
    lent = rows if other is None else place.read(other)
    counts = is_counted.flatten().nonzero().squeeze(1).to(rows.device)
    rows, slopes, lent = (own.index_select(1, counts) for own in (rows, slopes, lent))
    fired = torch.zeros(value.shape, dtype=torch.float64, device=rows.device)
    total = torch.zeros_like(fired)
    stands, directions = value.to(rows.device)[:, None], place.sae.directions
    for own, slope, there in zip(*(each.split(BLOCK_TOKENS, dim=1) for each in (rows, slopes, lent)), strict=True):
        acts = place.sae.encode(own)
        along = slope.to(acts) @ directions.mT
        if (scale := place.sae.output_scale(own)) is not None:
            along *= scale.unsqueeze(-1)
        fired += (acts > 0).sum(dim=1)
        new = stands.to(acts) if other is None else place.sae.encode(there)
        total += ((new - acts) * along).sum(dim=1, dtype=torch.float64)
    return fired.cpu(), total.cpu()


@torch.no_grad()
def _mean_acts(
    model: HookedLM,
    places: Sequence[HookSAEs],
    batches: Sequence[Int[Tensor, "batch pos"]],
    positions: Positions,
    total: Float64[Tensor, "n_saes d_sae"],
) -> Float64[Tensor, "n_saes d_sae"]:
    """Mean activation of every feature at the positions that count; added up in `total`."""
    n_tokens = 0
    for batch in batches:
        is_counted = positions.of(batch).flatten()
        n_tokens += int(is_counted.sum())
        names = [place.hook_name for place in places]
        found = run_watched(model, batch.to(device_of(model)), names, places[-1].layer + 1)
        for place in places:
            acts = place.sae.encode(place.read(found[place.hook_name]))
            total[list(place.index)] += acts[:, is_counted.to(acts.device)].sum(dim=1, dtype=torch.float64).cpu()
    return total / n_tokens
