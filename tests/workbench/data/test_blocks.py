"""Blocks of a text: consecutive sequences, as equal as can be, each left out once."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from workbench.data.blocks import MIN_BLOCKS, N_BLOCKS, block_numbers, block_runs, without_each


@pytest.mark.parametrize("n", [1, 7, 8, 15, 16, 17, 100, 128, 1000])
def test_blocks_are_consecutive_and_as_equal_as_can_be(n) -> None:
    numbers = block_numbers(n)
    assert len(numbers) == n
    assert list(numbers) == sorted(numbers)
    sizes = Counter(numbers)
    assert set(sizes) == set(range(min(N_BLOCKS, n) if n >= MIN_BLOCKS else 1))
    assert max(sizes.values()) - min(sizes.values()) <= 1
    assert [(own.stop - own.start) for _, own in block_runs(numbers)] == [sizes[block] for block in sorted(sizes)]


@pytest.mark.parametrize("n", [0, 1, 7, 8, 16])
def test_each_part_is_left_out_once(n) -> None:
    parts = list(np.random.default_rng(n).normal(size=(n, 3)))
    found = list(without_each(parts, np.add))
    assert len(found) == (n if n >= MIN_BLOCKS else 0)
    for i, own in enumerate(found):
        np.testing.assert_allclose(own, sum(parts[:i] + parts[i + 1 :]), rtol=1e-13)
