"""Linear probes of two classes: logistic regression, area under the ROC curve, and their intervals."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy
from jaxtyping import Bool, Float, Float64, Int

from probes.bootstrap import COUNTS_HELD, LEVEL, ConfidenceInterval, expanded_tail
from probes.checks import as_array, as_matrix, as_real

N_DRAWS = 2000


class LogisticProbe(NamedTuple):
    """A fitted probe, in the inputs' own units."""

    weights: Float64[np.ndarray, " d"]
    """log-odds per unit of each input; 0 for one that was constant"""
    bias: float

    def scores(self, X: Float[np.ndarray, "n d"]) -> Float64[np.ndarray, " n"]:
        """Log-odds of the positive class."""
        return np.asarray(X, dtype=np.float64) @ self.weights + self.bias


def fit_logistic(
    X: Float[np.ndarray, "n d"], labels: Bool[np.ndarray, " n"] | Int[np.ndarray, " n"], *, C: float = 1.0
) -> LogisticProbe:
    """Logistic regression of standardised inputs: the least of C Σ log(1 + exp(−yᵢ sᵢ)) + ½‖w‖², the bias free.

    The objective is that of scikit-learn's `LogisticRegression(C=C)` behind its `StandardScaler`, found by L-BFGS.

        >>> probe = fit_logistic(np.array([[0.0], [1.0], [2.0], [3.0]]), np.array([0, 0, 1, 1]))
        >>> (probe.scores(np.array([[0.0], [3.0]])) > 0).tolist()
        [False, True]

    Raises:
        ValueError: not a finite matrix with a label of two classes for each row, or a C that is not above 0.
    """
    X = as_matrix("fit_logistic", "X", X)
    y = as_labels("fit_logistic", labels, len(X))
    if not 0 < C < np.inf:
        raise ValueError(f"fit_logistic: C is {C}; expected a finite number > 0")
    mean, spread = X.mean(axis=0), X.std(axis=0)
    is_varied = spread > 1e-12 * np.maximum(1e-300, np.abs(X).max(axis=0))
    scale = np.where(is_varied, spread, 1.0)
    Z = np.where(is_varied, (X - mean) / scale, 0.0)
    sign = np.where(y, 1.0, -1.0)

    def objective(theta: np.ndarray) -> tuple[float, np.ndarray]:
        margin = sign * (Z @ theta[:-1] + theta[-1])
        pull = -C * sign * scipy.special.expit(-margin)
        loss = C * np.logaddexp(0, -margin).sum() + 0.5 * theta[:-1] @ theta[:-1]
        return float(loss), np.append(Z.T @ pull + theta[:-1], pull.sum())

    start = np.zeros(X.shape[1] + 1)
    found = scipy.optimize.minimize(
        objective, start, jac=True, method="L-BFGS-B", options={"maxiter": 2000, "maxfun": 4000, "ftol": 1e-12}
    ).x
    weights = found[:-1] / scale
    return LogisticProbe(weights, float(found[-1] - weights @ np.where(is_varied, mean, 0.0)))


def auroc(scores: Float[np.ndarray, " n"], labels: Bool[np.ndarray, " n"] | Int[np.ndarray, " n"]) -> float:
    """Area under the ROC curve: how often a positive scores above a negative, ties counted half.

        >>> auroc(np.array([0.1, 0.4, 0.4, 0.9]), np.array([0, 0, 1, 1]))
        0.875

    Raises:
        ValueError: scores that are not finite numbers, or labels that are not of two classes.
    """
    values = as_real("auroc", "scores", scores)
    y = as_labels("auroc", labels, len(values))
    n_positive = int(y.sum())
    below = scipy.stats.rankdata(values)[y].sum() - n_positive * (n_positive + 1) / 2
    return float(below / (n_positive * (len(y) - n_positive)))


def auroc_limits(
    scores: Float[np.ndarray, " n"],
    labels: Bool[np.ndarray, " n"] | Int[np.ndarray, " n"],
    groups: Int[np.ndarray, " n"],
    rng: np.random.Generator,
    n_draws: int = N_DRAWS,
) -> ConfidenceInterval:
    """95 % interval of `auroc` over groups (documents, words) drawn with replacement, tails as in `ratio_limits`.

    nan for fewer than two groups, or where most draws hold one class alone; other such draws are left out.

        >>> scores, labels = np.arange(20.0), np.arange(20) >= 10
        >>> auroc_limits(scores, labels, np.arange(20), np.random.default_rng(0))
        ConfidenceInterval(low=1.0, high=1.0)

    Raises:
        ValueError: as `auroc`, and for groups that are not one for each score.
    """
    values = as_real("auroc_limits", "scores", scores)
    y = as_labels("auroc_limits", labels, len(values))
    names, group = np.unique(as_array("auroc_limits", "groups", groups), return_inverse=True)
    if len(group) != len(values):
        raise ValueError(f"auroc_limits: got {len(group)} groups for {len(values)} scores; expected one each")
    n = len(names)
    if n < 2:
        return ConfidenceInterval(np.nan, np.nan)
    order = np.argsort(values, kind="stable")
    y, group = y[order], group[order]
    ends = np.flatnonzero(np.append(np.diff(values[order]) != 0, True))
    found = []
    size = max(1, min(n_draws, COUNTS_HELD // len(values)))
    for start in range(0, n_draws, size):
        counts = rng.multinomial(n, np.full(n, 1 / n), size=min(size, n_draws - start))[:, group].astype(np.float64)
        positive, negative = (np.diff(np.cumsum(counts * own, axis=1)[:, ends], axis=1, prepend=0.0) for own in (y, ~y))
        beaten = np.cumsum(negative, axis=1) - negative / 2
        pairs = positive.sum(axis=1) * negative.sum(axis=1)
        is_defined = pairs > 0
        found.append((positive * beaten).sum(axis=1)[is_defined] / pairs[is_defined])
    draws = np.concatenate(found)
    if 2 * len(draws) < n_draws:
        return ConfidenceInterval(np.nan, np.nan)
    tail = expanded_tail(n)
    return ConfidenceInterval(*(float(q) for q in np.quantile(draws, [tail, 1 - tail])))


def binomial_limits(n_true: int, n: int) -> ConfidenceInterval:
    """Exact 95 % interval of a share of n independent trials (Clopper & Pearson 1934); nan for none.

        >>> [round(limit, 3) for limit in binomial_limits(0, 20)]
        [0.0, 0.168]

    Raises:
        ValueError: n_true outside 0 … n.
    """
    if not 0 <= n_true <= n:
        raise ValueError(f"binomial_limits: got {n_true} of {n}; expected 0 ≤ n_true ≤ n")
    if n == 0:
        return ConfidenceInterval(np.nan, np.nan)
    tail = (1 - LEVEL) / 2
    low = scipy.stats.beta.ppf(tail, n_true, n - n_true + 1) if n_true else 0.0
    high = scipy.stats.beta.ppf(1 - tail, n_true + 1, n - n_true) if n_true < n else 1.0
    return ConfidenceInterval(float(low), float(high))


def as_labels(who: str, labels: object, n: int) -> np.ndarray:
    """Booleans, True for the positive class; `ValueError` unless they are n, of two classes."""
    y = as_real(who, "labels", labels)
    if y.shape != (n,) or not np.isin(y, (0, 1)).all() or len(np.unique(y)) < 2:
        raise ValueError(f"{who}: labels have shape {y.shape}, values {np.unique(y)[:4]}; expected {n} of both 0 and 1")
    return y == 1
