"""Effects of interventions on pairs of prompts: shares of a gap with intervals over clusters of pairs, and one test for
every cell of a map."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int

from probes.bootstrap import ConfidenceInterval, ratio_limits
from probes.checks import as_numbers
from probes.multiplicity import westfall_young

LEAST_GAP = 3.0  # standard errors of its mean that a gap must be from 0 for a share of it to be defined


@dataclass(frozen=True)
class Gap:
    """The mean of a measure's difference between two sides of pairs, the unit of `Recovery`."""

    mean: float
    stderr: float
    """over clusters; nan for one"""
    interval: ConfidenceInterval
    """95 %, over clusters"""
    n_pairs: int
    n_clusters: int

    @property
    def is_defined(self) -> bool:
        """Whether a share of it means something: |mean| ≥ 3 standard errors."""
        return bool(abs(self.mean) >= LEAST_GAP * self.stderr)


@dataclass(frozen=True)
class Recovery:
    """Shares of a gap that interventions bring about, one entry a cell."""

    share: Float64[np.ndarray, " cell"]
    """Σ effects / Σ gaps; nan where a cell was not measured or the gap is not defined"""
    low: Float64[np.ndarray, " cell"]
    high: Float64[np.ndarray, " cell"]
    gap: Gap


def mean_gap(
    gaps: Float[np.ndarray, " pair"],
    rng: np.random.Generator,
    clusters: Int[np.ndarray, " pair"] | None = None,
    n_draws: int = 2000,
) -> Gap:
    """The mean gap of pairs, with its standard error and 95 % interval over clusters.

    Mean Σ_c G_c / Σ_c n_c, G_c and n_c a cluster's sum and size; standard error √(k/(k−1) Σ_c (G_c − n_c·mean)²) / n
    of k clusters, n pairs (the linearised one of a ratio); interval: `ratio_limits` over clusters, whose words on few
    units hold.

    Args:
        gaps: what one side's measure is above the other's, each pair.
        clusters: a number for each pair; pairs of one number are resampled together. By default each is its own.

    Raises:
        ValueError: no pairs, values that are not finite, clusters of another shape.

    >>> mean_gap(np.array([1.0, 2.0, 3.0]), np.random.default_rng(0)).mean
    2.0
    """
    gaps, own = _checked("mean_gap", gaps[None], gaps, clusters)
    sums, sizes = _by_cluster(gaps, own)[0], np.bincount(own).astype(np.float64)
    n, k, mean = gaps.shape[1], len(sizes), float(gaps.mean())
    stderr = math.sqrt(k / (k - 1) * float(np.square(sums - sizes * mean).sum())) / n if k > 1 else math.nan
    low, high = ratio_limits(sums[None], sizes, rng, n_draws)
    return Gap(mean, stderr, ConfidenceInterval(float(low[0]), float(high[0])), n, k)


def recovery(
    effects: Float[np.ndarray, "cell pair"],
    gaps: Float[np.ndarray, " pair"],
    rng: np.random.Generator,
    clusters: Int[np.ndarray, " pair"] | None = None,
    n_draws: int = 2000,
) -> Recovery:
    """Share of the gap that each cell's intervention brings about, Σ effects / Σ gaps; 95 % intervals over clusters.

    Numerator and denominator are drawn together (`ratio_limits`: expanded percentile bootstrap). A ratio of sums and
    never a mean of ratios, which a pair of small gap would rule. nan where the gap's mean is less than three of its
    standard errors from 0, and for cells of nan.

    Args:
        effects: change of the measure by each intervention, each pair; a cell of nan was not measured.
        gaps: the whole difference of each pair, `mean_gap`.

    Raises:
        ValueError: as `mean_gap`; a cell that is nan in some pairs only.

    >>> found = recovery(np.array([[1.0, 2.0, 1.5]]), np.array([2.0, 4.0, 3.0]), np.random.default_rng(0))
    >>> found.share.tolist()
    [0.5]
    """
    gap = mean_gap(gaps, rng, clusters, n_draws)
    effects, own = _checked("recovery", effects, gaps, clusters)
    share, low, high = (np.full(len(effects), np.nan) for _ in range(3))
    is_known = ~np.isnan(effects).any(axis=1)
    if gap.is_defined and is_known.any():
        sums, denominator = _by_cluster(effects[is_known], own), _by_cluster(np.asarray(gaps)[None], own)[0]
        share[is_known] = sums.sum(1) / denominator.sum()
        low[is_known], high[is_known] = ratio_limits(sums, denominator, rng, n_draws)
    return Recovery(share, low, high, gap)


def sign_flip_test(
    effects: Float[np.ndarray, "cell pair"],
    rng: np.random.Generator,
    clusters: Int[np.ndarray, " pair"] | None = None,
    n_draws: int = 2000,
) -> Float64[np.ndarray, " cell"]:
    """p-value of each cell's mean effect being 0, adjusted for all cells of the map, two-sided.

    Statistic |Σ_c E_c| / √(Σ_c E_c²), E_c a cluster's sum of effects. Under the null each cluster's effects are as
    likely with the other sign; the same signs for all cells keep their dependence, and `westfall_young` (step-down
    max-T) holds the family-wise error. nan for cells of nan; a cell without any effect has p 1.

    Raises:
        ValueError: as `recovery`.

    >>> p = sign_flip_test(np.array([[1.0] * 12, [1.0, -1.0] * 6]), np.random.default_rng(0))
    >>> (p < 0.05).tolist()
    [True, False]
    """
    effects, own = _checked("sign_flip_test", effects, None, clusters)
    sums = _by_cluster(effects, own)
    scale = np.sqrt(np.square(sums).sum(axis=1))
    unit = np.divide(sums, scale[:, None], out=np.zeros_like(sums), where=scale[:, None] > 0)
    unit[np.isnan(scale)] = np.nan
    signs = rng.choice([-1.0, 1.0], size=(n_draws, sums.shape[1]))
    known = ~np.isnan(scale)
    p = np.full(len(effects), np.nan)
    if known.any():
        p[known] = westfall_young(unit[known].sum(1), signs @ unit[known].T, alternative="two-sided")
    return p


def _checked(
    who: str, effects: np.ndarray, gaps: np.ndarray | None, clusters: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """(effects in float64, cluster of each pair numbered from 0)."""
    effects = as_numbers(who, "effects", effects)
    if effects.ndim != 2 or effects.shape[1] == 0:
        raise ValueError(f"{who}: got effects of shape {effects.shape}; expected [cell, pair], one pair or more")
    n = effects.shape[1]
    if gaps is not None and (np.shape(gaps) != (n,) or not np.isfinite(gaps).all()):
        raise ValueError(f"{who}: got gaps of shape {np.shape(gaps)}; expected {n} finite numbers, one for each pair")
    is_missing = np.isnan(effects)
    if (is_missing.any(axis=1) & ~is_missing.all(axis=1)).any():
        raise ValueError(f"{who}: got a cell that is nan in some pairs only; expected all or none of it measured")
    if clusters is None:
        return effects, np.arange(n)
    if np.shape(clusters) != (n,):
        raise ValueError(f"{who}: got clusters of shape {np.shape(clusters)}; expected {n}, one for each pair")
    return effects, np.unique(clusters, return_inverse=True)[1].reshape(-1)


def _by_cluster(values: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """Sums [row cluster] of values [row pair]."""
    sums = np.zeros((int(clusters.max()) + 1, len(values)))
    np.add.at(sums, clusters, values.T)
    return sums.T
