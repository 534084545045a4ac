"""The lock of a directory that is being written: `<out>.lock`, held by one process."""

from __future__ import annotations

import contextlib
import errno
import os
import platform
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from workbench.runs.files import naming

_N_TRIES = 1000  # to open a lock whose directory, or file, another process removes


@contextlib.contextmanager
def locked(out: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold `<out>.lock`, in this process alone, inside the block.

    filelock takes flock: the kernel releases it when the process ends, however it ends, and forked workers close their
    copy, so a file left by a kill locks nothing. The file's text names the holder in the error message.

    Raises ValueError naming the holder if another process has it, unless `wait`: then it waits.
    """
    from filelock import FileLock, Timeout

    path = out.with_name(out.name + ".lock")
    if path.is_symlink() or path.is_dir():
        raise ValueError(f"out: {path} is not a plain file; expected none there, or a lock file")
    made = [parent for parent in out.parents if not parent.exists()]  # the nearest first
    # a lock without flock would outlive a killed process: refuse such a file system
    lock = FileLock(path, blocking=wait, fallback_to_soft=False)
    for _ in range(_N_TRIES):
        out.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()
            break
        except FileNotFoundError:
            continue  # another process, which had made the parent and wrote nothing, removed it again
        except Timeout:
            if path.exists():  # else its holder removed it meanwhile, or no file can be made there, as below /proc
                raise ValueError(
                    f"out: {out} is being written by {_holder(path)}; expected one process in a directory"
                ) from None
    else:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    try:
        since = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        with naming(path):
            path.write_text(f"process {os.getpid()} on {platform.node()} since {since}\n", encoding="utf-8")
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is held: whoever opened it before sees that it is gone and tries again
        lock.release()
        for parent in made:
            with contextlib.suppress(OSError):  # it holds what was written
                parent.rmdir()


def _holder(path: Path) -> str:
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        return file.read(200).decode("utf-8", "replace").strip() or "another process"
    return "another process"
