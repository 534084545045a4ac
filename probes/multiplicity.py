"""Many tests at once: false discovery rate, family-wise error by permutation, and pooling of permutation seeds."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import scipy
from jaxtyping import Float

from probes.checks import as_numbers

# Correlations closer than this count as tied: an automorphism of a target gives the same sum in another order.
TIE_TOLERANCE = 1e-9

Alternative = Literal["greater", "less", "two-sided"]
ALTERNATIVES = ("greater", "less", "two-sided")


@runtime_checkable
class PermutationTest(Protocol):
    """What `pool_permutations` needs of a result."""

    @property
    def pvalue(self) -> float: ...
    @property
    def n_extreme(self) -> int: ...
    @property
    def n_resamples(self) -> int: ...
    @property
    def exact(self) -> bool: ...


def extremeness(statistics: np.ndarray, alternative: Alternative) -> np.ndarray:
    """The statistics turned so that larger is more extreme under `alternative`."""
    if alternative == "greater":
        return statistics
    return -statistics if alternative == "less" else np.abs(statistics)


def benjamini_hochberg(pvalues: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """Benjamini–Hochberg q-values, in the shape of `pvalues`: q₍ᵢ₎ = min over j ≥ i of m·p₍ⱼ₎/j, at most 1.

    Rejecting q ≤ α keeps the false discovery rate at α for independent or positively dependent tests. nan p-values stay
    nan and do not count in m. Raises ValueError for p outside [0, 1]. Source: Benjamini & Hochberg 1995.

    >>> benjamini_hochberg(np.array([0.01, 0.04, 0.03])).round(3).tolist()
    [0.03, 0.04, 0.04]
    """
    p = as_numbers("benjamini_hochberg", "pvalues", pvalues)
    known = p[~np.isnan(p)]
    if known.size and (known.min() < 0 or known.max() > 1):
        raise ValueError(f"benjamini_hochberg: p spans [{known.min():g}, {known.max():g}]; expected values in [0, 1]")
    q = np.full(p.shape, np.nan)
    q[~np.isnan(p)] = scipy.stats.false_discovery_control(known)
    return q


def westfall_young(
    observed: Float[np.ndarray, " k"],
    null: Float[np.ndarray, "m k"],
    *,
    alternative: Alternative = "greater",
    exact: bool = False,
) -> Float[np.ndarray, " k"]:
    """Step-down max-T p-values [k], adjusted for the family of k tests that share their m permutations.

    Hypotheses go from the most extreme statistic down; the i-th is compared with the permutation distribution of the
    maximum over itself and all less extreme ones; adjusted p are made monotone. p = (b + 1)/(m + 1), or b/m where
    `null` enumerates every permutation (`exact`). Ties within 1e-9 count. Strong control of the family-wise error
    under subset pivotality, which one target against k exchangeable sets has. nan statistics stay nan and are left out
    of the maxima. Raises ValueError where the shapes do not fit. Source: Westfall & Young 1993, algorithm 4.1.

    >>> westfall_young(np.array([3.0, 1.0]), np.array([[0.0, 2.0], [1.0, 0.0], [2.0, 1.0]])).tolist()
    [0.25, 0.75]
    """
    observed = as_numbers("westfall_young", "observed", observed)
    null = as_numbers("westfall_young", "null", null)
    if alternative not in ALTERNATIVES:
        raise ValueError(f"westfall_young: alternative is {alternative!r}; expected one of {ALTERNATIVES}")
    if observed.ndim != 1 or null.ndim != 2 or null.shape[1] != observed.size or null.shape[0] == 0:
        raise ValueError(f"westfall_young: observed {observed.shape}, null {null.shape}; expected [k] and [m ≥ 1, k]")
    adjusted = np.full(observed.size, np.nan)
    extreme = extremeness(observed, alternative)
    kept = np.flatnonzero(~np.isnan(observed))
    ascending = kept[np.argsort(extreme[kept], kind="stable")]
    counts = np.empty(ascending.size)
    maximum = np.full(null.shape[0], -np.inf)  # over the hypotheses so far: from the least extreme up
    for place, k in enumerate(ascending):
        np.maximum(maximum, extremeness(null[:, k], alternative), out=maximum)
        counts[place] = np.count_nonzero(maximum >= extreme[k] - TIE_TOLERANCE)
    p = counts / null.shape[0] if exact else (counts + 1) / (null.shape[0] + 1)
    adjusted[ascending] = np.maximum.accumulate(p[::-1])[::-1]  # from the most extreme down, never falling
    return adjusted


def pool_permutations(results: Iterable[PermutationTest]) -> float:
    """One p-value (Σb + 1)/(Σm + 1) from runs of one test with independent permutation seeds.

    Seeds are more permutations, not replicates: their p-values must not be averaged or counted as n. An exact result
    needs no pooling: its p is returned as it is. nan for an undefined statistic, whose p is nan. Raises ValueError for
    no results or results without permutations.

    >>> from types import SimpleNamespace
    >>> run = SimpleNamespace(pvalue=0.02, n_extreme=1, n_resamples=99, exact=False)
    >>> round(pool_permutations([run, run]), 4)
    0.0151
    """
    runs = list(results)
    if not runs or sum(run.n_resamples for run in runs) == 0:
        raise ValueError(
            f"pool_permutations: {len(runs)} results without permutations; expected at least one with them"
        )
    if any(np.isnan(run.pvalue) for run in runs if run.n_resamples):
        return np.nan
    for run in runs:
        if run.exact:
            return run.n_extreme / run.n_resamples
    return (sum(run.n_extreme for run in runs) + 1) / (sum(run.n_resamples for run in runs) + 1)
