"""A disk that is really full: `python tests/faults/small_disk.py PLACE STAGE N` prints, as JSON, what became of N.

A tmpfs is mounted, of N sizes from a page to what an undisturbed run leaves, and the verb writes into it (in a child of
a process that has loaded everything, see `kills`). It must end with one line and exit code 1, leave nothing under the
wanted name, and with --resume, after the same tmpfs has grown, come to the bytes of an undisturbed run. Needs root.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import kills
from writes import Outcome

MOUNT = Path("small")
PAGE_BYTES = 4096


def mount(size: int, *, is_there: bool = False) -> None:
    """Nothing; MOUNT is a tmpfs of `size` bytes, or the one that is there is from now on as large."""
    options = f"size={size}" + (",remount" if is_there else "")
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(MOUNT)], check=True, capture_output=True)


def unmount() -> None:
    """Nothing; what was in the tmpfs is gone."""
    subprocess.run(["umount", str(MOUNT)], check=True, capture_output=True)


def fill(stage: str, command: str, n: int) -> Outcome:
    """What became of the verb on disks of n sizes, in the working directory."""
    outcome = Outcome(stage, "a small tmpfs")
    MOUNT.mkdir(exist_ok=True)
    assert kills.end(kills.begin(f"{command} --out whole")) == 0, Path("last.log").read_text()[-2000:]
    wanted = kills.digests(Path("whole"))
    # a page more for each: names and directories lie there too
    n_pages = sum(-(-path.stat().st_size // PAGE_BYTES) + 1 for path in Path("whole").rglob("*"))
    outcome.n_writes = n_pages
    for n_here in sorted({2 + i * n_pages // n for i in range(n)}):
        size = PAGE_BYTES * n_here
        mount(size)
        try:
            wrong = _one(command, wanted)
        finally:
            unmount()
        outcome.n_tried += 1
        outcome.n_right += not wrong
        if wrong:
            outcome.wrong.append(f"{size} bytes: {wrong}")
    shutil.rmtree("whole")
    return outcome


def _one(command: str, wanted: dict[str, str]) -> str:
    """What went wrong with one size, or nothing."""
    code = kills.end(kills.begin(f"{command} --out {MOUNT}/cut"))
    said = Path("last.log").read_text()
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    if code == 0:
        return kills.differing(f"{MOUNT}/cut", wanted)  # it did fit
    if code != 1 or len(errors) != 1 or "Traceback" in said or "--debug shows where" in said:
        return f"exit {code}: {said[-300:]}"
    if not any(word in errors[0] for word in ("No space left", "free")) or str(MOUNT) not in errors[0]:
        return f"says nothing of it: {errors[0]}"
    if (MOUNT / "cut").exists():
        return "something has the wanted name"
    mount(1 << 30, is_there=True)
    code = kills.end(kills.begin(f"{command} --out {MOUNT}/cut --resume"))
    if code:
        return f"resumed: exit {code}: {Path('last.log').read_text()[-300:]}"
    return kills.differing(f"{MOUNT}/cut", wanted)


if __name__ == "__main__":
    found = kills.enter(Path(sys.argv[1]).absolute())
    print(json.dumps(asdict(fill(sys.argv[2], found[sys.argv[2]], int(sys.argv[3])))))
