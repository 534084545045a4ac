"""`train_log.csv`: rows appended while training runs, cut back to the checkpoint when a run is resumed."""

from __future__ import annotations

import csv
import hashlib
import io
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import pandas as pd

from reports.contract import declared
from reports.tables import COLUMNS, write_table
from workbench.data.blocks import block_numbers, without_each
from workbench.runs import naming

NAME = "train_log.csv"


class TrainLog:
    """An open train_log.csv, a context manager. Every row reaches the operating system at once and the disk at `sync`.

    Columns: reports' leading ones, then `extra`. A number that was not measured at a step is an empty cell.
    """

    def __init__(self, directory: Path, extra: Sequence[str], at: Mapping[str, Any] | None = None) -> None:
        """at: what `sync` gave at the checkpoint to resume from, to which the file is cut; None starts a new file.

        Raises:
            ValueError: naming the file, if it is not the one that the checkpoint was saved with, or has other columns.
        """
        self.path = directory / NAME
        self.columns = (*COLUMNS["train_log"], *extra)
        header = _line(self.columns)
        self._digest = hashlib.sha256()
        if at is None:
            self._file = self.path.open("wb", buffering=0)
            self._append(header)
            return
        before = self.path.read_bytes()[: at["n_bytes"]] if self.path.is_file() else b""
        self._digest.update(before)
        if self._digest.hexdigest() != at["sha256"]:
            raise ValueError(f"train log: {self.path} is altered or cut; expected the file of the checkpoint")
        if not before.startswith(header):
            raise ValueError(f"train log: {self.path} has other columns; expected the log of this recipe")
        self._file = self.path.open("r+b", buffering=0)
        self._file.truncate(len(before))
        self._file.seek(len(before))

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one row; nan and absent values are empty cells."""
        unknown = row.keys() - set(self.columns)
        assert not unknown, f"train log: no column for {sorted(unknown)}"
        self._append(_line([_cell(row.get(column)) for column in self.columns]))

    def sync(self) -> dict[str, Any]:
        """{"n_bytes", "sha256"} of the file, after all rows are on disk."""
        with naming(self.path):
            os.fsync(self._file.fileno())
        return {"n_bytes": self._file.tell(), "sha256": self._digest.hexdigest()}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def _append(self, line: bytes) -> None:
        left = memoryview(line)
        with naming(self.path):
            while left:  # a file that is not buffered may take less than it is given
                left = left[self._file.write(left) :]
        self._digest.update(line)


def write_left_out(directory: Path, row: Mapping[str, Any], sums: Sequence[float], n_windows: int) -> None:
    """Write train_log_blocks.csv: the held-out loss of a row of the log without each block of the n_windows windows, of
    each of which `sums` has the sum; nothing for fewer than 8 windows."""
    sizes = Counter(block_numbers(n_windows))
    left = [total / (n_windows - sizes[block]) for block, total in enumerate(without_each(list(sums), float.__add__))]
    if left:
        place = {name: row[name] for name in declared()["train_log"].key}
        twin = [
            place | {"block": block, "held_out_loss": loss, "held_out_perplexity": math.exp(loss)}
            for block, loss in enumerate(left)
        ]
        write_table(pd.DataFrame(twin), directory, "train_log_blocks")


def _cell(value: Any) -> Any:
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else value


def _line(cells: Sequence[Any]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue().encode("utf-8")
