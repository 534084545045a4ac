"""The probes beside scikit-bio and DADApy (or scikit-learn), by turns in one run; writes benchmarks/results/probes.csv.

    python benchmarks/bench_probes.py [--short] [--turns 5] [--dadapy-python /path/to/env/bin/python]

Each case runs ours, the peer, ours, the peer, … in this process (the TwoNN cases in processes of their own, for their
peak memory) and reports medians, their ratio peer/ours and interquartile ranges. DADApy pins NumPy below 2, so it needs
an environment of its own; without one, the peer of TwoNN is the neighbour search that DADApy calls (scikit-learn's).
`--short` shrinks the TwoNN cloud and halves the turns. Threads are as the environment sets them, for both sides.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from scipy.spatial.distance import pdist, squareform

import probes

RESULTS = Path(__file__).parent / "results" / "probes.csv"


@dataclass(frozen=True)
class Row:
    """One case; seconds are medians over `n_runs` turns."""

    case: str
    ours_s: float
    peer_s: float
    ratio: float
    n_runs: int
    peer: str
    versions: str
    ours_iqr_s: float
    peer_iqr_s: float
    ours_peak_mib: float | None
    peer_peak_mib: float | None


def by_turns(ours: Callable[[], float], peer: Callable[[], float], turns: int) -> tuple[list[float], list[float]]:
    """Seconds of both, taken alternately after one untimed run of ours (imports and buffers)."""
    ours()
    pairs = [(ours(), peer()) for _ in range(turns)]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def timed(function: Callable[[], object]) -> Callable[[], float]:
    """The function as one that gives its seconds."""

    def run() -> float:
        start = time.perf_counter()
        function()
        return time.perf_counter() - start

    return run


def row(case: str, ours_s: list[float], peer_s: list[float], peer: str, versions: list[str], peaks=(None, None)) -> Row:
    """The row of a case from its seconds."""
    ours, theirs = float(np.median(ours_s)), float(np.median(peer_s))
    spread = [round(float(np.subtract(*np.percentile(s, [75, 25]))), 5) for s in (ours_s, peer_s)]
    threads = os.environ.get("OMP_NUM_THREADS", "default")
    about = " ".join([*versions, f"numpy {np.__version__}", f"threads {threads}", f"cpus {os.cpu_count()}"])
    return Row(
        case, round(ours, 5), round(theirs, 5), round(theirs / ours, 2), len(ours_s), peer, about, *spread, *peaks
    )


def distance_sets(n: int, count: int, seed: int) -> np.ndarray:
    """`count` distance matrices [count, n, n] of random points."""
    rng = np.random.default_rng(seed)
    return np.stack([squareform(pdist(rng.normal(size=(n, 16)))) for _ in range(count)])


def many_layers(n: int, turns: int, n_layers: int = 33, n_targets: int = 5, n_permutations: int = 5000) -> Row:
    """All layers against all targets, p-values adjusted too, beside scikit-bio called once a layer and target."""
    from skbio import DistanceMatrix
    from skbio.stats.distance import mantel

    layers, targets = distance_sets(n, n_layers, 0), distance_sets(n, n_targets, 1)

    def ours() -> None:
        for target in targets:
            probes.mantel_many(layers, target, n_resamples=n_permutations, exact=False, rng=0)

    def peer() -> None:
        for target in targets:
            for layer in layers:
                mantel(
                    DistanceMatrix(layer), DistanceMatrix(target), method="spearman",
                    permutations=n_permutations, alternative="greater", seed=0,
                )  # fmt: skip

    seconds = by_turns(timed(ours), timed(peer), turns)
    case = f"mantel_many {n_layers} layers x {n_targets} targets x {n_permutations} permutations, n={n}"
    return row(case, *seconds, "scikit-bio, a call a layer", [f"scikit-bio {version('scikit-bio')}"])


def one_pair(n: int, turns: int, method: str, n_permutations: int = 999) -> Row:
    """One Mantel test beside scikit-bio's."""
    from skbio import DistanceMatrix
    from skbio.stats.distance import mantel

    x, y = distance_sets(n, 2, 2)
    first, second = DistanceMatrix(x), DistanceMatrix(y)
    ours = timed(lambda: probes.mantel(x, y, method=method, n_resamples=n_permutations, rng=0))  # type: ignore[arg-type]
    peer = timed(
        lambda: mantel(first, second, method=method, permutations=n_permutations, alternative="greater", seed=0)
    )
    case = f"mantel one pair {method} x {n_permutations} permutations, n={n}"
    return row(case, *by_turns(ours, peer, turns), "scikit-bio", [f"scikit-bio {version('scikit-bio')}"])


# Each runs in a process of its own on a saved cloud and prints its seconds, peak memory, dimension and version.
TAIL = """
import json, pathlib
# VmHWM and not ru_maxrss, which a child inherits from the process that started it
status = pathlib.Path("/proc/self/status").read_text().splitlines()
peak_kib = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
print(json.dumps([seconds, peak_kib / 1024, float(dimension), about]))
"""
OURS = """
import sys, time, numpy as np
from probes import two_nn
X = np.load(sys.argv[1])
start = time.perf_counter()
dimension = two_nn(X).dimension
seconds, about = time.perf_counter() - start, ""
"""
SKLEARN = """
import sys, time, numpy as np, sklearn
from sklearn.neighbors import NearestNeighbors
X = np.load(sys.argv[1])
start = time.perf_counter()
r = NearestNeighbors(n_neighbors=3, algorithm="brute").fit(X).kneighbors(X)[0]
mu = np.sort(np.log(r[:, 2] / r[:, 1]))[: int(0.9 * len(X))]
y = -np.log(1 - np.arange(1, len(mu) + 1) / len(X))
dimension = mu @ y / (mu @ mu)
seconds, about = time.perf_counter() - start, "scikit-learn " + sklearn.__version__
"""
DADAPY = """
import os, sys, time, numpy as np, dadapy
from importlib.metadata import version
X = np.load(sys.argv[1])
start = time.perf_counter()
data = dadapy.Data(X, n_jobs=int(os.environ.get("OMP_NUM_THREADS", os.cpu_count())))
data.compute_distances(maxk=2)
dimension = data.compute_id_2NN()[0]
seconds, about = time.perf_counter() - start, "DADApy " + version("dadapy")
"""


def in_process(python: str, code: str, cloud: str) -> tuple[float, float, float, str]:
    """Seconds, peak memory in MiB, dimension and version that the code prints last."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run(
        [python, "-W", "ignore", "-c", code + TAIL, cloud], capture_output=True, text=True, env=environment
    )
    if done.returncode != 0:
        raise RuntimeError(f"{python} failed: {done.stderr.strip()[-500:]}")
    return tuple(json.loads(done.stdout.strip().splitlines()[-1]))


def intrinsic_dimension(n: int, d: int, turns: int, dadapy_python: str | None) -> Row:
    """TwoNN of a cloud of about 20 dimensions in d, float32, with both sides' peak memory."""
    rng = np.random.default_rng(3)
    cloud = rng.normal(size=(n, 20)) @ rng.normal(size=(20, d)) / 4 + 0.05 * rng.normal(size=(n, d)) + 1.0
    with tempfile.TemporaryDirectory() as directory:
        path = str(Path(directory) / "cloud.npy")
        np.save(path, cloud.astype(np.float32))
        del cloud
        sides = ((sys.executable, OURS), (dadapy_python, DADAPY) if dadapy_python else (sys.executable, SKLEARN))
        runs = [[in_process(python, code, path) for python, code in sides] for _ in range(turns)]
    ours, peer = zip(*runs, strict=True)
    dimensions = [round(side[0][2], 4) for side in (ours, peer)]
    name = "DADApy" if dadapy_python else "scikit-learn brute force and the same fit"
    return row(
        f"two_nn N={n} D={d} float32, dimensions {dimensions[0]} and {dimensions[1]}",
        [run[0] for run in ours], [run[0] for run in peer], name, [peer[0][3]],
        (round(max(run[1] for run in ours)), round(max(run[1] for run in peer))),
    )  # fmt: skip


def write(rows: list[Row]) -> None:
    """Write the rows to benchmarks/results/probes.csv."""
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    with RESULTS.open("w", newline="") as file:
        table = csv.DictWriter(file, fieldnames=list(asdict(rows[0])))
        table.writeheader()
        table.writerows(asdict(r) for r in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the probes beside their peers.")
    parser.add_argument("--short", action="store_true", help="a smaller TwoNN cloud and half the turns")
    parser.add_argument("--turns", type=int, default=5, help="turns of the quick cases (default 5)")
    parser.add_argument("--dadapy-python", default=None, help="interpreter of an environment with DADApy")
    options = parser.parse_args()
    turns = max(1, options.turns // 2) if options.short else options.turns
    cases = [
        lambda: many_layers(35, max(1, turns // 2)),
        lambda: many_layers(10, max(1, turns // 2)),
        lambda: one_pair(200, 4 * turns, "spearman"),
        lambda: one_pair(200, 4 * turns, "pearson"),
        lambda: one_pair(50, 4 * turns, "spearman"),
        lambda: intrinsic_dimension(
            10_000 if options.short else 50_000, 512, max(1, turns // 2), options.dadapy_python
        ),
    ]
    rows = []
    for case in cases:
        rows.append(case())
        print(
            f"{rows[-1].case}: {rows[-1].ours_s:.3f} s, {rows[-1].peer} {rows[-1].peer_s:.3f} s, x{rows[-1].ratio:.1f}"
        )
    write(rows)
    print(RESULTS)


if __name__ == "__main__":
    main()
