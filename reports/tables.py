"""The column contract of every CSV that a study writes, and the two functions that write and read one.

A table is a UTF-8 CSV with a header, one row a measurement, missing numbers as empty cells. Its leading columns are
fixed here by name and order; further columns may follow them. Tables of all models and seeds of a study are merged: the
columns `model` and `seed` tell the rows apart.
"""

from __future__ import annotations

import codecs
import difflib
import json
import os
import secrets
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from reports.contract import (
    PACKAGE,
    PLACES,
    Table,
    declare,
    declared,
    describe_table,
    over_training,
    read_resource,
)
from reports.study_tables import STUDY_TABLES

declare(STUDY_TABLES)


class _Leading(Mapping[str, tuple[str, ...]]):
    """Name of each declared table -> its leading columns, in order."""

    def __getitem__(self, name: str) -> tuple[str, ...]:
        return declared()[name].leading

    def __iter__(self) -> Iterator[str]:
        return iter(declared())

    def __len__(self) -> int:
        return len(declared())


COLUMNS: Mapping[str, tuple[str, ...]] = _Leading()

MIN_SEEDS = 3  # of an interval over seeds
MADE = (
    "effects",
    "seed_means",
    "text_errors",
    "findings",
    "against",
    "against_setup",
)  # tables that a study makes of its other ones

UNPLACED = (("crystallisation", "layer"),)  # a set without any r above 0 has no such layer

# what stands for a missing number; nothing stands for a missing text
MISSING_NUMBERS = ("", "nan", "NaN", "NA")
DECIMAL_COMMA = r"[+-]?\d+,\d+(?:[eE][+-]?\d+)?"


def missing_columns(present: Iterable[str], wanted: Iterable[str]) -> tuple[str, ...]:
    """Return the names of `wanted` that are not in `present`, in the order of `wanted`."""
    have = set(present)
    return tuple(column for column in wanted if column not in have)


def unplaced(df: pd.DataFrame, name: str, columns: Iterable[str]) -> list[str]:
    """Return those of the columns that should hold whole numbers, `PLACES`, and somewhere hold none."""
    found = []
    for column in columns:
        if column in PLACES and pd.api.types.is_numeric_dtype(df[column]):
            values = df[column].dropna() if (name, column) in UNPLACED else df[column]
            if not (np.isfinite(values) & (values == np.floor(values))).all():
                found.append(column)
    return found


def write_table(df: pd.DataFrame, directory: str | Path, name: str, *, is_over_training: bool = False) -> Path:
    """Return the path of `<directory>/<name>.csv`, written whole or not at all.

    The leading columns of `COLUMNS[name]` come first, then the others in the order they have. Floats keep every digit
    that tells them apart, and columns of integers are written as such also where cells are empty; the index is not
    written; lone surrogates, which UTF-8 cannot hold, become U+FFFD.

    is_over_training: the table has several checkpoints of each model, told apart by the column `step`.

    Raises:
        ValueError: for an unknown name or missing leading columns.
    """
    _check_name(name, declared())
    table = over_training(declared()[name]) if is_over_training else declared()[name]
    missing = missing_columns(df.columns, table.leading)
    if missing:
        raise ValueError(f"{name}: the table lacks {', '.join(missing)}; expected {', '.join(table.leading)} first")
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    trailing = [column for column in df.columns if column not in table.leading]
    ordered = _with_integers(df[[*table.leading, *trailing]], table)
    text = ordered.to_csv(index=False, lineterminator="\n")
    if "\r" in text:  # a carriage return is quoted only where it ends lines; unquoted it would split its row
        text = ordered.to_csv(index=False, lineterminator="\r\n")
    path = directory / f"{name}.csv"
    write_atomically(path, replace_surrogates(text).encode("utf-8"))
    _note_contract(directory, table, list(ordered.columns))
    return path


def _with_integers(df: pd.DataFrame, table: Table) -> pd.DataFrame:
    """Return the rows with whole numbers as integers where the contract says so: pandas makes floats of a column with
    an empty cell."""
    floats = [column for column in map(str, df.select_dtypes("float")) if table.kind(column) == "integer"]
    whole = [
        column for column in floats if (df[column].dropna() % 1 == 0).all() and not (df[column].abs() > 2**53).any()
    ]
    return df.astype(dict.fromkeys(whole, "Int64"))


def _note_contract(directory: Path, table: Table, columns: Sequence[str]) -> None:
    """Describe a table in the directory's data package."""
    file = directory / PACKAGE
    package = _read_package(file)
    resources = {own["name"]: own for own in package} | {table.name: describe_table(table, columns)}
    text = json.dumps({"resources": [resources[name] for name in sorted(resources)]}, indent=1, ensure_ascii=False)
    if not file.is_file() or file.read_text(encoding="utf-8") != text + "\n":
        write_atomically(file, (text + "\n").encode())


def _read_package(file: Path) -> list[dict[str, Any]]:
    if not file.is_file():
        return []
    try:
        resources = json.loads(decode_text(file.read_bytes(), str(file)))["resources"]
        return [dict(own) for own in resources if own["name"]]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"{file}: cannot be read ({error}); expected a data package, or none") from None


def read_contracts(directory: str | Path) -> dict[str, Table]:
    """Return the contracts of the tables that may lie in a directory, by name: those that are declared here, with a key
    column `step` where its data package says that they are over training, and those that the package alone describes.

    Raises:
        ValueError: a data package that cannot be read.
    """
    described = {own.name: own for own in map(read_resource, _read_package(Path(directory) / PACKAGE))}
    known = dict(declared())
    for name in known.keys() & described.keys():
        if described[name].key == (longer := over_training(known[name])).key:
            known[name] = longer
    return described | known


def read_table(directory: str | Path, name: str) -> pd.DataFrame:
    """Return the table `<directory>/<name>.csv`, floats exactly as written, text columns as text.

    Raises:
        ValueError: for an unknown name, a file that is not there or is empty, or missing leading columns.
    """
    known = read_contracts(directory)
    _check_name(name, known)
    path = Path(directory) / f"{name}.csv"
    if not path.is_file():
        raise ValueError(f"{path}: no such file; expected the table {name}")
    df = read_csv(path)
    missing = missing_columns(df.columns, known[name].leading)
    if missing:
        raise ValueError(f"{path}: the columns {', '.join(missing)} are missing; got {', '.join(df.columns)}")
    return df


def find_tables(directory: str | Path) -> dict[str, Path]:
    """Return the known tables that lie at the top level of `directory`, name -> path, in the order of `COLUMNS`.

    Raises:
        ValueError: if `directory` is not a directory.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise ValueError(f"{directory}: not a directory; expected one that holds a study's CSV files")
    paths = {name: directory / f"{name}.csv" for name in read_contracts(directory)}
    return {name: path for name, path in paths.items() if path.is_file()}


def read_csv(path: Path) -> pd.DataFrame:
    """Return the CSV at `path` whatever columns it has: the page says itself what is missing.

    Raises:
        ValueError: if the file has no header, is not UTF-8, has other separators or decimal commas, or a row has more
            cells than the header.
    """
    with path.open("rb") as file:
        first_line = file.readline()
    if not first_line:
        raise ValueError(f"{path}: the file is empty; expected a CSV with a header")
    decode_text(first_line, str(path))
    contract = read_contracts(path.parent).get(path.stem)

    def is_text(column: str) -> bool:
        return contract is not None and contract.kind(column) == "text"

    header: list[str] = []
    try:
        header = list(pd.read_csv(path, nrows=0, encoding="utf-8").columns)
        for separator, name in ((";", "semicolons"), ("\t", "tabs")):
            if len(header) == 1 and separator in header[0]:
                raise ValueError(f"{path}: the cells are separated by {name}; expected commas")
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # of cells that would be cut off
            table = pd.read_csv(
                path,
                encoding="utf-8",
                dtype={column: "str" for column in header if is_text(column)},
                keep_default_na=False,
                na_values={column: list(MISSING_NUMBERS) for column in header if not is_text(column)},
                low_memory=False,
                index_col=False,  # else a first row that is too long would make its first cells an index
            )
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error.reason} at byte {error.start}); expected UTF-8") from error
    except (pd.errors.ParserError, pd.errors.ParserWarning) as error:
        raise ValueError(
            f"{path}: not a whole CSV ({str(error).strip()}); expected {len(header)} cells a row"
        ) from error
    leading = () if contract is None else contract.leading
    numbers = [column for column in leading if column in table and not is_text(column)]
    for column in table[numbers].select_dtypes(["object", "str"]):
        commas = table[column][table[column].astype("str").str.fullmatch(DECIMAL_COMMA)]
        if len(commas):
            raise ValueError(f"{path}: {column} has decimal commas (got {commas.iloc[0]!r}); expected decimal points")
    return table


def decode_text(data: bytes, where: str) -> str:
    """Return the text of a file's bytes: UTF-8, with or without a byte-order mark.

    Raises:
        ValueError: for other bytes, naming UTF-16.
    """
    if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        raise ValueError(f"{where}: UTF-16; expected UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: not UTF-8 ({error.reason} at byte {error.start}); expected UTF-8") from error


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that a reader, or a crash, sees the old file or the new one and nothing between."""
    # a name by which whoever goes on with the directory knows what a kill left of a write
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def replace_surrogates(text: str) -> str:
    """Return `text` with surrogate pairs joined and lone surrogates as U+FFFD, so that UTF-8 can hold it."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _check_name(name: str, known: Mapping[str, Table]) -> None:
    if name not in known:
        nearest: Sequence[str] = difflib.get_close_matches(name, known, n=3) or sorted(known)
        raise ValueError(f"table: got {name!r}; expected one of {', '.join(nearest)}")
