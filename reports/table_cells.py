"""The page's tables: typed rows of text, and how a number is written in them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

MISSING = "–"


@dataclass(frozen=True)
class Cell:
    """One cell: its text, an optional smaller text behind it (an interval), and whether it is a difference or words."""

    text: str
    note: str = ""
    is_difference: bool = False
    is_words: bool = False  # breaks into lines, where a number does not


@dataclass(frozen=True)
class Grid:
    """One table: column groups over columns, and rows whose first cells are row headers."""

    title: str
    groups: tuple[tuple[str, int], ...]  # (name, columns spanned); spans the columns after the row headers
    headers: tuple[str, ...]  # names of the row-header columns
    columns: tuple[str, ...]
    rows: tuple[tuple[tuple[str, ...], tuple[Cell, ...]], ...]  # (row headers, cells)
    is_sortable: bool = False  # a click on a column's name orders the rows by it
    is_wide: bool = False  # many columns: names break into lines, notes stand under their figures


def fixed(value: float | None, digits: int) -> str:
    """Return a number with `digits` decimals and a true minus, which no zero has; a dash for None and for what is not
    finite."""
    if value is None or not math.isfinite(value):
        return MISSING
    return f"{value:z.{digits}f}".replace("-", "−")


def signed(value: float | None, digits: int) -> str:
    """Return a number as `fixed` does, with a plus where it is above 0 as written."""
    text = fixed(value, digits)
    return text if text == MISSING or text.startswith("−") or float(text) == 0 else f"+{text}"


def significant(value: float | None, digits: int = 3) -> str:
    """Return a number with `digits` significant digits, never in exponent form between 1e-4 and 1e6."""
    if value is None or not math.isfinite(value):
        return MISSING
    if value == 0:
        return "0"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return fixed(value, decimals) if 1e-4 <= abs(value) < 1e6 else f"{value:.{digits - 1}e}".replace("-", "−")


def percent_change(value: float | None, reference: float | None) -> str:
    """Return how far `value` lies from `reference`, in per cent of it, signed; a dash where that is undefined."""
    if value is None or reference is None or not math.isfinite(value - reference) or reference == 0:
        return MISSING
    change = 100 * (value - reference) / abs(reference)
    return f"{signed(change, 1 if abs(change) < 1000 else 0)} %"


def thousands(value: float) -> str:
    """Return a whole number with separators; a dash for what is not finite."""
    return f"{int(value):,}" if math.isfinite(value) else MISSING


def count_range(values: Iterable[float]) -> str:
    """Return one count where all agree, else the range; nothing where none is finite."""
    known = sorted({int(value) for value in values if math.isfinite(value)})
    return " to ".join(thousands(end) for end in dict.fromkeys((*known[:1], *known[-1:])))


def count_parts(parts: Mapping[str, Iterable[float]], unit: str) -> str:
    """Return the n of a figure's parts: the first with its unit, those that differ behind it by name."""
    names: dict[str, list[str]] = {}
    for name, values in parts.items():
        names.setdefault(count_range(values), []).append(name)
    names.pop("", None)
    if not names:
        return f"n not given ({unit})"
    (first, own), *others = names.items()
    text = f"n = {first} {unit}" + f" ({', '.join(own)})" * bool(others)
    return "; ".join([text, *(f"{', '.join(own)}: {number}" for number, own in others)])


def name_seeds(seeds: Sequence[object]) -> str:
    """Return the seeds of a figure in words."""
    return f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {', '.join(str(seed) for seed in seeds)}"


def p_text(p: float | None, n_permutations: float | None = None) -> str:
    """Return a p: "p = .012", or "p ≤ .0005" where no permutation reached the statistic, so that p is the least that so
    many permutations can give, 1 / (n + 1); a dash for None and for what is not finite.

    >>> p_text(0.0005, 1999), p_text(0.0125, 1999), p_text(0.0005)
    ('p ≤ .0005', 'p = .013', 'p = .00050')
    """
    if p is None or not math.isfinite(p):
        return MISSING
    is_floor = n_permutations is not None and n_permutations > 0 and p * (n_permutations + 1) <= 1 + 1e-9
    text = f"{p:.1g}" if is_floor else f"{p:.2g}"
    text = fixed(p, max(0, (1 if is_floor else 2) - 1 - math.floor(math.log10(p)))) if 0 < p < 1 else text
    return f"p {'≤' if is_floor else '='} {text.removeprefix('0') if 0 < p < 1 else text}"
