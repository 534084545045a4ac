"""The record of `content-share`: at which kinds of words the features of each head fire."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from workbench.analyses.content_share.cost import cost
from workbench.analyses.content_share.figures import draw_content_share
from workbench.analyses.sae_train.shown import ShownSettings, shown_stack
from workbench.extend import Analysis, Column, Documents, Integers, Job, Table

if TYPE_CHECKING:
    import pandas as pd


class ContentShareSettings(ShownSettings):
    """Which SAEs, which of their features, and how the words are tagged."""

    layers: Integers | None = Field(default=None, description="layers, such as 0,2,5-7; by default all of the SAEs")
    heads: Integers | None = Field(default=None, description="heads, such as 0,2,5-7; by default all of the SAEs")
    n_contexts: int = Field(
        default=20, description="contexts of a feature: its strongest token in each of so many documents", ge=1
    )
    min_activations: int = Field(default=20, description="tokens on which a feature that counts fires", ge=1)
    min_documents: int = Field(default=5, description="documents in which it fires", ge=1)
    n_permutations: int = Field(default=999, description="permutations of the labels, for p", ge=1)
    n_bootstrap: int = Field(default=2000, description="draws of the intervals over features", ge=100)
    tagger: str | None = Field(
        default=None, description="spaCy pipeline, or its folder; by default the small English one"
    )


def check(job: Job) -> None:
    """Raise ValueError for SAEs that are not there, not the model's, or not of these layers and heads, for a model
    without tokenizer, and for a tagger that was named and is not there."""
    from workbench.analyses.content_share import words
    from workbench.analyses.feature_effects.effects import chosen_saes
    from workbench.analyses.text_quality.tagging import load_word_tagger
    from workbench.models.sae_places import saes_by_hook

    own, model = job.settings, job.subject.model
    words.word_documents(model, (), ())
    saes_by_hook(model, chosen_saes(shown_stack(job, is_checked=False), own.layers, own.heads))
    if own.tagger is not None:
        load_word_tagger(own.tagger)


def measure(job: Job) -> Mapping[str, pd.DataFrame]:
    """The tables, from one pass over the documents; empty where there is no tagger, without values by block of fewer
    than 8 documents."""
    import pandas as pd

    from workbench.analyses.content_share import share

    own, subject = job.settings, job.subject
    names = {"n_contexts", "min_activations", "min_documents", "n_permutations", "n_bootstrap", "tagger"}
    about: dict[str, Any] = {"name": subject.name, "seed": subject.seed, "on_progress": job.progress}
    given = (subject.model, shown_stack(job), job.texts, own.layers, own.heads)
    found = share.content_share(*given, **own.model_dump(include=names), **about)
    return {
        table.name: found[table.name] if len(found[table.name].columns) else pd.DataFrame(columns=list(table.leading))
        for table in content_share.tables
        if table.name in found
    }


def say(directory: Path) -> dict[str, Any]:
    """The head of the largest excess over the null, and how many stand apart from it."""
    from reports.tables import read_table

    table: Any = read_table(directory, "content_share")
    known = table[table["share"].notna()] if len(table) else table
    if not len(known):
        return {}
    top = known.loc[known["excess_over_null"].abs().idxmax()]
    return {
        "text_rate": float(top["text_rate"]),
        "mean_share": float(known["share"].mean()),
        "farthest_head": f"{top['layer']}.{top['head']}",
        "share": float(top["share"]),
        "heads_with_q_below_0.05": int((known["q"] <= 0.05).sum()),
    }


_SAE = [Column("l1", "sparsity coefficient"), Column("hook", kind="text")]

content_share = Analysis(
    name="content-share",
    summary="At which words a head's features fire: the share of content words, beside labels permuted in documents.",
    settings=ContentShareSettings,
    reads=Documents(n_bytes=200_000),
    needs=("sae-train",),
    tables=[
        Table(
            "content_share",
            key=("model", "seed", "layer", "head"),
            columns=[
                Column("share", "content / (content + function words), mean over features", unit="1"),
                Column("ci_low", "of share, over features", unit="1"),
                Column("ci_high", "of share, over features", unit="1"),
                Column("text_rate", "the same of all tokens of the text", unit="1"),
                Column("excess", "share − text_rate", unit="1"),
                Column("null_mean", "share expected of labels permuted within documents", unit="1"),
                Column("excess_over_null", "share − null_mean", unit="1"),
                Column("null_std", "of the share over permutations", unit="1"),
                Column("p", "two-sided, of the permutations", unit="1"),
                Column("q", "Benjamini–Hochberg over the rows of a model and seed", unit="1"),
                Column("n_features", "features that share is the mean of", kind="integer"),
                Column("n_contexts", "their contexts at content and function words", kind="integer"),
            ],
            trailing=[
                Column("n_documents", "documents read", kind="integer"),
                Column("n_tokens", "tokens at which features are measured", kind="integer"),
                Column("tagger", "pipeline that tagged the words", kind="text"),
                *_SAE,
            ],
            blocks=["share", "text_rate", "excess"],
            meaning="The features of one head's SAE; head -1 is the whole hook. share, its interval and p are empty "
            "for a head without a feature that fires often enough. The interval is a 95 % bootstrap over features.",
        ),
        Table(
            "content_share_features",
            key=("model", "seed", "layer", "head", "feature"),
            columns=[
                Column("share", "content / (content + function words) of its contexts; empty with neither", unit="1"),
                Column("n_content", "contexts at content words", kind="integer"),
                Column("n_function", "contexts at function words", kind="integer"),
                Column("n_contexts", "contexts, each of another document", kind="integer"),
                Column("n_activations", "tokens on which it fires", kind="integer"),
                Column("n_documents", "documents in which it fires", kind="integer"),
                Column("words", "JSON [text]: the words of its strongest contexts, the strongest first", kind="text"),
            ],
            meaning="A feature that fires often enough for content_share.",
            is_shown=False,
        ),
    ],
    measure=measure,
    figures=(draw_content_share,),
    cost=cost,
    check=check,
    facts=say,
    notes=lambda settings: (
        "Content is a class of words, not meaning: nouns, verbs, adjectives and adverbs against pronouns, determiners, "
        "prepositions, auxiliaries, conjunctions and particles. A feature that fires at one noun whatever it says has "
        "a share of 1, and so has one that fires at word endings of nouns.",
        "Share above the text’s rate alone says little, since documents differ and long words have more tokens: the "
        "null exchanges labels among the tokens of each document.",
    ),
    function="workbench.analyses.content_share.share:content_share",
)
