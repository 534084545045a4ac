"""The tables that no analysis writes: the log of a training, and what a study makes of its other tables."""

from __future__ import annotations

from reports.contract import Column, Table, with_twins


def _numbers(names: str, unit: str = "") -> list[Column]:
    return [Column(name, unit=unit) for name in names.split()]


def _texts(names: str) -> list[Column]:
    return [Column(name, kind="text") for name in names.split()]


TRAIN_LOG = Table(
    "train_log",
    ("model", "seed", "phase", "step"),
    [
        Column("n_tokens", "tokens read so far", kind="integer"),
        Column("loss", "of training, per token", unit="nats"),
        Column("held_out_loss", unit="nats"),
        *_numbers("lr grad_norm"),
        Column("tokens_per_s", unit="tokens/s"),
        *(
            Column(f"sigma_{basis}", "mean over layers of mean |cos| of heads")
            for basis in ("z", "pattern", "residual")
        ),
    ],
    trailing=[Column("held_out_perplexity", "exp(held_out_loss)")],
    meaning="One logged step. What the interventions report follows (vsm.lambda, vsm.loss, vsm.sigma, …), then columns "
    "of layers (sigma_z.{layer}, nuclear_rank.W_O.{layer}, …), and the trailing columns last.",
    blocks=["held_out_loss", "held_out_perplexity"],
)


def split_telemetry(column: str) -> tuple[str, str] | None:
    """(intervention, key) of a column of the log that an intervention reports; None of another, such as one of a layer,
    which ends in a number.

    >>> split_telemetry("vsm.lambda"), split_telemetry("sigma_z.3"), split_telemetry("loss")
    (('vsm', 'lambda'), None, None)
    """
    name, _, key = column.rpartition(".")
    return (name, key) if name and not key.isdigit() else None


BASELINES = Table(
    "baselines",
    ("name",),
    [Column("nats", "cross-entropy of the held-out tokens", unit="nats"), Column("n_tokens", kind="integer")],
    meaning="N-gram models of the training text (unigram, bigram) on held-out text; perplexity, exp(nats), follows.",
)
FACTORIAL = Table(
    "factorial",
    ("measure", "term"),
    [
        *_numbers("value ci_low ci_high"),
        Column("n", "seeds", kind="integer"),
        Column("published_value", "the published cells in the same combination"),
        Column("stated_value", "what the report's text says"),
    ],
    meaning="The 2 × 2 of automata and attention residuals: the cells (neither, attn_res, nca, both), both main "
    "effects, the interaction; means over seeds.",
)
EFFECTS = Table(
    "effects",
    ("table", "measure", "comparison", "model_a", "model_b"),
    [
        Column("effect", "model_b − model_a, mean over seeds"),
        *_numbers("ci_low ci_high"),
        Column("n", "seeds", kind="integer"),
        Column("interval", "what the 95 % interval rests on: paired, welch or none", kind="text"),
    ],
    meaning="Two models compared at one place; comparison is the lineage's step, empty for another pair. The columns "
    "that name the place (layer, basis, set, …) follow, empty where they do not apply.",
    is_shown=False,
)
SEED_MEANS = Table(
    "seed_means",
    ("table", "measure"),
    [
        *_numbers("mean ci_low ci_high"),
        Column("n", "seeds", kind="integer"),
        Column("seeds", "separated by spaces", kind="text"),
        Column("values", "of more than one seed each one's, separated by spaces", kind="text"),
    ],
    meaning="The mean over seeds of a measure at one place, with its 95 % interval of Student's t, missing below three "
    "seeds. The columns that name the place (model, layer, …) follow.",
    is_shown=False,
)
TEXT_ERRORS = Table(
    "text_errors",
    ("table", "measure"),
    [
        Column("seed", kind="integer"),
        Column("value", "of that seed"),
        Column("stderr", "jackknife standard error over blocks of the text"),
        Column("n_blocks", kind="integer"),
    ],
    meaning="How far other text would move a measure of one model and seed at one place, whose columns (model, layer, "
    "…) follow; of measures whose table has values by block.",
    is_shown=False,
)
FINDINGS = Table(
    "findings",
    ("table", "measure", "comparison", "model_a", "model_b"),
    [
        *_numbers("value_a value_b"),
        Column("effect", "value_b − value_a, mean over seeds"),
        *_numbers("ci_low ci_high"),
        Column("n", "seeds", kind="integer"),
        Column("interval", "what the 95 % interval rests on: paired, welch, own (the text alone) or none", kind="text"),
        Column(
            "at_least",
            "the end of the interval nearer to 0, over the larger of |value_a| and |value_b|; 0 where it holds 0",
            unit="1",
        ),
        Column("at_most", "the end farther from 0, over the same", unit="1"),
        *_texts("label unit"),
    ],
    meaning="Two models compared by one number each, with an interval over seeds, else over blocks of the text where "
    "the table has values by block: what the page's conclusions are chosen from.",
    is_shown=False,
)
AGAINST = Table(
    "against",
    ("table", "measure", "quantity", "comparison", "model_a", "model_b", "where"),
    [
        *_numbers("old new"),
        Column("difference", "new − old, means over seeds"),
        *_numbers("ci_low ci_high"),
        Column("n_old", "seeds", kind="integer"),
        Column("n_new", "seeds", kind="integer"),
        Column("interval", "what the 95 % interval rests on: welch, own (the text alone) or none", kind="text"),
        Column("p", "two-sided, of no difference", unit="1"),
        Column("q", "p adjusted by Benjamini and Hochberg over all rows that have one", unit="1"),
        Column("changed", "yes: the interval excludes 0 and q ≤ .05; empty where a difference has no p", kind="text"),
    ],
    meaning="What `report --against` finds: a measure of one model (quantity value, of model_b) or of two (quantity "
    "effect, model_b − model_a) in an earlier study and in this one.",
    is_shown=False,
)
AGAINST_SETUP = Table(
    "against_setup",
    ("name",),
    _texts("old new differs"),
    meaning="How the two studies of against.csv were made; of settings of recipes only those that differ.",
    is_shown=False,
)
CLAIMS = Table(
    "claims",
    ("claim",),
    [
        *_texts("published measured"),
        *_numbers("ci_low ci_high"),
        Column("n", "seeds", kind="integer"),
        *_texts("verdict measure source_table control"),
    ],
    trailing=[
        *_texts("claim_id group reference treated direction scale"),
        *_numbers("effect published_effect margin reference_value treated_value"),
        *_texts("interval why source_rows published_in"),
        Column("unit", "of effects as the page shows them: percent, factor, points or plain", kind="text"),
        Column("figure", "where the 95 % interval lies: holds or excludes the published effect", kind="text"),
        Column("published_params", "of the published model, without embeddings", unit="parameters"),
    ],
    meaning="The ledger: a published claim, what was measured, and the verdict.",
    is_shown=False,
)
CLAIMS_BY_SIZE = Table(
    "claims_by_size",
    ("claim_id", "size"),
    [
        Column("n_parameters", "of the largest model compared, without embeddings", unit="parameters", kind="integer"),
        Column("effect", "of a ratio treated / reference − 1, of a difference treated − reference"),
        *_numbers("ci_low ci_high"),
        Column("n", "seeds", kind="integer"),
        *_texts("interval verdict"),
        Column("line", "the straight line's value at that size, in the effect's unit"),
        *_texts("claim group scale unit"),
    ],
    meaning="A published claim at one size of the study's models.",
    is_shown=False,
)
SIZE_SLOPES = Table(
    "size_slopes",
    ("claim_id",),
    [
        Column("slope", "of the effect on its working scale (a logarithm for ratios), per factor of ten in parameters"),
        *_numbers("ci_low ci_high"),
        Column("n", "seeds", kind="integer"),
        Column("n_sizes", kind="integer"),
        Column("published_params", "of the published model, without embeddings", unit="parameters"),
        Column("predicted", "the straight line's value there, in the effect's unit"),
        *_numbers("predicted_low predicted_high published_effect"),
        *_texts("heading claim group scale unit"),
    ],
    meaning="A claim's effect over a study's sizes: the slope with its 95 % interval over seeds, the straight line "
    "at the published size with the 95 % prediction interval of one more model there, and where it is heading.",
    is_shown=False,
)
STUDY_TABLES = with_twins(
    (
        TRAIN_LOG,
        BASELINES,
        FACTORIAL,
        EFFECTS,
        SEED_MEANS,
        TEXT_ERRORS,
        FINDINGS,
        AGAINST,
        AGAINST_SETUP,
        CLAIMS,
        CLAIMS_BY_SIZE,
        SIZE_SLOPES,
    )
)
