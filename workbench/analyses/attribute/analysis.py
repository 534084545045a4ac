"""The record of `attribute`: what a task's answer is owed to, by parts, by layers, and by exchanges."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from workbench.analyses.attribute.cost import cost
from workbench.analyses.attribute.figures import (
    draw_direct_attribution,
    draw_estimates_and_exact_values,
    draw_exchanges,
    draw_logit_lens,
)
from workbench.analyses.tasks.columns import COUNTS, GAP_LIMITS, SHARE
from workbench.analyses.tasks.jobs import drop_parts, find_status, keeper, open_pairs
from workbench.analyses.tasks.settings import METRIC, POSITION, EffectSettings
from workbench.extend import Analysis, Column, Integers, Job, Names, Table

if TYPE_CHECKING:
    import pandas as pd

METHODS = ("dla", "lens", "atp", "atp_ig", "atp_qk", "exact")


class AttributeSettings(EffectSettings):
    """By which methods, and of what."""

    methods: Names = Field(
        default=("dla", "lens", "atp", "exact"),
        description="dla, direct logit attribution; lens, the logit lens; estimates by gradients of exchanging an "
        "activation: atp, atp_ig (over embeddings between the two), atp_qk (of queries and keys by patterns); exact, "
        "that exchange",
    )
    site: Names = Field(
        default=("z",),
        description="activations that are exchanged, each by itself: some of resid_pre,resid_mid,resid_post,attn_out,"
        "mlp_out,z,q,k,v",
    )
    layers: Integers | None = Field(default=None, description="their layers, such as 0,2,5-7; by default all")
    position: Names = Field(default=("all",), description=f"they are exchanged {POSITION}")
    metric: Literal["effect", "logprob", "prob", "kl"] = METRIC
    n_steps: int = Field(default=8, description="embeddings between the two prompts', of atp_ig", ge=1)
    top_k: int = Field(default=10, description="exact cells of largest effect that the estimates are asked for", ge=1)

    @field_validator("methods")
    @classmethod
    def _are_methods(cls, methods: tuple[str, ...]) -> tuple[str, ...]:
        if not set(methods) <= set(METHODS):
            raise ValueError(f"got {','.join(methods)}; expected some of {', '.join(METHODS)}, each once")
        return methods


def open_plan(job: Job) -> tuple[Any, Any, Any]:
    """(the model in float32, pairs, plan). Raises ValueError for what cannot be measured."""
    from workbench.analyses.ablate.precision import as_float32
    from workbench.analyses.attribute.attribution import make_plan
    from workbench.models.transformer import check_ours

    own = job.settings
    check_ours("attribute", job.subject.model)
    model, pairs = as_float32(job.subject.model), open_pairs(job)
    options = own.model_dump(include={"direction", "position", "metric", "n_steps"})
    return model, pairs, make_plan(model, pairs, own.methods, own.site, own.layers, **options)


def check(job: Job) -> None:
    """Raise ValueError for a model, a task, methods or sites that do not fit."""
    open_plan(job)


def measure(job: Job) -> Mapping[str, pd.DataFrame]:
    """Both tables; estimates and exact effects of each direction are kept as files from which a killed run goes on."""
    from workbench.analyses.attribute.attribution import iterate_attribution, tables

    model, pairs, plan = open_plan(job)
    found = list(iterate_attribution(model, pairs, plan, job.progress, keeper(job.directory)))
    own = tables(
        found, pairs, plan, name=job.subject.name, seed=job.subject.seed, top_k=job.settings.top_k,
        n_bootstrap=job.settings.n_bootstrap, draw_seed=job.seed, status=find_status(job, model, pairs),
    )  # fmt: skip
    drop_parts(job.directory)
    return own


def say(directory: Path) -> dict[str, Any]:
    """The part of largest effect by each method, and how far estimates rank cells as the exact effects do."""
    from reports.tables import read_table
    from workbench.analyses.attribute.figures import name_part

    table: Any = read_table(directory, "attribution")
    facts: dict[str, Any] = {"status": table["status"].iloc[0]}
    for method, own in table[table["method"] != "lens"].groupby("method", sort=False):
        top = own.loc[own["effect"].abs().idxmax()]
        facts[str(method)] = f"{name_part(top)} {top['effect']:+.3g}"
    if (directory / "attribution_agreement.csv").is_file():
        for row in read_table(directory, "attribution_agreement").itertuples():
            facts.setdefault(f"{row.method}_spearman", float(row.spearman))  # type: ignore[arg-type]
    return facts


KEY = ("model", "seed", "task", "method", "direction", "site", "layer", "head", "position")

attribute = Analysis(
    name="attribute",
    summary="What a task's answer is owed to: direct logit attribution, logit lens, and exchanges beside estimates.",
    settings=AttributeSettings,
    tables=[
        Table(
            "attribution",
            key=KEY,
            columns=[
                *SHARE,
                Column("p", "of the mean effect being 0, adjusted for all cells of a site", unit="1"),
                Column("effect", "mean over pairs: of dla a part's share of the logit difference, of lens the measure"),
                Column("effect_low"),
                Column("effect_high"),
                Column("gap", "what recovery is a share of: the logit difference, the measure at the end, or the gap"),
                *GAP_LIMITS,
            ],
            trailing=[
                Column("metric", "effect (the task's own), logprob, prob or kl", kind="text"),
                *COUNTS,
            ],
            meaning="One part by one method. dla: what it adds to the logit difference behind the clean prompt "
            "(direction clean) and beyond that behind the corrupt one (clean-corrupt); layer −1: no layer's. lens: the "
            "measure of the stream behind a layer (resid_post; resid_pre: the embedding). atp, atp_ig, atp_qk: "
            "estimates of exchanging an activation, exact: the exchange. head −1 is no head's. ci_, effect_ and gap_ "
            "are 95 % bootstrap intervals over clusters of pairs.",
        ),
        Table(
            "attribution_agreement",
            key=("model", "seed", "task", "method", "direction", "site", "position"),
            columns=[
                Column("spearman", "rank correlation of the estimate's mean effects with the exact ones", unit="1"),
                Column("missed", "exact top_k not among the estimate's largest 2·top_k", unit="1"),
                Column("top_k", kind="integer"),
                Column("n_cells", kind="integer"),
            ],
            meaning="How far an estimate ranks cells as the exact effects do. missed is empty where there are no more "
            "than 2·top_k cells.",
        ),
    ],
    measure=measure,
    figures=(draw_direct_attribution, draw_logit_lens, draw_exchanges, draw_estimates_and_exact_values),
    cost=cost,
    check=check,
    facts=say,
    function="workbench.analyses.attribute.attribution:attribute",
)
