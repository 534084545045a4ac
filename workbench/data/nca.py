"""Token streams from random neural cellular automata: what a model reads before it reads language.

A rule is a small random network that gives, from a cell's 3×3 neighbourhood on a grid with wrap-around, the
distribution of its next state. What a model reads is the history of a square window of the grid under one rule, cut
into successive sequences; histories that are frozen, periodic or no better than noise are left out
(`workbench.data.complexity`). Kotodama's lineage is trained on them first.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int, Int32, Int64
from pydantic import BaseModel, ConfigDict, model_validator
from torch import Tensor
from torch.nn import functional as F

WEIGHT_STD, BIAS_STD = 0.5, 0.1
TAPS = 9  # cells of a neighbourhood
_MIN_LOGIT = -87.0  # exp of less is no normal float32 number, and handling those makes exp 40 times slower on CPUs


class NCAConfig(BaseModel):
    """Which automata are drawn, which are kept, and what becomes tokens. The defaults are the small preset."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    states: int = 10
    """states of a cell's channel, 2 to 32; the vocabulary is states⁴ + 2"""
    channels: int = 1
    """channels of a cell, 1 to 64; the rule reads and writes all, all become tokens, one after another in a frame"""
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
        size=64,
        channels=8,
        window=8,
        n_windows=4,
        steps=(64, 256),
        hidden=4,
        min_ratio=0.04,
        independence=(0.6, 0.965),
        inertia=(0.5, 2.0),
        temperature=(0.3, 1.0),
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

    def select(self, which: slice | Tensor) -> Rules:
        """Those of these places."""
        tensors = (self.w_in, self.b_in, self.w_out, self.b_out, self.temperature, self.inertia)
        return Rules(self.config, *(tensor[which] for tensor in tensors))


def draw_rules(config: NCAConfig, n: int, generator: torch.Generator) -> Rules:
    """`n` rules on the generator's device: weights N(0, .5²), biases N(0, .1²), τ and b uniform in their ranges."""
    device, width = generator.device, config.channels * config.states

    def normal(*shape: int) -> Tensor:
        return torch.randn(n, *shape, generator=generator, device=device)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, 1, 1, 1, generator=generator, device=device)

    return Rules(
        config,
        w_in=normal(TAPS * width, config.hidden) * WEIGHT_STD,
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
    rows = TAPS * config.channels * config.states
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
            rules = rules.select(slice(n))
        grid = step(rules, grid[:n], generator)
        yield grid


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


def trajectories(
    rules: Rules, cells: Int64[Tensor, "rule window patch_cell"], n_frames: list[int], generator: torch.Generator
) -> list[Int32[Tensor, "window _ patch"]]:
    """What the windows of each rule's grid read over n_frames[i] successive frames, from most to fewest."""
    config = rules.config
    shape = (rules.n, config.n_windows, n_frames[0], config.n_patches)
    frames = torch.zeros(shape, dtype=torch.int32, device=generator.device)
    for t, grid in enumerate(histories(rules, n_frames, generator)):
        frames[: len(grid), :, t] = patches(config, grid, cells[: len(grid)])
    return [of_rule[:, :n] for of_rule, n in zip(frames, n_frames, strict=True)]


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


@lru_cache(maxsize=8)
def _neighbours(channels: int, size: int, device: str) -> Int32[Tensor, " cells_taps_channels"]:
    """For each cell, tap and channel, where in a flattened [channel, cell] grid that neighbour is."""
    at = torch.arange(channels * size**2, dtype=torch.int32).view(channels, size, size)
    taps = [at.roll((-dy, -dx), (1, 2)) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    return rearrange(torch.stack(taps), "tap c y x -> (y x tap c)").to(device)
