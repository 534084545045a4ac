"""The text that a model was trained on, as its run records it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class TextSource:
    """A text as a training read it."""

    source: str
    """as `iter_documents` takes it"""
    text_column: str = "text"
    """where its documents are rows"""
    held_out_fraction: float = 0.05
    """share of its documents that was held out, where no official split is named"""
    documents: str | None = None
    """"articles": its rows are lines, joined from one article's heading to the next; None: documents as stored"""
    held_out_split: str | None = None
    """its official split that was held out; None: a share of its documents"""

    def is_named(self, source: str | os.PathLike[str]) -> bool:
        """Whether `source` is this text: the same name, or the same file or folder."""
        names = [os.fspath(name).removeprefix("hub:") for name in (self.source, source)]
        paths = [Path(name).expanduser() for name in names]
        return names[0] == names[1] or (all(path.exists() for path in paths) and paths[0].samefile(paths[1]))
