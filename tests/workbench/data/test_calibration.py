"""Sources of known kind against the bands of both presets, and the published automata against nested loops."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from workbench.data import calibration
from workbench.data.calibration import KNOWN, calibration_table, measures, read, sources
from workbench.data.nca import PRESETS

CLASS_IV = tuple(KNOWN)


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("preset", "n", "seed"), [("small", 24, 1), ("kotodama", 4, 0)])
def test_what_is_frozen_cyclic_or_independent_is_never_kept(preset: str, n: int, seed: int) -> None:
    config, generator = PRESETS[preset], _generator(seed)
    names = []
    for name, of, grids in sources(config, n, generator):
        if name in (*CLASS_IV, "rules"):
            break
        names.append(name)
        found = measures(read(of, grids, n, config.steps[0], generator), np.random.default_rng(seed))
        for ratio, apart in found:
            is_kept = config.min_ratio <= ratio <= config.max_ratio
            is_kept &= config.independence[0] <= apart <= config.independence[1]
            assert not is_kept, (name, ratio, apart)
    assert len(names) == 10 + (config.channels > 1)


def test_the_table_of_the_small_preset() -> None:
    table = {row.source: row for row in calibration_table(PRESETS["small"], 64, _generator(), 24)}
    assert [name for name, row in table.items() if row.kept_share] == [*CLASS_IV, "rules"]
    assert 0 < table["rules"].kept_share < 0.4
    assert table["Star Wars (B2/S345/4)"].kept_share > 0.6
    # zlib 1.2 to 1.3; another version may better the sizes by a byte or two in 9,216
    assert table["uniform noise"].ratio[0] == pytest.approx(0.613, abs=0.003)
    assert table["frozen"].independence == (1, 1, 1)
    assert table["frozen"].ratio[0] == pytest.approx(0.021, abs=0.002)
    assert table["period 3"].independence[2] < 0.6
    for row in table.values():
        for mean, least, most in (row.ratio, row.independence):
            assert least - 1e-9 <= mean <= most + 1e-9


def _next(grid: np.ndarray, born: set[int], survives: set[int], n_states: int) -> np.ndarray:
    size, after = len(grid), grid.copy()
    for y, x in itertools.product(range(size), range(size)):
        around = sum(
            grid[(y + dy) % size, (x + dx) % size] == 1
            for dy, dx in itertools.product((-1, 0, 1), (-1, 0, 1))
            if (dy, dx) != (0, 0)
        )
        if grid[y, x] == 0:
            after[y, x] = int(around in born)
        elif grid[y, x] > 1 or around not in survives:
            after[y, x] = (grid[y, x] + 1) % n_states
    return after


@pytest.mark.parametrize("name", KNOWN)
def test_published_automata_equal_the_loop(name: str) -> None:
    born, survives, n_states = KNOWN[name]
    config = PRESETS["small"].model_copy(update={"size": 10, "channels": 2, "burn_in": 0})
    grids = calibration._known(config, 2, born, survives, n_states, _generator(1))
    before = next(grids).unflatten(-1, (10, 10)).numpy()
    for _ in range(4):
        after = next(grids).unflatten(-1, (10, 10)).numpy()
        for n, c in itertools.product(range(2), range(2)):
            np.testing.assert_array_equal(after[n, c], _next(before[n, c], born, survives, n_states))
        before = after
    assert len(np.unique(before)) > 1


def test_a_glider_travels() -> None:
    born, survives, n_states = KNOWN["Conway's Life (B3/S23)"]
    glider = np.zeros((8, 8), dtype=int)
    glider[[0, 1, 2, 2, 2], [1, 2, 0, 1, 2]] = 1
    grid = glider
    for _ in range(4):
        grid = _next(grid, born, survives, n_states)
    np.testing.assert_array_equal(grid, np.roll(glider, (1, 1), (0, 1)))
