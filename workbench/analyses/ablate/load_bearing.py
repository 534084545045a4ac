"""Whether a head is load-bearing: an exact permutation test of exchangeable heads, whose p is then at most .05.

Null hypothesis: the heads of a layer are exchangeable, in each replicate by itself: giving them other numbers, drawn
for each replicate and layer on its own, leaves the joint distribution of all impacts as it is. Statistic of a head:
how far its impact lies above its layer's mean, summed over the replicates, in units of what the permutations spread it,

    T[ℓ,h] = Σ_r (d[r,ℓ,h] − d̄[r,ℓ]) / √(Σ_r Var_h d[r,ℓ,·])

p of a head is (1 + the number of permutations whose largest T over all heads of all layers reaches T[ℓ,h]) / (1 + the
number of permutations): exact for the family of all heads whatever impacts are distributed like and however layers
depend on each other (Westfall & Young 1993, max-T). The denominator does not change under the permutations. With few
replicates p is coarse: R tops of n_heads meet in one head once in n_heads^(R − 1) permutations, and no p is below that.

What a replicate is decides what is asked. Sequences of one model: does this head matter more than its neighbours on
this text, again and again? Models: is it a head of the same number in every one? The heads of a layer are exchangeable
in models from independent initialisations by their symmetry alone, so there a small p wants a common start.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float, Float64

from workbench.analyses.ablate.impacts import of_heads
from workbench.analyses.ablate.records import SequenceLosses

N_PERMUTATIONS = 1999
LOAD_BEARING_UP_TO = 0.05  # p of a load-bearing head
_DRAWS_HELD = 1 << 22  # permuted impacts held at once


def standing_apart(
    impacts: Float[np.ndarray, "replicate layer head"], rng: np.random.Generator, n_permutations: int = N_PERMUTATIONS
) -> tuple[Float64[np.ndarray, "layer head"], Float64[np.ndarray, "layer head"]]:
    """(T, p adjusted for all heads of all layers); nan in a layer whose heads never differ.

    Raises:
        ValueError: not [replicate layer head], fewer than 2 replicates or heads, impacts that are not finite, or fewer
            than 99 permutations.
    """
    d = np.asarray(impacts, dtype=np.float64)
    if d.ndim != 3 or d.shape[0] < 2 or d.shape[1] < 1 or d.shape[2] < 2:
        raise ValueError(f"load_bearing: impacts have shape {d.shape}; expected [replicate ≥ 2, layer, head ≥ 2]")
    if not np.isfinite(d).all():
        raise ValueError("load_bearing: impacts hold inf or nan; expected finite numbers")
    if n_permutations < 99:
        raise ValueError(f"n_permutations: got {n_permutations}; expected at least 99")
    deviation = d - d.mean(-1, keepdims=True)
    spread = np.sqrt((deviation**2).mean(-1).sum(0))  # [layer]
    with np.errstate(invalid="ignore", divide="ignore"):
        scaled = np.where(spread[:, None] > 1e-12 * np.abs(d).max(), deviation / spread[:, None], np.nan)
    found = scaled.sum(0)
    known = ~np.isnan(found).any(-1)
    if not known.any():
        return found, found
    largest = _largest_of_permutations(scaled[:, known], rng, n_permutations)
    # a permutation that gives the same assignment adds up in another order
    reached = (largest[:, None, None] >= found - 1e-9).sum(0)
    return found, np.where(known[:, None], (1 + reached) / (1 + n_permutations), np.nan)


def _largest_of_permutations(
    scaled: Float64[np.ndarray, "replicate layer head"], rng: np.random.Generator, n: int
) -> Float64[np.ndarray, " permutation"]:
    """max T of n relabellings, drawn for each replicate and layer."""
    size = max(1, _DRAWS_HELD // scaled.size)
    parts = []
    for start in range(0, n, size):
        shape = (min(size, n - start), *scaled.shape)
        order = rng.random(shape, dtype=np.float32).argsort(-1)
        permuted = np.take_along_axis(np.broadcast_to(scaled, shape), order, -1)
        parts.append(permuted.sum(1).max((1, 2)))
    return np.concatenate(parts)


def load_bearing(losses: SequenceLosses, seed: int = 0, *, n_permutations: int = N_PERMUTATIONS) -> pd.DataFrame:
    """One row per head, sequences as replicates: layer, head, impact_pct, statistic, p.

    impact of a sequence is its own change of loss, in per cent of the mean base loss.

    Raises:
        ValueError: no rows of heads, other heads in some layers than in others, or as `standing_apart`.
    """
    rows = [i for i, part in enumerate(losses.parts) if part.component == "head"]
    layers = sorted({int(losses.layers[i]) for i in rows})
    heads = sorted({int(losses.heads[i]) for i in rows})
    if not rows or len(rows) != len(layers) * len(heads):
        raise ValueError(
            f"load_bearing: {len(rows)} rows of heads; expected the same heads, at least one, of every layer"
        )
    change = 100 * (losses.ablated[rows] - losses.base) / losses.base.mean()
    impacts = change.numpy().reshape(len(layers), len(heads), -1).transpose(2, 0, 1)
    return _table(impacts, layers, heads, seed, n_permutations)


def load_bearing_over_models(
    ablation_results: pd.DataFrame, seed: int = 0, *, n_permutations: int = N_PERMUTATIONS
) -> pd.DataFrame:
    """One row per head, models as replicates: layer, head, impact_pct (mean), statistic, p; of one kind of ablation.

    Args:
        ablation_results: rows of several (model, seed), each a replicate; rows of whole layers and MLPs are left out.

    Raises:
        ValueError: several kinds; models with other heads than each other's; or as `standing_apart`.
    """
    table = of_heads(ablation_results)
    kinds = sorted(set(table["kind"]))
    if len(kinds) != 1:
        raise ValueError(f"load_bearing: the table has the kinds {', '.join(map(str, kinds))}; expected one")
    wide = table.pivot(index=["model", "seed"], columns=["layer", "head"], values="impact_pct").sort_index(axis=1)
    layers, heads = (sorted(set(wide.columns.get_level_values(name))) for name in ("layer", "head"))
    if wide.shape[1] != len(layers) * len(heads) or bool(wide.isna().to_numpy().any()):
        raise ValueError("load_bearing: models or layers with different heads; expected the same heads in all")
    impacts = wide.to_numpy().reshape(len(wide), len(layers), len(heads))
    return _table(impacts, layers, heads, seed, n_permutations)


def _table(impacts: np.ndarray, layers: Sequence[int], heads: Sequence[int], seed: int, n: int) -> pd.DataFrame:
    statistic, p = standing_apart(impacts, np.random.default_rng([seed, 3]), n)
    return pd.DataFrame(
        {
            "layer": np.repeat(layers, len(heads)),
            "head": np.tile(heads, len(layers)),
            "impact_pct": impacts.mean(0).ravel(),
            "statistic": statistic.ravel(),
            "p": p.ravel(),
        }
    )
