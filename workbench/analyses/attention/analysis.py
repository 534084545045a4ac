"""The record of `attention`: where every head looks, and of what kind it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from workbench.analyses.attention.cost import cost
from workbench.analyses.attention.settings import AttentionSettings
from workbench.extend import Analysis, Column, Job, Table, Windows

if TYPE_CHECKING:
    import pandas as pd


def check(job: Job) -> None:
    """Raise ValueError for layers that the model lacks."""
    from workbench.models.checks import choose

    choose("layers", job.settings.layers, job.subject.model.cfg.n_layers)


def measure(job: Job) -> Mapping[str, pd.DataFrame]:
    """The tables, from one pass over the tokens and one over random tokens said twice."""
    from workbench.analyses.attention.statistics import measure_attention

    subject, own = job.subject, job.settings
    found = measure_attention(
        subject.model, job.tokens, own.layers, seed=job.seed, name=subject.name, n_repeated=own.n_repeated,
        on_progress=job.progress,
    )  # fmt: skip
    return {name: table.assign(seed=subject.seed) for name, table in found.items() if len(table)}


attention = Analysis(
    name="attention",
    summary="Entropy, mass on position 0, induction score, previous-token score and kind of every head.",
    settings=AttentionSettings,
    reads=Windows(n_tokens=16_384),
    tables=[
        Table(
            "attention_stats",
            key=("model", "seed", "layer", "head"),
            columns=[
                Column("entropy", "mean over queries of −Σ p ln p", unit="nats"),
                Column("entropy_share", "entropy over that of attention spread evenly over the past", unit="1"),
                Column("bos_mass", "mean attention to position 0 from queries ≥ 1"),
                Column("n_ctx", "length of a window", unit="tokens", kind="integer"),
                Column("n_tokens", kind="integer"),
            ],
            trailing=[
                Column("bos_uniform", "bos_mass of attention spread evenly over the past"),
                Column("induction", "on random tokens said twice: mean attention to the token after the first mention"),
                Column("previous_token", "on the same: mean attention from queries ≥ 1 to the token before"),
                Column("n_half", "random tokens, each said twice", unit="tokens", kind="integer"),
                Column("n_repeated", "sequences of them", kind="integer"),
            ],
            blocks=["entropy", "entropy_share", "bos_mass"],
            meaning="Where one head looks.",
        ),
        Table(
            "head_kinds",
            key=("model", "seed", "layer", "head", "measure"),
            columns=[
                Column("value", "of the measure"),
                Column("uniform", "what attention spread evenly over the past has"),
                Column("z", "value − mean over the model's heads, over their standard deviation", unit="1"),
                Column("threshold", "value from which on a head is of the kind that the measure names"),
                Column("is_kind", "1 for the first measure, in this order, that reaches its threshold", kind="integer"),
            ],
            meaning="What kind of head one is, by thresholds: induction, previous token, position 0, local (mean "
            "attention to the four latest positions), spread evenly. No row with is_kind 1: of none of these.",
            is_shown=False,
        ),
    ],
    measure=measure,
    over_training=True,
    cost=cost,
    check=check,
    function="workbench.analyses.attention.statistics:attention",
)
