"""The record of `attention`: where every head looks, and mean maps of some layers."""

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
    """The tables, mean maps from a pass of their own over the tokens."""
    from workbench.analyses.attention.patterns import attention_patterns
    from workbench.analyses.attention.statistics import attention_tables

    subject, own = job.subject, job.settings
    stats, left_out = attention_tables(
        subject.model, job.tokens, own.layers, seed=job.seed, name=subject.name, n_repeated=own.n_repeated,
        on_progress=job.progress,
    )  # fmt: skip
    named = {"seed": subject.seed, "name": subject.name}
    maps = attention_patterns(subject.model, job.tokens, own.layers, window=own.window, **named)
    twin = {"attention_stats_blocks": left_out.assign(seed=subject.seed)} if len(left_out) else {}
    return {"attention_stats": stats.assign(seed=subject.seed), "attention_patterns": maps} | twin


attention = Analysis(
    name="attention",
    summary="Entropy, mass on position 0, induction score and previous-token score of every head; mean maps of some "
    "layers.",
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
            "attention_patterns",
            key=("model", "seed", "layer", "head"),
            columns=[
                Column("n_ctx", "first tokens of each window that are read", unit="tokens", kind="integer"),
                Column("n_sequences", "windows", kind="integer"),
                Column("rest", "mean attention from queries ≥ 1 that is not on position 0"),
                Column("pattern", "JSON: a list per query from 1, of a share per key from 1", kind="text"),
            ],
            meaning="A head's mean map over windows without position 0, its rows made to sum to 1.",
        ),
    ],
    measure=measure,
    over_training=True,
    cost=cost,
    check=check,
    function="workbench.analyses.attention.statistics:attention",
)
