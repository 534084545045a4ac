"""How numbers are written: true minus signs, dashes for what is undefined, no −0."""

from __future__ import annotations

import pytest

from reports.table_cells import count_parts, fixed, name_seeds, p_text, percent_change, signed, significant

NAN = float("nan")


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (1.005, 1, "1.0"),
        (-0.5, 2, "−0.50"),
        (-0.0001, 2, "0.00"),
        (-0.0, 1, "0.0"),
        (float("-inf"), 1, "–"),
        (NAN, 3, "–"),
        (None, 1, "–"),
        (1e6, 0, "1000000"),
    ],
)
def test_fixed(value, digits, text):
    assert fixed(value, digits) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.0123456, "0.0123"),
        (-97.04, "−97.0"),
        (1234.5, "1234"),
        (1.5e-7, "1.50e−07"),
        (2e9, "2.00e+09"),
        (0.0005, "0.000500"),
        (float("inf"), "–"),
    ],
)
def test_significant(value, text):
    assert significant(value) == text


@pytest.mark.parametrize(
    ("value", "reference", "text"),
    [
        (0.4, 1.0, "−60.0 %"),
        (1.09, 1.0, "+9.0 %"),
        (1.0, 1.0, "0.0 %"),
        (0.9996, 1.0, "0.0 %"),
        (-1.0, -2.0, "+50.0 %"),
        (1.0, 0.0, "–"),
        (NAN, 1.0, "–"),
        (1.0, None, "–"),
        (100.0, 1.0, "+9900 %"),
    ],
)
def test_percent_change(value, reference, text):
    assert percent_change(value, reference) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.0049, "0.00"), (-0.0049, "0.00"), (0.1, "+0.10"), (-1, "−1.00"), (NAN, "–")]
)
def test_signed(value, text):
    assert signed(value, 2) == text


def test_counts_name_one_n_or_the_range():
    assert count_parts({"": [1024.0, 1024.0, NAN]}, "tokens") == "n = 1,024 tokens"
    assert count_parts({"": [10, 48, 12]}, "concepts") == "n = 10 to 48 concepts"
    assert count_parts({"": [NAN]}, "tokens") == "n not given (tokens)"
    assert count_parts({}, "tokens") == "n not given (tokens)"


def test_counts_of_parts_are_named_where_they_differ():
    assert count_parts({"zero": [8, 8], "mean": [8]}, "tokens") == "n = 8 tokens"
    parts = {"trained": [9], "random": [9, 9], "shuffled": [4, 5], "other": [NAN]}
    assert count_parts(parts, "tokens") == "n = 9 tokens (trained, random); shuffled: 4 to 5"


def test_name_seeds():
    assert name_seeds([3]) == "seed 3"
    assert name_seeds([0, 1, 2]) == "seeds 0, 1, 2"


@pytest.mark.parametrize(
    ("p", "n", "text"),
    [
        (1 / 2000, 1999, "p ≤ .0005"),
        (1 / 1000, 999, "p ≤ .001"),
        (2 / 2000, 1999, "p = .0010"),
        (0.0005, None, "p = .00050"),
        (0.0005, NAN, "p = .00050"),
        (0.049, 999, "p = .049"),
        (0.5, 999, "p = .50"),
        (1.0, 999, "p = 1"),
        (NAN, 999, "–"),
        (None, None, "–"),
    ],
)
def test_a_p_at_the_floor_of_its_permutations_is_a_bound(p, n, text):
    assert p_text(p, n) == text
