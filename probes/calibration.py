"""Scores as probabilities and as alarms: Platt scaling, Brier score, calibration error, precision and recall, and
thresholds that bound the rate of false alarms."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import scipy
from jaxtyping import Bool, Float, Float64, Int

from probes.checks import as_real
from probes.classification import as_labels

N_BINS = 10


class PlattScaling(NamedTuple):
    """Scores as log-odds: slope · score + intercept."""

    slope: float
    intercept: float

    def log_odds(self, scores: Float[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
        """Log-odds of the positive class."""
        return self.slope * np.asarray(scores, dtype=np.float64) + self.intercept

    def probabilities(self, scores: Float[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
        """Probability of the positive class."""
        return scipy.special.expit(self.log_odds(scores))


def platt_scaling(
    scores: Float[np.ndarray, " n"], labels: Bool[np.ndarray, " n"] | Int[np.ndarray, " n"]
) -> PlattScaling:
    """The scaling of scores under which labels are likeliest (Platt 1999).

    Slope and intercept are the least of the cross-entropy against (n₊ + 1)/(n₊ + 2) for positives and 1/(n₋ + 2) for
    negatives, Platt's targets, which keep the slope finite where the classes are apart. Scores without spread: slope 0.

        >>> scaled = platt_scaling(np.array([-2.0, -1.0, 1.0, 2.0]), np.array([0, 0, 1, 1]))
        >>> [round(p, 2) for p in scaled.probabilities(np.array([-2.0, 0.0, 2.0])).tolist()]
        [0.21, 0.5, 0.79]

    Raises:
        ValueError: scores that are not finite numbers, or labels that are not of two classes.
    """
    values = as_real("platt_scaling", "scores", scores)
    y = as_labels("platt_scaling", labels, len(values))
    n_positive = int(y.sum())
    target = np.where(y, (n_positive + 1) / (n_positive + 2), 1 / (len(y) - n_positive + 2))
    centre, spread = float(values.mean()), float(values.std())
    if not spread > 1e-12 * max(1e-300, float(np.abs(values).max())):
        share = float(target.mean())
        return PlattScaling(0.0, math.log(share / (1 - share)))
    z = (values - centre) / spread

    def objective(theta: np.ndarray) -> tuple[float, np.ndarray]:
        logits = theta[0] * z + theta[1]
        pull = scipy.special.expit(logits) - target
        return float((np.logaddexp(0, logits) - target * logits).mean()), np.array([(pull * z).mean(), pull.mean()])

    start = np.array([0.0, math.log(target.mean() / (1 - target.mean()))])
    settings = {"ftol": 1e-15, "gtol": 1e-10, "maxiter": 500}
    slope, intercept = scipy.optimize.minimize(objective, start, jac=True, method="L-BFGS-B", options=settings).x
    return PlattScaling(float(slope / spread), float(intercept - slope * centre / spread))


def brier_score(
    probabilities: Float[np.ndarray, " n"], labels: Bool[np.ndarray, " n"] | Int[np.ndarray, " n"]
) -> float:
    """Mean squared difference of probability and label (Brier 1950); p (1 − p) for a base rate p said of all.

        >>> brier_score(np.array([0.5, 0.5, 1.0]), np.array([0, 1, 1]))
        0.16666666666666666

    Raises:
        ValueError: probabilities outside 0 … 1, or labels that are not of two classes.
    """
    p = _as_probabilities("brier_score", probabilities)
    return float(((p - as_labels("brier_score", labels, len(p))) ** 2).mean())


def calibration_error(
    probabilities: Float[np.ndarray, " n"],
    labels: Bool[np.ndarray, " n"] | Int[np.ndarray, " n"],
    n_bins: int = N_BINS,
) -> float:
    """Expected calibration error: Σ_b n_b/n · |mean probability − share of positives| over bins of equal counts.

    Bins end at quantiles of the probabilities, so that equal ones share a bin; those of equal width (Guo et al. 2017)
    would put nearly all tokens of a rare class in one.

        >>> calibration_error(np.array([0.1, 0.1, 0.8, 0.8]), np.array([0, 0, 1, 0]), n_bins=2)
        0.2

    Raises:
        ValueError: as `brier_score`, or no bin.
    """
    p = _as_probabilities("calibration_error", probabilities)
    y = as_labels("calibration_error", labels, len(p))
    if n_bins < 1:
        raise ValueError(f"calibration_error: n_bins is {n_bins}; expected 1 or more")
    at = equal_count_bins(p, n_bins)
    sums = np.bincount(at, p - y, minlength=n_bins)
    return float(np.abs(sums).sum() / len(p))


def equal_count_bins(values: Float[np.ndarray, " n"], n_bins: int) -> Int[np.ndarray, " n"]:
    """The bin of each value, 0 … n_bins − 1, of about equal counts: equal values have one bin, and some may be empty.

        >>> equal_count_bins(np.array([0.3, 0.1, 0.2, 0.4]), 2).tolist()
        [1, 0, 0, 1]

    Raises:
        ValueError: values that are not finite numbers, or no bin.
    """
    own = as_real("equal_count_bins", "values", values)
    if n_bins < 1:
        raise ValueError(f"equal_count_bins: n_bins is {n_bins}; expected 1 or more")
    return np.minimum(n_bins - 1, ((scipy.stats.rankdata(own, "min") - 1) * n_bins / len(own)).astype(np.int64))


def average_precision(scores: Float[np.ndarray, " n"], labels: Bool[np.ndarray, " n"] | Int[np.ndarray, " n"]) -> float:
    """Σ (recall − recall before) · precision over thresholds from the highest score down; chance is the base rate.

    scikit-learn's `average_precision_score`: no interpolation, equal scores at one threshold.

        >>> round(average_precision(np.array([0.1, 0.4, 0.35, 0.8]), np.array([0, 0, 1, 1])), 4)
        0.8333

    Raises:
        ValueError: as `auroc`.
    """
    n_true, n_taken = _counts("average_precision", scores, labels)
    steps = np.diff(n_true, prepend=0) / n_true[-1]
    return float((steps * n_true / n_taken).sum())


def true_positive_rate(
    scores: Float[np.ndarray, " n"], labels: Bool[np.ndarray, " n"] | Int[np.ndarray, " n"], false_rate: float
) -> float:
    """Share of positives above the lowest threshold above which at most `false_rate` of the negatives are.

        >>> true_positive_rate(np.array([0.1, 0.4, 0.35, 0.8]), np.array([0, 0, 1, 1]), 0.0)
        0.5

    Raises:
        ValueError: as `auroc`, or a rate outside 0 … 1.
    """
    if not 0 <= false_rate <= 1:
        raise ValueError(f"true_positive_rate: false_rate is {false_rate}; expected 0 to 1")
    n_true, n_taken = _counts("true_positive_rate", scores, labels)
    n_false = n_taken - n_true
    is_allowed = n_false <= false_rate * n_false[-1]
    return float(n_true[is_allowed].max(initial=0) / n_true[-1])


def conformal_threshold(scores: Float[np.ndarray, " n"], alpha: float) -> float:
    """The ⌈(1 − α)(n + 1)⌉-th smallest of n scores: another, exchangeable with them, is above it with probability ≤ α.

    The bound holds for any distribution, over the draw of the n scores too (split conformal prediction: Vovk et al.
    2005); given these n, the rate varies about it as Beta(⌊α (n + 1)⌋, n + 1 − ⌊α (n + 1)⌋) does.

        >>> conformal_threshold(np.arange(1.0, 20.0), 0.1)
        18.0

    Raises:
        ValueError: scores that are not finite numbers, an alpha outside 0 … 1, or fewer scores than 1/α − 1, among
            which none is high enough.
    """
    values = np.sort(as_real("conformal_threshold", "scores", scores).ravel())
    if not 0 < alpha < 1:
        raise ValueError(f"conformal_threshold: alpha is {alpha}; expected 0 < alpha < 1")
    # in products of decimals the last digit must not lift the rank by one
    rank = math.ceil((1 - alpha) * (len(values) + 1) - 1e-9)
    if rank > len(values):
        least = math.ceil(1 / alpha - 1 - 1e-9)
        raise ValueError(
            f"conformal_threshold: got {len(values)} scores for alpha = {alpha:g}; expected at least {least}"
        )
    return float(values[rank - 1])


def _counts(who: str, scores: object, labels: object) -> tuple[np.ndarray, np.ndarray]:
    """At every distinct score, from the highest down: how many positives and how many in all are at or above it."""
    values = as_real(who, "scores", scores)
    y = as_labels(who, labels, len(values))
    order = np.argsort(-values, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(values[order]) != 0, True))
    return np.cumsum(y[order])[ends], ends + 1


def _as_probabilities(who: str, values: object) -> np.ndarray:
    p = as_real(who, "probabilities", values)
    if p.min() < 0 or p.max() > 1:
        raise ValueError(f"{who}: probabilities are {p.min():g} to {p.max():g}; expected 0 to 1")
    return p
