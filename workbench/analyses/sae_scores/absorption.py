"""Feature absorption on the first-letter task: words of the tokenizer's own vocabulary behind spelled ones.

Chanin et al. 2024, "A is for Absorption". Words are read at their one token behind a prompt that spells four others, so
that the activation holds the letter if the model knows it.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int

from probes.classification import LogisticProbe, binomial_limits, fit_logistic
from sae.absorption import find_absorbed
from workbench.analyses.sae_scores.core import Scored, Tell
from workbench.analyses.sae_scores.probing import mean_differences, repeat_keys
from workbench.analyses.sae_scores.readings import Readings, read_examples
from workbench.data.probing_tasks import Example, Family
from workbench.models.tokenizer_files import encode, special_ids, tokenizer_of

SPELLED = ("apple", "river", "stone", "cloud")
LEAD = " ".join(f"{word}: {word[0].upper()}," for word in SPELLED)
MIN_WORDS = 20  # of a letter
MIN_LETTERS = 3  # of a word
MAX_MAIN = 10  # features of a letter's own
MIN_GAIN = 0.03  # of F1 by a further one
ALL = "all"
MEASURED, ABSENT, NO_FEATURE = "measured", "task_absent", "no_feature"


def letter_family(tokenizer: Any, n_words: int) -> Family:
    """The first n_words words of the vocabulary, in the order of their ids, that are one token behind the lead and a
    space, by first letter; tasks are letters of at least MIN_WORDS. Spellings of a word in small and capital letters
    are one group."""
    special, ahead = special_ids(tokenizer), encode(tokenizer, LEAD)
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)  # what spells ids
    examples = []
    for index in sorted(set(tokenizer.get_vocab().values()) - special):
        word = backend.decode([index]).strip()
        if len(word) < MIN_LETTERS or not (word.isascii() and word.isalpha()) or word.lower() in SPELLED:
            continue
        if encode(tokenizer, f"{LEAD} {word}") == [*ahead, index]:
            examples.append(Example(word, word[0].lower(), word.lower()))
        if len(examples) == n_words:
            break
    counts = Counter(example.label for example in examples)
    return Family("letter", False, tuple(examples), tuple(sorted(own for own, n in counts.items() if n >= MIN_WORDS)))


def best_f1(scores: Float[np.ndarray, " n"], is_positive: Bool[np.ndarray, " n"]) -> float:
    """The largest F1 = 2 TP / (2 TP + FP + FN) that a threshold on the scores gives."""
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    hits = np.cumsum(is_positive[order])[ends]
    return float((2 * hits / (ends + 1 + is_positive.sum())).max())


def main_features(acts: Float[np.ndarray, "n d_sae"], is_positive: Bool[np.ndarray, " n"]) -> list[int]:
    """A concept's own features: those that fire more on it than elsewhere, the largest difference of means first, as
    long as one more raises the F1 of a logistic probe of them by MIN_GAIN; none if no feature does so at all."""
    difference = mean_differences(acts, is_positive)
    order = [int(j) for j in np.argsort(-difference, kind="stable")[:MAX_MAIN] if difference[j] > 0]
    best, n_kept = -np.inf, 0
    for n in range(1, len(order) + 1):
        own = acts[:, order[:n]]
        found = best_f1(fit_logistic(own, is_positive).scores(own), is_positive)
        if n > 1 and found <= best + MIN_GAIN:
            break
        best, n_kept = found, n
    return order[:n_kept]


def letter_probe(
    x: Float[np.ndarray, "n d_in"], is_letter: Bool[np.ndarray, " n"], is_train: Bool[np.ndarray, " n"]
) -> tuple[LogisticProbe, dict[str, Any], Int[np.ndarray, " word"]]:
    """(probe of a letter fitted on the training words, what it does on the others, its true positives among them)."""
    probe = fit_logistic(x[is_train], is_letter[is_train])
    is_said = probe.scores(x) > 0
    is_test = ~is_train
    n_right, n_test = int((is_said == is_letter)[is_test].sum()), int(is_test.sum())
    share = is_letter[is_test].mean()
    facts = {
        "n_words": n_test, "n_letter": int(is_letter[is_test].sum()), "probe_accuracy": n_right / n_test,
        "probe_low": binomial_limits(n_right, n_test).low, "base_rate": max(share, 1 - share),
    }  # fmt: skip
    return probe, facts, np.flatnonzero(is_test & is_said & is_letter)


def letter_row(
    scored: Scored, readings: Readings, k: int, name: str, directions: Any, letter: Any, is_train: np.ndarray
) -> dict[str, Any]:
    """The row of one letter, SAE and dictionary: how many of the probe's true positives are absorbed."""
    label, is_letter, (probe, facts, true) = letter
    row = {"letter": label, "dictionary": name, **facts, "n_true_positives": len(true), "n_main": 0, "n_absorbed": 0}
    row |= {"absorption_rate": np.nan, "ci_low": np.nan, "ci_high": np.nan, "status": ABSENT}
    if facts["probe_low"] <= facts["base_rate"] or not len(true):
        return row
    acts = readings.acts[name][k]
    main = main_features(acts[is_train], is_letter[is_train])
    if not main or len(main) == acts.shape[1]:
        return row | {"status": NO_FEATURE}
    rows, origin = directions
    x = torch.from_numpy(readings.x[k][true]) - origin[true]
    found = find_absorbed(torch.from_numpy(acts[true]), rows, x, torch.from_numpy(probe.weights), main)
    n = int(found.is_absorbed.sum())
    low, high = binomial_limits(n, len(true))
    shares = {"absorption_rate": n / len(true), "ci_low": low, "ci_high": high}
    return row | shares | {"n_main": len(main), "n_absorbed": n, "status": MEASURED}


def pooled_row(rows: list[dict[str, Any]], dictionary: str) -> dict[str, Any]:
    """The row of all letters that were measured; without any the task is absent."""
    own = [row for row in rows if row["dictionary"] == dictionary]
    measured = [row for row in own if row["status"] == MEASURED]
    n, n_true = (sum(row[name] for row in measured) for name in ("n_absorbed", "n_true_positives"))
    low, high = binomial_limits(n, n_true)
    status = MEASURED if measured else NO_FEATURE if any(row["status"] == NO_FEATURE for row in own) else ABSENT
    means = {name: np.mean([row[name] for row in own]) if own else np.nan for name in ("probe_accuracy", "base_rate")}
    return {
        "letter": ALL, "dictionary": dictionary, "n_words": max((row["n_words"] for row in own), default=0),
        "n_letter": sum(row["n_letter"] for row in own), **means, "probe_low": np.nan, "n_true_positives": n_true,
        "n_main": sum(row["n_main"] for row in measured), "n_absorbed": n,
        "absorption_rate": n / n_true if n_true else np.nan, "ci_low": low, "ci_high": high, "status": status,
        "n_letters": len(measured),
    }  # fmt: skip


@torch.no_grad()
def origins(sae: StackedSAE, readings: Readings) -> Float[Tensor, "sae word d_in"]:
    """What each reading's reconstruction is without any feature."""
    x = torch.from_numpy(readings.x).to(sae.W_dec)
    if not x.numel():
        return x.cpu()
    nothing = sae.W_dec.new_zeros(1).expand(*x.shape[:2], sae.config.d_sae)
    return sae.decode(nothing, x).float().cpu()


def absorption_table(scored: Scored, *, n_words: int, name: str, seed: int, tell: Tell) -> pd.DataFrame:
    """sae_absorption's rows, SAE by SAE: each letter, then all of them, of each dictionary."""
    family = letter_family(tokenizer_of(scored.model), n_words)
    labels, is_train = np.array([example.label for example in family.examples]), family.is_train()
    empty = Readings(np.empty((len(scored.slots), 0, 0)), {})
    readings = read_examples(scored, family, LEAD, lambda own: tell(own / 2)) if family.tasks else empty
    directions = {
        name: (own.directions.float().cpu(), origins(own, readings)) for name, own in scored.dictionaries.items()
    }
    of_sae = []
    for k in range(len(scored.slots)):
        rows: list[dict[str, Any]] = []
        for label in family.tasks:
            is_letter = labels == label
            letter = (label, is_letter, letter_probe(readings.x[k], is_letter, is_train))
            for dictionary, (d, origin) in directions.items():
                one = letter_row(scored, readings, k, dictionary, (d[k], origin[k]), letter, is_train)
                rows.append(one | {"n_letters": int(one["status"] == MEASURED)})
        of_sae.append([*rows, *(pooled_row(rows, dictionary) for dictionary in directions)])
        tell(0.5 + 0.5 * (k + 1) / len(scored.slots))
    return repeat_keys(scored, of_sae, name, seed)
