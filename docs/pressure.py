"""`python -m docs.pressure`: the pressure of every Janus recipe over its training, beside what was published of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from workbench.training.interventions import make_interventions
from workbench.training.recipe import load_recipe

PICTURE = Path(__file__).parent / "images" / "pressure.svg"
WIDTH, HEIGHT, LEFT, TOP = 420, 250, 52, 44  # pixels of a panel, and before and above its axes
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
N_POINTS, BEND = 100, 1e-5  # of a curve, evenly, and its bends: where its slope changes by more, per step
PUBLISHED = (4500 / 20000, 0.009)  # share of training and λ: Project Janus, telemetry at step 4,500
SMALL, LARGE = 0.0015, 0.05  # σ far below and far above the P-controller's target, for its two limits


@dataclass(frozen=True)
class Curve:
    """λ of a recipe over the share of its training that is done."""

    label: str
    weights: list[float]
    """of every step"""
    is_dashed: bool = False


def follow(name: str, sigma: float = 0.0) -> list[float]:
    """λ of every step of a recipe, under a σ that stays what it is where λ depends on one."""
    phase = load_recipe(name).phases[-1]
    vsm = next(own for own in make_interventions(phase.interventions) if own.kind == "vsm")
    weights = []
    for step in range(phase.n_steps):
        weights.append(vsm.schedule(step, phase.n_steps)["lambda"])
        vsm.observe({"sigma": torch.tensor(sigma, dtype=torch.float64)})
    return weights


def listed(n_steps: int, sigma: float) -> list[float]:
    """λ by the listing of Janus II, appendix B, told σ every 50 steps, of each step."""
    weight, weights = 0.0, []
    for step in range(n_steps):
        if step < 1500:
            weight = 0.05 * (step / 1500)
        elif step % 50 == 0:
            weight = max(0.0, min(0.25, weight + 0.5 * (sigma - 0.0035)))
        weights.append(weight)
    return weights


def small_curves(size: str = "") -> list[Curve]:
    """Janus-Small's schedules, which look at nothing but the share of training."""
    names = (f"janus-small{size}", f"janus-small-late{size}", f"janus-small-sigmoid{size}")
    return [Curve(name, follow(name)) for name in names]


def adaptive_curves(size: str = "") -> list[Curve]:
    """The P-controller of the Janus v3 recipes with σ held at values on both sides of its target, and the listing's."""
    name = f"janus-v3-adaptive{size}"
    curves = []
    for sigma in (SMALL, 0.0035, 0.0135, LARGE):
        curves.append(Curve(f"σ = {sigma:g}".replace("0.", ".", 1), follow(name, sigma)))
    if not size:
        n_steps = load_recipe(name).phases[-1].n_steps
        curves += [Curve("", listed(n_steps, sigma), is_dashed=True) for sigma in (SMALL, 0.0035, 0.0135, LARGE)]
    return curves


def shown_steps(weights: list[float]) -> list[int]:
    """The steps that a line needs: some evenly, and every bend."""
    n = len(weights)
    even = {round(k * (n - 1) / N_POINTS) for k in range(N_POINTS + 1)}
    return sorted(even | {i for i in range(1, n - 1) if abs(weights[i - 1] - 2 * weights[i] + weights[i + 1]) > BEND})


def panel(title: str, curves: list[Curve], top: float, left: int, above: int, point: tuple[float, float] | None) -> str:
    """One panel in SVG's elements: axes from zero, a line for each curve, its label in a column at the right."""
    width, height = WIDTH - LEFT - 150, HEIGHT - TOP - 46

    def at(share: float, weight: float) -> tuple[float, float]:
        return round(left + LEFT + width * share, 1), round(above + TOP + height * (1 - weight / top), 1)

    (x0, y0), (x1, y1) = at(0, 0), at(1, top)
    drawn = [f'<text x="{left + 8}" y="{above + 20}" class="title">{title}</text>']
    drawn.append(f'<path d="M{x0} {y1}V{y0}H{x1}" class="axis"/>')
    for share in (0, 0.25, 0.5, 0.75, 1):
        x = at(share, 0)[0]
        drawn.append(f'<path d="M{x} {y0}v4" class="axis"/><text x="{x}" y="{y0 + 17}">{share:.0%}</text>')
    for i in range(6):
        y = at(0, top * i / 5)[1]
        value = f"{top * i / 5:.2f}".lstrip("0") if i else "0"
        drawn.append(f'<path d="M{x0} {y}h-4" class="axis"/><text x="{x0 - 7}" y="{y + 4}" class="end">{value}</text>')
    for i, curve in enumerate(curves):
        n = len(curve.weights)
        path = "L".join("{} {}".format(*at(step / n, curve.weights[step])) for step in shown_steps(curve.weights))
        colour = "#222" if curve.is_dashed else COLOURS[i]
        drawn.append(f'<path d="M{path}" class="{"listed" if curve.is_dashed else "line"}" stroke="{colour}"/>')
        if curve.label:
            x, y = x1 + 12, y1 + 18 * i
            drawn.append(f'<path d="M{x} {y}h16" class="line" stroke="{colour}"/>')
            drawn.append(f'<text x="{x + 22}" y="{y + 4}" class="start">{curve.label}</text>')
    if point is not None:
        x, y = at(*point)
        drawn.append(f'<circle cx="{x}" cy="{y}" r="5"/>')
        drawn.append(f'<circle cx="{x1 + 20}" cy="{y1 + 58}" r="5"/>')
        drawn.append(f'<text x="{x1 + 34}" y="{y1 + 62}" class="start">telemetry: .009</text>')
        drawn.append(f'<text x="{x1 + 34}" y="{y1 + 77}" class="start">at 22.5 %</text>')
    elif any(curve.is_dashed for curve in curves):
        drawn.append(f'<path d="M{x1 + 12} {y1 + 76}h16" class="listed" stroke="#222"/>')
        drawn.append(f'<text x="{x1 + 34}" y="{y1 + 80}" class="start">the listing</text>')
    drawn.append(f'<text x="{(x0 + x1) / 2}" y="{y0 + 36}">share of training</text>')
    drawn.append(f'<text x="{x0 - 40}" y="{y1 - 8}" class="start">λ</text>')
    return "\n".join(drawn)


def draw() -> str:
    """Full recipes above, nano ones below; Janus-Small at the left, Janus v3 at the right."""
    panels = []
    for row, (size, said) in enumerate((("", ""), ("-nano", ", nano"))):
        above = row * HEIGHT
        panels.append(panel(f"Janus-Small{said}: schedules", small_curves(size), 0.2, 0, above, PUBLISHED))
        title = f"Janus v3{said}: P-controller, σ held"
        panels.append(panel(title, adaptive_curves(size), 0.25, WIDTH + 40, above, None))
    style = (
        "text{font:12px sans-serif;fill:#444;text-anchor:middle}.start{text-anchor:start}.end{text-anchor:end}"
        ".title{font-weight:bold;text-anchor:start}.axis{fill:none;stroke:#888}.line{fill:none;stroke-width:2}"
        ".listed{fill:none;stroke-width:1.2;stroke-dasharray:2 4}circle{fill:none;stroke:#222;stroke-width:2}"
    )
    width, height = 2 * WIDTH + 40, 2 * HEIGHT
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    background = '<rect width="100%" height="100%" fill="#fff"/>'
    body = "\n".join(panels)
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}><style>{style}</style>\n{background}\n{body}\n</svg>\n'


if __name__ == "__main__":
    PICTURE.write_text(draw(), encoding="utf-8")
    print(PICTURE)  # noqa: T201
