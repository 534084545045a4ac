"""The record of `ladder`: trainings of a recurrent model without its mechanisms, then with one more each time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from workbench.analyses.ladder.cost import cost
from workbench.extend import Analysis, Column, Documents, Job, Settings, Table

if TYPE_CHECKING:
    import pandas as pd


class LadderSettings(Settings):
    """None of its own."""


def check(job: Job) -> None:
    """Raise the ValueErrors of the text, and of a recipe whose rungs do not fit together."""
    from workbench.analyses.evaluate.bits import encode_text
    from workbench.analyses.ladder.rungs import ladder_recipes
    from workbench.data.tokenizer import open_tokenizer

    ladder_recipes(job.recipe)
    encode_text(open_tokenizer(job.recipe.data.tokenizer), job.texts)


def measure(job: Job) -> Mapping[str, pd.DataFrame]:
    """A row per rung; its training in the directory."""
    from workbench.analyses.ladder.rungs import ladder

    settings = {"seeds": [job.seed], "device": job.device, "cache": job.cache, "on_progress": job.progress}
    return {"ladder": ladder(job.recipe, job.texts, job.directory, **settings)}


ladder = Analysis(
    name="ladder",
    summary="Train a recurrent model without its mechanisms, then with one more each time, to see what each is worth.",
    settings=LadderSettings,
    reads=Documents(n_bytes=200_000),
    takes="recipe",
    tables=[
        Table(
            "ladder",
            key=("model", "seed", "rung"),
            columns=[
                Column("mechanism", "that the rung adds", kind="text"),
                Column("bits_per_byte", "over plain windows of the model's n_ctx", unit="bits per byte"),
                Column("delta_bits", "change from the rung below, of the same seed", unit="bits per byte"),
                Column("n_parameters", kind="integer"),
                Column("n_steps", "of its training", kind="integer"),
            ],
            trailing=[Column("n_tokens", "that are scored", kind="integer"), Column("n_bytes", kind="integer")],
            meaning="One trained rung: the recipe with every mechanism up to this one, from none of them on.",
        )
    ],
    measure=measure,
    cost=cost,
    requires=lambda cfg: "" if cfg.extensions.recurrence is not None else "has no depth recurrence",
    check=check,
    function="workbench.analyses.ladder.rungs:ladder",
)
