"""`train_log.csv`: rows appended while training runs, cut back to the checkpoint when a run is resumed."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from reports.tables import COLUMNS

NAME = "train_log.csv"


class TrainLog:
    """An open train_log.csv, a context manager. Every row reaches the operating system at once and the disk at `sync`.

    Columns: reports' leading ones, then `extra`. A number that was not measured at a step is an empty cell.
    """

    def __init__(self, directory: Path, extra: Sequence[str], n_bytes: int | None = None) -> None:
        """n_bytes: length at the checkpoint that is resumed from, to which the file is cut; None starts a new file.

        Raises:
            ValueError: naming the file, if it is shorter than the checkpoint says or has other columns.
        """
        self.path = directory / NAME
        self.columns = (*COLUMNS["train_log"], *extra)
        header = _line(self.columns)
        if n_bytes is None:
            self._file = self.path.open("wb", buffering=0)
            self._file.write(header)
            return
        if not self.path.is_file() or self.path.stat().st_size < n_bytes:
            raise ValueError(f"train log: {self.path} is shorter than at the checkpoint; want at least {n_bytes} bytes")
        self._file = self.path.open("r+b", buffering=0)
        if self._file.read(len(header)) != header:
            self._file.close()
            raise ValueError(f"train log: {self.path} has other columns; want the log of this recipe")
        self._file.truncate(n_bytes)
        self._file.seek(n_bytes)

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one row; nan and absent values are empty cells."""
        unknown = row.keys() - set(self.columns)
        assert not unknown, f"train log: no column for {sorted(unknown)}"
        self._file.write(_line([_cell(row.get(column)) for column in self.columns]))

    def sync(self) -> int:
        """The file's length in bytes, after all rows are on disk."""
        os.fsync(self._file.fileno())
        return self._file.tell()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()


def _cell(value: Any) -> Any:
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else value


def _line(cells: Sequence[Any]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue().encode("utf-8")
