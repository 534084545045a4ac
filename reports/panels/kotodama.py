"""Panels of the Kotodama lineage: its models beside the published figures, and what each step of it changes."""

from __future__ import annotations

from reports import lineage
from reports.panels.panel import Panel, Section, needing, without_column

TABLES = ("attention_stats", "weight_spectra", "trajectories")

LINEAGE = Section(
    "lineage",
    "The Kotodama lineage",
    "Muon, automata pre-training, attention residuals: each model differs from another in one thing. Published figures "
    "are of models a hundred times the size on other text; compare directions, not values.",
    (
        Panel(
            "lineage-table",
            "The lineage, and what was published of it",
            "Read down a column: a step of the lineage that matters moves it by more than the brackets are wide. Only "
            "the columns named published and the last row are the report’s own figures.",
            needing("train_log", "model seed step"),
            lineage.lineage_grids,
            gaps=without_column("train_log", "held_out_perplexity"),
            detail=(
                "Held-out loss in nats per token, perplexity its exponential, seed by seed; perplexities depend on the "
                "tokenizer, and the report’s is another one. Its own losses and perplexities do not agree in three "
                "rows: nca-002, p3-attnres (exp(2.870) is 17.64, not 18.12) and nca-attnres. "
                "Entropies in nats (standard deviation over the heads of layer 0); BOS "
                "mass is the mean over heads of the layer at the depth of 14 of 28, ranks are means over layers, "
                "consistency over concept sets. What attention_stats and weight_spectra do not hold is the training "
                "monitor’s last word. Models with NCA pre-training have seen automata too; all have seen as much text."
            ),
            uses=TABLES,
            is_table=True,
            is_core=False,
        ),
        Panel(
            "steps",
            "What each step changes",
            "Look for ● in a row: a change that the seeds agree on. A control (shuffled order, reset routing) that "
            "moves as far as its treatment says that something else did it.",
            needing("train_log", "model seed step"),
            lineage.step_grids,
            detail=(
                "Difference to the model before, paired by seed; ● the 95 % interval leaves out 0, ○ it holds 0, no "
                "mark: fewer than three seeds. The measures of a step are not corrected for their number."
            ),
            uses=TABLES,
            is_table=True,
            is_core=False,
        ),
    ),
)
