"""Attention maps of example sentences as the page of heads carries them: two planes of bytes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from reports.head_rows import Place, seed_name
from reports.study import Study

SCALE = 10_000  # a weight of 1: the table has four decimals
MAX_WEIGHTS = 4_000_000  # that the page carries; of more, each model's first seed
COLUMNS = ("model", "seed", "layer", "head", "sentence", "weights")
SENTENCE_COLUMNS = ("model", "seed", "sentence", "kind", "n_lead", "tokens")
Sentence = dict[str, Any]  # tokens, kind, n_lead


@dataclass(frozen=True)
class Maps:
    """Example sentences, and what each head gives to their tokens."""

    sentences: dict[tuple[str, str], list[Sentence]]
    """of each model and seed, in order"""
    places: list[Place]
    """heads in the order of their weights"""
    weights: np.ndarray
    """uint16, `SCALE` for 1: of each head each sentence's lower triangle by rows"""
    notes: tuple[str, ...] = ()
    """what of them is not there, in sentences"""

    def planes(self) -> bytes:
        """The low bytes of all weights, then the high ones: together they pack to fewer than in pairs."""
        return (self.weights & 255).astype(np.uint8).tobytes() + (self.weights >> 8).astype(np.uint8).tobytes()


def read_maps(study: Study) -> Maps:
    """Return the maps of a study's examples; none, and why, where a table is missing or not what its contract says."""
    tables = [study.tables.get(name, pd.DataFrame()) for name in ("attention_sentences", "attention_examples")]
    for name, df, columns in zip(
        ("attention_sentences", "attention_examples"), tables, (SENTENCE_COLUMNS, COLUMNS), strict=True
    ):
        if not {*columns} <= set(df.columns) or df.empty:
            return Maps({}, [], np.zeros(0, np.uint16), (f"No attention maps: {name}.csv is not there or holds none.",))
    try:
        sentences = _read_sentences(tables[0])
        return _read_weights(tables[1], sentences)
    except (ValueError, TypeError, RecursionError) as error:
        return Maps({}, [], np.zeros(0, np.uint16), (f"No attention maps: {error}.",))


def _read_sentences(df: pd.DataFrame) -> dict[tuple[str, str], list[Sentence]]:
    found: dict[tuple[str, str], list[Sentence]] = {}
    for row in df.sort_values("sentence", kind="stable").itertuples():
        tokens = json.loads(str(row.tokens))
        if not isinstance(tokens, list) or not tokens or not all(isinstance(token, str) for token in tokens):
            raise ValueError(f"attention_sentences.csv: tokens of sentence {row.sentence} are no list of strings")
        own = {"tokens": tokens, "kind": str(row.kind), "n_lead": int(float(str(row.n_lead)))}
        found.setdefault((str(row.model), seed_name(row.seed)), []).append(own)
    return found


def _read_weights(df: pd.DataFrame, sentences: dict[tuple[str, str], list[Sentence]]) -> Maps:
    df, notes = _few_enough(df, sentences)
    order = df.sort_values(["layer", "head", "sentence"], kind="stable")
    texts: dict[Place, list[object]] = {}
    for model, seed, layer, head, text in order[["model", "seed", "layer", "head", "weights"]].itertuples(index=False):
        texts.setdefault((str(model), seed_name(seed), int(layer), int(head)), []).append(text)
    parts = []
    for (model, seed, layer, head), own in texts.items():
        wanted = sentences.get((model, seed), [])
        if len(own) != len(wanted):
            raise ValueError(
                f"attention_examples.csv: layer {layer}, head {head} has {len(own)} sentences; expected {len(wanted)}"
            )
        for text, sentence in zip(own, wanted, strict=True):
            parts.append(_triangle(text, len(sentence["tokens"]), f"layer {layer}, head {head}"))
    places = list(texts)
    return Maps(sentences, places, np.concatenate(parts) if parts else np.zeros(0, np.uint16), notes)


def _few_enough(
    df: pd.DataFrame, sentences: dict[tuple[str, str], list[Sentence]]
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    per_head = {
        run: sum(len(own["tokens"]) * (len(own["tokens"]) + 1) // 2 for own in of) for run, of in sentences.items()
    }
    heads = df.drop_duplicates(["model", "seed", "layer", "head"])
    total = sum(
        per_head.get((str(model), seed_name(seed)), 0)
        for model, seed in zip(heads["model"], heads["seed"], strict=True)
    )
    if total <= MAX_WEIGHTS:
        return df, ()
    first = df.groupby("model")["seed"].transform("first")
    return df[df["seed"] == first], (
        f"Attention maps are of each model’s first seed: those of all seeds are {total:,} weights; "
        "attention_examples.csv has them.",
    )


def _triangle(text: object, n: int, where: str) -> np.ndarray:
    rows: Sequence[Any] = json.loads(str(text))
    is_whole = isinstance(rows, list) and [len(row) for row in rows] == list(range(1, n + 1))
    values = np.array([weight for row in rows for weight in row], dtype=float) if is_whole else np.zeros(0)
    if not is_whole or not ((values >= 0) & (values <= 1)).all():
        raise ValueError(f"attention_examples.csv: weights of {where} are no lower triangle of {n} tokens")
    return np.rint(values * SCALE).astype(np.uint16)
