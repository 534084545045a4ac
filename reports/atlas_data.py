"""The feature atlas as bytes: a header in JSON and plain arrays behind it, what a browser searches in milliseconds.

A context is a window of tokens with activations. Windows are laid over each other (`reports.overlap`), so that what
they share is stored once; tokens are numbers into one list of strings, the frequent ones first. Activations above 0,
logits and cosines are whole numbers in units of the last decimal that the feature's JSON has: exactly what it says. An
activation that is null there, because its position does not count, is stored as missing.

Layout: 4 bytes, the header's length (little endian); the header, JSON in UTF-8; the arrays, little endian, each at the
offset from the end of the header that it names, a multiple of 8.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from reports.overlap import overlay
from reports.tables import replace_surrogates, unplaced

EFFECTS = ("effect", "effect_low", "effect_high", "effect_estimate")  # of ablating a feature, where it was measured
NUMBERS = ("layer", "head", "feature", "density", "max_act", "mean_act")
LARGEST, MISSING = 2**31 - 1, -(2**31)  # of a number in units of its last decimal; what stands for nan and infinity


@dataclass
class Columns:
    """The arrays as they grow, feature by feature. Counts are stored, not offsets: small numbers pack better."""

    n_contexts: list[int] = field(default_factory=list)  # a feature: the strongest, then those of intervals
    n_strongest: list[int] = field(default_factory=list)  # a feature: how many of them are the strongest
    interval_low: list[float] = field(default_factory=list)  # a context of an interval: where that begins
    interval_high: list[float] = field(default_factory=list)  # and where it ends
    window: list[int] = field(default_factory=list)  # a context: which of the windows
    peak: list[int] = field(default_factory=list)  # a context: place of the strongest token in its window
    value: list[float] = field(default_factory=list)  # a context: its activation at the peak
    n_active: list[int] = field(default_factory=list)  # a context: how many of its tokens are active
    active_place: list[int] = field(default_factory=list)  # an active token: its place in the window
    active_value: list[float] = field(default_factory=list)  # an active token: its activation; nan: not measured
    has_stronger: bool = False  # whether some token of a strongest context is stronger than the context's peak
    windows: dict[tuple[str, ...], int] = field(default_factory=dict)  # tokens of a window -> its number


class Vocabulary:
    """Token strings numbered as they come; `renumber` then puts the frequent ones first."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}
        self.counts: Counter[int] = Counter()

    def number(self, token: object) -> int:
        """Return the number of a token string, a new one if it has none; lone surrogates become U+FFFD."""
        text = str(token)
        number = self.numbers.get(text)
        if number is None:
            number = self.numbers[text] = len(self.numbers)
        self.counts[number] += 1
        return number

    def renumber(self) -> tuple[list[str], np.ndarray]:
        """Return the strings, most frequent first, and old number -> new number."""
        order = sorted(range(len(self.numbers)), key=lambda number: (-self.counts[number], number))
        strings = list(self.numbers)
        new = np.empty(len(order), dtype=np.uint32)
        new[order] = np.arange(len(order), dtype=np.uint32)
        return [replace_surrogates(strings[number]) for number in order], new


def encode_atlas(table: pd.DataFrame, extra: Mapping[str, Any]) -> bytes:
    """Return the atlas of a feature_atlas table; `extra` joins the header (title, ablation, …).

    Raises:
        ValueError: if a column of numbers holds text, or a JSON cell is not what the column contract says; the row is
            named.
    """
    df = table.reset_index(drop=True)
    for column in NUMBERS:
        if len(df) and not pd.api.types.is_numeric_dtype(df[column]):
            raise ValueError(f"feature_atlas: {column} holds text; expected numbers")
    if broken := unplaced(df, "feature_atlas", NUMBERS):
        raise ValueError(f"feature_atlas: {broken[0]} is no whole number in some row; expected one in each")
    vocabulary, columns = Vocabulary(), Columns()
    models, seeds = list(dict.fromkeys(df["model"])), seeds_of(df)
    of_intervals = df["interval_contexts"] if "interval_contexts" in df else [""] * len(df)
    for row, (text, of_interval) in enumerate(zip(df["top_contexts"], of_intervals, strict=True)):
        add_contexts(
            columns, read_cell(text, "top_contexts", row), read_cell(of_interval, "interval_contexts", row), row
        )
    top_tokens = [vocabulary.number(token) for token in df["top_token"]]
    logits = {name: read_pairs(df, name) for name in ("logit_promoted", "logit_suppressed")}
    numbered = {name: [vocabulary.number(token) for row in rows for token, _ in row] for name, rows in logits.items()}
    windows = [tuple(vocabulary.number(token) for token in window) for window in columns.windows]
    line, places = overlay(windows)
    strings, new = vocabulary.renumber()
    arrays = feature_arrays(df, models, seeds)
    arrays |= context_arrays(columns)
    lengths = [len(window) for window in windows]
    arrays["context_start"] = fit([places[window] for window in columns.window])
    arrays["context_n_tokens"] = fit([lengths[window] for window in columns.window])
    arrays["line_token"] = fit(new[np.array(line, dtype=np.int64)])
    arrays["top_token"] = fit(new[np.array(top_tokens, dtype=np.int64)])
    for name, tokens in numbered.items():
        arrays |= {f"{name}_n": fit([len(pairs) for pairs in logits[name]])}
        arrays |= {f"{name}_token": fit(new[np.array(tokens, dtype=np.int64)])}
        arrays |= decimal_arrays(name, *flat(logits[name]))
    arrays |= relation_arrays(df, models) | histogram_arrays(df)
    header = {
        "models": models,
        "seeds": seeds,
        "vocabulary": strings,
        "missing": MISSING,
        "has_stronger": columns.has_stronger,
        **extra,
    }
    return join(header, arrays)


def seeds_of(df: pd.DataFrame) -> list[str]:
    """Return the seeds of the table as text, in order of appearance; one nameless seed where it has no such column."""
    return [str(seed) for seed in dict.fromkeys(df["seed"])] if "seed" in df else [""]


def read_cell(text: object, column: str, row: int) -> list[Any]:
    """Return the JSON list of a cell; an empty cell or null is an empty list.

    Raises:
        ValueError: if it is neither; the row counts from 0, without the header.
    """
    if not isinstance(text, str) or not text:
        return []
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"feature_atlas: {column} of row {row} is not JSON ({error}); expected a JSON list") from error
    if value is None:
        return []
    if not isinstance(value, list):
        raise ValueError(f"feature_atlas: {column} of row {row} is a {type(value).__name__}; expected a JSON list")
    return value


def add_contexts(columns: Columns, strongest: list[Any], of_intervals: list[Any], row: int) -> None:
    """Add a feature's contexts: its strongest, then those of intervals of its activations.

    Raises:
        ValueError: if a context lacks tokens or acts, has unlike numbers of them, or one of an interval has no bounds.
    """
    columns.n_contexts.append(len(strongest) + len(of_intervals))
    columns.n_strongest.append(len(strongest))
    for place, context in enumerate([*strongest, *of_intervals]):
        if not isinstance(context, dict) or not isinstance(context.get("tokens"), list):
            raise ValueError(
                f"feature_atlas: a context of row {row} has no list of tokens; expected tokens, acts, peak, value"
            )
        tokens, acts = context["tokens"], context.get("acts", [])
        if len(tokens) != len(acts) or not tokens or not all(isinstance(token, str) for token in tokens):
            raise ValueError(
                f"feature_atlas: a context of row {row} has {len(tokens)} tokens and {len(acts)} acts; "
                "expected as many of each, at least one, tokens as strings"
            )
        value = context.get("value", 0.0)
        if not all(act is None or isinstance(act, int | float) for act in acts) or not isinstance(value, int | float):
            raise ValueError(
                f"feature_atlas: a context of row {row} has acts or a value that are no numbers; expected numbers, or "
                "null for an activation that is not measured"
            )
        columns.window.append(columns.windows.setdefault(tuple(tokens), len(columns.windows)))
        known = [-math.inf if act is None else float(act) for act in acts]
        peak = context.get("peak", known.index(max(known)))
        if not isinstance(peak, int) or not 0 <= peak < len(acts):
            raise ValueError(
                f"feature_atlas: a context of row {row} has its peak at {peak!r}; expected 0…{len(acts) - 1}"
            )
        columns.peak.append(peak)
        columns.value.append(context.get("value", known[peak]))
        columns.has_stronger |= place < len(strongest) and max(known) > known[peak]
        shown = {place: act for place, act in enumerate(acts) if act is None or act > 0}
        columns.n_active.append(len(shown))
        columns.active_place += shown.keys()
        columns.active_value += [math.nan if act is None else act for act in shown.values()]
    for context in of_intervals:
        low, high = context.get("low"), context.get("high")
        if not isinstance(low, int | float) or not isinstance(high, int | float) or not low < high:
            raise ValueError(
                f"feature_atlas: an interval of row {row} is from {low!r} to {high!r}; expected two numbers, low < high"
            )
        columns.interval_low.append(low)
        columns.interval_high.append(high)


def decimal_arrays(name: str, values: Sequence[float], counts: Sequence[int]) -> dict[str, np.ndarray]:
    """Return `<name>_value`, numbers in units of their feature's last decimal, and `<name>_decimals`, one a feature.

    `value / 10**decimals` is the number exactly, or to nine digits where it has more; `MISSING` stands for nan and
    infinity. counts: how many of the values are each feature's, in order.
    """
    numbers, n = np.array(values, dtype=np.float64), len(counts)
    feature = np.repeat(np.arange(n), counts)
    is_known = np.isfinite(numbers)
    known = np.where(is_known, numbers, 0.0)
    largest = np.full(n, LARGEST * 1e-300)
    np.maximum.at(largest, feature, np.abs(known))
    decimals = np.floor(np.log10(LARGEST / largest)).astype(np.int16)  # as many as there is room for
    is_open = np.ones(n, dtype=bool)
    for places in range(decimals.max(initial=0)):
        is_open &= places < decimals
        if not is_open.any():
            break
        own = is_open[feature]
        n_cut = np.bincount(feature[own], np.round(known[own], places) != known[own], n)
        decimals[is_open & (n_cut == 0)] = places
    units = np.where(is_known, np.rint(known * 10.0 ** decimals[feature]), MISSING)
    is_short = not units.size or np.abs(units).max() < 2**15
    return {f"{name}_value": units.astype(np.int16 if is_short else np.int32), f"{name}_decimals": decimals}


def read_pairs(df: pd.DataFrame, column: str) -> list[list[Any]]:
    """Return the [key, value] pairs of every row of a JSON column; none where the table has no such column.

    Raises:
        ValueError: if a cell holds something else.
    """
    if column not in df:
        return [[] for _ in range(len(df))]
    rows = [read_cell(text, column, row) for row, text in enumerate(df[column])]
    for row, pairs in enumerate(rows):
        if not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
            raise ValueError(f"feature_atlas: {column} of row {row} holds no pairs; expected [[token, value], …]")
        if not all(isinstance(value, int | float) for _, value in pairs):
            raise ValueError(f"feature_atlas: {column} of row {row} holds values that are no numbers; expected numbers")
    return rows


def flat(rows: Sequence[list[Any]]) -> tuple[list[float], list[int]]:
    """Return the values of all pairs in one list, and how many each row has."""
    return [float(value) for pairs in rows for _, value in pairs], [len(pairs) for pairs in rows]


def feature_arrays(df: pd.DataFrame, models: list[str], seeds: list[str]) -> dict[str, np.ndarray]:
    """Return the arrays with one number a feature."""
    seed = df["seed"].astype("str") if "seed" in df else pd.Series([""] * len(df), dtype="str")
    dead = df["dead"].astype("str").str.lower().isin(["true", "1", "1.0"]) if "dead" in df else df["density"] == 0
    arrays = {
        "model": fit(df["model"].map({model: number for number, model in enumerate(models)}).to_numpy()),
        "seed": fit(seed.map({name: number for number, name in enumerate(seeds)}).to_numpy()),
        "layer": fit(df["layer"].to_numpy()),
        "head": df["head"].to_numpy(dtype=np.int16),  # -1: an SAE that reads its hook whole
        "feature": fit(df["feature"].to_numpy()),
        "dead": dead.to_numpy(dtype=np.uint8),
    }
    for column in ("density", "max_act", "mean_act", *(name for name in EFFECTS if name in df)):
        arrays[column] = df[column].to_numpy(dtype=np.float64, na_value=np.nan)
    return arrays


def context_arrays(columns: Columns) -> dict[str, np.ndarray]:
    """Return the arrays with one number a context, or an active token of one."""
    feature = np.repeat(np.arange(len(columns.n_contexts)), columns.n_contexts)
    n_active = np.bincount(feature, columns.n_active, len(columns.n_contexts))
    return {
        "n_contexts": fit(columns.n_contexts),
        "n_strongest": fit(columns.n_strongest),
        "interval_low": np.array(columns.interval_low, dtype=np.float64),
        "interval_high": np.array(columns.interval_high, dtype=np.float64),
        "context_peak": fit(columns.peak),
        "context_n_active": fit(columns.n_active),
        "active_place": fit(columns.active_place),
        **decimal_arrays("context", columns.value, columns.n_contexts),
        **decimal_arrays("active", columns.active_value, n_active.astype(int).tolist()),
    }


def relation_arrays(df: pd.DataFrame, models: list[str]) -> dict[str, np.ndarray]:
    """Return nearest neighbours in the head and the best match in another model, where the table has them."""
    arrays: dict[str, np.ndarray] = {}
    if "neighbours" in df:
        rows = read_pairs(df, "neighbours")
        arrays["neighbour_n"] = fit([len(pairs) for pairs in rows])
        arrays["neighbour_feature"] = fit([int(feature) for pairs in rows for feature, _ in pairs])
        arrays |= decimal_arrays("neighbour", *flat(rows))
    if "match" in df:
        numbers = {model: number for number, model in enumerate(models)}
        matches = [read_cell(text, "match", row) for row, text in enumerate(df["match"])]
        # of a table made before matches were of the whole layer: the same head
        matches = [
            [own[0], head, *own[1:]] if len(own) == 3 else own for own, head in zip(matches, df["head"], strict=True)
        ]
        known = [match if len(match) == 4 and match[0] in numbers else None for match in matches]
        arrays["match_model"] = np.array([numbers[match[0]] if match else -1 for match in known], dtype=np.int16)
        arrays["match_head"] = np.array([int(match[1]) if match else 0 for match in known], dtype=np.int16)
        arrays["match_feature"] = fit([int(match[2]) if match else 0 for match in known])
        arrays |= decimal_arrays("match", [float(match[3]) if match else 0.0 for match in known], [1] * len(known))
    return arrays


def histogram_arrays(df: pd.DataFrame) -> dict[str, np.ndarray]:
    """Return the bins of each feature's activations, where the table has them: tokens by bin of a width, and at 0.

    Raises:
        ValueError: if a cell is no histogram.
    """
    if "histogram" not in df:
        return {}
    found = [read_histogram(text, row) for row, text in enumerate(df["histogram"])]
    return {
        "histogram_n": fit([len(counts) for _, _, counts in found]),
        "histogram_zero": fit([zero for zero, _, _ in found]),
        "histogram_width": np.array([width for _, width, _ in found], dtype=np.float64),
        "histogram_count": fit([count for _, _, counts in found for count in counts]),
    }


def read_histogram(text: object, row: int) -> tuple[int, float, list[int]]:
    """Return (tokens at 0, width of a bin, tokens by bin) of a cell; no bins for an empty one.

    Raises:
        ValueError: if the cell is something else; the row counts from 0, without the header.
    """
    if not isinstance(text, str) or not text:
        return 0, 0.0, []
    try:
        cell = json.loads(text)
        zero, width, counts = cell["zero"], cell["width"], cell["counts"]
        is_right = isinstance(counts, list) and all(type(count) is int and count >= 0 for count in [zero, *counts])
        is_right &= isinstance(width, int | float) and math.isfinite(width) and width > 0
    except (ValueError, TypeError, LookupError, RecursionError):
        is_right = False
    if not is_right:
        raise ValueError(
            f"feature_atlas: histogram of row {row} is {str(text)[:60]!r}; expected JSON with zero, width and counts, "
            "whole numbers of tokens and a width above 0"
        )
    return zero, float(width), counts


def fit(values: Any) -> np.ndarray:
    """Return whole numbers ≥ 0 in the smallest unsigned type that holds them."""
    array = np.asarray(values)
    largest = int(array.max()) if array.size else 0
    assert array.size == 0 or int(array.min()) >= 0, "fit: negative number"
    return array.astype(np.uint8 if largest < 2**8 else np.uint16 if largest < 2**16 else np.uint32)


def join(header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> bytes:
    """Return header and arrays as the module's first lines say."""
    offset, places, parts = 0, {}, []
    for name, array in arrays.items():
        data = array.astype(array.dtype.newbyteorder("<")).tobytes()
        places[name] = [array.dtype.name, offset, array.size]
        padding = -len(data) % 8
        parts += [data, bytes(padding)]
        offset += len(data) + padding
    text = json.dumps({**header, "arrays": places}, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    head = text.encode("utf-8")
    head += b" " * (-(4 + len(head)) % 8)  # the arrays start on a multiple of 8, as typed arrays need
    return b"".join([len(head).to_bytes(4, "little"), head, *parts])
