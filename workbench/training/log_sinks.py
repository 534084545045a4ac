"""Rows of train_log.csv sent on to TensorBoard or Weights & Biases as they are written; the CSV stays the record."""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

KINDS = ("tensorboard", "wandb")
Write = Callable[[Mapping[str, Any]], None]


@contextlib.contextmanager
def mirror(kind: str | None, directory: Path, config: Mapping[str, Any], step: int) -> Iterator[Write | None]:
    """A function that takes a row and sends its numbers on at the row's `step`; None where `kind` is none.

    TensorBoard's files go to `directory`/tensorboard; events after `step`, of a run that was cut back to it, are
    dropped there. wandb's run has an id made of directory and config, under which a resumed run goes on.

    Raises:
        ValueError: for another kind, or where its package is not installed.
    """
    if kind is None:
        yield None
    elif kind == "tensorboard":
        with _tensorboard(directory, step) as write:
            yield write
    elif kind == "wandb":
        with _wandb(directory, config) as write:
            yield write
    else:
        raise ValueError(f"monitor: got {kind!r}; expected {' or '.join(KINDS)}")


@contextlib.contextmanager
def _tensorboard(directory: Path, step: int) -> Iterator[Write]:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise _missing("tensorboard") from error
    with SummaryWriter(str(directory / "tensorboard"), purge_step=step + 1) as writer:

        def write(row: Mapping[str, Any]) -> None:
            for name, value in _numbers(row).items():
                writer.add_scalar(name.replace(".", "/"), value, row["step"])

        yield write


@contextlib.contextmanager
def _wandb(directory: Path, config: Mapping[str, Any]) -> Iterator[Write]:
    try:
        import wandb
    except ImportError as error:
        raise _missing("wandb") from error
    name = directory.name.removesuffix(".partial")
    key = hashlib.sha256(f"{directory.absolute()} {sorted(config.items())}".encode()).hexdigest()[:16]
    run = wandb.init(project="workbench", name=name, id=key, resume="allow", config=dict(config))
    try:
        yield lambda row: run.log(_numbers(row), step=row["step"])
    finally:
        run.finish()


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    skipped = ("step", "seed")
    return {
        name: float(value)
        for name, value in row.items()
        if name not in skipped and isinstance(value, int | float) and math.isfinite(value)
    }


def _missing(package: str) -> ValueError:
    return ValueError(f"monitor: {package} is not installed; expected pip install 'prescriptive-workbench[{package}]'")
