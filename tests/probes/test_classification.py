"""Logistic probes and AUROC against scikit-learn, intervals against naive resampling and coverage."""

from __future__ import annotations

import numpy as np
import pytest
import scipy
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from probes import auroc, auroc_limits, binomial_limits, fit_logistic


def sample(seed, n=200, d=6):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, d)) * np.geomspace(0.01, 100, d) + 3
    y = (X[:, 0] - 3) / 0.01 + rng.standard_normal(n) > 0.5
    return X, y


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("C", [0.1, 1.0, 10.0])
def test_the_probe_is_scikit_learns(seed, C) -> None:
    X, y = sample(seed)
    scaler = StandardScaler().fit(X)
    other = LogisticRegression(C=C, tol=1e-10, max_iter=10_000).fit(scaler.transform(X), y)
    found = fit_logistic(X, y, C=C)
    np.testing.assert_allclose(found.scores(X), other.decision_function(scaler.transform(X)), atol=2e-4)
    np.testing.assert_allclose(found.weights * scaler.scale_, other.coef_[0], atol=2e-4)


def test_constant_inputs_have_no_weight_and_units_do_not_matter() -> None:
    X, y = sample(0)
    with_constant = np.column_stack([X, np.full(len(X), 1e9)])
    found = fit_logistic(with_constant, y)
    assert found.weights[-1] == 0
    np.testing.assert_allclose(found.scores(with_constant), fit_logistic(X, y).scores(X), atol=1e-5)
    np.testing.assert_allclose(fit_logistic(1e-3 * X, y).scores(1e-3 * X), fit_logistic(X, y).scores(X), atol=1e-4)


@pytest.mark.parametrize("seed", range(6))
def test_auroc_with_ties_is_scikit_learns(seed) -> None:
    rng = np.random.default_rng(seed)
    scores, y = rng.integers(0, 6, 80).astype(float), rng.random(80) > 0.6
    assert auroc(scores, y) == pytest.approx(roc_auc_score(y, scores), abs=1e-12)


def test_the_interval_is_a_naive_bootstrap_over_groups() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(25), 4)
    y = rng.random(100) > 0.5
    scores = np.round(y + rng.standard_normal(100), 1)
    draws, again = [], np.random.default_rng(7)
    for counts in again.multinomial(25, np.full(25, 1 / 25), size=500):
        rows = np.repeat(np.arange(100), counts[groups])
        draws.append(roc_auc_score(y[rows], scores[rows]))
    tail = scipy.stats.norm.cdf(np.sqrt(25 / 24) * scipy.stats.t.ppf(0.025, 24))
    found = auroc_limits(scores, y, groups, np.random.default_rng(7), 500)
    np.testing.assert_allclose(found, np.quantile(draws, [tail, 1 - tail]), atol=1e-12)


def test_an_interval_needs_two_groups_of_two_classes() -> None:
    y = np.array([0, 1, 0, 1])
    rng = np.random.default_rng(0)
    assert np.isnan(auroc_limits(np.arange(4.0), y, np.zeros(4, int), rng)).all()
    # two draws of three hold the one positive, which scores above all others
    assert auroc_limits(np.arange(10.0), np.arange(10) == 9, np.arange(10), rng) == (1, 1)


@pytest.mark.parametrize(("k", "n"), [(0, 20), (20, 20), (3, 11), (50, 100)])
def test_binomial_limits_are_scipys_exact_ones(k, n) -> None:
    expected = scipy.stats.binomtest(k, n).proportion_ci(0.95, method="exact")
    np.testing.assert_allclose(binomial_limits(k, n), (expected.low, expected.high), atol=1e-12)
    assert np.isnan(binomial_limits(0, 0)).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fit_logistic(np.ones((3, 2)), [0, 0, 0]), "expected 3 of both 0 and 1"),
        (lambda: fit_logistic(np.ones((3, 2)), [0, 1]), "expected 3 of both 0 and 1"),
        (lambda: fit_logistic(np.ones((3, 2)), [0, 1, 2]), "expected 3 of both 0 and 1"),
        (lambda: fit_logistic(np.ones((3, 2)), [0, 1, 1], C=0), "C is 0; expected a finite number > 0"),
        (lambda: auroc(np.array([1.0, np.nan]), [0, 1]), "expected finite numbers"),
        (lambda: auroc_limits([1.0, 2], [0, 1], [0], np.random.default_rng(0)), "got 1 groups for 2 scores"),
        (lambda: binomial_limits(3, 2), "got 3 of 2; expected 0 ≤ n_true ≤ n"),
    ],
)
def test_bad_input_is_refused(call, message) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        call()
    assert message in str(caught.value)
