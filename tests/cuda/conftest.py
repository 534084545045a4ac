"""Tests of what runs on a CUDA device beside the same on the CPU. `make test-gpu` runs them; without a device all skip.

The CPU is the oracle: in float64 both agree but for the order of sums, in float32 (no TF32) to its rounding.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent

sys.path[:0] = [str(HERE), str(HERE.parent / "faults")]  # whose ground, a run of every kind, serves here too


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = [item for item in items if HERE in item.path.parents]
    for item in here:
        item.add_marker(pytest.mark.gpu)
        if not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
