"""`python -m docs.faults`: writes docs/faults.md from the table that `make faults` leaves."""

from __future__ import annotations

import csv
from itertools import groupby
from pathlib import Path

PAGE = Path(__file__).parent / "faults.md"
TABLE = Path(__file__).parents[1] / "benchmarks" / "results" / "faults.csv"
HEAD = """# Faults

Written by `make docs` from `benchmarks/results/faults.csv`, which `make faults` measures anew. *Tried* is the number of
faults of each kind, *right* the number with the outcome described. A short form runs with the other tests.

The figures come from several runs of parts of the suite, on two cores and, for a study's disks and some of the kills,
on a machine with sixteen. The disk faults cover every write of every verb, and a tmpfs of 24 sizes; the kills
at steps on disk every step, but of a study's 727 each fifth.
"""
# kind in the table -> what was done, and what is right
KINDS = {
    "bad input": "Verbs and public functions get what they cannot take: hostile recipes, texts, tokenizers, models, "
    "SAEs, shards, tables and arguments. Right: one line that says what is wrong, what was given and what is wanted; "
    "the right exit code; no traceback; nothing left behind.",
    "kills": "kill -9, SIGINT or SIGTERM at random moments of a run, several times, then `--resume`; and kill -9 at "
    "each write, sync, renaming and removal in turn. Right: every byte of every file is what an undisturbed run "
    "leaves, except for clocks: `env.json` (and `manifest.json`, which holds its hash), `tokens_per_s` in "
    "`train_log.csv` (and its hash in a checkpoint), and in a study the times in `study.json` and on the page.",
    "corruption": "A flipped bit; a file truncated, lost, swapped with another, replaced by an older one or by a link; "
    "a manifest that points outside the directory. Right: refused on reading, in one line that names the file.",
    "corruption of begun runs": "The same damages to what a killed run leaves, then `--resume`. Right: refused in one "
    "line that names the file, or made anew, so that the whole run holds the bytes of an undisturbed one.",
    "disk": "A write that fails because the disk is full, with an I/O error, or half done, at each write in turn. "
    "Right: one line, existing files intact, and `--resume` gives the same bytes once there is room again.",
    "place": "Two processes in one directory, a directory that is not writable, a lock left by a dead process, a clock "
    "that jumps, memory that runs out. Right: refused in one line, or the same bytes as ever.",
    "security": "Pickles wherever a file is read, code that comes with a model's folder, sockets. Right: none of it "
    "runs, and no connection is attempted unless a hub name was given.",
    "memory": "The peak memory of a verb (VmHWM, from its env.json) compared with the plan of `--dry-run`, for models "
    "of the nano size. Right: within 25 %.",
    "load": "Verbs in turn in one process (train, harvest, SAEs, ablate, topology, probe) for two hours. Right: from "
    "the first quarter after the warm-up to the last, resident memory grows by less than 2 %, and so do the "
    "process's own bytes, without what two libraries keep: safetensors of every tensor that it reads, tokenizers of "
    "every tokenizer that encodes; open files, threads and files on disk not at all. The last run, beside other work "
    "on two cores: 122 minutes, 4,071 rounds of these six. Resident memory grew by 5.3 % (32 MB), which is too much: "
    "15 MB are kept by safetensors (6.7 kB a round), 12 MB by tokenizers (5.4 kB a round), and the rest is .8 %.",
    "determinism": "A stage run twice with the same seed, in two processes that iterate over sets in different orders "
    "(the stages under Kills are compared there). Right: every byte of every file is the same, except for `env.json` "
    "and `manifest.json`, which holds its hash.",
    "numerics": "Each metric of [numerics.md](numerics.md) in every dtype that it takes, on three random problems, "
    "compared with a naive reference in float64. Right: the error is within the tolerance given there with its reason.",
    "fuzzing": "Random bytes and altered valid files for every reader. Right: read, or refused with a ValueError in "
    "one line.",
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
