"""against.csv: what changed between two studies beyond what seeds, or text, would change; against_setup.csv: how they
were made.

Compared is every measure that two models may be compared by (`seed_values`), at every place that both studies have, by
the models' names: each model's own value (quantity `value`), and the difference between two models (quantity `effect`).
A change d = new − old has a 95 % interval and a two-sided p

    welch   three or more seeds in both studies: Welch's t on the two groups of seeds (of an effect, on seeds' own
            differences). Seeds of one number are not paired: another version draws other numbers from them
    own     else, where the table has values by block of text: the jackknife's over blocks, t with g − 1 degrees of
            freedom. Of the same text in as many blocks each is left out of both studies at once, else the two errors
            add up as those of independent texts. It says nothing of seeds
    none    else

p is adjusted by Benjamini and Hochberg over all rows that have one. A row is `changed` where the interval excludes 0
and q is at most .05.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy

from probes.jackknife import jackknife_stderr
from probes.multiplicity import benjamini_hochberg
from reports.study import read_record
from reports.study_tables import AGAINST, AGAINST_SETUP
from reports.tables import MIN_SEEDS, write_table
from workbench.data.blocks import MIN_BLOCKS
from workbench.runs import read_toml
from workbench.study.effects import Comparison, Measured, quantile, read_measured, welch
from workbench.study.seed_values import seed_values
from workbench.study.text_errors import without_blocks

Q = 0.05  # of a change
DIGITS = 12  # as effects: equal but for a rounding is equal
SETUP = ("title", "created", "corpus", "device")  # keys of study.json that are set side by side
Key = tuple[str, str, tuple[tuple[str, str], ...]]  # table, measure, place


@dataclass(frozen=True)
class Numbers:
    """A measure of one model, or a difference of two, at one place: seed -> value, and the mean without each block."""

    seeds: Mapping[int, float]
    left_out: np.ndarray | None = None

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return float(np.mean(list(self.seeds.values())))

    def minus(self, other: Numbers) -> Numbers:
        """The differences from another model's, of the seeds that both have."""
        seeds = {seed: value - other.seeds[seed] for seed, value in self.seeds.items() if seed in other.seeds}
        parts = (self.left_out, other.left_out)
        is_by_block = parts[0] is not None and parts[1] is not None and len(parts[0]) == len(parts[1])
        is_whole = len(seeds) == len(self.seeds) == len(other.seeds)
        return Numbers(seeds, parts[0] - parts[1] if is_by_block and is_whole else None)  # type: ignore[operator]


Places = dict[Key, dict[str, Numbers]]  # model -> its numbers


@dataclass(frozen=True)
class Change:
    """new − old, its interval and p, and what these rest on."""

    low: float = math.nan
    high: float = math.nan
    p: float = math.nan
    basis: str = "none"


def write_against(directory: str | Path, old: str | Path) -> tuple[Path, Path]:
    """Write against.csv and against_setup.csv into a study's directory: what changed since the study in `old`.

    Returns:
        Their paths.

    Raises:
        ValueError: a directory that holds no study's tables, one directory twice, or studies without a measure of one
            model in common.
    """
    directory, old = Path(directory), Path(old)
    if directory.resolve() == old.resolve():
        raise ValueError(f"against: got {old}, the study itself; expected another study's directory")
    before, after = read_measured(old), read_measured(directory)
    is_same_text = bool(text := _record(directory).get("corpus")) and text == _record(old).get("corpus")
    rows = compare(before, after, is_same_text=is_same_text)
    if rows.empty:
        raise ValueError(f"against: got {old}, which has no measure of one model in common with {directory}; expected "
                         "a study of the same models")  # fmt: skip
    setup = pd.DataFrame(setup_rows(old, directory), columns=list(AGAINST_SETUP.leading))
    return write_table(rows, directory, "against"), write_table(setup, directory, "against_setup")


def compare(before: Measured, after: Measured, *, is_same_text: bool) -> pd.DataFrame:
    """against.csv's rows, in the order of the newer study's measures; empty where nothing is in common."""
    old, new = places_of(before), places_of(after)
    rows = []
    for key, models in new.items():
        earlier = old.get(key, {})
        for model, numbers in models.items():
            if model in earlier:
                rows.append(_row(key, "value", ("", "", model), earlier[model], numbers, is_same_text))
        for step in after.compared:
            _, first, second = step
            if {first, second} <= models.keys() & earlier.keys():
                pair = (earlier[second].minus(earlier[first]), models[second].minus(models[first]))
                if all(own.seeds for own in pair):
                    rows.append(_row(key, "effect", step, *pair, is_same_text))
    found = pd.DataFrame(rows, columns=list(AGAINST.leading))
    q = benjamini_hochberg(found["p"].to_numpy(dtype=float))
    excludes = (found["ci_low"] > 0) | (found["ci_high"] < 0)
    verdicts = np.where(excludes & (q <= Q), "yes", np.where(np.isnan(q) & (found["difference"] != 0), "", "no"))
    return found.assign(q=q, changed=verdicts)


def places_of(measured: Measured) -> Places:
    """Every measure that has a model and may be compared, by table, measure and place."""
    found: Places = {}
    for own in seed_values(measured.tables, measured.roles):
        if own.is_compared and "model" in own.by:
            keys = [name for name in own.by if name != "model"]
            known = own.rows[np.isfinite(own.rows["value"])]
            for (model, *place), rows in known.groupby(["model", *keys], sort=False):
                key = _key(own.table, own.measure, keys, place)
                seeds = dict(zip(rows["seed"].astype(int), rows["value"].astype(float), strict=True))
                found.setdefault(key, {})[str(model)] = Numbers(seeds)
    for own, left_out in without_blocks(measured.tables):
        keys = [name for name in own.by if name != "model"]
        places = own.rows[["model", *keys]].reset_index(drop=True)
        for (model, *place), at in places.groupby(["model", *keys], sort=False):
            index = at.index
            numbers = found.get(_key(own.table, own.measure, keys, place), {})
            without = left_out[index]
            without = without[:, np.isfinite(without).any(0)]
            if str(model) in numbers and len(index) == len(numbers[str(model)].seeds) and np.isfinite(without).all():
                numbers[str(model)] = Numbers(numbers[str(model)].seeds, without.mean(0))
    return found


def _key(table: str, measure: str, keys: Sequence[str], place: Sequence[Any]) -> Key:
    return table, measure, tuple((name, _text(value)) for name, value in zip(keys, place, strict=True))


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float | np.number) else str(value)


def _row(key: Key, quantity: str, step: Comparison, old: Numbers, new: Numbers, is_same_text: bool) -> dict[str, Any]:
    table, measure, place = key
    difference = round(new.mean - old.mean, DIGITS)
    change = measure_change(old, new, difference, is_same_text=is_same_text)
    return {
        "table": table,
        "measure": measure,
        "quantity": quantity,
        "comparison": step[0],
        "model_a": step[1],
        "model_b": step[2],
        "where": ", ".join(f"{name} {value}" for name, value in place),
        "old": old.mean,
        "new": new.mean,
        "difference": difference,
        "ci_low": round(change.low, DIGITS),
        "ci_high": round(change.high, DIGITS),
        "n_old": len(old.seeds),
        "n_new": len(new.seeds),
        "interval": change.basis,
        "p": change.p,
        "q": math.nan,
        "changed": "",
    }


def measure_change(old: Numbers, new: Numbers, difference: float, *, is_same_text: bool) -> Change:
    """The interval and p of new − old; no p where nothing is spread, as of numbers that are equal seed by seed."""
    first, second = list(old.seeds.values()), list(new.seeds.values())
    if min(len(first), len(second)) >= MIN_SEEDS:
        low, high = welch(first, second)
        if low == high:
            return Change(low, high, math.nan, "welch")
        return Change(low, high, float(scipy.stats.ttest_ind(second, first, equal_var=False).pvalue), "welch")
    if old.left_out is None or new.left_out is None or min(len(old.left_out), len(new.left_out)) < MIN_BLOCKS:
        return Change()
    if is_same_text and len(old.left_out) == len(new.left_out):
        error = float(jackknife_stderr(new.left_out - old.left_out))
    else:
        error = math.hypot(*(float(jackknife_stderr(own)) for own in (old.left_out, new.left_out)))
    freedom = min(len(old.left_out), len(new.left_out)) - 1
    if error < 10.0**-DIGITS:
        return Change(difference, difference, math.nan, "own")
    half = quantile(freedom) * error
    p = 2 * float(scipy.stats.t.sf(abs(difference) / error, freedom))
    return Change(difference - half, difference + half, p, "own")


# --- how they were made


def setup_rows(old: Path, new: Path) -> Iterator[tuple[str, str, str, str]]:
    """Yield (name, old, new, differs) of everything that both or either study says of how it was made: title, text,
    device, versions, models with their seeds, and those settings of its recipes that differ."""
    records = [_record(directory) for directory in (old, new)]
    said = [{key: _plain(record.get(key, "")) for key in SETUP} for record in records]
    for own, record in zip(said, records, strict=True):
        own |= {f"version of {name}": str(text) for name, text in record.get("versions", {}).items()}
        seeds: dict[str, list[str]] = {}
        for model in record.get("models", ()):
            seeds.setdefault(str(model.get("name", "")), []).append(str(model.get("seed", "")))
        own |= {f"seeds of {name}": " ".join(numbers) for name, numbers in seeds.items()}
    names = dict.fromkeys([*said[1], *said[0]])
    for name in names:
        first, second = (own.get(name, "") for own in said)
        if first or second:
            yield name, first, second, "yes" if first != second else "no"
    recipes = [_recipes(directory) for directory in (old, new)]
    if all(recipes):
        for name in dict.fromkeys([*recipes[1], *recipes[0]]):
            first, second = (own.get(name, "") for own in recipes)
            if first != second:
                yield name, first, second, "yes"


def _record(directory: Path) -> Mapping[str, Any]:
    return read_record(directory / "study.json")


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _recipes(directory: Path) -> dict[str, str]:
    """Setting -> its value, of the study's recipe and of each model's first training; none where only tables are."""
    found: dict[str, str] = {}
    files = {"": directory / "config.toml"}
    for folder in sorted((directory / "models").glob("*-seed*")):
        files.setdefault(f"{folder.name.rpartition('-seed')[0]}: ", folder / "config.toml")
    for name, file in files.items():
        if file.is_file():
            recipe = read_toml(file, "against").get("recipe", {})
            found |= {f"{name}{path}": text for path, text in _flat(recipe) if path != "title"}
    return found


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield (dotted path, value as text) of every leaf."""
    if isinstance(value, Mapping):
        for key, own in value.items():
            yield from _flat(own, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and any(isinstance(own, Mapping) for own in value):
        for i, own in enumerate(value):
            yield from _flat(own, f"{path}.{i}")
    else:
        yield path, _plain(value)
