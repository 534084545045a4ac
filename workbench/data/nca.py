"""Token streams from random neural cellular automata: what a model reads before it reads language.

A rule is a small random network that gives, from a cell's 3×3 neighbourhood on a grid with wrap-around, the
distribution of its next state. A sequence is the history of one grid under one rule; sequences that compress too well
(frozen or simply periodic) are left out. Kotodama's lineage is trained on them first.
"""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int, Int32, Int64
from pydantic import BaseModel, ConfigDict, model_validator
from torch import Tensor
from torch.nn import functional as F

from workbench.data.tokens import check_shard, check_state

WEIGHT_STD, BIAS_STD = 0.5, 0.1
_TAPS = 9
_MIN_LOGIT = -87.0  # exp of less is no normal float32 number, and handling those makes exp 40 times slower on CPUs
_HOPELESS = 20_000  # candidate rules without one that is kept


class NCAConfig(BaseModel):
    """Which automata are drawn, which are kept, and what becomes tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    states: int = 10
    """states of a cell's channel, 2 to 32; the vocabulary is states⁴ + 2"""
    channels: int = 1
    """channels of a cell, 1 to 64; the rule reads and writes all, channel 0 alone becomes tokens, the others stay
    hidden (the reading built here: all eight channels of a 64×64 grid would make a frame of 8,194 tokens)"""
    size: int = 12
    """height and width of the grid in cells, even, 4 to 256; a frame is (size/2)² + 2 tokens"""
    hidden: int = 16
    """width of the rule network, 1 to 1,024 (not given by the source)"""
    temperature: tuple[float, float] = (1e-4, 1e-4)
    """τ of the softmax over next states, > 0: drawn per rule, uniform between these two"""
    inertia: tuple[float, float] = (0.0, 0.0)
    """b added to the logit of a cell's present state: drawn per rule, uniform between these two"""
    burn_in: int = 10
    """frames from the random start that are thrown away, 0 to 10,000"""
    min_ratio: float = 0.5
    """least gzip ratio of a sequence that is kept, 0 to 2"""
    max_ratio: float = 1.0
    """largest gzip ratio of a sequence that is kept, 0 to 2"""
    shuffled: bool = False
    """the control: the same sequences with their patch tokens in random order, see `shuffle`"""

    @model_validator(mode="after")
    def _check(self) -> NCAConfig:
        for name, low, high in (("states", 2, 32), ("channels", 1, 64), ("size", 4, 256), ("hidden", 1, 1024)):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"nca: {name} is {getattr(self, name)}; want {low} to {high}")
        if self.size % 2:
            raise ValueError(f"nca: size is {self.size}; want an even number: tokens are 2×2 patches")
        if not 0 <= self.burn_in <= 10_000:
            raise ValueError(f"nca: burn_in is {self.burn_in}; want 0 to 10000")
        for name, (low, high) in (("temperature", self.temperature), ("inertia", self.inertia)):
            if not -1e3 <= low <= high <= 1e3 or (name == "temperature" and low < 1e-6):
                raise ValueError(f"nca: {name} is {low}, {high}; want low ≤ high, at most 1000 (τ at least 1e-6)")
        if not 0 <= self.min_ratio < self.max_ratio <= 2:
            raise ValueError(f"nca: ratios are {self.min_ratio}, {self.max_ratio}; want 0 ≤ min < max ≤ 2")
        return self

    @property
    def n_patches(self) -> int:
        """2×2 patches in a frame."""
        return (self.size // 2) ** 2

    @property
    def frame_tokens(self) -> int:
        """Tokens of a frame: START, its patches row by row, END."""
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
    "default": NCAConfig(),
    "kotodama": NCAConfig(size=64, channels=8, inertia=(0.5, 2.0), temperature=(0.3, 1.0)),
}


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


def simulate(rules: Rules, n_frames: int, generator: torch.Generator) -> Int32[Tensor, "rule frame channel cell"]:
    """`n_frames` successive grids of each rule, after burn_in steps from states drawn uniformly."""
    config = rules.config
    shape = (rules.n, config.channels, config.size**2)
    grid = torch.randint(config.states, shape, generator=generator, device=generator.device, dtype=torch.int32)
    for _ in range(config.burn_in):
        grid = step(rules, grid, generator)
    frames = [grid]
    for _ in range(n_frames - 1):
        frames.append(step(rules, frames[-1], generator))
    return torch.stack(frames, dim=1)


def patches(config: NCAConfig, frames: Int[Tensor, "n frame channel cell"]) -> Int32[Tensor, "n frame patch"]:
    """Channel 0's 2×2 patches, row by row: id Σ v_i·states^i, i from the upper left over the row to the lower right."""
    half = config.size // 2
    values = rearrange(frames[:, :, 0], "n f (y p x q) -> n f (y x) (p q)", y=half, x=half, p=2, q=2)
    place = torch.tensor([config.states**i for i in range(4)], device=frames.device)
    return (values * place).sum(-1, dtype=torch.int32)


def delimit(config: NCAConfig, frames: Int[Tensor, "n frame patch"], n_ctx: int) -> Int64[Tensor, "n n_ctx"]:
    """Sequences START frame END START frame END … cut to n_ctx tokens: the last frame may lack its end."""
    start = torch.full_like(frames[..., :1], config.start_id)
    return torch.cat([start, frames, start + 1], dim=-1).flatten(1)[:, :n_ctx].long()


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


def compression_ratios(frames: Int[Tensor, "n frame patch"]) -> Float[Tensor, " n"]:
    """Each sequence's gzip-9 size over its size, as int32 bytes (little-endian) of the patch tokens, no delimiters.

    The 18 bytes of gzip's header and trailer count: short sequences have higher ratios, see `calibration_table`.
    """
    rows = frames.flatten(1).to(torch.int32).cpu().numpy().astype("<i4")
    return torch.tensor([len(zlib.compress(row.tobytes(), 9, wbits=31)) / row.nbytes for row in rows])


@dataclass(frozen=True)
class Calibration:
    """Compression ratios of one kind of source, at one number of frames."""

    source: str
    ratio_mean: float
    ratio_min: float
    ratio_max: float
    kept_share: float
    """share of sequences within the config's band"""


def calibration_table(
    config: NCAConfig, n_frames: int, generator: torch.Generator, n: int = 256
) -> tuple[Calibration, ...]:
    """Ratios of `n` sequences of each source: cells uniform and independent; cells in one state with probability .8 and
    else uniform over the others; constant; and the config's own rules."""

    def cells(draw: Callable[..., Tensor]) -> Tensor:
        return patches(config, draw((n, n_frames, 1, config.size**2)))

    def uniform(shape: tuple[int, ...], low: int = 0) -> Tensor:
        return torch.randint(low, config.states, shape, generator=generator, device=generator.device)

    def dominant(shape: tuple[int, ...]) -> Tensor:
        is_other = torch.rand(shape, generator=generator, device=generator.device) >= 0.8
        return uniform(shape, low=1) * is_other

    sources = {
        "uniform": cells(uniform),
        "dominant": cells(dominant),
        "constant": cells(lambda shape: torch.zeros(shape, dtype=torch.int32, device=generator.device)),
        "rules": patches(config, simulate(draw_rules(config, n, generator), n_frames, generator)),
    }
    table = []
    for name, frames in sources.items():
        ratios = compression_ratios(frames)
        kept = _is_kept(config, ratios).float().mean().item()
        table.append(Calibration(name, ratios.mean().item(), ratios.min().item(), ratios.max().item(), kept))
    return tuple(table)


class NCASampler:
    """Batches of kept sequences, generated as they are asked for; the same interface as `WindowSampler`.

    Rules are drawn in blocks, block j from (seed, j) alone; the kept sequences of successive blocks, in order, are the
    stream that batches are cut from. A state is a block and a place in it, so that a resumed run reads what the
    uninterrupted run reads, on the same kind of device (CPU and CUDA draw different numbers). Under data parallelism
    every rank generates the same global batch and takes its own rows.
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
        world_size. n_rules: candidates in a block; from the grid's size by default."""
        if n_ctx <= config.frame_tokens + 1:
            raise ValueError(
                f"nca: n_ctx is {n_ctx}; want at least {config.frame_tokens + 2}: the first frame of "
                f"{config.frame_tokens} tokens is not scored"
            )
        check_shard(batch_size, rank, world_size)
        if seed < 0:
            raise ValueError(f"sampler: seed is {seed}; want 0 or more")
        # 256 grids of the default preset stay in a core's cache; larger grids are busy enough in smaller blocks
        self.n_rules = n_rules or max(4, min(256, (1 << 18) // (config.channels * config.size**2)))
        self.config, self.n_ctx, self.batch_size, self.seed = config, n_ctx, batch_size, seed
        self.device, self.rank, self.world_size = torch.device(device), rank, world_size
        self.n_candidates, self.n_kept = 0, 0
        self._block, self._used = 0, 0  # the block being used, and how many of its sequences are
        self._sequences: Tensor | None = None

    @property
    def kept_share(self) -> float:
        """Share of the candidates so far that the filter kept; nan before the first batch."""
        return self.n_kept / self.n_candidates if self.n_candidates else math.nan

    def next_batch(self) -> tuple[Int64[Tensor, "rows n_ctx"], Bool[Tensor, "rows n_ctx"]]:
        """The next batch's rows of this rank, and which of their tokens are scored, both on the device.

        With losses per token [rows, n_ctx − 1] of the tokens from 1 on, the mask to use is mask[:, 1:].
        Raises ValueError if the filter keeps nothing of 20,000 rules.
        """
        parts, missing = [], self.batch_size
        while missing:
            if self._sequences is None:
                self._sequences = self._generate(self._block)
                self.n_candidates += self.n_rules
                self.n_kept += len(self._sequences)
                if self.n_kept == 0 and self.n_candidates >= _HOPELESS:
                    low, high = self.config.min_ratio, self.config.max_ratio
                    raise ValueError(
                        f"nca: none of {self.n_candidates} rules has a gzip ratio in {low} to {high}; want a wider band"
                    )
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
        sequences = self._generate(block) if used else None
        if sequences is not None and used >= len(sequences):
            raise ValueError(f"sampler: state has used {used} of block {block}, which has {len(sequences)}; want less")
        self._block, self._used, self._sequences = block, used, sequences
        self.n_candidates, self.n_kept = state["n_candidates"], state["n_kept"]

    def _generate(self, block: int) -> Int64[Tensor, "kept n_ctx"]:
        generator = self._generator("rules", block)
        n_frames = math.ceil(self.n_ctx / self.config.frame_tokens)
        rules = draw_rules(self.config, self.n_rules, generator)
        frames = patches(self.config, simulate(rules, n_frames, generator))
        kept = _is_kept(self.config, compression_ratios(frames)).to(self.device)
        tokens = delimit(self.config, frames[kept], self.n_ctx)
        # from numbers of its own, so that the control has the very sequences that it is a control for
        return shuffle(self.config, tokens, self._generator("order", block)) if self.config.shuffled else tokens

    def _generator(self, purpose: str, block: int) -> torch.Generator:
        base = int.from_bytes(hashlib.sha256(f"nca {purpose} {self.seed}".encode()).digest()[:7], "little")
        # a sum, not another hash: torch's CPU generator reads 32 bits, and these differ for 2³² successive blocks
        return torch.Generator(self.device).manual_seed(base + block)


def _is_kept(config: NCAConfig, ratios: Float[Tensor, " n"]) -> Bool[Tensor, " n"]:
    return (ratios >= config.min_ratio) & (ratios <= config.max_ratio)


@lru_cache(maxsize=8)
def _neighbours(channels: int, size: int, device: str) -> Int32[Tensor, " cells_taps_channels"]:
    """For each cell, tap and channel, where in a flattened [channel, cell] grid that neighbour is."""
    at = torch.arange(channels * size**2, dtype=torch.int32).view(channels, size, size)
    taps = [at.roll((-dy, -dx), (1, 2)) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    return rearrange(torch.stack(taps), "tap c y x -> (y x tap c)").to(device)
