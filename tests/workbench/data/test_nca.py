"""Cellular automata: a step against nested loops, tokens by hand, the filter, and streams that resume exactly."""

from __future__ import annotations

import gzip
import itertools
import json
import math
from collections import Counter

import numpy as np
import pytest
import torch
from torch import Tensor

from workbench.data import complexity, nca, nca_sampler
from workbench.data.nca import PRESETS, NCAConfig, Rules
from workbench.data.nca_sampler import NCASampler

# every window is kept, so that streams are quick to draw
TINY = NCAConfig(
    states=3, channels=2, size=4, hidden=5, temperature=(0.5, 2.0), inertia=(0.5, 1.5), burn_in=2, steps=(5, 9),
    min_ratio=0, max_ratio=2, independence=(0, 2),
)  # fmt: skip
QUICK = NCAConfig(steps=(12, 20), max_ratio=2, independence=(0.3, 0.97))


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _grid(config: NCAConfig, n: int, seed: int) -> Tensor:
    shape = (n, config.channels, config.size**2)
    return torch.randint(config.states, shape, generator=_generator(seed), dtype=torch.int32)


def _naive_logits(rules: Rules, r: int, grid: Tensor) -> np.ndarray:
    """Rule r's logits [channel, state, cell] from its definition: one-hot input, 3×3 convolution, wrap-around."""
    config = rules.config
    n, c, s = config.size, config.channels, config.states
    w_in = rules.w_in[r].double().numpy().reshape(3, 3, c, s, config.hidden)
    out = np.zeros((c, s, n * n))
    for y, x in itertools.product(range(n), range(n)):
        hidden = rules.b_in[r, 0].double().numpy().copy()
        for dy, dx, ch in itertools.product((-1, 0, 1), (-1, 0, 1), range(c)):
            state = int(grid[ch, (y + dy) % n * n + (x + dx) % n])
            for k in range(s):
                hidden += w_in[dy + 1, dx + 1, ch, k] * (1.0 if k == state else 0.0)
        hidden = np.maximum(hidden, 0)
        logits = rules.w_out[r].double().numpy() @ hidden + rules.b_out[r, :, 0].double().numpy()
        for ch, k in itertools.product(range(c), range(s)):
            is_present = int(grid[ch, y * n + x]) == k
            out[ch, k, y * n + x] = logits[ch * s + k] + float(rules.inertia[r]) * is_present
    return out / float(rules.temperature[r])


# --- one step


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "config", [TINY, NCAConfig(states=4, size=6, hidden=3), NCAConfig(states=2, channels=3, size=4)]
)
def test_logits_equal_the_loop(config: NCAConfig, seed: int) -> None:
    rules, grid = nca.draw_rules(config, 3, _generator(seed)), _grid(config, 3, seed)
    found = nca.transition_logits(rules, grid)
    for r in range(3):
        wanted = _naive_logits(rules, r, grid[r])
        # float32 sums of 9·channels terms of order one, over τ
        np.testing.assert_allclose(found[r].numpy(), wanted, rtol=2e-5, atol=2e-5 / float(rules.temperature[r]))


def test_a_rule_sees_its_nine_neighbours_only_and_wraps() -> None:
    config = NCAConfig(states=3, size=8, temperature=(1.0, 1.0))
    rules, grid = nca.draw_rules(config, 1, _generator()), _grid(config, 1, 0)
    before = nca.transition_logits(rules, grid)
    changed = grid.clone()
    changed[0, 0, 0] = (changed[0, 0, 0] + 1) % 3  # the corner
    moved = (nca.transition_logits(rules, changed) != before).any(2)[0, 0].view(8, 8)
    wanted = torch.zeros(8, 8, dtype=torch.bool)
    for y, x in itertools.product((7, 0, 1), (7, 0, 1)):
        wanted[y, x] = True
    assert not (moved & ~wanted).any()
    assert moved.sum() >= 7  # ReLUs may hide a change


def test_a_step_commutes_with_shifts_of_the_grid() -> None:
    config = NCAConfig(states=5, size=6, temperature=(1.0, 1.0))
    rules, grid = nca.draw_rules(config, 4, _generator()), _grid(config, 4, 1)

    def shift(x: Tensor) -> Tensor:
        return x.unflatten(-1, (6, 6)).roll((2, -1), (-2, -1)).flatten(-2)

    a, b = shift(nca.transition_logits(rules, grid)), nca.transition_logits(rules, shift(grid))
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_next_states_follow_the_softmax() -> None:
    config = NCAConfig(states=4, size=4, temperature=(0.4, 0.4), inertia=(1.0, 1.0))
    one = nca.draw_rules(config, 1, _generator(3))
    n = 20_000
    rules = Rules(config, *(getattr(one, f).expand(n, *getattr(one, f).shape[1:]).contiguous() for f in (
        "w_in", "b_in", "w_out", "b_out", "temperature", "inertia")))  # fmt: skip
    grid = _grid(config, 1, 3)
    drawn = nca.step(rules, grid.expand(n, -1, -1).contiguous(), _generator(4))[:, 0]
    p = torch.softmax(torch.from_numpy(_naive_logits(one, 0, grid[0]))[0], 0)
    share = torch.stack([(drawn == k).double().mean(0) for k in range(4)])
    # 64 shares, each within 4.5 standard errors (one in 150,000 by chance)
    assert ((share - p).abs() <= 4.5 * (p * (1 - p) / n).sqrt() + 1e-9).all()


@pytest.mark.parametrize("seed", range(5))
def test_a_cold_rule_takes_the_largest_logit(seed: int) -> None:
    config = PRESETS["small"]
    rules, grid = nca.draw_rules(config, 8, _generator(seed)), _grid(config, 8, seed)
    logits = nca.transition_logits(rules, grid) * config.temperature[0]
    top = logits.topk(2, dim=2).values
    clear = top[:, :, 0] - top[:, :, 1] > 0.01  # 100 τ: the second has probability e^−100
    assert clear.float().mean() > 0.97
    assert torch.equal(nca.step(rules, grid, _generator(9))[clear], logits.argmax(2).int()[clear])


@pytest.mark.parametrize("uniform", [0.0, 0.25, 0.5, 1 - 2**-24])
def test_no_uniform_number_draws_a_state_of_no_weight(monkeypatch: pytest.MonkeyPatch, uniform: float) -> None:
    config = NCAConfig(states=3, size=4)
    rules = nca.draw_rules(config, 1, _generator())
    grid = torch.zeros(1, 1, 16, dtype=torch.int32)
    logits = torch.tensor([-1000.0, 0.0, -1000.0]).view(1, 1, 3, 1).expand(1, 1, 3, 16)
    monkeypatch.setattr(nca, "transition_logits", lambda *_: logits.clone())
    monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.full((1, 1, 16), uniform))
    assert (nca.step(rules, grid, _generator()) == 1).all()


def test_rules_are_drawn_as_stated() -> None:
    config = NCAConfig(size=4, temperature=(0.3, 1.0), inertia=(0.5, 2.0))
    rules = nca.draw_rules(config, 4000, _generator())
    assert rules.w_in.shape == (4000, 9 * 10, 16)
    for weights, std in ((rules.w_in, 0.5), (rules.w_out, 0.5), (rules.b_in, 0.1), (rules.b_out, 0.1)):
        # 40,000 numbers or more: the mean is within 5 σ/√n, the standard deviation within 5 σ/√(2n)
        assert abs(weights.mean().item()) < 5 * std / math.sqrt(weights.numel())
        assert abs(weights.std().item() - std) < 5 * std / math.sqrt(2 * weights.numel())
    for drawn, (low, high) in ((rules.temperature, config.temperature), (rules.inertia, config.inertia)):
        assert low <= drawn.min() < low + 0.01
        assert high - 0.01 < drawn.max() <= high
    assert (nca.draw_rules(PRESETS["small"], 3, _generator()).temperature == 1e-4).all()


def test_a_history_is_its_steps_and_ends_when_it_should() -> None:
    rules = nca.draw_rules(TINY, 3, _generator())
    frames = list(nca.histories(rules, [4, 4, 2], _generator(1)))
    assert [len(grid) for grid in frames] == [3, 3, 2, 2]
    g = _generator(1)
    grid = torch.randint(3, (3, 2, 16), generator=g, dtype=torch.int32)
    for _ in range(2):  # of burn-in, the second is the first kept
        grid = nca.step(rules, grid, g)
    assert torch.equal(frames[0], grid)
    for t in range(1, 4):
        n = len(frames[t])
        grid = nca.step(rules.select(slice(n)), grid[:n], g)
        assert torch.equal(frames[t], grid)
    still = TINY.model_copy(update={"burn_in": 0})
    first = next(nca.histories(nca.draw_rules(still, 1, _generator()), [1], _generator(1)))
    assert torch.equal(first, torch.randint(3, (1, 2, 16), generator=_generator(1), dtype=torch.int32))


def test_trajectories_are_what_the_windows_read() -> None:
    config = TINY.model_copy(update={"size": 8, "window": 4, "n_windows": 3})
    rules, cells = nca.draw_rules(config, 2, _generator()), nca.draw_windows(config, 2, _generator(2))
    found = nca.trajectories(rules, cells, [5, 3], _generator(1))
    assert [of.shape for of in found] == [(3, 5, 8), (3, 3, 8)]
    for t, grid in enumerate(nca.histories(rules, [5, 3], _generator(1))):
        read = nca.patches(config, grid, cells[: len(grid)])
        for rule in range(len(grid)):
            assert torch.equal(found[rule][:, t], read[rule])


# --- tokens


def test_patches_by_hand() -> None:
    config = NCAConfig(states=10, channels=2, size=4)
    grid = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8], [9, 0, 1, 2], [3, 4, 5, 6]], dtype=torch.int32).flatten()
    cells = torch.tensor([0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15]).view(1, 1, 16)
    found = nca.patches(config, torch.stack([grid, 9 - grid]).view(1, 2, 16), cells)
    first = [1 + 20 + 500 + 6000, 3 + 40 + 700 + 8000, 9 + 0 + 300 + 4000, 1 + 20 + 500 + 6000]
    assert found.tolist() == [[first + [9999 - token for token in first]]]  # the second channel after the first


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("size", "window", "n_windows"), [(6, None, 1), (7, 2, 9), (12, 6, 4), (9, 4, 3)])
def test_windows_equal_the_loop_and_never_overlap(size: int, window: int | None, n_windows: int, seed: int) -> None:
    config = NCAConfig(states=7, channels=3, size=size, window=window, n_windows=n_windows)
    read, n = config.read_size, 4
    grid = _grid(config, n, seed)
    cells = nca.draw_windows(config, n, _generator(seed))
    found = nca.patches(config, grid, cells)
    assert found.shape == (n, n_windows, config.n_patches)
    for r in range(n):
        seen = cells[r].flatten().tolist()
        assert len(set(seen)) == len(seen) == n_windows * read**2
        for w in range(n_windows):
            y0, x0 = divmod(int(cells[r, w, 0]), size)
            tokens = []
            for c, i, j in itertools.product(range(3), range(read // 2), range(read // 2)):
                v = [
                    int(grid[r, c, (y0 + 2 * i + p) % size * size + (x0 + 2 * j + q) % size])
                    for p, q in itertools.product((0, 1), (0, 1))
                ]
                tokens.append(sum(value * 7**k for k, value in enumerate(v)))
            assert found[r, w].tolist() == tokens


def test_windows_lie_everywhere() -> None:
    config = NCAConfig(size=8, window=4, n_windows=2)
    corners = nca.draw_windows(config, 4000, _generator())[..., 0]
    counts = torch.bincount(corners.flatten(), minlength=64).double()
    assert (counts - 125).abs().max() < 5 * math.sqrt(125)  # 8,000 corners over 64 cells


def test_delimiters_the_cut_and_the_mask() -> None:
    config = NCAConfig(states=2, size=4)  # 4 patches, frames of 6
    frames = torch.arange(20, dtype=torch.int32).view(5, 4)
    assert nca.delimit(config, frames[:2], 12).tolist() == [[16, 0, 1, 2, 3, 17, 16, 4, 5, 6, 7, 17]]
    # the frame that breaks off begins the next sequence; what fills none at the end is left out
    assert nca.delimit(config, frames, 9).tolist() == [
        [16, 0, 1, 2, 3, 17, 16, 4, 5],
        [16, 4, 5, 6, 7, 17, 16, 8, 9],
        [16, 8, 9, 10, 11, 17, 16, 12, 13],
        [16, 12, 13, 14, 15, 17, 16, 16, 17],
    ]
    assert nca.delimit(config, frames, 12).tolist() == [
        [16, 0, 1, 2, 3, 17, 16, 4, 5, 6, 7, 17],
        [16, 8, 9, 10, 11, 17, 16, 12, 13, 14, 15, 17],
    ]
    assert nca.score_mask(config, 2, 9, "cpu").tolist() == [[False] * 6 + [True] * 3] * 2
    small, published = PRESETS["small"], PRESETS["kotodama"]
    assert (small.start_id, small.d_vocab, small.n_patches, small.frame_tokens) == (10_000, 10_002, 36, 38)
    assert (published.d_vocab, published.n_patches, published.frame_tokens) == (10_002, 8 * 16, 130)
    assert published.model_copy(update={"window": None}).frame_tokens == 8194


@pytest.mark.parametrize(("n_ctx", "least", "window"), [(129, 132, 6), (16, 132, 2), (11, 132, None)])
def test_a_sequence_that_holds_no_transition_is_refused(n_ctx: int, least: int, window: int | None) -> None:
    config = PRESETS["kotodama"]
    mend = f", or a window of {window}" if window else ""
    with pytest.raises(ValueError, match=rf"nca: n_ctx is {n_ctx}; expected at least {least}{mend}: a frame of 8"):
        nca.check_trajectory(config, n_ctx)
    nca.check_trajectory(config, least)
    if window:
        nca.check_trajectory(config.model_copy(update={"window": window, "steps": (10_000, 10_000)}), n_ctx)


def test_a_trajectory_that_fills_no_sequence_is_refused() -> None:
    config = PRESETS["kotodama"]
    nca.check_trajectory(config, 64 * 130)
    with pytest.raises(ValueError, match=r"steps are 64, 256; expected at least 65: a sequence of 8321 tokens"):
        nca.check_trajectory(config, 64 * 130 + 1)


def test_the_shuffled_control_keeps_tokens_and_delimiters() -> None:
    config = QUICK
    options = {"n_ctx": 100, "batch_size": 8, "seed": 3, "n_rules": 32}
    plain, mask = NCASampler(config, **options).next_batch()
    control, mask_too = NCASampler(config.model_copy(update={"shuffled": True}), **options).next_batch()
    assert torch.equal(mask, mask_too)
    delimiter = plain >= config.start_id
    assert torch.equal(plain[delimiter], control[delimiter])
    assert (control[~delimiter] < config.start_id).all()
    for a, b in zip(plain.tolist(), control.tolist(), strict=True):
        assert Counter(a) == Counter(b)
        assert a != b
    orders = {tuple(torch.argsort(row, stable=True).tolist()) for row in control}
    assert len(orders) == 8  # every sequence in an order of its own


# --- the filter


@pytest.mark.parametrize("n_frames", [1, 4])
def test_ratios_are_gzips(n_frames: int) -> None:
    frames = np.random.default_rng(0).integers(10_000, size=(5, n_frames, 36))
    frames[1] = 7
    for tokens in frames:
        data = b"".join(int(v).to_bytes(4, "little") for v in tokens.flatten())
        assert complexity.compression_ratio(tokens) == pytest.approx(len(gzip.compress(data, 9)) / len(data))


def test_independence_rotates_every_history_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = np.random.default_rng(0).integers(10_000, size=(7, 50))
    seen: list[np.ndarray] = []
    monkeypatch.setattr(complexity, "gzip_size", lambda of: seen.append(of) or 1)
    assert complexity.independence(tokens, np.random.default_rng(1)) == 1
    assert seen[0] is tokens
    offsets = [
        [k for k in range(7) if seen[1][:, place].tolist() == np.roll(tokens[:, place], -k).tolist()]
        for place in range(50)
    ]
    assert all(len(found) == 1 for found in offsets)  # a rotation, and of no other place
    assert {k for (k,) in offsets} == set(range(7))


@pytest.mark.parametrize("band", [(0.05, 0.4), (0.5, 0.6)])
def test_only_windows_in_the_bands_are_kept(band: tuple[float, float]) -> None:
    config = NCAConfig(min_ratio=band[0], max_ratio=band[1], independence=(0.3, 0.99), steps=(12, 12))
    sampler = NCASampler(config, 12 * 38, 20, 0, n_rules=64)  # a whole trajectory, so that the batch tells the ratios
    tokens, _ = sampler.next_batch()
    ratios = [complexity.compression_ratio(of.numpy()) for of in tokens.view(20, 12, 38)[:, :, 1:-1]]
    assert band[0] <= min(ratios) < max(ratios) <= band[1]
    assert 0 < sampler.kept_share < 1
    anew = [complexity.independence(of.numpy(), np.random.default_rng(3)) for of in tokens.view(20, 12, 38)[:, :, 1:-1]]
    # the rotation is another: within what chance does to a trajectory of 432 tokens
    assert max(anew) < 1.06


def test_bands_that_nothing_falls_in_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nca_sampler, "_HOPELESS", 64)
    sampler = NCASampler(QUICK.model_copy(update={"min_ratio": 1.5}), 80, 2, 9, n_rules=16)
    with pytest.raises(ValueError, match=r"nca: none of 64 rules of seed 9 has a gzip ratio in 1\.5 to 2\.0"):
        sampler.next_batch()


# --- the sampler


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("seed", [0, 7])
def test_a_resumed_sampler_reads_what_the_uninterrupted_one_reads(seed: int, shuffled: bool) -> None:
    config = QUICK.model_copy(update={"shuffled": shuffled})

    def make() -> NCASampler:
        return NCASampler(config, 90, 5, seed, n_rules=12)  # batches straddle blocks

    whole = make()
    assert math.isnan(whole.kept_share)
    wanted = [whole.next_batch()[0] for _ in range(9)]
    assert len({tuple(row) for batch in wanted for row in batch.tolist()}) > 36  # some windows repeat
    for stop in (0, 3, 4, 9):
        first = make()
        for _ in range(stop):
            first.next_batch()
        second = make()
        second.next_batch()  # where it stood does not matter
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        assert all(torch.equal(second.next_batch()[0], batch) for batch in wanted[stop:])
        assert second.state_dict() == whole.state_dict()
        assert second.kept_share == whole.kept_share
    torch.manual_seed(5)
    assert torch.equal(make().next_batch()[0], wanted[0])


def test_generating_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    NCASampler(QUICK, 90, 2, 0, n_rules=16).next_batch()
    assert torch.equal(torch.get_rng_state(), before)


def test_seeds_give_different_streams() -> None:
    batches = [NCASampler(QUICK, 90, 4, seed, n_rules=16).next_batch()[0] for seed in range(4)]
    assert len({tuple(b.flatten().tolist()) for b in batches}) == 4


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_share_the_global_batch(world_size: int) -> None:
    def make(**shard: int) -> NCASampler:
        return NCASampler(QUICK, 90, 6, 5, n_rules=16, **shard)

    whole, ranks = make(), [make(rank=r, world_size=world_size) for r in range(world_size)]
    for _ in range(3):
        tokens, mask = whole.next_batch()
        parts = [r.next_batch() for r in ranks]
        assert torch.equal(torch.cat([t for t, _ in parts]), tokens)
        assert torch.equal(torch.cat([m for _, m in parts]), mask)
    assert all(r.state_dict() == whole.state_dict() for r in ranks)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_give_tokens_of_the_vocabulary(name: str) -> None:
    every = {"min_ratio": 0, "max_ratio": 2, "independence": (0, 2), "steps": (64, 66)}
    config = PRESETS[name].model_copy(update=every)
    n_ctx = 2048 if name == "kotodama" else 128
    tokens, mask = NCASampler(config, n_ctx, 2, 0, n_rules=2).next_batch()
    assert tokens.shape == mask.shape == (2, n_ctx)
    assert (tokens.dtype, mask.dtype) == (torch.int64, torch.bool)
    assert tokens.min() >= 0
    assert tokens.max() == config.d_vocab - 1
    assert mask.sum(1).tolist() == [n_ctx - config.frame_tokens] * 2
    assert (tokens[:, :: config.frame_tokens] == config.start_id).all()


def _naive_windows(config: NCAConfig, n_ctx: int, seed: int, n_rules: int) -> list[list[list[int]]]:
    """Block 0's windows, each the frames that its sequences tell, put together again by their overlaps."""
    sampler = NCASampler(config, n_ctx, 1, seed, n_rules=n_rules)
    sequences, _ = sampler._generate(0)
    n = config.frame_tokens
    return [[row[i : i + n] for i in range(0, n_ctx, n)] for row in sequences.tolist()]


def test_trajectories_are_cut_into_successive_sequences() -> None:
    """Every sequence but the first of its window begins with the frame that another breaks off in."""
    config = TINY.model_copy(update={"steps": (5, 9), "states": 9})
    rows = _naive_windows(config, 22, 3, 40)  # frames of 10 tokens: two whole ones and two tokens of a third
    firsts = Counter(tuple(row[0]) for row in rows)
    follows = [sum(n for first, n in firsts.items() if list(first[:2]) == row[2]) for row in rows]
    # START and one patch of 9⁴ tell frames apart, nearly always; a window of 5 to 9 frames has 2, 3 or 4 sequences
    assert {len(row[2]) for row in rows} == {2}
    n_windows = sum(n == 0 for n in follows)
    assert 35 <= n_windows <= 40
    assert 2 * 40 <= len(rows) <= 4 * 40
    assert sum(n > 0 for n in follows) >= len(rows) - 40


def test_threads_change_nothing() -> None:
    config = NCAConfig(
        channels=3, size=16, window=8, n_windows=2, steps=(8, 12), inertia=(0.5, 2), temperature=(0.3, 1),
        max_ratio=2, independence=(0, 2),
    )  # fmt: skip
    before, found = torch.get_num_threads(), []
    try:
        for n_threads in (1, 2, 5):
            torch.set_num_threads(n_threads)
            found.append(NCASampler(config, 150, 16, 0, n_rules=8).next_batch()[0])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_rules_of_a_large_grid_are_tried_on_a_small_one(monkeypatch: pytest.MonkeyPatch) -> None:
    config = NCAConfig(
        states=4, channels=2, size=32, window=4, n_windows=3, steps=(6, 9), burn_in=1, hidden=4,
        temperature=(0.5, 0.5), min_ratio=0.05, max_ratio=2, independence=(0.3, 0.99),
    )  # fmt: skip
    trial = nca_sampler.trial_config(config)
    assert trial is not None
    assert trial == config.model_copy(update={"size": 16, "n_windows": 1})
    seen: list[tuple[int, ...]] = []
    judge = nca_sampler.is_between

    def is_between(tokens: np.ndarray, *edges: object) -> bool:
        seen.append(tokens.shape)
        return judge(tokens, *edges)  # type: ignore[arg-type]

    monkeypatch.setattr(nca_sampler, "is_between", is_between)
    sampler = NCASampler(config, 30, 4, 0, n_rules=40)
    tokens, n_kept = sampler._generate(0)
    # on the small grid every rule once, over its shortest trajectory
    assert seen[:40] == [(6, 8)] * 40
    rules = nca.draw_rules(trial, 40, generator := sampler._generator("rules", 0))
    cells = nca.draw_windows(trial, 40, generator)
    found = [of[0].numpy() for of in nca.trajectories(rules, cells, [6] * 40, generator)]
    is_kept = sampler._judge([torch.from_numpy(of) for of in found], "trial", 0)
    assert 0 < sum(is_kept) < 40
    assert len(seen) == 40 + 3 * sum(is_kept) + 40
    assert 0 < n_kept <= sum(is_kept)
    assert len(tokens) > 0
    for untried in (PRESETS["small"], config.model_copy(update={"size": 31}), NCAConfig(size=48, window=30)):
        assert nca_sampler.trial_config(untried) is None


def test_memory_of_a_block_grows_with_what_it_holds() -> None:
    def mib(device: str = "cpu", n_ctx: int = 2048, **changes: int) -> float:
        return nca_sampler.block_bytes(PRESETS["kotodama"].model_copy(update=changes), n_ctx, device) / 2**20

    assert mib() < mib("cuda")
    assert mib() < mib(n_windows=16)
    assert mib() < mib(hidden=16)
    assert nca_sampler.block_bytes(PRESETS["small"], 128, "cpu") < 2**26


def test_a_config_with_a_seed_of_its_own_ignores_the_runs() -> None:
    own = [NCASampler(QUICK.model_copy(update={"seed": 42}), 90, 4, seed, n_rules=16) for seed in (0, 1)]
    runs = NCASampler(QUICK, 90, 4, 42, n_rules=16)
    wanted = runs.next_batch()[0]
    assert all(torch.equal(sampler.next_batch()[0], wanted) for sampler in own)
    with pytest.raises(ValueError, match="state is of config"):
        runs.load_state_dict(own[0].state_dict())


def test_a_sampler_refuses_what_is_not_its_own() -> None:
    def make(
        config: NCAConfig = TINY, n_ctx: int = 12, batch_size: int = 2, seed: int = 1, n_rules: int = 4
    ) -> NCASampler:
        return NCASampler(config, n_ctx, batch_size, seed, n_rules=n_rules)

    state = make().state_dict()
    for bad, message in (
        (make(seed=2).state_dict(), "state is of seed 2; expected 1"),
        (make(n_ctx=13).state_dict(), "state is of n_ctx 13; expected 12"),
        (make(n_rules=5).state_dict(), "state is of n_rules 5; expected 4"),
        (make(TINY.model_copy(update={"shuffled": True})).state_dict(), "state is of config"),
        (state | {"device": "cuda"}, "state is of device cuda; expected cpu"),
        (state | {"block": -1}, "state has block -1; expected a count"),
        (state | {"used": 100}, r"state has used 100 of block 0, which has \d+; expected less"),
        ({}, "state has"),
    ):
        with pytest.raises(ValueError, match=f"sampler: {message}"):
            make().load_state_dict(bad)
    with pytest.raises(
        ValueError, match="nca: n_ctx is 9; expected at least 12, or a window of 2: a frame of 2 channels"
    ):
        make(n_ctx=9)
    with pytest.raises(ValueError, match="sampler: batch_size is 0"):
        make(batch_size=0)
    with pytest.raises(ValueError, match="sampler: seed is -1; expected"):
        make(seed=-1)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("states", 1, "states is 1; expected 2 to 32"),
        ("states", 33, "states is 33; expected 2 to 32"),
        ("channels", 0, "channels is 0; expected 1 to 64"),
        ("size", 5, "size is 5; expected an even number"),
        ("size", 2, "size is 2; expected 4 to 256"),
        ("window", 5, "window is 5; expected an even number"),
        ("window", 0, "window is 0; expected 2 to 12"),
        ("window", 14, "window is 14; expected 2 to 12"),
        ("n_windows", 2, "n_windows is 2; expected 1 to 1"),
        ("steps", (1, 8), "steps are 1, 8; expected 2 ≤ low ≤ high"),
        ("steps", (9, 8), "steps are 9, 8; expected 2 ≤ low ≤ high"),
        ("hidden", 0, "hidden is 0; expected 1 to 1024"),
        ("burn_in", -1, "burn_in is -1; expected 0 to 10000"),
        ("temperature", (0.0, 1.0), r"temperature is 0\.0, 1\.0; expected low ≤ high"),
        ("temperature", (2.0, 1.0), r"temperature is 2\.0, 1\.0; expected low ≤ high"),
        ("inertia", (float("nan"), 1.0), r"inertia is nan, 1\.0; expected low ≤ high"),
        ("min_ratio", 0.5, r"ratios are 0\.5, 0\.5; expected 0 ≤ least < largest"),
        ("max_ratio", float("nan"), r"ratios are 0\.06, nan; expected"),
        ("independence", (0.9, 0.9), r"independence is 0\.9, 0\.9; expected 0 ≤ least < largest"),
        ("seed", -1, "seed is -1; expected 0 or more"),
        ("colour", 3, "Extra inputs are not permitted"),
    ],
)
def test_a_config_out_of_range_is_refused(field: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NCAConfig.model_validate({field: value})


def test_a_config_is_frozen_and_survives_json() -> None:
    config = PRESETS["kotodama"]
    with pytest.raises(ValueError, match="frozen"):
        config.size = 4
    assert NCAConfig.model_validate(json.loads(json.dumps(config.model_dump(mode="json")))) == config


@pytest.mark.gpu
@pytest.mark.parametrize("name", PRESETS)
def test_generation_on_the_device(name: str) -> None:
    config = PRESETS[name]
    rules, grid = nca.draw_rules(config, 4, _generator()), _grid(config, 4, 0)
    moved = Rules(
        config, *(getattr(rules, f).cuda() for f in ("w_in", "b_in", "w_out", "b_out", "temperature", "inertia"))
    )
    wanted = nca.transition_logits(rules, grid)
    # float32 sums in another order, over τ
    torch.testing.assert_close(
        nca.transition_logits(moved, grid.cuda()).cpu(), wanted, rtol=1e-4, atol=1e-4 / config.temperature[0]
    )
    sampler = NCASampler(config, 2048, 4, 0, device="cuda")
    tokens, mask = sampler.next_batch()
    assert tokens.is_cuda
    assert mask.is_cuda
    again = NCASampler(config, 2048, 4, 0, device="cuda")
    again.load_state_dict(sampler.state_dict())
    assert torch.equal(again.next_batch()[0], sampler.next_batch()[0])
