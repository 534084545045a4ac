"""Panels of a study of several sizes: the claims' effects over size, and where they are heading."""

from __future__ import annotations

import math

import pandas as pd

from reports import figures
from reports.ledger import GROUPS
from reports.panels.panel import Drawing, Panel, Section, needing
from reports.study import Study
from reports.table_cells import MISSING, Cell, Grid, signed, significant, thousands
from reports.tables import COLUMNS

MANY = 1000  # per cent of change from which on a ratio is given as a factor


def over_size(study: Study) -> list[Drawing]:
    """Return the figure of the claims that have an effect at some size; nothing without any."""
    known = _known(study)
    return [("", figures.effects_over_size(known, _slopes(study)))] if len(known) else []


def size_grids(study: Study) -> list[Grid]:
    """Return the claims' slopes with where they are heading, and their effects and verdicts size by size."""
    known, slopes = _known(study), _slopes(study)
    grids = []
    if len(slopes):
        columns = (
            "slope per factor of ten", "seeds", "parameters as published", "the line there", "published", "heading",
        )  # fmt: skip
        rows = [_slope_row(row) for row in slopes.to_dict("records")]
        grids.append(Grid("Slopes", (), ("paper", "claim"), columns, tuple(rows), is_wide=True))
    sizes = list(dict.fromkeys(known.sort_values("n_parameters", kind="stable")["size"]))
    rows = []
    for _, own in known.groupby("claim_id", sort=False):
        by_size = {row["size"]: row for row in own.to_dict("records")}
        cells = tuple(_effect_cell(by_size[size]) if size in by_size else Cell(MISSING) for size in sizes)
        rows.append((_headers(own.iloc[0].to_dict()), cells))
    return [*grids, Grid("Effects", (), ("paper", "claim"), tuple(map(str, sizes)), tuple(rows), is_wide=True)]


def _known(study: Study) -> pd.DataFrame:
    return study.tables["claims_by_size"].dropna(subset=["effect"])


def _slopes(study: Study) -> pd.DataFrame:
    return study.tables.get("size_slopes", pd.DataFrame(columns=list(COLUMNS["size_slopes"])))


def _headers(row: dict) -> tuple[str, str]:
    return GROUPS.get(str(row["group"]), str(row["group"])), str(row["claim"])


def _slope_row(row: dict) -> tuple[tuple[str, str], tuple[Cell, ...]]:
    unit, heading = str(row["unit"]), row["heading"]
    bounds = f"[{signed(row['ci_low'], 3)}, {signed(row['ci_high'], 3)}]" if math.isfinite(row["ci_low"]) else ""
    cells = (
        Cell(signed(row["slope"], 3), bounds),
        Cell(thousands(row["n"])),
        Cell(thousands(row["published_params"])),
        Cell(effect_text(row["predicted"], unit), _interval(row["predicted_low"], row["predicted_high"], unit)),
        Cell(effect_text(row["published_effect"], unit)),
        Cell(heading if isinstance(heading, str) and heading else MISSING, is_words=True),
    )
    return _headers(row), cells


def _effect_cell(row: dict) -> Cell:
    unit = str(row["unit"])
    bounds = _interval(row["ci_low"], row["ci_high"], unit)
    return Cell(effect_text(row["effect"], unit), "; ".join(filter(None, (bounds, str(row["verdict"])))))


def _interval(low: float, high: float, unit: str) -> str:
    """Return an interval, its unit once where both ends have the same; nothing where there is none."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return ""
    (first, _, one), (last, _, other) = (effect_text(value, unit).partition(" ") for value in (low, high))
    return f"[{first}, {last}]{f' {one}' if one else ''}" if one == other else f"[{first} {one}, {last} {other}]"


def effect_text(value: float, unit: str) -> str:
    """Return an effect in the unit of its claim; a change of a ratio of `MANY` per cent and more as a factor.

    >>> effect_text(-0.331, "percent"), effect_text(40.0, "percent"), effect_text(0.02, "points")
    ('−33.1 %', '41.0 ×', '+2.0 points')
    """
    if not math.isfinite(value):
        return MISSING
    if unit == "factor" or (unit == "percent" and 100 * value >= MANY):
        return f"{significant(1 + value)} ×"
    return {"percent": f"{signed(100 * value, 1)} %", "points": f"{signed(100 * value, 1)} points"}.get(
        unit, signed(value, 3)
    )


_NEEDS = needing("claims_by_size", " ".join(COLUMNS["claims_by_size"]))
SIZES = Section(
    "sizes",
    "What size has to do with it",
    "The claims at every size of this study’s models, and where a straight line takes them at the published size.",
    (
        Panel(
            "effects-over-size",
            "Effects of the claims over the size of the models",
            "Follow the dashed line from the filled marks to the open circle, and see whether the diamond, the "
            "published effect, lies within the circle’s bar.",
            _NEEDS,
            over_size,
            ("n", "seeds"),
            (
                "Filled marks: effect at one size, with its 95 % interval. Dashed: the straight line of effects on "
                "their working scale (a logarithm for ratios) over the logarithm of the parameters without embeddings, "
                "drawn out to the published size; its bar there is the 95 % prediction interval of one more model. "
                "A bar much longer than what the marks span runs out of its panel; {size-slopes} has all."
            ),
            uses=("size_slopes",),
            counted=lambda study: {"": _known(study)},
            is_core=False,
        ),
        Panel(
            "size-slopes",
            "Where the claims are heading",
            "“Towards the published figure” and “away” are said of slopes whose interval leaves out 0; a finding that "
            "vanishes with size heads away, one that nano models are too small for heads towards it.",
            _NEEDS,
            size_grids,
            ("n", "seeds"),
            (
                "Slopes are on the working scale: of a ratio, the change of its logarithm. Their intervals are over "
                "seeds, which have a line each. The line need not stay straight beyond the largest size. “Flat”: "
                "the slope’s interval holds 0, and changes the effect on the way to the published size by less than "
                "half of the published one, or by less than the margin of a claim of likeness; “too uncertain”: "
                "neither. Not corrected for the number of claims."
            ),
            uses=("size_slopes",),
            counted=lambda study: {"": _known(study)},
            is_table=True,
            is_core=False,
        ),
    ),
)
