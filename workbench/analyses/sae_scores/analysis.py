"""The record of `sae-scores`: what the field reads about SAEs, each beside random directions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.analyses.sae_scores.cost import cost
from workbench.analyses.sae_scores.figures import draw_kept, draw_shrinkage
from workbench.analyses.sae_scores.settings import SaeScoresSettings
from workbench.analyses.sae_train.shown import shown_stack
from workbench.extend import Analysis, Column, Job, Table, Windows

if TYPE_CHECKING:
    import pandas as pd


def asked_saes(job: Job, *, is_checked: bool = True) -> Any:
    """The SAEs that are asked for. Raises ValueError for what cannot be scored."""
    from workbench.analyses.feature_effects.effects import chosen_saes
    from workbench.models.sae_places import saes_by_hook

    own = job.settings
    sae = chosen_saes(shown_stack(job, is_checked=is_checked), own.layers, own.heads)
    if sae.architecture.reads_pair:
        raise ValueError(f"sae-scores: got a {sae.config.architecture}; expected SAEs that reconstruct what they read")
    saes_by_hook(job.subject.model, sae)
    return sae


def check(job: Job) -> None:
    """Raise ValueError for SAEs that are not there, not the model's, or not of these layers and heads, and for a
    context too short for words."""
    from workbench.analyses.sae_scores.scoring import check_prompts
    from workbench.models.checks import checked_tokens

    asked_saes(job, is_checked=False)
    check_prompts(job.subject.model, job.settings.parts, job.settings.n_words)
    checked_tokens("sae-scores", job.subject.model, job.tokens, min_ctx=2)


def measure(job: Job) -> Mapping[str, pd.DataFrame]:
    """The tables; each is kept as soon as it is made, so that a killed run makes none twice."""
    from reports.tables import read_table, write_table
    from workbench.analyses.ablate.precision import as_float32
    from workbench.analyses.sae_scores.core import open_scored
    from workbench.analyses.sae_scores.scoring import iterate_tables

    own, subject = job.settings, job.subject
    scored = open_scored(as_float32(subject.model), asked_saes(job), job.tokens, job.seed)
    numbers = own.model_dump(include={"n_splice_tokens", "n_passages", "n_words", "n_bootstrap"})

    def done(name: str) -> pd.DataFrame | None:
        return read_table(job.directory, name) if (job.directory / f"{name}.csv").is_file() else None

    about = {"name": subject.name, "seed": subject.seed, "bootstrap_seed": job.seed, "done": done}
    tables = {}
    for name, table in iterate_tables(scored, job.tokens, own.parts, job.progress, **numbers, **about):
        tables[name] = table
        write_table(table, job.directory, name)
    return tables


def say(directory: Path) -> dict[str, Any]:
    """Means over SAEs of what is read first, of trained ones and of random directions."""
    from reports.tables import read_table

    if not (directory / "sae_core.csv").is_file():
        return {}
    table = read_table(directory, "sae_core")
    facts = {}
    for dictionary, rows in table.groupby("dictionary", sort=False):
        for name in ("explained_variance", "kl_score", "ce_score"):
            facts[f"{name}_{dictionary}"] = float(rows[name].mean())
    return facts


_HEADS = ("model", "seed", "layer", "head")
_DICTIONARY = "trained, or random directions as sparse on this text, whose bias and scale are fitted"
_TRAILING = [Column("l1", "sparsity coefficient"), Column("hook", kind="text")]

CORE = Table(
    "sae_core",
    key=(*_HEADS, "dictionary"),
    columns=[
        Column("kl_zero", "KL(base‖zeroed) of the next-token prediction", unit="nats"),
        Column("kl_sae", "KL(base‖reconstructed)", unit="nats"),
        Column("kl_score", "1 − Σ kl_sae / Σ kl_zero", unit="1"),
        Column("kl_low", "of kl_score", unit="1"),
        Column("kl_high", "of kl_score", unit="1"),
        Column("ce_base", "loss of the model as it is", unit="nats"),
        Column("ce_zero", "loss with zero in the activation's place", unit="nats"),
        Column("ce_sae", "loss with the reconstruction in its place", unit="nats"),
        Column("ce_score", "(ce_zero − ce_sae) / (ce_zero − ce_base)", unit="1"),
        Column("ce_low", "of ce_score", unit="1"),
        Column("ce_high", "of ce_score", unit="1"),
        Column("explained_variance", "1 − Σ‖x − x̂‖² / Σ‖x − mean x‖², the mean of all tokens", unit="1"),
        Column("mse", "mean over tokens and dimensions of the squared error"),
        Column("cosine", "of x and x̂, mean over tokens", unit="1"),
        Column("norm_in", "mean ‖x‖"),
        Column("norm_out", "mean ‖x̂‖"),
        Column("norm_ratio", "Σ‖x̂‖ / Σ‖x‖", unit="1"),
        Column("reconstruction_bias", "γ = Σ‖x̂‖² / Σ x·x̂; below 1: too short", unit="1"),
        Column("l0", "mean number of active features", unit="features per token"),
        Column("l1_norm", "mean sum of activations"),
        Column("alive", "features that fire", unit="1"),
        Column("dense_1", "features that fire on more than 1 % of tokens", unit="1"),
        Column("dense_1_share", "their share of all firings", unit="1"),
        Column("dense_10", "features that fire on more than 10 % of tokens", unit="1"),
        Column("dense_10_share", "their share of all firings", unit="1"),
        Column("encoder_decoder_cosine", "of a feature's encoder and decoder, mean over those that fire", unit="1"),
        Column("max_decoder_cosine", "with the nearest other that fires, mean", unit="1"),
        Column("encoder_norm", "‖encoder‖ ‖decoder‖, mean over those that fire"),
        Column("encoder_bias", "bias ‖decoder‖, mean over those that fire"),
        Column("n_tokens", "that activations are scored on", kind="integer"),
        Column("n_sequences", "that kl and ce are measured on", kind="integer"),
    ],
    trailing=_TRAILING,
    meaning=f"One SAE and dictionary ({_DICTIONARY}); head -1 is the whole hook. Low and high are 95 % bootstrap "
    "intervals over sequences.",
)
PROBING = Table(
    "sae_probing",
    key=(*_HEADS, "task", "probe", "k"),
    columns=[
        Column("accuracy", "on the test part", unit="1"),
        Column("ci_low", "of accuracy", unit="1"),
        Column("ci_high", "of accuracy", unit="1"),
        Column("auroc", "area under the ROC curve on the test part", unit="1"),
        Column("auroc_low", unit="1"),
        Column("auroc_high", unit="1"),
        Column("base_rate", "share of the larger class in the test part", unit="1"),
        Column("n_train", "examples", kind="integer"),
        Column("n_test", "examples", kind="integer"),
        Column("n_test_groups", "documents or words of the test part", kind="integer"),
    ],
    trailing=_TRAILING,
    meaning="A logistic probe of k inputs: features (trained, random), neurons, or the whole activation. Low and high "
    "are 95 % bootstrap intervals over documents or words.",
)
ABSORPTION = Table(
    "sae_absorption",
    key=(*_HEADS, "letter", "dictionary"),
    columns=[
        Column("n_words", "in the test part", kind="integer"),
        Column("n_letter", "of these, those that start with the letter", kind="integer"),
        Column("probe_accuracy", "of a logistic probe of the activation", unit="1"),
        Column("base_rate", "share of the larger class", unit="1"),
        Column("probe_low", "95 % interval of the accuracy", unit="1"),
        Column("n_true_positives", "words of the letter that the probe names", kind="integer"),
        Column("n_main", "features of the letter's own", kind="integer"),
        Column("n_absorbed", "true positives that are absorbed", kind="integer"),
        Column("absorption_rate", "n_absorbed / n_true_positives", unit="1"),
        Column("ci_low", unit="1"),
        Column("ci_high", unit="1"),
        Column(
            "status", "measured; task_absent: no probe does the task; no_feature: no feature is for it", kind="text"
        ),
        Column("n_letters", "letters that were measured", kind="integer"),
    ],
    trailing=_TRAILING,
    meaning=f"First letters of words, one by one and `all` together, for each dictionary ({_DICTIONARY}). Low and high "
    "are exact binomial 95 % intervals.",
)

sae_scores = Analysis(
    name="sae-scores",
    summary="What the field reads about SAEs: fidelity, shrinkage, sparse probing and absorption, beside random ones.",
    settings=SaeScoresSettings,
    reads=Windows(n_tokens=32768),
    needs=("sae-train",),
    tables=[CORE, PROBING, ABSORPTION],
    measure=measure,
    figures=(draw_kept, draw_shrinkage),
    cost=cost,
    check=check,
    facts=say,
    notes=lambda settings: (
        "A KL score is 1 where reconstructions leave predictions as they are and 0 where they are no better than zero. "
        "Random directions are as many, as sparse and as well scaled: what they reach needed no training. The embedded "
        "text, whose passages are told apart, may be what the model was trained on.",
    ),
    function="workbench.analyses.sae_scores.scoring:sae_scores",
)
