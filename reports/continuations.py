"""Sampled continuations as a study leaves them: `continuations.jsonl`, one JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reports.tables import decode_text

FILE = "continuations.jsonl"
KEYS = ("model", "prompt", "sample", "seed", "text")


@dataclass(frozen=True)
class Continuations:
    """What the page says of them; their texts it reads from the file that it carries."""

    n_prompts: int
    n_samples: int
    n_seeds: int


def read_continuations(path: Path) -> list[Mapping[str, Any]]:
    """Return the records of a file.

    Raises:
        ValueError: for bytes that are not UTF-8, a line that is not a JSON object, or one without a key of `KEYS`.
    """
    lines = decode_text(path.read_bytes(), path.name).replace("\r\n", "\n").split("\n")
    records = []
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path.name}, line {number}: not JSON ({error})") from None
        if not isinstance(record, dict):
            raise ValueError(f"{path.name}, line {number}: got a {type(record).__name__}; expected an object")
        missing = [key for key in KEYS if key not in record]
        if missing:
            raise ValueError(f"{path.name}, line {number}: lacks {', '.join(missing)}; expected {', '.join(KEYS)}")
        records.append(record)
    return records


def describe_continuations(path: Path) -> tuple[Continuations | None, list[str]]:
    """Return (what a file holds, nothing), or (None, why it cannot be shown)."""
    try:
        records = read_continuations(path)
    except ValueError as error:
        return None, [f"{error}."]
    if not records:
        return None, [f"{path.name} has no lines."]
    samples = {(record["seed"], record["sample"]) for record in records}
    seeds = {seed for seed, _ in samples}
    prompts = {record["prompt"] for record in records}
    return Continuations(len(prompts), len({sample for _, sample in samples}), len(seeds)), []
