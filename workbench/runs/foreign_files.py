"""Files that other programs wrote: JSON objects, and the pointers that Git LFS leaves in place of large files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from workbench.runs import MAX_SETTINGS_BYTES, decode_text

_POINTER = b"version https://git-lfs.github.com/spec/"


def refuse_pointer(file: Path) -> None:
    """Raise ValueError for a Git LFS pointer: the few lines that a clone without Git LFS holds in place of a file."""
    with file.open("rb") as stream:
        if stream.read(len(_POINTER)) == _POINTER:
            raise ValueError(f"{file}: a Git LFS pointer, not the file itself; fetch the file with `git lfs pull`")


def read_object(file: Path) -> dict[str, Any]:
    """The object in a JSON file, which in a hub's cache may be a link.

    Raises:
        ValueError: too large, a Git LFS pointer, not UTF-8, not JSON, or not an object.
    """
    if (n_bytes := file.stat().st_size) > MAX_SETTINGS_BYTES:
        raise ValueError(f"{file}: {n_bytes} bytes; expected at most {MAX_SETTINGS_BYTES}")
    refuse_pointer(file)
    try:
        content = json.loads(decode_text(file.read_bytes(), str(file)))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: not JSON ({error}); expected an object") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file}: holds a {type(content).__name__}; expected an object")
    return content
