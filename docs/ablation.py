"""`python -m docs.ablation`: the picture of docs/ablation.md, drawn from benchmarks/results/ablation.csv."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "ablation.csv"
PICTURE = Path(__file__).parent / "images" / "ablation_cost.svg"
WIDTH, HEIGHT, MARGIN = 340, 240, 48  # pixels of a panel, and around its axes

Points = list[tuple[float, float]]


def measured() -> tuple[Points, Points]:
    """(tokens, s) of one layer's heads, and (layers behind, s) of 512 tokens, as the benchmark wrote them."""
    by_tokens, by_layers = [], []
    with RESULTS.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if found := re.fullmatch(r"heads of layer \d+, (\d+) tokens", row["case"]):
                by_tokens.append((float(found[1]), float(row["ours"])))
            elif found := re.fullmatch(r"heads of layer \d+, (\d+) layers behind", row["case"]):
                by_layers.append((float(found[1]), float(row["ours"])))
    return sorted(by_tokens), sorted(by_layers)


def panel(points: Points, label: str, left: int) -> list[str]:
    """One scatter with its least-squares line, both axes from zero, in SVG's elements."""
    x, y = np.array(points).T
    slope, intercept = np.polyfit(x, y, 1)
    x_top, y_top = x.max() * 1.08, y.max() * 1.15

    def at(u: float, v: float) -> tuple[float, float]:
        width, height = WIDTH - 1.5 * MARGIN, HEIGHT - 2 * MARGIN
        return round(left + MARGIN + width * u / x_top, 1), round(HEIGHT - MARGIN - height * v / y_top, 1)

    (x0, y0), (x1, _), (_, y1) = at(0, 0), at(x_top, 0), at(0, y_top)
    drawn = [f'<path d="M{x0} {y1}V{y0}H{x1}" class="axis"/>']
    start, end = at(0, intercept), at(x_top, intercept + slope * x_top)
    drawn.append(f'<path d="M{start[0]} {start[1]}L{end[0]} {end[1]}" class="line"/>')
    for u, v in points:
        a, b = at(u, v)
        drawn += [f'<circle cx="{a}" cy="{b}" r="4"/>', f'<text x="{a}" y="{b - 9}">{v:.1f}</text>']
        drawn.append(f'<text x="{a}" y="{y0 + 16}">{u:g}</text>')
    drawn.append(f'<text x="{(x0 + x1) / 2}" y="{y0 + 36}">{label}</text>')
    drawn.append(f'<text x="{x0}" y="{y1 - 10}" class="start">seconds</text>')
    return drawn


def draw() -> str:
    """The two panels as one SVG."""
    by_tokens, by_layers = measured()
    drawn = panel(by_tokens, "tokens", 0) + panel(by_layers, "layers behind", WIDTH)
    style = (
        "text{font:12px sans-serif;fill:#444;text-anchor:middle}.start{text-anchor:start}"
        ".axis{fill:none;stroke:#888}.line{stroke:#0072b2;stroke-dasharray:5 4}circle{fill:#0072b2}"
    )
    size = f'width="{2 * WIDTH}" height="{HEIGHT}" viewBox="0 0 {2 * WIDTH} {HEIGHT}"'
    body = "\n".join(drawn)
    background = '<rect width="100%" height="100%" fill="#fff"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}><style>{style}</style>\n{background}\n{body}\n</svg>\n'


if __name__ == "__main__":
    PICTURE.write_text(draw(), encoding="utf-8")
    print(PICTURE)  # noqa: T201
