"""The claims ledger as the page shows it: published claims in groups, each with verdict, interval and source rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from reports.study import Study, problems
from reports.table_cells import MISSING, signed, significant, thousands

NEEDS = MappingProxyType({"claims": ("claim", "published", "measured", "verdict")})

# verdict -> (mark, class): the mark says in black and white what the class says in colour
VERDICTS = {
    "reproduced": ("✓", "good"),
    "same direction": ("↗", "fair"),
    "not seen": ("○", "none"),
    "reversed": ("↺", "bad"),
    "not enough seeds": ("…", "none"),
    "not measured": ("–", "none"),
    "full size only": ("□", "none"),
    "not defined": ("∅", "none"),
}
HOLDS = ("reproduced", "same direction")
UNJUDGED = ("not measured", "not defined")
# what the page knows of a claim; others are ignored
TEXTS = ("claim", "published", "measured", "measure", "control", "why", "source_table", "source_rows")
TEXTS = (*TEXTS, "published_in", "interval", "claim_id")
INTERVALS = {
    "paired": "over seeds, paired",
    "welch": "over seeds, unpaired",
    "own": "over the text alone",
}
SUFFIXES = {"percent": " %", "factor": " ×", "points": " points", "plain": ""}
GROUPS = MappingProxyType(
    {
        "janus-small": "Project Janus: pressure on attention maps (Janus-Small)",
        "janus-ii": "Janus II: pressure on heads’ outputs, opened with SAEs and ablation",
        "kotodama": "Kotodama: Muon, cellular automata, attention residuals",
        "recurrent": "Recurrent-golf: depth recurrence",
    }
)


@dataclass(frozen=True)
class Group:
    """The claims of one system: those that this study measures first, the others apart."""

    title: str
    measured: tuple[dict[str, str], ...]
    unmeasured: tuple[dict[str, str], ...]

    @property
    def held(self) -> str:
        """How many hold of those that are published, and how many were measured: "5 of 26 hold; 24 measured"."""
        n = len(self.measured) + len(self.unmeasured)
        n_held = sum(row["verdict"] in HOLDS for row in self.measured)
        return f"{n_held} of {n} hold; {len(self.measured)} measured"

    @property
    def counts(self) -> list[dict[str, str]]:
        """How often each verdict was given, as `verdict_counts`."""
        return verdict_counts([self])


def ledger_groups(study: Study) -> list[Group]:
    """Return the ledger by group, those with measured claims first, else in the table's order; nothing without a
    usable claims table."""
    if problems(study, NEEDS):
        return []
    rows = [{str(key): value for key, value in row.items()} for row in study.tables["claims"].to_dict("records")]
    titles = list(dict.fromkeys(str(row.get("group") or "") for row in rows))
    groups = [_group(title, [row for row in rows if str(row.get("group") or "") == title]) for title in titles]
    return sorted(groups, key=lambda group: not group.measured)  # stable: what was measured comes first


def _group(title: str, rows: Sequence[Mapping[str, Any]]) -> Group:
    shown = [claim_texts(row) for row in rows]
    unmeasured = tuple(row for row in shown if row["verdict"] in UNJUDGED)
    measured = tuple(row for row in shown if row["verdict"] not in UNJUDGED)
    return Group(GROUPS.get(title, title.capitalize()), measured, unmeasured)


def verdict_counts(groups: Sequence[Group]) -> list[dict[str, str]]:
    """Return how often each verdict was given, as (number, verdict, mark, class), in the order of `VERDICTS`."""
    given = [row["verdict"] for group in groups for row in (*group.measured, *group.unmeasured)]
    order = dict.fromkeys([*VERDICTS, *given])
    counts = {verdict: given.count(verdict) for verdict in order}
    return [marked(verdict) | {"count": str(n)} for verdict, n in counts.items() if n]


def marked(verdict: str) -> dict[str, str]:
    """Return a verdict with its mark and its class; an unknown one has neither."""
    mark, kind = VERDICTS.get(verdict.strip().lower(), ("", "none"))
    return {"verdict": verdict, "mark": mark, "kind": kind}


def claim_texts(row: Mapping[str, Any]) -> dict[str, str]:
    """Return a claim as texts, published and measured figure in one unit; what it does not say is empty."""
    texts = {key: cell_text(row.get(key)) for key in TEXTS}
    unit = unit_of(row)
    bounds = interval_text(row.get("ci_low"), row.get("ci_high"), unit)
    n = row.get("n")
    seeds = ("of one seed" if n == 1 else "of two seeds") if texts["interval"] == "own" and bounds else ""
    published = figure_text(row.get("published_effect"), unit)
    figure = cell_text(row.get("figure")) if bounds and published else ""
    return {
        **texts,
        **marked(cell_text(row.get("verdict")).strip()),
        "published_figure": published,
        "measured_figure": figure_text(row.get("effect"), unit),
        "bounds": bounds,
        "against": f"{figure} {published}" if figure else "",
        "means": means_text(row.get("reference_value"), row.get("treated_value")),
        "few": seeds,
        "interval": INTERVALS.get(texts["interval"], "") if bounds else "",
        "n": f"{thousands(n)} {'seed' if n == 1 else 'seeds'}" if is_known(n) and n else "",
        "control": "" if texts["control"] == MISSING else texts["control"],
    }


def unit_of(row: Mapping[str, Any]) -> str:
    """Return the unit of a claim's figures; of a table that says none, or one that is not known, that of its scale."""
    unit = cell_text(row.get("unit"))
    return unit if unit in SUFFIXES else "percent" if row.get("scale") == "ratio" else "plain"


def is_known(value: Any) -> bool:
    """Return whether a cell holds a finite number."""
    return isinstance(value, int | float) and math.isfinite(value)


def figure_text(value: Any, unit: str) -> str:
    """Return an effect in its unit; nothing for what is not known.

    >>> figure_text(1.54, "factor"), figure_text(-0.603, "percent"), figure_text(0.2, "points")
    ('2.54 ×', '−60.3 %', '+20.0 points')
    """
    return f"{_number(value, unit)}{SUFFIXES[unit]}" if is_known(value) else ""


def _number(value: float, unit: str) -> str:
    if unit == "factor":
        return significant(1 + value)
    scale = 1 if unit == "plain" else 100
    digits = 3 if unit == "plain" else 1 if abs(scale * value) < 1000 else 0
    return signed(scale * value, digits)


def means_text(reference: Any, treated: Any) -> str:
    """Return both models' values, or the one that there is; nothing without."""
    return " → ".join(significant(float(value)) for value in (reference, treated) if is_known(value))


def cell_text(value: Any) -> str:
    """Return a cell that may be a number or a text; nothing for nothing."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return significant(value) if isinstance(value, float) else str(value)


def interval_text(low: Any, high: Any, unit: str) -> str:
    """Return an interval as it stands behind a figure of that unit. Nothing where it is not there or undefined.

    >>> interval_text(-0.38, 0.18, "factor"), interval_text(-0.97, -0.92, "percent")
    ('[0.620, 1.18]', '[−97.0, −92.0]')
    """
    ends = [value for value in (low, high) if is_known(value)]
    return f"[{', '.join(_number(value, unit) for value in ends)}]" if len(ends) == 2 else ""


def drawn_in(sections: Sequence[tuple[Any, Sequence[Any]]]) -> dict[str, tuple[str, str]]:
    """Return table -> (anchor, number) of the first panel that draws it: where a claim's rows can be looked at."""
    found: dict[str, tuple[str, str]] = {}
    for _, shown in sections:
        for item in shown:
            for name in item.sources if not item.problems else ():
                found.setdefault(name, (item.panel.key, item.number))
    return found
