"""How far a Mantel p depends on which permutations were drawn: several seeds of them, and all of them pooled."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float64
from scipy.stats import binomtest

import probes
from probes.permutations import EXACT_UP_TO, random_permutations
from workbench.analyses.probe.settings import N_PERMUTATIONS, N_SEEDS
from workbench.data.concepts import ConceptSet
from workbench.models.checks import middle_layer

PREFIX = "years"  # of the sets that are tested: those whose spelling goes with their order
POOLED = -1  # permutation_seed of the row of all seeds together


def is_repeated(one: ConceptSet) -> bool:
    """Whether a set's tests are done over several seeds: one of years, with a topology."""
    return one.name.startswith(PREFIX) and one.topology not in ("free", "paired")


def stability_rows(
    key: Mapping[str, Any],
    one: ConceptSet,
    xs: Float64[np.ndarray, "state pair"],
    target: Float64[np.ndarray, "n n"],
    *,
    n_seeds: int = N_SEEDS,
    n_permutations: int = N_PERMUTATIONS,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """mantel_stability's rows of one model and set, at the middle layer: for r and for partial_r given the spelling, a
    row a permutation seed, then one of all seeds, (Σb + 1)/(Σm + 1).

    r is a function of the distances; permutations make only p. All seeds' permutations are independent and uniform, so
    that the number of extreme ones is binomial and its Clopper–Pearson interval exact: p_low and p_high are the 95 %
    limits of the share of all permutations that are extreme. Of 8 items or fewer every permutation is taken, and the
    pooled row stands alone. nan for a correlation that is undefined; no row of partial_r where all pairs of words are
    equally far apart in spelling.

    Args:
        key: the columns model and seed.
        xs: condensed distances between the words' states, the embedding's first.
        target: their distances by the set's topology.
        n_seeds, n_permutations: seeds, and permutations of each.
        seed: permutation_seed i is drawn from (seed, name of the set, i).
    """
    layer = middle_layer(len(xs) - 1)
    x = xs[layer + 1]
    n, number = len(target), zlib.crc32(one.name.encode())
    spelling = probes.levenshtein_distances(one.words)
    drawn: list[np.ndarray | None] = [None]
    if n > EXACT_UP_TO:
        rngs = (np.random.default_rng([seed, number, i]) for i in range(n_seeds))
        drawn = [random_permutations(rng, n_permutations, n) for rng in rngs]
    tests: dict[str, list[probes.MantelResult]] = {
        "r": [probes.mantel(x, target, permutations=permutations, rng=0) for permutations in drawn]
    }
    if np.ptp(spelling[np.triu_indices(n, 1)]) > 0:
        tests["partial_r"] = [
            probes.partial_mantel(x, target, spelling, permutations=permutations, rng=0) for permutations in drawn
        ]
    rows = []
    for measure, runs in tests.items():
        own = dict(key) | {"set": one.name, "layer": layer, "measure": measure, "value": runs[0].statistic}
        if not runs[0].exact:
            rows += [own | {"permutation_seed": i} | _tail([run]) for i, run in enumerate(runs)]
        rows.append(own | {"permutation_seed": POOLED} | _tail(runs))
    return rows


def _tail(runs: list[probes.MantelResult]) -> dict[str, Any]:
    """Permutations, extreme ones, p, and the limits of the share that is extreme."""
    m, p = sum(run.n_resamples for run in runs), probes.pool_permutations(runs)
    if math.isnan(p):
        counted: dict[str, Any] = {"n_extreme": math.nan, "p_low": math.nan, "p_high": math.nan}
    else:
        b = sum(run.n_extreme for run in runs)
        limits = (p, p) if runs[0].exact else binomtest(b, m).proportion_ci(0.95, "exact")
        counted = {"n_extreme": b, "p_low": float(limits[0]), "p_high": float(limits[1])}
    return {"n_permutations": m, "p": p} | counted
