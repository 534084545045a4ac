"""The record of `steer`: what pushing activations along a feature of an SAE does, dose by dose, beside controls."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator

from workbench.analyses.sae_train.shown import ShownSettings, shown_stack
from workbench.analyses.steer.cost import cost
from workbench.analyses.steer.figures import draw_cost, draw_cost_and_target_rate, draw_target_rate
from workbench.extend import Analysis, Column, Integers, Job, Names, Numbers, Table, Windows

if TYPE_CHECKING:
    import pandas as pd

FORMS = ("norm", "max_act", "clamp", "remove")


class SteerSettings(ShownSettings):
    """Which features, how far, towards what, and on how much text."""

    layers: Integers | None = Field(default=None, description="layers to take the strongest feature of; all by default")
    heads: Integers | None = Field(default=None, description="heads to take the strongest feature of; all by default")
    feature: tuple[str, ...] = Field(
        default=(),
        description="LAYER.HEAD.FEATURE, HEAD being all where an SAE reads a whole hook; repeatable; by default the "
        "one whose ablation changes the loss most, by its gradient",
    )
    target: tuple[str, ...] = Field(
        default=(),
        description="word that steering is to bring about; repeatable; by default those that held-out text goes on "
        "with where the feature is strongest",
    )
    pattern: str | None = Field(default=None, description="regular expression that the target is, instead of words")
    ask: str | None = Field(
        default=None, description="text before a prompt that asks for the target; by default the target's words"
    )
    forms: Names = Field(default=FORMS, description="ways to push, of norm, max_act, clamp and remove")
    alphas: Numbers = Field(
        default=(0.5, 1.0, 2.0, 4.0, 8.0), description="doses of each form but remove, which has one"
    )
    n_random: int = Field(default=20, description="random directions beside the feature", ge=0)
    n_prompts: int = Field(default=24, description="beginnings of held-out windows that are continued", ge=2)
    max_new_tokens: int = Field(default=48, description="tokens per continuation, at most", ge=1)
    temperature: float = Field(default=0.7, description="sampling temperature; 0 takes the likeliest token", ge=0)
    n_windows: int = Field(default=16, description="held-out windows that losses are of", ge=2)
    budget: float = Field(
        default=0.1, description="nats per token by which held-out loss may rise, for the headline", ge=0
    )

    @field_validator("forms")
    @classmethod
    def _are_forms(cls, forms: tuple[str, ...]) -> tuple[str, ...]:
        if not forms or len(set(forms)) < len(forms) or not set(forms) <= set(FORMS):
            raise ValueError(f"got {','.join(forms)}; expected some of {', '.join(FORMS)}, each once")
        return forms

    @field_validator("alphas")
    @classmethod
    def _are_doses(cls, alphas: tuple[float, ...]) -> tuple[float, ...]:
        if not alphas or len(set(alphas)) < len(alphas) or 0 in alphas:
            raise ValueError(f"got {','.join(map(str, alphas))}; expected numbers other than 0, each once")
        return alphas


def open_steer(job: Job, *, is_checked: bool = True) -> tuple[Any, Any, list[Any], Any]:
    """(SAEs, features that are named, windows to choose by and to measure on, target that is named). Raises ValueError
    for what cannot be steered."""
    from workbench.analyses.steer import dose_curves
    from workbench.analyses.steer.target import read_target
    from workbench.models.checks import checked_tokens, is_whole
    from workbench.models.steering import place_of_feature
    from workbench.models.transformer import check_ours, check_tokenized

    own, model = job.settings, job.subject.model
    check_ours("steer", model)
    check_tokenized("steer", model)
    if not is_whole(model):
        raise ValueError("steer: got a model on several devices; expected one")
    target, features = read_target(own.target, own.pattern), [dose_curves.read_feature(text) for text in own.feature]
    sae = dose_curves.saes_of(shown_stack(job, is_checked=is_checked), own.layers, own.heads, features)
    for feature in features:
        place_of_feature(model, sae, feature)
    halves = dose_curves.split_text(checked_tokens("steer", model, job.tokens, min_ctx=2))
    return sae, features, list(halves), target


def check(job: Job) -> None:
    """Raise ValueError for a model, SAEs, features, a target or prompts that do not fit."""
    _, _, halves, _ = open_steer(job, is_checked=False)
    _measured_text(job, halves[1])


def _measured_text(job: Job, windows: Any) -> Any:
    from workbench.analyses.steer.dose_curves import measured_text

    counts = job.settings.model_dump(include={"n_prompts", "n_windows", "max_new_tokens", "temperature"})
    return measured_text(job.subject.model, windows, **counts, seed=job.seed)


def measure(job: Job) -> Mapping[str, pd.DataFrame]:
    """Both tables; results of some arms at a time are kept as files from which a killed run goes on."""
    import pandas as pd

    from workbench.analyses.steer import dose_curves
    from workbench.analyses.steer.tables import dose_curves as curves_of
    from workbench.analyses.steer.tables import headline, summarize

    own, model = job.settings, job.subject.model
    sae, features, (first, second), target = open_steer(job)
    text = _measured_text(job, second)
    if features:
        found = [(one, target or dose_curves.target_of_named(model, sae, one, first)) for one in features]
    else:
        found = [dose_curves.choose_feature(model, sae, first, target)]
    curves, heads = [], []
    for number, (feature, aim) in enumerate(found):
        settings = own.model_dump(include={"forms", "alphas", "n_random"})
        chosen = dose_curves.choose(model, sae, feature, aim, first, **settings, seed=job.seed)
        keep = _keeper(job, number, len(found), len(chosen.arms))
        measured, results = dose_curves.measure_arms(model, chosen, text, own.ask, keep)
        summary = summarize(measured, job.seed)
        for rows, into in ((curves_of(summary), curves), (headline(summary, own.budget), heads)):
            into.append(_described(job, sae, chosen, text, rows))
    for file in sorted(job.directory.glob("arms_*.safetensors")):
        file.unlink()
    return {"steering": pd.concat(curves, ignore_index=True), "steering_headline": pd.concat(heads, ignore_index=True)}


def _keeper(job: Job, number: int, n_features: int, n_arms: int) -> Callable[..., Any]:
    """Part after part of a feature's arms: read where its file is there, else made and written."""
    import torch

    from workbench.analyses.steer.arms import ArmResults
    from workbench.analyses.steer.dose_curves import ARMS_TOGETHER
    from workbench.runs.resume_state import read_state, write_state

    def keep(part: int, make: Callable[[], ArmResults]) -> ArmResults:
        file = job.directory / f"arms_{number:03d}_{part:05d}.safetensors"
        if not file.is_file():
            write_state(file, {name: torch.as_tensor(value) for name, value in asdict(make()).items()})
        job.progress((number + min(1.0, (part + 1) * ARMS_TOGETHER / n_arms)) / n_features)
        return ArmResults(**read_state(file)[0])

    return keep


def _described(job: Job, sae: Any, chosen: Any, text: Any, rows: pd.DataFrame) -> pd.DataFrame:
    """The rows as the tables have them: what they are of in front and behind."""
    layer, head, index = chosen.feature
    source = chosen.place.sae.info.sources[0]
    front = {"model": job.subject.name, "seed": job.subject.seed, "layer": layer, "head": head, "feature": index}
    counts = {"n_prompts": len(text.prompts), "n_windows": len(text.windows)}
    behind = {
        "target": str(chosen.target),
        "max_act": chosen.constants.max_act,
        "mean_norm": chosen.constants.mean_norm,
        "l1": float("nan") if source.l1 is None else source.l1,
        "hook": chosen.place.hook_name,
    }
    table = rows.assign(**front, **counts, **behind)
    last = [*counts, *behind]
    own = [name for name in rows.columns if name not in ("form", "alpha", "control")]
    key = ["form", "alpha", "control"] if "gain" not in rows else ["form", "control", "alpha"]
    return table[[*front, *key, *own, *last]]


def say(directory: Path) -> dict[str, Any]:
    """What steering buys at the headline's budget, in the form that buys most."""
    from reports.tables import read_table

    table: Any = read_table(directory, "steering_headline")
    own = table[table["control"] == "feature"]
    if own.empty:
        return {}
    top = own.loc[own["gain"].idxmax()]
    said = {"feature": f"{top['layer']}.{top['head']}.{top['feature']}", "target": top["target"], "form": top["form"]}
    return said | {name: float(top[name]) for name in ("alpha", "target_rate", "gain", "p", "delta_loss")}


def _interval(low: str, high: str, unit: str, of: str = "prompts") -> list[Column]:
    meaning = f"95 % bootstrap interval over {of}; of random directions the range of 95 % of them"
    return [Column(low, meaning, unit=unit), Column(high, unit=unit)]


FEATURE_KEY = ("model", "seed", "layer", "head", "feature")
RATE = Column(
    "target_rate", "share of a continuation's words that are of the target, mean over continuations", unit="1"
)
LOSS = Column("delta_loss", "held-out loss while pushed − loss; empty of `asked`", unit="nats per token")
OWN = Column("continuation_loss", "loss of the continuations' tokens under the model as it is", unit="nats per token")
LOOPS = Column("loop_rate", "continuations that end in a loop, as text-quality defines it", unit="1")
P = Column("p", "(1 + random directions with at least this target rate)/(1 + random directions)", unit="1")
COUNTS = [
    Column("n_directions", "directions that the row is of", kind="integer"),
    Column("n_prompts", kind="integer"),
    Column("n_windows", "held-out windows that delta_loss is of", kind="integer"),
]
TRAILING = [
    Column("target", "words, or the pattern", kind="text"),
    Column("max_act", "f_max, on text that nothing is measured on"),
    Column("mean_norm", "mean ‖x‖, on the same"),
    Column("l1", "sparsity coefficient"),
    Column("hook", kind="text"),
]

steer = Analysis(
    name="steer",
    summary="What pushing activations along a feature does, by dose: target rate, losses and loops beside controls.",
    settings=SteerSettings,
    reads=Windows(n_tokens=32_768),
    needs=("sae-train",),
    tables=[
        Table(
            "steering",
            key=(*FEATURE_KEY, "form", "alpha", "control"),
            columns=[
                RATE,
                *_interval("target_low", "target_high", "1"),
                LOSS,
                *_interval("loss_low", "loss_high", "nats per token", "held-out windows, paired"),
                OWN,
                *_interval("continuation_low", "continuation_high", "nats per token"),
                LOOPS,
                *_interval("loop_low", "loop_high", "1"),
                P,
                *COUNTS,
            ],
            trailing=TRAILING,
            meaning="One form and dose along one direction: the feature's, the difference of means before the target "
            "and elsewhere, or random ones of equal length (their mean); with form none the prompt, nothing pushed, "
            "and asked, nothing pushed and the target's words put before the prompt. alpha is 1 for remove. Random "
            "directions are drawn by (seed, feature), and every row samples with the same numbers; head -1 is the "
            "whole hook.",
        ),
        Table(
            "steering_headline",
            key=(*FEATURE_KEY, "form", "control"),
            columns=[
                Column(
                    "alpha", "the dose; 0, nothing pushed, where every dose costs more; a mean over random directions"
                ),
                RATE,
                *_interval("target_low", "target_high", "1"),
                Column("gain", "target rate − that of the prompt alone", unit="1"),
                *_interval("gain_low", "gain_high", "1", "prompts, paired"),
                P,
                LOSS,
                Column("loss_high", "upper end of its 95 % interval", unit="nats per token"),
                OWN,
                LOOPS,
                COUNTS[0],
                Column("budget", "which loss_high may not pass", unit="nats per token"),
                *COUNTS[1:],
            ],
            trailing=TRAILING,
            meaning="Of one form and direction the largest dose that costs at most the budget: the upper end of the "
            "interval of its Δ held-out loss. Random directions each have their own dose.",
        ),
    ],
    measure=measure,
    figures=(draw_target_rate, draw_cost, draw_cost_and_target_rate),
    cost=cost,
    check=check,
    facts=say,
    notes=lambda settings: (
        "Features, targets and constants are chosen on the first half of the text, and everything is measured on the "
        "second. The target is judged by the text alone, never by the feature's activation.",
    ),
)
