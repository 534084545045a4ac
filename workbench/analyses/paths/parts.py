"""Which senders and receivers are asked for, and how much goes on together."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from workbench.analyses.patch.sites import places_of
from workbench.analyses.paths.edges import WHOLE, How, Receiver, Sender, is_ahead
from workbench.analyses.paths.layer_runs import Sizes
from workbench.analyses.paths.measures import check_metric
from workbench.analyses.tasks.gate import check_pairs
from workbench.data.pairs import DIRECTIONS, PairTokens
from workbench.models import HookedLM, ModelConfig
from workbench.models.checks import as_list, check_whole, choose, some_of
from workbench.models.costs import MEMORY_BUDGET_BYTES, TOKENS_TOGETHER, block_width, check_budget, more_on_a_gpu
from workbench.models.transformer import check_ours

SITES = ("q", "k", "v", "mlp", "logits")
STRONGEST = "strongest"
_HEAD, _MLP = re.compile(r"(\d{1,4})\.(\d{1,4})\.([qkv])"), re.compile(r"(\d{1,4})\.mlp")
_STRONGEST = re.compile(rf"{STRONGEST}(?::([1-9]\d{{0,3}}))?")
N_STRONGEST = 4
EXPECTED = "expected logits, strongest or strongest:8, q, k, v, mlp, LAYER.HEAD.q or LAYER.mlp"


@dataclass(frozen=True)
class Plan:
    """What is measured of a model on pairs."""

    senders: tuple[Sender, ...]
    receivers: tuple[Receiver, ...]
    """those that are named"""
    n_strongest: int
    """heads whose q, k and v are receivers as well: those of the strongest paths to the logits"""
    hows: tuple[How, ...]
    sizes: Sizes


def check_model(model: Any) -> None:
    """Raise ValueError for a model in which what a part writes is not read as a term of one stream."""
    check_ours("paths", model)
    if why := why_not(model.cfg):
        raise ValueError(
            f"paths: {model.cfg.model_name} {why}; expected a model of one residual stream, to which parts add"
        )
    check_whole("paths", model)


def why_not(*configs: ModelConfig) -> str:
    """What stands against paths in a model, as the end of a sentence, or nothing."""
    for cfg in configs:
        if cfg.extensions.recurrence is not None:
            return "is recurrent, and its passes rescale and mix the stream"
        if cfg.extensions.attn_res is not None:
            return "has attention residuals, whose routing reads a part's output by weights that depend on it"
    return ""


def make_plan(
    model: HookedLM,
    pairs: PairTokens,
    into: Sequence[str] = ("logits", STRONGEST),
    layers: Sequence[int] | int | None = None,
    heads: Sequence[int] | int | None = None,
    *,
    senders: Sequence[str] = ("heads",),
    direction: Sequence[str] = ("denoise",),
    position: Sequence[str] = ("all",),
    how: How | None = None,
    memory_budget_bytes: int = MEMORY_BUDGET_BYTES,
) -> Plan:
    """What is measured, checked.

    Raises:
        ValueError: a model of several streams, pairs that do not fit it, parts that it has not, a receiver that no
            sender is ahead of, a budget too small for one pair.
    """
    check_model(model)
    check_pairs("paths", model, pairs)
    own = how or How()
    check_metric(own.metric)
    directions = some_of("direction", direction, DIRECTIONS)
    places = places_of(pairs, position)
    sending = make_senders(model.cfg, senders, layers, heads)
    receiving, n_strongest = make_receivers(model.cfg, into, sending, own.is_per_query_head)
    hows = tuple(replace(own, direction=d, position=place.name) for d in directions for place in places)
    sizes = plan_sizes(model.cfg, pairs.clean.shape[1], len(pairs), len(sending), memory_budget_bytes)
    return Plan(sending, receiving, n_strongest, hows, sizes)


def make_senders(
    cfg: ModelConfig, kinds: Sequence[str], layers: Sequence[int] | int | None, heads: Sequence[int] | int | None
) -> tuple[Sender, ...]:
    """The senders of these kinds (heads, mlps) in these layers, by layer, an MLP ahead of the heads."""
    chosen, own = some_of("senders", kinds, ("heads", "mlps")), choose("layers", layers, cfg.n_layers)
    which = choose("heads", heads, cfg.n_heads) if "heads" in chosen else ()
    numbers = (*((WHOLE,) if "mlps" in chosen else ()), *which)
    return tuple(Sender(layer, head) for layer in own for head in numbers)


def make_receivers(
    cfg: ModelConfig, into: Sequence[str], senders: Sequence[Sender], is_per_query_head: bool = False
) -> tuple[tuple[Receiver, ...], int]:
    """(the receivers that `into` names and a sender is ahead of, how many of the strongest heads' it asks for)."""
    found: dict[Receiver, None] = {}
    n_strongest = 0
    for name in as_list("into", into):
        if match := _STRONGEST.fullmatch(str(name)):
            n_strongest = int(match[1] or N_STRONGEST)
            continue
        own = _named(cfg, name, is_per_query_head)
        ahead = [r for r in own if any(is_ahead(s, r, cfg.parallel_attn_mlp) for s in senders)]
        if not ahead:
            first = min(sender.layer for sender in senders)
            raise ValueError(f"into: got {name}, which no sender is ahead of; expected one behind layer {first}")
        found |= dict.fromkeys(ahead)
    if not found and not n_strongest:
        raise ValueError(f"into: got nothing; {EXPECTED}")
    return tuple(sorted(found)), n_strongest


def receivers_of(cfg: ModelConfig, layer: int, head: int, is_per_query_head: bool) -> tuple[Receiver, ...]:
    """q, k and v of a query head."""
    kv_head = head if is_per_query_head else head // (cfg.n_heads // cfg.kv_heads)
    return Receiver(layer, "q", head), Receiver(layer, "k", kv_head), Receiver(layer, "v", kv_head)


def _named(cfg: ModelConfig, name: Any, is_per_query_head: bool) -> list[Receiver]:
    """The receivers of one name."""
    n_kv = cfg.n_heads if is_per_query_head else cfg.kv_heads
    n_of = {"q": cfg.n_heads, "k": n_kv, "v": n_kv}
    if name == "logits":
        return [Receiver(cfg.n_layers, "logits", WHOLE)]
    if name == "mlp":
        return [Receiver(layer, "mlp", WHOLE) for layer in range(cfg.n_layers)]
    if name in n_of:
        return [Receiver(layer, name, head) for layer in range(cfg.n_layers) for head in range(n_of[name])]
    if match := _HEAD.fullmatch(str(name)):
        layer, head, site = int(match[1]), int(match[2]), match[3]
        if layer < cfg.n_layers and head < n_of[site]:
            return [Receiver(layer, site, head)]
        what = "heads" if site == "q" else "key/value heads"
        raise ValueError(f"into: got {name}; expected one of {cfg.n_layers} layers of {n_of[site]} {what}")
    if match := _MLP.fullmatch(str(name)):
        if int(match[1]) < cfg.n_layers:
            return [Receiver(int(match[1]), "mlp", WHOLE)]
        raise ValueError(f"into: got {name}; expected one of {cfg.n_layers} layers")
    raise ValueError(f"into: got {name!r:.40}; {EXPECTED}")


# --- what fits into memory


def plan_sizes(cfg: ModelConfig, n_ctx: int, n_pairs: int, n_senders: int, budget: int) -> Sizes:
    """The cut that keeps what is held beside the weights below `budget` bytes.

    Raises:
        ValueError: a budget too small for one pair.
    """
    of_pair, of_token = pair_bytes(cfg, n_ctx, n_senders), token_bytes(cfg)
    check_budget(budget, of_pair + n_ctx * of_token, "one pair")
    wanted = TOKENS_TOGETHER * more_on_a_gpu(cfg.device)
    together = max(1, min(n_pairs, 3 * budget // 4 // of_pair, budget // 4 // (n_ctx * of_token)))
    return Sizes(together, max(together * n_ctx, min(wanted, budget // 4 // of_token)))


def pair_bytes(cfg: ModelConfig, n_ctx: int, n_senders: int) -> int:
    """What two runs keep of a pair, the changes of its senders, and those of one layer's heads in the making."""
    width = cfg.n_heads * cfg.d_head
    kept = 2 * cfg.n_layers * (4 * cfg.d_model + 2 * width + 2 * cfg.kv_heads * cfg.d_head)
    is_normed = cfg.extensions.post_norm or cfg.use_normalization_before_and_after
    n_making = cfg.n_heads * (3 if is_normed else 1)  # behind a norm: with the base's, and then less it
    return n_ctx * max(4, cfg.dtype.itemsize) * (kept + (n_senders + n_making) * cfg.d_model + 2 * width)


def token_bytes(cfg: ModelConfig) -> int:
    """What is held of a token that goes on: what a receiver reads, its heads' q, k, v and z, the widest point of a
    block."""
    width = cfg.n_heads * cfg.d_head
    return max(4, cfg.dtype.itemsize) * (3 * cfg.d_model + 8 * width + block_width(cfg))
