"""What a verb says: its table and, last, its output path on stdout; progress on stderr; one JSON object with --json."""

from __future__ import annotations

import contextlib
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    import pandas as pd

MAX_ROWS = 60  # of a table on a screen; the file has all


def report(
    *, as_json: bool, out: Path | None = None, table: pd.DataFrame | None = None, facts: Mapping[str, Any] | None = None
) -> None:
    """Print facts (`key: value` lines), a table and, last, the output path; with as_json all of it as one object."""
    if as_json:
        answer: dict[str, Any] = dict(facts or {})
        if table is not None:
            answer["rows"] = table.to_dict(orient="records")
        if out is not None:
            answer["out"] = str(out)
        typer.echo(_as_json(_finite(answer)))
        return
    shared = {} if table is None else _constant_columns(table)
    for key, value in (dict(facts or {}) | shared).items():
        typer.echo(f"{key}: {_plain(value)}")
    if table is not None and len(table):
        varying = _left_aligned(table.drop(columns=list(shared)).head(MAX_ROWS))
        typer.echo(varying.to_string(index=False, float_format=lambda x: f"{x:.5g}", na_rep="nan"))
        if len(table) > MAX_ROWS:
            typer.echo(f"… {len(table) - MAX_ROWS} more rows in the file")
    if out is not None:
        typer.echo(str(out))


def _constant_columns(table: pd.DataFrame) -> dict[str, Any]:
    """What a column says where it says the same in every row: printed once, above the table."""
    if len(table) < 2:
        return {}
    firsts = {str(column): table[column].iloc[0] for column in table.columns}
    return {name: first for name, first in firsts.items() if all(value == first for value in table[name])}


def _left_aligned(table: pd.DataFrame) -> pd.DataFrame:
    """The table with its columns of text padded on the right: pandas aligns every column to the right."""
    padded = {}
    for name in map(str, table.columns):
        column = table[name]
        if all(isinstance(value, str) for value in column):
            width = max(len(name), *map(len, column))
            name, column = f"{name:<{width}}", column.str.ljust(width)
        padded[name] = column
    return type(table)(padded)


@contextlib.contextmanager
def progress(label: str) -> Iterator[Callable[[float], None]]:
    """A function that takes the share done, 0 to 1, and draws it as a bar on stderr while the context lasts."""
    from rich.progress import TaskProgressColumn

    from workbench.progress import progress_bar

    with progress_bar(TaskProgressColumn()) as bar:
        task = bar.add_task(label, total=1.0)
        yield lambda share: bar.update(task, completed=share)


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(one)}" for key, one in value.items())
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def _as_json(answer: Any) -> str:
    """JSON that stdout can hold: in ASCII where its letters are too few, or a name of a file is not UTF-8."""
    text = json.dumps(answer, ensure_ascii=False, default=str)
    try:
        text.encode()
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return json.dumps(answer, default=str)
    return text


def _finite(value: Any) -> Any:
    """The value with every nan and infinity as null: JSON has no word for them."""
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
