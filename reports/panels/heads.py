"""Panels of head redundancy, SAEs and ablation: the first paper's tables and figures, and what it does not show."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from reports import figures, paper_tables
from reports.adequacy import say_adequacy, warn_adequacy
from reports.figures.saes import of_dictionary
from reports.figures.style import sorted_layers
from reports.figures.topology import BASES
from reports.panels.panel import Drawing, Panel, Section, needing, seed_variants, without_numbers
from reports.seed_means import as_means
from reports.study import Study
from reports.table_cells import significant

HEALTH = ("l0", "dense_fraction", "near_copy_share", "fvu")
EFFECTIVE = "model_a seed_a model_b seed_b layer_a layer_b utilization_a utilization_b n_eff"  # columns of N_eff
NO_PAIRS = "No layer has two heads that can be compared."


def no_pairs(study: Study) -> list[str]:
    """Return why there is no cosine between heads: each model has one per layer."""
    df = study.tables.get("head_cosines", pd.DataFrame())
    has_both = len(df) > 0 and {"head_i", "head_j"} <= set(df.columns)
    return [NO_PAIRS] if has_both and (df["head_i"] == df["head_j"]).all() else []


def heatmaps(study: Study) -> list[Drawing]:
    """Return Figure 1, a variant a basis."""
    df = study.tables["head_cosines"]
    bases = [basis for basis in BASES if (df["basis"] == basis).any()]
    return [(BASES[basis], figures.cosine_heatmaps(df, basis, study.models)) for basis in bases]


def redundancy(study: Study) -> list[Drawing]:
    """Return mean |cos| by layer."""
    means = study.means("topology_stats", "mean_cos", "model", "basis", "layer")
    return [("", figures.redundancy_by_layer(means, study.models))]


def ranks(study: Study) -> list[Drawing]:
    """Return nuclear rank by layer."""
    means = study.means("topology_stats", "nuclear_rank", "model", "basis", "layer").query("basis == 'z'")
    return [("", figures.measure_by_layer(means, "nuclear rank of z", study.models))]


def l0(study: Study) -> list[Drawing]:
    """Return Figure 2, a variant an l1."""
    df = figures.of_heads(study.tables["sae_training_results"])
    means = study.means("sae_training_results", "l0", "model", "layer")
    return [(name, figures.l0_by_layer(df, means, study.models, l1)) for name, l1 in l1_variants(df)]


def health(study: Study) -> list[Drawing]:
    """Return the health of SAEs by layer, a variant an l1."""
    df = figures.of_heads(study.tables["sae_training_results"])
    found = {name: study.means("sae_training_results", name, "model", "layer") for name in HEALTH if name in df}
    means = {name: own for name, own in found.items() if len(own)}
    return [(name, figures.sae_health(df, means, study.models, l1)) for name, l1 in l1_variants(df)]


def without_health(study: Study) -> list[str]:
    """Return which of the measures of health the study's table or its means lack, as those of earlier versions do."""
    df = study.tables["sae_training_results"]
    return [
        f"no {'column ' if name not in df else 'means of '}{name}"
        for name in HEALTH
        if name not in df or study.means("sae_training_results", name, "model", "layer").empty
    ]


def of_dictionaries(df: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the rows of each kind of dictionary that a table of SAEs has, by name."""
    kinds = {name: of_dictionary(df, name) for name in paper_tables.DICTIONARIES}
    return {name: rows for name, rows in kinds.items() if len(rows)}


def table_counts(study: Study) -> dict[str, pd.DataFrame]:
    """Return the rows that Table 2's n is read from: cross-entropies are measured on tokens of their own."""
    df, _ = paper_tables.shown_saes(study)
    return of_dictionaries(df) | loss_counts("(e)", df)


def loss_counts(name: str, df: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return, under a name, the rows that have cross-entropies, with the tokens of those as their n."""
    if not {"ce_spliced", "n_ce_tokens"} <= set(df.columns):
        return {}
    return {name: df[df["ce_spliced"].notna()].assign(n_eval_tokens=df["n_ce_tokens"])}


def dictionary_counts(study: Study) -> dict[str, pd.DataFrame]:
    """Return the rows of heads by dictionary."""
    return of_dictionaries(figures.of_heads(study.tables["sae_training_results"]))


def trained_counts(study: Study) -> dict[str, pd.DataFrame]:
    """Return the trained SAEs of heads; nothing where the study has no table of SAEs."""
    df = study.tables.get("sae_training_results")
    if df is None or df.empty or "head" not in df:
        return {}
    return {"": of_dictionary(figures.of_heads(df), "trained")}


def matched_counts(study: Study) -> dict[str, pd.DataFrame]:
    """Return the rows behind a comparison at equal l0: those of fvu, and those of losses."""
    counted = trained_counts(study)
    return {"fvu": counted[""], **loss_counts("loss recovered", counted[""])} if counted else {}


def without_common_l0(study: Study) -> list[str]:
    """Return where two models have nothing to compare at equal l0, and why, as far as the table says."""
    df = study.tables["sae_matched_l0"]
    empty = df[df["fvu_difference"].isna() | df["ce_recovered_difference"].isna()]
    reasons = empty["reason"] if "reason" in empty else [""] * len(empty)
    columns = (empty["model_a"], empty["model_b"], empty["seed"], empty["layer"], reasons)
    return [
        f"{a} – {b}, seed {seed}, layer {layer}: {reason or 'no common l0'}"
        for a, b, seed, layer, reason in zip(*columns, strict=True)
    ]


def kind_counts(table: str) -> Callable[[Study], dict[str, pd.DataFrame]]:
    """Return the reader of a table of ablations by kind, without whole layers and MLPs."""

    def counted(study: Study) -> dict[str, pd.DataFrame]:
        df = study.tables[table]
        df = df[df["head"] >= 0] if "head" in df else df
        return {str(kind): rows for kind, rows in df.groupby("kind", sort=False)}

    return counted


def summary_counts(study: Study) -> dict[str, pd.DataFrame]:
    """Return the rows of the ablation summary by measure."""
    rows = paper_tables.of_one_kind(study.tables["ablation_summary"])
    return {str(measure).replace("_", " "): own for measure, own in rows.groupby("measure", sort=False)}


def topology_counts(study: Study) -> dict[str, pd.DataFrame]:
    """Return the table that says how many tokens the cosines are of, where the study has it."""
    return {"": study.tables["topology_stats"]} if "topology_stats" in study.tables else {}


def l1_variants(df: pd.DataFrame) -> list[tuple[str, float | None]]:
    """Return (name, l1) of each coefficient of a sweep; one unnamed variant with every row where there is no sweep."""
    values = sorted(df["l1"].dropna().unique()) if "l1" in df else []
    return [(f"λ₁ = {value:g}", float(value)) for value in values] if len(values) > 1 else [("", None)]


def pareto(study: Study) -> list[Drawing]:
    """Return fvu against l0 where the table holds a sweep; nothing where it does not."""
    l0, fvu = (study.means("sae_training_results", measure, "model", "l1", "layer") for measure in ("l0", "fvu"))
    return [("", figures.pareto(l0, fvu, study.models))] if l0["l1"].nunique() > 1 else []


def density(study: Study) -> list[Drawing]:
    """Return Figure 3."""
    df = study.tables["sae_density"]
    if "sae_seed" in df:  # the counts of one dictionary a head, not of several
        df = df[df["sae_seed"] == df["sae_seed"].min()]
    return [(name, figures.feature_density(figures.at_l1(df, l1), study.models)) for name, l1 in l1_variants(df)]


def without_bins(study: Study) -> list[str]:
    """Return what keeps densities from being drawn: a bin that is neither a number nor the word dead."""
    bins = study.tables.get("sae_density", pd.DataFrame()).get("log10_density_bin", pd.Series(dtype="str"))
    edges = pd.to_numeric(bins[bins != "dead"], errors="coerce")
    if np.isfinite(edges).all():
        return []
    return ["sae_density.csv has a row with neither a number nor dead in the column log10_density_bin."]


def stability(study: Study) -> list[Drawing]:
    """Return how well features are found again with other seeds, a variant an l1."""
    panels = {
        title: (study.means("sae_stability", value, "model", "layer"), study.means("sae_stability", chance, "layer"))
        for title, value, chance in (
            ("mean largest cosine", "stability", "stability_random"),
            ("share of features above .7", "share_above", "share_random"),
        )
    }
    variants = l1_variants(study.tables["sae_stability"])
    return [(name, figures.stability(panels, study.models, l1)) for name, l1 in variants]


def matched(study: Study) -> list[Drawing]:
    """Return the differences of two models' SAEs at equal λ₁ and at equal L0, a variant an l1."""
    at_l0 = {
        measure: study.means("sae_matched_l0", f"{measure}_difference", "model_a", "model_b", "layer")
        for measure in ("fvu", "ce_recovered")
    }
    layers = sorted_layers(study.tables["sae_matched_l0"])
    drawings = []
    for l1, at_l1 in fvu_at_l1(study):
        panels = {
            f"FVU at equal λ₁ = {l1:g}": at_l1, "FVU at equal L0": at_l0["fvu"],
            "loss recovered at equal L0": at_l0["ce_recovered"],
        }  # fmt: skip
        drawings.append((f"λ₁ = {l1:g}", figures.matched_l0(panels, layers)))
    panels = {"FVU at equal L0": at_l0["fvu"], "loss recovered at equal L0": at_l0["ce_recovered"]}
    return drawings or [("", figures.matched_l0(panels, layers))]


def fvu_at_l1(study: Study) -> list[tuple[float, pd.DataFrame]]:
    """Return (l1, differences in fvu by model_a, model_b and layer, in the columns of seed_means) of each l1."""
    df = study.effects("sae_training_results", "fvu", "layer", "l1")
    df = df[df["dictionary"] == "trained"] if "dictionary" in df else df
    df = as_means(df)
    return [(float(str(l1)), rows) for l1, rows in df.groupby("l1")]


def say_matched(study: Study) -> list[str]:
    """Return, of each pair of models, on which side of 0 its differences in fvu are at equal l1 and at equal l0."""
    matched = study.means("sae_matched_l0", "fvu_difference", "model_a", "model_b", "layer")
    parts = [(f"at equal λ₁ = {l1:g}", rows) for l1, rows in fvu_at_l1(study)] + [("at equal L0", matched)]
    said: dict[tuple[str, str], list[str]] = {}
    for at, rows in parts:
        for (a, b), own in rows.groupby(["model_a", "model_b"], sort=False):
            known = own["mean"].dropna()
            if len(known):
                said.setdefault((str(a), str(b)), []).append(f"{at} {say_sides(known)}")
    return [f"FVU of {b} − {a}: {'; '.join(parts)}." for (a, b), parts in said.items()]


def say_sides(values: pd.Series) -> str:
    """Return in how many layers values are below 0 and above, and their range."""
    n_below, n_above = int((values < 0).sum()), int((values > 0).sum())
    side, n = ("lower", n_below) if n_below >= n_above else ("higher", n_above)
    ends = dict.fromkeys(significant(end, 2) for end in (values.min(), values.max()))
    return f"{side} in {n} of {len(values)} layers ({' to '.join(ends)})"


def pairs(study: Study) -> list[Drawing]:
    """Return the strongest interactions of pairs of heads, a variant a kind of ablation, zero first."""
    df = study.tables["ablation_pairs"]
    kinds = sorted(set(df["kind"]), key=lambda kind: (kind != "zero", kind))
    return [(kind if len(kinds) > 1 else "", figures.pair_interactions(df, kind, study.models)) for kind in kinds]


def ablation(study: Study) -> list[Drawing]:
    """Return Figure 4, a variant a kind of ablation, zero first, and a seed."""
    df = study.tables["ablation_results"]
    kinds = sorted(set(df["kind"]), key=lambda kind: (kind != "zero", kind))
    drawings = []
    for kind in kinds:
        for name, seed in seed_variants(df):
            own = df if seed is None else df[df["seed"] == seed]
            words = [kind] * (len(kinds) > 1) + [name] * bool(name)
            drawings.append((", ".join(words), figures.ablation_profile(own, kind, study.models)))
    return drawings


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
            needing(
                "topology_stats", "model seed layer basis max_cos mean_cos nuclear_rank rank_utilization", "seed_means"
            ),
            paper_tables.topology_grids,
            ("n_tokens", "held-out tokens"),
            "Cosines over i ≠ j; nuclear rank (Σσ)²/Σσ² of the concatenated z, uncentred; utilization is rank over "
            "width.",
            is_table=True,
            is_by_seed=True,
            is_folded=True,
        ),
        Panel(
            "heatmaps",
            "Cosine between heads, layer by layer",
            "Fainter panels: less redundant heads. Fainter on z alone: the basis changed, not what the heads write.",
            needing("head_cosines", "model seed layer basis head_i head_j cos"),
            heatmaps,
            ("n_tokens", "held-out tokens"),
            "The diagonal, 1 by definition, is grey; one colour scale for all panels of a basis.",
            counted=topology_counts,
            faults=no_pairs,
            is_first_seed=True,
        ),
        Panel(
            "saes",
            "Sparse autoencoders on each head’s z, by layer",
            "The paper reports fewer active features early and more of them deep. A trained dictionary means "
            "something only as far as its fvu lies below that of a random one.",
            needing("sae_training_results", "model seed layer head l0 fvu dead_fraction l1", "seed_means"),
            paper_tables.sae_grids,
            ("n_eval_tokens", "held-out tokens an SAE"),
            "Means over heads, (e) of sums over them. mse is per dimension in the squared unit of z: it compares only "
            "where z has one size; fvu is its share of the variance. Controls: a random dictionary of the same "
            "size, the same SAE on shuffled activations, of which no cross-entropy is measured. ± is the jackknife "
            "standard error over blocks of the text; dead features are counted over the layer’s SAEs.",
            counted=table_counts,
            gaps=lambda study: say_adequacy(figures.of_heads(study.tables["sae_training_results"])),
            is_table=True,
            is_by_seed=True,
        ),
        Panel(
            "l0",
            "L0, active features per token, by layer",
            "A lower L0 is a gain only where FVU ({sae-health}) is no higher.",
            needing("sae_training_results", "model seed layer head l0", "seed_means"),
            l0,
            ("n_eval_tokens", "held-out tokens an SAE"),
            "Small marks are heads, lines their mean. Dotted: as many active features as z has dimensions.",
            counted=trained_counts,
        ),
        Panel(
            "density",
            "How often features fire",
            "Further left: features that fire more rarely. Open marks on the far left: features that never fire.",
            needing("sae_density", "model seed layer head log10_density_bin n_features"),
            density,
            ("n_eval_tokens", "held-out tokens an SAE"),
            "Density is the share of held-out tokens on which a feature is active; a step is one bin, a gap an empty "
            "one; both axes logarithmic; heads of a layer summed. Seeds after the first are fainter.",
            counted=trained_counts,
            faults=without_bins,
            is_by_seed=True,
        ),
        Panel(
            "ablation-table",
            "The heads that cost most to remove",
            "The paper finds one load-bearing head, in Adaptive. Whether the first head matters more than the second "
            "is in {ablation-summary}: their difference with its paired interval, and the p of the top head.",
            needing("ablation_results", "model seed layer head kind impact_pct", "seed_means"),
            paper_tables.ablation_grids,
            ("n_tokens", "held-out tokens, the same for all heads"),
            "The heads of the models together, of all layers (the paper removes those of layers 3, 6 and 9). Loss "
            "increase in per cent of the model’s own base loss; brackets are 95 % bootstrap intervals over sequences. "
            "Heads of two seeds do not correspond, so none is averaged: over seeds stand the mean impact at each rank, "
            "with its interval over seeds, and whose heads hold the rank.",
            counted=lambda study: {"": paper_tables.shown_heads(study)},
            is_table=True,
            is_by_seed=True,
        ),
        Panel(
            "ablation",
            "Loss increase when a head is removed",
            "One mark far above the rest of its layer is a load-bearing head; many alike share the work.",
            needing("ablation_results", "model seed layer head kind impact_pct"),
            ablation,
            ("n_tokens", "held-out tokens, the same for all heads"),
            "Each model’s heads stand in the order of their impact, since heads of two models or seeds do not "
            "correspond; point at a mark for its head. Bars: 95 % bootstrap intervals over sequences.",
            counted=kind_counts("ablation_results"),
            is_by_seed=True,
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
            "A gap between models on z that is not there on the residual contribution is a matter of basis.",
            needing("topology_stats", "model seed layer basis mean_cos", "seed_means"),
            redundancy,
            ("n_tokens", "held-out tokens"),
            "The residual contribution does not change under a rotation of the value basis; z does. Every panel has "
            "its own scale, from 0.",
            faults=without_numbers("topology_stats", "mean_cos", NO_PAIRS),
        ),
        Panel(
            "ranks",
            "Nuclear rank of the concatenated z, by layer",
            "Higher: the heads together use more directions. The paper’s rank rises mid-network under pressure.",
            needing("topology_stats", "model seed layer basis nuclear_rank", "seed_means"),
            ranks,
            ("n_tokens", "held-out tokens"),
        ),
        Panel(
            "effective-size",
            "Rank utilization and effective size (N_eff)",
            "N_eff above N: the model fills more of its heads’ dimensions than the reference does. It is the ratio of "
            "two utilizations in another unit: no parameter was added, and none is shown to be worth more.",
            needing("effective_size", EFFECTIVE, "seed_means"),
            paper_tables.effective_size_grids,
            ("n_tokens", "held-out tokens"),
            "N_eff = N × utilization of the model / utilization of the reference (the paper’s equation 5). Utilization "
            "is the nuclear rank of the concatenated z over its width, at the layer nearest in depth to the paper’s 6 "
            "of 12, or the mean over all layers. The paper’s N of 40M is about that without embeddings.",
            counted=topology_counts,
            uses=("topology_stats",),
            is_table=True,
            is_core=False,
        ),
        Panel(
            "sae-health",
            "Are the SAEs’ features features? Their health by layer",
            "Healthy: L0 far below the dotted line, few dense features, no near-copies, FVU far below the controls.",
            needing("sae_training_results", "model seed layer head l0 fvu", "seed_means"),
            health,
            ("n_eval_tokens", "held-out tokens per SAE"),
            "Small marks are heads, lines their mean. L0: active features per token. Dense: fires on more than .1 of "
            "the tokens. Near-copy: its decoder row has a cosine above .9 with another’s. Both are shares of the "
            "features that fire at all. FVU: fraction of variance unexplained; grey, a random dictionary as sparse as "
            "the trained one, and the trained one on activations whose coordinates were shuffled over tokens.",
            counted=dictionary_counts,
            gaps=without_health,
            warns=lambda study: warn_adequacy(figures.of_heads(study.tables["sae_training_results"])),
        ),
        Panel(
            "pareto",
            "FVU against L0 over a sweep of λ₁",
            "At the same L0, the lower curve reconstructs better.",
            needing("sae_training_results", "model seed layer head l0 fvu l1", "seed_means"),
            pareto,
            ("n_eval_tokens", "held-out tokens an SAE"),
            "Means over heads, a mark for each λ₁. Seeds after the first are fainter.",
            counted=trained_counts,
            is_core=False,
            is_by_seed=True,
        ),
        Panel(
            "matched",
            "Two models’ SAEs at equal λ₁ and at equal L0",
            "Below 0, the second model’s SAEs reconstruct better at the same L0; a gap that appears only at equal λ₁ "
            "reflects sparsity.",
            needing(
                "sae_matched_l0", "model_a model_b seed layer fvu_difference ce_recovered_difference", "seed_means"
            ),
            matched,
            ("n_eval_tokens", "held-out tokens an SAE"),
            "Second − first. At equal L0: means over the range of L0 that both sweeps of λ₁ reach. At each λ₁, FVU is "
            "the mean over heads; loss recovered is Σ(zeroed − spliced) / Σ(zeroed − base) of the losses, over heads.",
            counted=matched_counts,
            gaps=without_common_l0,
            says=say_matched,
            uses=("sae_training_results",),
            is_core=False,
        ),
        Panel(
            "stability",
            "Are the same features found with another seed?",
            "Only the distance to the dotted line counts: among many random directions some are always near.",
            needing(
                "sae_stability",
                "model seed layer head stability stability_random share_above share_random",
                "seed_means",
            ),
            stability,
            ("n_features", "features an SAE"),
            "Largest cosine of a feature’s decoder row with any of another SAE seed’s, of the same activations; means "
            "over features, heads and ordered pairs of SAE seeds.",
            is_core=False,
        ),
        Panel(
            "ablation-summary",
            "Ablation in one number a layer",
            "A Gini coefficient near its ceiling 1 − 1/heads is a layer in which one head does the work; a small "
            "load-bearing p says that one and the same head stands above its layer on sequence after sequence, not by "
            "how much.",
            needing("ablation_summary", "model seed kind layer measure value", "seed_means"),
            paper_tables.summary_grids,
            ("n", "heads"),
            "Gini passes its ceiling where impacts below 0 cancel others, and is no share then; a dash: they sum to "
            "nothing positive. Rank correlation is of measured impacts with their first-order estimates, over all "
            "heads. p, given for each seed, is that of the head of largest impact; null: the heads of a layer are "
            "exchangeable in each sequence; adjusted for all heads of all layers; ≤ marks the least that so many "
            "permutations can give. Top head − runner-up is paired over sequences, its interval a bootstrap of both "
            "together; one that holds 0 leaves the order open.",
            counted=summary_counts,
            is_table=True,
            is_core=False,
        ),
        Panel(
            "pairs",
            "Pairs of heads that stand in for each other",
            "Right of zero, removing both costs more than the sum of each: either can do the other’s work. Left, they "
            "overlap: the second costs less once the first is gone.",
            needing(
                "ablation_pairs",
                "model seed layer_a head_a layer_b head_b kind interaction_pct ci_low ci_high",
            ),
            pairs,
            ("n_tokens", "held-out tokens"),
            "Joint impact − both impacts, in per cent of the base loss; bars are 95 % intervals over sequences. The "
            "strongest of many: their intervals are too narrow for that choice.",
            counted=kind_counts("ablation_pairs"),
            is_by_seed=True,
            is_core=False,
        ),
    ),
)
