"""The tables of a study: those of its jobs over all models and seeds, and what only all of them together give."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from reports.tables import find_tables, read_table
from workbench.data.ngrams import ngram_baselines
from workbench.extend import Merged
from workbench.models.cross_entropy import perplexity
from workbench.study.jobs import TRAIN, Context, PlannedJob
from workbench.study.measuring import join_tables
from workbench.training.recipe import phase_model
from workbench.training.training_data import evaluation_windows, open_feed

BASELINES = ("unigram", "bigram")


def merge_tables(jobs: Sequence[PlannedJob], context: Context) -> dict[str, pd.DataFrame]:
    """Every table of the study over all models and seeds, and the baselines of the reference's held-out text.

    jobs: those that are done.
    """
    tables = join_tables([_read(job, context, ("train_log", "train_log_blocks")) for job in jobs if job.kind == TRAIN])
    configs = {own.name: phase_model(own, -1) for own in context.trainings}
    for analysis in context.recipe.opened_with():
        own = [job for job in jobs if job.kind == analysis.name]
        if not own:
            continue
        known = [table.name for table in analysis.tables]
        tables |= join_tables([_read(job, context, known) for job in own])
        if analysis.merge is not None:
            directories = tuple(context.directory / job.name for job in own)
            settings = context.recipe.settings_of(analysis.name)
            references = context.recipe.references(list(configs))
            tables |= analysis.merge(
                Merged(dict(tables), settings, directories, context.directory, configs, references)
            )
    if "train_log" in tables:
        tables["baselines"] = _baselines(context)
    return tables


def _read(job: PlannedJob, context: Context, known: Sequence[str]) -> dict[str, pd.DataFrame]:
    directory = context.directory / job.name
    return {name: read_table(directory, name) for name in find_tables(directory) if name in known}


def _baselines(context: Context) -> pd.DataFrame:
    recipe = context.trainings[0]
    feed = open_feed(recipe, context.cache)
    found = ngram_baselines(feed.train, evaluation_windows(feed, recipe))
    own = [(name, found[name]) for name in BASELINES]
    rows = [(name, model.nats, model.n_tokens, perplexity(model.nats)) for name, model in own]
    return pd.DataFrame(rows, columns=["name", "nats", "n_tokens", "perplexity"])
