"""Size as an axis of a study: each claim's effect at every size, its slope, and what a straight line gives further on.

Size is x = log10 of the parameters without token and position tables and without the unembedding
(`n_parameters_no_embedding`, as in effective_size.csv), of the largest of the models that a claim compares. The effect
y is on its working scale, a logarithm for ratios. Seeds that have it at every size where it was measured count; each
has its own least-squares line, and the mean of these is the line of all.

    slope         mean of the seeds' slopes, per factor of ten in parameters; with three or more seeds its 95 % interval
                  by Student's t on them
    predicted     the line's value at the published size x₀ with the 95 % interval of one more model there,

                      ŷ(x₀) ± t(.975, S·K − 2) · s · √(1 + 1/(S·K) + (x₀ − x̄)²/(S·Σ(x_k − x̄)²))

                  of S seeds and K sizes of mean x̄, s² the residual variance around the line of all, S·K − 2 degrees of
                  freedom (Seber & Lee 2003, section 5.3)

Both take effects to be independent from seed to seed and size to size, and the prediction one variance at all sizes and
a relation that stays straight as far as x₀, which no study of smaller sizes can test.

The heading compares what the line adds on the way from the middle of the sizes to the published size,
c = slope · (x₀ − x̄), with what is missing in the middle, g = p − ȳ, p the published effect; both with 95 % intervals
over seeds. Where only a direction was published, g has that sign. With m half of |p|, half of |ȳ| without a figure, or
the margin of a claim of likeness:

    flat                          c's interval lies within ± m, and holds 0 unless the claim is one of likeness
    towards the published figure  c and g lie on the same side of 0, both intervals without it
    away                          they lie on opposite sides, both intervals without it
    too uncertain                 else, and with fewer than three seeds

A slope of 0 is thus called towards or away in 5 % of studies or fewer. Where the published size is not known, there is
neither prediction nor heading.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from reports.study import AT
from reports.tables import COLUMNS, MIN_SEEDS
from workbench.data.claims import Claim
from workbench.data.papers import published_size
from workbench.models.costs import counted
from workbench.study.claims import SIDES, claim_rows
from workbench.study.effects import quantile, seed_effects, shown, student, working
from workbench.study.evidence import Evidence, gather
from workbench.study.measures import Bounds, Tables
from workbench.study.recipe import StudyRecipe
from workbench.training.recipe import Recipe, phase_model

TOWARDS, AWAY, FLAT, UNCERTAIN = "towards the published figure", "away", "flat", "too uncertain"


@dataclass(frozen=True)
class Line:
    """The straight line of an effect over sizes, and how well it is known."""

    slope: float
    """per unit of x"""
    slope_bounds: Bounds | None
    """95 % interval over seeds; None below three"""
    mean: float
    """the effect in the middle of the sizes"""
    mean_bounds: Bounds | None
    middle: float
    """mean x"""
    spread: float
    """Σ(x − x̄)² over seeds and sizes"""
    residual: float
    """standard deviation around the line; nan without a degree of freedom"""
    n_seeds: int
    n_sizes: int

    def at(self, x: float) -> float:
        """The line's value."""
        return self.mean + self.slope * (x - self.middle)

    def predict(self, x: float) -> Bounds:
        """The 95 % interval of one more effect at x; nan where the residual variance is not known."""
        n = self.n_seeds * self.n_sizes
        if math.isnan(self.residual):
            return math.nan, math.nan
        half = quantile(n - 2) * self.residual * math.sqrt(1 + 1 / n + (x - self.middle) ** 2 / self.spread)
        return self.at(x) - half, self.at(x) + half


def fit_line(x: Sequence[float], y: np.ndarray) -> Line:
    """The line of effects over sizes.

    Args:
        x: of each size, two or more that differ.
        y: [seed size] effects, finite.

    Raises:
        ValueError: no two sizes that differ, or no seed.

    >>> line = fit_line([5.0, 6.0, 7.0], np.array([[0.0, 1.0, 2.0], [0.0, 2.0, 4.0], [0.0, 3.0, 6.0]]))
    >>> line.slope, line.at(8.0)
    (2.0, 6.0)
    """
    places = np.asarray(x, dtype=float)
    if y.ndim != 2 or y.shape[1] != len(places) or not len(y) or len(set(x)) < 2:
        raise ValueError(f"fit_line: got effects {y.shape} at x {list(x)}; expected [seed size], two sizes that differ")
    n_seeds, n_sizes = y.shape
    centred = places - places.mean()
    slopes, means = y @ centred / (centred @ centred), y.mean(axis=1)
    slope, mean = float(slopes.mean()), float(means.mean())
    residuals, freedom = y - mean - slope * centred, y.size - 2
    is_many = n_seeds >= MIN_SEEDS
    return Line(
        slope, student(list(slopes)) if is_many else None, mean, student(list(means)) if is_many else None,
        float(places.mean()), n_seeds * float(centred @ centred),
        math.sqrt(float((residuals**2).sum()) / freedom) if freedom else math.nan, n_seeds, n_sizes,
    )  # fmt: skip


def find_heading(line: Line, x: float, published: float | None, direction: int, margin: float | None = None) -> str:
    """Where an effect is heading, by the rules at the head of this module.

    Args:
        x: the published size.
        published: the published effect on the working scale; None where only its direction was published.
        direction: 1 or −1; 0 of a claim of likeness.
        margin: of a claim of likeness, on the working scale.
    """
    if line.slope_bounds is None or line.mean_bounds is None:
        return UNCERTAIN
    way = x - line.middle
    low, high = sorted(way * bound for bound in line.slope_bounds)
    holds_zero = low <= 0 <= high
    limit = margin if margin is not None else abs(line.mean if published is None else published) / 2
    if -limit <= low and high <= limit and (holds_zero or margin is not None):
        return FLAT
    # a likeness published without a figure is one of no difference
    target = 0.0 if published is None and margin is not None else published
    missing = (direction, direction) if target is None else [target - bound for bound in line.mean_bounds]
    if holds_zero or min(missing) <= 0 <= max(missing):
        return UNCERTAIN
    return TOWARDS if (low > 0) == (min(missing) > 0) else AWAY


# --- of a study


def count_parameters(recipes: Sequence[Recipe]) -> dict[str, int]:
    """Model -> its parameters without embeddings."""
    return {own.name: counted(phase_model(own, -1)).n_parameters(embeddings=False) for own in recipes}


def check_sizes(recipe: StudyRecipe, recipes: Sequence[Recipe]) -> None:
    """Raise ValueError where two sizes give a model as many parameters."""
    seen: dict[tuple[str, int], str] = {}
    for name, n in count_parameters(recipes).items() if recipe.sizes else ():
        model, size = name.partition(AT)[0], recipe.size_of(name)
        if (other := seen.setdefault((model, n), size)) != size:
            raise ValueError(
                f"sizes: got {n:,} parameters without embeddings of {model} at {other} and at {size}; expected sizes "
                "that differ in it"
            )


def order_sizes(recipe: StudyRecipe, counts: Mapping[str, int]) -> list[str]:
    """The names of a study's sizes, by the parameters of its largest model there."""
    most = {size: max(n for name, n in counts.items() if recipe.size_of(name) == size) for size in recipe.sizes}
    return sorted(most, key=lambda size: most[size])


def largest_size(recipe: StudyRecipe, recipes: Sequence[Recipe]) -> str:
    """The name of the size that the ledger is about; "" in a study without sizes."""
    return order_sizes(recipe, count_parameters(recipes))[-1] if recipe.sizes else ""


def notes_on_sizes(recipe: StudyRecipe, recipes: Sequence[Recipe]) -> list[str]:
    """Sentences that a reader of the page needs of a study's sizes; none without sizes."""
    if not recipe.sizes:
        return []
    counts = count_parameters(recipes)
    sizes = order_sizes(recipe, counts)
    said = ", ".join(
        f"{size} ({max(n for name, n in counts.items() if recipe.size_of(name) == size):,})" for size in sizes
    )
    notes = [f"Sizes, in parameters without embeddings: {said}. The ledger is that of the largest, {sizes[-1]}."]
    if len(sizes) == 1:
        notes.append("One size gives no slope: a line takes two sizes or more.")
    return notes


def judge_sizes(
    tables: Tables, recipe: StudyRecipe, recipes: Sequence[Recipe], claims: Sequence[Claim]
) -> dict[str, pd.DataFrame]:
    """claims.csv of the largest size, claims_by_size.csv, and, of two or more sizes, size_slopes.csv.

    Args:
        tables: a study's tables by name, all models, sizes and seeds merged.
        recipes: of the models' trainings, at every size.
        claims: those that are judged.
    """
    counts = count_parameters(recipes)
    sizes = order_sizes(recipe, counts)
    found = {size: [gather(own, tables, recipe.roles_at(size)) for own in claims] for size in sizes}
    judged = {size: claim_rows(found[size]) for size in sizes}
    by_size, slopes = [], []
    for i, claim in enumerate(claims):
        evidence = {size: found[size][i] for size in sizes}
        if evidence[sizes[0]].missing_roles:
            continue
        places = {size: _count(own, counts) for size, own in evidence.items()}
        line = _fit(evidence, places)
        by_size += [_row(claim, size, places[size], judged[size].iloc[i], line) for size in sizes]
        slopes += [] if line is None else [_slope_row(claim, line)]
    made = {
        "claims": judged[sizes[-1]],
        "claims_by_size": pd.DataFrame(by_size, columns=pd.Index(COLUMNS["claims_by_size"])),
    }
    if len(sizes) > 1:
        made["size_slopes"] = pd.DataFrame(slopes, columns=pd.Index(COLUMNS["size_slopes"]))
    return made


def _count(evidence: Evidence, counts: Mapping[str, int]) -> int:
    """Parameters of the largest model that a claim compares."""
    roles = evidence.roles
    return max(counts[roles[role]] for role in evidence.claim.compared.roles if role in roles)


def _fit(evidence: Mapping[str, Evidence], places: Mapping[str, int]) -> Line | None:
    """The line of a claim over the sizes where it was measured; None for fewer than two of them, or no seed of all."""
    x, found = [], []
    for size, own in evidence.items():
        compared = own.claim.compared
        if not own.effect.is_known or own.is_other_size:
            continue
        found.append(seed_effects(own.reference.values or compared.null, own.treated.values, own.claim.scale))
        x.append(math.log10(places[size]))
    seeds = sorted(set.intersection(*map(set, found))) if found else []
    if len(set(x)) < 2 or not seeds:
        return None
    return fit_line(x, np.array([[own[seed] for own in found] for seed in seeds]))


def _row(claim: Claim, size: str, n: int, judged: pd.Series, line: Line | None) -> dict[str, Any]:
    """A claim at one size."""
    kept = {name: judged[name] for name in ("effect", "ci_low", "ci_high", "n", "interval", "verdict")}
    return {
        "claim_id": claim.id,
        "size": size,
        "n_parameters": n,
        **kept,
        "line": math.nan if line is None else shown(line.at(math.log10(n)), claim.scale),
        **_said(claim),
    }


def _slope_row(claim: Claim, line: Line) -> dict[str, Any]:
    """A claim's slope, and the line at its published size."""
    low, high = line.slope_bounds or (math.nan, math.nan)
    n = published_size(claim)
    at, heading = [math.nan] * 3, ""
    if n is not None:
        x = math.log10(n)
        at = [shown(value, claim.scale) for value in (line.at(x), *line.predict(x))]
        published = None if claim.effect is None else working(claim.effect, claim.scale)
        margin = None if claim.margin is None else working(claim.margin, claim.scale)
        heading = find_heading(line, x, published, SIDES[claim.direction], margin)
    return {
        "claim_id": claim.id,
        "slope": line.slope,
        "ci_low": low,
        "ci_high": high,
        "n": line.n_seeds,
        "n_sizes": line.n_sizes,
        "published_params": math.nan if n is None else n,
        **dict(zip(("predicted", "predicted_low", "predicted_high"), at, strict=True)),
        "published_effect": math.nan if claim.effect is None else claim.effect,
        "heading": heading,
        **_said(claim),
    }


def _said(claim: Claim) -> dict[str, str]:
    return {"claim": claim.claim, "group": claim.group, "scale": claim.scale, "unit": claim.measure.unit}
