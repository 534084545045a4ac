"""Windows laid over each other: nothing is lost, and what overlaps is stored once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reports.overlap import overlay


def check(windows: list[tuple[int, ...]]) -> list[int]:
    line, places = overlay(windows)
    for window, place in zip(windows, places, strict=True):
        assert tuple(line[place : place + len(window)]) == window
    assert len(line) <= sum(map(len, windows))
    return line


@settings(max_examples=300, deadline=None)
@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9).map(tuple), max_size=30))
def test_every_window_is_found_where_it_was_laid(windows):
    check(list(dict.fromkeys(windows)))


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_windows_of_one_text_make_up_that_text(seed):
    rng = np.random.default_rng(seed)
    text = rng.integers(0, 300, 3000)
    starts = rng.permutation(np.arange(0, 3000 - 16))[:1500]
    windows = [tuple(int(token) for token in text[start : start + 16]) for start in starts]
    line = check(windows)
    covered = np.zeros(3000, dtype=bool)
    for start in starts:
        covered[start : start + 16] = True
    # chains may break where a later window begins before an earlier chain: a few windows are stored twice
    assert len(line) <= covered.sum() * 1.15
    assert len(line) < sum(map(len, windows)) / 7


def test_a_window_inside_another_costs_nothing():
    assert len(check([(1, 2, 3, 4, 5, 6, 7, 8), (3, 4, 5, 6)])) == 8


def test_windows_that_share_nothing_stand_side_by_side():
    assert check([(1, 2, 3), (4, 5), (6,)]) == [1, 2, 3, 4, 5, 6]


def test_nothing_laid_is_nothing():
    assert overlay([]) == ([], [])


def test_periodic_text_stays_quick():
    windows = [tuple((start * 7 + i) % 5 for i in range(length)) for length in range(4, 80) for start in range(5)]
    check(list(dict.fromkeys(windows)))
