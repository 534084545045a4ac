"""What automata are told from: sources of known kind, and which share of each the bands of a config keep."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from workbench.data.complexity import compression_ratio, independence
from workbench.data.nca import NCAConfig, draw_rules, draw_windows, histories, patches

WORLD = 64  # side of the torus that the known automata live on: on one of 12 cells they soon die
ALIVE = 0.35  # share of cells alive at their start
PERIODS = (2, 3, 5, 8)
# born with so many living neighbours of eight, survives with so many, states; dying cells count down and are not living
KNOWN = {
    "Conway's Life (B3/S23)": ({3}, {2, 3}, 2),
    "Brian's Brain (B2/S/3)": ({2}, set(), 3),
    "Star Wars (B2/S345/4)": ({2}, {3, 4, 5}, 4),
}


@dataclass(frozen=True)
class Calibration:
    """Compression ratio and independence of one kind of source, at one number of frames."""

    source: str
    ratio: tuple[float, float, float]
    """mean, least and largest"""
    independence: tuple[float, float, float]
    """mean, least and largest"""
    kept_share: float
    """share of trajectories within the config's bands"""


def calibration_table(
    config: NCAConfig, n_frames: int, generator: torch.Generator, n: int = 256
) -> tuple[Calibration, ...]:
    """Both measures of `n` trajectories of each of `sources`, read through the config's window."""
    return tuple(
        _row(config, name, read(size, grids, n, n_frames, generator), generator)
        for name, size, grids in sources(config, n, generator)
    )


def sources(config: NCAConfig, n: int, generator: torch.Generator) -> Iterator[tuple[str, NCAConfig, Iterator[Tensor]]]:
    """(name, config of its grids, n grids [n channel cell] at successive times without end) of every source.

    Cells that are uniform and independent; in one state with probability .8 or .95, else uniform over the others;
    constant; drawn once and frozen; frozen in all channels but one, which is uniform; random frames that repeat after
    p; independent cells that keep their state with probability .9; three published automata that are the usual
    examples of class IV (Wolfram 1984), a copy per channel; and the config's own rules.
    """
    window = config.model_copy(update={"size": config.read_size, "window": None, "n_windows": 1})
    shape = (n, config.channels, window.size**2)

    def noise(share: float = 0.0) -> Tensor:
        states = torch.randint(int(share > 0), config.states, shape, generator=generator, device=generator.device)
        return states * (torch.rand(shape, generator=generator, device=generator.device) >= share)

    def repeat(frames: list[Tensor]) -> Iterator[Tensor]:
        while True:
            yield from frames

    def independent(share: float = 0.0) -> Iterator[Tensor]:
        while True:
            yield noise(share)

    def all_but_one_frozen() -> Iterator[Tensor]:
        frozen = noise()
        while True:
            yield torch.cat([frozen[:, 1:], noise()[:, :1]], dim=1)

    def lasting(share: float = 0.9) -> Iterator[Tensor]:
        grid = noise()
        while True:
            yield grid
            stays = torch.rand(shape, generator=generator, device=generator.device) < share
            grid = torch.where(stays, grid, noise())

    yield "uniform noise", window, independent()
    for share in (0.8, 0.95):
        yield f"noise, {share:.0%} in one state", window, independent(share)
    yield "constant", window, repeat([torch.zeros_like(noise())])
    yield "frozen", window, repeat([noise()])
    if config.channels > 1:
        yield "frozen but for one channel of noise", window, all_but_one_frozen()
    for period in PERIODS:
        yield f"period {period}", window, repeat([noise() for _ in range(period)])
    yield "independent cells that last", window, lasting()
    world = config.model_copy(update={"size": max(WORLD, config.size), "window": config.read_size, "n_windows": 1})
    for name, (born, survives, n_states) in KNOWN.items():
        if n_states <= config.states:
            yield name, world, _known(world, n, born, survives, n_states, generator)
    one = config.model_copy(update={"window": config.read_size, "n_windows": 1})
    # every rule as long as asked for: the caller stops
    yield "rules", one, histories(draw_rules(one, n, generator), [1 << 30] * n, generator)


def read(
    config: NCAConfig, grids: Iterator[Tensor], n: int, n_frames: int, generator: torch.Generator
) -> Int[np.ndarray, "n frame patch"]:
    """The patches of one window of each of n grids over the next n_frames."""
    cells = draw_windows(config, n, generator)
    frames = [patches(config, next(grids), cells)[:, 0] for _ in range(n_frames)]
    return torch.stack(frames, dim=1).cpu().numpy()


def measures(frames: Int[np.ndarray, "n frame patch"], rng: np.random.Generator) -> Float[np.ndarray, "n measure"]:
    """Compression ratio and independence of every trajectory."""
    return np.array([[compression_ratio(tokens), independence(tokens, rng)] for tokens in frames])


def _row(
    config: NCAConfig, name: str, frames: Int[np.ndarray, "n frame patch"], generator: torch.Generator
) -> Calibration:
    seed = torch.randint(2**62, (), generator=generator, device=generator.device).item()
    found = measures(frames, np.random.default_rng(int(seed)))
    low, high = np.array([[config.min_ratio, config.independence[0]], [config.max_ratio, config.independence[1]]])
    is_kept = ((found >= low) & (found <= high)).all(1)
    (ratio, apart), ends = found.mean(0).tolist(), np.stack([found.min(0), found.max(0)], 1).tolist()
    return Calibration(name, (ratio, *ends[0]), (apart, *ends[1]), float(is_kept.mean()))


def _known(
    config: NCAConfig, n: int, born: set[int], survives: set[int], n_states: int, generator: torch.Generator
) -> Iterator[Tensor]:
    """A "generations" automaton from random starts: state 1 lives, 2 and above are dying, 0 is empty."""
    shape, device = (n, config.channels, config.size, config.size), generator.device
    grid = (torch.rand(shape, generator=generator, device=device) < ALIVE).int()

    def among(count: Tensor, numbers: set[int]) -> Tensor:
        return torch.isin(count, torch.tensor(sorted(numbers), dtype=count.dtype, device=device))

    for t in itertools.count():
        if t >= config.burn_in:
            yield rearrange(grid, "n c y x -> n c (y x)")
        lives = (grid == 1).int()
        around = sum(lives.roll((dy, dx), (2, 3)) for dy in (-1, 0, 1) for dx in (-1, 0, 1)) - lives
        older = torch.where((grid == 1) & among(around, survives), 1, (grid + 1) % n_states)
        grid = torch.where(grid == 0, among(around, born).int(), older)
