"""`python -m docs.nca`: the figures of docs/nca.md, measured, and the picture of kept and rejected automata."""

from __future__ import annotations

import struct
import time
import zlib
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8

from workbench.data import nca
from workbench.data.nca import PRESETS, NCASampler

PICTURE = Path(__file__).parent / "images" / "nca.png"
N_FRAMES, N_EACH, CELL, GAP = 12, 4, 5, 6  # frames a row, rows of each kind, pixels a cell and between grids
COLOURS = np.array(
    [
        [68, 1, 84], [72, 40, 120], [62, 74, 137], [49, 104, 142], [38, 130, 142],
        [31, 158, 137], [53, 183, 121], [109, 205, 89], [180, 222, 44], [253, 231, 37],
    ],
    dtype=np.uint8,
)  # fmt: skip


def trajectories(seed: int = 0) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """(kept, rejected): histories [frame size size] of the first rules of the default preset that fall to each side."""
    config, generator = PRESETS["default"], torch.Generator().manual_seed(seed)
    frames = nca.simulate(nca.draw_rules(config, 64, generator), N_FRAMES, generator)
    ratios = nca.compression_ratios(nca.patches(config, frames))
    is_kept = (ratios >= config.min_ratio) & (ratios <= config.max_ratio)
    grids = frames[:, :, 0].unflatten(-1, (config.size, config.size)).numpy()
    return list(grids[is_kept.numpy()][:N_EACH]), list(grids[~is_kept.numpy()][:N_EACH])


def picture(kept: list[np.ndarray], rejected: list[np.ndarray]) -> UInt8[np.ndarray, "height width 3"]:
    """One row a trajectory, time to the right; kept ones above, a wider gap, rejected ones below."""
    rows = []
    for group in (kept, rejected):
        for grids in group:
            cells = [COLOURS[g].repeat(CELL, 0).repeat(CELL, 1) for g in grids]
            rows.append(
                np.concatenate([np.pad(c, ((0, GAP), (0, GAP), (0, 0)), constant_values=255) for c in cells], 1)
            )
        rows.append(np.full((3 * GAP, rows[-1].shape[1], 3), 255, dtype=np.uint8))
    return np.concatenate(rows[:-1])


def write_png(path: Path, pixels: UInt8[np.ndarray, "height width 3"]) -> None:
    """An RGB picture as a PNG file."""
    height, width, _ = pixels.shape
    lines = b"".join(b"\0" + row.tobytes() for row in pixels)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines, 9)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)


def table(preset: str, n_ctx: int, n: int, n_batches: int) -> str:
    """Lines of a Markdown table: the calibration sources, then a sampler's kept share and rate."""
    config = PRESETS[preset]
    n_frames = -(-n_ctx // config.frame_tokens)
    lines = []
    for row in nca.calibration_table(config, n_frames, torch.Generator().manual_seed(0), n):
        ratios = f"{row.ratio_mean:.3f} | {row.ratio_min:.3f}–{row.ratio_max:.3f}"
        lines.append(f"| {preset}, {n_ctx} tokens | {row.source} | {ratios} | {row.kept_share:.0%} |")
    sampler, started, n_tokens = NCASampler(config, n_ctx, 16, 0), time.perf_counter(), 0
    for _ in range(n_batches):
        n_tokens += sampler.next_batch()[0].numel()
    rate = n_tokens / (time.perf_counter() - started)
    share = f"kept {sampler.kept_share:.1%} of {sampler.n_candidates} rules"
    return "\n".join([*lines, f"sampler {preset}, {n_ctx} tokens: {share}; {rate:,.0f} tokens/s"])


if __name__ == "__main__":
    write_png(PICTURE, picture(*trajectories()))
    for arguments in (("default", 128, 256, 60), ("default", 2048, 128, 12), ("kotodama", 2048, 16, 1)):
        print(table(*arguments), flush=True)  # noqa: T201
