"""The sites at which an activation of one prompt takes the place of the other prompt's, and their cells.

A cell is one intervention: a site of a layer, of one head where the site has heads, at all positions or at one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from workbench.data.pairs import PairTokens
from workbench.models import HookedLM
from workbench.models.checks import as_list, choose, some_of

Kind = Literal["stream", "query", "key", "state"]
WHOLE = -1  # the head of a site without heads


@dataclass(frozen=True)
class Site:
    """Where an activation is exchanged."""

    hook: str
    """within a block; empty: the state that the layer is given"""
    kind: Kind
    """query: one row a query head, of which only that head's z depends, and at the same position alone; key: one a
    key/value head, which queries of later positions read as well; stream: no heads; state: all that flows on"""


SITES: Mapping[str, Site] = {
    "resid_pre": Site("hook_resid_pre", "stream"),
    "resid_mid": Site("hook_resid_mid", "stream"),
    "resid_post": Site("hook_resid_post", "stream"),
    "attn_out": Site("hook_attn_out", "stream"),
    "mlp_out": Site("hook_mlp_out", "stream"),
    "z": Site("attn.hook_z", "query"),
    "q": Site("attn.hook_q", "query"),
    "k": Site("attn.hook_k", "key"),
    "v": Site("attn.hook_v", "key"),
    "rot_q": Site("attn.hook_rot_q", "query"),
    "rot_k": Site("attn.hook_rot_k", "key"),
    "pattern": Site("attn.hook_pattern", "query"),
    "sources": Site("", "state"),
}


@dataclass(frozen=True)
class Place:
    """Positions that are exchanged together."""

    name: str
    """all, a number, or one of the pairs' own names"""
    at: Int64[Tensor, " pair"] | None
    """the position in each pair; None: all"""

    def mask(self, pairs: PairTokens) -> Bool[Tensor, "pair pos"]:
        """True at these positions."""
        n = pairs.clean.shape[1]
        if self.at is None:
            return torch.ones(len(pairs), n, dtype=torch.bool)
        return torch.arange(n) == self.at[:, None]


@dataclass(frozen=True)
class Cell:
    """One intervention in a layer."""

    site: str
    place: str
    head: int = WHOLE


def check_sites(model: Any, sites: Sequence[str]) -> tuple[str, ...]:
    """The sites, as given.

    Raises:
        ValueError: none, an unknown one, one given twice, and one that the model has not or does not read.
    """
    names = some_of("site", sites, SITES)
    for name in names:
        if reason := _why_not(model, name):
            raise ValueError(f"site: got {name} of {model.cfg.model_name}, {reason}")
    return names


def _why_not(model: Any, name: str) -> str:
    """Why a model has not such a site, or nothing."""
    if not isinstance(model, HookedLM):
        if name == "sources":
            return "a model by the generic path; expected a site that is a hook"
        missing = [own for layer in range(model.cfg.n_layers) if (own := hook_of(name, layer)) not in model.hook_dict]
        return f"which has no {missing[0]}; expected another site" if missing else ""
    cfg, attn_res = model.cfg, model.cfg.extensions.attn_res
    if name == "sources" and attn_res is None:
        return "which has no attention residuals; expected resid_pre, all that flows on there"
    if name == "resid_post" and attn_res is not None:
        return "where nothing reads it; expected sources (of the next layer), attn_out or mlp_out"
    if name == "resid_mid" and cfg.parallel_attn_mlp:
        return "whose attention and MLP are parallel, with no stream between; expected resid_pre or resid_post"
    if name.startswith("rot_") and cfg.positional_embedding_type != "rotary":
        return "whose queries and keys are not rotated; expected q or k"
    return ""


def hook_of(site: str, layer: int) -> str:
    """The full name of a site's hook."""
    return f"blocks.{layer}.{SITES[site].hook}"


def n_heads_of(cfg: Any, site: str) -> int:
    """How many cells a layer has at a site, for one place: its heads, key/value heads, or 1."""
    return {"query": cfg.n_heads, "key": cfg.kv_heads}.get(SITES[site].kind, 1)


def heads_of(cfg: Any, site: str, heads: Sequence[int] | int | None) -> tuple[int, ...]:
    """The heads of a site that are chosen; −1 alone for a site without.

    Raises:
        ValueError: a head that the site has not.
    """
    if SITES[site].kind in ("stream", "state"):
        return (WHOLE,)
    return choose(f"heads of {site}" if SITES[site].kind == "key" else "heads", heads, n_heads_of(cfg, site))


def check_heads(cfg: Any, sites: Sequence[str], heads: Sequence[int] | int | None) -> None:
    """Raise ValueError for heads that a site has not, or that no site has."""
    if heads is not None and all(SITES[site].kind in ("stream", "state") for site in sites):
        raise ValueError(f"heads: got site = {','.join(sites)}, where nothing reads them; expected a site with heads")
    for site in sites:
        heads_of(cfg, site, heads)


def places_of(pairs: PairTokens, positions: Sequence[str]) -> tuple[Place, ...]:
    """The places by name: `all`; `each`, one for every position; a number; a name that the pairs have.

    Raises:
        ValueError: none, one given twice, an unknown name, a number out of range; `each` or a number where the pairs
            are of several lengths, so that a number is not the same place in all.
    """
    names, found = [str(own) for own in as_list("position", positions)], {}
    named = {"end": pairs.last} | dict(pairs.positions)
    n = pairs.clean.shape[1]
    for name in names:
        if name == "all":
            new = {"all": None}
        elif name in named:
            new = {name: torch.as_tensor(named[name]).long()}
        elif name == "each" or name.isdecimal():
            lengths = pairs.last + 1
            if bool((lengths != lengths[0]).any()):
                got = f"{name} for pairs of {int(lengths.min())} to {int(lengths.max())} tokens"
                raise ValueError(f"position: got {got}; expected all or a named one: {', '.join(named)}")
            numbers = range(n) if name == "each" else [int(name)]
            if numbers[-1] >= n:
                raise ValueError(f"position: got {name}; expected 0…{n - 1}")
            new = {str(at): torch.full((len(pairs),), at) for at in numbers}
        else:
            raise ValueError(f"position: got {name!r}; expected all, each, a number or one of {', '.join(named)}")
        if twice := sorted(found.keys() & new.keys()):
            raise ValueError(f"position: got {','.join(names)}, {twice[0]} twice; expected each once")
        found |= new
    if not found:
        raise ValueError("position: got none; expected all, each, a number or a name")
    return tuple(Place(name, at) for name, at in found.items())


def cells_of(
    cfg: Any, sites: Sequence[str], places: Sequence[Place], heads: Sequence[int] | int | None
) -> tuple[Cell, ...]:
    """The cells of every layer, in order: those of a site together, and of these those of a place."""
    return tuple(
        Cell(site, place.name, head) for site in sites for place in places for head in heads_of(cfg, site, heads)
    )


Replace = Callable[[Tensor, Any], Tensor]


def exchanging(source: Tensor, where: Bool[Tensor, "row pos"], head: int | None, site: str) -> Replace:
    """A hook that puts `source` in the place of an activation at positions of True, of one head or of all.

    source: as the activation, or with one row for several of its batch, which it repeats.
    """

    def replace(x: Tensor, hook: Any) -> Tensor:
        other = source if len(source) == len(x) else source.repeat(len(x) // len(source), *[1] * (source.ndim - 1))
        axis = 1 if site == "pattern" else 2
        mask = where[:, None, :, None] if site == "pattern" else where.reshape(*where.shape, *[1] * (x.ndim - 2))
        if head is not None and head != WHOLE:
            is_head = torch.arange(x.shape[axis], device=x.device) == head
            mask = mask & is_head.reshape(-1, *[1] * (x.ndim - 1 - axis))
        return torch.where(mask, other.to(x.dtype), x)

    return replace
