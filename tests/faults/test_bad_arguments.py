"""Every public function with arrays, tokens and settings that it cannot take: a ValueError of what, got, want."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from models_for_tests import small_model

import probes
import sae
import workbench
from workbench.data.pairs import PairTokens
from workbench.training import load_recipe

pytestmark = pytest.mark.usefixtures("unchecked_shapes")

RNG = np.random.default_rng(0)
CLOUD = RNG.standard_normal((12, 4))
SQUARE = np.abs(np.subtract.outer(np.arange(5.0), np.arange(5.0)))
Call = Callable[[Any], object]

# --- probes: arrays

FEW = {"n_resamples": 9, "rng": 0}
# name of the function -> how an array of points reaches it; those of distances and of vectors have their own tables
OF_MATRICES: dict[str, Call] = {
    **{
        name: getattr(probes, name)
        for name in (
            "stable_rank", "nuclear_rank", "effective_rank", "participation_ratio", "rank_utilization", "matrix_ranks",
            "matrix_spectrum", "singular_values", "euclidean_distances", "cosine_distances", "two_nn", "two_nn_curve",
            "gride", "trajectory_consistency", "lag_decay",
        )
    },
    "fit_logistic": lambda x: probes.fit_logistic(x, np.arange(12) % 2),
    "linear_cka": lambda x: probes.linear_cka(x, CLOUD),
    "linear_cka, second": lambda x: probes.linear_cka(CLOUD, x),
    "pc_abs_cosine": lambda x: probes.pc_abs_cosine(x, CLOUD),
    "principal_angles": lambda x: probes.principal_angles(x, CLOUD),
    "procrustes_disparity": lambda x: probes.procrustes_disparity(x, CLOUD),
    "pair_parallelism": lambda x: probes.pair_parallelism(x, CLOUD, **FEW),
}  # fmt: skip
BAD_MATRICES = {
    "nan": np.where(CLOUD > 2, CLOUD, np.nan),
    "inf": np.full((12, 4), np.inf),
    "empty": np.zeros((0, 4)),
    "complex": CLOUD + 1j,
    "words": np.full((12, 4), "a"),
    "objects": np.full((12, 4), None),
    "a vector": CLOUD[:, 0],
    "a number": 3.0,
    "ragged": [[1.0, 2.0], [3.0]],
}
OF_DISTANCES: dict[str, Call] = {
    "mantel": lambda x: probes.mantel(x, SQUARE, **FEW),
    "mantel, second": lambda x: probes.mantel(SQUARE, x, **FEW),
    "mantel_many": lambda x: probes.mantel_many([SQUARE, x], SQUARE, **FEW),
    "partial_mantel": lambda x: probes.partial_mantel(x, SQUARE, SQUARE**2, **FEW),
    "partial_mantel_many": lambda x: probes.partial_mantel_many([x], SQUARE, SQUARE**2, **FEW),
}
BAD_DISTANCES = {
    "nan": np.where(SQUARE > 3, np.nan, SQUARE),
    "inf": np.where(SQUARE > 3, np.inf, SQUARE),
    "empty": np.zeros((0, 0)),
    "two items": SQUARE[:2, :2],
    "not square": SQUARE[:, :4],
    "asymmetric": np.triu(SQUARE),
    "with a diagonal": SQUARE + np.eye(5),
    "of another size": np.abs(np.subtract.outer(np.arange(6.0), np.arange(6.0))),
    "words": np.full((5, 5), "a"),
    "four axes": np.zeros((5, 5, 5, 5)),
    "condensed of no square": np.ones(11),
}
OF_VECTORS: dict[str, Call] = {
    "gini": probes.gini,
    "ordinal_distances": probes.ordinal_distances,
    "cyclic_distances": probes.cyclic_distances,
    "great_circle_km": lambda x: probes.great_circle_km(x, x),
    "two_nn_from_distances": lambda x: probes.two_nn_from_distances(x, x),
    "crystallisation": probes.crystallisation,
    "ranks_of_spectrum": probes.ranks_of_spectrum,
    "benjamini_hochberg": lambda x: probes.benjamini_hochberg(x),
}
BAD_VECTORS = {
    "inf": np.array([1.0, np.inf, 2.0]),
    "words": np.array(["a", "b", "c"]),
    "complex": np.array([1j, 2, 3]),
    "three axes": np.ones((3, 3, 3)) * 2,
}

# --- probes: settings, called with nothing
SETTINGS: dict[str, Callable[[], object]] = {
    "mean_gap, nan": lambda: probes.mean_gap(np.array([1.0, np.nan]), np.random.default_rng(0)),
    "mean_gap, clusters": lambda: probes.mean_gap(np.ones(4), np.random.default_rng(0), np.arange(3)),
    "recovery, gaps": lambda: probes.recovery(np.ones((2, 4)), np.ones(3), np.random.default_rng(0)),
    "recovery, half a cell": lambda: probes.recovery(np.array([[1.0, np.nan]]), np.ones(2), np.random.default_rng(0)),
    "sign_flip_test, axes": lambda: probes.sign_flip_test(np.ones(4), np.random.default_rng(0)),
    "sign_flip_test, no pairs": lambda: probes.sign_flip_test(np.ones((2, 0)), np.random.default_rng(0)),
    "mantel, method": lambda: probes.mantel(SQUARE, SQUARE, method="kendall"),  # type: ignore[arg-type]
    "mantel, alternative": lambda: probes.mantel(SQUARE, SQUARE, alternative="more"),  # type: ignore[arg-type]
    "mantel, n_resamples": lambda: probes.mantel(SQUARE, SQUARE, n_resamples=-1, exact=False),
    "mantel, exact of too many": lambda: probes.mantel(np.ones((12, 12)) - np.eye(12), np.ones((12, 12)) - np.eye(12),
                                                       exact=True),
    "mantel, permutations": lambda: probes.mantel(SQUARE, SQUARE, permutations=np.zeros((2, 5), dtype=int)),
    "mantel, permutations of another n": lambda: probes.mantel(SQUARE, SQUARE, permutations=np.arange(4)[None]),
    "mantel, permutations of floats": lambda: probes.mantel(SQUARE, SQUARE, permutations=np.ones((2, 5))),
    "mantel_many, nothing": lambda: probes.mantel_many([], SQUARE),
    "pool_permutations": lambda: probes.pool_permutations([]),
    "westfall_young": lambda: probes.westfall_young(np.ones(3), np.ones((4, 2))),
    "benjamini_hochberg": lambda: probes.benjamini_hochberg(np.array([0.5, 1.5])),
    "benjamini_hochberg, below 0": lambda: probes.benjamini_hochberg(np.array([-0.1])),
    "two_nn, fit": lambda: probes.two_nn(CLOUD, fit="guess"),  # type: ignore[arg-type]
    "two_nn, discard": lambda: probes.two_nn(CLOUD, discard_fraction=1.0),
    "two_nn, discard nan": lambda: probes.two_nn(CLOUD, discard_fraction=float("nan")),
    "two_nn, duplicates": lambda: probes.two_nn(CLOUD, duplicates="keep"),  # type: ignore[arg-type]
    "two_nn, two points": lambda: probes.two_nn(CLOUD[:2]),
    "two_nn_from_distances, falling": lambda: probes.two_nn_from_distances(np.full(5, 2.0), np.ones(5)),
    "two_nn_curve, points": lambda: probes.two_nn_curve(CLOUD, min_points=1),
    "gride, rank": lambda: probes.gride(CLOUD, max_rank=0),
    "pc_abs_cosine, component 0": lambda: probes.pc_abs_cosine(CLOUD, CLOUD, component=0),
    "pc_abs_cosine, widths": lambda: probes.pc_abs_cosine(CLOUD, CLOUD[:, :3]),
    "random_pc_cosine": lambda: probes.random_pc_cosine(0),
    "linear_cka, rows": lambda: probes.linear_cka(CLOUD, CLOUD[:5]),
    "procrustes_disparity, rows": lambda: probes.procrustes_disparity(CLOUD, CLOUD[:5]),
    "lag_decay, lag": lambda: probes.lag_decay(CLOUD, max_lag=99),
    "trajectory_consistency, two states": lambda: probes.trajectory_consistency(CLOUD[:2]),
    "trajectory_nulls, states": lambda: probes.trajectory_nulls(2, 3),
    "trajectory_nulls, draws": lambda: probes.trajectory_nulls(4, 3, n_draws=0),
    "crystallisation, share": lambda: probes.crystallisation(np.ones(3), share=0.0),
    "crystallisation, share nan": lambda: probes.crystallisation(np.ones(3), share=float("nan")),
    "crystallisation, nothing": lambda: probes.crystallisation(np.array([])),
    "pair_parallelism, pairs": lambda: probes.pair_parallelism(CLOUD[:2], CLOUD[:2]),
    "pair_parallelism, shapes": lambda: probes.pair_parallelism(CLOUD, CLOUD[:, :3]),
    "pair_parallelism, components": lambda: probes.pair_parallelism(CLOUD, CLOUD[::-1], n_removed_components=99),
    "ordinal_distances, none": lambda: probes.ordinal_distances(0),
    "cyclic_distances, period": lambda: probes.cyclic_distances(np.arange(4.0), period=0.0),
    "cyclic_distances, period nan": lambda: probes.cyclic_distances(np.arange(4.0), period=float("nan")),
    "great_circle_km, latitudes": lambda: probes.great_circle_km(np.array([0.0, 91.0]), np.zeros(2)),
    "great_circle_km, lengths": lambda: probes.great_circle_km(np.zeros(3), np.zeros(2)),
    "levenshtein_distances, numbers": lambda: probes.levenshtein_distances([1, 2, 3]),  # type: ignore[list-item]
    "levenshtein_distances, a word": lambda: probes.levenshtein_distances("word"),
    "levenshtein_distances, none": lambda: probes.levenshtein_distances([]),
    "fit_logistic, one class": lambda: probes.fit_logistic(CLOUD, np.zeros(12)),
    "fit_logistic, C": lambda: probes.fit_logistic(CLOUD, np.arange(12) % 2, C=-1.0),
    "auroc, one class": lambda: probes.auroc(np.arange(3.0), np.ones(3)),
    "auroc, lengths": lambda: probes.auroc(np.arange(3.0), np.array([0, 1])),
    "average_precision, one class": lambda: probes.average_precision(np.arange(3.0), np.ones(3)),
    "true_positive_rate, rate": lambda: probes.true_positive_rate(np.arange(3.0), np.array([0, 1, 1]), 2.0),
    "platt_scaling, nan": lambda: probes.platt_scaling(np.array([0.0, np.nan]), np.array([0, 1])),
    "brier_score, no probabilities": lambda: probes.brier_score(np.array([0.0, 1.5]), np.array([0, 1])),
    "calibration_error, bins": lambda: probes.calibration_error(np.array([0.0, 1.0]), np.array([0, 1]), 0),
    "equal_count_bins, bins": lambda: probes.equal_count_bins(np.arange(3.0), 0),
    "conformal_threshold, alpha": lambda: probes.conformal_threshold(np.arange(99.0), 1.0),
    "conformal_threshold, few": lambda: probes.conformal_threshold(np.arange(3.0), 0.05),
    "auroc_limits, groups": lambda: probes.auroc_limits(np.arange(3.0), [0, 1, 1], [0], np.random.default_rng(0)),
    "binomial_limits": lambda: probes.binomial_limits(3, 2),
    "mean_gap, none": lambda: probes.mean_gap(np.array([]), RNG),
    "mean_gap, draws": lambda: probes.mean_gap(np.arange(3.0), RNG, n_draws=0),
    "recovery, pairs": lambda: probes.recovery(np.ones((2, 3)), np.ones(4), RNG),
    "recovery, one axis": lambda: probes.recovery(np.ones(3), np.ones(3), RNG),
    "recovery, nan in part": lambda: probes.recovery(np.array([[1.0, np.nan]]), np.ones(2), RNG),
    "sign_flip_test, words": lambda: probes.sign_flip_test(np.array([["a", "b"]]), RNG),
    "sign_flip_test, no draws": lambda: probes.sign_flip_test(CLOUD, RNG, n_draws=0),
    "ranks_of_spectrum, below 0": lambda: probes.ranks_of_spectrum(np.array([1.0, -1.0])),
}  # fmt: skip

# --- workbench: tokens

BAD_TOKENS = {
    "none": None,
    "a list": [[1, 2, 3]],
    "an array": np.ones((2, 8), dtype=np.int64),
    "floats": torch.ones(2, 8),
    "bools": torch.ones(2, 8, dtype=torch.bool),
    "one axis": torch.ones(8, dtype=torch.long),
    "three axes": torch.ones(2, 2, 8, dtype=torch.long),
    "no sequence": torch.ones(0, 8, dtype=torch.long),
    "no position": torch.ones(2, 0, dtype=torch.long),
    "too long": torch.ones(2, 99, dtype=torch.long),
    "an id below 0": torch.full((2, 8), -1),
    "an id that is too large": torch.full((2, 8), 61),
}
HOOK = "blocks.0.attn.hook_z"
MODEL = small_model("janus-v3", n_layers=2)
GOOD = torch.ones(6, 8, dtype=torch.long)
PAIRS = PairTokens("made", GOOD, GOOD, GOOD > 0, GOOD[:, :1], GOOD[:, :1] - 1, torch.arange(6))
OF_TOKENS: dict[str, Call] = {
    "stream": lambda t: next(workbench.stream(MODEL, t, [HOOK])),
    "harvest": lambda t: workbench.harvest(MODEL, t, [HOOK], "out"),
    "ablate": lambda t: workbench.ablate(MODEL, t),
    "ablate_pairs": lambda t: workbench.ablate_pairs(MODEL, t),
    "topology": lambda t: workbench.topology(MODEL, t),
    "attention": lambda t: workbench.attention(MODEL, t),
    "attention_patterns": lambda t: workbench.attention_patterns(MODEL, t),
    "compare": lambda t: workbench.compare(MODEL, MODEL, t),
    "sae_train": lambda t: workbench.sae_train(MODEL, t, out="out"),
    "sae_scores": lambda t: workbench.sae_scores(MODEL, STACK, t),
}

# --- workbench: settings
PATHS: dict[str, Callable[[], object]] = {
    "load, nothing": lambda: workbench.load(""),
    "load, nowhere": lambda: workbench.load("nowhere"),
    "load, a NUL": lambda: workbench.load("no\0where"),
    "load, dtype": lambda: workbench.load("nowhere", dtype="int4"),
    "load_sae, nothing": lambda: workbench.load_sae(""),
    "load_sae, nowhere": lambda: workbench.load_sae("nowhere"),
    "load_sae, a NUL": lambda: workbench.load_sae("no\0where"),
    "load_sae, beside the hub": lambda: workbench.load_sae("../no/where"),
    "load_sae, an id": lambda: workbench.load_sae("gpt2-small-res-jb/blocks.99.hook_resid_pre"),
    "load_sae, a folder of something else": lambda: workbench.load_sae(Path(__file__).parent),
    "build": lambda: workbench.build("nowhere"),
    "train": lambda: workbench.train("nowhere", "out"),
    "train, seed": lambda: workbench.train(load_recipe("janus-v3-control-nano"), "out", seed=-1),
    "train, setting": lambda: workbench.train(load_recipe("janus-v3-control-nano"), "out", nope=3),
    "train, dtype": lambda: workbench.train(load_recipe("janus-v3-control-nano"), "out", dtype="float8"),
    "study": lambda: workbench.study("nowhere", "out"),
    "study, threads": lambda: workbench.study("janus-nano", "out", n_threads=0),
    "ladder": lambda: workbench.ladder("nowhere", ["a"], "out"),
    "export": lambda: workbench.export(MODEL, "gguf", "out"),  # type: ignore[arg-type]
    "import_model": lambda: workbench.import_model("nowhere", "out"),
    "evaluate, no tokenizer": lambda: workbench.evaluate(MODEL, ["the king"]),
    "mechanisms, none": lambda: workbench.mechanisms(MODEL, ["the king"]),
    "probe, no tokenizer": lambda: workbench.probe([MODEL]),
    "probe, no model": lambda: workbench.probe([]),
    "text_quality, no tokenizer": lambda: workbench.text_quality(MODEL),
    "attached, no source": lambda: workbench.attached(MODEL, STACK).__enter__(),
    "attached, no output": lambda: workbench.attached(MODEL, TRANSCODERS).__enter__(),
    "attached, a module": lambda: workbench.attached(torch.nn.Linear(2, 2), STACK).__enter__(),
    "analysis_tokens, no tokenizer": lambda: workbench.analysis_tokens(MODEL, n_sequences=2),
    "direct_logit_attribution, answers": lambda: workbench.direct_logit_attribution(MODEL, GOOD, GOOD[:1, 0]),
    "direct_logit_attribution, position": lambda: workbench.direct_logit_attribution(MODEL, GOOD, GOOD[:, 0], None, 99),
    "direct_logit_attribution, model": lambda: workbench.direct_logit_attribution(None, GOOD, GOOD[:, 0]),
    "attribute, no pairs": lambda: workbench.attribute(MODEL, GOOD),  # type: ignore[arg-type]
    "attribute, no model": lambda: workbench.attribute(None, GOOD),  # type: ignore[arg-type]
    "paths, no pairs": lambda: workbench.paths(MODEL, GOOD),  # type: ignore[arg-type]
    "paths, no model": lambda: workbench.paths(None, GOOD),  # type: ignore[arg-type]
    "over_training, another analysis": lambda: workbench.over_training("atlas", "nowhere", steps="all"),
    "over_training, nowhere": lambda: workbench.over_training("topology", "nowhere", steps="all"),
    "over_training, steps": lambda: workbench.over_training("topology", "nowhere", steps="4-2"),
    "feature_effects, no source": lambda: workbench.feature_effects(MODEL, STACK, GOOD),
    "feature_effects, n_exact": lambda: workbench.feature_effects(MODEL, STACK, GOOD, n_exact=-1),
    "content_share, no source": lambda: workbench.content_share(MODEL, STACK, ["the king"]),
    "content_share, no text": lambda: workbench.content_share(MODEL, STACK, []),
    "content_share, one text": lambda: workbench.content_share(MODEL, STACK, "the king"),
    "content_share, n_contexts": lambda: workbench.content_share(MODEL, STACK, ["the king"], n_contexts=0),
    "content_share, n_permutations": lambda: workbench.content_share(MODEL, STACK, ["a"], n_permutations=0),
    "patch, site": lambda: workbench.patch(MODEL, PAIRS, ["nope"]),
    "patch, site alone": lambda: workbench.patch(MODEL, PAIRS, "z"),
    "patch, position": lambda: workbench.patch(MODEL, PAIRS, position=["subject"]),
    "patch, direction": lambda: workbench.patch(MODEL, PAIRS, direction=["both"]),
    "patch, no draws": lambda: workbench.patch(MODEL, PAIRS, n_bootstrap=0),
    "patch, no pairs": lambda: workbench.patch(MODEL, PAIRS.take(slice(0))),
    "patch, ids": lambda: workbench.patch(MODEL, replace(PAIRS, clean=PAIRS.clean + 10**6)),
    "sae_scores, no source": lambda: workbench.sae_scores(MODEL, STACK, GOOD),
    "sae_scores, parts": lambda: workbench.sae_scores(MODEL, STACK, GOOD, parts=["heart"]),
    "sae_scores, no part": lambda: workbench.sae_scores(MODEL, STACK, GOOD, parts=[]),
    "sae_scores, words": lambda: workbench.sae_scores(MODEL, STACK, GOOD, n_words=0),
    "generate, no generator": lambda: workbench.generate(MODEL, GOOD),
    "generate, temperature": lambda: workbench.generate(MODEL, GOOD, temperature=float("nan")),
    "generate, top_k": lambda: workbench.generate(MODEL, GOOD, temperature=0, top_k=0),
    "generate, top_p": lambda: workbench.generate(MODEL, GOOD, temperature=0, top_p=2.0),
    "generate, nothing new": lambda: workbench.generate(MODEL, GOOD, 0, temperature=0),
    "generate, no prompt": lambda: workbench.generate(MODEL, GOOD[:, :0], temperature=0),
    "generate, too long": lambda: workbench.generate(MODEL, torch.ones(1, 24, dtype=torch.long), temperature=0),
    "generate, mask": lambda: workbench.generate(MODEL, GOOD, temperature=0, attention_mask=torch.zeros_like(GOOD)),
    "scrub, task": lambda: workbench.scrub(MODEL, task="nope"),
    "scrub, heads": lambda: workbench.scrub(MODEL, heads=["1"]),
    "steer, no SAEs": lambda: workbench.steer(MODEL, tokens=GOOD),
    "steer, alphas": lambda: workbench.steer(MODEL, tokens=GOOD, alphas=[float("nan")]),
    "steered, no source": lambda: workbench.steered(MODEL, STACK, (0, 0, 0), "remove").__enter__(),
    "steered, alpha": lambda: workbench.steered(MODEL, STACK, (0, 0, 0), alpha=float("nan"), max_act=1.0).__enter__(),
    "tasks, unknown": lambda: workbench.tasks(MODEL, tasks=["inductoin"]),
    "tasks, n_pairs": lambda: workbench.tasks(MODEL, n_pairs=3),
    "stream, no hook": lambda: next(workbench.stream(MODEL, GOOD, [])),
    "stream, a word": lambda: next(workbench.stream(MODEL, GOOD, HOOK)),
    "stream, a hook twice": lambda: next(workbench.stream(MODEL, GOOD, [HOOK, HOOK])),
    "stream, an unknown hook": lambda: next(workbench.stream(MODEL, GOOD, ["nope"])),
    "stream, batch": lambda: next(workbench.stream(MODEL, GOOD, [HOOK], 0)),
    "harvest, dtype": lambda: workbench.harvest(MODEL, GOOD, [HOOK], "out", dtype="int8"),
    "harvest, shards": lambda: workbench.harvest(MODEL, GOOD, [HOOK], "out", shard_bytes=0),
    "ablate, kind": lambda: workbench.ablate(MODEL, GOOD, kind="noise"),  # type: ignore[arg-type]
    "ablate, layers": lambda: workbench.ablate(MODEL, GOOD, [7]),
    "ablate, no layers": lambda: workbench.ablate(MODEL, GOOD, []),
    "ablate, a layer that is true": lambda: workbench.ablate(MODEL, GOOD, [True]),
    "ablate, bootstrap": lambda: workbench.ablate(MODEL, GOOD, n_bootstrap=1),
    "ablate, budget": lambda: workbench.ablate(MODEL, GOOD, memory_budget_bytes=1),
    "ablate_pairs, none": lambda: workbench.ablate_pairs(MODEL, GOOD, []),
    "ablate_pairs, of itself": lambda: workbench.ablate_pairs(MODEL, GOOD, [((0, 0), (0, 0))]),
    "ablate_pairs, out of range": lambda: workbench.ablate_pairs(MODEL, GOOD, [((0, 0), (9, 0))]),
    "attention, repeats": lambda: workbench.attention(MODEL, GOOD, n_repeated=-1),
    "topology, layers": lambda: workbench.topology(MODEL, GOOD, [-1]),
    "compare, components": lambda: workbench.compare(MODEL, MODEL, GOOD, n_components=0),
    "compare, vocabularies": lambda: workbench.compare(MODEL, small_model("janus-v3", n_layers=1, d_vocab=9), GOOD),
    "sae_train, setting": lambda: workbench.sae_train(MODEL, GOOD, nope=1),
    "sae_train, l1": lambda: workbench.sae_train(MODEL, GOOD, l1=[float("nan")]),
    "sae_train, no l1": lambda: workbench.sae_train(MODEL, GOOD, l1=[]),
    "sae_train, seeds": lambda: workbench.sae_train(MODEL, GOOD, seeds=[-1]),
    "sae_train, too few": lambda: workbench.sae_train(MODEL, GOOD, batch_size=4096, n_train_tokens=None),
    "to_hooked_transformer": lambda: workbench.to_hooked_transformer(small_model("attn-res")),
}  # fmt: skip

# --- sae

STACK = sae.StackedSAE(sae.SAEConfig(n_saes=2, d_in=4, d_sae=6))
READING = tuple(sae.SAESource(hook_name=f"blocks.{i}.ln2.hook_normalized", layer=i) for i in range(2))
TRANSCODERS = sae.StackedSAE(
    sae.SAEConfig(n_saes=2, d_in=4, d_sae=6, architecture="skip_transcoder"), info=sae.StackInfo(sources=READING)
)
ACTIVATIONS = torch.randn(2, 10, 4, generator=torch.Generator().manual_seed(0))
NORMED = sae.StackedSAE(sae.SAEConfig(n_saes=1, d_in=4, d_sae=6, normalize_inputs="layer_norm"))
OF_SAES: dict[str, Callable[[], object]] = {
    **{f"SAEConfig, {key} = {value}": lambda key=key, value=value: sae.SAEConfig(
        **({"n_saes": 1, "d_in": 4, "d_sae": 8} | {key: value})) for key, value in (
            ("n_saes", 0), ("d_in", 0), ("d_sae", -1), ("architecture", "magic"), ("k", float("nan")), ("nope", 1),
            ("d_in", "wide"))},
    "check_model, nobody's": lambda: sae.check_model(STACK, "0" * 64),
    "density_histogram, above 1": lambda: sae.density_histogram(torch.full((2, 3), 2.0)),
    "density_histogram, nan": lambda: sae.density_histogram(torch.full((2, 3), torch.nan)),
    "density_histogram, bins": lambda: sae.density_histogram(torch.full((2, 3), 0.5), bin_width=0.7),
    "interpolate_at_l0": lambda: sae.interpolate_at_l0([1.0, 2.0], [1.0], 1.0),
    "match_l0": lambda: sae.match_l0([1.0, 2.0], [1.0, 2.0], [1.0, 2.0], [1.0, 2.0], n_points=1),
    "max_cosine": lambda: sae.max_cosine(torch.ones(3, 4), torch.ones(3, 5)),
    "stability": lambda: sae.stability(torch.ones(2, 3, 4), torch.ones(1, 3, 4)),
    "nearest_features, none": lambda: sae.nearest_features(torch.ones(1, 3, 4), 0),
    "nearest_features, all": lambda: sae.nearest_features(torch.ones(1, 3, 4), 3),
    "shuffle_coordinates": lambda: sae.shuffle_coordinates(torch.ones(3, 4), torch.Generator()),
    "spawn_generators, twice": lambda: sae.spawn_generators(torch.Generator(), 2, [(1,), (1,)]),
    "spawn_generators, below 0": lambda: sae.spawn_generators(torch.Generator(), 1, [(-1,)]),
    "random_dictionary, l0": lambda: sae.random_dictionary(
        STACK.config, ACTIVATIONS, [100.0, 1.0], torch.Generator()),
    "random_dictionary, a pair": lambda: sae.random_dictionary(
        STACK.config, ACTIVATIONS, [1.0, 1.0], torch.Generator(), y=ACTIVATIONS),
    "random_dictionary, shape": lambda: sae.random_dictionary(
        STACK.config, ACTIVATIONS[..., :3], [1.0, 1.0], torch.Generator()),
    "encode, width": lambda: STACK.encode(torch.ones(2, 10, 3)),
    "encode, stack": lambda: STACK.encode(torch.ones(3, 10, 4)),
    "decode, width": lambda: STACK.decode(torch.ones(2, 10, 5)),
    "select": lambda: STACK.select([5]),
    "set_feature": lambda: sae.set_feature(ACTIVATIONS[0], torch.ones(3), torch.ones(10)),
    "steer, alpha": lambda: sae.steer(ACTIVATIONS[0], torch.ones(4), "max_act", float("nan"), max_act=1.0),
    "steer, how": lambda: sae.steer(ACTIVATIONS[0], torch.ones(4), "push"),  # type: ignore[arg-type]
    "steer, width": lambda: sae.steer(ACTIVATIONS[0], torch.ones(3), "remove"),
    "steer, no constant": lambda: sae.steer(ACTIVATIONS[0], torch.ones(4), "norm", 1.0),
    "ScoreSums, shape": lambda: sae.ScoreSums(STACK.config).update(ACTIVATIONS, ACTIVATIONS, ACTIVATIONS),
    "weight_scores, shape": lambda: sae.weight_scores(STACK, torch.ones(2, 5)),
    "find_absorbed, none": lambda: sae.find_absorbed(torch.ones(3, 4), torch.ones(4, 2), torch.ones(3, 2),
                                                     torch.ones(2), []),
    "find_absorbed, shape": lambda: sae.find_absorbed(torch.ones(3, 4), torch.ones(5, 2), torch.ones(3, 2),
                                                      torch.ones(2), [0]),
    "StackedSAE.load": lambda: sae.StackedSAE.load("nowhere"),
    "StackedSAE.from_sae_lens": lambda: sae.StackedSAE.from_sae_lens("nowhere"),
    "StackedSAE.from_gemma_scope": lambda: sae.StackedSAE.from_gemma_scope("nowhere"),
    "decode, no x": lambda: NORMED.decode(torch.ones(10, 6)),
    "loss_and_gradients, normalised": lambda: sae.loss_and_gradients(NORMED, ACTIVATIONS[:1], torch.ones(1)),
    "SAEConfig, layer_norm of one": lambda: sae.SAEConfig(n_saes=1, d_in=1, d_sae=2, normalize_inputs="layer_norm"),
    "SAEConfig, normalize_inputs of a transcoder": lambda: sae.SAEConfig(
        n_saes=1, d_in=4, d_sae=2, architecture="transcoder", normalize_inputs="layer_norm"),
    "SAEConfig, normalize_inputs": lambda: sae.SAEConfig(
        n_saes=1, d_in=4, d_sae=2, normalize_inputs="twice"),  # type: ignore[arg-type]
    "StackedSAE.save, nan": lambda: _poisoned().save("out"),
    "StackedSAE.to_sae_lens, nan": lambda: _poisoned().to_sae_lens("out"),
    "loss_and_gradients, l1": lambda: sae.loss_and_gradients(STACK, ACTIVATIONS, torch.ones(3)),
    "loss_and_gradients, shape": lambda: sae.loss_and_gradients(STACK, ACTIVATIONS[..., :3], torch.ones(2)),
    "loss_and_gradients, a pair": lambda: sae.loss_and_gradients(STACK, ACTIVATIONS, torch.ones(2), y=ACTIVATIONS),
    "loss_and_gradients, no pair": lambda: sae.loss_and_gradients(TRANSCODERS, ACTIVATIONS, torch.ones(2)),
    "decode, nothing to skip": lambda: TRANSCODERS.decode(torch.ones(2, 10, 6)),
    "train_stack": lambda: sae.train_stack(SimpleNamespace(  # type: ignore[arg-type]
        n_steps_done=0, config=SimpleNamespace(n_steps=3)), []),
}  # fmt: skip


def _poisoned() -> sae.StackedSAE:
    stack = sae.StackedSAE(sae.SAEConfig(n_saes=1, d_in=4, d_sae=6))
    with torch.no_grad():
        stack.W_dec[0, 0, 0] = torch.nan
    return stack


def _cases() -> dict[str, Callable[[], object]]:
    found: dict[str, Callable[[], object]] = {}
    tables = (
        (OF_MATRICES, BAD_MATRICES), (OF_DISTANCES, BAD_DISTANCES), (OF_VECTORS, BAD_VECTORS), (OF_TOKENS, BAD_TOKENS)
    )  # fmt: skip
    for functions, values in tables:
        for name, function in functions.items():
            for kind, value in values.items():
                found[f"{name} of {kind}"] = lambda function=function, value=value: function(value)
    for settings in (SETTINGS, PATHS, OF_SAES):
        assert not found.keys() & settings.keys()
        found |= settings
    # three axes are several concepts' states here, and an array of any shape of p-values there
    for name in ("benjamini_hochberg of three axes",):
        del found[name]
    return found


CASES = _cases()


@pytest.mark.parametrize("name", list(CASES))
def test_a_bad_argument_is_a_value_error(home, tally, name) -> None:
    tally("bad input", "public functions", 1, 0)
    warnings.simplefilter("ignore")  # pytest puts the filters back behind the test
    with pytest.raises(ValueError) as caught:  # noqa: PT011  (what it says is judged below)
        CASES[name]()
    said = str(caught.value)
    assert said.isprintable() or "validation error" in said, said  # pydantic's own has a line a field
    assert re.search(
        r"\b(expected|got|nearest|is missing|not there|cannot|is no|has only|not permitted)\b|Input should", said
    ), said
    assert not list(Path.cwd().iterdir())
    tally("bad input", "public functions", 0, 1)


def test_every_public_function_is_among_them() -> None:
    called = {name.split(",")[0].split(" of ")[0] for name in CASES}
    no_function = {name for name in probes.__all__ if name[0].isupper()}
    assert set(probes.__all__) - no_function <= called
    assert (
        set(workbench.__all__) - {"recipes", "from_hooked_transformer"} <= called
    )  # its own tests: a model to refuse is dear
    # what takes nothing that could be wrong, or a record that has been checked
    trusting = {"geometric_median", "l1_share_at", "lr_at"}
    assert {name for name in sae.__all__ if not name[0].isupper()} - trusting <= called
