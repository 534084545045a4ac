"""Feature absorption: words on which a concept's own features stay silent while another feature carries the concept.

Chanin et al. 2024, "A is for Absorption": an SAE gains sparsity where a feature of a single word holds the direction
"begins with s" too, and the feature of that letter does not fire on the word.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae.config import as_list

MIN_COSINE = 0.025
MIN_SHARE = 0.4


class Absorbed(NamedTuple):
    """Of each word, whether the concept is absorbed, and by what."""

    is_absorbed: Bool[Tensor, " words"]
    feature: Int[Tensor, " words"]
    """The feature, none of the main ones, that adds most along the probe."""
    share: Float[Tensor, " words"]
    """Of the word's own projection, what that feature adds; nan where the projection is not above 0."""


def find_absorbed(
    acts: Float[Tensor, "words d_sae"],
    directions: Float[Tensor, "d_sae d_in"],
    x: Float[Tensor, "words d_in"],
    probe: Float[Tensor, " d_in"],
    main: Sequence[int] | int,
    *,
    min_cosine: float = MIN_COSINE,
    min_share: float = MIN_SHARE,
) -> Absorbed:
    """The words on which the concept of the probe is absorbed.

    With p̂ = probe/‖probe‖, feature j adds f_j (d_j·p̂) to the projection x·p̂. A word is absorbed if no main feature
    fires on it, and of the others the one that adds most has cos(d_j, p̂) ≥ min_cosine and adds at least min_share of
    x·p̂ > 0. Source: Chanin et al. 2024 with SAEBench's share in place of the effect of ablations; there f_j cos(d_j, p̂)
    stands for what a feature adds, which holds for decoder rows of norm 1 alone, and x·p̂ has the decoder's bias in it.

    Args:
        directions: d_j, what one unit of each activation adds (`StackedSAE.directions`).
        x: what the SAE read, less its reconstruction without any feature.
        main: the concept's own features.

    Raises:
        ValueError: shapes that do not fit, a probe of zeros, or main features that are none, or all, of the SAE's.
    """
    n_words, d_sae = acts.shape
    d_in = len(probe)
    if directions.shape != (d_sae, d_in) or x.shape != (n_words, d_in):
        shapes = f"directions {tuple(directions.shape)}, x {tuple(x.shape)}"
        raise ValueError(f"find_absorbed: got {shapes}; expected {(d_sae, d_in)} and {(n_words, d_in)}")
    chosen = sorted({int(j) for j in as_list("find_absorbed: main", main)})
    if not chosen or chosen[0] < 0 or chosen[-1] >= d_sae or len(chosen) == d_sae:
        raise ValueError(f"find_absorbed: got main features {chosen}; expected some, not all, of {d_sae}")
    length = probe.double().norm()
    if not float(length) > 0:
        raise ValueError("find_absorbed: got a probe of zeros; expected a direction")
    unit, d = probe.double() / length, directions.double()
    along = d @ unit
    added = acts.double() * along
    added[:, chosen] = -torch.inf
    top, feature = added.max(dim=1)
    whole = x.double() @ unit
    share = torch.where(whole > 0, top / whole, torch.nan)
    cosine = along / d.norm(dim=1).clamp_min(torch.finfo(torch.float64).tiny)
    is_silent = ~(acts[:, chosen] > 0).any(dim=1)
    return Absorbed(is_silent & (cosine[feature] >= min_cosine) & (share >= min_share), feature, share)
