"""Hostile files and damaged directories, made of good ones."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np


def copy(source: Path, name: str) -> Path:
    """A copy of a directory, in the working directory."""
    return Path(shutil.copytree(source, name))


def edit_json(file: Path, **changes: Any) -> None:
    """Keys of a JSON object set, or with "gone" taken out."""
    content = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in content.items() if not isinstance(value, Gone)}))


class Gone:
    """What stands for a key that is taken out."""

    def __repr__(self) -> str:  # names of tests are made of it, and have to be the same in every process
        return "nothing"


def safetensors(header: bytes | dict[str, Any], data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file with this header, whatever it says; `length` may lie about the header's."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(dtype: str = "F32", shape: list[Any] | None = None, offsets: list[int] | None = None) -> dict[str, Any]:
    """A header's entry, of two numbers unless told otherwise."""
    return {"dtype": dtype, "shape": [2] if shape is None else shape, "data_offsets": offsets or [0, 8]}


EIGHT = b"\0" * 8
# name -> a file that no reader of safetensors may take, and none may crash on
HOSTILE = {
    "empty": b"",
    "seven bytes": b"\0" * 7,
    "no header": struct.pack("<Q", 0),
    "a header longer than the file": safetensors(b"{}", length=1 << 40),
    "a header of 2^64 - 1 bytes": safetensors(b"{}", length=(1 << 64) - 1),
    "a header that is cut": safetensors(b'{"a": ', EIGHT),
    "a header that is no JSON": safetensors(b"nonsense", EIGHT),
    "a header that is a list": safetensors(b"[]", EIGHT),
    "a header that is not UTF-8": safetensors(b'{"\xff": 1}', EIGHT),
    "deep brackets": safetensors(b'{"a": ' + b"[" * 100_000, EIGHT),
    "an entry that is a number": safetensors({"a": 3}, EIGHT),
    "an unknown dtype": safetensors({"a": tensor("F128")}, EIGHT),
    "a shape below 0": safetensors({"a": tensor(shape=[-2])}, EIGHT),
    "a shape that overflows": safetensors({"a": tensor(shape=[1 << 62, 1 << 62])}, EIGHT),
    "a shape that is larger than its bytes": safetensors({"a": tensor(shape=[1 << 30])}, EIGHT),
    "offsets beyond the end": safetensors({"a": tensor(shape=[4], offsets=[0, 16])}, EIGHT),
    "offsets that fall": safetensors({"a": tensor(offsets=[8, 0])}, EIGHT),
    "a hole between tensors": safetensors({"a": tensor(), "b": tensor(offsets=[16, 24])}, EIGHT * 3),
    "tensors that overlap": safetensors({"a": tensor(), "b": tensor()}, EIGHT),
    "bytes that belong to nobody": safetensors({"a": tensor()}, EIGHT * 9),
    "a pickle": b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x8c\x06system\x93.",
    "a zip of torch's": b"PK\x03\x04" + b"\0" * 60,
    "another tensor": safetensors({"a": tensor()}, EIGHT),
}


def replace_tensor(file: Path, name: str, value: np.ndarray | None) -> None:
    """A tensor of a safetensors file replaced, or with None taken out."""
    from safetensors.numpy import load_file, save_file

    tensors = load_file(file)
    del tensors[name]
    save_file(tensors | ({} if value is None else {name: value}), file)
