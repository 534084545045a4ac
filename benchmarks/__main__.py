"""`python -m benchmarks`: every benchmark of the folder, one after the other."""

from __future__ import annotations

import importlib
from pathlib import Path

for file in sorted(Path(__file__).parent.glob("bench_*.py")):
    print(f"== {file.stem}", flush=True)
    importlib.import_module(f"benchmarks.{file.stem}").main()
