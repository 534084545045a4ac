"""Panels of attention and weights."""

from __future__ import annotations

import json

from reports import figures, lineage
from reports.figures.style import models_of
from reports.panels.panel import Drawing, Panel, Section, drawn, needing, seed_variants
from reports.study import Study

RANKS = ("nuclear_rank", "stable_rank", "effective_rank", "participation_ratio")
NUMBER = r"\d[\d.eE+\-]*"


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
    df = study.tables["attention_stats"]
    return [
        ("standard deviation over heads", figures.head_spread(df, study.models)),
        ("mean over heads", figures.head_spread(df, study.models, is_spread=False)),
    ]


def weight_ranks(study: Study) -> list[Drawing]:
    """Return the weights' ranks by layer, a variant a rank."""
    df = study.tables["weight_spectra"]
    known = [rank for rank in RANKS if rank in df]
    return [(rank.replace("_", " "), figures.weight_ranks(df, study.models, rank)) for rank in known]


def spectra(study: Study) -> list[Drawing]:
    """Return whole spectra, a variant a depth; layers that several depths share once."""
    df, found = study.tables["singular_values"], {}
    for name, depth in lineage.DEPTHS.items():
        rows = lineage.rows_at(df, depth)
        layers = " or ".join(str(layer) for layer in sorted(set(rows["layer"].astype(int))))
        found.setdefault(tuple(rows.index), (f"{name}: {layers}", rows))
    return [(name, figures.spectra_over_index(rows, study.models)) for name, rows in found.values()]


def unread_spectra(study: Study) -> list[str]:
    """Return a sentence where a cell of the table of singular values is no list of numbers."""
    df = study.tables.get("singular_values")
    if df is None or "singular_values" not in df:
        return []
    wrong = int((~df["singular_values"].str.fullmatch(rf"\[{NUMBER}(,\s*{NUMBER})*\]")).sum())
    said = f"singular_values.csv: {wrong} of {len(df)} rows hold no list of numbers in the column singular_values."
    return [said] if wrong else []


ATTENTION = Section(
    "attention",
    "Attention and weights",
    "Where heads look, and how many directions the weights use.",
    (
        Panel(
            "entropy",
            "Head entropies",
            "Heads of strong colour attend broadly, faint ones to few tokens. Specialised heads show as contrast in a "
            "row.",
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
            "A spread that is large in layer 0 and small behind it is what NCA pre-training is said to leave: heads "
            "that specialise in the first layer.",
            needing("attention_stats", "model seed layer head entropy"),
            spreads,
            ("n_tokens", "tokens"),
            interval="a band",
            is_core=False,
        ),
        Panel(
            "bos",
            "Attention to position 0, by layer",
            "High means that heads rest on the first token: an attention sink.",
            needing("attention_stats", "model seed layer head bos_mass"),
            drawn("attention_stats", figures.bos_mass_by_layer),
            ("n_tokens", "tokens"),
            "Mean over queries from position 1; lines are means over heads. Small marks, where four models or fewer "
            "share the figure, are heads.",
            interval="a band",
            is_core=False,
        ),
        Panel(
            "divergence",
            "Do two models’ spectra differ in attention or in the MLP?",
            "Attention marks to the right of the MLP’s are interventions that reach attention and leave the MLP’s "
            "spectra alone: three to four times further in the report.",
            needing("eigenspectra_divergence", "model_a model_b part divergence"),
            lambda study: [("", figures.spectra_divergence(study.tables["eigenspectra_divergence"]))],
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
            "Where models differ in attention matrices and agree in the MLP, the intervention stayed where it acted.",
            needing("weight_spectra", "model seed layer matrix nuclear_rank"),
            weight_ranks,
            is_core=False,
        ),
        Panel(
            "singular-values",
            "Whole spectra of the weight matrices",
            "A line that falls steeply and then lies low is a matrix of few directions; two lines that fall alike are "
            "spectra that no rank would tell apart.",
            needing("singular_values", "model seed layer matrix singular_values"),
            spectra,
            detail="Every singular value over the largest, in order, at three depths, the middle one that of 14 of 28; "
            f"lines through {figures.MAX_INDICES} of them at most, the table has all. Heads stand side by side.",
            faults=unread_spectra,
            of_two="a line is their mean",
            is_core=False,
        ),
    ),
)
