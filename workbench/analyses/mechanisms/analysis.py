"""The record of `mechanisms`: bits per byte of a recurrent model with each of its mechanisms turned off in turn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import Field

from workbench.analyses.mechanisms.cost import cost
from workbench.extend import Analysis, Column, Documents, Job, Settings, Table

if TYPE_CHECKING:
    import pandas as pd


class MechanismsSettings(Settings):
    """Which windows."""

    n_ctx: int | None = Field(default=None, description="tokens per window, by default the model's n_ctx", ge=2)


def check(job: Job) -> None:
    """Raise the ValueErrors of windows and text."""
    from workbench.analyses.evaluate.bits import check_evaluation

    check_evaluation(job.subject.model, job.texts, n_ctx=job.settings.n_ctx)


def measure(job: Job) -> Mapping[str, pd.DataFrame]:
    """A row per mechanism."""
    from workbench.analyses.mechanisms.switches import mechanisms

    own = job.subject
    settings = {"n_ctx": job.settings.n_ctx, "seed": job.seed, "name": own.name, "on_progress": job.progress}
    return {"mechanisms": mechanisms(own.model, job.texts, **settings).assign(seed=own.seed)}


def _bits(name: str, meaning: str) -> Column:
    return Column(name, meaning, unit="bits per byte")


mechanisms = Analysis(
    name="mechanisms",
    summary="Bits per byte of a recurrent model with each of its mechanisms turned off in turn.",
    settings=MechanismsSettings,
    reads=Documents(n_bytes=200_000),
    tables=[
        Table(
            "mechanisms",
            key=("model", "seed", "mechanism"),
            columns=[
                _bits("base_bits", "of the model as it is"),
                _bits("off_bits", "with the mechanism set to its identity"),
                _bits("delta_bits", "off_bits − base_bits: positive where the mechanism helps"),
                _bits("stderr", "of delta_bits, paired over stretches of n_ctx tokens"),
                _bits("ci_low", "95 % bootstrap interval of delta_bits over stretches of n_ctx tokens"),
                _bits("ci_high", ""),
                Column("n_tokens", "that are scored", kind="integer"),
                Column("n_bytes", "of the text, in UTF-8", kind="integer"),
                Column("n_ctx", "tokens per window", kind="integer"),
            ],
            meaning="One mechanism of a recurrent model turned off, over plain windows.",
        )
    ],
    measure=measure,
    cost=cost,
    requires=lambda cfg: "" if cfg.extensions.recurrence is not None else "has no depth recurrence",
    check=check,
    function="workbench.analyses.mechanisms.switches:mechanisms",
)
