"""What exchanging an activation would change, from gradients: attribution patching.

    atp      Σ ∇_a m(base) · (a_source − a_base)                       (Nanda 2023)
    atp_ig   with the gradient's mean over embeddings base + (k − ½)/K (source − base), k = 1…K
    atp_qk   Σ ∇_pattern m(base) · (softmax(patched scores) − pattern)  of queries and keys (Kramár et al. 2024, AtP*)

One backward pass gives all cells; a kl from the base has no gradient there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from workbench.analyses.attribute.sites import WHOLE, Cell
from workbench.analyses.patch.sites import Place, exchanging, hook_of
from workbench.analyses.paths.measures import Metric, measure_streams
from workbench.data.pairs import PairTokens
from workbench.models import HookedLM
from workbench.models.checks import device_of, run_hooked, run_watched

ESTIMATES = ("atp", "atp_ig", "atp_qk")


@dataclass(frozen=True)
class Gradients:
    """Activations by hook, and the gradient of Σ_pairs m by them."""

    activations: dict[str, Tensor]
    gradients: dict[str, Tensor]


def gradients_of(
    model: HookedLM,
    tokens: Tensor,
    pairs: PairTokens,
    names: Sequence[str],
    metric: Metric,
    embedding: Float[Tensor, "pair pos d_model"] | None = None,
) -> Gradients:
    """One forward and one backward pass of prompts of the pairs.

    embedding: what takes the place of the token embedding.
    """
    kept: dict[str, Tensor] = {}

    def keep(tensor: Tensor, hook: Any) -> None:
        kept[hook.name] = tensor

    def begin(tensor: Tensor, hook: Any) -> Tensor:
        return (tensor if embedding is None else embedding).detach().clone().requires_grad_()

    tokens = tokens.to(device_of(model))
    with torch.enable_grad():
        hooks: list[Any] = [("hook_embed", begin), *((name, keep) for name in names)]
        final = run_hooked(model, tokens, hooks, return_type=None)
        stream = model.read_out(final)[torch.arange(len(tokens), device=tokens.device), pairs.last.to(tokens.device)]
        total = measure_streams(model, model.ln_final(stream)[None], pairs, metric).sum()
        found = torch.autograd.grad(total, [kept[name] for name in names], allow_unused=True)
    filled = (torch.zeros_like(kept[n]) if g is None else g for n, g in zip(names, found, strict=True))
    return Gradients({name: kept[name].detach() for name in names}, dict(zip(names, filled, strict=True)))


@torch.no_grad()
def estimate(
    model: HookedLM,
    pairs: PairTokens,
    direction: str,
    cells: Sequence[Cell],
    places: Sequence[Place],
    methods: Sequence[str],
    metric: Metric = "effect",
    n_steps: int = 8,
) -> dict[str, Float64[Tensor, "place cell pair"]]:
    """The estimates of every cell at every place, by method; nan in atp_qk of what is neither q nor k."""
    base, source = pairs.sides(direction)
    names = list(dict.fromkeys(hook_of(cell.site, cell.layer) for cell in cells))
    patterns = [f"blocks.{layer}.attn.hook_pattern" for layer in _qk_layers(cells)] if "atp_qk" in methods else []
    if patterns:  # scores are of both
        names += [hook_of(site, layer) for layer in _qk_layers(cells) for site in "qk"]
        names = list(dict.fromkeys(names))
    lent = run_watched(model, source.to(device_of(model)), names, None)
    found: dict[str, Tensor] = {}
    masks = torch.stack([place.mask(pairs) for place in places])
    plain = gradients_of(model, base, pairs, [*names, *patterns], metric)
    if "atp" in methods:
        found["atp"] = _first_order(cells, masks, plain.activations, lent, plain.gradients)
    if "atp_ig" in methods:
        mean = _path_gradients(model, pairs, base, source, names, metric, n_steps)
        found["atp_ig"] = _first_order(cells, masks, plain.activations, lent, mean)
    if "atp_qk" in methods:
        found["atp_qk"] = _of_patterns(model, cells, masks, plain, lent)
    return found


def _qk_layers(cells: Sequence[Cell]) -> list[int]:
    return sorted({cell.layer for cell in cells if cell.site in ("q", "k")})


def _first_order(
    cells: Sequence[Cell], of_places: Bool[Tensor, "place pair pos"], base: dict, source: dict, gradients: dict
) -> Float64[Tensor, "place cell pair"]:
    found: dict[str, Tensor] = {}
    for name in dict.fromkeys(hook_of(cell.site, cell.layer) for cell in cells):
        product = gradients[name].double() * (source[name].double() - base[name].double())
        by_position = product.sum(-1)  # [pair pos] or [pair pos head]
        found[name] = torch.einsum("npt,pt...->n...p", of_places.to(by_position), by_position).cpu()
    rows = [
        found[hook_of(c.site, c.layer)] if c.head < 0 else found[hook_of(c.site, c.layer)][:, c.head] for c in cells
    ]
    return torch.stack(rows, dim=1)


def _path_gradients(
    model: HookedLM,
    pairs: PairTokens,
    base: Tensor,
    source: Tensor,
    names: Sequence[str],
    metric: Metric,
    n_steps: int,
) -> dict[str, Tensor]:
    """Means of the gradients over embeddings between the base's and the source's, at the middles of n_steps parts."""
    device = device_of(model)
    ends = [run_watched(model, own.to(device), ["hook_embed"], 0)["hook_embed"] for own in (base, source)]
    total: dict[str, Tensor] = {}
    for k in range(n_steps):
        share = (k + 0.5) / n_steps
        embedding = ends[0] + share * (ends[1] - ends[0])
        own = gradients_of(model, base, pairs, names, metric, embedding).gradients
        total = {name: own[name] / n_steps + (total[name] if total else 0) for name in names}
    return total


def _of_patterns(
    model: HookedLM,
    cells: Sequence[Cell],
    of_places: Bool[Tensor, "place pair pos"],
    own: Gradients,
    lent: dict[str, Tensor],
) -> Float64[Tensor, "place cell pair"]:
    found = torch.full((len(of_places), len(cells), of_places.shape[1]), torch.nan, dtype=torch.float64)
    for layer in _qk_layers(cells):
        attn, pattern_name = model.blocks[layer].attn, f"blocks.{layer}.attn.hook_pattern"
        gradient, pattern = own.gradients[pattern_name].double(), own.activations[pattern_name].double()
        groups = model.cfg.n_heads // model.cfg.kv_heads
        q, k = (own.activations[hook_of(site, layer)] for site in "qk")
        for n, mask in enumerate(of_places):
            for site in {cell.site for cell in cells if cell.layer == layer} & {"q", "k"}:
                exchange = exchanging(lent[hook_of(site, layer)], mask.to(q.device), WHOLE, site)
                moved = exchange(q if site == "q" else k, None)
                turned_q, turned_k = attn.turn(*((moved, k) if site == "q" else (q, moved)))
                new = attn.pattern_of(turned_q, turned_k.repeat_interleave(groups, dim=2)).double()
                of_heads = (gradient * (new - pattern)).sum((2, 3)).T.cpu()  # [head pair]
                if site == "k":
                    of_heads = of_heads.unflatten(0, (-1, groups)).sum(1)
                for i, cell in enumerate(cells):
                    if (cell.layer, cell.site) == (layer, site):
                        found[n, i] = of_heads[cell.head]
    return found
