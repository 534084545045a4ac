"""The record of `topology`: redundancy of heads and ranks of z, layer by layer; effective sizes of several models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import Field

from workbench.analyses.topology.cost import cost
from workbench.extend import Analysis, Column, Integers, Job, Merged, Settings, Table, Windows

if TYPE_CHECKING:
    import pandas as pd


class TopologySettings(Settings):
    """Which layers."""

    layers: Integers | None = Field(default=None, description="layers, such as 0,2,5-7; by default all")


def measure(job: Job) -> Mapping[str, pd.DataFrame]:
    """All tables from one pass over the tokens."""
    from workbench.analyses.topology.heads import topology_tables

    own = job.subject
    settings = {"seed": own.seed, "name": own.name, "on_progress": job.progress}
    stats, cosines, left_out = topology_tables(own.model, job.tokens, job.settings.layers, **settings)
    twin = {"topology_stats_blocks": left_out} if len(left_out) else {}
    return {"topology_stats": stats, "head_cosines": cosines} | twin


def check(job: Job) -> None:
    """Raise ValueError for layers that the model lacks."""
    from workbench.models.checks import choose

    choose("layers", job.settings.layers, job.subject.model.cfg.n_layers)


def merge(merged: Merged) -> Mapping[str, pd.DataFrame]:
    """effective_size: every further model against its reference of the same seed."""
    import pandas as pd

    from workbench.analyses.topology.heads import Size, effective_sizes

    stats = merged.tables["topology_stats"]
    sizes = {name: Size.of(cfg) for name, cfg in merged.configs.items()}
    found = effective_sizes(stats, [sizes[name] for name in stats.drop_duplicates(["model", "seed"])["model"]])
    compared = pd.MultiIndex.from_frame(found[["model_b", "model_a"]]).isin(merged.pairs)
    is_told = compared & (found["seed_a"] == found["seed_b"])
    return {"effective_size": found[is_told]} if is_told.any() else {}


topology = Analysis(
    name="topology",
    summary="Redundancy of heads and ranks of z, layer by layer; effective sizes where several models are given.",
    settings=TopologySettings,
    reads=Windows(n_tokens=16_384),
    tables=[
        Table(
            "topology_stats",
            key=("model", "seed", "layer", "basis"),
            columns=[
                Column("max_cos", "max over i ≠ j of |cos| of heads i and j"),
                Column("mean_cos", "mean over i ≠ j of |cos| of heads i and j"),
                Column("nuclear_rank", "(Σσ)²/Σσ² of the concatenated z"),
                Column("effective_rank", "exp of the entropy of σ/Σσ"),
                Column("stable_rank", "Σσ²/σ₁²"),
                Column("participation_ratio", "(Σλ)²/Σλ² of the covariance of z"),
                Column("rank_utilization", "nuclear_rank over the width of z", unit="1"),
                Column("n_tokens", kind="integer"),
            ],
            blocks=[
                "max_cos",
                "mean_cos",
                "nuclear_rank",
                "effective_rank",
                "stable_rank",
                "participation_ratio",
                "rank_utilization",
            ],
            meaning="Redundancy of a layer's heads in a basis (z, pattern, residual); ranks are of the concatenated z.",
        ),
        Table(
            "head_cosines",
            key=("model", "seed", "layer", "basis", "head_i", "head_j"),
            columns=[Column("cos", "cosine of two heads")],
            meaning="Every ordered pair of heads of a layer.",
        ),
        Table(
            "effective_size",
            key=("model_a", "seed_a", "model_b", "seed_b"),
            columns=[
                Column("n_parameters", kind="integer"),
                Column("utilization_a", "rank_utilization at layer_a, or its mean over layers"),
                Column("utilization_b"),
                Column("n_eff", "n_parameters of a · utilization_a / utilization_b", unit="parameters"),
            ],
            trailing=[
                Column("layer_a", kind="integer"),
                Column("layer_b", kind="integer"),
                Column("n_parameters_no_embedding", kind="integer"),
                Column("n_eff_no_embedding", "n_eff of these", unit="parameters"),
            ],
            meaning="The size at which a model that fills its heads as b does would fill as many dimensions as a; "
            "layer -1 is the mean over layers. n_parameters_no_embedding and n_eff_no_embedding follow.",
        ),
    ],
    measure=measure,
    over_training=True,
    cost=cost,
    check=check,
    merge=merge,
    function="workbench.analyses.topology.heads:topology",
)
