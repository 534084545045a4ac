"""Panels of the Kotodama lineage: its models beside the published figures, and what each step of it changes."""

from __future__ import annotations

import pandas as pd

from reports import figures, lineage, lineage_tables
from reports.panels.panel import Drawing, Panel, Section, needing, without_column
from reports.study import Study

TABLES = (
    "attention_stats", "weight_spectra", "trajectories", "concept_geometry", "concept_mantel", "intrinsic_dimension",
)  # fmt: skip
# variant of the figure -> its measures
DRAWN = {
    "BOS mass at three depths": ("bos_first", "bos_mass", "bos_last"),
    "head entropies and weights": ("entropy_mean", "entropy_std", "rank_W_O"),
    "concepts": ("effective_dim", "consistency", "digits", "number_words", "sizes"),
    "years": ("years_raw", "years_partial"),
}


def beside_published(study: Study) -> list[Drawing]:
    """Return measures beside the published figures, a variant a group; those that the study has numbers of."""
    models, published = lineage.lineage_models(study), lineage.lineage_data()["published"]
    measures = {measure.key: measure for measure in lineage.MEASURES}
    drawings = []
    for name, keys in DRAWN.items():
        means, theirs = {}, {}
        for key in keys:
            own = study.means("", measures[key].title, "model")
            own = own[own["model"].isin(list(models.values()))]
            if len(own):
                means[measures[key].title] = own
                theirs[measures[key].title] = {
                    models[model]: figure
                    for model, figure in published[key].items()
                    if model in models and not isinstance(figure, str)
                }
        if means:
            drawings.append((name, figures.beside_published(means, theirs, list(models.values()), study.models)))
    return drawings


def over_last_phase(study: Study) -> pd.DataFrame:
    """Return the means of the middle layer's stable rank of W_Q, with x: the steps since the last phase began, which in
    the phases before is below 0."""
    means = lineage.rows_at(study.means("train_log", "stable_rank.W_Q", "model", "layer", "step"), lineage.middle_layer)
    log = study.tables["train_log"].sort_values("step", kind="stable")
    phase = log["phase"] if "phase" in log else pd.Series("", index=log.index)
    is_before = phase != phase.groupby(log["model"]).transform("last")
    starts = log[is_before].groupby("model")["step"].max()
    return means.assign(x=means["step"] - means["model"].map(starts).fillna(0))


def query_ranks(study: Study) -> list[Drawing]:
    """Return the middle layer's stable rank of W_Q over training: of the two models of the report, then of all."""
    models = lineage.lineage_models(study)
    ranks = over_last_phase(study)
    ranks = ranks[ranks["model"].isin(list(models.values()))]
    reported = [models[key] for key in lineage.lineage_data()["published"]["rank_start"] if key in models]
    shown = {" and ".join(reported): ranks[ranks["model"].isin(reported)], "all models of the lineage": ranks}
    return [
        (name, figures.rank_over_phase(rows, "stable rank of W_Q, middle layer", study.models))
        for name, rows in shown.items()
        if len(rows)
    ]


def measured_rows(study: Study) -> list[str]:
    """Return how many measurements of that rank a run's last phase has."""
    ranks = over_last_phase(study)
    counts = ranks[ranks["x"] > 0].groupby("model")["x"].nunique()
    if counts.empty:
        return []
    ends = dict.fromkeys((int(counts.min()), int(counts.max())))
    return [f"{' to '.join(map(str, ends))} measurements in a run’s last phase"]


LINEAGE = Section(
    "lineage",
    "The Kotodama lineage",
    "Muon, automata pre-training, attention residuals: each model differs from another in one thing. Published figures "
    "are of models of 108M parameters on other text; those of small models compare in direction, not in value.",
    (
        Panel(
            "lineage-table",
            "The lineage beside what was published of it",
            "Read down a column: a step of the lineage that matters moves it by more than the brackets are wide, and "
            "the way that the published column moves.",
            needing("train_log", "model seed step", "seed_means"),
            lineage_tables.lineage_grids,
            gaps=without_column("train_log", "held_out_perplexity"),
            detail=(
                "Held-out loss in nats per token, perplexity its exponential, seed by seed; perplexities depend on the "
                "tokenizer, and the report’s is another one. Its own losses and perplexities do not agree in three "
                "rows: nca-002, p3-attnres (exp(2.870) is 17.64, not 18.12) and nca-attnres. Entropies in nats "
                "(standard deviation over the heads of layer 0); "
                "BOS mass is the mean over heads of the first layer, of the one at the depth of 14 of 28, and of the "
                "last, as published. The nuclear rank, which the report calls participation ratio, is of layer 0 for "
                "W_O, as published, and the mean over layers for W_Q; the stable rank is of the middle layer at the "
                "start and end of the last phase. Consistency and effective dimension are means over concept sets. "
                "What attention_stats and weight_spectra do not hold is the training monitor’s last word. Models with "
                "NCA pre-training have seen automata too; all have seen as much text."
            ),
            uses=TABLES,
            is_table=True,
            is_core=False,
        ),
        Panel(
            "beside-published",
            "Measures beside the published figures",
            "Compare how filled marks rise and fall from model to model with how the diamonds do.",
            needing("train_log", "model seed step", "seed_means"),
            beside_published,
            detail="Open diamonds: as published. Layers as in {lineage-table}.",
            uses=TABLES,
            interval="a bar",
            of_two="a mark is their mean, each a faint mark",
            is_core=False,
        ),
        Panel(
            "two-by-two",
            "NCA and attention residuals, two by two",
            "If attention residuals collapse concepts only without NCA, one cell is near 1 and the other three are "
            "not, and the interaction is above 0.",
            needing("factorial", "measure term value ci_low ci_high n published_value"),
            lineage_tables.two_by_two_grids,
            ("n", "seeds"),
            "Main effects are half the sum of a factor’s two simple effects, the interaction is the difference of "
            "these; seed by seed, with 95 % intervals from three seeds on. Published effects are those of the "
            "published cells; “stated” is what the report’s text says, where that is something else.",
            is_table=True,
            is_core=False,
        ),
        Panel(
            "steps",
            "What each step changes",
            "Look for ● in a row: a change that the seeds agree on. A control (shuffled order, reset routing) that "
            "moves as far as its treatment says that something else did it.",
            needing("train_log", "model seed step", "effects"),
            lineage_tables.step_grids,
            detail=(
                "Difference to the model before, paired by seed; ● the 95 % interval leaves out 0, ○ it holds 0, no "
                "mark: fewer than three seeds. The measures of a step are not corrected for their number."
            ),
            uses=TABLES,
            is_table=True,
            is_core=False,
        ),
        Panel(
            "query-rank",
            "Stable rank of W_Q at the middle layer over training",
            "Published: without co-trained routing the rank that NCA left erodes, with it the rank starts low and "
            "climbs; the figures of both ends: {lineage-table}.",
            needing("train_log", "model seed step", "seed_means"),
            query_ranks,
            detail="‖W‖_F²/σ₁² with all heads side by side, at the depth of 14 of 28. Left of 0: phases before.",
            gaps=measured_rows,
            is_core=False,
        ),
        Panel(
            "rank-budget",
            "The budget of stable rank, and where it lies",
            "A budget that is conserved is a last row near 0 in its first column; what moves between early and late "
            "layers shows in the others.",
            needing("rank_budget", "model seed matrix part stable_rank share", "seed_means"),
            lineage_tables.budget_grids,
            detail=(
                "‖W‖_F²/σ₁² summed over layers; early, middle and late are thirds of the depth, the last half is what "
                "the report calls mid-to-late, layers 14 to 27 of 28. The last row is the difference, paired by seed, "
                "with marks as in {steps}."
            ),
            is_table=True,
            is_core=False,
        ),
        Panel(
            "pairs",
            "Do models of one loss share their first component?",
            "The published claim is that no pair lies above chance. Read it beside the shared components "
            "({pc-alignment}): two models share no basis.",
            needing("pc_cosine", "model_a model_b layer pc cosine", "seed_means"),
            lineage_tables.pair_grids,
            ("n", "sequences"),
            "|cos| of the first principal components of the states, at the first layer, at the depth of 14 of 28, and "
            "at the last.",
            is_table=True,
            is_core=False,
        ),
        Panel(
            "spectra-pairs",
            "How far spectra of two models lie apart",
            "Published: attention diverges three to four times as far as the MLP.",
            needing("eigenspectra_divergence", "model_a model_b part divergence"),
            lineage_tables.divergence_grids,
            detail="Mean over layers and matrices of |nuclear rank a − b| / their mean.",
            is_table=True,
            is_core=False,
        ),
    ),
)
