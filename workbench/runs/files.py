"""Writing files so that a kill or a full disk leaves what was there before, and reading their checksums."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path

# names of the temporary files of atomic_write and directories of StackedSAE.save, which a kill may leave
TEMPORARY = re.compile(r"^\..+\.[0-9a-f]{8}\.tmp$")
TEMPORARY_DIRECTORY = re.compile(r"^\..+\.[a-z0-9_]{8}\.(partial|old)$")


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let a write that fails inside the block name `path`: the system's error for a file descriptor names no file."""
    try:
        yield
    except OSError as error:
        if error.errno and error.filename is None:
            error.filename = str(path)
        raise
    except Exception as error:
        # of libraries in Rust, safetensors and tokenizers, each in a kind of its own
        if "(os error " in str(error) and not isinstance(error, ValueError):
            raise OSError(f"{path}: {error}") from error
        raise


def atomic_write(path: str | os.PathLike[str], data: bytes | str) -> None:
    """Write `data` (str as UTF-8) to `path`, which after any failure holds what it held before.

    The data go to a temporary file in the same directory, which is fsynced and renamed; then the directory is fsynced.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with naming(path), temporary.open("xb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def sync(path: Path) -> None:
    """fsync of a file, or of the names in a directory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with naming(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_file(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file's bytes, 64 hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
