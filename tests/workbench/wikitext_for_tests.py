"""A text of our own in WikiText's shape: its articles, and copies of it as they are distributed."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet

# title -> rows after the heading's, as lines; the text is ours, its spacing WikiText's
_BODIES: dict[str, tuple[str, ...]] = {
    "Harbour of Vell": (
        " The harbour of Vell was built in 1871 , a mile south of the older quay . \n",
        " Its tables give depth as d and tide as t , so that\n",
        " = d + t = \n",
        " is what a captain reads at the gauge . \n",
        " \n",
        " = = History = = \n",
        " \n",
        " It burnt twice . \n",
        " \n",
        " = = = Second fire = = = \n",
        " \n",
        " Nobody was hurt . \n",
    ),
    "E = mc ²": (
        " An album of eleven songs , one of them called = . \n",
        " = \n",
        " = = \n",
        " It sold 40 copies . \n",
    ),
    "= ( poem )": (" A poem that begins with a sign . \n",),
    "Marl ( river )": (" The Marl runs for 9 km . \n", " \n", " = = Course = = \n", " \n", " West , then south . \n"),
    "Ada Brook": (" Ada Brook ( 1840 – 1911 ) drew maps . \n",),
    "Loom": (" A loom weaves . \n", " \n", " = = Parts = = \n", " \n"),
}
TITLES = {
    "train": ("Harbour of Vell", "E = mc ²", "= ( poem )", "Marl ( river )"),
    "validation": ("Ada Brook",),
    "test": ("Loom",),
}
RAW_NAMES = {"train": "wiki.train.raw", "validation": "wiki.valid.raw", "test": "wiki.test.raw"}


def rows_of(title: str) -> list[str]:
    """The lines of one article, heading and blank line after it included."""
    return [f" = {title} = \n", " \n", *_BODIES[title], " \n"]


def rows(split: str) -> list[str]:
    """The lines of a split: as in WikiText, a blank one comes before the first heading."""
    return [" \n"] + [row for title in TITLES[split] for row in rows_of(title)]


def texts(split: str) -> list[str]:
    """The articles of a split, whose first has the blank line before it."""
    first, *others = ("".join(rows_of(title)) for title in TITLES[split])
    return [" \n" + first, *others]


def stored(split: str) -> list[str]:
    """The rows of a split as the `datasets` library stores them: a blank line is an empty text."""
    return [row if row.strip() else "" for row in rows(split)]


def write_raw(folder: Path) -> Path:
    """The three files of the original distribution."""
    folder.mkdir(parents=True)
    for split, name in RAW_NAMES.items():
        (folder / name).write_bytes("".join(rows(split)).encode())
    return folder


def write_parquet(folder: Path, n_shards: int = 2) -> Path:
    """Parquet as the hub has it; articles go on from one part of the training split to the next."""
    folder.mkdir(parents=True)
    for split in RAW_NAMES:
        lines, n = stored(split), n_shards if split == "train" else 1
        for i in range(n):
            part = lines[i * len(lines) // n : (i + 1) * len(lines) // n]
            table = pyarrow.Table.from_pydict({"text": part})
            pyarrow.parquet.write_table(table, folder / f"{split}-{i:05d}-of-{n:05d}.parquet")
    return folder


def write_jsonl(folder: Path) -> Path:
    """A folder for each split, rows without their line breaks."""
    for split in RAW_NAMES:
        (folder / split).mkdir(parents=True)
        lines = "".join(json.dumps({"text": row.removesuffix("\n")}) + "\n" for row in rows(split))
        (folder / split / "rows.jsonl").write_text(lines)
    return folder
