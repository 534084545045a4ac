"""What the page shows, in its order: each panel's title, what to read from it, the columns it needs, who draws it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import pandas as pd
import plotly.graph_objects as go

from reports import figures, paper_tables
from reports.cells import Grid
from reports.figures.topology import BASES
from reports.study import Study

Drawing = tuple[str, go.Figure]  # the name of a variant ("" if it is the only one) and its figure


@dataclass(frozen=True)
class Panel:
    """One table or figure of the page. `needs` are the columns without which it cannot be drawn."""

    key: str
    title: str
    read: str
    needs: Mapping[str, tuple[str, ...]]
    draw: Callable[[Study], Sequence[Drawing | Grid]]
    n: tuple[str, str] = ("", "")  # the column of the first table that holds n, and its unit
    detail: str = ""  # intervals, scales and other small print
    uses: tuple[str, ...] = ()  # tables that it draws when they are there
    is_table: bool = False
    is_first_seed: bool = False  # draws each model's first seed only
    is_core: bool = True  # where it cannot be drawn, the page says why; others are left out with their table


@dataclass(frozen=True)
class Section:
    """A heading and the panels under it."""

    key: str
    title: str
    lead: str
    panels: tuple[Panel, ...] = field(default=())


def heatmaps(study: Study) -> list[Drawing]:
    """Return Figure 1, a variant a basis."""
    df = study.tables["head_cosines"]
    bases = [basis for basis in BASES if (df["basis"] == basis).any()]
    return [(BASES[basis], figures.cosine_heatmaps(df, basis, study.models)) for basis in bases]


def redundancy(study: Study) -> list[Drawing]:
    """Return mean |cos| by layer."""
    return [("", figures.redundancy_by_layer(study.tables["topology_stats"], study.models))]


def ranks(study: Study) -> list[Drawing]:
    """Return nuclear rank by layer."""
    return [("", figures.rank_by_layer(study.tables["topology_stats"], study.models))]


def l0(study: Study) -> list[Drawing]:
    """Return Figure 2, a variant an l1."""
    df = figures.of_heads(study.tables["sae_training_results"])
    return [(name, figures.l0_by_layer(df, study.models, l1)) for name, l1 in l1_variants(df)]


def fvu(study: Study) -> list[Drawing]:
    """Return fvu by layer, a variant an l1."""
    df = figures.of_heads(study.tables["sae_training_results"])
    return [(name, figures.fvu_by_layer(df, study.models, l1)) for name, l1 in l1_variants(df)]


def l1_variants(df: pd.DataFrame) -> list[tuple[str, float | None]]:
    """Return (name, l1) of each coefficient of a sweep; one unnamed variant with every row where there is no sweep."""
    values = sorted(df["l1"].dropna().unique()) if "l1" in df else []
    return [(f"l1 {value:g}", float(value)) for value in values] if len(values) > 1 else [("", None)]


def pareto(study: Study) -> list[Drawing]:
    """Return fvu against l0 where the table holds a sweep; nothing where it does not."""
    df = figures.of_heads(study.tables["sae_training_results"])
    return [("", figures.pareto(df, study.models))] if df["l1"].nunique() > 1 else []


def density(study: Study) -> list[Drawing]:
    """Return Figure 3."""
    df = study.tables["sae_density"]
    if "sae_seed" in df:  # the counts of one dictionary a head, not of several
        df = df[df["sae_seed"] == df["sae_seed"].min()]
    return [(name, figures.feature_density(figures.at_l1(df, l1), study.models)) for name, l1 in l1_variants(df)]


def ablation(study: Study) -> list[Drawing]:
    """Return Figure 4, a variant a kind of ablation, zero first."""
    df = study.tables["ablation_results"]
    kinds = sorted(set(df["kind"]), key=lambda kind: (kind != "zero", kind))
    return [
        (kind if len(kinds) > 1 else "", figures.ablation_profile(df, kind, study.models))
        for kind in kinds
    ]  # fmt: skip


def losses(study: Study) -> list[Drawing]:
    """Return the loss curves, a variant a phase, the last phase first."""
    log = study.tables["train_log"]
    baselines = study.tables.get("baselines")
    if baselines is not None and not {"name", "nats"} <= set(baselines.columns):
        baselines = None
    phases = list(dict.fromkeys(log["phase"])) if "phase" in log else [""]
    parts = {phase: log[log["phase"] == phase] for phase in phases} if len(phases) > 1 else {"": log}
    # another phase has another vocabulary: the baselines are those of the text, which is trained last
    return [
        (phase, figures.loss_curves(part, baselines if phase in ("", phases[-1]) else None, study.models))
        for phase, part in reversed(parts.items())
    ]


def pressure(study: Study) -> list[Drawing]:
    """Return λ and σ over steps."""
    return [("", figures.pressure_and_redundancy(study.tables["train_log"], study.models))]


def monitors(study: Study) -> list[Drawing]:
    """Return every weight monitor over steps, a variant each."""
    log = study.tables["train_log"]
    return [(name, figures.monitor_over_steps(log, name, study.models)) for name in figures.monitor_names(log)]


def drawn(table: str, draw: Callable[..., go.Figure]) -> Callable[[Study], list[Drawing]]:
    """Return a panel's draw for a figure that takes one table and the models."""
    return lambda study: [("", draw(study.tables[table], study.models))]


def needing(table: str, columns: str) -> Mapping[str, tuple[str, ...]]:
    """Return the needs of a panel that draws one table."""
    return MappingProxyType({table: tuple(columns.split())})


PAPER = Section(
    "paper",
    "The paper’s tables and figures",
    "Tables 1 to 3 and Figures 1 to 4 of the first paper, drawn for the models of this study. Δ is the difference "
    "from the reference model, in per cent of it.",
    (
        Panel(
            "topology",
            "Redundancy and rank of attention heads, by layer",
            "Head-orthogonality pressure should lower the cosines. If they fall on z and not on the residual "
            "contribution, the pressure changed a basis and not what the heads write.",
            needing("topology_stats", "model seed layer basis max_cos mean_cos nuclear_rank rank_utilization"),
            paper_tables.topology_grids,
            ("n_tokens", "held-out tokens"),
            "Cosines over i ≠ j; nuclear rank (Σσ)²/Σσ² of the concatenated z, uncentred; utilization is rank over "
            "width.",
            is_table=True,
        ),
        Panel(
            "heatmaps",
            "Cosine between heads, layer by layer",
            "Fainter panels are less redundant heads. Look whether the second model’s panels are fainter on all three "
            "bases or on z alone.",
            needing("head_cosines", "model seed layer basis head_i head_j cos"),
            heatmaps,
            detail="Diagonal left blank; one colour scale for all panels of a basis.",
            is_first_seed=True,
        ),
        Panel(
            "saes",
            "Sparse autoencoders on each head’s z, by layer",
            "The paper reports fewer active features early and more of them deep. A trained dictionary means "
            "something only as far as its fvu lies below that of a random one.",
            needing("sae_training_results", "model seed layer head l0 fvu dead_fraction l1"),
            paper_tables.sae_grids,
            ("n_eval_tokens", "held-out tokens an SAE"),
            "Means over heads, (d) of sums over them; controls: a random dictionary of the same size, the same SAE on "
            "shuffled activations.",
            is_table=True,
        ),
        Panel(
            "l0",
            "Active features a token (l0), by layer",
            "Compare the lines layer by layer, but only where fvu (Figure 7) is alike: a lower l0 bought with a "
            "higher fvu is no gain.",
            needing("sae_training_results", "model seed layer head l0"),
            l0,
            ("n_eval_tokens", "held-out tokens an SAE"),
            "Small marks are heads, lines their mean.",
        ),
        Panel(
            "density",
            "How often features fire",
            "A shift to the left means rarer, more specific features; the open marks on the far left count features "
            "that never fire.",
            needing("sae_density", "model seed layer head log10_density_bin n_features"),
            density,
            detail=(
                "Share of held-out tokens on which a feature is active; both axes logarithmic; heads of a layer summed."
            ),
        ),
        Panel(
            "ablation-table",
            "The heads that cost most to remove",
            "The paper finds one load-bearing head. Overlapping intervals mean that this study cannot tell the top "
            "heads apart.",
            needing("ablation_results", "model seed layer head kind impact_pct"),
            paper_tables.ablation_grids,
            ("n_tokens", "held-out tokens, the same for all heads"),
            "Loss increase in per cent of the base loss; brackets are 95 % bootstrap intervals over sequences.",
            is_table=True,
        ),
        Panel(
            "ablation",
            "Loss increase when a head is removed",
            "A head far above the others is load-bearing; marks below zero are heads without which the model does "
            "better.",
            needing("ablation_results", "model seed layer head kind impact_pct"),
            ablation,
            ("n_tokens", "held-out tokens, the same for all heads"),
            "Bars are 95 % bootstrap intervals over sequences.",
        ),
    ),
)

TOPOLOGY = Section(
    "more",
    "Redundancy, rank and reconstruction",
    "The same measures as lines over depth, beside what the paper does not show: the gauge-free basis and the "
    "controls.",
    (
        Panel(
            "redundancy",
            "Mean |cos| between heads, by layer and basis",
            "The residual contribution (right) does not change under a rotation of the value basis; the left panel "
            "does. A gap that is there on the left only is a matter of basis.",
            needing("topology_stats", "model seed layer basis mean_cos"),
            redundancy,
            ("n_tokens", "held-out tokens"),
            "Every panel has its own scale, from 0.",
        ),
        Panel(
            "ranks",
            "Nuclear rank of the concatenated z, by layer",
            "Higher means that the heads together use more directions. The paper’s rank rises mid-network under "
            "pressure.",
            needing("topology_stats", "model seed layer basis nuclear_rank"),
            ranks,
            ("n_tokens", "held-out tokens"),
        ),
        Panel(
            "fvu",
            "Variance that the SAEs leave unexplained (fvu), by layer",
            "Lower is better. The grey lines are dictionaries that learned nothing, or nothing about tokens: only the "
            "distance to them counts.",
            needing("sae_training_results", "model seed layer head fvu"),
            fvu,
            ("n_eval_tokens", "held-out tokens an SAE"),
            "Small marks are heads, lines their mean.",
        ),
        Panel(
            "pareto",
            "fvu against l0 over a sweep of l1",
            "At the same l0, the lower curve has the features that explain more.",
            needing("sae_training_results", "model seed layer head l0 fvu l1"),
            pareto,
            ("n_eval_tokens", "held-out tokens an SAE"),
            "Means over heads.",
            is_core=False,
        ),
    ),
)

TRAINING = Section(
    "training",
    "Training",
    "How far the models came, and what the pressure did on the way.",
    (
        Panel(
            "loss",
            "Loss over steps",
            "A model that ends below the bigram line has learned more than which token follows which.",
            needing("train_log", "model seed step loss"),
            losses,
            detail=(
                "Thin: training batches. Marks: held-out text, the text whose unigram and bigram entropies are drawn."
            ),
            uses=("baselines",),
        ),
        Panel(
            "losses",
            "Final held-out loss beside the baselines",
            "The difference between the models is the price of the pressure.",
            {**needing("train_log", "model seed step held_out_loss"), **needing("baselines", "name nats")},
            paper_tables.loss_grids,
            detail="Nats a token.",
            is_table=True,
        ),
        Panel(
            "pressure",
            "Pressure λ and redundancy σ over steps",
            "σ on z is what the controller sees and presses on. The other two show whether anything else followed.",
            needing("train_log", "model seed step lambda sigma_z"),
            pressure,
            detail=(
                "σ is the mean |cos| between heads, here the mean over layers; every panel has its own scale, from 0."
            ),
        ),
        Panel(
            "monitors",
            "Heads and weights over training",
            "Falling entropies are heads that settle on few tokens, falling ranks weights on few directions.",
            needing("train_log", "model seed step"),
            monitors,
            is_core=False,
        ),
    ),
)

CONCEPTS = Section(
    "concepts",
    "Concept geometry",
    "Whether the order, the circle or the map of a set of concepts can be read off the model’s states.",
    (
        Panel(
            "crystallisation",
            "Crystallisation of concept sets, by layer",
            "A curve that rises early and stays is a geometry that the model builds and keeps. Dotted: what is left "
            "when the confound is partialled out.",
            needing("concept_mantel", "model seed set topology layer r"),
            drawn("concept_mantel", figures.crystallisation),
            ("n_permutations", "permutations"),
            "Mantel correlation (Spearman) of the states’ distances with the set’s; layer −1 is the embedding.",
            is_core=False,
        ),
        Panel(
            "effective-dimension",
            "Effective dimension of concept sets",
            "Dark cells are sets spread over many directions; a pale row is a set that has collapsed to a line.",
            needing("concept_geometry", "model seed set layer effective_dim"),
            drawn("concept_geometry", figures.effective_dimension),
            ("n", "concepts a set"),
            "Participation ratio of the centred mean states; at most n − 1.",
            is_first_seed=True,
            is_core=False,
        ),
        Panel(
            "trajectories",
            "Do a concept’s steps through the layers agree?",
            "Compare with the two nulls, not with 0: independent states give −.5 at lag 1, a random walk gives 0.",
            needing("trajectories", "model seed set lag value null_independent null_random_walk"),
            drawn("trajectories", figures.trajectory_bars),
            detail="Mean cosine of displacements that many layers apart.",
            is_core=False,
        ),
        Panel(
            "pc-alignment",
            "Do two models share principal components?",
            "At the baseline, two directions are as unrelated as random ones; two models share no basis to begin with.",
            needing("pc_cosine", "model_a model_b layer pc cosine baseline"),
            lambda study: [("", figures.pc_alignment(study.tables["pc_cosine"]))],
            ("n", "sequences"),
            is_core=False,
        ),
        Panel(
            "intrinsic-dimension",
            "Intrinsic dimension of the states (TwoNN), by layer",
            "Agreement between models whose weights differ is the finding to look for.",
            needing("intrinsic_dimension", "model seed layer dimension stderr"),
            drawn("intrinsic_dimension", figures.intrinsic_dimension),
            ("n_used", "points"),
            "Facco et al. 2017; bars are standard errors of the fit.",
            is_core=False,
        ),
    ),
)

ATTENTION = Section(
    "attention",
    "Attention and weights",
    "Where heads look, and how many directions the weights use.",
    (
        Panel(
            "entropy",
            "Head entropies",
            "Dark heads attend broadly, pale ones to few tokens. Specialised heads show as contrast within a row.",
            needing("attention_stats", "model seed layer head entropy_share"),
            drawn("attention_stats", figures.head_entropy_gallery),
            ("n_tokens", "tokens"),
            "Share of the uniform-causal ceiling.",
            is_first_seed=True,
            is_core=False,
        ),
        Panel(
            "bos",
            "Attention to position 0, by layer",
            "High means that heads rest on the first token: an attention sink.",
            needing("attention_stats", "model seed layer head bos_mass"),
            drawn("attention_stats", figures.bos_mass_by_layer),
            ("n_tokens", "tokens"),
            "Mean over queries from position 1. Small marks are heads, lines their mean.",
            is_core=False,
        ),
        Panel(
            "spectra",
            "Nuclear rank of the weight matrices, by layer",
            "Where models differ in attention matrices and agree in the MLP, the intervention stayed where it acted.",
            needing("weight_spectra", "model seed layer matrix nuclear_rank"),
            drawn("weight_spectra", figures.weight_ranks),
            is_core=False,
        ),
    ),
)

TEXT = Section(
    "text",
    "Text quality",
    "What sampled continuations look like when they are counted.",
    (
        Panel(
            "text-quality",
            "Measures of sampled text",
            "Overlapping intervals mean no difference that this many samples can show.",
            needing("text_quality", "model seed measure value ci_low ci_high"),
            drawn("text_quality", figures.text_measures),
            ("n", "continuations"),
            "Bars are 95 % intervals.",
            is_core=False,
        ),
    ),
)

SECTIONS = (PAPER, TOPOLOGY, TRAINING, CONCEPTS, ATTENTION, TEXT)
