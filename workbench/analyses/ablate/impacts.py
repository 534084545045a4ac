"""Statistics of ablations: impacts with paired errors and bootstrap intervals, and how they are shared among heads."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy
from jaxtyping import Float, Float64

from probes import ConstantInputWarning, gini
from probes.bootstrap import ratio_limits


@dataclass(frozen=True)
class Impacts:
    """Impacts of ablations on the mean loss, in per cent of the base loss, one entry an ablation."""

    impact_pct: Float64[np.ndarray, " row"]
    stderr: Float64[np.ndarray, " row"]
    ci_low: Float64[np.ndarray, " row"]
    ci_high: Float64[np.ndarray, " row"]


def impacts(
    base: Float[np.ndarray, " sequence"],
    ablated: Float[np.ndarray, "row sequence"],
    rng: np.random.Generator,
    n_bootstrap: int = 2000,
) -> Impacts:
    """Impact R = 100·(Σ ablated − Σ base)/Σ base of each row, its standard error and 95 % interval over sequences.

    The error is the paired one of a ratio of means: the standard deviation of dₛ − (R/100)·baseₛ over sequences s, with
    dₛ = ablatedₛ − baseₛ, divided by √n times the mean base loss. The interval is the bootstrap over sequences of
    `probes.bootstrap.ratio_limits`, whose words on few sequences hold. With one sequence both are nan.

    Args:
        base: mean loss of each sequence, nats.
        ablated: the same after each ablation.

    Raises:
        ValueError: fewer than 100 bootstrap draws.
    """
    check_bootstrap(n_bootstrap)
    n, mean_base = len(base), base.mean()
    difference = ablated - base
    ratio = difference.mean(1) / mean_base
    if n < 2:
        undefined = np.full(len(ablated), np.nan)
        return Impacts(100 * ratio, undefined, undefined, undefined)
    residual = difference - ratio[:, None] * base
    stderr = residual.std(axis=1, ddof=1) / (math.sqrt(n) * mean_base)
    low, high = ratio_limits(difference, base, rng, n_bootstrap)
    return Impacts(100 * ratio, 100 * stderr, 100 * low, 100 * high)


def top_margin(
    base: Float[np.ndarray, " sequence"],
    ablated: Float[np.ndarray, "row sequence"],
    rng: np.random.Generator,
    n_bootstrap: int = 2000,
) -> tuple[float, float, float]:
    """(margin, low, high): impact of the row of largest impact minus that of the second, in per cent of the base loss.

    100·(Σ ablated₁ − Σ ablated₂)/Σ base, paired: its 95 % interval draws the sequences of both rows together (see
    `impacts`; nan for one sequence). Which two rows is chosen on the same sequences and not again in each draw, so that
    the margin is never negative, and of rows alike it is larger than it should be: an interval that holds 0 leaves the
    order open, one that excludes it narrowly does not settle it.

    Args:
        base: mean loss of each sequence, nats.
        ablated: the same after each ablation, two rows or more.

    Raises:
        ValueError: fewer than two rows, or fewer than 100 bootstrap draws.
    """
    check_bootstrap(n_bootstrap)
    if len(ablated) < 2:
        raise ValueError(f"top_margin: got {len(ablated)} ablations; expected at least 2")
    first, second = np.argsort(-ablated.mean(1), kind="stable")[:2]
    difference = (ablated[first] - ablated[second])[None]
    low, high = ratio_limits(difference, base, rng, n_bootstrap)
    return 100 * float(difference.mean() / base.mean()), 100 * float(low[0]), 100 * float(high[0])


def check_bootstrap(n_bootstrap: int) -> None:
    """Nothing; raises ValueError for fewer draws than tails of 2.5 % can be read from."""
    if n_bootstrap < 100:
        raise ValueError(f"n_bootstrap: got {n_bootstrap}; expected at least 100, as tails of 2.5 % are read")


def impact_gini(ablation_results: pd.DataFrame) -> pd.DataFrame:
    """Gini coefficient of the impacts of a layer's heads, one row a (model, seed, kind, layer), in the table's order.

    nan, with a warning, where the impacts do not sum to something positive.
    """
    keys = ["model", "seed", "kind", "layer"]
    of_layer: dict[tuple, list[float]] = {}
    for *key, impact in of_heads(ablation_results)[[*keys, "impact_pct"]].itertuples(index=False):
        of_layer.setdefault(tuple(key), []).append(impact)
    return pd.DataFrame([(*key, gini(np.array(v))) for key, v in of_layer.items()], columns=pd.Index([*keys, "gini"]))


def attribution_agreement(ablation_results: pd.DataFrame) -> pd.DataFrame:
    """Spearman's rank correlation of estimate_pct and impact_pct over heads: model, seed, kind, rank_correlation, n.

    nan where either has one value throughout, where no estimate was taken, and for fewer than three heads.
    """
    keys = ["model", "seed", "kind"]
    of_model: dict[tuple, list[tuple[float, float]]] = {}
    heads = of_heads(ablation_results)[[*keys, "estimate_pct", "impact_pct"]]
    for *key, estimate, impact in heads.itertuples(index=False):
        of_model.setdefault(tuple(key), []).append((estimate, impact))
    found = []
    for key, pairs in of_model.items():
        values = np.array(pairs)
        ranks = scipy.stats.rankdata(values, axis=0)
        is_defined = len(values) > 2 and bool(np.isfinite(values).all()) and bool((ranks.std(0) > 0).all())
        found.append((*key, float(np.corrcoef(ranks.T)[0, 1]) if is_defined else math.nan, len(values)))
    return pd.DataFrame(found, columns=pd.Index([*keys, "rank_correlation", "n"]))


def of_heads(ablation_results: pd.DataFrame) -> pd.DataFrame:
    """The rows of single heads: whole layers and MLPs have head −1."""
    return ablation_results.loc[ablation_results["head"] >= 0]


@dataclass(frozen=True)
class Margin:
    """The top head's impact minus the runner-up's, with its interval (see `top_margin`)."""

    value: float
    low: float
    high: float


def summarize(
    ablation_results: pd.DataFrame,
    load_bearing: pd.DataFrame | None = None,
    margins: Mapping[int, Margin] | None = None,
    n_permutations: int | None = None,
) -> pd.DataFrame:
    """ablation_summary.csv's rows of one model's table: model, seed, kind, layer, measure, value, n, ci_low, ci_high,
    n_permutations.

    measure: `gini` of each layer's impacts over its n heads (see `impact_gini`); `rank_correlation` of estimates and
    impacts, of all n heads, layer −1 (see `attribution_agreement`); with load_bearing (its rows, see `load_bearing`):
    `load_bearing_p` of each layer's top head, and of the top head of all, layer −1, n heads being compared; with
    margins: `top_margin` of each layer, and of all heads, layer −1. ci_low and ci_high are a margin's, n_permutations a
    p's, whose least value is 1 / (n_permutations + 1).
    """
    heads = of_heads(ablation_results)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConstantInputWarning)  # nan stands in the table
        ginis = impact_gini(heads)
        agreements = attribution_agreement(heads)
    none = (math.nan, math.nan, None)
    rows: list[tuple] = []
    for layer, value in zip(ginis["layer"], ginis["gini"], strict=True):
        rows.append((int(layer), "gini", float(value), int((heads["layer"] == layer).sum()), *none))
    for value in agreements["rank_correlation"]:
        rows.append((-1, "rank_correlation", float(value), len(heads), *none))
    if load_bearing is not None:
        tops: dict[int, tuple[float, float]] = {}
        for layer, impact, p in load_bearing[["layer", "impact_pct", "p"]].itertuples(index=False):
            tops[int(layer)] = max(tops.get(int(layer), (-math.inf, math.nan)), (float(impact), float(p)))
        of_p = (math.nan, math.nan, n_permutations)
        rows += [(layer, "load_bearing_p", p, len(heads), *of_p) for layer, (_, p) in tops.items()]
        rows.append((-1, "load_bearing_p", max(tops.values())[1], len(heads), *of_p))
    for layer, own in (margins or {}).items():
        n = len(heads) if layer < 0 else int((heads["layer"] == layer).sum())
        rows.append((layer, "top_margin", own.value, n, own.low, own.high, None))
    first = {name: ablation_results[name].iloc[0] for name in ("model", "seed", "kind")}
    columns = [*first, "layer", "measure", "value", "n", "ci_low", "ci_high", "n_permutations"]
    return pd.DataFrame([(*first.values(), *row) for row in rows], columns=pd.Index(columns)).astype(
        {"n_permutations": float}
    )
