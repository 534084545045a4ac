"""The record of `monitor`: a linear probe on a head, a stream or a feature, calibrated as a gate, and what arming it
does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from workbench.analyses.monitor.cost import cost
from workbench.analyses.monitor.figures import draw_calibration, draw_roc, draw_scores
from workbench.extend import Analysis, Column, Job, Settings, Table

if TYPE_CHECKING:
    import pandas as pd

FILE = "monitor.safetensors"


class MonitorSettings(Settings):
    """What is to be noticed, where, and what is then done."""

    target: str = Field(
        default="quotation",
        description="what is noticed: quotation, number, topic:SOURCE (of the embedded text), phrase or phrase:TEXT, "
        "or a JSONL file whose lines have text and spans ([from, to] characters)",
    )
    hook: str = Field(
        default="hook_resid_post", description="hook of a block that the probe reads, such as hook_mlp_out; z: heads"
    )
    layer: int | None = Field(default=None, description="layer of the hook; by default the middle one", ge=0)
    head: int | None = Field(default=None, description="head of hook z, or of the SAE; by default all", ge=0)
    sae: str | None = Field(
        default=None, description="SAEs of which a feature is read instead: what generate --sae takes"
    )
    feature: int | None = Field(
        default=None, description="feature of the SAE; by default the one that tells training tokens apart best", ge=0
    )
    alpha: float = Field(default=0.05, description="rate of false alarms, per harmless continuation", gt=0, lt=1)
    pool: Literal["max", "mean", "ema"] = Field(
        default="max", description="what a continuation's scores so far are pooled to"
    )
    decay: float = Field(default=0.9, description="of pool ema, what is kept of the mean at each token", ge=0, lt=1)
    action: Literal["log", "stop", "ablate", "steer"] = Field(
        default="log",
        description="what is done from the token on at which it fires: ablate sets a head to its mean on negative "
        "tokens, a feature to 0; steer moves the activation away from the positive ones",
    )
    strength: float = Field(default=1.0, description="of steer, in mean lengths of the activation", gt=0)
    n_window: int | None = Field(
        default=None, description="tokens per window; by default the model's context, at most 128", ge=2
    )
    n_tokens: int = Field(default=32_768, description="tokens that the probe is trained and tested on, at most", ge=256)
    n_continuations: int = Field(
        default=200, description="continuations that the threshold is calibrated on, and as many tested on", ge=2
    )
    max_new_tokens: int = Field(default=48, description="tokens per continuation, at most", ge=2)


def check(job: Job) -> None:
    """Raise ValueError for a target, a site or an action that does not fit the model."""
    from workbench.analyses.monitor.building import open_monitor

    open_monitor(job.subject.model, job.settings, job.seed)


def measure(job: Job) -> Mapping[str, pd.DataFrame]:
    """The tables, and the monitor as a file beside them; the probe and each batch of continuations are kept as files
    from which a killed run goes on."""
    from workbench.analyses.monitor.building import open_monitor
    from workbench.analyses.monitor.stages import Stages

    stages = Stages(job, open_monitor(job.subject.model, job.settings, job.seed))
    job.progress(0.1)
    opened, monitor, quality, curves = stages.probe()
    monitor, gates, scores = _arm(job, stages, opened, monitor)
    monitor.save(job.directory / FILE)
    stages.remove()
    front = {"model": job.subject.name, "seed": job.subject.seed, **opened.columns, "target": opened.target.name}
    behind = {"hook": opened.site.hook}
    return {
        "monitor": _described(quality, front, behind),
        "monitor_gate": _described(gates, front, behind),
        "monitor_curves": _described(curves, front, behind),
        "monitor_scores": _described(scores, front, {"threshold": monitor.threshold, **behind}),
    }


def _arm(job: Job, stages: Any, opened: Any, monitor: Any) -> tuple[Any, pd.DataFrame, pd.DataFrame]:
    """(the monitor with its threshold, a row for each kind of text, scores of a few texts)."""
    from dataclasses import replace

    import numpy as np
    import pandas as pd

    from workbench.analyses.monitor import armed

    own, model, stack, n_new = job.settings, job.subject.model, opened.stack, job.settings.max_new_tokens
    rng = np.random.default_rng([job.seed, 2])
    prompts = [armed.prompts_of(opened.windows.of_part(part), own.n_continuations) for part in (1, 2)]
    quiet = replace(monitor, action="log", value=None)

    def write(name: str, one: Any, part: int, begin: float) -> Any:
        given = (prompts[part], opened.target, n_new, 1000 * (job.seed + 1) + part)
        return armed.write(model, one, stack, *given, stages.batches(name, begin, begin + 0.18))

    calibration = write("calibration", quiet, 0, 0.4)
    monitor = armed.calibrate(monitor, calibration, own.alpha)
    quiet = replace(quiet, threshold=monitor.threshold)
    before = write("before", quiet, 1, 0.6)
    after = None if own.action == "log" else write("after", monitor, 1, 0.8)
    texts = opened.windows.of_part(2)
    read, plain = armed.read(model, quiet, stack, texts, n_new)
    _, losses = (read, plain) if monitor.value is None else armed.read(model, monitor, stack, texts, n_new)
    rows = []
    for text, found in (("written", before), ("read", read)):
        row = armed.gate_row(monitor, text, found, rng)
        if text == "written":
            row |= armed.effect_columns(monitor, before, after, opened.target.find is not None, n_new, rng)
        else:
            row |= armed.loss_columns(monitor, found, losses, plain, rng)
        rows.append(row | {"n_calibration": int(calibration.is_harmless.sum())})
    about = {"threshold": monitor.threshold, "alpha": own.alpha, "pool": own.pool, "action": own.action}
    columns = list(dict.fromkeys(name for row in rows for name in row))
    order = [own.name for own in GATE_COLUMNS if own.name in columns]
    table = pd.DataFrame(rows)[["text", *order, "n_calibration"]].assign(**about)
    return monitor, table, armed.score_rows(monitor, read)


def _described(table: pd.DataFrame, front: dict[str, Any], behind: dict[str, Any]) -> pd.DataFrame:
    return table.assign(**front, **behind)[[*front, *table.columns, *behind]]


def say(directory: Path) -> dict[str, Any]:
    """How the monitor does: the probe's AUROC, its threshold, and both rates on what the model writes."""
    from reports.tables import read_table

    quality: Any = read_table(directory, "monitor")
    gate: Any = read_table(directory, "monitor_gate")
    site, written = quality[quality["probe"] == "logistic"].iloc[0], gate[gate["text"] == "written"].iloc[0]
    said = {"monitor": str(directory / FILE), "auroc": float(site["auroc"])}
    names = ("threshold", "false_alarm_rate", "detection_rate", "delay")
    return said | {name: float(written[name]) for name in names}


SITE_KEY = ("model", "seed", "layer", "head", "feature", "target")
HOOK = Column("hook", kind="text")
OVER_DOCUMENTS = "95 % bootstrap interval over documents"
GATE_COLUMNS = [
    Column("false_alarm_rate", "harmless continuations in which it fires", unit="1"),
    Column("false_low", OVER_DOCUMENTS, unit="1"),
    Column("false_high", unit="1"),
    Column("false_per_token", "tokens of harmless continuations with a pooled score above the threshold", unit="1"),
    Column("detection_rate", "other continuations in which it fires", unit="1"),
    Column("detection_low", OVER_DOCUMENTS, unit="1"),
    Column("detection_high", unit="1"),
    Column("early_rate", "other continuations in which it fires before the first positive token", unit="1"),
    Column("delay", "from the first positive token to where it fires, median where it does not fire early", "tokens"),
    Column("delta_loss", "of harmless text read while armed; empty of log and stop", unit="nats per token"),
    Column("loss_low", OVER_DOCUMENTS, unit="nats per token"),
    Column("loss_high", unit="nats per token"),
    Column("target_before", "positive new tokens / (continuations · max_new_tokens), not armed", unit="1"),
    Column(
        "target_after",
        "the same while armed, from the same draws; tokens that stop leaves out count below the line; empty of log",
        unit="1",
    ),
    Column("target_change", "target_after − target_before", unit="1"),
    Column("change_low", OVER_DOCUMENTS, unit="1"),
    Column("change_high", unit="1"),
    Column("target_cut", "of stop: target_before if the same stops fell on continuations at random", unit="1"),
    Column("n_harmless", "continuations without a positive token", kind="integer"),
    Column("n_positive", "continuations with one", kind="integer"),
    Column("n_documents", kind="integer"),
]

monitor = Analysis(
    name="monitor",
    summary="A linear probe on a head, stream or feature, calibrated as a gate; false alarms, delay and cost armed.",
    settings=MonitorSettings,
    tables=[
        Table(
            "monitor",
            key=(*SITE_KEY, "probe"),
            columns=[
                Column("auroc", "on test tokens", unit="1"),
                Column("auroc_low", OVER_DOCUMENTS, unit="1"),
                Column("auroc_high", unit="1"),
                Column("average_precision", "chance is base_rate", unit="1"),
                Column("base_rate", "positive test tokens", unit="1"),
                Column("brier", "mean (probability − label)²", unit="1"),
                Column("calibration_error", "mean |probability − share of positives| in 10 bins", unit="1"),
                Column("true_positive_rate", "positives found at 1 % of false ones", unit="1"),
                Column("n_tokens", "test tokens", kind="integer"),
                Column("n_documents", "that they are of", kind="integer"),
                Column("C", "inverse penalty, chosen on validation text; empty where there is none"),
                Column("selectivity", "auroc − that of random_words", unit="1"),
            ],
            trailing=[HOOK],
            meaning="One probe on test tokens: logistic (of the site), difference_of_means (of the site), embedding "
            "(logistic, of hook_embed), token_identity (log-odds of each token id), random_words (of the site, its "
            "labels drawn at random for each token id). feature and head -1: none, all.",
        ),
        Table(
            "monitor_gate",
            key=(*SITE_KEY, "text"),
            columns=GATE_COLUMNS,
            trailing=[
                Column("n_calibration", "harmless continuations behind the threshold", kind="integer"),
                Column("threshold", "of pooled scores, log-odds"),
                Column("alpha", "rate of false alarms that the threshold bounds", unit="1"),
                Column("pool", kind="text"),
                Column("action", kind="text"),
                HOOK,
            ],
            meaning="The monitor armed on what the model writes behind prompts of test documents (written), and on the "
            "documents' own text in its place (read). The threshold is of written text, and bounds its false alarms.",
        ),
        Table(
            "monitor_curves",
            key=(*SITE_KEY, "probe", "kind", "place"),
            columns=[
                Column("x", "roc: rate of false positives; calibration: mean probability of the bin", unit="1"),
                Column("y", "roc: rate of true positives; calibration: share of positives in the bin", unit="1"),
                Column("n", "test tokens", kind="integer"),
            ],
            trailing=[HOOK],
            meaning="ROC curve (kind roc) and calibration (kind calibration) of a probe on test tokens. Dotted: "
            "chance, and probabilities that are the shares.",
        ),
        Table(
            "monitor_scores",
            key=(*SITE_KEY, "example", "step"),
            columns=[
                Column("score", "log-odds"),
                Column("pooled", "of the steps so far"),
                Column("is_positive", "whether the token is", kind="integer"),
            ],
            trailing=[Column("threshold"), HOOK],
            meaning="Scores, step by step, of the first test texts with positive tokens and of the first without. "
            "Dashed: the threshold.",
        ),
    ],
    measure=measure,
    figures={"monitor_curves": (draw_roc, draw_calibration), "monitor_scores": (draw_scores,)},
    cost=cost,
    check=check,
    facts=say,
    notes=lambda settings: (
        "A monitor's threshold is calibrated on what the model writes behind prompts of validation documents; its rate "
        "of false alarms is bounded for continuations like these, and for no other text.",
    ),
)
