"""Verdicts: every branch of the rules with its ties, intervals against SciPy's, and how often they hold the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from reports.ledger import VERDICTS as SHOWN_VERDICTS
from workbench.study.effects import UNKNOWN, Effect, effect_over_seeds, shown, working
from workbench.study.verdicts import VERDICTS, judge

P = math.log(0.5)  # a published fall by half


def over_seeds(estimate: float, half: float, n: int = 3) -> Effect:
    return Effect(estimate, (estimate - half, estimate + half), n, "paired")


# --- the rules


@pytest.mark.parametrize(
    ("effect", "verdict"),
    [
        (UNKNOWN, "not measured"),
        (Effect(P, None, 1, "none"), "not enough seeds"),
        (Effect(0.0, None, 2, "none"), "not enough seeds"),
        (over_seeds(P, 0.1), "reproduced"),
        (over_seeds(P, 0.1, n=20), "reproduced"),
        (over_seeds(3 * P, 0.1), "reproduced"),  # more than was published
        (over_seeds(P / 2, 0.1), "reproduced"),  # exactly half is enough
        (over_seeds(P / 2 + 1e-6, 0.1), "same direction"),
        (over_seeds(P / 4, 0.1), "same direction"),
        (over_seeds(P, abs(P) + 0.1), "not seen"),
        (over_seeds(P, abs(P)), "not seen"),  # an interval that ends at 0 holds it
        (over_seeds(0.0, 0.0), "not seen"),  # models that are equal
        (over_seeds(-P, 0.1), "reversed"),
        (over_seeds(-P / 8, 0.01), "reversed"),  # however small
        (over_seeds(P, 0.0), "reproduced"),  # seeds that agree to the last digit
        (Effect(P, (2 * P, P / 2), 1, "own"), "same direction"),  # one seed never reproduces
        (Effect(P, (2 * P, 0.1), 1, "own"), "not seen"),
        (Effect(-P, (0.1, 1.0), 2, "own"), "reversed"),
        (Effect(P, (-math.inf, math.inf), 1, "own"), "not seen"),
        (Effect(P, (-math.inf, -0.1), 1, "own"), "same direction"),
        (Effect(P, (P - 0.1, P + 0.1), 3, "welch"), "reproduced"),
    ],
)
def test_a_claim_of_a_fall(effect, verdict) -> None:
    assert judge(effect, P, -1) == verdict


def test_a_claim_of_a_rise_mirrors_it() -> None:
    assert judge(over_seeds(0.4, 0.1), 0.4, 1) == "reproduced"
    assert judge(over_seeds(0.19, 0.1), 0.4, 1) == "same direction"
    assert judge(over_seeds(-0.4, 0.1), 0.4, 1) == "reversed"


def test_bounds_that_are_no_numbers_are_no_interval() -> None:
    assert judge(Effect(-1.0, (math.nan, -0.5), 3, "paired"), -1.0, -1) == "not enough seeds"
    assert judge(Effect(0.0, (math.nan, math.nan), 3, "paired"), 0.0, 0, margin=0.1) == "not enough seeds"


def test_a_direction_alone_asks_for_no_size() -> None:
    assert judge(over_seeds(-1e-6, 1e-7), None, -1) == "reproduced"
    assert judge(over_seeds(1e-6, 1e-7), None, -1) == "reversed"
    assert judge(Effect(-1.0, (-2, -0.5), 1, "own"), None, -1) == "same direction"


@pytest.mark.parametrize(
    ("effect", "verdict"),
    [
        (UNKNOWN, "not measured"),
        (Effect(0.0, None, 2, "none"), "not enough seeds"),
        (over_seeds(0.0, 0.05), "reproduced"),
        (over_seeds(0.0, 0.0), "reproduced"),  # a published effect of zero, met exactly
        (over_seeds(0.05, 0.05), "reproduced"),  # the margin's edge belongs to it
        (Effect(0.15, (0.1, 0.2), 3, "paired"), "not seen"),  # so it does from outside
        (Effect(-0.15, (-0.2, -0.1), 3, "paired"), "not seen"),
        (over_seeds(0.05, 0.06), "not seen"),
        (over_seeds(-0.05, 0.06), "not seen"),
        (over_seeds(0.0, 9.0), "not seen"),  # nothing is known: that is no agreement
        (over_seeds(0.2, 0.05), "reversed"),
        (over_seeds(-0.2, 0.05), "reversed"),
        (Effect(0.0, (-0.05, 0.05), 1, "own"), "same direction"),
    ],
)
def test_a_claim_of_likeness(effect, verdict) -> None:
    assert judge(effect, 0.0, 0, margin=0.1) == verdict


def test_every_verdict_is_one_that_the_page_draws() -> None:
    assert set(VERDICTS) == set(SHOWN_VERDICTS)


# --- effects and intervals


def test_seeds_that_pair_are_paired() -> None:
    reference, treated = {0: 1.0, 1: 2.0, 2: 4.0, 7: 9.0}, {2: 2.5, 1: 1.0, 0: 0.4, 9: 9.0}
    found = effect_over_seeds(reference, treated, "ratio")
    logs = np.log([[0.4, 1.0], [1.0, 2.0], [2.5, 4.0]])
    expected = stats.ttest_rel(*logs.T).confidence_interval(0.95)
    assert (found.n, found.basis) == (3, "paired")
    assert found.estimate == pytest.approx(np.mean(logs[:, 0] - logs[:, 1]))
    assert found.bounds == pytest.approx(tuple(expected))
    difference = effect_over_seeds(reference, treated, "difference")
    assert difference.estimate == pytest.approx((0.4 + 1.0 + 2.5 - 7.0) / 3)


def test_seeds_that_do_not_pair_are_two_groups() -> None:
    first, second = [1.0, 1.2, 0.9, 1.1], [2.0, 2.6, 1.4]
    found = effect_over_seeds(dict(enumerate(first)), {10 + i: v for i, v in enumerate(second)}, "difference")
    expected = stats.ttest_ind(second, first, equal_var=False).confidence_interval(0.95)
    assert (found.n, found.basis) == (3, "welch")
    assert found.bounds == pytest.approx(tuple(expected))
    # two seeds in common are too few to pair, and the groups are large enough
    assert effect_over_seeds({0: 1.0, 1: 1.2, 2: 0.9}, {0: 2.0, 1: 2.6, 5: 1.4}, "difference").basis == "welch"
    same = effect_over_seeds({0: 1.0, 1: 1.0, 2: 1.0}, {3: 2.0, 4: 2.0, 5: 2.0}, "difference")
    assert same.bounds == (1.0, 1.0)


def test_one_model_against_a_null() -> None:
    values = [-0.2, -0.1, -0.15]
    found = effect_over_seeds(0.0, dict(enumerate(values)), "difference")
    assert found.bounds == pytest.approx(tuple(stats.ttest_1samp(values, 0.0).confidence_interval(0.95)))
    doubled = effect_over_seeds(2.0, {0: 4.0, 1: 4.0, 2: 4.0}, "ratio")
    assert shown(doubled.estimate, "ratio") == pytest.approx(1.0)


def test_too_few_seeds_have_no_interval_but_their_own() -> None:
    found = effect_over_seeds({0: 2.0, 1: 2.0}, {0: 1.0, 1: 4.0}, "ratio")
    assert found == Effect(0.0, None, 2, "none")
    assert effect_over_seeds({0: 2.0}, {0: 1.0}, "ratio", own=(-1.0, -0.5)).basis == "own"
    # from three on the interval over seeds counts
    three = dict.fromkeys(range(3), 1.0)
    assert effect_over_seeds(three, three, "ratio", own=(-1.0, -0.5)).bounds == (0.0, 0.0)
    # nothing in common: the difference of means, of as many seeds as the smaller group has
    assert effect_over_seeds({0: 2.0, 1: 4.0}, {5: 4.0}, "difference") == Effect(1.0, None, 1, "none")


@pytest.mark.parametrize("bad", [math.nan, math.inf, 0.0, -1.0])
def test_a_seed_without_a_ratio_is_a_missing_seed(bad) -> None:
    treated = {0: 2.0, 1: bad, 2: 2.0}
    assert effect_over_seeds(dict.fromkeys(range(3), 1.0), treated, "ratio").n == 2
    assert effect_over_seeds({0: bad}, {0: 1.0}, "ratio") is UNKNOWN
    assert effect_over_seeds({}, {0: 1.0}, "ratio") is UNKNOWN
    n_finite = 3 if math.isfinite(bad) else 2
    assert effect_over_seeds(dict.fromkeys(range(3), 1.0), treated, "difference").n == n_finite


def test_models_that_are_equal_but_for_a_rounding_are_equal() -> None:
    a = {seed: 0.1 * (seed + 1) for seed in range(3)}
    b = {seed: value * (1 + 2e-16) + 1e-17 for seed, value in a.items()}
    found = effect_over_seeds(a, b, "ratio")
    assert judge(found, P, -1) == "not seen"
    assert found.estimate == 0


def test_scales_go_there_and_back() -> None:
    assert working(-0.5, "ratio") == pytest.approx(P)
    assert shown(working(13.0, "ratio"), "ratio") == pytest.approx(13.0)
    assert shown(working(-0.34, "difference"), "difference") == -0.34


# --- how often an interval holds the truth


@pytest.mark.parametrize("n", [3, 5])
def test_coverage_of_paired_intervals(n) -> None:
    rng = np.random.default_rng(n)
    n_studies, truth = 4000, math.log(0.4)
    shared = rng.normal(0, 2.0, (n_studies, n))  # what a seed gives to both models
    reference = np.exp(shared)
    treated = np.exp(shared + truth + rng.normal(0, 0.3, (n_studies, n)))
    effects = [
        effect_over_seeds(dict(enumerate(a)), dict(enumerate(b)), "ratio")
        for a, b in zip(reference, treated, strict=True)
    ]
    holds = [low <= truth <= high for low, high in (e.bounds for e in effects)]
    # exact for normal differences: three standard errors of a share of .95 in 4,000
    assert np.mean(holds) == pytest.approx(0.95, abs=3 * math.sqrt(0.95 * 0.05 / n_studies))


def test_coverage_of_unpaired_intervals_of_unequal_spread() -> None:
    rng = np.random.default_rng(0)
    n_studies = 4000
    first, second = rng.normal(0, 1, (n_studies, 4)), rng.normal(1, 3, (n_studies, 4))
    effects = [
        effect_over_seeds(dict(enumerate(a)), {9 + i: v for i, v in enumerate(b)}, "difference")
        for a, b in zip(first, second, strict=True)
    ]
    holds = [low <= 1 <= high for low, high in (e.bounds for e in effects)]
    # Welch's is approximate: within a point and a half of its level here
    assert np.mean(holds) == pytest.approx(0.95, abs=0.015)


def test_no_effect_is_called_one_in_twenty_times() -> None:
    rng = np.random.default_rng(1)
    n_studies = 4000
    verdicts = [
        judge(effect_over_seeds(0.0, dict(enumerate(values)), "difference"), -0.5, -1)
        for values in rng.normal(0, 1, (n_studies, 3))
    ]
    called = np.mean([verdict != "not seen" for verdict in verdicts])
    assert called == pytest.approx(0.05, abs=3 * math.sqrt(0.95 * 0.05 / n_studies))
    assert verdicts.count("reversed") / n_studies == pytest.approx(0.025, abs=0.0075)


@pytest.mark.parametrize(
    ("bounds", "chance", "verdict"),
    [
        ((0.4, 1.0), 0.3, "reproduced"),
        ((0.4, 1.0), 0.4, "not seen"),  # an interval that ends at what chance gives holds it
        ((0.4, 1.0), 0.9, "not seen"),
        ((0.4, 1.0), 2.0, "not seen"),
        ((0.4, 1.0), -2.0, "reproduced"),
        ((-1.0, -0.4), 0.9, "reversed"),
    ],
)
def test_what_chance_gives_too_is_not_seen(bounds, chance, verdict) -> None:
    low, high = bounds
    assert judge(Effect((low + high) / 2, bounds, 3, "paired"), 0.8, 1, chance=chance) == verdict
    mirrored = Effect(-(low + high) / 2, (-high, -low), 3, "paired")
    assert judge(mirrored, -0.8, -1, chance=-chance) == verdict
