"""A study directory as the pages see it: its tables, whatever they lack, and the record that the workbench left."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd

from reports.continuations import FILE as CONTINUATIONS
from reports.contract import Table
from reports.seed_means import Places, pick_places, split_places
from reports.tables import decode_text, find_tables, missing_columns, read_contracts, read_csv, unplaced

# keys of study.json -> the type that a page can draw; every key may be absent, others are ignored
RECORD_TYPES = MappingProxyType(
    {
        "title": str,
        "command": str,
        "models": list,
        "corpus": (str, dict),
        "device": str,
        "created": str,
        "versions": dict,
        "notes": list,
        "roles": dict,
    }
)

AT = "@"  # between a model's name and that of its size
MODEL_COLUMNS = ("model", "model_a", "model_b")
MAX_NAME = 28  # letters of a short name: more overlap in the figures


@dataclass(frozen=True)
class Study:
    """The tables of a study under the short names of its models."""

    directory: Path
    record: Mapping[str, Any]  # study.json, or nothing
    tables: Mapping[str, pd.DataFrame]  # without the feature atlas, which has a page of its own
    empty: frozenset[str]  # tables whose file has not even a header
    names: Mapping[str, str]  # model as the tables name it -> short name; the reference model first
    paths: Mapping[str, Path]  # of the tables by name, and of what else the page carries by the name of its file
    notes: tuple[str, ...] = ()  # what the reader should know of the tables

    @property
    def models(self) -> list[str]:
        """Short names in the study's order; the first is what the others are compared with."""
        return list(self.names.values())

    def without(self, names: Collection[str]) -> Study:
        """The study as it would be without these tables."""
        tables = {name: df for name, df in self.tables.items() if name not in names}
        return replace(self, tables=tables, paths={name: own for name, own in self.paths.items() if name not in names})

    def means(self, table: str, measure: str, *by: str) -> pd.DataFrame:
        """Means over seeds of a table's measure at the places that the columns `by` name: these and the numbers."""
        return pick_places(self._means, "seed_means", table, measure, by)

    def measures(self, table: str) -> list[str]:
        """The measures of a table that have means over seeds, in their order."""
        return [measure for of_table, measure in self._means if of_table == table]

    def effects(self, table: str, measure: str, *by: str) -> pd.DataFrame:
        """Differences between models of a table's measure, as `means`; `comparison` is empty but for steps."""
        return pick_places(self._effects, "effects", table, measure, by)

    def errors(self, table: str, measure: str, *by: str) -> pd.DataFrame:
        """Standard errors over blocks of the text of a measure, as `means`: seed, value, stderr, n_blocks."""
        return pick_places(self._errors, "text_errors", table, measure, by)

    @cached_property
    def contracts(self) -> Mapping[str, Table]:
        """What each table's columns hold."""
        return read_contracts(self.directory)

    @cached_property
    def _means(self) -> Places:
        return split_places(self.tables.get("seed_means", pd.DataFrame()), "seed_means")

    @cached_property
    def _errors(self) -> Places:
        return split_places(self.tables.get("text_errors", pd.DataFrame()), "text_errors")

    @cached_property
    def _effects(self) -> Places:
        return split_places(self.tables.get("effects", pd.DataFrame()), "effects")


def read_study(directory: str | Path) -> Study:
    """Return what lies in a study directory. Tables may lack columns and rows: `problems` says so when one is drawn.

    Raises:
        ValueError: if the directory or a readable study.json is not there, or holds no known table.
    """
    paths = find_tables(directory)
    record = read_record(Path(directory) / "study.json")
    if not paths:
        raise ValueError(f"{directory}: holds no known table; expected CSV files such as topology_stats.csv")
    empty = frozenset(name for name, path in paths.items() if path.stat().st_size == 0)
    tables = {name: read_csv(path) for name, path in paths.items() if name not in empty and name != "feature_atlas"}
    of_models = {name: df for name, df in tables.items() if name != "ladder"}  # its rungs are no models of the study
    names = short_names(order_models(record, of_models))
    for name, df in of_models.items():
        renamed = {column: df[column].map(names) for column in MODEL_COLUMNS if column in df}
        tables[name] = df.assign(**renamed)
    tables, notes = leave_out_infinite(tables)
    texts = Path(directory) / CONTINUATIONS
    return Study(
        Path(directory), record, tables, empty, names, paths | ({texts.name: texts} if texts.is_file() else {}), notes
    )


def leave_out_infinite(tables: Mapping[str, pd.DataFrame]) -> tuple[dict[str, pd.DataFrame], tuple[str, ...]]:
    """Return the tables with their infinite values missing, and a sentence about each column that had any.

    No figure, mean or interval has a place for infinity.
    """
    found, notes = {}, []
    for name, df in tables.items():
        infinite = np.isinf(df.select_dtypes("float"))
        counts = infinite.sum()[lambda n: n > 0]
        found[name] = df.assign(**{column: df[column].mask(infinite[column]) for column in counts.index})
        notes += [
            f"{name}.csv: {n} of {len(df)} values of {column} are infinite and count as missing."
            for column, n in counts.items()
        ]
    return found, tuple(notes)


def read_record(path: Path) -> dict[str, Any]:
    """Return study.json, an empty dict if there is none.

    Raises:
        ValueError: if it is not JSON, or a key holds another type than `RECORD_TYPES` says.
    """
    if not path.is_file():
        return {}
    try:
        record = json.loads(decode_text(path.read_bytes(), str(path)))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error}); expected an object with title, models, notes, …") from error
    if not isinstance(record, dict):
        raise ValueError(f"{path}: got a {type(record).__name__}; expected an object")
    for key, kind in RECORD_TYPES.items():
        value = record.get(key)
        if value is not None and not isinstance(value, kind):
            kinds = kind if isinstance(kind, tuple) else (kind,)
            wanted = " or ".join(a_kind.__name__ for a_kind in kinds)
            raise ValueError(f"{path}: {key} is a {type(value).__name__}; expected a {wanted}")
    if not all(isinstance(entry, dict) for entry in record.get("models") or ()):
        raise ValueError(f"{path}: models holds something that is not an object; expected a list of objects")
    return {key: value for key, value in record.items() if value is not None}


def order_models(record: Mapping[str, Any], tables: Mapping[str, pd.DataFrame]) -> list[str]:
    """Return the models as the record orders them, then as the tables do; without a record, one named control first."""
    named = [str(model["name"]) for model in record.get("models", ()) if "name" in model]
    columns = [df[column] for df in tables.values() for column in MODEL_COLUMNS if column in df]
    present = list(dict.fromkeys(model for column in columns for model in column if isinstance(model, str) and model))
    if not named:
        present.sort(key=lambda model: "control" not in model.lower())  # stable: the others keep their order
    return list(dict.fromkeys([*(model for model in named if model in present), *present]))


def short_names(models: Sequence[str]) -> dict[str, str]:
    """Return each model's name without the dash-separated words that all of them begin or end with; its size stays.

    `janus-v3-control-nano`, `janus-v3-adaptive-nano` become `control`, `adaptive`; a single model keeps its name. What
    is still longer than `MAX_NAME` loses its middle, unless two would then be alike.
    """
    bases = list(dict.fromkeys(model.partition(AT)[0] for model in models))
    words = [base.split("-") for base in bases]
    if len(bases) < 2:
        return {model: model for model in models}
    shortest = min(len(parts) for parts in words)
    end = 0  # the end first: "nano" says less than what a name begins with
    while end < shortest - 1 and len({parts[-1 - end] for parts in words}) == 1:
        end += 1
    start = 0
    while start < shortest - end - 1 and len({parts[start] for parts in words}) == 1:
        start += 1
    names = {base: "-".join(parts[start : len(parts) - end]) for base, parts in zip(bases, words, strict=True)}
    cut = {base: name if len(name) <= MAX_NAME else f"{name[:16]}…{name[-11:]}" for base, name in names.items()}
    names = cut if len(set(cut.values())) == len(set(names.values())) else names
    return {model: names[(parts := model.partition(AT))[0]] + parts[1] + parts[2] for model in models}


def problems(study: Study, needs: Mapping[str, Sequence[str]]) -> list[str]:
    """Return, in sentences, why something that needs these tables and columns cannot be drawn; nothing if it can."""
    found = []
    for name, columns in needs.items():
        if name in study.empty:
            found.append(f"{name}.csv is empty: it has not even a header.")
        elif name not in study.tables:
            found.append(f"{name}.csv is not in this study.")
        else:
            found += _table_problems(study.contracts[name], study.tables[name], columns)
    return found


def _table_problems(contract: Table, df: pd.DataFrame, columns: Sequence[str]) -> list[str]:
    name = contract.name
    missing = missing_columns(df.columns, columns)
    if missing:
        plural = "s" if len(missing) > 1 else ""
        return [f"{name}.csv lacks the column{plural} {', '.join(missing)}."]
    if df.empty:
        return [f"{name}.csv has no rows."]
    # a key column of no known kind, such as a direction, holds what it looks like
    numbers = [column for column in columns if contract.kind(column) not in ("text", None)]
    text = [column for column in numbers if not pd.api.types.is_numeric_dtype(df[column])]
    nameless = [column for column in columns if column in MODEL_COLUMNS and df[column].isna().any()]
    places = unplaced(df, name, numbers)
    return [
        *(f"{name}.csv holds text in the column {column}, where numbers are wanted." for column in text),
        *(f"{name}.csv has a row without a name in the column {column}." for column in nameless),
        *(f"{name}.csv has a row without a whole number in the column {column}." for column in places),
    ]
