"""`python -m docs.nca`: the figures of docs/nca.md, measured, and the pictures of kept and rejected automata."""

from __future__ import annotations

import argparse
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8

from workbench.data import nca
from workbench.data.calibration import calibration_table
from workbench.data.complexity import compression_ratio, independence
from workbench.data.nca import PRESETS, NCAConfig
from workbench.data.nca_sampler import NCASampler

IMAGES = Path(__file__).parent / "images"
N_FRAMES, N_KEPT, N_EACH, CELL, GAP = 12, 6, 2, 4, 4  # frames a row, rules of each kind, pixels of a cell and a gap
EVERY = 4  # steps between the frames that are drawn
N_CHANNELS = 3  # that are drawn of each rule, one below the other
COLOURS = np.array(
    [
        [68, 1, 84], [72, 40, 120], [62, 74, 137], [49, 104, 142], [38, 130, 142],
        [31, 158, 137], [53, 183, 121], [109, 205, 89], [180, 222, 44], [253, 231, 37],
    ],
    dtype=np.uint8,
)  # fmt: skip
KINDS = ("kept", "frozen or constant", "cycles", "high ratio", "independent")


def verdict(config: NCAConfig, ratio: float, apart: float) -> str:
    """Which of KINDS a trajectory is."""
    if ratio < config.min_ratio:
        return "frozen or constant"
    if ratio > config.max_ratio:
        return "high ratio"
    low, high = config.independence
    return "cycles" if apart < low else "independent" if apart > high else "kept"


def found(preset: str, n: int, size: int, seed: int = 0) -> dict[str, list[tuple[np.ndarray, float, float]]]:
    """(states [frame channel y x], ratio, independence) of the first rules of every kind, on a grid of that size."""
    config = PRESETS[preset].model_copy(update={"size": size, "n_windows": 1})
    n_frames, generator, rng = config.steps[0], torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    groups: dict[str, list[tuple[np.ndarray, float, float]]] = {kind: [] for kind in KINDS}
    rules, cells = nca.draw_rules(config, n, generator), nca.draw_windows(config, n, generator)
    grids = list(nca.histories(rules, [n_frames] * n, generator))
    frames = torch.stack([nca.patches(config, grid, cells)[:, 0] for grid in grids], dim=1).numpy()
    states = torch.stack(grids, dim=1).unflatten(-1, (size, size))[:, -N_FRAMES * EVERY :: EVERY].numpy()
    for tokens, seen in zip(frames, states, strict=True):
        ratio, apart = compression_ratio(tokens), independence(tokens, rng)
        groups[verdict(config, ratio, apart)].append((seen, ratio, apart))
    return groups


def picture(groups: dict[str, list[tuple[np.ndarray, float, float]]]) -> UInt8[np.ndarray, "height width 3"]:
    """Time to the right, the channels of a rule below one another; a wide gap between kinds, kept ones above."""
    rows: list[np.ndarray] = []
    for kind, rules in groups.items():
        for states, _, _ in rules[: N_KEPT if kind == "kept" else N_EACH]:
            for channel in states.swapaxes(0, 1)[:N_CHANNELS]:
                cells = [COLOURS[frame].repeat(CELL, 0).repeat(CELL, 1) for frame in channel]
                rows.append(np.concatenate([_framed(c) for c in cells], axis=1))
            rows.append(np.full((GAP, rows[-1].shape[1], 3), 255, dtype=np.uint8))
        rows.append(np.full((4 * GAP, rows[-1].shape[1], 3), 255, dtype=np.uint8))
    return np.concatenate(rows)


def _framed(pixels: np.ndarray) -> np.ndarray:
    return np.pad(pixels, ((0, GAP), (0, GAP), (0, 0)), constant_values=255)


def write_png(path: Path, pixels: UInt8[np.ndarray, "height width 3"]) -> None:
    """An RGB picture as a PNG file."""
    height, width, _ = pixels.shape
    lines = b"".join(b"\0" + row.tobytes() for row in pixels)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines, 9)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)


def table(preset: str, n_frames: int, n: int) -> str:
    """Lines of a Markdown table: both measures and the kept share of every source."""
    lines = []
    for row in calibration_table(PRESETS[preset], n_frames, torch.Generator().manual_seed(0), n):
        measures = [f"{mean:.3f} | {least:.3f}–{most:.3f}" for mean, least, most in (row.ratio, row.independence)]
        lines.append(f"| {row.source} | {' | '.join(measures)} | {row.kept_share:.0%} |")
    return "\n".join([f"{preset}, {n_frames} frames, n = {n}", *lines])


def rate(preset: str, n_ctx: int, n_batches: int) -> str:
    """Share of rules that a sampler keeps, and tokens per second of this process's CPU time."""
    sampler, started, n_tokens = NCASampler(PRESETS[preset], n_ctx, 16, 0), time.process_time(), 0
    for _ in range(n_batches):
        n_tokens += sampler.next_batch()[0].numel()
    per_s = n_tokens / (time.process_time() - started)
    return f"sampler {preset}, {n_ctx} tokens: kept {sampler.kept_share:.1%} of {sampler.n_candidates}; {per_s:,.0f}/s"


def main() -> None:
    """Draw and measure what the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("preset", choices=PRESETS)
    parser.add_argument("--n", type=int, default=200, help="trajectories of each source")
    parser.add_argument("--n-rules", type=int, default=128, help="rules that the picture's are the first of")
    arguments = parser.parse_args()
    config = PRESETS[arguments.preset]
    groups = found(arguments.preset, arguments.n_rules, min(config.size, 24))
    write_png(IMAGES / f"nca-{arguments.preset}.png", picture(groups))
    for kind, rules in groups.items():
        print(kind, len(rules), [(round(r, 3), round(i, 3)) for _, r, i in rules[:N_KEPT]], flush=True)  # noqa: T201
    print(table(arguments.preset, config.steps[0], arguments.n), flush=True)  # noqa: T201
    print(rate(arguments.preset, 128 if config.size == 12 else 2048, 8), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
