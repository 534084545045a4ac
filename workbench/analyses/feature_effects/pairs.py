"""What ablating a feature does to a logit difference: m = logit[answer] − logit[foil] behind a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Float64, Int, Int64
from torch import Tensor

from sae.stack import StackedSAE
from workbench.analyses.feature_effects.effects import (
    Losses,
    changes,
    clean_pass,
    effects_table,
    go_on,
    lenders_of,
    strongest,
)
from workbench.analyses.feature_effects.estimates import (
    Estimates,
    gradients_at,
    lent_activations,
    sum_estimates,
    watched_forward,
)
from workbench.data.pairs import PairTokens
from workbench.data.tasks import make_pairs, task_names
from workbench.data.tasks.listed import encode_pairs, read_pairs
from workbench.models import HookedLM
from workbench.models.activations import Positions
from workbench.models.checks import device_of
from workbench.models.cross_entropy import softcap
from workbench.models.sae_places import HookSAEs
from workbench.runs import read_toml

ROWS_TOGETHER = 256  # prompts that go on together, each without a feature


def open_pairs(model: Any, source: str | Path, seed: int = 0, cache: str | Path | None = None) -> PairTokens:
    """The pairs of a task, a built-in one's name or a TOML file of templates, or of a file of `[[pairs]]`.

    Raises:
        ValueError: as `make_pairs`, `read_pairs` and `encode_pairs`; a task that is measured by probabilities.
    """
    if str(source) in task_names() or "templates" in read_toml(Path(source), "pairs"):
        pairs = make_pairs(model, source, seed=seed, cache=cache)
    else:
        pairs = encode_pairs(model, read_pairs(source))
    if pairs.measure != "logit_difference":
        raise ValueError(f"pairs: {source} is measured by probabilities; expected a task of one answer and one foil")
    return pairs


def logit_differences(
    model: HookedLM, stream: Float[Tensor, "row d_model"], ids: Int[Tensor, "row 2"]
) -> Float[Tensor, " row"]:
    """logit[answer] − logit[foil] of final streams, capped where the model caps."""
    x = model.ln_final(stream[None])[0]
    logits = (x[:, None] * model.W_U.T[ids]).sum(dim=-1)
    logits = softcap(logits if model.b_U is None else logits + model.b_U[ids], model.cfg.output_logits_soft_cap)
    return logits[:, 0] - logits[:, 1]


def pair_effects(
    model: HookedLM,
    sae: StackedSAE,
    places: Sequence[HookSAEs],
    own: PairTokens,
    positions: Positions,
    value: Float64[Tensor, "n_saes d_sae"],
    *,
    name: str,
    seed: int,
    kind: str = "zero",
    n_exact: int = 16,
    n_bootstrap: int = 2000,
    bootstrap_seed: int = 0,
) -> pd.DataFrame:
    """The table feature_logit_differences: a row a feature, what m becomes when it is ablated at all positions of the
    prompts that count, its SAE's error kept. Estimated by m's gradient for all, exact for the n_exact of each SAE whose
    estimate is largest; the 95 % bootstrap interval is over pairs, of a task over clusters of pairs, each of which
    counts as the mean of its pairs. value: f′ for kind "zero" and "mean"; for "source"
    it is the activation at the same position of another pair's prompt.

    Raises:
        ValueError: "source" with one pair.
    """
    donors = lenders_of(own.clean, kind, bootstrap_seed)
    lender = None if donors is None else own.clean[donors]
    is_counted = positions.of(own.clean) & own.is_token
    is_changed = is_counted if donors is None else is_counted & is_counted[donors]
    lent = lent_activations(model, places, lender)
    found = _estimates(model, places, own, is_counted, is_changed, value, lent)
    features = strongest(found, n_exact)
    losses = _exactly(model, places, own, is_changed, features, value, lent)
    about: dict[str, Any] = {"name": name, "seed": seed, "kind": kind, "n_bootstrap": n_bootstrap}
    of_clusters = _by_cluster(losses, own.clusters)
    table = effects_table(sae, found, features, of_clusters, 2, **about, bootstrap_seed=bootstrap_seed)
    names = {"delta_loss": "delta", "n_sequences": "n_pairs", "base_loss": "base_difference"}
    return table.assign(n_sequences=len(own)).drop(columns=["kl", "n_tokens"]).rename(columns=names)


def _ids(own: PairTokens) -> Tensor:
    """Of answer and foil [pair 2]."""
    return torch.cat([own.answers, own.foils], dim=1)


def _by_cluster(losses: Losses, clusters: Int[Tensor, " pair"]) -> Losses:
    """Mean over the pairs of each cluster; pairs that are each their own stay as they are."""
    if len(clusters.unique()) == len(clusters):
        return losses
    index = torch.unique(clusters, return_inverse=True)[1]
    share = torch.nn.functional.one_hot(index).double()
    share /= share.sum(dim=0)
    return Losses(losses.base @ share, losses.change @ share, losses.kl @ share)


def _estimates(
    model: HookedLM,
    places: Sequence[HookSAEs],
    own: PairTokens,
    is_counted: Tensor,
    is_changed: Tensor,
    value: Tensor,
    lent: dict[str, Tensor],
) -> Estimates:
    """Of every feature, by one backward pass of the sum of m over the pairs."""
    tokens = own.clean.to(device_of(model))
    final, seen, outputs = watched_forward(model, places, tokens)
    with torch.enable_grad():
        stream = model.read_out(final)[torch.arange(len(tokens)), own.last]
        total = logit_differences(model, stream, _ids(own).to(tokens.device)).sum()
    gradients = gradients_at(places, outputs, total)
    n_active = torch.zeros_like(value)
    change = torch.zeros_like(value)
    for place, x, gradient in zip(places, seen, gradients, strict=True):
        index = list(place.index)
        other = lent.get(place.hook_name)
        n_active[index], change[index] = sum_estimates(
            place, x.detach(), gradient, is_counted, value[index], other, is_changed
        )
    return Estimates(int(is_counted.sum()), n_active, value, change / len(tokens))


@torch.no_grad()
def _exactly(
    model: HookedLM,
    places: Sequence[HookSAEs],
    own: PairTokens,
    is_changed: Tensor,
    features: Int64[Tensor, "feature 2"],
    value: Tensor,
    lent: dict[str, Tensor],
) -> Losses:
    """m of every pair as it is, and its change without each feature."""
    tokens, last = own.clean.to(device_of(model)), own.last.to(device_of(model))
    ids, clean = _ids(own).to(tokens.device), clean_pass(model, places, tokens)
    base = logit_differences(model, clean.stream[torch.arange(len(tokens)), last], ids)
    change = torch.zeros(len(features), len(tokens), dtype=torch.float64)
    for place in places:
        rows = torch.tensor([i for i, (k, _) in enumerate(features.tolist()) if k in place.index], dtype=torch.int64)
        if not len(rows):
            continue
        which = torch.tensor([[place.index.index(k), j] for k, j in features[rows].tolist()])
        x, other = clean.seen[place.hook_name], lent.get(place.hook_name)
        moves = changes(place, x, which, value[list(place.index)], is_changed, other)
        directions = place.sae.directions
        for part in (moves != 0).any(dim=2).nonzero().split(ROWS_TOGETHER):
            feature, pair = part.unbind(1)
            saes, index = which.to(part.device)[feature].unbind(1)
            delta = moves[feature, pair][..., None] * directions[saes, index][:, None]
            stream = go_on(model, place, clean, tokens, pair.to(tokens.device), saes.tolist(), delta)
            there = pair.to(tokens.device)
            new = logit_differences(model, stream[torch.arange(len(part)), last[there]], ids[there])
            change[rows[feature.cpu()], pair.cpu()] = (new - base[there]).double().cpu()
    return Losses(base.double().cpu(), change, torch.zeros_like(change))
