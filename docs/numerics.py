"""`python -m docs.numerics [FIGURES]`: writes docs/numerics.md from benchmarks/results/numerics.csv; first that table
too, where FIGURES is given: the file that `pytest tests/faults/test_numerics.py --figures FIGURES` leaves."""

from __future__ import annotations

import csv
import json
import sys
from itertools import groupby
from pathlib import Path

PAGE = Path(__file__).parent / "numerics.md"
TABLE = Path(__file__).parents[1] / "benchmarks" / "results" / "numerics.csv"
COLUMNS = ("metric", "dtype", "largest", "tolerance", "is_relative", "why")
DTYPES = ("float64", "float32", "bfloat16", "float16")
HEAD = """# How exact the numbers are

Written by `make docs` from `benchmarks/results/numerics.csv`, which `make numerics` measures anew. Each metric of
the table is computed by the package and by independent loops in float64 (`tests/faults/naive.py`), on three random
problems each. Both get the same input, rounded to the dtype, so the error is that of the arithmetic, not of the input.

Where the name says *of a model* or *encoded*, and in the rows on ablation and splicing, the model or SAE itself runs in
the dtype, on a CPU, and is compared with a float64 one that has the same rounded weights: the error is what running in
that dtype costs. These are small random models (two layers, 61 tokens); `ablate` measures what bfloat16 costs on a real
one (`error_pct`).

A cell gives the largest error found and, after the slash, the tolerance that the tests require. Errors are absolute or,
where marked relative, shares of the largest value of the reference.

| metric | float64 | float32 | bfloat16 | float16 | what the tolerance allows for |
|---|---|---|---|---|---|
"""


def keep(figures: Path) -> None:
    """Write the table from what the tests recorded."""
    with figures.open(newline="", encoding="utf-8") as file:
        errors = [json.loads(row["value"]) for row in csv.DictReader(file) if row["quantity"] == "error"]
    with TABLE.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for row in errors:
            writer.writerow([f"{row[name]:.1e}" if isinstance(row[name], float) else row[name] for name in COLUMNS])


def render() -> str:
    """The page: a row for the metrics that share a limit."""
    with TABLE.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    limits = []
    for metric, of_metric in groupby(rows, key=lambda row: row["metric"]):
        own = {row["dtype"]: row for row in of_metric}
        first = next(iter(own.values()))
        about = first["why"] + (" (relative)" if first["is_relative"] == "True" else "")
        limits.append((about, {dtype: row["tolerance"] for dtype, row in own.items()}, metric, own))
    lines = []
    for (about, tolerances), group in groupby(limits, key=lambda limit: limit[:2]):
        members = list(group)
        cells = []
        for dtype in DTYPES:
            errors = [float(own[dtype]["largest"]) for *_, own in members if dtype in own]
            cells.append(f"{_short(max(errors))} / {float(tolerances[dtype]):.0e}" if errors else "")
        lines.append(f"| {' · '.join(metric for *_, metric, _ in members)} | {' | '.join(cells)} | {about} |")
    return HEAD + "\n".join(lines) + "\n"


def _short(error: float) -> str:
    return f"{error:.0e}" if error else "0"


if __name__ == "__main__":
    if len(sys.argv) > 1:
        keep(Path(sys.argv[1]))
    PAGE.write_text(render(), encoding="utf-8")
