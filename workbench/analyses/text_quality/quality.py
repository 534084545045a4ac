"""Text quality of a model: continuations sampled and counted, batteries of items scored, one row per measure."""

from __future__ import annotations

import itertools
import json
import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float64

from probes.bootstrap import ratio_limits
from workbench.analyses.text_quality import counts
from workbench.analyses.text_quality.continuations import Continuation, encode_prompts, sample_continuations
from workbench.analyses.text_quality.items import encode_items, item_margins
from workbench.analyses.text_quality.loops import loop_kind
from workbench.analyses.text_quality.tagging import Tagger, TaggerMissing, count_words, load_tagger
from workbench.data.batteries import (
    Battery,
    Item,
    ItemSet,
    PromptSet,
    as_batteries,
    as_prompts,
    battery_items,
    read_prompts,
)
from workbench.models.transformer import check_tokenized

NO_TAGGER = "none"
N_BOOTSTRAP = 2000
DISTINCT = (1, 2, 3)
LOOPS = {"loop_rate": "cycle", "loop_increment": "increment", "loop_enumeration": "enumeration"}
COUNTED = (
    "interrogative_share", "discourse_markers", "dialogue_markers", "distinct_1", "distinct_2", "distinct_3",
    *LOOPS, "n_words",
)  # fmt: skip
TAGGED = ("entity_fabrication", "distinct_proper_nouns", "noun_ratio", "pronoun_noun_ratio", "clause_depth")
# what JSON lets stand and some readers take for the end of a line
_LINE_ENDS = {ord(mark): f"\\u{ord(mark):04x}" for mark in "\x85\u2028\u2029"}
CHANCE = 0.5  # exact: in every scenario an answer is right in as many items as it is wrong


class TextQualityWarning(UserWarning):
    """Something could not be measured, and is left out."""


@dataclass(frozen=True)
class TextQuality:
    """What was measured, and the continuations that it was measured on."""

    table: pd.DataFrame
    """text_quality.csv's rows"""
    continuations: list[Continuation]
    sampling_seed: int
    scored: tuple[tuple[Item, float], ...] = ()
    """items of the batteries, battery by battery, each with its margin in nats"""

    def to_jsonl(self) -> str:
        """continuations.jsonl: one JSON object a line."""
        name = str(self.table["model"].iloc[0])
        records = (
            {
                "model": name,
                "kind": one.kind,
                "prompt": one.prompt,
                "sample": one.sample,
                "seed": self.sampling_seed,
                "text": one.text,
                "n_tokens": len(one.tokens),
                "is_ended": one.is_ended,
            }
            for one in self.continuations
        )
        text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        return text.translate(_LINE_ENDS)


@dataclass(frozen=True)
class Ratio:
    """A measure as scale · Σ numerator / Σ denominator over units that are resampled: prompts, or scenarios."""

    measure: str
    numerator: Float64[np.ndarray, " unit"]
    denominator: Float64[np.ndarray, " unit"]
    per: str
    """what the denominator counts"""
    scale: float = 1.0
    unit: str = "prompt"
    chance: float = math.nan


def text_quality(
    model: Any,
    prompts: Sequence[PromptSet | str] | None = None,
    recall: Sequence[ItemSet] | None = None,
    batteries: Sequence[Battery] | None = None,
    *,
    n_samples: int = 4,
    max_new_tokens: int = 96,
    temperature: float = 0.7,
    tagger: str | None = None,
    seed: int = 0,
    name: str | None = None,
    on_progress: Callable[[float], None] | None = None,
) -> TextQuality:
    """The rows of text_quality.csv, one per measure, and the continuations.

    Every measure is a ratio of sums over continuations (of a battery: over items). Its 95 % interval is the percentile
    bootstrap over prompts (batteries: scenarios), with tails widened for small n (Hesterberg 2015, "expanded
    percentile"): samples of one prompt, and items of one scenario, are drawn together. nan where the denominator is 0.
    Measures are defined in docs/definitions.md, "Text quality".

    Args:
        model: a `HookedLM`, or a model by the generic path, with its tokenizer.
        prompts: texts, or sets of them (`read_prompts` reads a file); the built-in ones by default.
        recall: kinds of recall (`read_recall` reads a file); the built-in ones by default, () for none.
        batteries: those beside recall (`read_battery`); grammar and cause by default, () for none.
        n_samples: continuations per prompt.
        max_new_tokens: tokens per continuation, unless the model ends the text earlier.
        tagger: a spaCy pipeline or its folder; "none" for no tagging; None: the small English one; if it is
            missing, the measures that need it are left out with a warning.
        seed: for sampling and for the bootstrap; fills the column seed.
        name: fills the column model; the config's name by default.

    Raises:
        ValueError: any other model; settings out of range; prompts or items that do not fit the model's context or
            tokenizer; batteries with measures of one name.
        TaggerMissing: a tagger was named and is not there.
    """
    check_tokenized("text_quality", model)
    tagging = choose_tagger(tagger)
    texts = read_prompts() if prompts is None else as_prompts(prompts)
    scored = as_batteries(recall, batteries)
    check_names(scored)
    items = [battery_items(battery) for battery in scored]
    for own in items:
        encode_items(model, own)  # what does not fit is said before minutes of sampling
    n_items = sum(map(len, items))
    share = 0.85 if n_items else 1.0  # by measured time most goes into sampling
    found = sample_continuations(
        model,
        texts,
        n_samples=n_samples,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        on_progress=None if on_progress is None else lambda done: on_progress(share * done),
    )
    margins: list[tuple[Item, float]] = []
    for own in items:
        start, length = share + (1 - share) * len(margins) / n_items, (1 - share) * len(own) / n_items
        tell = None if on_progress is None else partial(_tell_part, on_progress, start, length)
        # a battery at a time: what is read together changes the last bits of a margin
        margins += zip(own, item_margins(model, own, tell).tolist(), strict=True)
    table = quality_table(found, margins, tagging, seed=seed, name=name or model.cfg.model_name)
    return TextQuality(table, found, seed, tuple(margins))


def quality_table(
    continuations: Sequence[Continuation],
    scored: Sequence[tuple[Item, float]],
    tagging: tuple[str, Tagger | None],
    *,
    seed: int,
    name: str,
) -> pd.DataFrame:
    """The rows of text_quality.csv of continuations and items with their margins; tagging: of `choose_tagger`."""
    title, tag = tagging
    ratios = list(count(continuations, tag))
    for _, own in itertools.groupby(scored, key=lambda pair: pair[0].battery):
        items, margins = zip(*own, strict=True)
        ratios += battery_ratios(items, np.array(margins))
    table = ratio_table(ratios, seed).assign(n_continuations=len(continuations), tagger=title)
    table.insert(0, "model", name)
    table.insert(1, "seed", seed)
    return table


def _tell_part(on_progress: Callable[[float], None], start: float, length: float, done: float) -> None:
    on_progress(start + length * done)


def choose_tagger(name: str | None) -> tuple[str, Tagger | None]:
    """(title, tagger) of the named pipeline; ("none", None) for "none" and, with a warning, where none was named and
    there is none."""
    if name == NO_TAGGER:
        return NO_TAGGER, None
    try:
        return load_tagger(name)
    except TaggerMissing as error:
        if name is not None:
            raise
        warnings.warn(f"text_quality: {', '.join(TAGGED)} left out: {error}", TextQualityWarning, stacklevel=3)
        return NO_TAGGER, None


def count(continuations: Sequence[Continuation], tag: Tagger | None) -> Iterable[Ratio]:
    """Every measure of the continuations; those that need a tagger only with one."""
    prompts = list(dict.fromkeys(one.prompt for one in continuations))
    row = {prompt: i for i, prompt in enumerate(prompts)}
    spoken = [counts.words(one.text) for one in continuations]

    def total(values: Iterable[float]) -> Float64[np.ndarray, " prompt"]:
        sums = np.zeros(len(prompts))
        for one, value in zip(continuations, values, strict=True):
            sums[row[one.prompt]] += value
        return sums

    n = total(1 for _ in continuations)
    n_words = total(len(own) for own in spoken)
    asked = [counts.count_sentences(one.prompt, one.text) for one in continuations]
    yield Ratio("interrogative_share", total(a for a, _ in asked), total(b for _, b in asked), "sentences")
    discourse = total(counts.count_discourse(one.text) for one in continuations)
    yield Ratio("discourse_markers", discourse, n_words, "words", scale=100)
    dialogue = total(counts.count_dialogue(one.prompt, one.text) for one in continuations)
    yield Ratio("dialogue_markers", dialogue, n_words, "words", scale=100)
    for order in DISTINCT:
        own = [[w for one, w in zip(continuations, spoken, strict=True) if one.prompt == p] for p in prompts]
        pairs = np.array([counts.count_distinct(texts, order) for texts in own], dtype=float)
        yield Ratio(f"distinct_{order}", pairs[:, 0], pairs[:, 1], f"{order}-grams of words")
    kinds = [loop_kind(one.tokens, one.text, one.is_ended) for one in continuations]
    for measure, kind in LOOPS.items():
        yield Ratio(measure, total(own == kind for own in kinds), n, "continuations")
    yield Ratio("n_words", n_words, n, "continuations")
    if tag is None:
        return
    tagged = tag([one.prompt + one.text for one in continuations])
    seen = [count_words(one.prompt, sentences) for one, sentences in zip(continuations, tagged, strict=True)]
    n_nouns, n_tagged = total(s.n_nouns for s in seen), total(s.n_tagged for s in seen)
    yield Ratio("entity_fabrication", total(s.n_new_names for s in seen), n_words, "words", scale=100)
    yield Ratio("distinct_proper_nouns", total(s.n_proper for s in seen), n, "continuations")
    yield Ratio("noun_ratio", n_nouns, n_tagged, "words as tagged")
    yield Ratio("pronoun_noun_ratio", total(s.n_pronouns for s in seen), n_nouns, "nouns")
    yield Ratio("clause_depth", total(s.depth_sum for s in seen), total(s.n_sentences for s in seen), "sentences")


def check_batteries(
    model: Any, prompts: Sequence[PromptSet], batteries: Sequence[Battery], max_new_tokens: int
) -> None:
    """Raise ValueError where a prompt or an item does not fit the model, before anything is written."""
    check_tokenized("text_quality", model)
    check_names(batteries)
    encode_prompts(model, prompts, max_new_tokens)
    for battery in batteries:
        encode_items(model, battery_items(battery))


def check_names(batteries: Sequence[Battery]) -> None:
    """Raise ValueError where two measures would have one name."""
    names = [*COUNTED, *TAGGED]
    for battery in batteries:
        names += [name for label in _labels(battery.sets) for name in _measures(battery.name, label)]
    twice = [name for name, n in Counter(names).items() if n > 1]
    if twice:
        raise ValueError(
            f"batteries: {', '.join(twice)} would name two measures; expected other names of files or kinds"
        )


def _labels(kinds: Iterable[ItemSet | Item]) -> list[str]:
    """What tells the measures of all items, and of each kind, apart."""
    return ["", *dict.fromkeys(f"_{one.kind}" for one in kinds)]


def _measures(battery: str, label: str) -> tuple[str, str]:
    return battery + label, f"{battery}_margin{label}"


def battery_ratios(items: Sequence[Item], margins: Float64[np.ndarray, " item"]) -> list[Ratio]:
    """The battery's measures: share right (a tie is half) and mean margin in nats, of all items and of each kind."""
    right = np.where(margins == 0, 0.5, margins > 0)
    scenario = np.array([item.scenario for item in items])
    ratios = []
    for label in _labels(items):
        own = np.array([label in ("", f"_{item.kind}") for item in items])
        n_items = np.bincount(scenario[own])
        used = n_items > 0
        names = _measures(items[0].battery, label)
        for measure, values, chance in zip(names, (right, margins), (CHANCE, 0.0), strict=True):
            sums = np.bincount(scenario[own], weights=values[own])[used]
            ratios.append(Ratio(measure, sums, n_items[used].astype(float), "items", unit="scenario", chance=chance))
    return ratios


def ratio_table(ratios: Sequence[Ratio], seed: int) -> pd.DataFrame:
    """A row per measure: value, interval, n units that were resampled, and what the value is a ratio of."""
    rows = []
    for one in ratios:
        low, high = ratio_limits(
            one.numerator[None], one.denominator, np.random.default_rng(seed), N_BOOTSTRAP, one.scale
        )
        total = float(one.denominator.sum())
        rows.append(
            {
                "measure": one.measure,
                "value": one.scale * float(one.numerator.sum()) / total if total else math.nan,
                "ci_low": float(low[0]),
                "ci_high": float(high[0]),
                "n": len(one.numerator),
                "unit": one.unit,
                "per": one.per,
                "n_per": total,
                "chance": one.chance,
            }
        )
    return pd.DataFrame(rows)
