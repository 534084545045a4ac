"""Bins and contexts of intervals, kept while activations stream past, against all activations at once."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from workbench.analyses.atlas.intervals import N_BINS, N_INTERVALS, Spread, SpreadKeeper, shuffled, unshuffled

N_SAES, D_SAE, N_CTX, RADIUS = 3, 5, 6, 2


def random_acts(seed: int, batch: int = 40) -> torch.Tensor:
    """Sparse activations of many sizes [sae sequence pos feature], 0 at position 0; some features grow, one is dead."""
    generator = torch.Generator().manual_seed(seed)
    acts = torch.randn(N_SAES, batch, N_CTX, D_SAE, generator=generator).relu()
    acts *= torch.logspace(-30, 12, D_SAE, base=2)
    acts[:, :, :, 1] *= torch.linspace(0.001, 90, batch)[:, None]
    acts[1, :, :, 2] = 0
    acts[:, :, 0] = 0
    return acts


def keep(acts: torch.Tensor, sizes: list[int]) -> Spread:
    keeper, first = SpreadKeeper(N_SAES, D_SAE, RADIUS), 0
    for size in sizes:
        part = acts[:, first : first + size]
        is_counted = torch.ones(size, N_CTX, dtype=torch.bool)
        is_counted[:, 0] = False
        keeper.update(part, is_counted)
        first += size
    assert first == acts.shape[1]
    return keeper.spread(N_CTX)


def wanted(acts: torch.Tensor) -> tuple[float, list[int], list[int | None]]:
    """(width, counts, flat token of each interval) of one feature's activations [sequence pos], the plain way."""
    flat = acts.flatten().double()
    if not (flat > 0).any():
        return math.nan, [0] * N_BINS, [None] * N_INTERVALS
    width = 2.0 ** (math.floor(math.log2(float(flat.max()))) + 1) / N_BINS
    bins = [int(value // width) for value in flat.tolist()]
    counts = [
        sum(own == i and value > 0 for own, value in zip(bins, flat.tolist(), strict=True)) for i in range(N_BINS)
    ]
    order = shuffled(torch.arange(len(flat))).tolist()
    tokens: list[int | None] = []
    for interval in range(N_INTERVALS):
        inside = [
            t for t, value in enumerate(flat.tolist()) if value > 0 and bins[t] * N_INTERVALS // N_BINS == interval
        ]
        tokens.append(min(inside, key=order.__getitem__, default=None))
    return width, counts, tokens


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("sizes", [[40], [1] * 40, [7, 20, 13]])
def test_batches_give_what_all_activations_give(seed, sizes, monkeypatch) -> None:
    monkeypatch.setattr("workbench.analyses.atlas.intervals.ELEMENTS_AT_ONCE", 2 * D_SAE * N_CTX * sizes[0])
    acts = random_acts(seed)
    spread = keep(acts, sizes)
    own = spread.contexts
    for s in range(N_SAES):
        for f in range(D_SAE):
            width, counts, tokens = wanted(acts[s, :, :, f])
            assert spread.counts[s, f].tolist() == counts
            assert math.isnan(width) or float(spread.widths[s, f]) == width
            for interval, token in enumerate(tokens):
                if token is None:
                    assert (int(own.sequences[s, f, interval]), float(own.values[s, f, interval])) == (-1, 0)
                    continue
                sequence, peak = divmod(token, N_CTX)
                assert (int(own.sequences[s, f, interval]), int(own.peaks[s, f, interval])) == (sequence, peak)
                assert own.values[s, f, interval] == acts[s, sequence, peak, f]
                plain = [
                    0.0 if not 0 <= p < N_CTX else float(acts[s, sequence, p, f]) if p else np.nan
                    for p in range(peak - RADIUS, peak + RADIUS + 1)
                ]
                np.testing.assert_array_equal(own.windows[s, f, interval], plain)


def test_a_shuffle_is_undone() -> None:
    places = torch.cat([torch.arange(5000), 2**32 - 1 - torch.arange(5000), torch.tensor([2**31, 2**31 - 1])])
    mixed = shuffled(places)
    assert len(mixed.unique()) == len(places)
    assert 0 <= int(mixed.min()) < int(mixed.max()) < 2**32
    assert torch.equal(unshuffled(mixed), places)


def test_a_context_of_an_interval_is_any_of_its_tokens_alike() -> None:
    """The place drawn among n equal activations is spread evenly over them."""
    acts = torch.zeros(1, 4000, 2, 1)
    places = []
    for start in range(0, 3900, 3):
        acts.zero_()
        acts[0, start : start + 100, 1, 0] = 1.0
        keeper = SpreadKeeper(1, 1, 0)
        keeper.update(acts, torch.ones(4000, 2, dtype=torch.bool))
        spread = keeper.spread(2)
        places.append(int(spread.contexts.sequences[0, 0, N_INTERVALS // 2]) - start)
    counts = np.bincount(np.array(places) // 20, minlength=5)
    assert counts.sum() == 1300
    assert (np.abs(counts - 260) < 80).all(), counts
