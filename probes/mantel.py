"""Mantel tests: do two sets of distances between the same items agree more than relabelled items would?

`mantel` takes one pair, `mantel_many` one target against many layers and models, `partial_mantel` one pair given a
third. All give distances that differ by rounding the same rank, permute rows and columns jointly, count statistics
within 1e-9 of the observed one as ties, and give (b + 1)/(m + 1), or the exact b/n! where every permutation is
enumerated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import factorial
from typing import Any, Literal

import numpy as np
import scipy
from jaxtyping import Float, Integer, Real

from probes.bootstrap import ConfidenceInterval, ItemBootstrap, partial_correlation
from probes.checks import ConstantInputWarning, warn
from probes.condensed import condensed, condensed_stack, is_constant, spread
from probes.multiplicity import ALTERNATIVES, TIE_TOLERANCE, Alternative, extremeness, westfall_young
from probes.permutations import PermutationPlan, permuted_sums, plan_permutations

Distances = Real[np.ndarray, "*_square_or_condensed"]
Method = Literal["spearman", "pearson"]
METHODS = ("spearman", "pearson")


@dataclass(frozen=True)
class MantelResult:
    """A Mantel correlation with its permutation p-value.

    `min_pvalue` is the smallest p this design can give: for an exact test the share of permutations that reach the
    extreme of the permutation distribution (2n of n! for a cyclic target), else max(1/(m + 1), 1/n!). `n_ties` counts
    permutations that tie with the observed statistic (an exact test counts the identity too), `n_extreme` those at
    least as extreme, ties among them. `confidence_interval` is drawn on first use, from a seed fixed with the result.
    """

    statistic: float
    pvalue: float
    n: int
    n_resamples: int
    alternative: Alternative
    method: Method
    exact: bool
    min_pvalue: float
    n_ties: int
    n_extreme: int
    warnings: tuple[str, ...]
    bootstrap: ItemBootstrap = field(repr=False, compare=False)

    @cached_property
    def confidence_interval(self) -> ConfidenceInterval:
        """95 % percentile interval over items, self-pairs dropped (see `ItemBootstrap` for its coverage).

        nan below five items or for an undefined statistic.
        """
        if np.isnan(self.statistic):
            return ConfidenceInterval(np.nan, np.nan)
        low, high = self.bootstrap.interval()
        return ConfidenceInterval(float(low[0]), float(high[0]))


@dataclass(frozen=True)
class PartialMantelResult(MantelResult):
    """A partial Mantel correlation; `r2` is its square, and the three plain correlations stand beside it."""

    r2: float
    r_xy: float
    r_xz: float
    r_yz: float


@dataclass(frozen=True, kw_only=True)
class _ManyTests:
    """What tests of many matrices have in common, one entry per matrix; the fields as in `MantelResult`."""

    statistic: Float[np.ndarray, " k"]
    pvalue: Float[np.ndarray, " k"]
    n: int
    n_resamples: int
    alternative: Alternative
    method: Method
    exact: bool
    min_pvalue: Float[np.ndarray, " k"]
    n_ties: Integer[np.ndarray, " k"]
    n_extreme: Integer[np.ndarray, " k"]
    warnings: tuple[str, ...]
    bootstrap: ItemBootstrap = field(repr=False, compare=False)

    @cached_property
    def confidence_interval(self) -> Float[np.ndarray, "k 2"]:
        """95 % percentile intervals [k, (low, high)] over items, all from the same resamples; nan where undefined."""
        limits = np.stack(self.bootstrap.interval(), axis=1)
        limits[np.isnan(self.statistic)] = np.nan
        return limits


@dataclass(frozen=True, kw_only=True)
class MantelManyResult(_ManyTests):
    """Mantel correlations [k] of k matrices with one target, over the same permutations.

    `pvalue` is each one's own; `pvalue_westfall_young` is adjusted for the k tests (step-down max-T). The rest as in
    `MantelResult`, one entry per matrix.
    """

    pvalue_westfall_young: Float[np.ndarray, " k"]


def mantel(
    x: Distances,
    y: Distances,
    *,
    method: Method = "spearman",
    alternative: Alternative = "greater",
    n_resamples: int = 9999,
    exact: Literal["auto"] | bool = "auto",
    rng: np.random.Generator | int | None = None,
    permutations: Integer[np.ndarray, "m n"] | None = None,
) -> MantelResult:
    """The correlation of two sets of distances between the same n items, and its permutation p-value.

    r = corr(x_ij, y_ij) over i < j; Spearman ranks once, with average ranks for ties. Those of a set
    tie in rank that differ by at most 1e-12 (held in float32 or less, 1e-6) of the larger of the distance and the
    median distance: so much may come from the order of summation. Under the null the items of x are exchangeable: its
    rows and columns are permuted jointly, p = (b + 1)/(m + 1), b the number of permutations at least as extreme
    (greater: r* ≥ r; less: r* ≤ r; two-sided: |r*| ≥ |r|), to a tolerance of 1e-9 so that symmetries of the target
    count as ties.

    Args:
        x, y: distances, square [n, n] or condensed [n(n − 1)/2], n ≥ 3; any unit. Slight asymmetry (1e-9 of the
            largest) is averaged away.
        n_resamples: random permutations m, drawn as a grid of products (`probes.permutations.PermutationGrid`), for
            which the p-value is exactly valid; 0 gives the statistic with p = nan.
        exact: "auto" enumerates all n! permutations for n ≤ 8 (p = b/n!); True asks for it (n ≤ 10), False forbids it.
        rng: generator or seed of permutations and interval.
        permutations: [m, n] integers, fixes the permutations (no enumeration then).

    A constant x or y gives nan and a `ConstantInputWarning`. Raises ValueError for matrices that are not square,
    asymmetric, with a diagonal, of fewer than 3 items, of unequal size, or with NaN or inf.

    Source: Mantel 1967; Legendre & Legendre 2012, §10.5; for the grid Ramdas et al. 2023. scikit-bio defaults to
    Pearson, two-sided, and never enumerates; its ties, in ranks and in p, depend on the order of summation.

    >>> day = np.abs(np.subtract.outer(np.arange(5), np.arange(5)))
    >>> result = mantel(day, day**2)
    >>> round(result.statistic, 12), result.pvalue, result.n_resamples, result.exact
    (1.0, 0.016666666666666666, 120, True)
    """
    tested = _test("mantel", {"x": x}, {"y": y}, method, alternative, n_resamples, exact, rng, permutations)
    return MantelResult(**tested.first())


def mantel_many(
    xs: Real[np.ndarray, "k ..."] | Sequence[Distances],
    y: Distances,
    *,
    method: Method = "spearman",
    alternative: Alternative = "greater",
    n_resamples: int = 9999,
    exact: Literal["auto"] | bool = "auto",
    rng: np.random.Generator | int | None = None,
    permutations: Integer[np.ndarray, "m n"] | None = None,
) -> MantelManyResult:
    """Mantel correlations of k sets of distances with one target, with raw and Westfall–Young p-values.

    What `mantel(x, y)` gives for each x with the same permutations, which all k share: layers and models of one concept
    set.

    Args:
        xs: k sets of distances, [k, n, n], condensed [k, n(n − 1)/2], or a sequence of either.
        y: the target. It is what is permuted, by the inverses of given permutations, which is the same as permuting
            every x by them.
        the rest as in `mantel`.

    Constant xs are nan, named in `warnings`, left out of the family, and warned about once; a constant y makes all nan.
    Raises ValueError as `mantel` does, naming the entry. Source of the adjusted p: Westfall & Young 1993.

    >>> day = np.abs(np.subtract.outer(np.arange(5), np.arange(5)))
    >>> mantel_many([day, day**2], day).statistic.round(12).tolist()
    [1.0, 1.0]
    """
    tested = _test("mantel_many", xs, {"y": y}, method, alternative, n_resamples, exact, rng, permutations)
    adjusted = np.full(len(xs), np.nan)
    if tested.null is not None:
        r, is_exact = tested.fields["statistic"][tested.is_defined], tested.fields["exact"]
        adjusted[tested.is_defined] = westfall_young(r, tested.null.T, alternative=alternative, exact=is_exact)
    return MantelManyResult(**tested.fields, pvalue_westfall_young=adjusted)


def partial_mantel(
    x: Distances,
    y: Distances,
    z: Distances,
    *,
    method: Method = "spearman",
    alternative: Alternative = "greater",
    n_resamples: int = 9999,
    exact: Literal["auto"] | bool = "auto",
    rng: np.random.Generator | int | None = None,
    permutations: Integer[np.ndarray, "m n"] | None = None,
) -> PartialMantelResult:
    """The correlation of x and y given z, r2 its square, and a descriptive permutation p-value.

    r = (r_xy − r_xz r_yz)/√((1 − r_xz²)(1 − r_yz²)). Rows and columns of the raw x are permuted (r_yz stays). A
    permutation under which x mirrors z (|r_xz*| = 1) leaves r* undefined and counts as extreme, which is cautious.

    **Read the p-value as descriptive.** Permuting breaks the dependence of x on z that the null hypothesis keeps. Where
    x and y are both autocorrelated along what z measures, the test at a nominal .05 rejects true nulls in .4 of cases
    and more (Guillot & Rousset 2013). Simulated here, for independent random curves over 35 equally spaced times with z
    the lag: .43 for rough curves in eight dimensions, .60 for smooth ones, .22 for rough ones in one dimension; the
    plain test 1.00, 1.00 and .42. Permuting residuals instead does not repair it (.37, .59, .24). Without
    autocorrelation the level holds. The correlation and r2 describe the sample either way.

    Arguments, ties, enumeration and errors as in `mantel`. nan and a `ConstantInputWarning` where a matrix is constant
    or z equals x or y up to scale (|r_xz| or |r_yz| = 1). Source: Smouse, Long & Sokal 1986; vegan's `mantel.partial`
    permutes alike but drops undefined permutations.

    >>> x, y, z = (np.random.default_rng(0).random((6, k)) for k in (1, 2, 3))
    >>> distances = [np.linalg.norm(v[:, None] - v, axis=-1) for v in (x, y, z)]
    >>> round(partial_mantel(*distances).statistic, 3)
    -0.196
    """
    tested = _test(
        "partial_mantel", {"x": x}, {"y": y, "z": z}, method, alternative, n_resamples, exact, rng, permutations
    )
    fields = tested.first()
    r_xy, r_xz = float(tested.r_xy[0]), float(tested.r_xz[0])
    return PartialMantelResult(**fields, r2=fields["statistic"] ** 2, r_xy=r_xy, r_xz=r_xz, r_yz=tested.r_yz)


@dataclass(frozen=True, kw_only=True)
class PartialMantelManyResult(_ManyTests):
    """Partial Mantel correlations [k] of k matrices with one target given one confound, over the same permutations.

    `r2` is their square; `r_xz` [k] and `r_yz` are the plain correlations with the confound. The rest as in
    `MantelManyResult`; read `pvalue` as `partial_mantel` says.
    """

    r2: Float[np.ndarray, " k"]
    r_xz: Float[np.ndarray, " k"]
    r_yz: float


def partial_mantel_many(
    xs: Real[np.ndarray, "k ..."] | Sequence[Distances],
    y: Distances,
    z: Distances,
    *,
    method: Method = "spearman",
    alternative: Alternative = "greater",
    n_resamples: int = 9999,
    exact: Literal["auto"] | bool = "auto",
    rng: np.random.Generator | int | None = None,
    permutations: Integer[np.ndarray, "m n"] | None = None,
) -> PartialMantelManyResult:
    """Partial Mantel correlations of k sets of distances with one target given one confound.

    What `partial_mantel(x, y, z)` gives for each x with the same permutations: y and z are permuted together, by the
    inverses of given permutations, which is the same as permuting every x by them.

    Arguments as in `mantel_many` and `partial_mantel`, whose words on the p-value hold. Entries that are constant or
    mirrored by z are nan, named in `warnings` and warned about once; a constant y or z, or z a mirror of y, makes all
    nan. Raises ValueError as they do.

    >>> x, y, z = (np.random.default_rng(0).random((6, k)) for k in (1, 2, 3))
    >>> x, y, z = (np.linalg.norm(v[:, None] - v, axis=-1) for v in (x, y, z))
    >>> partial_mantel_many([x], y, z).statistic.round(3).tolist()
    [-0.196]
    """
    tested = _test(
        "partial_mantel_many", xs, {"y": y, "z": z}, method, alternative, n_resamples, exact, rng, permutations
    )
    r2 = tested.fields["statistic"] ** 2
    return PartialMantelManyResult(**tested.fields, r2=r2, r_xz=tested.r_xz, r_yz=tested.r_yz)


@dataclass(frozen=True)
class _Tested:
    """What tests of k matrices found: the fields of `_ManyTests`, the plain correlations (nan with a z that there is
    not), which statistics are defined, and their null [those defined, m], None where nothing was permuted."""

    fields: dict[str, Any]
    r_xy: np.ndarray
    r_xz: np.ndarray
    r_yz: float
    is_defined: np.ndarray
    null: np.ndarray | None

    def first(self) -> dict[str, Any]:
        """The fields of the first matrix alone, as those of `MantelResult`."""
        arrays = {name: value[0].item() for name, value in self.fields.items() if isinstance(value, np.ndarray)}
        return self.fields | arrays


def _test(
    who: str,
    xs: Any,
    given: dict[str, object],
    method: Method,
    alternative: Alternative,
    n_resamples: int,
    exact: Literal["auto"] | bool,
    rng: np.random.Generator | int | None,
    permutations: np.ndarray | None,
) -> _Tested:
    """Tests of k matrices with the y in `given`, given the z if there is one.

    `xs` is one matrix by its name, which is itself permuted, or a sequence, for which y and z are, once for all.
    """
    for name, choice, choices in (("method", method, METHODS), ("alternative", alternative, ALTERNATIVES)):
        if choice not in choices:
            raise ValueError(f"{who}: {name} is {choice!r}; expected one of {choices}")
    tied, is_single = method == "spearman", isinstance(xs, dict)
    names, x_pairs, others, n = _read(who, xs, given, tied)
    rng = np.random.default_rng(rng)
    plan = plan_permutations(who, n, n_resamples=n_resamples, exact=exact, permutations=permutations, rng=rng)
    if plan.given is not None and not is_single:  # permuting the others by the inverse is permuting x
        plan = replace(plan, given=np.argsort(plan.given, axis=1))
    constant = np.asarray(is_constant(np.concatenate([x_pairs, others])))
    notes = _constant_notes(who, [*names, *given], constant)
    is_spread = ~(constant[: len(names)] | constant[len(names) :].any())
    r_xy, r_xz, r_yz = np.full(len(x_pairs), np.nan), np.full(len(x_pairs), np.nan), np.nan
    if is_spread.any():
        x_scores = _standardized(x_pairs[is_spread], method)
        other_scores = _standardized(others, method)
        r_xy[is_spread] = np.clip(x_scores @ other_scores[0], -1, 1)
        if "z" in given:
            r_xz[is_spread] = np.clip(x_scores @ other_scores[1], -1, 1)
            r_yz = float(np.clip(other_scores[0] @ other_scores[1], -1, 1))
    observed = partial_correlation(r_xy, r_xz, r_yz) if "z" in given else r_xy
    is_defined = ~np.isnan(observed)
    if (mirrored := np.flatnonzero(is_spread & ~is_defined)).size:
        named = ", ".join(names[k] for k in mirrored)
        message = f"{who}: z mirrors {named} or y; the partial correlation is undefined (nan)"
        notes = (*notes, warn(ConstantInputWarning, message, stacklevel=4))
    null, counts = None, _undefined_counts(len(x_pairs))
    if is_defined.any() and plan.n_resamples:
        null = _null(x_scores[is_defined[is_spread]], other_scores, r_yz, alternative, plan, is_single)
        for name, values in _count(observed[is_defined], null, alternative, plan).items():
            counts[name][is_defined] = values
    y_pairs, z_pairs = others[0], others[1] if "z" in given else None
    fields = counts | {
        "statistic": observed,
        "n": n,
        "n_resamples": plan.n_resamples,
        "alternative": alternative,
        "method": method,
        "exact": plan.exact,
        "warnings": notes,
        "bootstrap": ItemBootstrap(x_pairs, y_pairs, z_pairs, n, tied, int(rng.integers(2**63))),
    }
    return _Tested(fields, r_xy, r_xz, r_yz, is_defined, null)


def _read(who: str, xs: Any, given: dict[str, object], tied: bool) -> tuple[list[str], np.ndarray, np.ndarray, int]:
    """Names of the k matrices, their pairs [k, n_pairs], those of y and z [1 or 2, n_pairs], and n."""
    if len(xs) == 0:
        raise ValueError(f"{who}: xs is empty; expected at least one set of distances")
    others, sizes = zip(*(condensed(who, name, d, tied=tied) for name, d in given.items()), strict=True)
    if len(set(sizes)) > 1:
        raise ValueError(f"{who}: y has {sizes[0]} items and z {sizes[1]}; expected the same items in all")
    names, xs = (list(xs), list(xs.values())) if isinstance(xs, dict) else ([f"xs[{k}]" for k in range(len(xs))], xs)
    return names, condensed_stack(who, names, xs, sizes[0], tied=tied), np.stack(others), sizes[0]


def _null(
    x: np.ndarray, others: np.ndarray, r_yz: float, alternative: Alternative, plan: PermutationPlan, is_single: bool
) -> np.ndarray:
    """Correlations [k, m] of scores x [k, n_pairs] with y, `others[0]`, given z if there is `others[1]`.

    A single x is permuted; else the others are, together. Where undefined, the most extreme value there is.
    """
    if is_single:
        sums = permuted_sums(scipy.spatial.distance.squareform(x[0]), others.T, plan)[:, None]
    else:
        columns = np.ascontiguousarray(x.T)
        sums = np.stack([permuted_sums(scipy.spatial.distance.squareform(other), columns, plan) for other in others])
    if len(others) == 1:
        return sums[0]
    null = partial_correlation(sums[0], sums[1], r_yz)
    return np.where(np.isnan(null), -np.inf if alternative == "less" else np.inf, null)


def _undefined_counts(k: int) -> dict[str, np.ndarray]:
    """p-values, least p-values, and numbers of ties and of extreme permutations, each [k], of undefined statistics."""
    kinds = {"pvalue": np.nan, "min_pvalue": np.nan, "n_ties": 0, "n_extreme": 0}
    return {name: np.full(k, value) for name, value in kinds.items()}


def _count(
    observed: np.ndarray, null: np.ndarray, alternative: Alternative, plan: PermutationPlan
) -> dict[str, np.ndarray]:
    """Extreme and tied permutations of statistics [k] with null [k, m], and the p-values they make."""
    r, r_null = extremeness(observed, alternative)[:, None], extremeness(null, alternative)
    n_extreme = np.count_nonzero(r_null >= r - TIE_TOLERANCE, axis=1)
    n_ties = n_extreme - np.count_nonzero(r_null > r + TIE_TOLERANCE, axis=1)
    if plan.exact:
        pvalue = n_extreme / plan.n_resamples
        # of those defined: undefined ones count as extreme whatever is observed
        top = r_null.max(axis=1, keepdims=True, where=np.isfinite(r_null), initial=-np.inf)
        smallest = np.count_nonzero(r_null >= top - TIE_TOLERANCE, axis=1) / plan.n_resamples
    else:
        pvalue = (n_extreme + 1) / (plan.n_resamples + 1)
        # 20! passes any number of permutations
        smallest = np.full(observed.size, max(1 / (plan.n_resamples + 1), 1 / factorial(min(plan.n, 20))))
    return {"pvalue": pvalue, "min_pvalue": smallest, "n_ties": n_ties, "n_extreme": n_extreme}


def _constant_notes(who: str, names: list[str], is_bad: np.ndarray) -> tuple[str, ...]:
    """A warning, issued and returned, if any of the matrices is constant."""
    constant = [names[k] for k in np.flatnonzero(is_bad)]
    if not constant:
        return ()
    message = f"{who}: {', '.join(constant)} constant; the correlation is undefined (nan)"
    return (warn(ConstantInputWarning, message, stacklevel=5),)


def _standardized(pairs: np.ndarray, method: Method) -> np.ndarray:
    """Ranks or values along the last axis with mean 0 and sum of squares 1, so that a product is a correlation."""
    scores = scipy.stats.rankdata(pairs, axis=-1) if method == "spearman" else spread(pairs)
    scores = scores - scores.mean(axis=-1, keepdims=True)
    return scores / np.linalg.norm(scores, axis=-1, keepdims=True)
