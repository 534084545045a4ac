"""The record of `feature-effects`: what ablating each feature of an SAE does to the loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from workbench.analyses.feature_effects.cost import cost
from workbench.analyses.feature_effects.figures import draw_estimates_and_exact_values, draw_strongest_features
from workbench.analyses.sae_train.shown import ShownSettings, shown_stack
from workbench.extend import Analysis, Column, Integers, Job, Table, Windows

if TYPE_CHECKING:
    import pandas as pd

ESTIMATES = "estimates.safetensors"


class FeatureEffectsSettings(ShownSettings):
    """Which SAEs, and how many of their features exactly."""

    layers: Integers | None = Field(default=None, description="layers, such as 0,2,5-7; by default all of the SAEs")
    heads: Integers | None = Field(default=None, description="heads, such as 0,2,5-7; by default all of the SAEs")
    n_exact: int = Field(
        default=16, description="features of each SAE that are ablated, those of the largest estimates", ge=0
    )
    kind: Literal["zero", "mean", "source"] = Field(
        default="zero",
        description="what a feature's activation is set to: zero, its mean, or, source, what it is at the same place "
        "of another window",
    )
    pairs: Path | None = Field(
        default=None,
        description="task whose logit difference is measured: a built-in one's name, a TOML file of templates, or "
        "one of prompts, each with an answer and a foil",
    )
    n_bootstrap: int = Field(default=2000, description="draws of the intervals over sequences", ge=1)


def open_effects(job: Job, *, is_checked: bool = True) -> tuple[Any, Any]:
    """(the SAEs that are asked for, them by hook). Raises ValueError for what cannot be measured."""
    from workbench.analyses.feature_effects.effects import check_effects, chosen_saes
    from workbench.models.sae_places import saes_by_hook

    own, model = job.settings, job.subject.model
    check_effects(model, own.n_exact, own.kind, own.n_bootstrap)
    sae = chosen_saes(shown_stack(job, is_checked=is_checked), own.layers, own.heads)
    return sae, saes_by_hook(model, sae)


def check(job: Job) -> None:
    """Raise ValueError for SAEs that are not there, not the model's, or not of these layers and heads."""
    from workbench.analyses.feature_effects.effects import lenders_of
    from workbench.models.checks import checked_tokens

    own, model = job.settings, job.subject.model
    open_effects(job, is_checked=False)
    lenders_of(checked_tokens("feature-effects", model, job.tokens, min_ctx=2), own.kind, job.seed)
    if own.pairs is not None:
        from workbench.analyses.feature_effects.pairs import open_pairs

        lenders_of(open_pairs(model, own.pairs, job.seed, job.cache).clean, own.kind, job.seed)


def measure(job: Job) -> Mapping[str, pd.DataFrame]:
    """The table; the estimates, and the losses of each batch of sequences, are kept as files from which a killed run
    goes on."""
    from workbench.analyses.ablate.precision import as_float32
    from workbench.analyses.feature_effects import effects
    from workbench.models.activations import Positions, special_ids

    own, subject = job.settings, job.subject
    sae, places = open_effects(job)
    model, positions = as_float32(subject.model), Positions(special_ids(subject.model), bool(sae.info.include_special))
    found = _estimates(job, model, places, positions)
    features = effects.strongest(found, own.n_exact)
    parts, n_done = [], 0
    while (file := job.directory / f"part_{n_done:09d}.safetensors").is_file():
        parts.append(_read(file, effects.Losses))
        n_done += len(parts[-1].base)
    if n_done < len(job.tokens):
        given = (model, places, job.tokens, positions, features, found.value)
        donors = effects.lenders_of(job.tokens, own.kind, job.seed)
        for part in effects.iterate_effects(*given, start=n_done, donors=donors):
            _write(job.directory / f"part_{n_done:09d}.safetensors", part)
            parts.append(part)
            n_done += len(part.base)
            job.progress(0.2 + 0.8 * n_done / len(job.tokens))
    about = {"name": subject.name, "seed": subject.seed, "kind": own.kind, "n_bootstrap": own.n_bootstrap}
    losses, n_ctx = effects.join_losses(parts), job.tokens.shape[1]
    table = effects.effects_table(sae, found, features, losses, n_ctx, **about, bootstrap_seed=job.seed)
    for file in sorted(job.directory.glob("part_*.safetensors"), reverse=True):
        file.unlink()
    (job.directory / ESTIMATES).unlink()
    if own.pairs is None:
        return {"feature_effects": table}
    from workbench.analyses.feature_effects.pairs import open_pairs, pair_effects

    given = (model, sae, places, open_pairs(model, own.pairs, job.seed, job.cache), positions, found.value)
    of_pairs = pair_effects(*given, n_exact=own.n_exact, **about, bootstrap_seed=job.seed)
    return {"feature_effects": table, "feature_logit_differences": of_pairs}


def _estimates(job: Job, model: Any, places: Any, positions: Any) -> Any:
    from workbench.analyses.feature_effects.effects import lenders_of
    from workbench.analyses.feature_effects.estimates import Estimates, estimate_effects

    file = job.directory / ESTIMATES
    if not file.is_file():
        tell = lambda share: job.progress(0.2 * share)  # noqa: E731
        kind = job.settings.kind
        donors = lenders_of(job.tokens, kind, job.seed)
        _write(file, estimate_effects(model, places, job.tokens, positions, kind, tell, donors))
    return _read(file, Estimates)


def _write(file: Path, record: Any) -> None:
    import torch

    from workbench.runs.resume_state import write_state

    write_state(file, {name: torch.as_tensor(value) for name, value in asdict(record).items()})


def _read(file: Path, record: type) -> Any:
    from workbench.runs.resume_state import read_state

    tensors, _ = read_state(file)
    return record(**{name: own.item() if own.ndim == 0 else own for name, own in tensors.items()})


def say(directory: Path) -> dict[str, Any]:
    """The strongest feature, and how far estimates rank features as the exact values do."""
    from reports.tables import read_table

    table: Any = read_table(directory, "feature_effects")
    exact = table[table["delta_loss"].notna()]
    if exact.empty:
        return {}
    top = exact.loc[exact["delta_loss"].abs().idxmax()]
    facts: dict[str, Any] = {"top_feature": f"{top['layer']}.{top['head']}.{top['feature']}"}
    facts["delta_loss"] = float(top["delta_loss"])
    if len(exact) > 2:
        ranks = exact[["estimate", "delta_loss"]].rank()
        facts["estimate_rank_correlation"] = float(ranks["estimate"].corr(ranks["delta_loss"]))
    return facts


feature_effects = Analysis(
    name="feature-effects",
    summary="What ablating each feature of an SAE does to the loss: exact for the strongest, estimated for all.",
    settings=FeatureEffectsSettings,
    reads=Windows(n_tokens=8192),
    needs=("sae-train",),
    tables=[
        Table(
            "feature_effects",
            key=("model", "seed", "layer", "head", "feature"),
            columns=[
                Column("density", "tokens on which it fires", unit="1"),
                Column("estimate", "change of the loss by its gradient alone", unit="nats per token"),
                Column("delta_loss", "loss without the feature − loss; empty where not ablated", unit="nats per token"),
                Column("stderr", "of delta_loss, paired over sequences", unit="nats per token"),
                Column("ci_low", unit="nats per token"),
                Column("ci_high", unit="nats per token"),
                Column("kl", "KL(base‖ablated) of the next-token prediction", unit="nats"),
                Column("n_tokens", "predictions", kind="integer"),
            ],
            trailing=[
                Column("kind", "what its activation is set to: zero, mean or source", kind="text"),
                Column("n_sequences", kind="integer"),
                Column("base_loss", "loss of the model as it is", unit="nats"),
                Column("l1", "sparsity coefficient"),
                Column("hook", kind="text"),
            ],
            meaning="One feature of an SAE, ablated with the SAE's error kept; head -1 is the whole hook. ci_low "
            "and ci_high are a 95 % bootstrap interval of delta_loss over sequences.",
        ),
        Table(
            "feature_logit_differences",
            key=("model", "seed", "layer", "head", "feature"),
            columns=[
                Column("density", "tokens of the prompts on which it fires", unit="1"),
                Column("estimate", "change of the logit difference by its gradient alone", unit="logits"),
                Column("delta", "difference without the feature − difference; empty where not ablated", unit="logits"),
                Column("stderr", "of delta, paired over prompts", unit="logits"),
                Column("ci_low", unit="logits"),
                Column("ci_high", unit="logits"),
            ],
            trailing=[
                Column("kind", "what its activation is set to: zero, mean or source", kind="text"),
                Column("n_pairs", "prompts", kind="integer"),
                Column("base_difference", "mean logit[answer] − logit[foil] of the model as it is", unit="logits"),
                Column("l1", "sparsity coefficient"),
                Column("hook", kind="text"),
            ],
            meaning="With --pairs: one feature, ablated in the prompts with the SAE's error kept, and the change of "
            "logit[answer] − logit[foil] behind them. ci_low and ci_high are a 95 % bootstrap interval of delta over "
            "pairs, of a task over clusters of pairs that share fillers.",
        ),
    ],
    measure=measure,
    figures=(draw_strongest_features, draw_estimates_and_exact_values),
    cost=cost,
    check=check,
    facts=say,
    notes=lambda settings: (
        "Features are ablated one at a time, with what the SAE does not reconstruct kept. Those that are ablated were "
        "chosen by their estimates on the same text, so that the strongest look a little stronger than they are.",
    ),
    function="workbench.analyses.feature_effects.effects:feature_effects",
)
