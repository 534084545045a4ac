"""What a study of two models says of the published findings that it can speak to, row by row, and how sure that is.

A finding is an effect of the intervention: a relative change e of one measure, treated over reference, beside the
published change p. Verdicts follow one rule:

    not measured     the tables do not hold the measure, or it is undefined
    with a 95 % interval (over seeds, three or more; or over sequences, where the measure has one of its own):
      not seen         the interval holds 0
      reversed         it lies on the other side of 0 than p
      reproduced       it lies on p's side, three or more seeds ran, and |e| ≥ |p|/2
      same direction   it lies on p's side, otherwise
    without one (one or two seeds):
      not seen         |e| < |p|/4, or the seeds disagree in sign
      reversed         e and p differ in sign
      same direction   otherwise; a single seed never reproduces

Layers of a model of another depth correspond by (layer + 1) / n_layers, along which head-orthogonality pressure rises.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from sae.metrics import match_l0

MIN_SEEDS = 3  # of an interval over seeds
PUBLISHED_LAYERS = 12  # depth of the models that the findings were published for
Frame = Any  # a pandas DataFrame, whose type stubs cannot tell a column from a cell
VERDICTS = ("reproduced", "same direction", "not seen", "reversed", "not measured")


@dataclass(frozen=True)
class Effect:
    """A relative change of one measure from the reference model to the treated one, seed by seed."""

    changes: tuple[float, ...]
    """treated / reference − 1, one a seed that both models have; nan where undefined"""
    interval: tuple[float, float] | None = None
    """95 % interval that the measure itself has (over sequences), used where seeds are too few for one"""

    @property
    def known(self) -> tuple[float, ...]:
        """The finite changes."""
        return tuple(c for c in self.changes if math.isfinite(c))

    @property
    def mean(self) -> float:
        """Mean over seeds; nan without a finite one."""
        return float(np.mean(self.known)) if self.known else math.nan

    def bounds(self) -> tuple[float, float] | None:
        """The 95 % interval: Student's t over seeds from three on, else the measure's own, else None."""
        n = len(self.known)
        if n < MIN_SEEDS:
            return self.interval
        half = float(stats.t.ppf(0.975, n - 1)) * float(np.std(self.known, ddof=1)) / math.sqrt(n)
        return self.mean - half, self.mean + half


@dataclass(frozen=True)
class Finding:
    """One row: what was published, what this study measured, and the verdict."""

    finding: str
    published: str
    measured: str
    verdict: str
    why: str


def find(
    tables: Mapping[str, pd.DataFrame], reference: str, treated: str, names: Mapping[str, str] | None = None
) -> list[dict[str, str]]:
    """The findings of the first paper as rows (finding, published, measured, verdict, why), from a study's tables.

    Args:
        tables: topology_stats, sae_training_results, ablation_results; what is missing is `not measured`.
        reference, treated: the models without and with head-orthogonality pressure, as the tables' `model` names them.
        names: what to call the two in sentences; their names by default.
    """
    called = dict(names or {})
    pair = Pair(tables, reference, treated, called.get(reference, reference), called.get(treated, treated))
    judges = (correlation, rank, early_l0, deep_l0, top_head)
    return [asdict(judge(pair)) for judge in judges]


@dataclass(frozen=True)
class Pair:
    """The two models of a comparison and the tables that hold them."""

    tables: Mapping[str, pd.DataFrame]
    reference: str
    treated: str
    reference_name: str
    treated_name: str

    def rows(self, table: str, **where: object) -> Frame:
        """The rows of a table, of both models, whose columns hold these values; empty where there is no such table."""
        df: Frame = self.tables.get(table)
        if df is None:
            return pd.DataFrame(columns=["model", "seed", "layer"])
        for column, value in where.items():
            if column not in df:
                return df.iloc[:0]
            df = df[df[column].isin(value) if isinstance(value, (list, range)) else df[column] == value]
        return df[df["model"].isin([self.reference, self.treated])]

    def n_layers(self, table: str) -> int:
        """Layers of the models in a table; 0 if it has none."""
        rows = self.rows(table)
        return int(rows["layer"].max()) + 1 if len(rows) else 0

    def change(self, df: Frame, column: str, reduce: Callable[[Any], Any] = pd.Series.mean) -> Effect:
        """treated / reference − 1 of a column reduced over its rows, for every seed that both models have."""
        if column not in df or df.empty:
            return Effect(())
        values = {key: float(reduce(own)) for key, own in df.groupby(["model", "seed"])[column]}
        seeds = sorted(set(df["seed"]))
        pairs = [(values.get((self.reference, s), math.nan), values.get((self.treated, s), math.nan)) for s in seeds]
        both = [(a, b) for a, b in pairs if math.isfinite(a) and math.isfinite(b)]
        return Effect(tuple(b / a - 1 if a else math.nan for a, b in both))


def matching_layer(layer: int, n_layers: int) -> int:
    """The layer of a model of n_layers whose (layer + 1) / n_layers is nearest to the published model's; the earlier
    of two that are equally near."""
    depth = (layer + 1) / PUBLISHED_LAYERS
    return min(range(n_layers), key=lambda own: (round(abs((own + 1) / n_layers - depth), 9), own))


def judge(effect: Effect, published: float) -> str:
    """The verdict on an effect, by the rule at the head of this module. `published` is a relative change, not 0."""
    if not effect.known:
        return "not measured"
    bounds = effect.bounds()
    if bounds is not None:
        low, high = bounds
        if low <= 0 <= high:
            return "not seen"
        if (low > 0) != (published > 0):
            return "reversed"
        is_large = abs(effect.mean) >= abs(published) / 2
        return "reproduced" if is_large and len(effect.known) >= MIN_SEEDS else "same direction"
    if abs(effect.mean) < abs(published) / 4 or len({c > 0 for c in effect.known}) > 1:
        return "not seen"
    return "same direction" if (effect.mean > 0) == (published > 0) else "reversed"


def correlation(pair: Pair) -> Finding:
    """Mean |cos| between heads deep in the network: on z as published, on the residual contribution as the control."""
    n_layers = pair.n_layers("topology_stats")
    title, published = "Heads of a deep layer correlate less", -0.603
    if not n_layers:
        return missing(title, "−60.3 % at layer 9 of 12", "topology_stats")
    layer = matching_layer(9, n_layers)
    by_basis = {
        basis: pair.change(pair.rows("topology_stats", layer=layer, basis=basis), "mean_cos")
        for basis in ("z", "residual", "pattern")
    }
    on_z, on_residual, on_pattern = by_basis.values()
    measured = f"mean |cos| on z {describe(on_z)} at layer {layer} of {n_layers}"
    if on_residual.known:
        measured += f"; on the residual contributions {describe(on_residual, brief=True)}"
    if on_pattern.known:
        measured += f"; on the attention maps {describe(on_pattern, brief=True)}"
    return Finding(
        title, "−60.3 % at layer 9 of 12", measured, judge(on_z, published), _why_correlation(on_z, on_residual)
    )


def _why_correlation(on_z: Effect, on_residual: Effect) -> str:
    start = "Cosines on z depend on each head's basis, which can turn without changing the function"
    if not on_z.known or not on_residual.known:
        return f"{start}; the residual contributions, which do not, were not measured."
    kept = on_residual.mean / on_z.mean if on_z.mean else math.nan
    if on_z.mean >= 0:
        return f"{start}; here they do not fall even there."
    if on_residual.mean >= 0:
        return f"{start}: what the heads write to the stream became no less alike at all, so the fall is one of basis."
    if kept < 0.5:
        return f"{start}: on what the heads write only {100 * kept:.0f} % of the fall is left; most is one of basis."
    return f"{start}; but what the heads write falls too, by {100 * kept:.0f} % of it, so most is no matter of basis."


def rank(pair: Pair) -> Finding:
    """Nuclear rank of the concatenated z in the middle of the network."""
    title, text, published = "Rank expands mid-network", "+9.0 % at layer 6 of 12", 0.09
    n_layers = pair.n_layers("topology_stats")
    if not n_layers:
        return missing(title, text, "topology_stats")
    layer = matching_layer(6, n_layers)
    rows = pair.rows("topology_stats", basis="z")
    middle = pair.change(rows[rows["layer"] == layer], "nuclear_rank")
    last = pair.change(rows[rows["layer"] == n_layers - 1], "nuclear_rank")
    measured = f"nuclear rank of z {describe(middle)} at layer {layer} of {n_layers}"
    if last.known:
        measured += f"; {describe(last, brief=True)} at the last layer"
    why = (
        "This rank does not change when a head's basis is rotated, but it does when a head's directions are scaled; it "
        "counts evenly used directions, not information."
    )
    if middle.known and last.known and middle.mean * last.mean < 0:
        why += " Middle and last layer move in opposite directions."
    elif last.known and last.mean < 0 and middle.known and middle.mean < 0:
        why += " Here pressure takes directions away, most where it is strongest."
    return Finding(title, text, measured, judge(middle, published), why)


def early_l0(pair: Pair) -> Finding:
    """Mean l0 of the trained head SAEs over the first third of the layers."""
    return _l0(pair, "Early layers need fewer active features", "−12.3 %", -0.123, is_early=True)


def deep_l0(pair: Pair) -> Finding:
    """Mean l0 of the trained head SAEs over the last third of the layers."""
    return _l0(pair, "Deep layers need more active features", "+25.5 %", 0.255, is_early=False)


def _l0(pair: Pair, title: str, text: str, published: float, *, is_early: bool) -> Finding:
    n_layers = pair.n_layers("sae_training_results")
    if not n_layers:
        return missing(title, text, "sae_training_results")
    size = max(1, n_layers // 3)
    layers = range(size) if is_early else range(n_layers - size, n_layers)
    rows = pair.rows("sae_training_results", layer=layers)
    rows = rows[rows["dictionary"] == "trained"] if "dictionary" in rows else rows
    sweep = sorted(set(rows["l1"].dropna()))
    middle = min(sweep, key=lambda l1: abs(l1 - float(np.median(sweep)))) if sweep else math.nan
    at = rows[rows["l1"] == middle]
    l0, fvu = pair.change(at, "l0"), pair.change(at, "fvu")
    where = f"layer {layers[0]}" if size == 1 else f"layers {layers[0]}–{layers[-1]}"
    measured = f"l0 {describe(l0)} at {where} of {n_layers}, l1 {middle:g}"
    if fvu.known:
        measured += f"; fvu {describe(fvu, brief=True)}"
    why = _why_l0(l0, fvu)
    if len(sweep) > 1 and (matched := _fvu_at_matched_l0(pair, rows)).known:
        why += f" At matched l0, along the sweep of l1, fvu is {describe(matched, brief=True)}."
    return Finding(title, text, measured, judge(l0, published), why)


def _why_l0(l0: Effect, fvu: Effect) -> str:
    if not l0.known or not fvu.known:
        return "The same l1 buys another sparsity where activations have another size."
    if l0.mean * fvu.mean < 0:
        more, less = ("Fewer", "more") if l0.mean < 0 else ("More", "less")
        return (
            f"{more} features are active and {less} variance is left over: at one l1 the two models stand at different "
            "points of the same trade, which is no evidence of simpler or richer features."
        )
    better = "fewer features leave less over" if l0.mean < 0 else "more features leave more over"
    return f"Not a trade of sparsity for error: {better}, at one l1."


def _fvu_at_matched_l0(pair: Pair, rows: Frame) -> Effect:
    """Change of fvu at equal l0, mean over the range of l0 that both sweeps reach; nan where the ranges do not meet."""
    changes = []
    for seed in sorted(set(rows["seed"])):
        sweeps = []
        for model in (pair.reference, pair.treated):
            own = rows[(rows["model"] == model) & (rows["seed"] == seed)]
            curve = own.groupby("l1")[["l0", "fvu"]].mean()
            sweeps += [curve["l0"].to_numpy(), curve["fvu"].to_numpy()]
        matched = match_l0(*sweeps)
        first = float(np.mean(matched.first)) if len(matched.first) else math.nan
        changes.append(matched.mean_difference / first if first else math.nan)
    return Effect(tuple(changes))


def top_head(pair: Pair) -> Finding:
    """Impact of removing the most important head: largest impact_pct of the treated model over the reference's."""
    title, text, published = "One head becomes load-bearing", "2.54 × the top head's impact", 1.54
    rows = pair.rows("ablation_results", kind="zero")
    rows = rows[rows["head"] >= 0] if "head" in rows else rows  # whole layers and MLPs have head -1
    effect = pair.change(rows, "impact_pct", pd.Series.max)
    if not effect.known:
        return missing(title, text, "ablation_results")
    tops = {
        model: rows.loc[rows[rows["model"] == model].groupby("seed")["impact_pct"].idxmax()]
        for model in (pair.reference, pair.treated)
    }
    effect = Effect(effect.changes, _ratio_bounds(tops[pair.reference], tops[pair.treated]))
    heads = {
        model: ", ".join(f"L{int(r.layer)}H{int(r.head)} {r.impact_pct:.2f} %" for r in top.itertuples())
        for model, top in tops.items()
    }
    measured = (
        f"{1 + effect.mean:.2f} × ({pair.reference_name} {heads[pair.reference]}; "
        f"{pair.treated_name} {heads[pair.treated]}); {_sureness(effect, as_ratio=True)}"
    )
    why = (
        "The larger of many noisy impacts is flattering to both models; and a head is load-bearing only if it stands "
        f"apart from the next, which it does by {_lead(pair, pair.reference, rows)} in {pair.reference_name} and "
        f"{_lead(pair, pair.treated, rows)} in {pair.treated_name}."
    )
    return Finding(title, text, measured, judge(effect, published), why)


def _ratio_bounds(reference: Frame, treated: Frame) -> tuple[float, float] | None:
    """Smallest and largest ratio − 1 that the two top heads' 95 % intervals over sequences allow (one seed only); wider
    than a 95 % interval of the ratio, so that what it excludes is excluded with confidence."""
    if len(reference) != 1 or len(treated) != 1 or not {"ci_low", "ci_high"} <= set(reference.columns):
        return None
    a_low, a_high = (float(reference[c].iloc[0]) for c in ("ci_low", "ci_high"))
    b_low, b_high = (float(treated[c].iloc[0]) for c in ("ci_low", "ci_high"))
    if not all(map(math.isfinite, (a_low, a_high, b_low, b_high))):
        return None
    if a_low <= 0:  # the reference's impact may be nothing: no ratio is excluded
        return -math.inf, math.inf
    return b_low / (a_high if b_low > 0 else a_low) - 1, b_high / (a_low if b_high > 0 else a_high) - 1


def _lead(pair: Pair, model: str, rows: Frame) -> str:
    """Factor between the largest and the second largest impact of a model, mean over seeds."""
    factors = []
    for _, impacts in rows[rows["model"] == model].groupby("seed")["impact_pct"]:
        first, second = sorted(impacts, reverse=True)[:2] if len(impacts) > 1 else (math.nan, math.nan)
        factors.append(first / second if second > 0 else math.nan)
    value = float(np.mean(factors)) if factors else math.nan
    return f"{value:.2f} ×" if math.isfinite(value) else "an undefined factor"


def missing(title: str, published: str, table: str) -> Finding:
    """A finding that the study's tables cannot speak to."""
    return Finding(title, published, "–", "not measured", f"{table}.csv holds no rows of both models to compare.")


def describe(effect: Effect, *, brief: bool = False) -> str:
    """An effect in words: "−95.2 % (1 seed: no interval)", or without the parenthesis."""
    if not effect.known:
        return "undefined"
    text = _percent(effect.mean)
    return text if brief else f"{text} ({_sureness(effect)})"


def _sureness(effect: Effect, *, as_ratio: bool = False) -> str:
    n = len(effect.known)
    seeds = "1 seed" if n == 1 else f"{n} seeds"
    bounds = effect.bounds()
    if bounds is None:
        return f"{seeds}: no interval"
    low, high = (f"{1 + b:.2f}".replace("-", "−") if as_ratio else _percent(b) for b in bounds)
    over = "over seeds" if n >= MIN_SEEDS else "over sequences"
    return f"{seeds}: 95 % interval {over} {low} to {high}"


def _percent(value: float) -> str:
    return f"{100 * value:+.1f} %".replace("-", "−")
