"""Patching a model of ours: the cells of a layer go on together from where their activation stands.

Both prompts of every pair are run once. Of the base the state entering each layer is kept, with its keys and values; a
cell begins at its layer, at the first position that it can change, and reads the base's keys before that. What queries,
keys, values and patterns do to a layer is their heads' z: one attention with all heads exchanged gives the z of every
head as exchanging it alone would, so that each cell goes on from the stream after attention, with (z′ − z) W_O more in
it (or ahead of the norm that stands behind). At the end only the last token is read.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.analyses.patch.records import READINGS, LayerReadings, Readings, stacked
from workbench.analyses.patch.sites import SITES, WHOLE, Cell, Place, exchanging, hook_of
from workbench.analyses.patch.sizes import Sizes
from workbench.data.pairs import PairTokens
from workbench.models import HookedLM
from workbench.models.block import Attended
from workbench.models.checks import device_of
from workbench.models.cross_entropy import softcap
from workbench.models.prefix import KeptKeys
from workbench.models.states import add_written, at_positions, exchange, from_position, repeat_state
from workbench.models.transformer import State


@dataclass(frozen=True)
class Side:
    """One pass over one prompt of each pair."""

    states: tuple[State, ...]
    """entering each layer"""
    keys: KeptKeys
    logits: Float[Tensor, "pair d_vocab"]
    """behind the last token"""


@dataclass(frozen=True)
class Batch:
    """Some pairs and what was made of them once."""

    pairs: PairTokens
    sides: dict[str, Side]
    """clean, corrupt"""
    log_p: Float[Tensor, "pair d_vocab"]
    """of the clean prompt's prediction"""
    last: Int[Tensor, " pair"]
    start: int
    """the first position at which the prompts of a pair differ: before it neither side's activations do"""
    masks: dict[str, Bool[Tensor, "pair pos"]]
    starts: dict[str, int]
    """by place: the first position that an exchange there can change"""
    found: dict[str, Readings] = field(default_factory=dict)
    """of each side as it is"""


@torch.no_grad()
def open_batch(model: HookedLM, pairs: PairTokens, places: Sequence[Place], sizes: Sizes) -> Batch:
    """Both prompts of the pairs, run once. places: of these pairs."""
    device = device_of(model)
    last = pairs.last.to(device)
    sides = {name: _run_side(model, getattr(pairs, name).to(device), last) for name in ("clean", "corrupt")}
    log_p = _wide(sides["clean"].logits).log_softmax(-1)
    differs = (pairs.clean != pairs.corrupt).any(0)
    least = int(pairs.last.min())
    start = min(int(differs.int().argmax()) if bool(differs.any()) else least, least)
    masks = {place.name: place.mask(pairs).to(device) for place in places}
    starts = {own.name: start if own.at is None else min(max(int(own.at.min()), start), least) for own in places}
    batch = Batch(pairs, sides, log_p, last, start, masks, starts)
    for name, side in sides.items():
        batch.found[name] = _readings(batch, side.logits[None], sizes.logits_held)
    return batch


def _run_side(model: HookedLM, tokens: Int[Tensor, "pair pos"], last: Int[Tensor, " pair"]) -> Side:
    state, keys, states = model.embed_state(tokens), KeptKeys(), []
    for block in model.blocks:
        states.append(state)
        state = block(state, keys, model.read_out)
    return Side(tuple(states), keys, _logits(model, _read_last(model, state, last)))


@torch.no_grad()
def patch_layer(
    model: HookedLM, batch: Batch, layer: int, cells: Sequence[Cell], direction: str, sizes: Sizes
) -> LayerReadings:
    """What the last token's prediction becomes under each cell's exchange in this layer.

    direction: "denoise" puts activations of the clean prompt into the corrupt one, "noise" the reverse.
    """
    of = _open_layer(model, batch, layer, sorted({cell.site for cell in cells}), direction)
    values = {name: torch.full((len(cells), len(batch.pairs)), torch.nan, dtype=torch.float64) for name in READINGS}
    for chunk in _chunks(cells, batch, sizes.n_tokens):
        final = _final_streams(model, of, [cells[i] for i in chunk])
        rows = final.split(max(1, sizes.logits_held // model.cfg.d_vocab))
        parts = [_part(batch, _logits(model, own), at) for own, at in zip(rows, _offsets(rows), strict=True)]
        for name, value in values.items():
            value[chunk] = torch.cat([getattr(part, name) for part in parts]).view(len(chunk), -1)
    base, source = ("corrupt", "clean") if direction == "denoise" else ("clean", "corrupt")
    ends = {"base": stacked(batch.found[base]), "source": stacked(batch.found[source])}
    return LayerReadings(**values, **ends)


def _chunks(cells: Sequence[Cell], batch: Batch, n_tokens: int) -> Iterator[list[int]]:
    """Indices of cells of one site that go on together, those of a place side by side: each counts as many tokens as
    the first one has from its start on."""
    n, width = batch.pairs.clean.shape
    for _, group in itertools.groupby(range(len(cells)), key=lambda i: cells[i].site):
        rest = sorted(group, key=lambda i: batch.starts[cells[i].place])
        while rest:
            size = max(1, n_tokens // (n * (width - batch.starts[cells[rest[0]].place])))
            yield rest[:size]
            rest = rest[size:]


# --- one layer


@dataclass(frozen=True)
class _Layer:
    """The base and the other side of one layer."""

    batch: Batch
    layer: int
    base: Side
    source: Side
    mid: State | Attended
    """of the base, after attention"""
    seen: dict[str, Tensor]
    """hook -> activation of the base"""
    lent: dict[str, Tensor]
    """and of the other side"""
    z: dict[tuple[str, str, int], Tensor] = field(default_factory=dict)
    """(site, place, head) -> z of the base under that exchange, of all heads"""


def _open_layer(model: HookedLM, batch: Batch, layer: int, sites: Sequence[str], direction: str) -> _Layer:
    base, source = (batch.sides[name] for name in ("corrupt", "clean"))
    if direction == "noise":
        base, source = source, base
    block, seen, lent = model.blocks[layer], {}, {}
    names = [hook_of(site, layer) for site in sites if SITES[site].hook]
    own = [hook_of("z", layer), *([hook_of("attn_out", layer)] if "attn_out" in sites else [])]
    with model.hooks(fwd_hooks=[(name, _keeper(seen, name)) for name in own]):
        mid = block.attend(base.states[layer])
    with model.hooks(fwd_hooks=[(name, _keeper(lent, name)) for name in names]):
        state = block.attend(source.states[layer])
        if {"resid_mid", "resid_post", "mlp_out"} & set(sites):
            block.feed_forward(state, model.read_out)
    return _Layer(batch, layer, base, source, mid, seen, lent)


def _keeper(into: dict[str, Tensor], name: str) -> Any:
    def keep(tensor: Tensor, hook: Any) -> None:
        into[name] = tensor

    return keep


def _final_streams(model: HookedLM, of: _Layer, chunk: Sequence[Cell]) -> Float[Tensor, "row d_model"]:
    """What the unembedding reads of the last token, [cell·pair]: the cells of one site, each from its place on."""
    batch, layer, n, site = of.batch, of.layer, len(chunk), chunk[0].site
    start = min(batch.starts[cell.place] for cell in chunk)
    where = torch.cat([batch.masks[cell.place] for cell in chunk])[:, start:]
    block, hooks = model.blocks[layer], []
    if site in ("sources", "resid_pre"):
        state = repeat_state(from_position(of.base.states[layer], start), n)
        if site == "sources":
            state = exchange(state, repeat_state(from_position(of.source.states[layer], start), n), where)
        else:
            hooks = [(hook_of(site, layer), exchanging(of.lent[hook_of(site, layer)][:, start:], where, None, site))]
        with model.hooks(fwd_hooks=hooks):
            mid = block.attend(state, of.base.keys.before(start, n))
        return _go_on(model, of, mid, start, n)
    mid = repeat_state(from_position(of.mid, start), n)
    if SITES[site].kind in ("query", "key"):
        return _go_on(model, of, add_written(block, mid, _written(model, of, chunk, start)), start, n)
    name = hook_of(site, layer)
    source = of.lent[name][:, start:]
    if site == "attn_out":
        change = (source - of.seen[name][:, start:]).repeat(n, 1, 1) * where[..., None]
        return _go_on(model, of, mid + change, start, n)
    with model.hooks(fwd_hooks=[(name, exchanging(source, where, None, site))]):
        state = block.feed_forward(mid, model.read_out)
    return _behind(model, of, state, layer + 1, start, n)


def _go_on(model: HookedLM, of: _Layer, mid: State | Attended, start: int, n: int) -> Float[Tensor, "row d_model"]:
    """The final stream of the last token from the state after the attention of this layer; of the last layer's MLP no
    other position is read."""
    if of.layer == model.cfg.n_layers - 1:
        mid = at_positions(mid, of.batch.last.repeat(n) - start)
    return _behind(model, of, model.blocks[of.layer].feed_forward(mid, model.read_out), of.layer + 1, start, n)


def _behind(model: HookedLM, of: _Layer, state: State, first: int, start: int, n: int) -> Float[Tensor, "row d_model"]:
    """The final stream of the last token from the state entering layer `first`."""
    last, final, keys = of.batch.last.repeat(n) - start, model.cfg.n_layers - 1, of.base.keys
    if first < final:
        span: dict[str, Any] = {"start_at_layer": first, "stop_at_layer": final, "return_type": None}
        state = model(state, past_kv_cache=keys.before(start, n), **span)
    if first <= final:
        mid = at_positions(model.blocks[final].attend(state, keys.before(start, n)), last)
        state = model.blocks[final].feed_forward(mid, model.read_out)
    return _read_last(model, state, last)


# --- heads


def _written(model: HookedLM, of: _Layer, chunk: Sequence[Cell], start: int) -> Float[Tensor, "row pos d_model"]:
    """What the layer's heads write more under the exchange of each cell, [cell·pair pos d_model]."""
    site, parts = chunk[0].site, []
    z, cfg = of.seen[hook_of("z", of.layer)][:, start:], model.cfg
    W_O = model.blocks[of.layer].attn.W_O.to(z.dtype)
    is_apart = _is_apart(cfg, site)
    n_cells = cfg.kv_heads if SITES[site].kind == "key" else cfg.n_heads
    for place, group in itertools.groupby(chunk, key=lambda cell: cell.place):
        heads = [cell.head for cell in group]
        if is_apart:
            change = (_under(model, of, site, place, WHOLE)[:, start:] - z).unflatten(2, (n_cells, -1))[:, :, heads]
            change = change.flatten(3).permute(2, 0, 1, 3)  # [head pair pos e]
            W = W_O.unflatten(0, (n_cells, -1))[heads].flatten(1, 2)
        else:
            change = torch.stack([_under(model, of, site, place, head)[:, start:] - z for head in heads]).flatten(3)
            W = W_O.flatten(0, 1).expand(len(heads), -1, -1)
        written = torch.bmm(change.flatten(1, 2), W).unflatten(1, change.shape[1:3])
        if SITES[site].kind == "query":
            written = written * of.batch.masks[place][:, start:, None]
        parts.append(written.flatten(0, 1))
    return torch.cat(parts)


def _is_apart(cfg: Any, site: str) -> bool:
    """Whether exchanging one head changes that head's z alone: not ahead of a norm over all heads together."""
    return not (cfg.use_qk_norm and cfg.extensions.wide_qk_norm and site in ("q", "k"))


def _under(model: HookedLM, of: _Layer, site: str, place: str, head: int) -> Float[Tensor, "pair pos head d_head"]:
    """z of the base under the exchange of a head, or of all heads at once. Of a query's row, which no other position
    reads, that of all positions together."""
    name = hook_of(site, of.layer)
    if site == "z":
        return of.lent[name]
    is_key = SITES[site].kind == "key"
    key = (site, place if is_key else "", head)
    if key not in of.z:
        for other in [own for own in of.z if own[0] == site and own[1] != key[1]]:
            del of.z[other]  # of a place that is done with
        source, found = of.lent[name], {}
        mask = of.batch.masks[place]
        where = mask if is_key else torch.ones_like(mask)
        z_name = hook_of("z", of.layer)
        hooks = [(name, exchanging(source, where, head, site)), (z_name, _keeper(found, z_name))]
        with model.hooks(fwd_hooks=hooks):
            model.blocks[of.layer].attend(of.base.states[of.layer])
        of.z[key] = found[z_name]
    return of.z[key]


# --- readings


def _read_last(model: HookedLM, state: State, last: Int[Tensor, " row"]) -> Float[Tensor, "row d_model"]:
    """What the unembedding reads of one position of each row, or of the one that there is."""
    own = state if state.shape[1] == 1 else at_positions(state, last)
    return model.ln_final(model.read_out(own))[:, 0]


def _logits(model: HookedLM, x: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_vocab"]:
    logits = x @ model.W_U
    return softcap(logits if model.b_U is None else logits + model.b_U, model.cfg.output_logits_soft_cap)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _offsets(rows: Sequence[Tensor]) -> list[int]:
    return [0, *itertools.accumulate(len(own) for own in rows)][:-1]


def _part(batch: Batch, logits: Float[Tensor, "row d_vocab"], offset: int) -> Readings:
    """The readings of consecutive rows [cell·pair] from row `offset` on."""
    which = torch.arange(offset, offset + len(logits)) % len(batch.pairs)
    return read_logits(batch.pairs.take(which), logits, batch.log_p[which.to(logits.device)])


def _readings(batch: Batch, logits: Float[Tensor, "cell pair d_vocab"], held: int) -> Readings:
    rows = logits.flatten(0, 1).split(max(1, held // logits.shape[-1]))
    parts = [_part(batch, own, at) for own, at in zip(rows, _offsets(rows), strict=True)]
    return Readings(**{name: torch.cat([getattr(part, name) for part in parts]) for name in READINGS})


def read_logits(pairs: PairTokens, logits: Float[Tensor, "pair d_vocab"], log_p: Tensor) -> Readings:
    """Effect, log-probability of the answer and KL from the clean prediction, of logits behind each prompt.

    log_p: log-probabilities of the clean prediction.
    """
    logits = _wide(logits)
    own = logits.log_softmax(-1)
    kl = (log_p.exp() * (log_p - own)).sum(-1)
    # a log-softmax of log-probabilities is themselves: answers are read of what is here already
    return Readings(*(x.double().cpu() for x in (pairs.effect(logits), pairs.logprob(own), kl)))

