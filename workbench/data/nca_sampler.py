"""Batches of automata's sequences: rules drawn, tried, judged and cut, in an order that a resumed run repeats."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int32, Int64
from torch import Tensor

from workbench.data.complexity import is_between
from workbench.data.nca import (
    TAPS,
    NCAConfig,
    Rules,
    check_trajectory,
    delimit,
    draw_rules,
    draw_windows,
    frames_of_sequence,
    score_mask,
    shuffle,
    trajectories,
)
from workbench.data.tokens import check_shard, check_state

TRIAL_SIZE = 16  # side of the grid that rules of a grid of twice that or more are tried on first
_HOPELESS = 20_000  # rules without one that is kept
_BLOCK_RULES, _TRIED_RULES = 256, 512  # rules in a block, without and with a trial: some twenty are kept
_CACHED_CELLS = 1 << 18  # of grids that are stepped together on a CPU: what their logits take stays in cache


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
        world_size. seed: used where the config has none. n_rules: rules drawn for a block, 256 by default, 512
        where they are tried on a small grid first."""
        check_trajectory(config, n_ctx)
        check_shard(batch_size, rank, world_size)
        seed = seed if config.seed is None else config.seed
        if seed < 0:
            raise ValueError(f"sampler: seed is {seed}; expected 0 or more")
        self.config, self.n_ctx, self.batch_size, self.seed = config, n_ctx, batch_size, seed
        self.device, self.rank, self.world_size = torch.device(device), rank, world_size
        self.n_rules = n_rules or block_rules(config)
        self.n_candidates, self.n_kept = 0, 0
        self._block, self._used = 0, 0  # the block being used, and how many of its sequences are
        self._sequences: Tensor | None = None

    @property
    def kept_share(self) -> float:
        """Share of the rules so far of which a window was kept; nan before the first batch."""
        return self.n_kept / self.n_candidates if self.n_candidates else math.nan

    def next_batch(self) -> tuple[Int64[Tensor, "rows n_ctx"], Bool[Tensor, "rows n_ctx"]]:
        """The next batch's rows of this rank, and which of their tokens are scored, both on the device.

        With losses per token [rows, n_ctx − 1] of the tokens from 1 on, the mask to use is mask[:, 1:].
        Raises ValueError if the filter keeps nothing of 20,000 rules.
        """
        parts, missing = [], self.batch_size
        while missing:
            if self._sequences is None:
                self._sequences, n_kept = self._generate(self._block)
                self.n_candidates += self.n_rules
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
        """The sequences of a block in their order, and how many rules were kept."""
        config, generator = self.config, self._generator("rules", block)
        rules = draw_rules(config, self.n_rules, generator)
        if (trial := trial_config(config)) is not None:
            rules = rules.select(self._try(rules, trial, block, generator))
        windows, of_rule = self._windows(rules, generator)
        is_kept = self._judge(windows, "band", block)
        kept = [frames for frames, keep in zip(windows, is_kept, strict=True) if keep]
        tokens = torch.empty(0, self.n_ctx, dtype=torch.int64, device=self.device)
        if kept:
            tokens = torch.cat([delimit(config, frames, self.n_ctx) for frames in kept])
        tokens = tokens[torch.randperm(len(tokens), generator=generator, device=self.device)]
        if config.shuffled:  # with numbers of its own, so that the control has the very sequences it is a control for
            tokens = shuffle(config, tokens, self._generator("order", block))
        return tokens, len({i for i, keep in zip(of_rule, is_kept, strict=True) if keep})

    def _try(self, rules: Rules, trial: NCAConfig, block: int, generator: torch.Generator) -> Int64[Tensor, " kept"]:
        """Those rules that are within the bands on a small grid, over their shortest trajectory: a rule is the same on
        every grid, so most of those that the large grid would reject need not be run on it."""
        found: list[Tensor] = []
        for part in self._parts(trial, rules.n):
            some = dataclasses.replace(rules.select(part), config=trial)
            cells = draw_windows(trial, some.n, generator)
            found += [frames[0] for frames in trajectories(some, cells, [trial.steps[0]] * some.n, generator)]
        is_kept = torch.tensor(self._judge(found, "trial", block), device=self.device)
        return is_kept.nonzero().squeeze(1)

    def _windows(self, rules: Rules, generator: torch.Generator) -> tuple[list[Int32[Tensor, "_ patch"]], list[int]]:
        """The trajectories of all windows, without the frames that no sequence has room for, and the rule of each."""
        config = self.config
        cells, (low, high) = draw_windows(config, rules.n, generator), config.steps
        lengths = torch.randint(low, high + 1, (rules.n,), generator=generator, device=self.device)
        n_whole, n_read = self.n_ctx // config.frame_tokens, frames_of_sequence(config, self.n_ctx)
        # rules are alike before they are seen: the longest first, so that the others can end
        lengths = ((lengths - n_read) // n_whole * n_whole + n_read).sort(descending=True).values.tolist()
        windows, of_rule = [], []
        for part in self._parts(config, rules.n):
            for i, frames in enumerate(
                trajectories(rules.select(part), cells[part], lengths[part], generator), part.start
            ):
                windows += list(frames)
                of_rule += [i] * len(frames)
        return windows, of_rule

    def _parts(self, config: NCAConfig, n: int) -> list[slice]:
        at_once = _at_once(config, n, self.device.type)
        return [slice(start, min(start + at_once, n)) for start in range(0, n, max(at_once, 1))]

    def _judge(self, windows: Sequence[Int32[Tensor, "_ patch"]], purpose: str, block: int) -> list[bool]:
        config, seed = self.config, _stream_seed(purpose, self.seed)

        def judge(i: int) -> bool:
            rng = np.random.default_rng((seed + block, i))
            tokens = windows[i].cpu().numpy()
            return is_between(tokens, rng, (config.min_ratio, config.max_ratio), config.independence)

        # gzip leaves Python's lock to others; the cores of a GPU's host have little else to do
        n = (os.cpu_count() or 1) // self.world_size if self.device.type == "cuda" else torch.get_num_threads()
        with ThreadPoolExecutor(max(1, n)) as pool:
            return list(pool.map(judge, range(len(windows))))

    def _refuse(self) -> None:
        config = self.config
        raise ValueError(
            f"nca: none of {self.n_candidates} rules of seed {self.seed} has a gzip ratio in "
            f"{config.min_ratio} to {config.max_ratio} and an independence in {config.independence[0]} to "
            f"{config.independence[1]}; expected wider bands"
        )

    def _generator(self, purpose: str, block: int) -> torch.Generator:
        # a sum, not another hash: torch's CPU generator reads 32 bits, and these differ for 2³² successive blocks
        return torch.Generator(self.device).manual_seed(_stream_seed(purpose, self.seed) + block)


def trial_config(config: NCAConfig) -> NCAConfig | None:
    """The small grid that rules are tried on first; None where the grid itself is not much larger."""
    size = max(TRIAL_SIZE, config.read_size)
    return config.model_copy(update={"size": size, "n_windows": 1}) if config.size >= 2 * size else None


def block_rules(config: NCAConfig) -> int:
    """Rules drawn for a block."""
    return _TRIED_RULES if trial_config(config) else _BLOCK_RULES


def block_bytes(config: NCAConfig, n_ctx: int, device: str) -> int:
    """About the most memory that a block takes while it is made: its rules, a step of the grids that are run at once,
    and what is read, twice, of an eighth of the rules where most fail a trial."""
    n, width, trial = block_rules(config), config.channels * config.states, trial_config(config)
    n_large = n // 8 if trial else n
    weights = n * (TAPS * width * config.hidden + width * config.hidden)
    per_place = 2 * TAPS * config.channels + 2 * config.hidden + 4 * width  # neighbours, hidden units, logits and sums
    grids = [(config, n_large), *([(trial, n)] if trial else [])]
    steps = max(_at_once(of, of_n, device) * of.size**2 * per_place for of, of_n in grids)
    windows = n_large * config.n_windows * config.steps[1]
    return 4 * (weights + steps + windows * config.n_patches) + 2 * 8 * windows * config.frame_tokens


def _at_once(config: NCAConfig, n: int, device: str) -> int:
    """As many of n grids as stay in a core's cache; a GPU has room for all of a block."""
    return n if device.startswith("cuda") else min(n, max(4, _CACHED_CELLS // config.n_cells))


def _stream_seed(purpose: str, seed: int) -> int:
    return int.from_bytes(hashlib.sha256(f"nca {purpose} {seed}".encode()).digest()[:7], "little")
