"""The record of `text-quality`: measures of sampled continuations; recall, grammar and cause, by logits."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from workbench.analyses.text_quality.cost import cost
from workbench.extend import Analysis, Column, Job, Merged, Settings, Table

if TYPE_CHECKING:
    import pandas as pd

# what is left in the directory: the texts; their tokens, and the margins of the items
CONTINUATIONS, RAW = "continuations.jsonl", "text_quality.json"
NO_BATTERIES = (Path("none"),)


class TextQualitySettings(Settings):
    """What the model goes on from, how, and which items it is asked."""

    prompts: Path | None = Field(default=None, description="TOML file of prompts, instead of the built-in ones")
    recall: Path | None = Field(default=None, description="TOML file of a recall battery, instead of the built-in one")
    battery: tuple[Path, ...] = Field(
        default=(),
        description="TOML file of a battery of that name, beside the built-in ones; grammar.toml or cause.toml takes "
        "the place of the built-in one, none leaves both out; repeatable",
    )
    n_samples: int = Field(default=4, description="continuations per prompt", ge=1)
    max_new_tokens: int = Field(default=96, description="tokens per continuation, at most", ge=1)
    temperature: float = Field(default=0.7, description="sampling temperature; 0 takes the likeliest token", ge=0)
    tagger: str | None = Field(
        default=None,
        description="spaCy pipeline, or its folder, for the measures that need tagged words, or none; by default the "
        "small English one",
    )


def check(job: Job) -> None:
    """Raise the ValueErrors of files, prompts and items, and of a tagger that is not there."""
    from workbench.analyses.text_quality.quality import check_batteries, choose_tagger
    from workbench.data.batteries import as_batteries

    own = job.settings
    prompts, recall, batteries = _read(own)
    check_batteries(job.subject.model, prompts, as_batteries(recall, batteries), own.max_new_tokens)
    if own.tagger is not None:
        choose_tagger(own.tagger)


def measure(job: Job) -> Mapping[str, pd.DataFrame]:
    """The table; continuations, and what else it follows from, in the directory."""
    from workbench.analyses.text_quality.quality import text_quality
    from workbench.runs import atomic_write

    own, subject = job.settings, job.subject
    settings = own.model_dump(include={"n_samples", "max_new_tokens", "temperature", "tagger"})
    settings |= {"seed": job.seed, "name": subject.name, "on_progress": job.progress}
    found = text_quality(subject.model, *_read(own), **settings)
    atomic_write(job.directory / CONTINUATIONS, found.to_jsonl())
    items = [asdict(item) | {"margin": margin} for item, margin in found.scored]
    raw = {"tokens": [one.tokens for one in found.continuations], "items": items}
    atomic_write(job.directory / RAW, json.dumps(raw) + "\n")
    return {"text_quality": found.table.assign(seed=subject.seed)}


def tabulate(job: Job) -> Mapping[str, pd.DataFrame]:
    """The table from what `measure` left in the directory."""
    from workbench.analyses.text_quality.continuations import Continuation
    from workbench.analyses.text_quality.quality import choose_tagger, quality_table
    from workbench.data.batteries import Item

    raw = json.loads((job.directory / RAW).read_text(encoding="utf-8"))
    lines = (job.directory / CONTINUATIONS).read_text(encoding="utf-8").split("\n")[:-1]
    known = ("kind", "prompt", "sample", "text", "is_ended")
    continuations = [
        Continuation(**{name: record[name] for name in known}, tokens=tuple(tokens))
        for record, tokens in zip(map(json.loads, lines), raw["tokens"], strict=True)
    ]
    scored = [(Item(**record), margin) for record in raw["items"] for margin in [record.pop("margin")]]
    settings = {"seed": job.seed, "name": job.subject.name}
    table = quality_table(continuations, scored, choose_tagger(job.settings.tagger), **settings)
    return {"text_quality": table.assign(seed=job.subject.seed)}


def merge(merged: Merged) -> Mapping[str, pd.DataFrame]:
    """No table: the continuations of all models and seeds in one file."""
    from workbench.runs import atomic_write

    texts = [(directory / CONTINUATIONS).read_text(encoding="utf-8") for directory in merged.directories]
    atomic_write(merged.directory / CONTINUATIONS, "".join(texts))
    return {}


def _read(own: TextQualitySettings) -> tuple[Any, Any, Any]:
    """Prompts, recall battery and the others."""
    from workbench.data.batteries import read_batteries, read_prompts, read_recall

    prompts = read_prompts() if own.prompts is None else read_prompts(own.prompts)
    recall = read_recall() if own.recall is None else read_recall(own.recall)
    return prompts, recall, () if own.battery == NO_BATTERIES else read_batteries(own.battery)


text_quality = Analysis(
    name="text-quality",
    summary="Measures of sampled continuations, with intervals; recall, grammar and cause, by logits.",
    settings=TextQualitySettings,
    tables=[
        Table(
            "text_quality",
            key=("model", "seed", "measure"),
            columns=[
                Column("value", "ratio of sums over continuations, or over items of a battery"),
                Column("ci_low", "95 % bootstrap interval over prompts, or over scenarios of a battery"),
                Column("ci_high"),
                Column("n", "prompts or scenarios", kind="integer"),
            ],
            trailing=[
                Column("unit", "what the interval is over: prompt or scenario", kind="text"),
                Column("per", "what the value is a ratio to", kind="text"),
                Column("n_per", "how many of these there are"),
                Column("chance", "value of a model that guesses"),
                Column("n_continuations", kind="integer"),
                Column("tagger", "name and version of the spaCy pipeline, or none", kind="text"),
            ],
            meaning="One measure of sampled continuations or of a battery of items.",
        )
    ],
    measure=measure,
    cost=cost,
    tabulate=tabulate,
    check=check,
    merge=merge,
    function="workbench.analyses.text_quality.quality:text_quality",
)
