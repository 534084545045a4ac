"""Timing by turns: A B A B …, so that a machine whose speed drifts drifts for both."""

from __future__ import annotations

import csv
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results"
COLUMNS = [
    "case", "quantity", "ours", "peer", "ratio", "ratio_low", "ratio_high", "n_runs", "target", "peer_name", "machine",
]  # fmt: skip


def machine() -> str:
    """Processor and cores, or the GPU in use, and torch's version, in a few words."""
    if torch.cuda.is_initialized():
        return f"{torch.cuda.get_device_name()}, torch {version('torch')}"
    names = [line.split(":")[1].strip() for line in _cpu_lines() if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {torch.get_num_threads()} threads, torch {version('torch')}"


def _cpu_lines() -> list[str]:
    info = Path("/proc/cpuinfo")
    return info.read_text(encoding="utf-8").splitlines() if info.exists() else []


def by_turns(ours: Callable[[], object], peer: Callable[[], object], n_runs: int) -> tuple[list[float], list[float]]:
    """Seconds of n_runs calls of each, alternating, after one uncounted call of both."""
    ours()
    peer()
    wait()
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(n_runs):
        for into, run in zip(times, (ours, peer), strict=True):
            started = time.perf_counter()
            run()
            wait()
            into.append(time.perf_counter() - started)
    return times


def wait() -> None:
    """Until a GPU, where one is in use, has done what was asked of it."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def compare(case: str, quantity: str, times, peer_name: str, target: str, scale: float = 1.0) -> dict[str, object]:
    """A row: medians (of scale ÷ seconds if scale ≠ 1, so a rate), and how many times faster ours was, pair by pair."""
    ours, peer = times
    ratios = sorted(p / o for o, p in zip(ours, peer, strict=True))
    show = (lambda t: scale / t) if scale != 1.0 else (lambda t: t)
    return {
        "case": case,
        "quantity": quantity,
        "ours": f"{show(statistics.median(ours)):.4g}",
        "peer": f"{show(statistics.median(peer)):.4g}",
        "ratio": f"{statistics.median(ratios):.3f}",
        "ratio_low": f"{ratios[0]:.3f}",
        "ratio_high": f"{ratios[-1]:.3f}",
        "n_runs": len(ours),
        "target": target,
        "peer_name": peer_name,
        "machine": machine(),
    }


def add(rows: list[dict[str, object]], row: dict[str, object]) -> None:
    """Append a row and print it."""
    rows.append(row)
    print(row, flush=True)


def write(name: str, rows: list[dict[str, object]]) -> Path:
    """Write benchmarks/results/<name>.csv and return its path."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.csv"
    with path.open("w", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    return path
