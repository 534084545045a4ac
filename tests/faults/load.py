"""A mixed load: `python tests/faults/load.py PLACE SECONDS` runs verbs in turn in one process, as a long session does.

Prints a row a round, as JSON: seconds so far, resident bytes, bytes that libraries keep, open files, threads, and files
under PLACE. A round trains, harvests, trains SAEs, ablates, measures topology and probes, and removes what it wrote.

Three libraries would grow here, whatever a verb does. typer keeps each new standard output for good (its cache of
streams holds a stream by itself), so all verbs write to one. safetensors (0.8) keeps, for each tensor that it reads,
the ends of the slice it cuts, and tokenizers (0.23), of each tokenizer, the words that it encoded: how many bytes a
tensor and a probe's tokenizer leave is measured before the first round, and those of the rounds are counted.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import io
import json
import os
import shutil
import sys
import threading
import time
from pathlib import Path

import safetensors

ROUND = ("train", "harvest", "saes", "ablation", "topology", "probe")
OUT = "load"
N_READ = 40_000  # tensors by which what safetensors keeps is measured
N_TOKENIZERS = 400  # likewise, what tokenizers keeps


class CountedFile:
    """`safetensors.safe_open`, which counts the tensors that are read of any file."""

    n_read = 0

    def __init__(self, *args: object, **kwargs: object) -> None:
        self._file = real_open(*args, **kwargs)

    def __enter__(self) -> CountedFile:
        self._file.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._file.__exit__(*error)

    def __getattr__(self, name: str) -> object:
        CountedFile.n_read += name in ("get_tensor", "get_slice")
        return getattr(self._file, name)


real_open = safetensors.safe_open
safetensors.safe_open = CountedFile  # before anybody takes it from there


def bytes_a_tensor(place: Path) -> float:
    """Resident bytes by which this process grows with each tensor that safetensors reads."""
    import torch
    from safetensors.torch import save_file

    n, file = 200, place / "read.safetensors"
    save_file({str(i): torch.zeros(2) for i in range(n)}, file)

    def read(n_times: int) -> int:
        for _ in range(n_times):
            with real_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 - not a dict
                    opened.get_tensor(name)
        gc.collect()
        return resident_bytes()

    before = read(N_READ // n // 4)
    grown = read(N_READ // n) - before
    file.unlink()
    return grown / N_READ


def bytes_a_tokenizer(place: Path) -> float:
    """Bytes by which what malloc has given out grows with each tokenizer that has encoded what a probe asks for; at
    first they fill holes, so that no resident bytes tell of them."""
    from grounds import CONCEPTS

    from workbench.analyses.probe.states import build_prompts
    from workbench.data.concepts import choose_sets, read_concepts
    from workbench.data.tokenizer import load_tokenizer
    from workbench.models.tokenizer_files import wrap_tokenizer

    sets = choose_sets(read_concepts(place / "concepts.toml"), list(CONCEPTS))

    def encode(n_times: int) -> int:
        for _ in range(n_times):
            build_prompts(wrap_tokenizer(load_tokenizer(place / "tokenizer.json")), sets)
        gc.collect()
        return malloced_bytes()

    before = encode(N_TOKENIZERS // 4)
    return (encode(N_TOKENIZERS) - before) / N_TOKENIZERS


class MallInfo(ctypes.Structure):
    """What glibc's mallinfo2 returns."""

    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
    )]  # fmt: skip


def malloced_bytes() -> int:
    """What malloc has given out and not got back."""
    ask = ctypes.CDLL(None).mallinfo2
    ask.restype = MallInfo
    said = ask()
    return said.uordblks + said.hblkhd


def resident_bytes() -> int:
    """Of this process, now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure(place: Path, started: float, kept_bytes: float) -> dict[str, float]:
    """What the process holds, after what nobody holds any more was given back."""
    gc.collect()
    return {
        "seconds": round(time.monotonic() - started, 1),
        "resident_bytes": resident_bytes(),
        "kept_bytes": round(kept_bytes),
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
    kept_a_tensor, kept_a_round = bytes_a_tensor(place), bytes_a_tokenizer(place)
    started, n_rounds = time.monotonic(), 0
    while time.monotonic() - started < seconds:
        for name in ROUND:
            do(name, said)
            shutil.rmtree(OUT)
        n_rounds += 1
        kept_bytes = kept_a_tensor * CountedFile.n_read + kept_a_round * n_rounds
        print(json.dumps(measure(place, started, kept_bytes)), flush=True)


if __name__ == "__main__":
    import warnings

    here = Path(__file__).parent
    sys.path[:0] = [str(here), str(here.parent / "workbench")]
    warnings.simplefilter("ignore")  # too little text for some statistics
    main(Path(sys.argv[1]).absolute(), float(sys.argv[2]))
