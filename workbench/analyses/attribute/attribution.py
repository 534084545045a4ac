"""Attribution of a task's answer: direct logit attribution, the logit lens, and gradients beside exact exchanges."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float64
from torch import Tensor

from probes.paired_effects import recovery
from workbench.analyses.ablate.impacts import check_bootstrap
from workbench.analyses.ablate.precision import as_float32
from workbench.analyses.attribute.estimates import ESTIMATES, estimate
from workbench.analyses.attribute.exact import exchange
from workbench.analyses.attribute.sites import WHOLE, Cell, cells_of, check_sites
from workbench.analyses.patch.sites import Place, places_of
from workbench.analyses.paths.measures import Metric, check_metric, last_streams, measure_streams
from workbench.analyses.tasks.columns import MEASURED, counts, gap_values, named, p_by_site, share_values
from workbench.analyses.tasks.gate import check_pairs
from workbench.analyses.tasks.jobs import Keep
from workbench.data.pairs import DIRECTIONS, PairTokens
from workbench.models import HookedLM
from workbench.models.checks import check_whole, choose, device_of, some_of
from workbench.models.direct_attribution import DirectEffects, direct_logit_attribution, why_no_parts
from workbench.models.transformer import check_ours

METHODS = ("dla", "lens", *ESTIMATES, "exact")
OF_PARTS = {"head": "z", "mlp": "mlp_out"}  # a part of the direct attribution -> the site of that name


@dataclass(frozen=True)
class Plan:
    """What is measured of a model on pairs."""

    methods: tuple[str, ...]
    cells: tuple[Cell, ...]
    places: tuple[Place, ...]
    directions: tuple[str, ...]
    metric: Metric
    n_steps: int


@dataclass(frozen=True)
class Found:
    """Effects by one method of one direction at one place."""

    method: str
    direction: str
    position: str
    cells: tuple[Cell, ...]
    effects: Float64[Tensor, "cell pair"]
    whole: Float64[Tensor, " pair"]
    """what the effects are a share of"""


def attribute(
    model: HookedLM,
    pairs: PairTokens,
    methods: Sequence[str] = ("dla", "lens", "atp", "exact"),
    site: Sequence[str] = ("z",),
    layers: Sequence[int] | int | None = None,
    *,
    direction: Sequence[str] = ("denoise",),
    position: Sequence[str] = ("all",),
    metric: Metric = "effect",
    n_steps: int = 8,
    top_k: int = 10,
    n_bootstrap: int = 2000,
    seed: int = 0,
    name: str | None = None,
    on_progress: Callable[[float], None] | None = None,
) -> dict[str, pd.DataFrame]:
    """The tables attribution, a row for every method and part, and attribution_agreement, of estimates with exact
    values.

    dla: what each part adds to the logit difference before any soft cap (`direct_logit_attribution`), behind the clean
    prompt (direction clean) and beyond what it adds behind the corrupt one (clean-corrupt). lens: the measure of what
    the final norm, its statistics taken anew, and the unembedding make of the stream entering layer 0 and behind each
    layer, at the last token (clean, corrupt). atp, atp_ig, atp_qk: estimates of exchanging an activation for the other
    prompt's (`estimates`), exact: that exchange. recovery = Σ e / Σ g: of dla g is the logit difference, or its gap; of
    lens the measure at the end; of the rest m(source) − m(base). Intervals are 95 % bootstrap ones over clusters.

    Args:
        model: run in float32 unless it is float64.
        pairs: prompts of the model's vocabulary, the two of a pair equally long.
        methods: some of dla, lens, atp, atp_ig, atp_qk, exact.
        site: of estimates and exchanges: resid_pre, resid_mid, resid_post, attn_out, mlp_out, z, q, k, v.
        layers: of these; all by default.
        direction: denoise, base corrupt and source clean; noise, the reverse.
        position: all together, each by itself, numbers, or positions that the pairs name (`end` is the last token).
        metric: effect, the task's own; logprob, prob of the answer; kl from the clean prediction, of exact and lens.
        n_steps: embeddings between the two of atp_ig.
        top_k: exact cells of largest mean effect that the estimates are asked for.
        n_bootstrap: draws of the intervals, and signs of the test.
        seed: of both; fills the column seed.
        name: fills the column model; the config's name by default.

    Raises:
        ValueError: a model or task of which a method says nothing, sites or positions that are not there.
    """
    check_ours("attribute", model)
    check_bootstrap(n_bootstrap)
    if top_k < 1:
        raise ValueError(f"top_k: got {top_k}; expected at least 1")
    subject, tell = as_float32(model), on_progress or (lambda share: None)
    options: dict[str, Any] = {"direction": direction, "position": position, "metric": metric, "n_steps": n_steps}
    plan = make_plan(subject, pairs, methods, site, layers, **options)
    found = list(iterate_attribution(subject, pairs, plan, tell))
    about: dict[str, Any] = {"name": name or model.cfg.model_name, "seed": seed}
    return tables(found, pairs, plan, **about, top_k=top_k, n_bootstrap=n_bootstrap, draw_seed=seed)


def make_plan(
    model: HookedLM,
    pairs: PairTokens,
    methods: Sequence[str],
    site: Sequence[str] = ("z",),
    layers: Sequence[int] | int | None = None,
    *,
    direction: Sequence[str] = ("denoise",),
    position: Sequence[str] = ("all",),
    metric: Metric = "effect",
    n_steps: int = 8,
) -> Plan:
    """What is measured, checked; errors as `attribute`."""
    check_ours("attribute", model)
    check_whole("attribute", model)
    check_pairs("attribute", model, pairs)
    chosen = some_of("methods", methods, METHODS)
    directions = some_of("direction", direction, DIRECTIONS)
    check_metric(metric)
    if n_steps < 1:
        raise ValueError(f"n_steps: got {n_steps}; expected at least 1")
    for method in chosen:
        if why := why_not(model.cfg, method, metric, pairs.measure):
            others = ",".join(own for own in chosen if own != method) or "exact"
            raise ValueError(f"methods: got {method}, {why}; expected others, such as {others}")
    own_sites = check_sites(model, site)
    if "atp_qk" in chosen and not set(own_sites) & {"q", "k"}:
        raise ValueError(f"methods: got atp_qk with site {','.join(own_sites)}; expected q or k among them")
    cells = cells_of(model.cfg, own_sites, choose("layers", layers, model.cfg.n_layers))
    return Plan(chosen, tuple(cells), places_of(pairs, position), directions, metric, n_steps)


def why_not(cfg: Any, method: str, metric: str, measure: str = "logit_difference") -> str:
    """Why a method says nothing of a model, metric or task, or nothing."""
    if method in ESTIMATES and metric == "kl":
        return "whose gradient of kl from the base is 0"
    if method == "dla":
        if which := why_no_parts(cfg):
            return f"which is of models whose parts add to sums, not of {which}"
        if metric != "effect" or measure != "logit_difference":
            return "which is of a difference of two logits"
    recurrence = cfg.extensions.recurrence
    if method in ESTIMATES and recurrence is not None and (recurrence.confidence or recurrence.memory):
        return "whose gradients stop where a pass's confidence or memory reads the pass before"
    if method == "atp_ig" and recurrence is not None and recurrence.value_embed != "off":
        return "whose embeddings are not all that a model with value_embed reads of the tokens"
    if method == "atp_qk" and cfg.use_qk_norm and cfg.extensions.wide_qk_norm:
        return "which takes heads' scores one by one, where one norm is over all heads' queries"
    return ""


# --- what the methods say


def iterate_attribution(
    model: HookedLM,
    pairs: PairTokens,
    plan: Plan,
    tell: Callable[[float], None],
    keep: Keep = lambda name, make: make(),
) -> Iterator[Found]:
    """The effects by every method."""
    ends = {side: _measure(model, pairs, side, plan.metric) for side in ("clean", "corrupt")}
    if "dla" in plan.methods:
        yield from _direct(model, pairs)
    if "lens" in plan.methods:
        for side in ("clean", "corrupt"):
            cells, effects = logit_lens(model, pairs, side, plan.metric)
            yield Found("lens", side, "end", cells, effects, ends[side])
    own = [method for method in plan.methods if method in ESTIMATES]
    for number, direction in enumerate(plan.directions):
        whole = ends["clean"] - ends["corrupt"] if direction == "denoise" else ends["corrupt"] - ends["clean"]
        given = (model, pairs, direction, plan.cells, plan.places)
        found: dict[str, Tensor] = {}
        if own:
            make = functools.partial(estimate, *given, own, plan.metric, plan.n_steps)
            found |= keep(f"{direction}_estimates", make)
        if "exact" in plan.methods:
            share = functools.partial(_tell_share, tell, number, len(plan.directions))
            make = functools.partial(exchange, *given, plan.metric, share)
            found |= keep(f"{direction}_exact", functools.partial(_named, "exact", make))
        for method, effects in found.items():
            for n, place in enumerate(plan.places):
                known = ~effects[n].isnan().any(1)
                cells = tuple(cell for cell, is_known in zip(plan.cells, known.tolist(), strict=True) if is_known)
                yield Found(method, direction, place.name, cells, effects[n][known], whole)
        tell((number + 1) / len(plan.directions))


def _tell_share(tell: Callable[[float], None], done: int, n: int, share: float) -> None:
    tell((done + share) / n)


def _named(name: str, make: Callable[[], Tensor]) -> dict[str, Tensor]:
    return {name: make()}


@torch.no_grad()
def _measure(model: HookedLM, pairs: PairTokens, side: str, metric: Metric) -> Float64[Tensor, " pair"]:
    own, clean = (last_streams(model, t.to(device_of(model)), pairs) for t in (getattr(pairs, side), pairs.clean))
    return measure_streams(model, own[None], pairs, metric, clean)[0]


def _direct(model: HookedLM, pairs: PairTokens) -> Iterator[Found]:
    """Of the clean prompts, and how much more than of the corrupt ones."""
    clean, corrupt = (
        direct_logit_attribution(model, own, pairs.answers[:, 0], pairs.foils[:, 0], pairs.last)
        for own in (pairs.clean, pairs.corrupt)
    )
    cells = tuple(_cell(part) for part in clean.parts)
    yield Found("dla", "clean", "end", cells, _on_cpu(clean).effects, _on_cpu(clean).difference)
    moved = _on_cpu(clean).effects - _on_cpu(corrupt).effects
    yield Found("dla", "clean-corrupt", "end", cells, moved, _on_cpu(clean).difference - _on_cpu(corrupt).difference)


def _on_cpu(found: DirectEffects) -> DirectEffects:
    return DirectEffects(found.parts, found.effects.cpu(), found.difference.cpu())


def _cell(part: tuple[str, int | None, int | None]) -> Cell:
    name, layer, head = part
    return Cell(OF_PARTS.get(name, name), -1 if layer is None else layer, WHOLE if head is None else head)


@torch.no_grad()
def logit_lens(
    model: HookedLM, pairs: PairTokens, side: str, metric: Metric = "effect"
) -> tuple[tuple[Cell, ...], Float64[Tensor, "cell pair"]]:
    """The measure at each prompt's last token of the stream entering layer 0 and of that behind every layer, read by
    the final norm (statistics taken anew), the unembedding, and any soft cap. Source: nostalgebraist 2020.

    A model with attention residuals or recurrence is read as if it ended there (`HookedLM.read_out`). side: clean or
    corrupt.
    """
    tokens = getattr(pairs, side).to(device_of(model))
    clean = last_streams(model, pairs.clean.to(device_of(model)), pairs) if metric == "kl" else None
    rows, at = torch.arange(len(tokens), device=tokens.device), pairs.last.to(tokens.device)
    state = model.embed_state(tokens)
    cells, normed = [Cell("resid_pre", 0, WHOLE)], [model.ln_final(model.read_out(state)[rows, at])]
    for layer, block in enumerate(model.blocks):
        state = block(state, None, model.read_out)
        cells.append(Cell("resid_post", layer, WHOLE))
        normed.append(model.ln_final(model.read_out(state)[rows, at]))
    return tuple(cells), measure_streams(model, torch.stack(normed), pairs, metric, clean)


# --- tables


def tables(
    found: Sequence[Found],
    pairs: PairTokens,
    plan: Plan,
    *,
    name: str,
    seed: int,
    top_k: int = 10,
    n_bootstrap: int = 2000,
    draw_seed: int = 0,
    status: str = MEASURED,
) -> dict[str, pd.DataFrame]:
    """Both tables from what the methods say; see `attribute`."""
    clusters, parts = pairs.clusters.numpy(), []
    for own in found:
        rng = np.random.default_rng(draw_seed)
        effects = own.effects.numpy()
        share = recovery(effects, own.whole.numpy(), rng, clusters, n_bootstrap)
        mean = recovery(effects, np.ones(effects.shape[1]), rng, clusters, n_bootstrap)  # a mean is a share of ones
        table = pd.DataFrame(own.cells, columns=["site", "layer", "head"])
        p = p_by_site(effects, table["site"].to_numpy(), rng, clusters, n_bootstrap)
        values = {**share_values(share), "p": p, "effect": mean.share, "effect_low": mean.low, "effect_high": mean.high}
        values |= gap_values(share.gap)
        key = {"method": own.method, "direction": own.direction}
        parts.append(table.assign(**key, position=own.position, **values))
    table = pd.concat(parts, ignore_index=True)
    first = ["method", "direction", "site", "layer", "head", "position"]
    table = table[[*first, *[column for column in table if column not in first]]]
    both = {"attribution": table.assign(metric=plan.metric, **counts(pairs, status))}
    if "exact" in plan.methods and set(plan.methods) & set(ESTIMATES):
        both["attribution_agreement"] = agreement(table, top_k)
    return {table: named(own, pairs, name, seed) for table, own in both.items()}


def agreement(table: pd.DataFrame, top_k: int) -> pd.DataFrame:
    """How far each estimate ranks cells as the exact effects do, by site and position.

    spearman: rank correlation of mean effects; missed: share of the top_k cells of largest exact |effect| that are not
    among the 2·top_k of largest estimate; nan for fewer than three cells, or where all are equal; and missed where
    there are no more than 2·top_k cells, of which none could be missed.
    """
    rows = []
    keys = ["direction", "site", "position"]
    for values, own in table[table["method"].isin([*ESTIMATES, "exact"])].groupby(keys, sort=False):
        by_method = own.set_index(["method", "layer", "head"])["effect"]
        methods = list(dict.fromkeys(own["method"]))
        if "exact" not in methods:
            continue
        exact = by_method.loc["exact"]
        for method in (m for m in methods if m != "exact"):
            of = by_method.loc[method].reindex(exact.index)
            is_ranked = len(exact) > 2 and exact.nunique() > 1 and of.nunique() > 1
            rho = float(exact.rank().corr(of.rank())) if is_ranked else np.nan
            top = set(exact.abs().sort_values(ascending=False, kind="stable").index[:top_k])
            near = set(of.abs().sort_values(ascending=False, kind="stable").index[: 2 * top_k])
            missed = len(top - near) / top_k if len(exact) > 2 * top_k else np.nan
            key = dict(zip(keys, values, strict=True))  # type: ignore[arg-type]
            rows.append(
                {"method": method, **key, "spearman": rho, "missed": missed, "top_k": top_k, "n_cells": len(of)}
            )
    columns = ["method", *keys, "spearman", "missed", "top_k", "n_cells"]
    return pd.DataFrame(rows, columns=columns)
