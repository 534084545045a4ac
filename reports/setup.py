"""What a study was made with, in one line: shape of the models, training tokens, held-out tokens of each analysis."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from reports.study import Study
from reports.table_cells import count_range

# key of a model in study.json -> how it is said
SHAPE = (
    ("n_layers", "layers"),
    ("n_heads", "heads per layer"),
    ("d_head", "d_head"),
    ("d_model", "d_model"),
    ("n_ctx", "tokens of context"),
)
HELD_OUT = ("n_eval_tokens", "n_tokens")  # columns that count the tokens an analysis read
NOT_ANALYSES = ("train_log", "baselines")


def describe_setup(study: Study) -> str:
    """Return the line; what the study does not say is left out."""
    return "; ".join(text for text in (shape(study), trained_on(study), read_by(study)) if text)


def shape(study: Study) -> str:
    """Return the models' shape, a range where they differ: "4 layers, 8 heads per layer, d_head 16"."""
    said = []
    for key, word in SHAPE:
        values = count_range(value for model in study.record.get("models", ()) if (value := model.get(key)) is not None)
        if values:
            said.append(f"{word} {values}" if word.startswith("d_") else f"{values} {word}")
    return ", ".join(said)


def trained_on(study: Study) -> str:
    """Return how many tokens each model was trained on: the last count of the log."""
    log = study.tables.get("train_log", pd.DataFrame())
    if not {"model", "seed", "n_tokens"} <= set(log.columns) or log.empty:
        return ""
    text = count_range(log.groupby(["model", "seed"])["n_tokens"].max())
    return f"{text} training tokens" if text else ""


def read_by(study: Study) -> str:
    """Return how many held-out tokens each table is of: "held-out tokens: 16,384 (topology_stats), …"."""
    names: dict[str, list[str]] = {}
    for name, df in study.tables.items():
        column = next((own for own in HELD_OUT if own in df), None)
        if column and name not in NOT_ANALYSES and not name.endswith("_blocks") and study.contracts[name].is_shown:
            text = count_range(_numbers(df[column]))
            names.setdefault(text, []).append(name)
    names.pop("", None)
    if not names:
        return ""
    return "held-out tokens: " + ", ".join(f"{text} ({', '.join(own)})" for text, own in names.items())


def _numbers(column: pd.Series) -> Iterable[float]:
    return column.dropna() if pd.api.types.is_numeric_dtype(column) else ()
