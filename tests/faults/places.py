"""Hostile places: `python tests/faults/places.py PLACE` prints, as JSON, what became of verbs where two run at once,
where a lock was left behind, where the clock jumps and where memory ends."""

from __future__ import annotations

import json
import random
import resource
import shutil
import sys
import time
from pathlib import Path

import kills

CLOCKS = ("time", "monotonic", "perf_counter", "time_ns")


def jump(rng: random.Random) -> None:
    """From now on, let every clock go on, now and then, from anywhere within a year of now."""
    shift = [0.0]

    def jumping(clock):
        def read():
            if rng.random() < 0.2:
                shift[0] = rng.uniform(-3e7, 3e7)
            return type(clock())(clock() + (shift[0] * 1e9 if clock.__name__.endswith("ns") else shift[0]))

        return read

    for name in CLOCKS:
        setattr(time, name, jumping(getattr(time, name)))


def limit_memory() -> None:
    """Leave this process 24 MB more than it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    n_bytes = pages * resource.getpagesize() + (24 << 20)
    resource.setrlimit(resource.RLIMIT_AS, (n_bytes, n_bytes))


def log() -> str:
    """What the last process said."""
    return Path("last.log").read_text()


def remove() -> None:
    """What a run left."""
    for path in Path.cwd().glob("cut*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def two_at_once(command: str, wanted: dict[str, str], rng: random.Random) -> str:
    """What went wrong where a second process came a moment later; one is refused and the other is right."""
    first = kills.begin(f"{command} --out cut", log="first.log")
    time.sleep(rng.uniform(0, 0.3))
    codes = [kills.end(kills.begin(f"{command} --out cut --resume")), kills.end(first)]
    if codes not in ([1, 0], [0, 0], [0, 1]):  # the first may have been through before the second came
        return f"exit {codes}: {log()[-300:]}"
    refusal = log() if codes[0] else Path("first.log").read_text() if codes[1] else ""
    if refusal and not any(reason in refusal for reason in ("is being written by", "already exists", "unfinished run")):
        return f"refused by {refusal[-300:]}"
    return kills.differing("cut", wanted)


def stale_lock(command: str, wanted: dict[str, str], rng: random.Random) -> str:
    """What went wrong where a dead process left its lock."""
    Path("cut.lock").write_bytes(rng.choice([b"", b"process 1 on nowhere since 1970", rng.randbytes(300)]))
    code = kills.end(kills.begin(f"{command} --out cut"))
    return f"exit {code}: {log()[-300:]}" if code else kills.differing("cut", wanted)


def jumping_clock(command: str, wanted: dict[str, str], rng: random.Random) -> str:
    """What went wrong where clocks jump."""
    code = kills.end(kills.begin(f"{command} --out cut", lambda: jump(rng)))
    return f"exit {code}: {log()[-300:]}" if code else kills.differing("cut", wanted)


def no_memory(command: str, wanted: dict[str, str], rng: random.Random) -> str:
    """What went wrong where memory ends: the verb says so in a line, or gets by; --resume then comes to the same."""
    code = kills.end(kills.begin(f"{command} --out cut", limit_memory))
    said = log()
    if code == 1 and ("Traceback" in said or "out of memory" not in said):
        return f"exit {code}: {said[-300:]}"
    if code not in (0, 1):
        return f"exit {code}: {said[-300:]}"
    if code:
        code = kills.end(kills.begin(f"{command} --out cut --resume"))
    return f"exit {code}: {log()[-300:]}" if code else kills.differing("cut", wanted)


SORTS = {
    "two processes in one directory": two_at_once,
    "a lock that a dead process left": stale_lock,
    "clocks that jump": jumping_clock,
    "memory that ends": no_memory,
}
STAGES = ("training", "harvest", "ablation", "SAE training", "probe")


def main(place: Path, n: int) -> None:
    """Print (sort, tried, what went wrong) of n tries of each sort in each stage."""
    commands, found = kills.enter(place), []
    for stage in STAGES:
        command = commands[stage]
        assert kills.end(kills.begin(f"{command} --out whole")) == 0, log()[-2000:]
        wanted = kills.digests(Path("whole"))
        for sort, try_it in SORTS.items():
            for i in range(n):
                wrong = try_it(command, wanted, random.Random(f"{sort} {stage} {i}"))
                found.append((sort, f"{stage}: {wrong}" if wrong else ""))
                remove()
        shutil.rmtree("whole")
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute(), int(sys.argv[2]))
