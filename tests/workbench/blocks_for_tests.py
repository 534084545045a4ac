"""A study of two models of which every number is known, with and without each block of its text."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd

from reports.tables import COLUMNS, write_table

N_BLOCKS = 8
MEASURE = "mean |cos| on z"


def write_topology(directory: Path, seeds: int, *, with_blocks: bool = True, scale: float = 1.0) -> np.ndarray:
    """Write a study of x and y; returns the mean |cos| on z of each block of text, [model, seed, layer, block]."""
    rng = np.random.default_rng(3)
    values = rng.uniform(0.2, 0.4, (2, seeds, 2, N_BLOCKS)) * np.array([1.0, 0.5])[:, None, None, None] * scale
    rows, left_out = [], []
    for i, model in enumerate("xy"):
        for seed in range(seeds):
            for layer in (0, 1):
                own = values[i, seed, layer]
                nan = math.nan
                rows.append((model, seed, layer, "z", nan, own.mean(), nan, nan, nan, nan, nan, 64))
                for block in range(N_BLOCKS):
                    left_out.append((model, seed, layer, "z", block, np.delete(own, block).mean()))
    write_table(pd.DataFrame(rows, columns=COLUMNS["topology_stats"]), directory, "topology_stats")
    if with_blocks:
        blocks = pd.DataFrame(left_out, columns=["model", "seed", "layer", "basis", "block", "mean_cos"])
        missing = [name for name in COLUMNS["topology_stats_blocks"] if name not in blocks]
        write_table(blocks.assign(**dict.fromkeys(missing, math.nan)), directory, "topology_stats_blocks")
    (directory / "study.json").write_text(json.dumps({"models": [{"name": "x"}, {"name": "y"}], "corpus": "t"}))
    return values
