"""Calibrated scores and thresholds: values by hand, scikit-learn as oracle, and what a threshold promises."""

from __future__ import annotations

import numpy as np
import pytest

import probes


def scores_and_labels(seed, n=400):
    rng = np.random.default_rng(seed)
    labels = rng.random(n) < 0.2
    return np.round(rng.normal(size=n) + 1.2 * labels, 1), labels  # with ties


@pytest.mark.parametrize("seed", range(3))
def test_against_scikit_learn(seed):
    metrics = pytest.importorskip("sklearn.metrics")
    scores, labels = scores_and_labels(seed)
    p = 1 / (1 + np.exp(-scores))
    # the same sums in another order: a few last digits of numbers below 1
    assert abs(probes.average_precision(scores, labels) - metrics.average_precision_score(labels, scores)) < 1e-12
    assert abs(probes.brier_score(p, labels) - metrics.brier_score_loss(labels, p)) < 1e-12
    assert abs(probes.auroc(scores, labels) - metrics.roc_auc_score(labels, scores)) < 1e-12
    false, true, _ = metrics.roc_curve(labels, scores, drop_intermediate=False)
    for rate in (0.0, 0.01, 0.1, 0.5, 1.0):
        assert probes.true_positive_rate(scores, labels, rate) == pytest.approx(true[false <= rate].max(), abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_platt_scaling_is_logistic_regression_on_platts_targets(seed):
    linear = pytest.importorskip("sklearn.linear_model")
    scores, labels = scores_and_labels(seed)
    n_positive, n_negative = labels.sum(), (~labels).sum()
    high, low = (n_positive + 1) / (n_positive + 2), 1 / (n_negative + 2)
    targets = np.where(labels, high, low)
    x = np.concatenate([scores, scores])[:, None]
    y = np.repeat([1, 0], len(scores))
    weights = np.concatenate([targets, 1 - targets])
    expected = linear.LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(x, y, sample_weight=weights)
    found = probes.platt_scaling(scores, labels)
    # both minimise a smooth loss of curvature about .1 to gradients of 1e-8 or less
    assert found.slope == pytest.approx(expected.coef_[0, 0], rel=1e-5)
    assert found.intercept == pytest.approx(expected.intercept_[0], rel=1e-5)


def test_a_constant_score_is_scaled_to_the_base_rate():
    found = probes.platt_scaling(np.full(10, 3.0), np.arange(10) < 3)
    assert found.slope == 0
    share = (3 * 4 / 5 + 7 / 9) / 10  # of Platt's targets
    np.testing.assert_allclose(found.probabilities(np.array([3.0])), share, rtol=1e-12)


def test_bins_have_equal_counts_and_equal_values_share_one():
    p = np.array([0.1] * 5 + [0.2] * 5 + [0.9] * 10)
    labels = np.array([0] * 5 + [1, 0, 0, 0, 0] + [1] * 10)
    assert probes.equal_count_bins(p, 4).tolist() == [0] * 5 + [1] * 5 + [2] * 10
    # bins of .1, .2 and .9: |.1 − 0|, |.2 − .2|, |.9 − 1|, weighed by 5, 5 and 10 of 20
    assert probes.calibration_error(p, labels, 4) == pytest.approx((0.1 * 5 + 0 + 0.1 * 10) / 20, abs=1e-12)
    order = np.random.default_rng(0).permutation(20)
    assert probes.calibration_error(p[order], labels[order], 4) == pytest.approx(0.075, abs=1e-12)


@pytest.mark.parametrize(
    ("n", "alpha", "rank"), [(19, 0.05, 19), (20, 0.05, 20), (39, 0.05, 38), (99, 0.01, 99), (9, 0.1, 9), (10, 0.5, 6)]
)
def test_the_threshold_is_the_score_of_that_rank(n, alpha, rank):
    scores = np.random.default_rng(0).permutation(n) + 1.0
    assert probes.conformal_threshold(scores, alpha) == rank


def test_too_few_scores_are_refused():
    with pytest.raises(ValueError, match=r"got 18 scores for alpha = 0\.05; expected at least 19"):
        probes.conformal_threshold(np.arange(18.0), 0.05)


@pytest.mark.parametrize("alpha", [0.05, 0.2])
@pytest.mark.parametrize("n", [19, 100, 333])
def test_another_score_is_above_the_threshold_as_often_as_said(n, alpha):
    """4,000 calibrations and one further score each, heavy tails: the binomial interval holds ⌊α (n + 1)⌋/(n + 1)."""
    rng = np.random.default_rng([n, int(100 * alpha)])
    draws = rng.standard_t(2, size=(4000, n + 1))
    above = sum(int(row[-1] > probes.conformal_threshold(row[:-1], alpha)) for row in draws)
    low, high = probes.binomial_limits(above, len(draws))
    exact = np.floor(alpha * (n + 1) + 1e-9) / (n + 1)
    # one of six intervals of 95 % may miss; at three standard errors none does
    assert abs(above / 4000 - exact) < 3 * np.sqrt(exact * (1 - exact) / 4000)
    assert low <= alpha or above / 4000 <= alpha
    assert high > 0
