"""Official splits of local texts: which of a text's files are for training, for validation and for testing.

A file's split is told by its own name or that of a folder above it, by the words that the `datasets` library goes by:
`wiki.valid.raw`, `validation-00000-of-00001.parquet` and `dev/a.txt` are of the split "validation".
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path, PurePath

SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SPLIT_OF = {word: split for split, words in SPLIT_WORDS.items() for word in words}
_SHARD = re.compile(r"\d{5}-of-\d{5}")


def split_name(word: str) -> str:
    """The split that a word for it means: "validation" for "valid", "val" and "dev"; other words as they are."""
    return _SPLIT_OF.get(word, word)


def split_of(path: PurePath) -> str | None:
    """The split that the parts of a relative path name, a folder's before a file's; None: they name none.

    Raises:
        ValueError: one part names two.
    """
    for part in path.parts:
        found = sorted({_SPLIT_OF[word] for word in re.findall(r"[^\W\d_]+", part.lower()) if word in _SPLIT_OF})
        if len(found) > 1:
            raise ValueError(f"data: {path} is of the splits {' and '.join(found)} by its name; expected one")
        if found:
            return found[0]
    return None


def files_of_split(root: Path, files: Sequence[Path], split: str) -> list[Path]:
    """Those of a text's files that are of an official split; of a text that is one file, also the files beside it
    that are called like it but for the split (wiki.train.raw: wiki.valid.raw).

    Args:
        root: the folder or file that the text is named by.
        files: the text's files.
        split: train, validation or test, or another word for one of them.

    Raises:
        ValueError: no file is of that split (those that are there are named), or a name is of two splits.
    """
    folder = root
    if root.is_file():
        folder, wanted = root.parent, split_name(split)
        if split_of(PurePath(root.name)) == wanted:
            return [root]
        files = sorted(f for f in folder.iterdir() if f.is_file() and _kin(f.name) == _kin(root.name))
    by_split: dict[str, list[Path]] = {}
    for file in files:
        if (found := split_of(file.relative_to(folder))) is not None:
            by_split.setdefault(found, []).append(file)
    if split_name(split) not in by_split:
        there = ", ".join(name for name in SPLIT_WORDS if name in by_split)
        raise ValueError(
            f"data: {root} has no split {split!r}; expected one of {there or 'train, validation, test in the names'}"
            f"{'' if there else ' of its files or folders'}, or no data.held_out_split"
        )
    return by_split[split_name(split)]


def _kin(name: str) -> tuple[str, ...]:
    """What a file's name says beside its split and its number among the parts of that split."""
    words = re.findall(r"[^\W\d_]+|\d+", _SHARD.sub("", name.lower()))
    return tuple(word for word in words if word not in _SPLIT_OF)
