"""Path patching: the effect of one part's output by way of one reader, for every pair of parts that is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch

from probes.paired_effects import recovery
from workbench.analyses.ablate.impacts import check_bootstrap
from workbench.analyses.ablate.precision import as_float32
from workbench.analyses.paths.edges import WHOLE, How, PathEffects, Receiver, is_ahead, path_effects
from workbench.analyses.paths.measures import Metric
from workbench.analyses.paths.parts import STRONGEST, Plan, check_model, make_plan, receivers_of
from workbench.analyses.tasks.columns import MEASURED, counts, gap_values, named, p_by_site, share_values
from workbench.analyses.tasks.jobs import Keep
from workbench.data.pairs import PairTokens
from workbench.models import HookedLM
from workbench.models.costs import MEMORY_BUDGET_BYTES


def paths(
    model: HookedLM,
    pairs: PairTokens,
    into: Sequence[str] = ("logits", STRONGEST),
    layers: Sequence[int] | int | None = None,
    heads: Sequence[int] | int | None = None,
    *,
    senders: Sequence[str] = ("heads",),
    direction: Sequence[str] = ("denoise",),
    position: Sequence[str] = ("all",),
    mlps: Literal["frozen", "live"] = "frozen",
    freeze_scale: bool = False,
    per_query_head: bool = False,
    metric: Metric = "effect",
    n_bootstrap: int = 2000,
    seed: int = 0,
    memory_budget_bytes: int = MEMORY_BUDGET_BYTES,
    name: str | None = None,
    on_progress: Callable[[float], None] | None = None,
) -> pd.DataFrame:
    """The table paths: a row for every sender and every receiver behind it, what the sender's change does by way of the
    receiver alone.

    The sender's output of the source prompt replaces the base's: Δ = (z_source − z_base) W_O[h], or behind a norm
    norm(o + δ) − norm(o); of an MLP what it adds to the stream. The receiver reads norm(x_base + Δ), its scale
    recomputed; what it makes of that (q and k behind their norm and rotation) stands in for the base's, and the model
    goes on from there. recovery = Σ e / Σ g with its 95 % bootstrap interval over clusters of pairs: `probes.recovery`,
    which says when it is nan; p is of the mean effect being 0, adjusted for all paths to receivers of one kind
    (`probes.sign_flip_test`). Source: Wang et al. 2023, Goldowsky-Dill et al. 2023.

    Args:
        model: of one residual stream; run in float32 unless it is float64.
        pairs: prompts of the model's vocabulary, the two of a pair equally long.
        into: receivers: logits; q, k, v, mlp, of all layers and heads; 5.1.k, a head's; 5.mlp; strongest, q, k and v of
            the four heads (strongest:8, of eight) whose paths to the logits have the largest mean effects.
        layers, heads: of the senders; all by default.
        senders: heads, mlps.
        direction: denoise, base corrupt and source clean; noise, the reverse.
        position: at which the sender's output is changed: all together, each by itself, numbers, or positions that the
            pairs name (`end` is the last token).
        mlps: live lets MLPs between sender and receiver follow; heads never do.
        freeze_scale: the receiver's norm keeps the scale of the base, so that what it reads is additive.
        per_query_head: k and v of each query head, where heads share them; else of the key/value head.
        metric: effect, the task's own; logprob, prob of the answer; kl from the clean prediction.
        n_bootstrap: draws of the intervals, and signs of the test.
        seed: of both; fills the column seed.
        memory_budget_bytes: for everything held besides the weights.
        name: fills the column model; the config's name by default.

    Raises:
        ValueError: a model with attention residuals or recurrence, pairs that do not fit it, parts that it has not, a
            receiver that no sender is ahead of, a budget too small for one pair.
    """
    check_model(model)
    check_bootstrap(n_bootstrap)
    subject = as_float32(model)
    how = How(mlps=mlps, is_scale_frozen=freeze_scale, is_per_query_head=per_query_head, metric=metric)
    options: dict[str, Any] = {"senders": senders, "direction": direction, "position": position, "how": how}
    options["memory_budget_bytes"] = memory_budget_bytes
    plan = make_plan(subject, pairs, into, layers, heads, **options)
    found = list(iterate_paths(subject, pairs, plan, on_progress or (lambda share: None)))
    return paths_table(
        found, pairs, subject.cfg.parallel_attn_mlp,
        name=name or model.cfg.model_name, seed=seed, n_bootstrap=n_bootstrap, draw_seed=seed,
    )  # fmt: skip


Part = tuple[How, PathEffects]


def iterate_paths(
    model: HookedLM,
    pairs: PairTokens,
    plan: Plan,
    tell: Callable[[float], None],
    keep: Keep = lambda name, make: make(),
) -> Iterator[Part]:
    """The effects of the plan's paths, a part for every direction, position and receivers' layer."""
    for number, how in enumerate(plan.hows):
        receivers = plan.receivers
        if plan.n_strongest:
            logits = [Receiver(model.cfg.n_layers, "logits", WHOLE)]
            to_logits = _part(model, pairs, plan, how, logits, f"{number:02d}_strongest", keep)
            receivers = tuple(sorted({*receivers, *_strongest(model, to_logits, plan, how)}))
        layers = sorted({receiver.layer for receiver in receivers})
        for done, layer in enumerate(layers):
            own = [receiver for receiver in receivers if receiver.layer == layer]
            yield how, _part(model, pairs, plan, how, own, f"{number:02d}_{layer:03d}", keep)
            tell((number + (done + 1) / len(layers)) / len(plan.hows))


def _part(
    model: HookedLM,
    pairs: PairTokens,
    plan: Plan,
    how: How,
    receivers: Sequence[Receiver],
    name: str,
    keep: Keep,
) -> PathEffects:
    is_parallel = model.cfg.parallel_attn_mlp
    senders = [s for s in plan.senders if any(is_ahead(s, r, is_parallel) for r in receivers)]

    def make() -> Mapping[str, Any]:
        found = path_effects(model, pairs, senders, receivers, how, plan.sizes)
        return {"effects": found.effects, "gaps": found.gaps, "base": found.base}

    own = keep(name, make)
    return PathEffects(tuple(sorted(senders)), tuple(sorted(receivers)), own["effects"], own["gaps"], own["base"])


def _strongest(model: HookedLM, to_logits: PathEffects, plan: Plan, how: How) -> list[Receiver]:
    """q, k and v of the heads whose mean effects on the logits are largest, where a sender is ahead of them."""
    size = to_logits.effects[0].mean(-1).abs().tolist()
    order = sorted(range(len(size)), key=lambda i: -size[i])
    first = min(sender.layer for sender in plan.senders)
    heads = [s for s in (to_logits.senders[i] for i in order) if s.head != WHOLE and s.layer > first]
    per_query = how.is_per_query_head
    return [r for s in heads[: plan.n_strongest] for r in receivers_of(model.cfg, s.layer, s.head, per_query)]


def paths_table(
    parts: Sequence[Part],
    pairs: PairTokens,
    is_parallel: bool,
    *,
    name: str,
    seed: int,
    n_bootstrap: int = 2000,
    draw_seed: int = 0,
    status: str = MEASURED,
) -> pd.DataFrame:
    """The rows of paths from the effects of all parts; see `paths`."""
    clusters, tables = pairs.clusters.numpy(), []
    for how in dict.fromkeys(how for how, _ in parts):
        own = [part for other, part in parts if other == how]
        rows, effects = _rows_and_effects(own, is_parallel)
        table = pd.DataFrame(rows, columns=["site", "layer_a", "head_a", "layer_b", "head_b"])
        values = _values(effects, own[0].gaps.numpy(), table["site"].to_numpy(), clusters, n_bootstrap, draw_seed)
        tables.append(table.assign(direction=how.direction, position=how.position, **values, **_about(how)))
    table = pd.concat(tables, ignore_index=True)
    first = ["site", "direction", "position", "layer_a", "head_a", "layer_b", "head_b"]
    about = list(_about(parts[0][0]))
    table = table[[*first, *[own for own in table if own not in (*first, *about)], *about]]
    return named(table, pairs, name, seed).assign(**counts(pairs, status))


def _about(how: How) -> dict[str, Any]:
    return {"mlps": how.mlps, "scale": "frozen" if how.is_scale_frozen else "recomputed", "metric": how.metric}


def _rows_and_effects(parts: Sequence[PathEffects], is_parallel: bool) -> tuple[list[tuple], np.ndarray]:
    """(site, sender, receiver) of every path, and its effect on every pair."""
    rows, effects = [], []
    for part in parts:
        for i, receiver in enumerate(part.receivers):
            for j, sender in enumerate(part.senders):
                if is_ahead(sender, receiver, is_parallel):
                    rows.append((receiver.site, *sender, receiver.layer, receiver.head))
                    effects.append(part.effects[i, j])
    return rows, torch.stack(effects).numpy()


def _values(
    effects: np.ndarray, gaps: np.ndarray, sites: np.ndarray, clusters: np.ndarray, n_draws: int, seed: int
) -> dict[str, Any]:
    """The columns of a direction's rows."""
    rng = np.random.default_rng(seed)
    share = recovery(effects, gaps, rng, clusters, n_draws)
    p = p_by_site(effects, sites, rng, clusters, n_draws)
    return {**share_values(share), "p": p, "effect": effects.mean(1), **gap_values(share.gap)}
