"""Patching any model with TransformerLens's hooks: one whole forward a cell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.analyses.patch.engine import read_logits
from workbench.analyses.patch.records import READINGS, LayerReadings, Readings, stacked
from workbench.analyses.patch.sites import SITES, Cell, Place, exchanging, hook_of, n_heads_of
from workbench.analyses.patch.sizes import Sizes
from workbench.data.pairs import PairTokens
from workbench.models.checks import device_of, run_hooked, run_watched
from workbench.models.costs import check_budget

_TOKENS_A_BATCH = 8192


def plan_generic(cfg: Any, n_ctx: int, n_pairs: int, sites: Sequence[str], budget: int) -> Sizes:
    """The cut for whole forwards; arguments and errors as `sizes.plan_sizes`."""
    width = 8 * cfg.d_model + 3 * (cfg.d_mlp or 0) + (8 + len(sites)) * cfg.n_heads * cfg.d_head
    maps = 4 * cfg.n_heads * n_ctx
    # logits of all positions with a copy that the model's own forward may make; a block, and the sites of a layer
    held = 4 * n_ctx * (2 * cfg.d_vocab + width + maps) + 4 * 8 * cfg.d_vocab
    check_budget(budget, held, "one cell of one pair")
    n = max(1, min(n_pairs, budget // held, _TOKENS_A_BATCH // n_ctx))
    return Sizes(n, n * n_ctx, n * cfg.d_vocab)


@dataclass(frozen=True)
class GenericBatch:
    """Some pairs and both sides' predictions."""

    pairs: PairTokens
    log_p: Float[Tensor, "pair d_vocab"]
    masks: dict[str, Tensor]
    found: dict[str, Readings]


@torch.no_grad()
def open_generic(model: Any, pairs: PairTokens, places: Sequence[Place]) -> GenericBatch:
    """Both prompts of the pairs, run once."""
    logits = {name: _run(model, pairs, name, []) for name in ("clean", "corrupt")}
    log_p = logits["clean"].to(torch.promote_types(logits["clean"].dtype, torch.float32)).log_softmax(-1)
    masks = {place.name: place.mask(pairs).to(log_p.device) for place in places}
    return GenericBatch(pairs, log_p, masks, {name: read_logits(pairs, own, log_p) for name, own in logits.items()})


@torch.no_grad()
def patch_layer_generic(
    model: Any, batch: GenericBatch, layer: int, cells: Sequence[Cell], direction: str
) -> LayerReadings:
    """As `engine.patch_layer`.

    Raises:
        ValueError: a hook that shows another number of heads than the configuration says.
    """
    base, source = ("corrupt", "clean") if direction == "denoise" else ("clean", "corrupt")
    names = list(dict.fromkeys(hook_of(cell.site, layer) for cell in cells))
    tokens = getattr(batch.pairs, source).to(device_of(model))
    lent = run_watched(model, tokens, names, layer + 1)
    for site in dict.fromkeys(cell.site for cell in cells):
        _check_axes(model.cfg, site, hook_of(site, layer), lent[hook_of(site, layer)])
    found = []
    for cell in cells:
        name = hook_of(cell.site, layer)
        hook = exchanging(lent[name], batch.masks[cell.place], cell.head, cell.site)
        found.append(read_logits(batch.pairs, _run(model, batch.pairs, base, [(name, hook)]), batch.log_p))
    values = {name: torch.stack([getattr(own, name) for own in found]) for name in READINGS}
    return LayerReadings(**values, base=stacked(batch.found[base]), source=stacked(batch.found[source]))


def _check_axes(cfg: Any, site: str, name: str, seen: Tensor) -> None:
    kind = SITES[site].kind
    if kind == "stream":
        return
    axis, n = (1 if site == "pattern" else 2), n_heads_of(cfg, site)
    if seen.ndim != 4 or seen.shape[axis] != n:
        expected = "[pair head query key]" if site == "pattern" else "[pair pos head d_head]"
        raise ValueError(f"hook {name!r}: got shape {list(seen.shape)}; expected {expected} with {n} heads")


def _run(model: Any, pairs: PairTokens, side: str, hooks: Sequence[Any]) -> Float[Tensor, "pair d_vocab"]:
    tokens: Int[Tensor, "pair pos"] = getattr(pairs, side).to(device_of(model))
    logits = run_hooked(model, tokens, hooks, return_type="logits")
    return logits[torch.arange(len(tokens), device=logits.device), pairs.last.to(logits.device)]
