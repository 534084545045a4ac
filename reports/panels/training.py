"""Panels of training: losses, pressure, and what the monitor saw of heads and weights."""

from __future__ import annotations

import pandas as pd

from reports import figures, paper_tables
from reports.measure_names import name_measure
from reports.panels.panel import Drawing, Panel, Section, needing, without_column
from reports.seed_means import as_means
from reports.study import Study
from reports.study_tables import split_telemetry

RANKS = ("nuclear_rank", "stable_rank", "effective_rank")
PRESSURES = ("vsm.lambda", "sigma_z", "sigma_pattern", "sigma_residual")


def losses(study: Study) -> list[Drawing]:
    """Return the loss curves, a variant a phase, the last phase first."""
    log = study.tables["train_log"]
    baselines = study.tables.get("baselines")
    if baselines is not None and not {"name", "nats"} <= set(baselines.columns):
        baselines = None
    phases = list(dict.fromkeys(log["phase"])) if "phase" in log else [""]
    parts = {phase: log[log["phase"] == phase] for phase in phases} if len(phases) > 1 else {"": log}
    means = study.means("train_log", "held_out_loss", "model", "step")
    apart = as_means(study.effects("train_log", "held_out_loss", "step"))
    # another phase has another vocabulary: the baselines are those of the text, which is trained last
    return [
        (
            phase,
            figures.loss_curves(
                part, means[means["phase"] == phase] if phase else means,
                baselines if phase in ("", phases[-1]) else None, study.models,
                apart[apart["phase"] == phase] if phase and "phase" in apart else apart,
            ),
        )
        for phase, part in reversed(parts.items())
    ]  # fmt: skip


def pressure(study: Study) -> list[Drawing]:
    """Return λ and σ over steps."""
    log = study.tables["train_log"]
    panels = {
        name_measure(name.removeprefix("vsm.")): study.means("train_log", name, "model", "step")
        for name in PRESSURES
        if name in log
    }
    return [("", figures.pressure_and_redundancy(log, panels, study.models))]


def telemetry(study: Study) -> list[Drawing]:
    """Return what the interventions report over steps, a variant each."""
    log = study.tables["train_log"]
    found: dict[str, dict[str, pd.DataFrame]] = {}
    measured = study.measures("train_log")
    for column in log.columns:
        if (parts := split_telemetry(str(column))) and column in measured:
            found.setdefault(parts[0], {})[name_measure(parts[1])] = study.means("train_log", column, "model", "step")
    return [(name, figures.telemetry_over_steps(log, panels, study.models)) for name, panels in found.items()]


def monitors(study: Study) -> list[Drawing]:
    """Return every weight monitor over steps, a variant each."""
    log = study.tables["train_log"]
    means = {name: study.means("train_log", name, "model", "layer", "step") for name in study.measures("train_log")}
    drawn = {name: figures.monitor_over_steps(log, own, name, study.models) for name, own in means.items() if len(own)}
    return [(name_measure(name), figure) for name, figure in drawn.items()]


def rank_trajectories(study: Study) -> list[Drawing]:
    """Return the ranks of the weight matrices over steps, a variant a rank that the log has."""
    log, drawings = study.tables["train_log"], []
    for rank in RANKS:
        names = [name for name in study.measures("train_log") if name.startswith(f"{rank}.")]
        panels = {name.partition(".")[2]: study.means("train_log", name, "model", "step") for name in names}
        if panels:
            drawings.append((name_measure(rank), figures.ranks_over_steps(log, panels, rank, study.models)))
    return drawings


TRAINING = Section(
    "training",
    "Training",
    "How far the models came, and what the pressure did on the way.",
    (
        Panel(
            "loss",
            "Loss over steps",
            "A model that ends below the bigram line has learned more than which token follows which.",
            needing("train_log", "model seed step loss", "seed_means"),
            losses,
            detail=(
                "Marks: held-out text, whose unigram and bigram cross-entropies are the dotted lines. Thin, where four "
                "models or fewer share the figure: training batches. Right: held-out loss minus that of the reference, "
                "paired by seed; above 0 is worse. Steps count from the start of the phase."
            ),
            uses=("baselines",),
        ),
        Panel(
            "losses",
            "Final held-out loss beside the baselines",
            "One seed: the difference includes seed noise.",
            {**needing("train_log", "model seed step held_out_loss"), **needing("baselines", "name nats")},
            paper_tables.loss_grids,
            ("n_tokens", "held-out tokens"),
            "Nats per token; perplexity is exp of that, comparable within one tokenizer only. Unigram and bigram: "
            "cross-entropies of n-gram models fitted to the training text.",
            counted=lambda study: {"": study.tables["baselines"]},
            gaps=without_column("train_log", "held_out_perplexity"),
            is_table=True,
            is_by_seed=True,
        ),
        Panel(
            "pressure",
            "Pressure λ and redundancy σ over steps",
            "The pressure acts on one σ (on z, unless a recipe says otherwise); did the others follow?",
            needing("train_log", "model seed step sigma_z", "seed_means"),
            pressure,
            detail=(
                "σ is the mean |cos| between heads, here the mean over layers; every panel has its own scale, from 0."
            ),
            of_two="a line is their mean",
        ),
        Panel(
            "telemetry",
            "What the interventions report over training",
            "A term that falls is being met; one that does not move is too weak, or cannot be met.",
            needing("train_log", "model seed step", "seed_means"),
            telemetry,
            detail=(
                "The term of the loss includes its weight. Means over micro-batches and over the steps since the row "
                "before; every panel has its own scale."
            ),
            of_two="a line is their mean",
            is_core=False,
        ),
        Panel(
            "rank-trajectories",
            "Ranks of the weight matrices over training",
            "Lines that part early and stay apart: models whose weights went different ways.",
            needing("train_log", "model seed step", "seed_means"),
            rank_trajectories,
            detail=("Means over layers. Where a model has several phases, 0 is the start of the last one."),
            of_two="a line is their mean",
            is_core=False,
        ),
        Panel(
            "monitors",
            "Heads and weights over training",
            "Falling entropy: heads settle on few tokens. Falling rank: weights settle on few directions.",
            needing("train_log", "model seed step", "seed_means"),
            monitors,
            of_two="a line is their mean",
            is_core=False,
        ),
    ),
)
