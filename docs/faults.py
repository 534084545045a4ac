"""`python -m docs.faults`: writes docs/faults.md from the table that `make faults` leaves."""

from __future__ import annotations

import csv
from itertools import groupby
from pathlib import Path

PAGE = Path(__file__).parent / "faults.md"
TABLE = Path(__file__).parents[1] / "benchmarks" / "results" / "faults.csv"
HEAD = """# Faults

Written by `make docs` from `benchmarks/results/faults.csv`, which `make faults` measures anew. *Tried* is how many
faults of a kind were made, *right* how many came out as they must. A short form runs with the other tests.

The figures here were put together from runs of its parts, on two cores and, for a study's disks and part of the kills,
on a machine with sixteen. Disks: every write of every verb, and besides a tmpfs of 24 sizes.
"""
# kind in the table -> what was done, and what is right
KINDS = {
    "bad input": "Verbs and public functions are given what they cannot take: hostile recipes, texts, tokenizers, "
    "models, SAEs, shards, tables and arguments. Right: one line that says what, got and wanted, the right exit code, "
    "no traceback, nothing left behind.",
    "kills": "kill -9, SIGINT or SIGTERM at a random moment of a run, several times a run, then `--resume`. Right: "
    "every byte of every file is what an undisturbed run leaves, but for clocks: `env.json` (and `manifest.json`, "
    "which has its hash), `tokens_per_s` of `train_log.csv` (and its hash in a checkpoint), and in a study the times "
    "in `study.json` and on the page.",
    "corruption": "A bit flipped, a file cut, lost, swapped with another, replaced by an older one or by a link, or "
    "led out of the directory by the manifest. Right: refused when it is read, in one line that names the file.",
    "disk": "A write that fails for want of room, with an I/O error, or half done, at each write in turn. Right: one "
    "line, what was there before intact, and `--resume` comes to the same bytes when there is room again.",
    "place": "Two processes in one directory, a directory that cannot be written, a lock that a dead process left, a "
    "clock that jumps, memory that ends. Right: refused in one line, or the same bytes as ever.",
    "security": "Pickles in every place where a file is read, code that a model's folder brings along, sockets. Right: "
    "nothing of it runs, and no connection is tried where no hub name was given.",
    "memory": "The peak of a verb's memory (VmHWM, from its env.json) against what `--dry-run` said, for models of the "
    "nano size. Right: within 25 %.",
    "load": "Verbs in turn in one process (train, harvest, SAEs, ablate, topology, probe) for up to two hours (`make "
    "faults`). Right: from the first quarter after the warm-up to the last, resident memory has not grown by 2 %, "
    "and open files, threads and files not at all.",
    "determinism": "A stage run twice with the same seed, in two processes whose sets are ordered differently (the "
    "stages that are killed above are compared there). Right: every byte of every file is the same, but for `env.json` "
    "and `manifest.json`, which has its hash.",
    "numerics": "Every metric in every dtype that it takes, on three random problems, against a naive reference in "
    "float64. Right: the error is within the tolerance that [numerics.md](numerics.md) gives with its reason.",
    "fuzzing": "Random bytes and altered good files for every reader. Right: read, or refused by a ValueError in one "
    "line.",
}


def render() -> str:
    """The page: a section a kind, a row a sort."""
    with TABLE.open(newline="", encoding="utf-8") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: list(KINDS).index(row["kind"]))
    sections = [HEAD]
    for kind, group in groupby(rows, key=lambda row: row["kind"]):
        lines = [f"## {kind.capitalize()}\n", f"{KINDS[kind]}\n", "| | tried | right |", "|---|---|---|"]
        totals: dict[str, list[int]] = {}
        for row in group:
            # metrics have a page of their own: here a row a dtype
            what = row["what"].rpartition(", ")[2] if kind == "numerics" else row["what"]
            total = totals.setdefault(what, [0, 0])
            total[0] += int(row["n_tried"])
            total[1] += int(row["n_right"])
        lines += [f"| {what} | {n_tried:,} | {n_right:,} |" for what, (n_tried, n_right) in totals.items()]
        sections.append("\n".join(lines) + "\n")
    return "\n".join(sections)


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
