"""How a concept's state moves through the layers, and how pairs of concepts differ in parallel.

A state's displacement at layer ℓ is d_ℓ = h_{ℓ+1} − h_ℓ. Read cosines of displacements against both nulls: independent
states give −½ at lag 1 (d_ℓ and d_{ℓ+1} share h_{ℓ+1} with opposite signs) and 0 beyond, a random walk 0 at every lag.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Real

from probes.checks import ConstantInputWarning, as_matrix, as_numbers, as_real, centered, warn
from probes.multiplicity import TIE_TOLERANCE
from probes.permutations import plan_permutations

BATCH_VALUES = 1 << 22
PROJECTED_AWAY = 1e-12  # of σ₁: shorter differences of projected states are rounding
MAX_GRAM_PAIRS = 40  # pairs up to which all n⁴ cosines between differences are kept: 20 MiB


@dataclass(frozen=True)
class TrajectoryNulls:
    """Lag decays [n_draws, n_lags] drawn under both nulls; column k − 1 is lag k, column 0 the consistency."""

    independent_states: Float[np.ndarray, "n_draws n_lags"]
    random_walk: Float[np.ndarray, "n_draws n_lags"]


@dataclass(frozen=True)
class Crystallisation:
    """The first layer that reaches `share` of the maximum over layers, and that maximum; layers are positions in r."""

    layer: float
    maximum: float
    layer_of_maximum: float
    share: float


@dataclass(frozen=True)
class ParallelismResult:
    """Mean pairwise cosine of pair differences against shuffled pairs.

    `null_mean`, `null_std` and `pvalue` are of the permutation distribution; other fields as in `MantelResult`.
    """

    statistic: float
    pvalue: float
    null_mean: float
    null_std: float
    n: int
    n_resamples: int
    exact: bool
    min_pvalue: float
    n_ties: int
    n_extreme: int
    n_removed_components: int
    warnings: tuple[str, ...]


def trajectory_consistency(states: Real[np.ndarray, "*concepts n_states d"]) -> float:
    """The mean cosine of successive displacements over layers (and concepts), in [−1, 1].

    states [..., n_states, d] in the order of depth, n_states ≥ 3, any unit. Positive: the state keeps going; −½ is what
    unrelated states give, 0 a random walk (`trajectory_nulls` draws both for your shape). Cosines with a displacement
    of 0 are undefined and left out, with a `ConstantInputWarning`; nan if none is left. Raises ValueError for fewer
    than 3 states, NaN or inf.

    >>> round(trajectory_consistency(np.outer(np.arange(4.0), np.ones(2))), 12)
    1.0
    """
    return float(_lag_cosines("trajectory_consistency", states, 1)[0])


def lag_decay(
    states: Real[np.ndarray, "*concepts n_states d"], max_lag: int | None = None
) -> Float[np.ndarray, " max_lag"]:
    """Mean cos(d_ℓ, d_{ℓ+k}) over layers (and concepts) for lags k = 1 … `max_lag` (all, n_states − 2, by default).

    Entry 0 is `trajectory_consistency`. Nulls, nan and errors as there; raises ValueError for max_lag out of range.

    >>> lag_decay(np.array([[0.0], [1.0], [0.0], [1.0]])).tolist()
    [-1.0, 1.0]
    """
    return _lag_cosines("lag_decay", states, max_lag)


def trajectory_nulls(
    n_states: int,
    d: int,
    *,
    n_concepts: int = 1,
    max_lag: int | None = None,
    n_draws: int = 1000,
    rng: np.random.Generator | int | None = None,
) -> TrajectoryNulls:
    """Lag decays drawn under both nulls, for `n_concepts` trajectories of `n_states` isotropic normal states in d.

    Independent states: h_ℓ drawn anew at each layer, mean −½ at lag 1 as d grows (−⅓ at d = 1), 0 beyond. Random
    walk: h_ℓ the sum of ℓ such draws, 0 everywhere. The spread is what n_states, d and n_concepts leave to chance.
    Raises ValueError for n_states < 3, d < 1, n_concepts < 1, n_draws < 1.

    >>> trajectory_nulls(4, 8, n_draws=10, rng=0).random_walk.shape
    (10, 2)
    """
    if n_states < 3 or min(d, n_concepts, n_draws) < 1:
        raise ValueError(
            f"trajectory_nulls: n_states {n_states}, d {d}, n_concepts {n_concepts}, n_draws {n_draws}; "
            "expected n_states ≥ 3 and the others ≥ 1"
        )
    rng = np.random.default_rng(rng)
    n_lags = _checked_max_lag("trajectory_nulls", n_states, max_lag)
    independent, walk = np.empty((n_draws, n_lags)), np.empty((n_draws, n_lags))
    for draw in range(n_draws):
        steps = rng.standard_normal((n_concepts, n_states, d))
        independent[draw] = lag_decay(steps, n_lags)
        walk[draw] = lag_decay(np.cumsum(steps, axis=1), n_lags)
    return TrajectoryNulls(independent, walk)


def _checked_max_lag(who: str, n_states: int, max_lag: int | None) -> int:
    if max_lag is None:
        return n_states - 2
    if not 1 <= max_lag <= n_states - 2:
        raise ValueError(f"{who}: max_lag is {max_lag}; expected 1 … {n_states - 2} for {n_states} states")
    return max_lag


def _lag_cosines(who: str, states: object, max_lag: int | None) -> np.ndarray:
    values = as_real(who, "states", states)
    if values.ndim < 2 or values.shape[-2] < 3:
        raise ValueError(f"{who}: states has shape {values.shape}; expected [..., n_states, d], n_states ≥ 3")
    n_lags = _checked_max_lag(who, values.shape[-2], max_lag)
    displacements = np.diff(values, axis=-2)
    largest = np.abs(displacements).max(axis=-1, keepdims=True)
    is_still = largest == 0
    scaled = displacements / np.where(is_still, 1.0, largest)  # no square over- or underflows
    units = scaled / np.where(is_still, 1.0, np.linalg.norm(scaled, axis=-1, keepdims=True))
    if is_still.any():
        message = f"{who}: {int(is_still.sum())} displacements are 0; their cosines are left out"
        warn(ConstantInputWarning, message, stacklevel=4)
    moves = ~is_still[..., 0]
    decay = np.full(n_lags, np.nan)
    for lag in range(1, n_lags + 1):
        is_defined = moves[..., :-lag] & moves[..., lag:]
        if is_defined.any():
            cosines = np.einsum("...ld,...ld->...l", units[..., :-lag, :], units[..., lag:, :])
            decay[lag - 1] = cosines[is_defined].mean()
    return np.clip(decay, -1, 1)


def crystallisation(r: Real[np.ndarray, " n_layers"], share: float = 0.9) -> Crystallisation:
    """The first layer whose Mantel correlation reaches `share` of its maximum over layers.

    r [n_layers] in the order of depth; layers are counted from 0 in r (hook_embed, if it comes first, is 0). nan
    entries are passed over. All nan, with a `ConstantInputWarning`, where no r is above 0: nothing has crystallised.
    Raises ValueError for a share outside (0, 1] or r that is not one-dimensional.

    >>> crystallisation(np.array([0.1, 0.5, 0.95, 1.0])).layer
    2.0
    """
    values = as_numbers("crystallisation", "r", r)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"crystallisation: r has shape {values.shape}; expected correlations or nan, [n_layers ≥ 1]")
    if np.isinf(values).any():
        raise ValueError("crystallisation: r holds inf; expected correlations or nan")
    if not 0 < share <= 1:
        raise ValueError(f"crystallisation: share is {share}; expected a number in (0, 1]")
    known = np.where(np.isnan(values), -np.inf, values)
    maximum = known.max()
    if maximum <= TIE_TOLERANCE:  # a correlation of 0 may be rounded to either side
        warn(ConstantInputWarning, "crystallisation: no correlation is above 0; the layer is undefined (nan)")
        return Crystallisation(np.nan, np.nan, np.nan, share)
    # A tie in rounding must not move the layer.
    layer = np.argmax(known >= share * maximum - TIE_TOLERANCE)
    return Crystallisation(float(layer), float(maximum), float(np.argmax(known)), share)


def pair_parallelism(
    first: Real[np.ndarray, "n d"],
    second: Real[np.ndarray, "n d"],
    *,
    n_removed_components: int = 0,
    n_resamples: int = 9999,
    rng: np.random.Generator | int | None = None,
) -> ParallelismResult:
    """The mean pairwise cosine of the differences second − first over n pairs (antonyms), against shuffled pairs.

    (‖Σᵢ uᵢ‖² − n)/(n(n − 1)) with uᵢ the unit difference of pair i. Null: the second members are permuted among the
    pairs, all n! ways for n ≤ 8, p = (b + 1)/(m + 1) or b/n!, one-sided greater, ties within 1e-9. The null's mean is
    not 0: if the second members as a whole lie elsewhere than the first, any pairing shows that common shift. Hence
    also `n_removed_components`: that many leading principal components of all 2n centred states are projected out
    first (1 removes the shared axis that anisotropy makes).

    A permutation that pairs coinciding states (difference 0, or without the components no more than rounding leaves)
    counts as extreme, which is cautious. nan and a `ConstantInputWarning` where a given pair coincides. Raises
    ValueError for unequal shapes, fewer than 3 pairs, NaN or inf, and more components than 2n centred states in d
    dimensions can have beside another.

    >>> round(pair_parallelism(np.eye(4), np.eye(4) + 1).statistic, 12)
    1.0
    """
    a = as_matrix("pair_parallelism", "first", first, min_rows=3)
    b = as_matrix("pair_parallelism", "second", second, min_rows=3)
    if a.shape != b.shape:
        raise ValueError(f"pair_parallelism: first is {a.shape} and second {b.shape}; expected equal shapes [n, d]")
    n = len(a)
    a, b, floor = _without_leading_components(a, b, n_removed_components)
    plan = plan_permutations("pair_parallelism", n, n_resamples=n_resamples, exact="auto", permutations=None, rng=rng)
    units = _unit_differences(a, b, floor)
    statistic_of = _mean_pairwise_cosine(units)
    observed = float(statistic_of(np.arange(n)[None])[0])
    notes: tuple[str, ...] = ()
    if np.isnan(observed):
        message = "pair_parallelism: a pair's members coincide; its direction is undefined (nan)"
        notes = (warn(ConstantInputWarning, message),)
    if notes or plan.n_resamples == 0:
        return ParallelismResult(
            observed, np.nan, np.nan, np.nan, n, plan.n_resamples, plan.exact, np.nan, 0, 0, n_removed_components, notes
        )
    size = max(1, BATCH_VALUES // units.shape[-1] // n)
    null = np.concatenate([statistic_of(batch) for batch in plan.batches(size)])
    known = null[~np.isnan(null)]
    null = np.where(np.isnan(null), np.inf, null)
    n_extreme = int(np.sum(null >= observed - TIE_TOLERANCE))
    n_ties = n_extreme - int(np.sum(null > observed + TIE_TOLERANCE))
    if plan.exact:
        pvalue = n_extreme / plan.n_resamples
        smallest = int(np.sum(null >= known.max() - TIE_TOLERANCE)) / plan.n_resamples
    else:
        pvalue, smallest = (n_extreme + 1) / (plan.n_resamples + 1), 1 / (plan.n_resamples + 1)
    return ParallelismResult(
        observed, pvalue, float(known.mean()), float(known.std()), n, plan.n_resamples, plan.exact,
        smallest, n_ties, n_extreme, n_removed_components, (),
    )  # fmt: skip


def _without_leading_components(a: np.ndarray, b: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Both sets less their projections on the k leading principal components of all states together, and the length up
    to which a difference of these is what the projection rounds."""
    if k == 0:
        return a, b, 0.0
    together = centered(np.concatenate([a, b]))
    limit = min(together.shape[0] - 1, together.shape[1]) - 1
    if not 0 < k <= limit:
        raise ValueError(f"pair_parallelism: n_removed_components is {k}; expected 0 … {limit}")
    _, sigma, directions = np.linalg.svd(together, full_matrices=False)
    rest = together - (together @ directions[:k].T) @ directions[:k]
    return rest[: len(a)], rest[len(a) :], float(PROJECTED_AWAY * sigma[0])


def _unit_differences(a: np.ndarray, b: np.ndarray, floor: float) -> np.ndarray:
    """(bⱼ − aᵢ)/‖bⱼ − aᵢ‖ for all i, j, [n, n, d]; nan where a state coincides with its partner: no longer than
    `floor`."""
    difference = b[None] - a[:, None]
    scale = np.abs(difference).max()
    norm = np.linalg.norm(difference / (scale if scale > 0 else 1.0), axis=-1, keepdims=True) * scale
    return np.where(norm > floor, difference / np.where(norm > 0, norm, 1.0), np.nan)


def _mean_pairwise_cosine(units: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """The function from pairings [m, n] to their mean pairwise cosines [m]: through all cosines between differences
    where these are few, else through the sum of the chosen differences."""
    n, d = units.shape[1:]

    def by_sums(pairings: np.ndarray) -> np.ndarray:
        total = sum(units[i, pairings[:, i]] for i in range(n))
        return (np.einsum("md,md->m", total, total) - n) / (n * (n - 1))

    if n > min(d, MAX_GRAM_PAIRS):
        return by_sums
    every = units.reshape(n * n, d)
    cosines = every @ every.T
    rows = n * np.arange(n)

    def by_cosines(pairings: np.ndarray) -> np.ndarray:
        place = pairings + rows
        total = sum(cosines[place[:, i], place[:, j]] for i in range(n) for j in range(i))
        return 2 * np.asarray(total) / (n * (n - 1))

    return by_cosines
