"""`python -m docs.probes RUN`: the table of docs/probes.md from a run of `probe`."""

from __future__ import annotations

import csv
import math
import re
import sys
from pathlib import Path

PAGE = Path(__file__).parent / "probes.md"
HEAD = "| set | n | topology | r, at layer | partial | p |\n|---|---|---|---|---|---|\n"
LEAST = 0.001

Row = dict[str, str]


def largest(run: Path) -> dict[str, Row]:
    """Of every concept set, the row of the layer where r is largest."""
    best: dict[str, Row] = {}
    with (run / "concept_mantel.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["r"] and (row["set"] not in best or float(row["r"]) > float(best[row["set"]]["r"])):
                best[row["set"]] = row
    return best


def number(text: str, digits: int = 2) -> str:
    """`.82`, `−.05`, `1.00`, or a dash for what is not defined."""
    if not text or math.isnan(float(text)):
        return "–"
    rounded = f"{float(text):.{digits}f}"
    return re.sub(r"^(-?)0\.", r"\1.", rounded).replace("-", "−")


def line(row: Row) -> str:
    """The set's row of the table."""
    p = float(row["p_westfall_young"])
    interval = "–" if not row["ci_low"] else f"{number(row['ci_low'])} to {number(row['ci_high'])}"
    cells = (
        row["set"].replace("_", " "),
        row["n"],
        row["topology"],
        f"{number(row['r'])} ({interval}) at {row['layer'].replace('-', '−')}",
        number(row["partial_r"]),
        f"< {number(str(LEAST), 3)}" if p < LEAST else number(str(p), 3),
    )
    return f"| {' | '.join(cells)} |\n"


def main(run: str) -> None:
    """Rewrite the page's table."""
    rows = largest(Path(run))
    page = PAGE.read_text(encoding="utf-8")
    start = page.index(HEAD) + len(HEAD)
    end = page.index("\n\n", start) + 1
    table = "".join(line(row) for row in rows.values())
    PAGE.write_text(page[:start] + table + page[end:], encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
