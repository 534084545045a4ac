"""A mixed load: `python tests/faults/load.py PLACE SECONDS` runs verbs in turn in one process, as a long session does.

Prints a row a round, as JSON: seconds so far, resident bytes, open files, threads, and files under PLACE. A round
trains, harvests, trains SAEs, ablates, measures topology and probes, and removes what it wrote.
"""

from __future__ import annotations

import gc
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


def main(place: Path, seconds: float) -> None:
    """Print rounds until the time is over."""
    from grounds import MADE, call, write_ground

    if not (place / "model").exists():
        place.mkdir(parents=True, exist_ok=True)
        write_ground(place)
    os.environ["WORKBENCH_CACHE"] = str(place / "cache")
    os.chdir(place)
    started = time.monotonic()
    while time.monotonic() - started < seconds:
        for name in ROUND:
            command = MADE[name].rsplit(" --out", 1)[0]
            result = call(*command.split(), "--out", OUT)
            assert result.exit_code == 0, result.output
            shutil.rmtree(OUT)
        print(json.dumps(measure(place, started)), flush=True)


if __name__ == "__main__":
    import warnings

    here = Path(__file__).parent
    sys.path[:0] = [str(here), str(here.parent / "workbench")]
    warnings.simplefilter("ignore")  # too little text for some statistics
    main(Path(sys.argv[1]).absolute(), float(sys.argv[2]))
