"""A made-up study with the sizes, the spread and the nastiness of a real one: what the pages are drawn from in tests.

No number here was measured. Everything follows from one seed, so a test that fails, fails again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from reports.contract import declared
from reports.tables import COLUMNS, write_table
from workbench.study.effects import write_effects
from workbench.study.findings import write_findings

BASES = ("z", "pattern", "residual")
PARTS = {"attention": 3.5, "mlp": 1.0, "all": 2.0}
MATRICES = ("W_Q", "W_K", "W_V", "W_O", "W_gate", "W_in", "W_out")

# every token that has ever broken a page, and some that may
HOSTILE = (
    "</script>",
    "<script>window.pwned=1</script>",
    "<img src=x onerror=window.pwned=1>",
    "<svg/onload=window.pwned=1>",
    "<!--",
    "--><script>window.pwned=1</script>",
    "<![CDATA[",
    "]]>",
    "'\"><b>",
    "&lt;b&gt;&amp;",
    "\"'`",
    "{{ 7*7 }}",
    "{% raw %}",
    "${window.pwned=1}",
    "javascript:window.pwned=1",
    "\x00",
    "\x1b[31m",
    "\u202eevil\u202c",
    "\u200f",
    "\u2028",
    "\u2029",
    "\ufeff",
    "\ufffd",
    "\ud83d",
    "🦊",
    "👩‍👩‍👧",
    "e\u0301",
    "العربية",
    "עברית",
    "\n",
    "\r\n",
    "\t",
    " ",
    "",
    "\\",
    "\\u003c/script\\u003e",
    "NaN",
    "null",
    "__proto__",
    "constructor",
    "a" * 300,
    "</style>",
    "</title>",
    "</textarea>",
    "<math><mtext></form>",
    "=cmd|' /C calc'!A0",
)

HOSTILE_WHY = "One seed; both intervals overlap </script><script>window.pwned=1</script>."

LINE_ENDS = {ord(mark): f"\\u{ord(mark):04x}" for mark in "\x85\u2028\u2029"}

COMMON_WORDS = """
the of and a to in he was that it his her with had as for she not at but on be you is by said my from all
which so him would have one no were been they this there when or an who out we what if me up could into then
old little man time before down house hand again door eyes night day great long good never upon way over own
after made came went looked thought face like more only very must may father mother ship sea king horse river
morning window table letter friend money garden winter summer silver captain doctor island forest silence
shadow country village question answer
"""
WORDS = tuple(COMMON_WORDS.split())


def vocabulary(rng: np.random.Generator, size: int = 4096) -> list[str]:
    """Return `size` token strings as a byte-level BPE decodes them: words with a leading space, pieces, punctuation."""
    pieces = ["ing", "ed", "er", "ly", "tion", "ment", "s", "'s", "est", "ness", "un", "re", "th", "st", ",", ".", ";"]
    tokens = [f" {word}" for word in WORDS] + pieces + [f" {word.capitalize()}" for word in WORDS]
    while len(tokens) < size:
        letters = rng.choice(list("etaoinshrdlu"), rng.integers(2, 7))
        tokens.append((" " if rng.random() < 0.6 else "") + "".join(letters))
    return tokens[:size]


def write_fake_study(
    directory: Path,
    *,
    seed: int = 0,
    models: Sequence[str] = ("janus-v3-control-nano", "janus-v3-adaptive-nano"),
    seeds: Sequence[int] = (0,),
    n_layers: int = 4,
    n_heads: int = 8,
    d_sae: int = 128,
    n_contexts: int = 5,
    context_length: int = 16,
    hostile: bool = True,
    empty_sae: bool = False,
    later: bool = False,
    atlas: bool = True,
) -> Path:
    """Return `directory`, filled with the CSVs and the study.json of a made-up study."""
    directory.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    runs = [(model, run_seed) for model in models for run_seed in seeds]
    write_topology(directory, rng, runs, n_layers, n_heads)
    write_saes(directory, rng, runs, n_layers, n_heads, d_sae, empty_sae)
    write_ablation(directory, rng, runs, n_layers, n_heads)
    write_training(directory, rng, runs, n_layers)
    if atlas:
        table = feature_atlas(rng, models, n_layers, n_heads, d_sae, n_contexts, context_length, hostile, empty_sae)
        write_table(table, directory, "feature_atlas")
    if later:
        write_concepts(directory, rng, runs, n_layers)
        write_attention_and_spectra(directory, rng, runs, n_layers, n_heads)
        write_text_and_claims(directory, rng, runs)
        write_continuations(directory, rng, runs)
        write_further(directory, rng, runs, n_layers, n_heads)
        write_recurrent(directory, rng, seeds, models[0])
        write_factorial(directory)
        write_sizes(directory)
    (directory / "study.json").write_text(json.dumps(study_record(models, seeds), indent=1), encoding="utf-8")
    write_effects(directory)
    write_findings(directory)
    return directory


def write_rows(rows: Sequence[tuple], directory: Path, name: str, *trailing: str) -> None:
    write_table(pd.DataFrame(rows, columns=[*COLUMNS[name], *trailing]), directory, name)


def is_adaptive(model: str) -> bool:
    return "adaptive" in model


def write_topology(directory: Path, rng: np.random.Generator, runs, n_layers: int, n_heads: int) -> None:
    cosines, stats = [], []
    for model, seed in runs:
        for layer in range(n_layers):
            depth = (layer + 1) / n_layers
            for basis, scale in zip(BASES, (0.03, 0.35, 0.05), strict=True):
                pressed = is_adaptive(model) and basis == "z"
                size = scale * (1 - 0.9 * depth**3 if pressed else 0.7 + 0.5 * depth)
                noise = rng.normal(size * (basis == "pattern"), size, (n_heads, n_heads))
                cos = np.clip((noise + noise.T) / 2, -0.99, 0.99)
                np.fill_diagonal(cos, 1.0)
                off = np.abs(cos[~np.eye(n_heads, dtype=bool)]) if n_heads > 1 else np.array([np.nan])
                pairs = [(i, j) for i in range(n_heads) for j in range(n_heads)]
                cosines += [(model, seed, layer, basis, i, j, cos[i, j]) for i, j in pairs]
                rank = 59.0 - 34 * depth * is_adaptive(model) + rng.normal() if basis == "z" else np.nan
                ranks = (rank, rank * 1.3, rank / 9, rank / 2, rank / 128)
                stats.append((model, seed, layer, basis, off.max(), off.mean(), *ranks, 16384))
    write_rows(stats, directory, "topology_stats")
    write_effective_sizes(directory, pd.DataFrame(stats, columns=COLUMNS["topology_stats"]), n_layers)
    write_rows(cosines, directory, "head_cosines")


def write_effective_sizes(directory: Path, stats: pd.DataFrame, n_layers: int) -> None:
    """Write N_eff of every model against the first, over all layers and at half the depth."""
    rows, first = [], stats["model"].iloc[0]
    of_z = stats[(stats["basis"] == "z")]
    by_layer = {(row.model, row.seed, row.layer): row.rank_utilization for row in of_z.itertuples()}
    for layer in (-1, max(0, n_layers // 2 - 1)):
        for model, seed in dict.fromkeys(zip(stats["model"], stats["seed"], strict=True)):
            layers = range(n_layers) if layer < 0 else (layer,)
            own, other = (np.mean([by_layer[name, seed, place] for place in layers]) for name in (model, first))
            sizes = (1_318_016 * own / other, layer, layer, 793_728, 793_728 * own / other)
            rows += [(model, seed, first, seed, 1_318_016, own, other, *sizes)] * (model != first)
    if rows:
        trailing = ("layer_a", "layer_b", "n_parameters_no_embedding", "n_eff_no_embedding")
        write_rows(rows, directory, "effective_size", *trailing)


def write_saes(directory: Path, rng: np.random.Generator, runs, n_layers, n_heads, d_sae, empty: bool) -> None:
    rows, densities = [], []
    nan = float("nan")
    for model, seed in runs:
        for layer in range(n_layers):
            for head in range(n_heads):
                for dictionary in ("trained", "random", "shuffled"):
                    l0 = 6 + 3 * layer * (1.2 if is_adaptive(model) else 0.9) + rng.normal()
                    fvu = {"trained": 0.12, "random": 0.74, "shuffled": 0.55}[dictionary] * rng.uniform(0.8, 1.2)
                    dead = {"trained": 0.1, "random": 0.0, "shuffled": 0.3}[dictionary] * rng.uniform(0.5, 1.5)
                    if empty and dictionary == "trained":
                        l0, fvu, dead = 0.0, np.nan, 1.0
                    base, zero = 4.13, 4.13 + abs(rng.normal(0, 0.02))
                    losses = (base, base + (zero - base) * fvu, zero, 1 - fvu)
                    sae = (model, seed, layer, head, 16, d_sae, 0.03, l0, fvu / 16, fvu, dead)
                    if dictionary == "shuffled":
                        losses, n_tokens = (nan, nan, nan, nan), 28_672
                    else:
                        n_tokens = 131_072
                    rows.append((*sae, *losses, 1_000_000, n_tokens, dictionary, 4096, 0.01 * head, 0.1 + 0.1 * layer))
                alive = 0 if empty else d_sae - rng.binomial(d_sae, 0.1)
                bins = np.floor(rng.normal(-2.3 + 0.1 * layer, 0.7, alive).clip(-5, -0.01) * 4) / 4
                values, counts = np.unique(bins, return_counts=True)
                labels = [*(f"{value:g}" for value in values), "dead"]
                for label, count in zip(labels, [*counts, d_sae - alive], strict=True):
                    densities.append((model, seed, layer, head, label, int(count)))
    trailing = ("dictionary", "n_ce_tokens", "near_copy_share", "dense_fraction")
    write_rows(rows, directory, "sae_training_results", *trailing)
    write_rows(densities, directory, "sae_density")


def write_ablation(directory: Path, rng: np.random.Generator, runs, n_layers: int, n_heads: int) -> None:
    rows = []
    for model, seed in runs:
        base = 4.13 + 0.013 * is_adaptive(model)
        for layer in range(n_layers):
            for head in range(n_heads):
                scale = (1.4 if layer == 0 else 0.8) * (0.6 if is_adaptive(model) else 1.0)
                impact = scale * rng.gamma(0.7, 0.35) - 0.02
                error = 0.02 + 0.05 * impact**0.5 if impact > 0 else 0.02
                row = (impact, error, impact - 1.96 * error, impact + 1.96 * error, abs(impact) * 0.03, 65536)
                rows.append((model, seed, layer, head, "zero", base, base * (1 + impact / 100), *row))
    write_rows(rows, directory, "ablation_results")


def write_training(directory: Path, rng: np.random.Generator, runs, n_layers: int, n_steps: int = 200) -> None:
    rows = []
    for model, seed in runs:
        for index in range(n_steps):
            step = index * 4
            loss = 4.1 + 0.013 * is_adaptive(model) + 4.2 * np.exp(-index / 25) + rng.normal(0, 0.05)
            lam = 0.05 * min(1, index / 75) * is_adaptive(model)
            sigma = np.array([0.031 * np.exp(-index / 60 * is_adaptive(model)) + 0.0015, 0.4, 0.05])
            sigma *= rng.uniform(0.95, 1.05, 3)
            row = {
                "model": model, "seed": seed, "phase": "language", "step": step, "n_tokens": step * 4096, "loss": loss,
                "held_out_loss": loss + 0.03 if index % 20 == 19 else np.nan, 
                "vsm.lambda": lam, "vsm.loss": 3 * lam * sigma[0], "vsm.sigma": sigma[0],
                "lr": 2e-3 * min(1, index / 10), "grad_norm": 1 / (1 + index / 40),
                "tokens_per_s": 11000 + rng.normal(0, 300),
                "sigma_z": sigma[0], "sigma_pattern": sigma[1], "sigma_residual": sigma[2],
            }  # fmt: skip
            for layer in range(n_layers):
                for basis, value in zip(BASES, sigma, strict=True):
                    row[f"sigma_{basis}.{layer}"] = value * (0.6 + 0.2 * layer)
                row[f"nuclear_rank.W_O.{layer}"] = 100 - 30 * (1 - np.exp(-index / 50)) + layer
                row[f"stable_rank.W_O.{layer}"] = 30 - 20 * (1 - np.exp(-index / 50)) + layer
            rows.append(row | {"held_out_perplexity": np.exp(row["held_out_loss"])})
    write_table(pd.DataFrame(rows), directory, "train_log")
    baselines = [("unigram", 6.6349, 131072, np.exp(6.6349)), ("bigram", 4.6501, 131072, np.exp(4.6501))]
    write_rows(baselines, directory, "baselines", "perplexity")


def feature_atlas(
    rng: np.random.Generator,
    models: Sequence[str],
    n_layers: int,
    n_heads: int,
    d_sae: int,
    n_contexts: int,
    context_length: int,
    hostile: bool,
    empty: bool,
) -> pd.DataFrame:
    """Return a feature_atlas table; features of one model fire on one made-up held-out stream, as real ones do."""
    tokens = vocabulary(rng)
    weights = 1 / np.arange(1, len(tokens) + 1)
    stream = rng.choice(len(tokens), 131_072, p=weights / weights.sum())
    if hostile:
        places = rng.choice(len(stream), len(stream) // 60, replace=False)
        stream[places] = len(tokens) + rng.integers(0, len(HOSTILE), len(places))
        tokens = [*tokens, *HOSTILE]
    ends = np.cumsum(np.bincount(stream, minlength=len(tokens)))
    occurrences = np.split(np.argsort(stream, kind="stable"), ends[:-1])
    present = np.unique(stream)
    rows = []
    for model in models:
        other = models[1 - models.index(model)] if len(models) == 2 else None
        for layer, head, feature in np.ndindex(n_layers, n_heads, d_sae):
            dead = empty or rng.random() < 0.1
            top = int(present[rng.integers(len(present))])
            found = [] if dead else make_contexts(rng, stream, tokens, occurrences[top], n_contexts, context_length)
            values = [context["value"] for context in found]
            neighbours = [[int(rng.integers(d_sae)), round(cos, 4)] for cos in sorted(rng.uniform(0.2, 0.9, 5))[::-1]]
            match = [other, head, int(rng.integers(d_sae)), round(float(rng.uniform(0, 1)), 4)] if other else None
            rows.append(
                {
                    "model": model,
                    "layer": layer,
                    "head": head,
                    "feature": feature,
                    "density": 0.0 if dead else float(10 ** np.clip(rng.normal(-2.3, 0.7), -5, -0.01)),
                    "max_act": max(values, default=0.0),
                    "mean_act": float(np.mean(values)) / 2 if values else 0.0,
                    "top_token": "" if dead else clean(tokens[top]),
                    "top_contexts": json.dumps(found),  # lone surrogates travel as JSON escapes
                    "logit_promoted": make_logits(rng, tokens, 1),
                    "logit_suppressed": make_logits(rng, tokens, -1),
                    "seed": 0,
                    "dead": dead,
                    "neighbours": json.dumps(neighbours),
                    "match": json.dumps(match),
                    "histogram": make_histogram(found),
                    "interval_contexts": json.dumps([own | {"low": 0.0, "high": 64.0} for own in found[-1:]]),
                }
            )
    return pd.DataFrame(rows)


def clean(token: str) -> str:
    """Return `token` without lone surrogates, which a DataFrame's text column cannot hold."""
    return token.encode("utf-8", "replace").decode("utf-8")


def make_contexts(rng, stream, tokens, places, n_contexts: int, length: int) -> list[dict]:
    """Return the top contexts of a feature that fires on the token found at `places`, strongest first."""
    contexts = []
    chosen = [*places[rng.integers(0, len(places), n_contexts)], *rng.integers(0, len(stream), n_contexts)]
    for place in list(dict.fromkeys(int(place) for place in chosen))[:n_contexts]:
        start = max(0, place - int(length * 0.7))
        window = stream[start : start + length]
        peak = place - start
        acts = np.where(rng.random(len(window)) < 0.1, rng.gamma(1.0, 0.5, len(window)), 0.0)
        acts[peak] = acts.max() + rng.gamma(2.0, 1.0)
        contexts.append(
            {
                "tokens": [tokens[token] for token in window],
                "acts": [round(float(act), 4) for act in acts],
                "peak": peak,
                "value": round(float(acts[peak]), 4),
            }
        )
    return sorted(contexts, key=lambda context: -context["value"])


def make_histogram(contexts: list[dict]) -> str:
    """Return the bins of the activations that the contexts show; empty without any."""
    acts = [act for context in contexts for act in context["acts"] if act > 0]
    if not acts:
        return ""
    counts = np.bincount((np.array(acts) / 0.25).astype(int))
    return json.dumps({"zero": 1000, "width": 0.25, "counts": counts.tolist()})


def make_logits(rng: np.random.Generator, tokens: list[str], sign: int) -> str:
    values = sign * np.sort(rng.gamma(2.0, 0.3, 10))[::-1]
    return json.dumps([[tokens[int(rng.integers(len(tokens)))], round(float(value), 4)] for value in values])


def write_concepts(directory: Path, rng: np.random.Generator, runs, n_layers: int) -> None:
    sets = [("months", 12, "cyclic"), ("digits", 10, "ordinal"), ("us_states", 48, "geographic")]
    sets.append(("years", 35, "ordinal"))
    mantel, geometry, trajectories, points, crystals, pairs = [], [], [], [], [], []
    for model, seed in runs:
        for layer in range(-1, n_layers):
            for n_removed in (0, 1):
                value = rng.normal(0.1 * layer, 0.02)
                pairs.append((model, seed, "antonyms", 8, layer, n_removed, value, -0.03, 0.02, 0.01, 0.02, 999))
        for name, n, topology in sets:
            limits = (-1, n_layers - 1, 0.7, n_layers - 1, 0.9)
            crystals.append((model, seed, name, n, topology, np.nan if name == "digits" else 1.0, *limits))
            if topology in ("ordinal", "cyclic"):
                for layer in (-1, n_layers - 2, n_layers - 1):
                    words = [(HOSTILE[i % len(HOSTILE)] if name == "months" else str(i)) for i in range(n)]
                    places = zip(rng.normal(size=n), rng.normal(size=n), strict=True)
                    for place, (word, point) in enumerate(zip(words, places, strict=True)):
                        row = (model, seed, name, n, topology, layer, clean(word), place, *point, 0.5, 0.25)
                        points.append((*row, int(layer == n_layers - 2)))
            for layer in range(-1, n_layers):
                r = 0.1 + 0.6 * (layer + 1) / n_layers + rng.normal(0, 0.03)
                limits = (r - 0.1, r + 0.15) if n != 10 or layer else (np.nan, np.nan)
                p = (0.001, 0.004, r * 0.7, (r * 0.7) ** 2, 9999)
                mantel.append((model, seed, name, n, topology, layer, r, *p, *limits))
                geometry.append((model, seed, name, n, layer, min(n - 1, 2 + 3 * rng.random() + layer)))
            for lag in range(1, n_layers):
                measure = "trajectory_consistency" if lag == 1 else "lag_decay"
                value = -0.3 / lag + rng.normal(0, 0.05)
                trajectories.append((model, seed, name, measure, lag, value, -0.5 if lag == 1 else 0.0, 0.0))
    write_rows(mantel, directory, "concept_mantel", "ci_low", "ci_high")
    stability = []
    for model, seed in runs:
        for measure in ("r", "partial_r"):
            extreme, value = rng.integers(10, 90, 5), rng.uniform(0.2, 0.7)
            for number, b in enumerate([*extreme, extreme.sum()]):
                place, m = (number, 5000) if number < 5 else (-1, 25000)
                row = (model, seed, "years", n_layers // 2, measure, value, place, m, int(b))
                stability.append((*row, (b + 1) / (m + 1), 0.8 * b / m, 1.3 * b / m))
    write_rows(stability, directory, "mantel_stability")
    write_rows(geometry, directory, "concept_geometry")
    write_rows(points, directory, "concept_points", "is_best")
    write_rows(crystals, directory, "crystallisation")
    write_rows(pairs, directory, "antonym_parallelism")
    write_rows(trajectories, directory, "trajectories")


def write_attention_and_spectra(directory: Path, rng: np.random.Generator, runs, n_layers: int, n_heads: int) -> None:
    attention, spectra, dimension, curve, values, budget, maps = [], [], [], [], [], [], []
    for model, seed in runs:
        for layer in range(n_layers):
            for head in range(n_heads):
                share = rng.uniform(0.3, 0.95)
                triangle = [(row / row.sum()).round(3).tolist() for row in (rng.random(q + 1) for q in range(7))]
                maps.append((model, seed, layer, head, 8, 16, rng.uniform(0.1, 0.9), json.dumps(triangle)))
                attention.append((model, seed, layer, head, share * 3.9, share, rng.uniform(0, 0.9), 128, 65536))
            for matrix in MATRICES:
                rank = 60 + 10 * layer + rng.normal(0, 4) + 40 * (matrix in MATRICES[4:])
                spectra.append((model, seed, layer, matrix, rank, rank * 1.2, rank / 8, rank / 2))
                sigma = [round(3 * np.exp(-i / (6 + 2 * layer + seed + len(model) % 5)), 8) for i in range(24)]
                values.append((model, seed, layer, matrix, json.dumps(sigma, separators=(",", ":"))))
            dimension.append((model, seed, layer, 10 + layer + rng.normal(), 0.3, 4096, 12))
            for k in range(4):
                row = (4096 >> k, 10 + layer - k + rng.normal(), 0.2 if k else np.nan, 1 << k)
                curve.append((model, seed, layer, *row))
        for matrix in MATRICES:
            total = 40.0 + len(model) % 7 + seed
            for part, share in (("all", 1.0), ("early", 0.3), ("middle", 0.45), ("late", 0.25), ("last half", 0.5)):
                own = share if part == "all" else share + 0.01 * seed
                budget.append((model, seed, matrix, part, own * total, own, max(1, round(share * n_layers))))
    write_rows(values, directory, "singular_values")
    write_rows(budget, directory, "rank_budget")
    write_rows(attention, directory, "attention_stats")
    write_rows(maps, directory, "attention_patterns")
    write_examples(directory, runs, n_layers, n_heads)
    write_rows(spectra, directory, "weight_spectra")
    write_rows(dimension, directory, "intrinsic_dimension")
    write_rows(curve, directory, "intrinsic_dimension_curve")
    models = list(dict.fromkeys(model for model, _ in runs))
    if len(models) > 1:
        places = [(layer, pc) for layer in range(n_layers) for pc in (1, 2, 3)]
        seeds = list(dict.fromkeys(seed for _, seed in runs))
        rows, parts = [], []
        for other in models[1:]:
            for seed in seeds:
                pair = (models[0], other)
                rows += [(*pair, layer, pc, rng.uniform(0, 0.2), 0.0705, 512, seed) for layer, pc in places]
                parts += [(*pair, part, rng.uniform(0.05, 0.1) * k, 8, seed) for part, k in PARTS.items()]
        write_rows(rows, directory, "pc_cosine", "seed")
        write_rows(parts, directory, "eigenspectra_divergence", "seed")


def write_examples(directory: Path, runs, n_layers: int, n_heads: int) -> None:
    """Write the kinds of heads, and their maps of two sentences of hostile tokens."""
    rng = np.random.default_rng(7)
    sentences = [[clean(HOSTILE[i]) for i in rng.permutation(len(HOSTILE))[:n]] for n in (9, 14)]
    kinds, maps, texts = [], [], []
    for model, seed in runs:
        for number, tokens in enumerate(sentences):
            kind = ("sentence", "said twice")[number]
            texts.append((model, seed, number, kind, 1, len(tokens), json.dumps(tokens), json.dumps([3] * len(tokens))))
        for layer in range(n_layers):
            for head in range(n_heads):
                values = rng.random(5)
                place = (model, seed, layer, head)
                chosen = int(np.argmax(values > 0.6)) if (values > 0.6).any() else -1
                for i, measure in enumerate(("induction", "previous_token", "bos_mass", "local_mass", "entropy_share")):
                    kinds.append((*place, measure, values[i], 0.1 + 0.1 * i, 4 * values[i] - 2, 0.6, int(i == chosen)))
                for number, tokens in enumerate(sentences):
                    rows = [rng.dirichlet(np.full(q + 1, 0.4)).round(4).tolist() for q in range(len(tokens))]
                    maps.append((*place, number, len(tokens), json.dumps(rows)))
    write_rows(kinds, directory, "head_kinds")
    write_rows(maps, directory, "attention_examples")
    write_rows(texts, directory, "attention_sentences")


def write_factorial(directory: Path) -> None:
    """Write a 2 × 2 of two measures, one of a single seed."""
    terms = {"neither": 2.0, "attn_res": 1.0, "nca": 3.0, "both": 6.0}
    terms |= {"main effect of nca": 3.0, "main effect of attn_res": 1.0, "interaction": 4.0}
    rows = []
    for measure, scale, n in (("mid-layer effective dimension", 1.0, 3), ("mid-layer BOS mass", 0.1, 1)):
        for term, value in terms.items():
            half = 0.5 * scale if n == 3 else np.nan
            stated = 1.73 if (term, n) == ("main effect of attn_res", 3) else np.nan
            value *= scale
            rows.append((measure, term, value, value - half, value + half, n, 0.9 * value, stated))
    write_rows(rows, directory, "factorial")


def write_sizes(directory: Path) -> None:
    """Write three claims at three sizes: one with a line, one of a group without a published size, one of one seed."""
    rows, slopes = [], []
    for k, (claim, group, unit) in enumerate(
        (("cosine", "janus-ii", "percent"), ("rank", "mine", "factor"), ("mass", "janus-ii", "points"))
    ):
        said = (f"The {claim} falls", group, "difference" if unit == "points" else "ratio", unit)
        half, n = (np.nan, 1) if claim == "mass" else (0.05, 3)
        for i, size in enumerate(("small", "mid", "large")):
            effect = -0.1 * (k + 1) - 0.02 * i
            numbers = (effect, effect - half, effect + half, n, "paired" if n == 3 else "none", "not seen", effect)
            rows.append((claim, size, 200_000 * 4**i, *numbers, *said))
        at = (np.nan,) * 4 if group == "mine" else (37_755_392, -0.3, -0.6, 12.0)
        slopes.append(
            (claim, -0.05, -0.05 - half, -0.05 + half, n, 3, *at, -0.4, "" if group == "mine" else "flat", *said)
        )
    write_rows(rows, directory, "claims_by_size")
    write_rows(slopes, directory, "size_slopes")


def write_recurrent(directory: Path, rng: np.random.Generator, seeds: Sequence[int], model: str) -> None:
    """Write ladder, mechanisms and evaluation, as if `model` were a recurrent one."""
    names = ["base", "low-rank K", "carry", "exit gate", "memory", "skips"]
    ladder, mechanisms, evaluation = [], [], []
    for seed in seeds:
        bits = 2.4 + rng.normal(0, 0.01)
        for rung, name in enumerate(names):
            delta = float("nan") if rung == 0 else rng.normal(-0.01, 0.01)
            bits += 0 if rung == 0 else delta
            ladder.append((f"recurrent-nano-{rung:02d}", seed, rung, name, bits, delta, 500_000 + 1000 * rung, 300))
        for name in names[1:]:
            cost = rng.normal(0.02, 0.02)
            interval = (0.004, cost - 0.008, cost + 0.008)
            mechanisms.append((model, seed, name, bits, bits + cost, cost, *interval, 50_000, 180_000, 256))
        for weights, windows in (("stored", "plain"), ("int8", "sliding")):
            value = bits - 0.02 * (windows == "sliding")
            row = (256, 64, value / 3, value, 0.01, value - 0.02, value + 0.02, 50_000, 180_000, 700_123, 2.6)
            evaluation.append((model, seed, weights, windows, *row, np.exp(value / 3)))
    write_rows(ladder, directory, "ladder")
    write_rows(mechanisms, directory, "mechanisms")
    write_rows(evaluation, directory, "evaluation", "perplexity")


def write_text_and_claims(directory: Path, rng: np.random.Generator, runs) -> None:
    rows = []
    for model, seed in runs:
        for measure in ("interrogative_share", "noun_ratio", "distinct_2", "loop_rate"):
            value = rng.uniform(0.1, 0.8)
            rows.append((model, seed, measure, value, value - 0.04, value + 0.04, 64))
    write_rows(rows, directory, "text_quality")
    nan = np.nan
    trailing = ("claim_id", "group", "scale", "effect", "published_effect", "interval", "why", "source_rows")
    claims = [
        ("Inter-head correlation falls", "−60.3 % at layer 9", "−95 % on z at layer 3", -0.97, -0.92, 3, "reproduced")
        + ("mean_cos", "topology_stats", "mean_cos on the residual contributions")
        + ("janus-correlation", "janus-ii", "ratio", -0.95, -0.603, "paired", HOSTILE_WHY, "layer=3 basis=z"),
        ("Rank expands mid-network", "+9.0 % at layer 6", "−31 %", -0.35, -0.27, 3, "reversed")
        + (
            "nuclear_rank",
            "topology_stats",
            "",
            "janus-rank",
            "janus-ii",
            "ratio",
            -0.31,
            0.09,
            "paired",
            "",
            "layer=1",
        ),
        ("The top head's impact is 2.54 times", "2.54 ×", "0.49 ×", -0.8, 0.4, 3, "not seen")
        + (
            "impact_pct",
            "ablation_results",
            "",
            "janus-top",
            "janus-ii",
            "ratio",
            -0.51,
            1.54,
            "paired",
            "",
            "kind=zero",
        ),
        ("Years are ordered by time", ".21 → .60", "+.1", 0.02, 0.18, 3, "same direction")
        + (
            "partial_r",
            "concept_mantel",
            "",
            "kotodama-years",
            "kotodama",
            "difference",
            0.1,
            0.39,
            "paired",
            "",
            "set=years",
        ),
        ("NCA specialises layer-0 heads", "entropy std ×14", "", nan, nan, 0, "not measured")
        + (
            "head_entropy",
            "",
            "",
            "kotodama-nca",
            "kotodama",
            "ratio",
            nan,
            13.0,
            "none",
            "No model in that role.",
            "",
        ),
    ]
    units = {"janus-top": "factor", "kotodama-years": "plain"}
    write_rows(
        [(*row, *in_one_unit(row, trailing, units)) for row in claims], directory, "claims", *trailing, "unit", "figure"
    )


def in_one_unit(row: tuple, trailing: Sequence[str], units: Mapping[str, str]) -> tuple[str, str]:
    """The unit of a claim, by its id, and what its interval does to the published figure."""
    own = dict(zip([*COLUMNS["claims"], *trailing], row, strict=True))
    is_known = own["ci_low"] == own["ci_low"] and own["published_effect"] == own["published_effect"]
    figure = ("excludes", "holds")[own["ci_low"] <= own["published_effect"] <= own["ci_high"]] if is_known else ""
    return units.get(own["claim_id"], "percent"), figure


def write_continuations(directory: Path, rng: np.random.Generator, runs) -> None:
    """Write continuations.jsonl: hostile strings as prompts and in the texts, line ends escaped as the verb does."""
    lines = []
    for model, seed in runs:
        for prompt in ("The king had" + " a long way to go before the night" * 4, HOSTILE[1], HOSTILE[17]):
            for sample in range(2):
                words = [HOSTILE[i] if rng.random() < 0.3 else WORDS[i] for i in rng.integers(0, len(HOSTILE), 30)]
                text = f" {model} {seed} {sample} " + " ".join(words) + "".join(HOSTILE)
                record = {"model": model, "kind": "story", "prompt": prompt, "sample": sample, "seed": seed}
                record |= {"text": clean(text), "n_tokens": 30, "is_ended": sample == 0}
                lines.append(json.dumps(record, ensure_ascii=False).translate(LINE_ENDS))
    (directory / "continuations.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_further(directory: Path, rng: np.random.Generator, runs, n_layers: int, n_heads: int) -> None:
    """Write what SAEs and ablations leave beside their main tables."""
    stability, matched, pairs, summary = [], [], [], []
    models, seeds = (list(dict.fromkeys(column)) for column in zip(*runs, strict=True))
    for model, seed in runs:
        for layer in range(n_layers):
            for head in range(n_heads):
                for own, other in ((0, 1), (1, 0)):
                    found = (rng.uniform(0.5, 0.9), rng.uniform(0.2, 0.6), 0.45, 0.01)
                    stability.append((model, seed, layer, head, 0.03, own, other, 128, *found))
            summary.append((model, seed, "zero", layer, "gini", rng.uniform(0.1, 0.6), n_heads))
            summary.append((model, seed, "zero", layer, "load_bearing_p", rng.uniform(), n_heads))
        summary.append((model, seed, "zero", -1, "rank_correlation", 0.8, n_heads * n_layers))
        for i in range(n_heads):
            for j in range(n_heads):
                value = rng.normal(0, 0.2)
                row = (0.3, 0.2, 0.5 + value, value, 0.05, value - 0.1, value + 0.1, 0.01, 65536)
                pairs.append((model, seed, 0, i, n_layers - 1, j, "zero", *row))
    for seed in seeds:
        for other in models[1:]:
            for layer in range(n_layers):
                fvu = (0.2, 0.2 + 0.01 * layer, 0.01 * layer)
                matched.append((models[0], other, seed, layer, 4.0, 9.0, *fvu, 0.9, 0.9 - 0.02 * layer, -0.02 * layer))
    write_rows(stability, directory, "sae_stability")
    write_rows(pairs, directory, "ablation_pairs")
    write_rows(summary, directory, "ablation_summary")
    if matched:
        write_rows(matched, directory, "sae_matched_l0")


def study_record(models: Sequence[str], seeds: Sequence[int]) -> dict:
    return {
        "title": "Control and Adaptive, nano",
        "command": "workbench study --out studies/nano",
        "models": [
            {
                "name": model,
                "recipe": model.removesuffix("-nano") + "-nano",
                "seed": seed,
                "n_parameters": 1_318_016,
                "n_parameters_no_embedding": 793_728,
                "seconds": 171.3 + index,
            }
            for model in models
            for index, seed in enumerate(seeds)
        ],
        "corpus": "embedded public-domain English, 3.3M tokens",
        "device": "cpu, 2 cores",
        "created": "2026-01-05T10:00:00+00:00",
        "versions": {"python": "3.11.2", "torch": "2.13.0"},
        "notes": ["A made-up study: every number here was drawn from a random generator."],
    }


def write_head_rows(directory: Path, model: str, layer: int, head: int) -> None:
    """Rows of patching and of necessity that one head has."""
    for name, texts in (("patching", {"task": "ioi", "site": "z", "direction": "denoise"}), ("scrubbing_heads", {})):
        contract = declared()[name]
        row = {own: 1 if contract.kind(own) != "text" else "ioi" for own in contract.leading}
        row |= texts | {"model": model, "seed": 0, "layer": layer, "head": head}
        rows = [row | {"position": at, "recovery": value} for at, value in (("end", 0.44), ("all", 0.12))]
        rows = rows if name == "patching" else [row]
        table = pd.DataFrame(rows).assign(ci_low=0.4, ci_high=0.5)
        write_table(table[list(contract.leading)], directory, name)
