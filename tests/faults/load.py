"""A mixed load: `python tests/faults/load.py PLACE SECONDS` runs verbs in turn in one process, as a long session does.

Prints a row a round, as JSON: seconds so far, resident bytes, open files, threads, and files under PLACE. A round
trains, harvests, trains SAEs, ablates, measures topology and probes, and removes what it wrote.

Three libraries would grow here, whatever a verb does. typer keeps each new standard output for good (its cache of
streams holds a stream by itself), so all verbs write to one. safetensors (0.8) keeps 56 bytes for each tensor that it
has read (the ends of the slice it cuts), some 6 kB a round. tokenizers (0.23) keeps the words that each newly loaded
tokenizer has met, some 4 kB a round for the probe's prompts.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import shutil
import sys
import threading
import time
from pathlib import Path

ROUND = ("train", "harvest", "saes", "ablation", "topology", "probe")
OUT = "load"


def measure(place: Path, started: float) -> dict[str, float]:
    """What the process holds, after what nobody holds any more was given back."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "seconds": round(time.monotonic() - started, 1),
        "resident_bytes": pages * os.sysconf("SC_PAGE_SIZE"),
        "open_files": len(os.listdir("/proc/self/fd")),  # noqa: PTH208 - a listing that closes itself
        "threads": threading.active_count(),
        "files": sum(len(files) for _, _, files in os.walk(place)),
    }


def do(name: str, said: io.StringIO) -> None:
    """Run a verb of the ground in this process; what it says goes to `said`, in place of what was said before."""
    from grounds import MADE

    from workbench.cli.app import app

    said.seek(0)
    said.truncate()
    command = MADE[name].rsplit(" --out", 1)[0]
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = app([*command.split(), "--out", OUT], standalone_mode=False)
    assert not code, said.getvalue()


def main(place: Path, seconds: float) -> None:
    """Print rounds until the time is over."""
    from grounds import write_ground

    if not (place / "model").exists():
        place.mkdir(parents=True, exist_ok=True)
        write_ground(place)
    os.environ["WORKBENCH_CACHE"] = str(place / "cache")
    os.chdir(place)
    said = io.StringIO()
    started = time.monotonic()
    while time.monotonic() - started < seconds:
        for name in ROUND:
            do(name, said)
            shutil.rmtree(OUT)
        print(json.dumps(measure(place, started)), flush=True)


if __name__ == "__main__":
    import warnings

    here = Path(__file__).parent
    sys.path[:0] = [str(here), str(here.parent / "workbench")]
    warnings.simplefilter("ignore")  # too little text for some statistics
    main(Path(sys.argv[1]).absolute(), float(sys.argv[2]))
