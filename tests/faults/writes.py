"""Writes that fail: `python tests/faults/writes.py PLACE STAGE KIND N [PART OF]` prints, as JSON, what became of them.

Every write of a verb is counted once: bytes to a file, a sync, a rename, a new directory. Then the verb is run again
and again (in children of a process that has loaded everything, see `kills`), and from its n-th write on the disk is
full, or its n-th write alone fails by an I/O error, half done. It must end with one line and exit code 1, leave nothing
under the wanted name, and with --resume and a sound disk come to the bytes of an undisturbed run. Or the process is
killed there, where removals count, too: then nothing is said, and --resume must do the same. N of the writes are tried,
evenly spaced; 0: all. Of these, PART (0, 1, … OF − 1) is every OF-th, where several processes share them.
"""

from __future__ import annotations

import builtins
import errno
import io
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import kills

# how the disk fails -> (error, whether it stays so, what of writing it concerns)
KINDS = {
    "full": (errno.ENOSPC, True, {"write", "tensors", "mkdir"}),
    "I/O error": (errno.EIO, False, {"write", "tensors", "sync", "rename", "mkdir"}),
    "short write": (0, True, {"short"}),  # no error: the system took half, and says so
    "kill": (0, False, {"write", "tensors", "sync", "rename", "mkdir", "remove"}),
    "read-only": (errno.EROFS, True, {"write", "tensors", "rename", "mkdir", "open"}),
}
COUNTED = "writes.txt"


@dataclass
class Outcome:
    """What became of the failing writes of one stage."""

    stage: str
    kind: str
    n_writes: int = 0
    """of an undisturbed run"""
    n_tried: int = 0
    n_right: int = 0
    wrong: list[str] = field(default_factory=list)


class Disk:
    """Counts writes, and fails one or all from one on; with n = 0 it only counts."""

    def __init__(self, n: int, kind: str) -> None:
        self.n_done, self.n = 0, n
        self.error, self.is_lasting, self.concerns = KINDS[kind]
        self.is_kill = kind == "kill"

    def fails(self, what: str) -> bool:
        """Whether this write fails."""
        if what not in self.concerns:
            return False
        self.n_done += 1
        return bool(self.n) and (self.n_done >= self.n if self.is_lasting else self.n_done == self.n)

    def refuse(self, path: object = None) -> None:
        """Raise what the operating system would; of a descriptor it knows no path. Or end, as a killed process does."""
        if self.is_kill:
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(self.error, os.strerror(self.error), *(() if path is None else (str(path),)))


def install(disk: Disk, place: Path) -> None:
    """From now on, let what this process writes below `place` go by that disk."""
    import safetensors.torch

    real_open, real_tensors = io.open, safetensors.torch.serialize_file

    def is_ours(path: object) -> bool:
        return str(path if Path(str(path)).is_absolute() else Path.cwd() / str(path)).startswith(f"{place}/cut")

    def opened(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        name = Path(f"/proc/self/fd/{file}").readlink() if isinstance(file, int) else file
        is_written = any(letter in mode for letter in "wax+") and is_ours(name)
        if is_written and disk.fails("open"):
            disk.refuse(name)
        stream = real_open(file, mode, *args, **kwargs)
        if is_written:
            write = stream.write

            def half(data: Any) -> int:
                if disk.fails("write"):
                    write(data[: len(data) // 2])
                    disk.refuse()
                if isinstance(stream, io.FileIO) and disk.fails("short"):
                    return write(data[: max(1, len(data) // 2)])
                return write(data)

            stream.write = half
        return stream

    def tensors(flat: Any, path: Any, *args: Any, **kwargs: Any) -> None:
        real_tensors(flat, path, *args, **kwargs)
        if is_ours(path) and disk.fails("tensors"):
            os.truncate(path, Path(path).stat().st_size // 2)
            if disk.is_kill:
                disk.refuse()
            raise safetensors.SafetensorError(
                f"Error while serializing: I/O error: {os.strerror(disk.error)} (os error {disk.error})"
            )

    def guarded(what: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *args: Any, **kwargs: Any) -> Any:
            name = Path(f"/proc/self/fd/{path}").readlink() if isinstance(path, int) else path
            if kwargs.get("dir_fd") is not None:
                name = Path(f"/proc/self/fd/{kwargs['dir_fd']}").readlink() / name
            if is_ours(name) and disk.fails(what):
                disk.refuse(None if isinstance(path, int) else name)
            return function(path, *args, **kwargs)

        return call

    io.open = builtins.open = opened  # type: ignore[assignment]
    safetensors.torch.serialize_file = tensors
    os.fsync = guarded("sync", os.fsync)
    os.mkdir = guarded("mkdir", os.mkdir)
    os.rename, os.replace = guarded("rename", os.rename), guarded("rename", os.replace)
    os.unlink, os.rmdir = guarded("remove", os.unlink), guarded("remove", os.rmdir)


def try_writes(stage: str, command: str, kind: str, n: int, part: int = 0, n_parts: int = 1) -> Outcome:
    """What became of n failing writes (0: of all) of a stage, in the working directory; of their part-th share."""
    outcome, here = Outcome(stage, kind), Path.cwd()
    assert kills.end(kills.begin(f"{command} --out whole")) == 0, Path("last.log").read_text()[-2000:]
    wanted = kills.digests(Path("whole"))
    outcome.n_writes = count(command, kind, here)
    every = range(1, outcome.n_writes + 1)
    numbers = sorted({1 + i * outcome.n_writes // n for i in range(n)}) if n else list(every)
    for number in numbers[part::n_parts]:
        outcome.n_tried += 1
        if wrong := _one(command, Disk(number, kind), here, wanted):
            outcome.wrong.append(f"write {number} of {outcome.n_writes}: {wrong}")
        else:
            outcome.n_right += 1
        for left in here.glob("cut*"):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
    shutil.rmtree("whole")
    return outcome


def count(command: str, kind: str, here: Path) -> int:
    """Writes that a disk of this kind would see, of a run that it lets through."""
    disk = Disk(0, kind)
    real_exit = os._exit

    def say(code: int) -> None:
        (here / COUNTED).write_text(str(disk.n_done))
        real_exit(code)

    def prepare() -> None:
        install(disk, here)
        os._exit = say  # type: ignore[assignment]

    assert kills.end(kills.begin(f"{command} --out cut", prepare)) == 0, Path("last.log").read_text()[-2000:]
    shutil.rmtree("cut")
    return int((here / COUNTED).read_text())


def _one(command: str, disk: Disk, here: Path, wanted: dict[str, str]) -> str:
    """What went wrong with one failing write, or nothing."""
    code = kills.end(kills.begin(f"{command} --out cut", lambda: install(disk, here)))
    said = Path("last.log").read_text()
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    if code == 0 and not kills.differing("cut", wanted):
        return ""  # it was a write that may fail, such as the words in a lock
    if disk.is_kill:
        if code != -signal.SIGKILL:
            return f"exit {code}: {said[-300:]}"
    elif code != 1 or len(errors) != 1 or "Traceback" in said or "--debug shows where" in said:
        return f"exit {code}: {said[-300:]}"
    elif os.strerror(disk.error) not in errors[0] or "cut" not in errors[0]:
        return f"says nothing of it: {errors[0]}"
    if Path("cut").exists():
        # whole, and only what comes behind the rename failed: then it must be what was wanted
        return kills.differing("cut", wanted)
    option = "" if command.startswith(("export", "import")) else " --resume"
    if option == "" and Path("cut.partial").exists():
        shutil.rmtree("cut.partial")  # these two begin anew, and say so
    code = kills.end(kills.begin(f"{command} --out cut{option}"))
    if code:
        return f"resumed: exit {code}: {Path('last.log').read_text()[-300:]}"
    return kills.differing("cut", wanted)


if __name__ == "__main__":
    place, stage, kind, *numbers = sys.argv[1:]
    found = kills.enter(Path(place).absolute())
    print(json.dumps(asdict(try_writes(stage, found[stage], kind, *map(int, numbers)))))
