"""Token streams from random neural cellular automata: what a model reads before it reads language.

A rule is a small random network that gives, from a cell's 3×3 neighbourhood on a grid with wrap-around, the
distribution of its next state. What a model reads is the history of a square window of the grid under one rule, cut
into successive sequences; histories that are frozen, periodic or no better than noise are left out
(`workbench.data.complexity`). Kotodama's lineage is trained on them first.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int, Int32, Int64
from pydantic import BaseModel, ConfigDict, model_validator
from torch import Tensor
from torch.nn import functional as F

from workbench.data.complexity import is_between
from workbench.data.tokens import check_shard, check_state

WEIGHT_STD, BIAS_STD = 0.5, 0.1
_TAPS = 9
_MIN_LOGIT = -87.0  # exp of less is no normal float32 number, and handling those makes exp 40 times slower on CPUs
_HOPELESS = 20_000  # windows without one that is kept
_BLOCK_WINDOWS = 256  # windows in a block: enough that sequences of a batch are mostly of different rules
_CACHED_CELLS = 1 << 18  # of grids that are stepped together on a CPU: what their logits take stays in cache


class NCAConfig(BaseModel):
    """Which automata are drawn, which are kept, and what becomes tokens. The defaults are the small preset."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    states: int = 10
    """states of a cell's channel, 2 to 32; the vocabulary is states⁴ + 2"""
    channels: int = 1
    """channels of a cell, 1 to 64; the rule reads and writes all, and all become tokens, one after another in a frame"""
    size: int = 12
    """height and width of the grid in cells, 4 to 256"""
    window: int | None = None
    """height and width in cells of the part of the grid that is read, even, 2 to size; none: the whole grid; a frame is
    channels·(window/2)² + 2 tokens"""
    n_windows: int = 1
    """windows read of each rule's grid, that do not overlap: 1 to (size/window)²"""
    steps: tuple[int, int] = (64, 64)
    """frames of a trajectory after burn-in, 2 to 100,000: drawn per rule, uniform between these two, both included"""
    hidden: int = 16
    """width of the rule network, 1 to 1,024 (not given by the source)"""
    temperature: tuple[float, float] = (1e-4, 1e-4)
    """τ of the softmax over next states, > 0: drawn per rule, uniform between these two"""
    inertia: tuple[float, float] = (0.0, 0.0)
    """b added to the logit of a cell's present state: drawn per rule, uniform between these two"""
    burn_in: int = 10
    """frames from the random start that are thrown away, 0 to 10,000"""
    min_ratio: float = 0.06
    """least gzip ratio of a window's trajectory that is kept, 0 to 2"""
    max_ratio: float = 0.5
    """largest gzip ratio of a window's trajectory that is kept, 0 to 2"""
    independence: tuple[float, float] = (0.6, 0.94)
    """least and largest independence of a trajectory that is kept, 0 to 2: its gzip size over that of the same tokens
    with every place's history rotated in time; 1 for noise of any kind and what is frozen, low for cycles"""
    seed: int | None = None
    """of the rules and their states, 0 or more; none: the run's own"""
    shuffled: bool = False
    """the control: the same sequences with their patch tokens in random order, see `shuffle`"""

    @model_validator(mode="after")
    def _check(self) -> NCAConfig:
        for name, low, high in (
            ("states", 2, 32), ("channels", 1, 64), ("size", 4, 256), ("read_size", 2, self.size), ("hidden", 1, 1024),
            ("n_windows", 1, (self.size // max(self.read_size, 1)) ** 2), ("burn_in", 0, 10_000),
        ):  # fmt: skip
            if not low <= (got := getattr(self, name)) <= high:
                raise ValueError(f"nca: {name.replace('read_size', 'window')} is {got}; expected {low} to {high}")
        if self.read_size % 2:
            name = "size" if self.window is None else "window"
            raise ValueError(f"nca: {name} is {self.read_size}; expected an even number: tokens are 2×2 patches")
        if not 2 <= self.steps[0] <= self.steps[1] <= 100_000:
            raise ValueError(f"nca: steps are {self.steps[0]}, {self.steps[1]}; expected 2 ≤ low ≤ high ≤ 100000")
        for name, (low, high) in (("temperature", self.temperature), ("inertia", self.inertia)):
            if not -1e3 <= low <= high <= 1e3 or (name == "temperature" and low < 1e-6):
                raise ValueError(f"nca: {name} is {low}, {high}; expected low ≤ high, at most 1000 (τ at least 1e-6)")
        for name, (low, high) in (
            ("ratios are", (self.min_ratio, self.max_ratio)),
            ("independence is", self.independence),
        ):
            if not 0 <= low < high <= 2:
                raise ValueError(f"nca: {name} {low}, {high}; expected 0 ≤ least < largest ≤ 2")
        if self.seed is not None and self.seed < 0:
            raise ValueError(f"nca: seed is {self.seed}; expected 0 or more")
        return self

    @property
    def read_size(self) -> int:
        """Height and width of the window in cells, also where it is the whole grid."""
        return self.size if self.window is None else self.window

    @property
    def n_cells(self) -> int:
        """Cells of a grid, of all channels."""
        return self.channels * self.size**2

    @property
    def n_patches(self) -> int:
        """2×2 patches in a frame, of all channels."""
        return self.channels * (self.read_size // 2) ** 2

    @property
    def frame_tokens(self) -> int:
        """Tokens of a frame: START, the patches of each channel row by row, one channel after another, END."""
        return self.n_patches + 2

    @property
    def start_id(self) -> int:
        """Id of START, the first after the patches'; END is the next."""
        return self.states**4

    @property
    def d_vocab(self) -> int:
        """Ids in all: 10,002 for ten states."""
        return self.states**4 + 2


PRESETS = {
    "small": NCAConfig(),
    "kotodama": NCAConfig(
        size=64, channels=8, window=8, n_windows=4, steps=(64, 256), inertia=(0.5, 2.0), temperature=(0.3, 1.0)
    ),
}


def check_trajectory(config: NCAConfig, n_ctx: int) -> None:
    """Raise ValueError where sequences of n_ctx tokens cannot hold a frame and two tokens of the next, or where the
    shortest trajectory fills none."""
    least = config.frame_tokens + 2
    if n_ctx < least:
        cells = math.isqrt(max(n_ctx - 4, 0) // config.channels)
        mend = f", or a window of {2 * cells}" if cells else ""
        raise ValueError(
            f"nca: n_ctx is {n_ctx}; expected at least {least}{mend}: a frame of {config.channels} channels × "
            f"{config.read_size}×{config.read_size} cells has {config.frame_tokens} tokens, and the first is not scored"
        )
    if config.steps[0] < (least := frames_of_sequence(config, n_ctx)):
        raise ValueError(
            f"nca: steps are {config.steps[0]}, {config.steps[1]}; expected at least {least}: a sequence of "
            f"{n_ctx} tokens reads so many frames of {config.frame_tokens}"
        )


def frames_of_sequence(config: NCAConfig, n_ctx: int) -> int:
    """Frames that a sequence reads of, the last of them perhaps in part."""
    return -(-n_ctx // config.frame_tokens)


@dataclass(frozen=True)
class Rules:
    """Random rule networks, many at once. Row (tap·channels + channel)·states + state of w_in is the 3×3 kernel's
    weight for that state of that channel at that tap; taps run row by row from the upper left neighbour."""

    config: NCAConfig
    w_in: Float[Tensor, "rule taps_channels_states hidden"]
    b_in: Float[Tensor, "rule 1 hidden"]
    w_out: Float[Tensor, "rule channels_states hidden"]
    b_out: Float[Tensor, "rule channels_states 1"]
    temperature: Float[Tensor, "rule 1 1 1"]
    inertia: Float[Tensor, "rule 1 1 1"]

    @property
    def n(self) -> int:
        return self.w_in.shape[0]

    def first(self, n: int) -> Rules:
        """The first n of them."""
        tensors = (self.w_in, self.b_in, self.w_out, self.b_out, self.temperature, self.inertia)
        return Rules(self.config, *(tensor[:n] for tensor in tensors))


def draw_rules(config: NCAConfig, n: int, generator: torch.Generator) -> Rules:
    """`n` rules on the generator's device: weights N(0, .5²), biases N(0, .1²), τ and b uniform in their ranges."""
    device, width = generator.device, config.channels * config.states

    def normal(*shape: int) -> Tensor:
        return torch.randn(n, *shape, generator=generator, device=device)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, 1, 1, 1, generator=generator, device=device)

    return Rules(
        config,
        w_in=normal(_TAPS * width, config.hidden) * WEIGHT_STD,
        b_in=normal(1, config.hidden) * BIAS_STD,
        w_out=normal(width, config.hidden) * WEIGHT_STD,
        b_out=normal(width, 1) * BIAS_STD,
        temperature=uniform(*config.temperature),
        inertia=uniform(*config.inertia),
    )


def transition_logits(
    rules: Rules, grid: Int32[Tensor, "rule channel cell"]
) -> Float[Tensor, "rule channel state cell"]:
    """(W_out ReLU(W_in ∗ onehot(grid) + b_in) + b_out + b·onehot(grid)) / τ, cells row by row.

    The convolution of a one-hot grid is a sum of 9·channels rows of W_in, gathered and never multiplied.
    """
    config, n = rules.config, rules.n
    rows = _TAPS * config.channels * config.states
    kernel = torch.arange(0, rows, config.states, device=grid.device, dtype=torch.int32)
    first = torch.arange(0, n * rows, rows, device=grid.device, dtype=torch.int32)
    neighbours = grid.flatten(1).index_select(1, _neighbours(config.channels, config.size, str(grid.device)))
    index = neighbours.view(n, -1, kernel.numel()) + kernel + first[:, None, None]
    hidden = F.embedding_bag(index.view(-1, kernel.numel()), rules.w_in.view(-1, config.hidden), mode="sum")
    hidden = hidden.view(n, -1, config.hidden).add_(rules.b_in).relu_()
    logits = torch.baddbmm(rules.b_out, rules.w_out, hidden.mT)
    logits = rearrange(logits, "r (c s) cell -> r c s cell", c=config.channels)
    if any(config.inertia):
        present = rearrange(grid, "r c cell -> r c 1 cell").long()
        logits.scatter_add_(2, present, rules.inertia.expand_as(present))
    return logits.div_(rules.temperature)


def step(
    rules: Rules, grid: Int32[Tensor, "rule channel cell"], generator: torch.Generator
) -> Int32[Tensor, "rule channel cell"]:
    """The next states, each drawn from the softmax of its `transition_logits` by one uniform number (inverse CDF)."""
    logits = transition_logits(rules, grid)
    cumulative = (logits - logits.amax(2, keepdim=True)).clamp_(min=_MIN_LOGIT).exp_().cumsum(2)
    # in (0, 1], so that a state of next to no weight is never drawn, not even the first
    uniform = 1 - torch.rand(grid.shape, generator=generator, device=grid.device).unsqueeze(2)
    return (cumulative < cumulative[:, :, -1:] * uniform).sum(2, dtype=torch.int32)


def histories(
    rules: Rules, n_frames: list[int], generator: torch.Generator
) -> Iterator[Int32[Tensor, "rule channel cell"]]:
    """Successive grids of all rules, after burn_in steps from states drawn uniformly; rule i has n_frames[i] of them,
    from most to fewest, so that a grid that has ended is stepped no more."""
    config = rules.config
    shape = (rules.n, config.channels, config.size**2)
    grid = torch.randint(config.states, shape, generator=generator, device=generator.device, dtype=torch.int32)
    for _ in range(config.burn_in):
        grid = step(rules, grid, generator)
    yield grid
    for t in range(1, n_frames[0]):
        if (n := sum(length > t for length in n_frames)) < rules.n:
            rules = rules.first(n)
        grid = step(rules, grid[:n], generator)
        yield grid


def simulate(rules: Rules, n_frames: int, generator: torch.Generator) -> Int32[Tensor, "rule frame channel cell"]:
    """`n_frames` successive grids of each rule, after burn_in steps from states drawn uniformly."""
    return torch.stack(list(histories(rules, [n_frames] * rules.n, generator)), dim=1)


def draw_windows(config: NCAConfig, n: int, generator: torch.Generator) -> Int64[Tensor, "n window patch_cell"]:
    """The cells that the windows of n grids read, 2×2 patch after patch: places of a lattice of windows that lies
    anywhere on the torus, drawn without replacement, so that no two windows of a grid overlap."""
    size, read, device = config.size, config.read_size, generator.device
    per_side = size // read
    lattice = torch.rand(n, per_side**2, generator=generator, device=device).argsort(1)[:, : config.n_windows]
    corner = torch.randint(size, (n, 1, 2), generator=generator, device=device)
    at = corner + read * torch.stack([lattice // per_side, lattice % per_side], -1)
    side = torch.arange(read, device=device)
    y, x = ((at[..., i, None] + side) % size for i in (0, 1))
    return rearrange(y[..., :, None] * size + x[..., None, :], "n w (i p) (j q) -> n w (i j p q)", p=2, q=2)


def patches(
    config: NCAConfig, grid: Int[Tensor, "rule channel cell"], cells: Int64[Tensor, "rule window patch_cell"]
) -> Int32[Tensor, "rule window patch"]:
    """The 2×2 patches of each window, row by row, channel after channel: id Σ v_i·states^i, i from the upper left over
    the row to the lower right."""
    index = rearrange(cells, "r w k -> r 1 (w k)").expand(-1, config.channels, -1)
    values = rearrange(grid.gather(2, index), "r c (w k i) -> r w (c k) i", w=cells.shape[1], i=4)
    place = torch.tensor([config.states**i for i in range(4)], device=grid.device)
    return (values * place).sum(-1, dtype=torch.int32)


def delimit(config: NCAConfig, frames: Int[Tensor, "frame patch"], n_ctx: int) -> Int64[Tensor, "n n_ctx"]:
    """Successive sequences START frame END START frame END … of n_ctx tokens, each from a frame's START on.

    A frame that a sequence has no room for to its end begins the next: it is scored there where it broke off, and here
    not, as every first frame. What is too short to be a sequence at the end is left out.
    """
    n_whole, n_read = n_ctx // config.frame_tokens, frames_of_sequence(config, n_ctx)
    start = torch.full_like(frames[:, :1], config.start_id)
    stream = torch.cat([start, frames, start + 1], dim=-1)
    windows = stream.unfold(0, n_read, n_whole)  # [n, token of a frame, frame]
    return rearrange(windows, "n token frame -> n (frame token)")[:, :n_ctx].long()


def score_mask(config: NCAConfig, n: int, n_ctx: int, device: torch.device | str) -> Bool[Tensor, "n n_ctx"]:
    """True where a token is a target: everywhere but in a sequence's first frame, which nothing can predict."""
    return (torch.arange(n_ctx, device=device) >= config.frame_tokens).expand(n, n_ctx)


def shuffle(
    config: NCAConfig, tokens: Int64[Tensor, "n n_ctx"], generator: torch.Generator
) -> Int64[Tensor, "n n_ctx"]:
    """The tokens with each sequence's patches permuted over all its frames; every START and END stays in its place.

    So a sequence keeps its tokens, their counts and its frame rhythm, and loses order in space and time.
    """
    within = torch.arange(tokens.shape[1], device=tokens.device) % config.frame_tokens
    place = ((within > 0) & (within < config.frame_tokens - 1)).nonzero().squeeze(1)
    order = torch.rand(len(tokens), len(place), generator=generator, device=tokens.device).argsort(1)
    shuffled = tokens.clone()
    shuffled[:, place] = tokens[:, place].gather(1, order)
    return shuffled


class NCASampler:
    """Batches of kept sequences, generated as they are asked for; the same interface as `WindowSampler`.

    Rules are drawn in blocks, block j from (seed, j) alone; the sequences of a block's kept windows, in random order,
    block after block, are the stream that batches are cut from. A state is a block and a place in it, so that a
    resumed run reads what the uninterrupted run reads, on the same kind of device (CPU and CUDA draw different
    numbers). Under data parallelism every rank generates the same global batch and takes its own rows.
    """

    def __init__(
        self,
        config: NCAConfig,
        n_ctx: int,
        batch_size: int,
        seed: int,
        *,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world_size: int = 1,
        n_rules: int | None = None,
    ) -> None:
        """n_ctx: tokens per sequence, more than a frame. batch_size: sequences in a global batch, a multiple of
        world_size. seed: used where the config has none. n_rules: rules in a block; by the number of windows by
        default."""
        check_trajectory(config, n_ctx)
        check_shard(batch_size, rank, world_size)
        seed = seed if config.seed is None else config.seed
        if seed < 0:
            raise ValueError(f"sampler: seed is {seed}; expected 0 or more")
        self.n_rules = n_rules or -(-_BLOCK_WINDOWS // config.n_windows)
        self.config, self.n_ctx, self.batch_size, self.seed = config, n_ctx, batch_size, seed
        self.device, self.rank, self.world_size = torch.device(device), rank, world_size
        self.n_candidates, self.n_kept = 0, 0
        self._block, self._used = 0, 0  # the block being used, and how many of its sequences are
        self._sequences: Tensor | None = None

    @property
    def kept_share(self) -> float:
        """Share of the windows so far that the filter kept; nan before the first batch."""
        return self.n_kept / self.n_candidates if self.n_candidates else math.nan

    def next_batch(self) -> tuple[Int64[Tensor, "rows n_ctx"], Bool[Tensor, "rows n_ctx"]]:
        """The next batch's rows of this rank, and which of their tokens are scored, both on the device.

        With losses per token [rows, n_ctx − 1] of the tokens from 1 on, the mask to use is mask[:, 1:].
        Raises ValueError if the filter keeps nothing of 20,000 windows.
        """
        parts, missing = [], self.batch_size
        while missing:
            if self._sequences is None:
                self._sequences, n_kept = self._generate(self._block)
                self.n_candidates += self.n_rules * self.config.n_windows
                self.n_kept += n_kept
                if self.n_kept == 0 and self.n_candidates >= _HOPELESS:
                    self._refuse()
            part = self._sequences[self._used : self._used + missing]
            parts.append(part)
            missing -= len(part)
            self._used += len(part)
            if self._used == len(self._sequences):
                self._block, self._used, self._sequences = self._block + 1, 0, None
        n = self.batch_size // self.world_size
        tokens = torch.cat(parts)[self.rank * n : (self.rank + 1) * n]
        return tokens, score_mask(self.config, n, self.n_ctx, self.device)

    def state_dict(self) -> dict[str, Any]:
        """Where the sampler stands, and what it samples, as JSON holds it; the same for every rank."""
        return {
            "block": self._block,
            "used": self._used,
            "n_candidates": self.n_candidates,
            "n_kept": self.n_kept,
            "seed": self.seed,
            "n_ctx": self.n_ctx,
            "batch_size": self.batch_size,
            "n_rules": self.n_rules,
            "device": self.device.type,
            "config": self.config.model_dump(mode="json"),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to `state`: the next batch is the one that would have followed it.

        Raises ValueError if `state` is of another config, seed, shape or kind of device.
        """
        check_state(self.state_dict(), state, positions=("block", "used", "n_candidates", "n_kept"))
        block, used = state["block"], state["used"]
        # a block that was begun is made again, without being counted again
        sequences = self._generate(block)[0] if used else None
        if sequences is not None and used >= len(sequences):
            raise ValueError(
                f"sampler: state has used {used} of block {block}, which has {len(sequences)}; expected less"
            )
        self._block, self._used, self._sequences = block, used, sequences
        self.n_candidates, self.n_kept = state["n_candidates"], state["n_kept"]

    def _generate(self, block: int) -> tuple[Int64[Tensor, "n n_ctx"], int]:
        """The sequences of a block in their order, and how many windows were kept."""
        config, generator = self.config, self._generator("rules", block)
        candidates, n_left = [], self.n_rules
        while n_left:  # as many grids at once as stay in a core's cache; a GPU has room for all
            n = n_left if self.device.type == "cuda" else min(n_left, max(4, _CACHED_CELLS // config.n_cells))
            candidates += self._trajectories(n, generator)
            n_left -= n
        kept = [frames for frames, keep in zip(candidates, self._judge(candidates, block), strict=True) if keep]
        tokens = torch.empty(0, self.n_ctx, dtype=torch.int64, device=self.device)
        if kept:
            tokens = torch.cat([delimit(config, frames, self.n_ctx) for frames in kept])
        tokens = tokens[torch.randperm(len(tokens), generator=generator, device=self.device)]
        if config.shuffled:  # by numbers of its own, so that the control has the very sequences it is a control for
            tokens = shuffle(config, tokens, self._generator("order", block))
        return tokens, len(kept)

    def _trajectories(self, n: int, generator: torch.Generator) -> list[Int32[Tensor, "frame patch"]]:
        """The trajectories of all windows of n rules, without the frames that no sequence has room for."""
        config = self.config
        rules, cells = draw_rules(config, n, generator), draw_windows(config, n, generator)
        low, high = config.steps
        lengths = torch.randint(low, high + 1, (n,), generator=generator, device=self.device)
        n_whole, n_read = self.n_ctx // config.frame_tokens, frames_of_sequence(config, self.n_ctx)
        # rules are alike before they are seen: the longest first, so that the others can end
        lengths = ((lengths - n_read) // n_whole * n_whole + n_read).sort(descending=True).values.tolist()
        shape = (n, config.n_windows, lengths[0], config.n_patches)
        frames = torch.zeros(shape, dtype=torch.int32, device=self.device)
        for t, grid in enumerate(histories(rules, lengths, generator)):
            frames[: len(grid), :, t] = patches(config, grid, cells[: len(grid)])
        return [window[:length] for of_rule, length in zip(frames, lengths, strict=True) for window in of_rule]

    def _judge(self, candidates: list[Int32[Tensor, "frame patch"]], block: int) -> list[bool]:
        config, seed = self.config, _stream_seed("band", self.seed)

        def judge(i: int) -> bool:
            rng = np.random.default_rng((seed + block, i))
            tokens = candidates[i].cpu().numpy()
            return is_between(tokens, rng, (config.min_ratio, config.max_ratio), config.independence)

        # gzip leaves Python's lock to others; the cores of a GPU's host have little else to do
        n = (os.cpu_count() or 1) // self.world_size if self.device.type == "cuda" else torch.get_num_threads()
        with ThreadPoolExecutor(max(1, n)) as pool:
            return list(pool.map(judge, range(len(candidates))))

    def _refuse(self) -> None:
        config, n_rules = self.config, self.n_candidates // self.config.n_windows
        raise ValueError(
            f"nca: none of {n_rules} rules ({self.n_candidates} windows) of seed {self.seed} has a gzip ratio in "
            f"{config.min_ratio} to {config.max_ratio} and an independence in {config.independence[0]} to "
            f"{config.independence[1]}; expected wider bands"
        )

    def _generator(self, purpose: str, block: int) -> torch.Generator:
        # a sum, not another hash: torch's CPU generator reads 32 bits, and these differ for 2³² successive blocks
        return torch.Generator(self.device).manual_seed(_stream_seed(purpose, self.seed) + block)


def _stream_seed(purpose: str, seed: int) -> int:
    return int.from_bytes(hashlib.sha256(f"nca {purpose} {seed}".encode()).digest()[:7], "little")


@lru_cache(maxsize=8)
def _neighbours(channels: int, size: int, device: str) -> Int32[Tensor, " cells_taps_channels"]:
    """For each cell, tap and channel, where in a flattened [channel, cell] grid that neighbour is."""
    at = torch.arange(channels * size**2, dtype=torch.int32).view(channels, size, size)
    taps = [at.roll((-dy, -dx), (1, 2)) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    return rearrange(torch.stack(taps), "tap c y x -> (y x tap c)").to(device)
