"""Settings as people and runs write them: TOML and JSON files, read within a size limit and as UTF-8."""

from __future__ import annotations

import codecs
import json
import os
import tomllib
from pathlib import Path
from typing import Any

CONFIG = "config.toml"
MAX_SETTINGS_BYTES = 64 << 20  # a larger config or manifest is not one of ours: refuse before reading it into memory
MAX_TOML_BYTES = 1 << 20  # what people write: recipes, concepts, prompts, a few pages of text


def read_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The settings in a run directory's config.toml (or in the TOML file given).

    Raises ValueError if the file is missing, too large, not UTF-8 or not TOML.
    """
    file = Path(path)
    if file.is_dir():
        file = file / CONFIG
    text = read_settings(file, "config", "a run directory's settings")
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"config: {file} is not TOML ({error}); expected key = value lines") from None


def read_json(file: Path, what: str, wanted: str) -> dict[str, Any]:
    """The object in a JSON file. Raises ValueError as `read_settings`, and if it holds no JSON object."""
    text = read_settings(file, what, wanted)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{what}: {file} is not JSON ({error}); expected {wanted}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{what}: {file} holds a {type(content).__name__}; expected {wanted}")
    return content


def read_toml(file: Path, what: str) -> dict[str, Any]:
    """The tables of a TOML file that someone wrote. Raises ValueError if it is too large, not UTF-8 or not TOML."""
    text = _read(file, what, MAX_TOML_BYTES)
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{what}: {file} is not TOML ({error})") from None


def read_settings(file: Path, what: str, wanted: str) -> str:
    """The text of a settings file. Raises ValueError if it is missing, a link, too large to be ours or not UTF-8."""
    if file.is_symlink() or not file.is_file():
        raise ValueError(f"{what}: {file} is missing; expected {wanted}")
    return _read(file, what, MAX_SETTINGS_BYTES)


def decode_text(data: bytes, where: str) -> str:
    """The text of a file's bytes: UTF-8, with or without a byte-order mark. Raises ValueError, which names UTF-16."""
    if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        raise ValueError(f"{where} is UTF-16; expected UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{where} is not UTF-8 ({error.reason} at byte {error.start}); expected UTF-8") from None


def shorten(text: str, n: int = 80) -> str:
    """Text of a file or a caller as an error quotes it: printable, on one line, at most n characters.

    >>> shorten("[" * 9, 4)
    '[[[…'
    """
    text = text if text.isprintable() else repr(text)[1:-1]
    return text if len(text) <= n else f"{text[: n - 1]}…"


def _read(file: Path, what: str, max_bytes: int) -> str:
    if (n_bytes := file.stat().st_size) > max_bytes:
        raise ValueError(f"{what}: {file} has {n_bytes} bytes; expected at most {max_bytes}")
    return decode_text(file.read_bytes(), f"{what}: {file}")
