"""The record of `attention-patterns`: what heads look at, on the mean and token by token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from workbench.analyses.attention_patterns.cost import cost
from workbench.analyses.attention_patterns.settings import AttentionPatternsSettings
from workbench.extend import Analysis, Column, Job, Table, Windows

if TYPE_CHECKING:
    import pandas as pd


def check(job: Job) -> None:
    """Raise ValueError for layers that the model lacks."""
    from workbench.models.checks import choose

    choose("layers", job.settings.layers, job.subject.model.cfg.n_layers)


def measure(job: Job) -> Mapping[str, pd.DataFrame]:
    """The tables, mean maps first."""
    from workbench.analyses.attention_patterns.examples import attention_examples, find_examples
    from workbench.analyses.attention_patterns.patterns import attention_patterns

    model, own = job.subject.model, job.settings
    named = {"seed": job.subject.seed, "name": job.subject.name}
    maps = attention_patterns(model, job.tokens, own.layers, window=own.window, **named)
    job.progress(0.7)
    asked = {"sentence": own.sentence, "n_sentences": own.n_sentences, "max_tokens": own.max_tokens}
    sentences, examples = attention_examples(model, find_examples(model, job.tokens, **asked), own.layers, **named)
    job.progress(1.0)
    return {"attention_sentences": sentences, "attention_patterns": maps, "attention_examples": examples}


attention_patterns = Analysis(
    name="attention-patterns",
    summary="Where every head looks in a few example sentences, token by token; mean maps of some layers.",
    settings=AttentionPatternsSettings,
    reads=Windows(n_tokens=16_384),
    tables=[
        Table(
            "attention_sentences",
            key=("model", "seed", "sentence"),
            columns=[
                Column("kind", "sentence, window, said twice, given", kind="text"),
                Column("n_lead", "tokens that the tokenizer puts before a text", unit="tokens", kind="integer"),
                Column("n_tokens", "with those", unit="tokens", kind="integer"),
                Column("tokens", "JSON: the text of each, decoded together and then cut", kind="text"),
                Column("ids", "JSON: the id of each", kind="text"),
            ],
            meaning="An example sentence: the same for all models of one tokenizer and text.",
            is_shown=False,
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
        Table(
            "attention_examples",
            key=("model", "seed", "layer", "head", "sentence"),
            columns=[
                Column("n_tokens", "of the sentence", unit="tokens", kind="integer"),
                Column(
                    "weights",
                    "JSON: a list per query from position 0, of a weight per key up to it, to four decimals",
                    kind="text",
                ),
            ],
            meaning="What one head looks at in one example sentence. Without position 0: weights[q][k] / "
            "(1 − weights[q][0]), k ≥ 1.",
            is_shown=False,
        ),
    ],
    measure=measure,
    over_training=True,
    cost=cost,
    check=check,
    function="workbench.analyses.attention_patterns.patterns:attention_patterns",
)
