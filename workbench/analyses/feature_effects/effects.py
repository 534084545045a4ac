"""What ablating a feature does to the loss, exactly: the forward goes on from the feature's layer without it.

Only the sequences in which the feature fires are run again, and of these only the predictions from there on are made
anew: everywhere else nothing can have changed. Such sequences, of whatever features of a hook, go on together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Float64, Int, Int64
from torch import Tensor

from probes.bootstrap import ratio_limits
from sae.stack import StackedSAE
from workbench.analyses.ablate.ablation import draw_donors
from workbench.analyses.ablate.impacts import check_bootstrap
from workbench.analyses.ablate.losses import Reference, at_rows, compare, reference
from workbench.analyses.ablate.precision import as_float32
from workbench.analyses.feature_effects.estimates import Estimates, estimate_effects, lent_activations
from workbench.models import HookedLM
from workbench.models.activations import Positions, special_ids
from workbench.models.checks import as_list, checked_tokens, device_of, is_whole
from workbench.models.costs import LOGITS_HELD, TOKENS_TOGETHER, more_on_a_gpu
from workbench.models.sae_places import HookSAEs, saes_by_hook, stack_slots
from workbench.models.transformer import check_ours

Kind = Literal["zero", "mean", "source"]


@dataclass(frozen=True)
class Losses:
    """Of some sequences: the mean loss as it is, and what it and the prediction become without each chosen feature."""

    base: Float64[Tensor, " sequence"]
    """nats per token"""
    change: Float64[Tensor, "feature sequence"]
    """of the loss, nats per token"""
    kl: Float64[Tensor, "feature sequence"]
    """KL(base‖ablated) of the next-token prediction, nats"""


def feature_effects(
    model: Any,
    sae: StackedSAE,
    tokens: Int[Tensor, "n n_ctx"],
    layers: Sequence[int] | int | None = None,
    heads: Sequence[int] | int | None = None,
    *,
    n_exact: int = 16,
    kind: Kind = "zero",
    n_bootstrap: int = 2000,
    seed: int = 0,
    name: str | None = None,
    on_progress: Callable[[float], None] | None = None,
) -> pd.DataFrame:
    """The table feature_effects: one row per feature, what the loss becomes when it is ablated and the SAE's error
    kept, x − (f − f′) d.

    estimate is what the gradient alone says (see `estimate_effects`), for every feature; delta_loss is exact, for the
    n_exact features of each SAE whose estimate is largest in absolute value. Both are nats per token, of all
    predictions of the tokens, whether or not the feature fires there; stderr and the 95 % bootstrap interval are of
    delta_loss, paired over sequences (nan for a single one). What is chosen by the estimate of the same tokens is the
    strongest on them: expect a little less on others.

    Args:
        model: a `HookedLM` on one device; run in float32 unless it is float64.
        sae: one SAE for each hook and head, of this model; of a transcoder x is its output.
        tokens: held-out tokens.
        layers, heads: which SAEs of the stack; all by default.
        n_exact: features of each SAE that are ablated; 0: none, the estimates alone.
        kind: what f′ is: 0, the feature's mean over these tokens, or its activation at the same position of another
            window, drawn by the seed; position 0 and special tokens of either lend and take nothing.
        seed, name: fill the columns seed and model; the seed is also the bootstrap's.

    Raises:
        ValueError: a model of another library, or on several devices; SAEs that do not fit it; tokens that do not fit;
            no SAE of these layers and heads; an unknown kind, or "source" with one window; fewer than 0 features or 100
            bootstrap draws.
    """
    check_effects(model, n_exact, kind, n_bootstrap)
    tokens = checked_tokens("feature-effects", model, tokens, min_ctx=2)
    own = chosen_saes(sae, layers, heads)
    places, subject = saes_by_hook(model, own), as_float32(model)
    positions = Positions(special_ids(model), bool(sae.info.include_special))
    tell = on_progress or (lambda share: None)
    donors = lenders_of(tokens, kind, seed)
    found = estimate_effects(subject, places, tokens, positions, kind, lambda share: tell(0.2 * share), donors)
    features = strongest(found, n_exact)
    parts, n_done = [], 0
    for part in iterate_effects(subject, places, tokens, positions, features, found.value, donors=donors):
        parts.append(part)
        n_done += len(part.base)
        tell(0.2 + 0.8 * n_done / len(tokens))
    about = {"name": name or model.cfg.model_name, "seed": seed, "kind": kind, "n_bootstrap": n_bootstrap}
    return effects_table(own, found, features, join_losses(parts), tokens.shape[1], **about)


def check_effects(model: Any, n_exact: int, kind: str, n_bootstrap: int) -> None:
    """Raise ValueError for a model that cannot go on from a layer, or settings out of range."""
    check_ours("feature-effects", model)
    if not is_whole(model):
        raise ValueError("feature-effects: got a model on several devices; expected one")
    if kind not in get_args(Kind):
        raise ValueError(f"kind: got {kind!r}; expected one of {', '.join(get_args(Kind))}")
    if n_exact < 0:
        raise ValueError(f"n_exact: got {n_exact}; expected 0 or more")
    check_bootstrap(n_bootstrap)


def lenders_of(tokens: Int[Tensor, "n n_ctx"], kind: str, seed: int) -> Int64[Tensor, " n"] | None:
    """For each window the other that lends it its features' activations; None but for kind "source". Raises ValueError
    for one window."""
    if kind != "source":
        return None
    if len(tokens) < 2:
        raise ValueError(f"kind: got source with {len(tokens)} window; expected at least two")
    return draw_donors(len(tokens), 1, seed)[0]


def chosen_saes(
    sae: StackedSAE, layers: Sequence[int] | int | None = None, heads: Sequence[int] | int | None = None
) -> StackedSAE:
    """The SAEs of these layers and heads, in the stack's order. Raises ValueError if there is none of some layer, or
    of some head."""
    slots = stack_slots(sae)
    have_layers, have_heads = sorted({slot.layer for slot in slots}), sorted({slot.column for slot in slots})
    wanted = []
    for what, given, have in (("layers", layers, have_layers), ("heads", heads, have_heads)):
        own = have if given is None else as_list(what, given)
        for index in own:
            if isinstance(index, bool) or index not in have:
                raise ValueError(f"{what}: got {index!r}; expected some that the SAEs read: {have}")
        wanted.append(own)
    index = [i for i, slot in enumerate(slots) if slot.layer in wanted[0] and slot.column in wanted[1]]
    if not index:
        raise ValueError(f"layers, heads: got {wanted[0]} and {wanted[1]}; expected some that the SAEs read together")
    return sae if len(index) == len(slots) else sae.select(index)


def strongest(found: Estimates, n: int) -> Int64[Tensor, "feature 2"]:
    """(SAE, feature) of the n features of each SAE whose estimates are largest in absolute value, of those that fire;
    SAE by SAE, the largest first."""
    size = found.estimate.abs().masked_fill(found.n_active == 0, -1)
    values, index = size.sort(dim=1, descending=True, stable=True)
    pairs = [
        (k, j) for k in range(len(size)) for v, j in zip(values[k, :n], index[k, :n].tolist(), strict=True) if v >= 0
    ]
    return torch.tensor(pairs, dtype=torch.int64).view(-1, 2)


# --- exactly


def iterate_effects(
    model: HookedLM,
    places: Sequence[HookSAEs],
    tokens: Int[Tensor, "n n_ctx"],
    positions: Positions,
    features: Int64[Tensor, "feature 2"],
    value: Float64[Tensor, "n_saes d_sae"],
    start: int = 0,
    donors: Int64[Tensor, " n"] | None = None,
) -> Iterator[Losses]:
    """The losses of consecutive sequences, a few at a time, from sequence `start`, which begins a batch.

    features: (SAE, feature) of each that is ablated. value: what each feature of each SAE is set to, where no donors
    lend their activations.
    """
    n_together = max(1, TOKENS_TOGETHER * more_on_a_gpu(model.cfg.device) // tokens.shape[1])
    for first in range(start, len(tokens), n_together):
        which = slice(first, first + n_together)
        lender = None if donors is None else tokens[donors[which]]
        yield _effects_of_batch(model, places, tokens[which], positions, features, value, n_together, lender)


@torch.no_grad()
def _effects_of_batch(
    model: HookedLM,
    places: Sequence[HookSAEs],
    tokens: Int[Tensor, "batch pos"],
    positions: Positions,
    features: Int64[Tensor, "feature 2"],
    value: Float64[Tensor, "n_saes d_sae"],
    n_together: int,
    lender: Int[Tensor, "batch pos"] | None,
) -> Losses:
    lent = lent_activations(model, places, lender)
    is_changed = positions.of(tokens) if lender is None else positions.of(tokens) & positions.of(lender)
    tokens = tokens.to(device_of(model))
    clean, n_scored = clean_pass(model, places, tokens), tokens.shape[1] - 1
    change = torch.zeros(len(features), len(tokens), dtype=torch.float64)
    kl = torch.zeros_like(change)
    for place in places:
        rows = torch.tensor([i for i, (k, _) in enumerate(features.tolist()) if k in place.index], dtype=torch.int64)
        if not len(rows):
            continue
        which = torch.tensor([[place.index.index(k), j] for k, j in features[rows].tolist()])
        acts = clean.seen[place.hook_name]
        moves = changes(place, acts, which, value[list(place.index)], is_changed, lent.get(place.hook_name))
        moves[:, :, -1] = 0  # behind the last prediction
        for pairs, sums in _without(model, place, clean, tokens, which, moves, n_together):
            for own, total in zip((change, kl), sums, strict=True):
                own[rows[pairs[:, 0]], pairs[:, 1]] = total / n_scored
    base = clean.base.loss.double().view(len(tokens), -1).mean(dim=1).cpu()
    return Losses(base, change, kl)


@dataclass(frozen=True)
class CleanPass:
    """One forward: where others go on from, what the SAEs read, and what predictions are compared with."""

    starts: dict[int, Any]
    seen: dict[str, Tensor]
    base: Reference
    stream: Float[Tensor, "batch pos d_model"]
    """the final one"""


def clean_pass(model: HookedLM, places: Sequence[HookSAEs], tokens: Tensor) -> CleanPass:
    layers, seen = sorted({place.layer for place in places}), dict[str, Tensor]()

    def keep(x: Tensor, hook: Any) -> None:
        seen[hook.name] = x

    starts: dict[int, Any] = {}
    with model.hooks(fwd_hooks=[(place.hook_name, keep) for place in places]):
        state, reached = model(tokens, stop_at_layer=layers[0]), layers[0]
        for layer in layers:
            state, reached = model(state, start_at_layer=reached, stop_at_layer=layer), layer
            starts[layer] = state
        final = model(state, start_at_layer=reached, return_type=None)
    return CleanPass(starts, seen, reference(model, final, tokens, LOGITS_HELD), model.read_out(final))


def changes(
    place: HookSAEs,
    x: Tensor,
    which: Int64[Tensor, "feature 2"],
    value: Float64[Tensor, "n_saes d_sae"],
    is_changed: Tensor,
    other: Tensor | None = None,
) -> Float[Tensor, "feature batch pos"]:
    """f′ − f of each feature (SAE of the place, index), in multiples of its decoder row; 0 where it is not changed.
    f′ is `value`, or the activation on `other`, what passes the hook in other windows."""
    saes, index = which.unbind(1)
    own = place.read(x)
    acts = place.sae.encode(own)[saes, :, index]
    lent = None if other is None else place.sae.encode(place.read(other))[saes, :, index]
    change = (value[saes, index].to(acts)[:, None] if lent is None else lent) - acts
    if (scale := place.sae.output_scale(own)) is not None:
        change = change * scale[saes]
    return change.view(len(which), *is_changed.shape) * is_changed.to(acts)


def _without(
    model: HookedLM,
    place: HookSAEs,
    clean: CleanPass,
    tokens: Int[Tensor, "batch pos"],
    which: Int64[Tensor, "feature 2"],
    change: Float[Tensor, "feature batch pos"],
    n_together: int,
) -> Iterator[tuple[Int64[Tensor, "pair 2"], Float64[Tensor, "2 pair"]]]:
    """((feature, sequence), summed change of the loss and KL) of every pair in which something changes."""
    is_changed = change != 0
    everyone = is_changed.any(dim=2).nonzero()
    first = is_changed.int().argmax(dim=2)
    position, directions = torch.arange(tokens.shape[1], device=tokens.device), place.sae.directions
    n_scored = tokens.shape[1] - 1
    for pairs in everyone.split(n_together) if len(everyone) else ():
        feature, row = pairs.unbind(1)
        saes, index = which.to(pairs.device)[feature].unbind(1)
        delta = change[feature, row][..., None] * directions[saes, index][:, None]
        stream = go_on(model, place, clean, tokens, row.to(tokens.device), saes.tolist(), delta)
        begin = first[feature, row].to(position.device)
        pair, at = ((position >= begin[:, None]) & (position < n_scored)).nonzero().unbind(1)
        base = at_rows(clean.base, row.to(pair.device)[pair] * n_scored + at)
        loss, kl = compare(model, model.ln_final(stream[pair, at][None]), base, LOGITS_HELD)
        sums = torch.zeros(2, len(pairs), dtype=torch.float64, device=pair.device)
        sums.index_add_(1, pair, torch.stack([loss[0] - base.loss, kl[0]]).double())
        yield pairs.cpu(), sums.cpu()


def go_on(
    model: HookedLM,
    place: HookSAEs,
    clean: CleanPass,
    tokens: Int[Tensor, "batch pos"],
    row: Int64[Tensor, " pair"],
    saes: Sequence[int],
    delta: Float[Tensor, "pair pos d_out"],
) -> Float[Tensor, "pair pos d_model"]:
    """The final stream of these sequences, with delta added to what one SAE each stands in for; a state that is more
    than the stream is made again from the tokens."""
    heads = [place.slots[k].head for k in saes]

    def add(x: Tensor, hook: Any) -> Tensor:
        if heads[0] is None:
            return x + delta.to(x).view(x.shape)
        out = x.clone()
        out[torch.arange(len(x), device=x.device), :, torch.tensor(heads, device=x.device)] += delta.to(x)
        return out

    start = clean.starts[place.layer]
    hooks = [(place.hook_name_out, add)]
    if isinstance(start, Tensor):
        final = model.run_with_hooks(start[row], start_at_layer=place.layer, return_type=None, fwd_hooks=hooks)
    else:
        final = model.run_with_hooks(tokens[row], return_type=None, fwd_hooks=hooks)
    return model.read_out(final)


# --- the table


def join_losses(parts: Sequence[Losses]) -> Losses:
    """The losses of several runs of sequences as one."""
    base = torch.cat([part.base for part in parts])
    return Losses(base, *(torch.cat([getattr(part, name) for part in parts], dim=1) for name in ("change", "kl")))


def effects_table(
    sae: StackedSAE,
    found: Estimates,
    features: Int64[Tensor, "feature 2"],
    losses: Losses,
    n_ctx: int,
    *,
    name: str,
    seed: int,
    kind: str,
    n_bootstrap: int = 2000,
    bootstrap_seed: int | None = None,
) -> pd.DataFrame:
    """feature_effects' rows, SAE by SAE in the stack's order; see `feature_effects`."""
    n_saes, d_sae = found.estimate.shape
    place = (features[:, 0] * d_sae + features[:, 1]).numpy()
    change, n = losses.change.numpy(), len(losses.base)
    exact = {column: np.full(n_saes * d_sae, np.nan) for column in ("delta_loss", "stderr", "ci_low", "ci_high", "kl")}
    exact["delta_loss"][place], exact["kl"][place] = change.mean(1), losses.kl.numpy().mean(1)
    if n > 1 and len(place):
        exact["stderr"][place] = change.std(axis=1, ddof=1) / n**0.5
        rng = np.random.default_rng(seed if bootstrap_seed is None else bootstrap_seed)
        exact["ci_low"][place], exact["ci_high"][place] = ratio_limits(change, np.ones(n), rng, n_bootstrap)
    slots, sources = stack_slots(sae), sae.info.sources
    columns = {
        "model": name,
        "seed": seed,
        "layer": np.repeat([slot.layer for slot in slots], d_sae),
        "head": np.repeat([slot.column for slot in slots], d_sae),
        "feature": np.tile(np.arange(d_sae), n_saes),
        "density": (found.n_active / found.n_tokens).flatten().numpy(),
        "estimate": found.estimate.flatten().numpy(),
        **exact,
        "n_tokens": n * (n_ctx - 1),
        "kind": kind,
        "n_sequences": n,
        "base_loss": losses.base.mean().item(),
        "l1": np.repeat([np.nan if source.l1 is None else source.l1 for source in sources], d_sae),
        "hook": np.repeat([slot.hook_name for slot in slots], d_sae),
    }
    return pd.DataFrame(columns)
