"""Cells whose exchange between two prompts is estimated and measured: sites of `patch` that have a gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from workbench.analyses.patch.sites import WHOLE, heads_of
from workbench.analyses.patch.sites import check_sites as check_patched
from workbench.models.checks import some_of

SITES = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "z", "q", "k", "v")


class Cell(NamedTuple):
    """A site of a layer, and its head where it has heads."""

    site: str
    layer: int
    head: int


def cells_of(cfg: Any, sites: Sequence[str], layers: Sequence[int]) -> list[Cell]:
    """All cells of these sites and layers."""
    return [Cell(site, layer, head) for site in sites for layer in layers for head in heads_of(cfg, site, None)]


def check_sites(model: Any, sites: Sequence[str]) -> tuple[str, ...]:
    """The sites, as given.

    Raises:
        ValueError: as `patch.sites.check_sites`, and one that has no hook or no gradient of its own.
    """
    return check_patched(model, some_of("site", sites, SITES))


__all__ = ["SITES", "WHOLE", "Cell", "cells_of", "check_sites"]
