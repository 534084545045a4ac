"""Panels of attention and weights."""

from __future__ import annotations

import json

from reports import figures, lineage
from reports.figures.style import models_of
from reports.measure_names import name_measure
from reports.panels.panel import Drawing, Panel, Section, needing, seed_variants
from reports.study import Study

SINK = 0.3  # share of attention on position 0 above which a head is a sink (Gu et al. 2024)
RANKS = ("nuclear_rank", "stable_rank", "effective_rank", "participation_ratio")


def entropies(study: Study) -> list[Drawing]:
    """Return the gallery of head entropies, a variant a seed."""
    df = study.tables["attention_stats"]
    return [(name, figures.head_entropy_gallery(df, study.models, seed)) for name, seed in seed_variants(df)]


def maps(study: Study) -> list[Drawing]:
    """Return the maps of heads, a variant a model."""
    df = study.tables["attention_patterns"]
    names = models_of(df, study.models)
    return [(name if len(names) > 1 else "", figures.head_maps(df, name)) for name in names]


def broken_maps(study: Study) -> list[str]:
    """Return that a map cannot be drawn where its cell is not what the table's contract says."""
    df = study.tables.get("attention_patterns")
    if df is None or not {"layer", "head", "pattern"} <= set(df.columns):
        return []
    for row in df.itertuples():
        try:
            sizes = [len(keys) for keys in json.loads(str(row.pattern))]
        except (ValueError, TypeError):
            sizes = []
        if not sizes or sizes != list(range(1, len(sizes) + 1)):
            return [f"attention_patterns.csv: the pattern of layer {row.layer}, head {row.head} is no lower triangle."]
    return []


def spreads(study: Study) -> list[Drawing]:
    """Return the spread of head entropies by layer, and their mean."""
    shown = (
        ("standard deviation over heads", "entropy_std", "std over heads (nats)"),
        ("mean over heads", "entropy", "mean over heads (nats)"),
    )
    means = {name: study.means("attention_stats", measure, "model", "layer") for name, measure, _ in shown}
    return [(name, figures.measure_by_layer(means[name], title, study.models)) for name, _, title in shown]


def bos_mass(study: Study) -> list[Drawing]:
    """Return the attention to position 0 by layer."""
    means = study.means("attention_stats", "bos_mass", "model", "layer")
    return [("", figures.bos_mass_by_layer(study.tables["attention_stats"], means, study.models))]


def say_sinks(study: Study) -> list[str]:
    """Return which heads are attention sinks, or that none is, with the largest share that position 0 gets."""
    df = study.tables["attention_stats"].dropna(subset=["bos_mass"])
    if df.empty:
        return []
    sinks, top = df[df["bos_mass"] > SINK], df.sort_values("bos_mass").iloc[-1]
    share = df["bos_uniform"].dropna().unique() if "bos_uniform" in df else ()
    even = f"; uniform attention would give {share[0]:.3f}" if len(share) == 1 else ""
    largest = f"the largest is {top['bos_mass']:.2f}, {top['model']} L{top['layer']} H{top['head']}{even}"
    if sinks.empty:
        return [f"No attention sink: no head puts more than {SINK} of its attention on position 0 ({largest})."]
    counts = ", ".join(
        f"{len(own)} of {(df['model'] == model).sum()} heads of {model}" for model, own in sinks.groupby("model")
    )
    return [f"Attention sinks: {counts} put more than {SINK} of their attention on position 0 ({largest})."]


def divergences(study: Study) -> list[Drawing]:
    """Return how far two models' spectra lie apart."""
    means = study.means("eigenspectra_divergence", "divergence", "model_a", "model_b", "part")
    return [("", figures.spectra_divergence(means))]


def weight_ranks(study: Study) -> list[Drawing]:
    """Return the weights' ranks by layer, a variant a rank."""
    found = {rank: study.means("weight_spectra", rank, "model", "matrix", "layer") for rank in RANKS}
    return [
        (name_measure(rank), figures.weight_ranks(means, study.models, rank))
        for rank, means in found.items()
        if len(means)
    ]


def spectra(study: Study) -> list[Drawing]:
    """Return whole spectra, a variant a depth; layers that several depths share once."""
    df, found = study.means("singular_values", "decay", "model", "matrix", "layer", "i"), {}
    for name, depth in lineage.DEPTHS.items():
        rows = lineage.rows_at(df, depth)
        layers = " or ".join(str(layer) for layer in sorted(set(rows["layer"].astype(int))))
        found.setdefault(tuple(rows.index), (f"{name}: {layers}", rows))
    return [(name, figures.spectra_over_index(rows, study.models)) for name, rows in found.values()]


ATTENTION = Section(
    "attention",
    "Attention and weights",
    "Where heads look, and how many directions the weights use.",
    (
        Panel(
            "entropy",
            "Head entropies",
            "Strong colour: heads that attend broadly. Faint: heads that attend to few tokens.",
            needing("attention_stats", "model seed layer head entropy_share"),
            entropies,
            ("n_tokens", "tokens"),
            "Share of the uniform-causal ceiling. Heads of two seeds do not correspond: each seed has its own picture.",
            is_by_seed=True,
            is_core=False,
        ),
        Panel(
            "head-maps",
            "What heads look at besides the first token",
            "A stripe beside the diagonal is a head that looks a fixed distance back, a column one that rests on a "
            "place, an even row one that averages. Heads whose maps look alike do the same work twice.",
            needing("attention_patterns", "model seed layer head n_ctx n_sequences rest pattern"),
            maps,
            ("n_sequences", "sequences"),
            "Mean over sequences of the maps of their first tokens, without position 0, rows made to sum to 1; queries "
            "downward, keys to the right, both from 1; darkest from .5 on. First, middle and last layer; heads of two "
            "models do not correspond. Where nearly all attention is on position 0 (the table’s column rest), the map "
            "is of what little is left.",
            faults=broken_maps,
            is_first_seed=True,
            is_core=False,
        ),
        Panel(
            "head-spread",
            "Head entropy and its spread over heads, by layer",
            "A large spread in a layer: heads that specialise there.",
            needing("attention_stats", "model seed layer head entropy", "seed_means"),
            spreads,
            ("n_tokens", "tokens"),
            interval="a band",
            is_core=False,
        ),
        Panel(
            "bos",
            "Attention to position 0, by layer",
            "A head that spends much of its attention on position 0, whatever stands there, is an attention sink.",
            needing("attention_stats", "model seed layer head bos_mass", "seed_means"),
            bos_mass,
            ("n_tokens", "tokens"),
            "Mean over queries from position 1; lines are means over heads. Small marks, where four models or fewer "
            "share the figure, are heads.",
            interval="a band",
            says=say_sinks,
            is_core=False,
        ),
        Panel(
            "divergence",
            "Do two models’ spectra differ in attention or in the MLP?",
            "Attention far to the right of the MLP: the intervention changed attention weights and little else.",
            needing("eigenspectra_divergence", "model_a model_b part divergence", "seed_means"),
            divergences,
            ("n", "matrices"),
            counted=lambda study: {
                str(part): rows
                for part, rows in study.tables["eigenspectra_divergence"].groupby("part")
                if part != "all"
            },
            detail="Mean over layers and matrices of |nuclear rank a − b| / their mean; bars are 95 % intervals over "
            "seeds.",
            interval="a bar",
            of_two="a mark is their mean",
            is_core=False,
        ),
        Panel(
            "spectra",
            "Rank of the weight matrices, by layer",
            "Models that differ in attention matrices and agree in the MLP: the intervention stayed where it acted.",
            needing("weight_spectra", "model seed layer matrix nuclear_rank", "seed_means"),
            weight_ranks,
            is_core=False,
        ),
        Panel(
            "singular-values",
            "Whole spectra of the weight matrices",
            "A line that falls steeply: a matrix of few directions.",
            needing("singular_values", "model seed layer matrix singular_values", "seed_means"),
            spectra,
            detail="Every singular value over the largest, in order, at three depths, the middle one that of 14 of 28; "
            "of long spectra lines through some, the table has all. Heads stand side by side.",
            of_two="a line is their mean",
            is_core=False,
        ),
    ),
)
