"""Patching: the effect of putting one prompt's activation into the other's forward pass, cell by cell.

Of each pair, m is the measure of the task at the last token. denoise: the base is the corrupt prompt and the source the
clean one; noise: the reverse.

    e_i = m(base_i; site ← source_i) − m(base_i),   g_i = m(source_i) − m(base_i),   recovery = Σ e_i / Σ g_i
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from probes.paired_effects import recovery
from workbench.analyses.ablate.impacts import check_bootstrap
from workbench.analyses.ablate.precision import as_float32
from workbench.analyses.patch.engine import Batch, open_batch, patch_layer
from workbench.analyses.patch.generic import open_generic, patch_layer_generic, plan_generic
from workbench.analyses.patch.records import LayerReadings, join_layers, join_pairs
from workbench.analyses.patch.sites import Cell, Place, cells_of, check_heads, check_sites, hook_of, places_of
from workbench.analyses.patch.sizes import Sizes, plan_sizes
from workbench.analyses.tasks.columns import MEASURED, counts, gap_values, named, p_by_site, share_values
from workbench.analyses.tasks.gate import check_pairs
from workbench.data.pairs import DIRECTIONS, PairTokens
from workbench.models.checks import check_read, choose, is_whole, some_of
from workbench.models.costs import MEMORY_BUDGET_BYTES
from workbench.models.transformer import HookedLM


@dataclass(frozen=True)
class Plan:
    """What is patched, and in which parts."""

    layers: tuple[int, ...]
    cells: tuple[Cell, ...]
    """of every layer"""
    places: tuple[Place, ...]
    directions: tuple[str, ...]
    sizes: Sizes
    n_pairs: int

    @property
    def parts(self) -> list[tuple[slice, str, int]]:
        """(pairs, direction, layer) of every part, in the order in which they are measured."""
        n = self.sizes.n_pairs
        batches = [slice(i, min(i + n, self.n_pairs)) for i in range(0, self.n_pairs, n)]
        return [(own, direction, layer) for own in batches for direction in self.directions for layer in self.layers]


def patch(
    model: Any,
    pairs: PairTokens,
    site: Sequence[str] = ("z",),
    position: Sequence[str] = ("all",),
    direction: Sequence[str] = ("denoise",),
    layers: Sequence[int] | int | None = None,
    heads: Sequence[int] | int | None = None,
    *,
    n_bootstrap: int = 2000,
    seed: int = 0,
    memory_budget_bytes: int = MEMORY_BUDGET_BYTES,
    name: str | None = None,
    on_progress: Callable[[float], None] | None = None,
) -> pd.DataFrame:
    """The table patching: a row for every site, layer, head and position, what putting the source's activation there
    does to the base.

    recovery = Σ e / Σ g with its 95 % bootstrap interval over clusters of pairs (see `probes.recovery`): 1 where the
    exchange alone makes the base answer as the source does, of `noise` the share that is destroyed; nan, and so its
    limits, where the gap's mean is less than three of its standard errors from 0. p is of the mean effect being 0,
    adjusted for all cells of a site and direction (`probes.sign_flip_test`). Of a head's q, k, v and pattern that head
    alone is exchanged; a position of a pattern is its query's.

    Args:
        model: a `HookedLM` (cells of a layer go on together), or another with TransformerLens's hooks (a whole forward
            a cell); run in float32 unless it is float64.
        pairs: prompts of the model's vocabulary, the two of a pair equally long.
        site: resid_pre, resid_mid, resid_post, attn_out, mlp_out, z, q, k, v (ahead of QK-norm and rotation), rot_q,
            rot_k (behind them), pattern; with attention residuals sources, all that flows between layers.
        position: all together, each by itself, numbers, or positions that the pairs name (`end` is the last token).
        direction: denoise, noise.
        layers, heads: all by default; of k, v and rot_k heads are key/value heads.
        n_bootstrap: draws of the intervals, and signs of the test.
        seed: of both; fills the column seed.
        memory_budget_bytes: for everything held besides the weights.
        name: fills the column model; the config's name by default.

    Raises:
        ValueError: pairs that do not fit the model or each other, a site that the model has not or does not read,
            layers, heads, positions or directions that are not there, a budget too small for one cell of one pair.
    """
    subject = as_float32(model)
    options: dict[str, Any] = {"layers": layers, "heads": heads, "memory_budget_bytes": memory_budget_bytes}
    check_bootstrap(n_bootstrap)
    plan = make_plan(subject, pairs, site, position, direction, **options)
    found, tell = [], on_progress or (lambda share: None)
    for part in iterate_patching(subject, pairs, plan):
        found.append(part)
        tell(len(found) / len(plan.parts))
    return patching_table(
        plan, found, pairs, name=name or model.cfg.model_name, seed=seed, n_bootstrap=n_bootstrap, draw_seed=seed
    )


def make_plan(
    model: Any,
    pairs: PairTokens,
    site: Sequence[str] = ("z",),
    position: Sequence[str] = ("all",),
    direction: Sequence[str] = ("denoise",),
    *,
    layers: Sequence[int] | int | None = None,
    heads: Sequence[int] | int | None = None,
    memory_budget_bytes: int = MEMORY_BUDGET_BYTES,
) -> Plan:
    """What is patched, checked; errors as `patch`."""
    check_pairs("patch", model, pairs)
    sites = check_sites(model, site)
    check_heads(model.cfg, sites, heads)
    directions = some_of("direction", direction, DIRECTIONS)
    chosen, places = choose("layers", layers, model.cfg.n_layers), places_of(pairs, position)
    size = plan_sizes if is_whole(model) else plan_generic
    sizes = size(model.cfg, pairs.clean.shape[1], len(pairs), sites, memory_budget_bytes)
    return Plan(chosen, cells_of(model.cfg, sites, places, heads), places, directions, sizes, len(pairs))


def iterate_patching(model: Any, pairs: PairTokens, plan: Plan, start: int = 0) -> Iterator[LayerReadings]:
    """The readings of the plan's parts, from part `start` on."""
    is_ours, opened = is_whole(model), None
    parts = plan.parts
    if not is_ours and start < len(parts):
        _check_generic(model, pairs, plan)
    for i in range(start, len(parts)):
        which, direction, layer = parts[i]
        if opened is None or opened[0] != which:
            own = pairs.take(which)
            places = [Place(p.name, None if p.at is None else p.at[which]) for p in plan.places]
            opened = None  # not two batches at once
            opened = which, open_batch(model, own, places, plan.sizes) if is_ours else open_generic(model, own, places)
        if isinstance(opened[1], Batch):
            yield patch_layer(model, opened[1], layer, plan.cells, direction, plan.sizes)
        else:
            yield patch_layer_generic(model, opened[1], layer, plan.cells, direction)


def _check_generic(model: Any, pairs: PairTokens, plan: Plan) -> None:
    sites = dict.fromkeys(cell.site for cell in plan.cells)
    if isinstance(model, HookedLM):
        return
    check_read(model, pairs.clean, [hook_of(site, layer) for site in sites for layer in plan.layers])


def joined(plan: Plan, parts: Sequence[LayerReadings]) -> dict[str, LayerReadings]:
    """The readings of each direction, [layer·cell pair], from those of all parts."""
    assert len(parts) == len(plan.parts)
    found = {}
    for direction in plan.directions:
        layers = []
        for layer in plan.layers:
            of_layer = [part for part, key in zip(parts, plan.parts, strict=True) if key[1:] == (direction, layer)]
            layers.append(join_pairs(of_layer))
        found[direction] = join_layers(layers)
    return found


def patching_table(
    plan: Plan,
    parts: Sequence[LayerReadings],
    pairs: PairTokens,
    *,
    name: str,
    seed: int,
    n_bootstrap: int = 2000,
    draw_seed: int = 0,
    status: str = MEASURED,
) -> pd.DataFrame:
    """patching's rows from the readings of all parts; see `patch`."""
    rows = [(cell.site, layer, cell.head, cell.place) for layer in plan.layers for cell in plan.cells]
    tables, clusters = [], pairs.clusters.numpy()
    for direction, found in joined(plan, parts).items():
        table = pd.DataFrame(rows, columns=["site", "layer", "head", "position"])
        values = _values(found, table["site"].to_numpy(), clusters, n_bootstrap, draw_seed)
        tables.append(table.assign(direction=direction, **values))
    table = pd.concat(tables, ignore_index=True)
    first = ["site", "direction", "layer", "head", "position"]
    table = table[[*first, *[own for own in table if own not in first]]]
    there = {place.name: _stands_there(place, pairs) for place in plan.places}
    return named(table, pairs, name, seed).assign(**counts(pairs, status), stands_there=table["position"].map(there))


def _stands_there(place: Place, pairs: PairTokens) -> str:
    """The names that the task gives a numbered position, where it is the same in all pairs."""
    if place.at is None or not place.name.isdecimal():
        return ""
    names = {**pairs.positions, "end": pairs.last}
    return "/".join(name for name, at in names.items() if bool((at.cpu() == place.at.cpu()).all()))


def _values(
    found: LayerReadings, sites: np.ndarray, clusters: np.ndarray, n_draws: int, seed: int
) -> dict[str, np.ndarray | float]:
    """The columns of a direction's rows."""
    base, source = found.base.numpy(), found.source.numpy()
    effects = found.effect.numpy() - base[0]
    rng = np.random.default_rng(seed)
    share = recovery(effects, source[0] - base[0], rng, clusters, n_draws)
    logprob = found.logprob.numpy()
    return {
        **share_values(share),
        "p": p_by_site(effects, sites, rng, clusters, n_draws),
        "effect": effects.mean(1),
        "kl": found.kl.numpy().mean(1),
        "base_kl": base[2].mean(),
        "delta_logprob": (logprob - base[1]).mean(1),
        "delta_prob": (np.exp(logprob) - np.exp(base[1])).mean(1),
        **gap_values(share.gap),
    }


def to_tensors(readings: LayerReadings) -> dict[str, torch.Tensor]:
    """A part's readings by name, as a file of tensors holds them."""
    return {name: value.contiguous() for name, value in vars(readings).items()}
