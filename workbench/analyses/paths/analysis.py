"""The record of `paths`: what one part's output does by way of one reader alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from workbench.analyses.paths.cost import cost
from workbench.analyses.paths.figures import draw_paths, draw_strongest_paths
from workbench.analyses.tasks.columns import COUNTS, GAP_LIMITS, SHARE
from workbench.analyses.tasks.jobs import drop_parts, find_status, keeper, open_pairs
from workbench.analyses.tasks.settings import MEMORY, METRIC, POSITION, EffectSettings
from workbench.extend import Analysis, Column, Integers, Job, Names, Table

if TYPE_CHECKING:
    import pandas as pd


class PathsSettings(EffectSettings):
    """Which paths, and how they are taken."""

    into: Names = Field(
        default=("logits", "strongest"),
        description="receivers: logits; q, k, v, mlp of all layers; 5.1.k, a head's; 5.mlp; strongest, q, k and v of "
        "the four heads (strongest:8, of eight) whose paths to the logits do most",
    )
    senders: Names = Field(default=("heads",), description="kinds of senders, of heads and mlps")
    layers: Integers | None = Field(default=None, description="layers of the senders; by default all")
    heads: Integers | None = Field(default=None, description="heads that send; by default all")
    position: Names = Field(default=("all",), description=f"the sender's output is changed {POSITION}")
    mlps: Literal["frozen", "live"] = Field(
        default="frozen", description="live: MLPs between sender and receiver follow; heads never do"
    )
    freeze_scale: bool = Field(default=False, description="the receiver's norm keeps the scale it has of the base")
    per_query_head: bool = Field(default=False, description="k and v of each query head where heads share them")
    metric: Literal["effect", "logprob", "prob", "kl"] = METRIC
    memory_gib: float = MEMORY


def requires(*configs: Any) -> str:
    """Why there are no paths in these models."""
    from workbench.analyses.paths.parts import why_not

    return why_not(*configs)


def open_plan(job: Job) -> tuple[Any, Any, Any]:
    """(the model in float32, pairs, plan). Raises ValueError for what cannot be measured."""
    from workbench.analyses.ablate.precision import as_float32
    from workbench.analyses.paths.edges import How
    from workbench.analyses.paths.parts import check_model, make_plan
    from workbench.models.costs import bytes_of

    own = job.settings
    check_model(job.subject.model)
    model, pairs = as_float32(job.subject.model), open_pairs(job)
    how = How(mlps=own.mlps, is_scale_frozen=own.freeze_scale, is_per_query_head=own.per_query_head, metric=own.metric)
    options = own.model_dump(include={"senders", "direction", "position"})
    options["memory_budget_bytes"] = bytes_of(own.memory_gib)
    return model, pairs, make_plan(model, pairs, own.into, own.layers, own.heads, how=how, **options)


def check(job: Job) -> None:
    """Raise ValueError for a model, a task or parts that do not fit."""
    open_plan(job)


def measure(job: Job) -> Mapping[str, pd.DataFrame]:
    """The table; the paths to each layer's receivers are kept as files from which a killed run goes on."""
    from workbench.analyses.paths.mapping import iterate_paths, paths_table

    model, pairs, plan = open_plan(job)
    found = list(iterate_paths(model, pairs, plan, job.progress, keeper(job.directory)))
    table = paths_table(
        found, pairs, model.cfg.parallel_attn_mlp, name=job.subject.name, seed=job.subject.seed,
        n_bootstrap=job.settings.n_bootstrap, draw_seed=job.seed, status=find_status(job, model, pairs),
    )  # fmt: skip
    drop_parts(job.directory)
    return {"paths": table}


def say(directory: Path) -> dict[str, Any]:
    """The strongest path into a part, and the strongest to the logits."""
    from reports.tables import read_table
    from workbench.analyses.paths.figures import name_path

    table: Any = read_table(directory, "paths")
    facts: dict[str, Any] = {"status": table["status"].iloc[0]}
    for name, own in (("strongest", table["site"] != "logits"), ("to_logits", table["site"] == "logits")):
        if own.any():
            top = table.loc[table.loc[own, "effect"].abs().idxmax()]
            facts |= {name: name_path(top), f"{name}_recovery": float(top["recovery"])}
    return facts


paths = Analysis(
    name="paths",
    summary="Which part of a model acts through which: the effect of a head's output by way of one reader alone.",
    settings=PathsSettings,
    requires=requires,
    tables=[
        Table(
            "paths",
            key=("model", "seed", "task", "site", "direction", "position", "layer_a", "head_a", "layer_b", "head_b"),
            columns=[
                *SHARE,
                Column("p", "of the mean effect being 0, adjusted for all paths to one kind of receiver", unit="1"),
                Column("effect", "mean change of the measure by the path"),
                Column("gap", "mean measure of the source − that of the base"),
                *GAP_LIMITS,
            ],
            trailing=[
                Column("mlps", "between sender and receiver: frozen or live", kind="text"),
                Column("scale", "of the receiver's norm: recomputed or frozen", kind="text"),
                Column("metric", "effect (the task's own), logprob, prob or kl", kind="text"),
                *COUNTS,
            ],
            meaning="One path: the output of head_a of layer_a (head −1: its MLP) as site of head_b of layer_b reads "
            "it, all else as it was. site is q, k, v, mlp or logits (layer_b: the number of layers); head_b −1 is an "
            "MLP or the logits, and of k and v the key/value head. ci_low, ci_high, gap_low and gap_high are 95 % "
            "bootstrap intervals over clusters of pairs. A path that does not exist has no row.",
        )
    ],
    measure=measure,
    figures=(draw_strongest_paths, draw_paths),
    cost=cost,
    check=check,
    facts=say,
    function="workbench.analyses.paths.mapping:paths",
    notes=lambda settings: (
        "With strongest, receivers are chosen by the same pairs' paths to the logits, which selects among heads, not "
        "among paths into them.",
    ),
)
