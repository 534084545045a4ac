"""Concept probes: is the order, the circle or the map of a set of words in a model's states, and at which layer?

`probe` reads every set, layer and model once and puts the statistics of `probes` to the mean states. In its tables
layer −1 is the embedding and layer ℓ the stream after block ℓ.
"""

from __future__ import annotations

import math
import warnings
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Float64, Int
from pydantic import ValidationError
from scipy.spatial.distance import squareform
from torch import Tensor

import probes
from probes.multiplicity import TIE_TOLERANCE
from workbench.analyses.probe.concept_plane import TOPOLOGIES as DRAWN
from workbench.analyses.probe.concept_plane import point_rows
from workbench.analyses.probe.settings import (
    MAX_N_CTX,
    N_PERMUTATIONS,
    N_SEEDS,
    TEMPLATES,
    Distance,
    ProbeSettings,
)
from workbench.analyses.probe.stability import is_repeated, stability_rows
from workbench.analyses.probe.states import ConceptStates, concept_states, text_states
from workbench.data.concepts import ConceptSet, choose_sets, read_concepts
from workbench.data.text_windows import spread_windows
from workbench.models.checks import as_list
from workbench.runs.records import describe_errors

N_NULL_TRAJECTORIES = 200
N_BOOTSTRAP = 999
SHARE = 0.9  # of the maximum over layers, where a set counts as crystallised
Concepts = Sequence[ConceptSet] | Sequence[str] | str | Path | None


@dataclass(frozen=True)
class ConceptProbes:
    """What `probe` measured, a data frame a table."""

    concept_mantel: pd.DataFrame
    """a (model, set with a topology, layer): correlation with the target, p, q, given spelling, intervals"""
    mantel_stability: pd.DataFrame
    """a (model, set of years, r or partial r at the middle layer, seed of permutations, and all seeds pooled): p"""
    crystallisation: pd.DataFrame
    """a (model, set with a topology): the layer at which 90 % of the largest correlation is reached"""
    concept_points: pd.DataFrame
    """a (model, ordinal or cyclic set, one of three layers, word): its place on the first two principal components"""
    concept_geometry: pd.DataFrame
    """a (model, set, layer): effective dimension of the means"""
    trajectories: pd.DataFrame
    """a (model, set, lag): mean cosine of displacements, with both nulls"""
    antonym_parallelism: pd.DataFrame
    """a (model, paired set, layer, components removed): mean cosine of pair differences against shuffled pairs"""
    intrinsic_dimension: pd.DataFrame
    """a (model, layer): TwoNN dimension of the states of held-out text"""
    intrinsic_dimension_curve: pd.DataFrame
    """a (model, layer, sample size): the same for n, n/2, n/4 … points"""

    def tables(self) -> dict[str, pd.DataFrame]:
        """Every table by its name in the column contract, without those that have no row."""
        return {name: table for name, table in vars(self).items() if len(table)}


@dataclass(frozen=True)
class _Subject:
    """One model's name and training seed, its concept states and, where text was read, those of the text."""

    key: dict[str, Any]
    states: ConceptStates
    text: Float[np.ndarray, "state point d_model"] | None

    @property
    def layers(self) -> range:
        return range(-1, next(iter(self.states.means.values())).shape[1] - 1)


def probe(
    models: Any,
    concepts: Concepts = None,
    tokens: Int[Tensor, "n n_ctx"] | Sequence[Int[Tensor, "n n_ctx"]] | None = None,
    *,
    distance: Distance = "euclidean",
    n_permutations: int = 9999,
    n_points: int = 4096,
    n_stability_seeds: int = N_SEEDS,
    n_stability_permutations: int = N_PERMUTATIONS,
    templates: Sequence[str] = TEMPLATES,
    names: Sequence[str] | None = None,
    seeds: Sequence[int] | int | None = None,
    seed: int = 0,
    on_progress: Callable[[float], None] | None = None,
) -> ConceptProbes:
    """The concept tables of one or more models: all sets, all layers, one harvest per model.

    Every word stands in three templates, its span known from how the prompt is built; its last token is read, and the
    mean over templates is its state. Sets with a topology (ordinal, cyclic, geographic) get Mantel tests of the states'
    distances with the set's, over layers and models alike with the same permutations; q is Benjamini–Hochberg over all
    rows. Each is given the spelling's (Levenshtein) distances too. All sets get effective dimensions and trajectories,
    paired ones the parallelism of pair differences.

    Args:
        models: a `HookedLM` or TransformerLens model with a tokenizer, or several.
        concepts: a TOML file of sets, sets, or names of those that come with the package; all of these for None.
        tokens: text for the intrinsic dimension: windows [n, n_ctx] for all models, or one such a model; None reads
            2·n_points tokens of the held-out part of what each was trained on, or of the embedded text.
        distance: between mean states, "euclidean" (uncentred) or "cosine".
        n_permutations: of every test with more than 8 items (fewer are enumerated).
        n_points: tokens of text, at most; 0: no intrinsic dimension.
        n_stability_seeds: seeds of permutations that the tests of sets of years are done over with at the middle layer;
            0: none.
        n_stability_permutations: of each of these seeds.
        templates: each with one {X}, and {category} where wanted.
        names, seeds: fill the columns model and seed; the configs' names and 0 unless given.
        seed: of permutations, intervals, sampled tokens and nulls.

    Raises:
        ValueError: an unknown set (the nearest are named), a word that a tokenizer cannot place, two models of one name
            and seed, settings out of range, and as `read_concepts` and `analysis_tokens`.
    """
    several = list(models) if isinstance(models, Sequence) else [models]
    sets = _resolve(concepts)
    keys = _keys(several, names, seeds)
    _check_settings(
        distance=distance,
        n_permutations=n_permutations,
        n_points=n_points,
        n_stability_seeds=n_stability_seeds,
        n_stability_permutations=n_stability_permutations,
    )
    texts = _texts(several, tokens, n_points)
    subjects = []
    for index, (model, key, text) in enumerate(zip(several, keys, texts, strict=True)):
        tell = None if on_progress is None else _part_of(on_progress, 0.6 * index / len(several), 0.3 / len(several))
        states = concept_states(model, sets, templates, tell)
        read = None if text is None else text_states(model, text, n_points, seed)
        subjects.append(_Subject(key, states, read))
        if on_progress is not None:
            on_progress(0.6 * (index + 1) / len(several))
    stability = (n_stability_seeds, n_stability_permutations)
    result = measure_states(subjects, sets, distance, n_permutations, seed, stability)
    if on_progress is not None:
        on_progress(1.0)
    return result


def measure_states(
    subjects: Sequence[_Subject],
    sets: Sequence[ConceptSet],
    distance: Distance,
    n_permutations: int,
    seed: int,
    stability: tuple[int, int] = (N_SEEDS, N_PERMUTATIONS),
) -> ConceptProbes:
    """The tables of states already read; stability: seeds of permutations, and permutations of each."""
    tests = [
        mantel_rows(subjects, one, distance, n_permutations, _generator(seed, one.name))
        for one in sets
        if target_distances(one) is not None
    ]
    mantel = pd.DataFrame([row for rows, _ in tests for row in rows])
    if len(mantel):
        mantel.insert(8, "q", probes.benjamini_hochberg(mantel["p"].to_numpy(dtype=np.float64)))
    curves = [rows for subject in subjects for rows in dimension_rows(subject, seed)]
    return ConceptProbes(
        concept_mantel=mantel,
        mantel_stability=stability_table(subjects, sets, distance, seed, stability),
        crystallisation=pd.DataFrame([row for _, rows in tests for row in rows]),
        concept_points=points_table(subjects, sets, mantel),
        concept_geometry=pd.DataFrame([row for subject in subjects for row in geometry_rows(subject)]),
        trajectories=pd.DataFrame([row for subject in subjects for row in trajectory_rows(subject, seed)]),
        antonym_parallelism=parallelism_table(subjects, sets, n_permutations, seed),
        intrinsic_dimension=pd.DataFrame([row for row, _ in curves]),
        intrinsic_dimension_curve=pd.DataFrame([row for _, rows in curves for row in rows]),
    )


# --- Mantel tests


def target_distances(one: ConceptSet) -> Float64[np.ndarray, "n n"] | None:
    """How far the words of a set lie apart by its topology; None for free and paired sets."""
    positions = np.array(one.positions) if one.positions else len(one.words)
    if one.topology == "ordinal":
        return probes.ordinal_distances(positions)
    if one.topology == "cyclic":
        return probes.cyclic_distances(positions, one.period)
    if one.topology == "geographic":
        return probes.great_circle_km(np.array(one.latitudes), np.array(one.longitudes))
    return None


def state_distances(
    means: Float64[np.ndarray, "word state d_model"], distance: Distance
) -> Float64[np.ndarray, "state pair"]:
    """Condensed distances between the words' mean states, at every layer."""
    measure = probes.euclidean_distances if distance == "euclidean" else probes.cosine_distances
    return np.stack([squareform(measure(means[:, state])) for state in range(means.shape[1])])


def mantel_rows(
    subjects: Sequence[_Subject], one: ConceptSet, distance: Distance, n_permutations: int, rng: np.random.Generator
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of concept_mantel (but for q) and of crystallisation of one set: all layers of all models in one test."""
    target = target_distances(one)
    assert target is not None
    xs = np.concatenate([state_distances(subject.states.means[one.name], distance) for subject in subjects])
    result = probes.mantel_many(xs, target, n_resamples=n_permutations, rng=rng)
    replicates = result.bootstrap.replicates()
    limits = result.confidence_interval
    partial = _given_spelling(one, xs, target, n_permutations, rng)
    owners = [(subject, layer) for subject in subjects for layer in subject.layers]
    rows = [
        subject.key
        | {"set": one.name, "n": result.n, "topology": one.topology, "layer": layer}
        | {"r": result.statistic[k], "p": result.pvalue[k]}
        | {name: values[k] for name, values in partial.items() if name in ("partial_r", "r2")}
        | {"n_permutations": result.n_resamples, "p_westfall_young": result.pvalue_westfall_young[k]}
        | {"min_p": result.min_pvalue[k], "ci_low": limits[k, 0], "ci_high": limits[k, 1]}
        | {name: values[k] for name, values in partial.items() if name not in ("partial_r", "r2")}
        | {"is_exact": result.exact, "n_ties": int(result.n_ties[k]), "distance": distance}
        | {"n_templates": len(subject.states.templates)}
        | {"n_outlying": int(subject.states.n_outlying[one.name][layer + 1])}
        for k, (subject, layer) in enumerate(owners)
    ]
    crystals, start = [], 0
    for subject in subjects:
        own = slice(start, start + len(subject.layers))
        layer = crystallised(result.statistic[own], replicates[:, own])
        crystals.append(subject.key | {"set": one.name, "n": result.n, "topology": one.topology} | layer)
        start = own.stop
    return rows, crystals


def _given_spelling(
    one: ConceptSet, xs: np.ndarray, target: np.ndarray, n_permutations: int, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Partial Mantel columns given Levenshtein distances; nan where all words are spelt equally far apart (letters)."""
    names = ("partial_r", "r2", "partial_p", "partial_ci_low", "partial_ci_high", "r_spelling", "r_target_spelling")
    spelling = squareform(probes.levenshtein_distances(one.words))
    if np.ptp(spelling) == 0:
        return {name: np.full(len(xs), np.nan) for name in names}
    result = probes.partial_mantel_many(xs, target, spelling, n_resamples=n_permutations, rng=rng)
    low, high = result.confidence_interval.T
    both = np.full(len(xs), result.r_yz)
    values = (result.statistic, result.r2, result.pvalue, low, high, result.r_xz, both)
    return dict(zip(names, values, strict=True))


def stability_table(
    subjects: Sequence[_Subject], sets: Sequence[ConceptSet], distance: Distance, seed: int, sizes: tuple[int, int]
) -> pd.DataFrame:
    """mantel_stability's rows: every set of years of every model; none without seeds."""
    rows = []
    for one in (s for s in sets if sizes[0] and is_repeated(s)):
        target = target_distances(one)
        assert target is not None
        for subject in subjects:
            xs = state_distances(subject.states.means[one.name], distance)
            rows += stability_rows(subject.key, one, xs, target, n_seeds=sizes[0], n_permutations=sizes[1], seed=seed)
    return pd.DataFrame(rows)


def crystallised(r: Float64[np.ndarray, " state"], replicates: Float64[np.ndarray, "m state"]) -> dict[str, float]:
    """The first layer with 90 % of the largest correlation, and its 95 % interval over resampled items.

    nan where no correlation is above 0: nothing has crystallised. Resamples without one are left out.
    """
    undefined = {"layer": math.nan, "layer_low": math.nan, "layer_high": math.nan}
    if not (r > TIE_TOLERANCE).any():
        return undefined | {"maximum": math.nan, "layer_of_maximum": math.nan, "share": SHARE}
    found = probes.crystallisation(r, SHARE)
    drawn = np.where(np.isnan(replicates), -np.inf, replicates)
    largest = drawn.max(axis=1)
    known = largest > TIE_TOLERANCE
    first = np.argmax(drawn[known] >= SHARE * largest[known, None] - TIE_TOLERANCE, axis=1) - 1
    limits = np.quantile(first, [0.025, 0.975]) if 2 * known.sum() >= len(known) else (math.nan, math.nan)
    return {
        "layer": found.layer - 1,
        "layer_low": float(limits[0]),
        "layer_high": float(limits[1]),
        "maximum": found.maximum,
        "layer_of_maximum": found.layer_of_maximum - 1,
        "share": SHARE,
    }


# --- points, geometry, trajectories, pairs, dimension


def points_table(subjects: Sequence[_Subject], sets: Sequence[ConceptSet], mantel: pd.DataFrame) -> pd.DataFrame:
    """concept_points' rows: every ordinal and cyclic set of every model."""
    rows = []
    for one in (s for s in sets if s.topology in DRAWN):
        of_set = mantel[mantel["set"] == one.name]
        for subject in subjects:
            own = of_set[(of_set["model"] == subject.key["model"]) & (of_set["seed"] == subject.key["seed"])]
            rows += point_rows(subject.key, one, subject.states.means[one.name], own["r"].tolist())
    return pd.DataFrame(rows)


def geometry_rows(subject: _Subject) -> list[dict[str, Any]]:
    """concept_geometry's rows of one model: participation ratio of each set's means, their mean over sets, and what
    as many independent isotropic states would give."""
    means = subject.states.means
    found = {
        name: [probes.participation_ratio(states[:, k]) for k in range(states.shape[1])]
        for name, states in means.items()
    }
    over_sets = np.mean(list(found.values()), axis=0)
    return [
        subject.key
        | {"set": name, "n": len(means[name]), "layer": layer, "effective_dim": dims[k]}
        | {"mean_over_sets": over_sets[k], "null_isotropic": isotropic_dimension(*means[name][:, k].shape)}
        | {"n_outlying": int(subject.states.n_outlying[name][k])}
        for name, dims in found.items()
        for k, layer in enumerate(subject.layers)
    ]


def isotropic_dimension(n: int, d: int) -> float:
    """E[(tr S)²]/E[tr S²] of the scatter S of n independent isotropic normal points in d dimensions, m = n − 1:
    (md + 2)/(m + d + 1). What a participation ratio of n states would be if they shared no structure.

    >>> isotropic_dimension(2, 10)
    1.0
    """
    return ((n - 1) * d + 2) / (n + d)


def trajectory_rows(subject: _Subject, seed: int) -> list[dict[str, Any]]:
    """trajectories' rows of one model: mean cosine of a set's displacements k layers apart, its 95 % interval over
    words, and both nulls, each the mean and the middle 95 % of single trajectories of as many states in as many
    dimensions. Empty for a model of fewer than two layers."""
    n_states, d = next(iter(subject.states.means.values())).shape[1:]
    if n_states < 3:
        return []
    nulls = probes.trajectory_nulls(n_states, d, n_draws=N_NULL_TRAJECTORIES, rng=_generator(seed, "trajectories"))
    columns: dict[str, np.ndarray] = {}
    for name, draws in (("independent", nulls.independent_states), ("random_walk", nulls.random_walk)):
        columns[f"null_{name}"] = draws.mean(axis=0)
        columns[f"null_{name}_low"], columns[f"null_{name}_high"] = np.quantile(draws, [0.025, 0.975], axis=0)
    columns = dict(sorted(columns.items(), key=lambda item: item[0].endswith(("_low", "_high"))))
    rows = []
    for name, means in subject.states.means.items():
        decay = probes.lag_decay(means)
        low, high = _interval_over_words(means, _generator(seed, name))
        for k, value in enumerate(decay):
            measure = "trajectory_consistency" if k == 0 else "lag_decay"
            row = subject.key | {"set": name, "measure": measure, "lag": k + 1, "value": value}
            row |= {column: values[k] for column, values in columns.items()}
            rows.append(row | {"ci_low": low[k], "ci_high": high[k], "n": len(means)})
    return rows


def _interval_over_words(
    means: Float64[np.ndarray, "word state d_model"], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Limits [lag] of the mean over words of each word's own lag decay, by resampling words."""
    each = np.stack([probes.lag_decay(own) for own in means])
    drawn = rng.integers(len(each), size=(N_BOOTSTRAP, len(each)))
    low, high = np.quantile(each[drawn].mean(axis=1), [0.025, 0.975], axis=0)
    return low, high


def parallelism_table(
    subjects: Sequence[_Subject], sets: Sequence[ConceptSet], n_permutations: int, seed: int
) -> pd.DataFrame:
    """antonym_parallelism's rows: every paired set, with no component removed and without the first."""
    rows = []
    for one in (s for s in sets if s.topology == "paired"):
        for subject in subjects:
            means = subject.states.means[one.name]
            first, second = means[: len(one.pairs)], means[len(one.pairs) :]
            for k, layer in enumerate(subject.layers):
                for n_removed in (0, 1):
                    found = probes.pair_parallelism(
                        first[:, k], second[:, k], n_removed_components=n_removed, n_resamples=n_permutations,
                        rng=_generator(seed, one.name),
                    )  # fmt: skip
                    rows.append(
                        subject.key
                        | {"set": one.name, "n": found.n, "layer": layer, "n_removed": n_removed}
                        | {"parallelism": found.statistic, "null_mean": found.null_mean, "null_std": found.null_std}
                        | {"p": found.pvalue, "n_permutations": found.n_resamples, "min_p": found.min_pvalue}
                        | {"excess_over_null": found.statistic - found.null_mean}
                    )
    table = pd.DataFrame(rows)
    if len(table):
        table.insert(10, "q", probes.benjamini_hochberg(table["p"].to_numpy(dtype=np.float64)))
    return table


def dimension_rows(subject: _Subject, seed: int) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Of every layer, its row of intrinsic_dimension and its rows of intrinsic_dimension_curve."""
    found = []
    for layer, states in zip(subject.layers, () if subject.text is None else subject.text, strict=False):
        with warnings.catch_warnings():
            # counted in a column; the model's precision was warned about when it was read
            warnings.simplefilter("ignore", probes.DuplicatePointsWarning)
            warnings.simplefilter("ignore", probes.LowPrecisionWarning)
            curve = probes.two_nn_curve(states, rng=_generator(seed, "two_nn"))
        whole, key = curve.whole, subject.key | {"layer": layer}
        row = key | {"dimension": whole.dimension, "stderr": whole.stderr, "n_used": whole.n_used}
        row |= {"n_duplicates": whole.n_duplicates, "n_near_duplicates": whole.n_near_duplicates}
        row |= {"n": whole.n, "fit": whole.fit}
        levels = zip(curve.n_points, curve.dimension, curve.spread, curve.n_subsamples, strict=True)
        names = ("n_points", "dimension", "spread", "n_subsamples")
        found.append((row, [key | dict(zip(names, level, strict=True)) for level in levels]))
    return found


# --- arguments


def _resolve(concepts: Concepts) -> tuple[ConceptSet, ...]:
    if concepts is None:
        return read_concepts()
    if isinstance(concepts, str | Path):
        return choose_sets(read_concepts(concepts))
    given = list(concepts)
    if given and all(isinstance(one, ConceptSet) for one in given):
        return choose_sets([one for one in given if isinstance(one, ConceptSet)])
    if any(not isinstance(one, str) for one in given):
        raise ValueError(f"concepts: got {given!r:.80}; expected names of sets, ConceptSets, or a TOML file")
    return choose_sets(read_concepts(), [one for one in given if isinstance(one, str)])


def _keys(
    models: Sequence[Any], names: Sequence[str] | None, seeds: Sequence[int] | int | None
) -> list[dict[str, Any]]:
    """The columns model and seed of each model."""
    if not models:
        raise ValueError("models: got none; expected at least one")
    called = [model.cfg.model_name for model in models] if names is None else as_list("names", names)
    trained = [0] * len(models) if seeds is None else as_list("seeds", seeds)
    if not len(called) == len(trained) == len(models):
        raise ValueError(
            f"names, seeds: got {len(called)} and {len(trained)} for {len(models)} models; expected one each"
        )
    if len(set(zip(called, trained, strict=True))) < len(models):
        raise ValueError(f"names: got {', '.join(called)}; expected each model another name or seed")
    return [{"model": name, "seed": number} for name, number in zip(called, trained, strict=True)]


def _check_settings(**settings: Any) -> None:
    try:
        ProbeSettings(**settings)
    except ValidationError as error:
        raise ValueError(describe_errors(error)) from None


def _texts(models: Sequence[Any], tokens: Any, n_points: int) -> list[Any]:
    """The windows that each model reads; none where no intrinsic dimension is wanted."""
    if n_points == 0:
        return [None] * len(models)
    if tokens is None:
        return [spread_windows(model, None, n_tokens=2 * n_points, max_n_ctx=MAX_N_CTX) for model in models]
    if isinstance(tokens, Tensor):
        return [tokens] * len(models)
    if len(tokens) != len(models):
        raise ValueError(f"tokens: got {len(tokens)} texts for {len(models)} models; expected one each, or one for all")
    return list(tokens)


def _generator(seed: int, name: str) -> np.random.Generator:
    """A generator of its own for each set: its numbers do not depend on what other sets are measured."""
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


def _part_of(on_progress: Callable[[float], None], start: float, length: float) -> Callable[[float], None]:
    return lambda share: on_progress(start + length * share)
