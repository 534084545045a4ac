"""Activations that can be exchanged between the prompts of a pair, and where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor

from workbench.data.pairs import PairTokens
from workbench.models.checks import as_list

WHOLE = -1
# site -> its hook within a block, and whose heads it has
HOOKS = MappingProxyType(
    {
        "z": ("attn.hook_z", "query"), "q": ("attn.hook_q", "query"), "k": ("attn.hook_k", "key"),
        "v": ("attn.hook_v", "key"), "attn_out": ("hook_attn_out", ""), "mlp_out": ("hook_mlp_out", ""),
        "resid_pre": ("hook_resid_pre", ""), "resid_mid": ("hook_resid_mid", ""), "resid_post": ("hook_resid_post", ""),
    }
)  # fmt: skip


class Cell(NamedTuple):
    """A site of a layer, and its head where it has heads."""

    site: str
    layer: int
    head: int


@dataclass(frozen=True)
class Place:
    """Positions of each pair at which an activation is exchanged."""

    name: str
    mask: Bool[Tensor, "pair pos"]


def hook_of(site: str, layer: int) -> str:
    """The name of a site's hook."""
    return f"blocks.{layer}.{HOOKS[site][0]}"


def n_heads_of(cfg: Any, site: str) -> int:
    """Heads of a site; 0 where it has none."""
    return {"query": cfg.n_heads, "key": cfg.kv_heads, "": 0}[HOOKS[site][1]]


def cells_of(cfg: Any, sites: Sequence[str], layers: Sequence[int]) -> list[Cell]:
    """All cells of these sites and layers."""
    heads = {site: range(n_heads_of(cfg, site)) or (WHOLE,) for site in sites}
    return [Cell(site, layer, head) for site in sites for layer in layers for head in heads[site]]


def check_sites(model: Any, sites: Sequence[str]) -> tuple[str, ...]:
    """The sites.

    Raises:
        ValueError: none, one that is unknown, given twice or that the model has not, or one whose exchange would change
            nothing.
    """
    found = as_list("sites", sites)
    if not found or len(set(found)) < len(found) or not set(found) <= HOOKS.keys():
        raise ValueError(
            f"sites: got {','.join(map(str, found))!r:.60}; expected some of {', '.join(HOOKS)}, each once"
        )
    for site in found:
        if hook_of(site, 0) not in model.hook_dict:
            raise ValueError(f"sites: got {site}, which this model has not; expected some of {_present(model)}")
        if site == "resid_post" and model.cfg.extensions.attn_res is not None:
            raise ValueError("sites: got resid_post, which nothing reads under attention residuals; expected another")
    return tuple(found)


def _present(model: Any) -> str:
    return ", ".join(site for site in HOOKS if hook_of(site, 0) in model.hook_dict)


def places_of(pairs: PairTokens, positions: Sequence[str]) -> list[Place]:
    """The places that are named: `all` together, `each` by itself, or one that the pairs name.

    Raises:
        ValueError: none, or one that the pairs have not.
    """
    found: dict[str, Place] = {}
    index = torch.arange(pairs.clean.shape[1])
    known = dict(pairs.positions) | {"end": pairs.last}
    for name in as_list("position", positions):
        if name == "all":
            found[name] = Place(name, pairs.is_token)
        elif name == "each":
            found |= {str(t): Place(str(t), pairs.is_token & (index == t)) for t in index.tolist()}
        elif name in known:
            found[name] = Place(name, pairs.is_token & (index == known[name][:, None]))
        else:
            raise ValueError(f"position: got {name!r:.40}; expected some of all, each, {', '.join(known)}")
    if not found:
        raise ValueError(f"position: got nothing; expected some of all, each, {', '.join(known)}")
    return list(found.values())


def exchanged(x: Tensor, source: Tensor, mask: Tensor, head: int) -> Tensor:
    """x [pair pos …] with another prompt's activation, of one head or of all, where the mask is True."""
    if head == WHOLE:
        return torch.where(mask[(...,) + (None,) * (x.ndim - 2)], source, x)
    out = x.clone()
    out[:, :, head] = torch.where(mask[..., None], source[:, :, head], x[:, :, head])
    return out
