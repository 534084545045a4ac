"""How well probes of a site tell positive tokens from others, beside baselines: trained, calibrated, tested."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Float64, Int

import probes
from workbench.analyses.monitor.examples import Tokens

# penalties ½‖w‖²/C of standardised inputs; the best on validation text is taken
GRID_OF_C = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
N_DRAWS = 1000
FALSE_RATE = 0.01  # of the column that says how many positives are found at so many false ones
FALSE_RATES = tuple(np.geomspace(1e-3, 1, 25).tolist())
PROBES = ("logistic", "difference_of_means", "embedding", "token_identity", "random_words")
N_SELECTED = 8192  # training tokens that a feature is chosen on
Scorer = Callable[[Tokens], Float64[np.ndarray, " n"]]


@dataclass(frozen=True)
class Fitted:
    """A probe with its scaling, both in the inputs' own units."""

    name: str
    scorer: Scorer
    scaling: probes.PlattScaling
    C: float
    """nan where nothing is penalised"""
    probe: probes.LogisticProbe | None = None
    """weights of what the site shows, of those that read it"""


@dataclass(frozen=True)
class Splits:
    """The counted tokens of each part."""

    training: Tokens
    validation: Tokens
    test: Tokens


def fit_probes(splits: Splits, rng: np.random.Generator) -> list[Fitted]:
    """The logistic probe of the site, and what it is compared with: the difference of means, a logistic probe of the
    embedding, and the log-odds of each token id. Each is scaled on validation text."""
    own = splits.training
    site, C = _choose_penalty(splits, lambda tokens: tokens.x)
    embedded, C_embedded = _choose_penalty(splits, lambda tokens: tokens.embedded)
    means = difference_of_means(own.x, own.labels)
    by_id = token_log_odds(own.ids, own.labels)
    found = [
        ("logistic", lambda tokens: site.scores(tokens.x), C, site),
        ("difference_of_means", lambda tokens: means.scores(tokens.x), np.nan, means),
        ("embedding", lambda tokens: embedded.scores(tokens.embedded), C_embedded, None),
        ("token_identity", lambda tokens: by_id[np.minimum(tokens.ids, len(by_id) - 1)], np.nan, None),
    ]
    scaled = []
    for name, scorer, strength, probe in found:
        scaling = probes.platt_scaling(scorer(splits.validation), splits.validation.labels)
        scaled.append(Fitted(name, scorer, scaling, float(strength), probe))
    return scaled


def _choose_penalty(splits: Splits, read: Callable[[Tokens], np.ndarray]) -> tuple[probes.LogisticProbe, float]:
    """The logistic probe whose validation AUROC is highest, of equals the one of the strongest penalty, and its C."""
    found = []
    for C in GRID_OF_C:
        probe = probes.fit_logistic(read(splits.training), splits.training.labels, C=C)
        found.append((probe, C, probes.auroc(probe.scores(read(splits.validation)), splits.validation.labels)))
    best = max(found, key=lambda own: own[2])
    return best[0], best[1]


def difference_of_means(X: Float[np.ndarray, "n d"], labels: Bool[np.ndarray, " n"]) -> probes.LogisticProbe:
    """The probe whose weights are the positives' mean less the negatives', 0 half-way between them."""
    high, low = X[labels].mean(axis=0, dtype=np.float64), X[~labels].mean(axis=0, dtype=np.float64)
    return probes.LogisticProbe(high - low, float(-(high - low) @ (high + low) / 2))


def token_log_odds(ids: Int[np.ndarray, " n"], labels: Bool[np.ndarray, " n"]) -> Float64[np.ndarray, " n_ids"]:
    """Log-odds of the positive class by token id, the base rate counted as one more token of each; the last entry is
    that of an id that was not met, which all higher ids have too."""
    n = int(ids.max()) + 2
    rate = labels.mean()
    positive = np.bincount(ids, labels, minlength=n) + rate
    return np.log(positive) - np.log(np.bincount(ids, ~labels, minlength=n) + 1 - rate)


def word_labels(n_ids: int, rng: np.random.Generator) -> Bool[np.ndarray, " n_ids"]:
    """A label for each token id, at random and the same wherever it stands: the control task (Hewitt & Liang 2019)."""
    return rng.random(n_ids) < 0.5


def quality_table(splits: Splits, fitted: list[Fitted], n_ids: int, rng: np.random.Generator) -> pd.DataFrame:
    """A row for each probe on test text, and one for the control task's, fitted with the site's penalty."""
    test, rows = splits.test, []
    for own in fitted:
        rows.append(_measure(own.name, own.scorer(test), own.scaling, test.labels, test.document, rng) | {"C": own.C})
    by_word = word_labels(n_ids, rng)
    labels = [by_word[part.ids] for part in (splits.training, splits.validation, splits.test)]
    if all(0 < own.mean() < 1 for own in labels):
        probe = probes.fit_logistic(splits.training.x, labels[0], C=fitted[0].C)
        scaling = probes.platt_scaling(probe.scores(splits.validation.x), labels[1])
        row = _measure("random_words", probe.scores(test.x), scaling, labels[2], test.document, rng)
        rows.append(row | {"C": fitted[0].C})
    table = pd.DataFrame(rows)
    control = table.loc[table["probe"] == "random_words", "auroc"]
    site = table["probe"] == "logistic"
    table["selectivity"] = np.where(site, table["auroc"] - (control.iloc[0] if len(control) else np.nan), np.nan)
    return table


def _measure(
    name: str,
    scores: np.ndarray,
    scaling: probes.PlattScaling,
    labels: np.ndarray,
    document: np.ndarray,
    rng: np.random.Generator,
) -> dict[str, Any]:
    p = scaling.probabilities(scores)
    low, high = probes.auroc_limits(scores, labels, document, rng, N_DRAWS)
    return {
        "probe": name,
        "auroc": probes.auroc(scores, labels),
        "auroc_low": low,
        "auroc_high": high,
        "average_precision": probes.average_precision(scores, labels),
        "base_rate": float(labels.mean()),
        "brier": probes.brier_score(p, labels),
        "calibration_error": probes.calibration_error(p, labels),
        "true_positive_rate": probes.true_positive_rate(scores, labels, FALSE_RATE),
        "n_tokens": len(labels),
        "n_documents": len(np.unique(document)),
    }


def curves_table(splits: Splits, fitted: list[Fitted]) -> pd.DataFrame:
    """ROC curves at rates of false positives from .001 to 1, and calibration in bins of equal counts, on test text."""
    test, rows = splits.test, []
    for own in fitted:
        scores = own.scorer(test)
        for place, rate in enumerate(FALSE_RATES):
            y = probes.true_positive_rate(scores, test.labels, rate)
            rows.append((own.name, "roc", place, rate, y, len(test.labels)))
        p = own.scaling.probabilities(scores)
        at = probes.equal_count_bins(p, 10)
        for place in np.unique(at).tolist():
            inside = at == place
            share = float(test.labels[inside].mean())
            rows.append((own.name, "calibration", place, float(p[inside].mean()), share, int(inside.sum())))
    return pd.DataFrame(rows, columns=["probe", "kind", "place", "x", "y", "n"])


def choose_feature(acts: Callable[[Float[np.ndarray, "n d"]], Float[np.ndarray, "n d_sae"]], training: Tokens) -> int:
    """The feature of an SAE whose activation best tells training tokens apart, either way: the largest |AUROC − ½|."""
    rows = np.unique(np.linspace(0, len(training.ids) - 1, N_SELECTED).astype(int))
    labels = training.labels[rows]
    if not 0 < labels.mean() < 1:
        raise ValueError("feature: training tokens that one is chosen on are of one class; expected both")
    found = acts(training.whole[rows])
    return int(np.argmax([abs(probes.auroc(own, labels) - 0.5) for own in found.T]))
