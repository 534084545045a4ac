"""The record of `match`: for each feature of a model the one of another model that fires most alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from workbench.analyses.match.cost import cost
from workbench.analyses.sae_train.settings import share_heads
from workbench.analyses.sae_train.shown import StackSettings, shown_stack
from workbench.extend import Analysis, Column, Job, Merged, Table, Windows

if TYPE_CHECKING:
    import pandas as pd

    from workbench.models.config import ModelConfig

KEY = ("model", "layer", "head", "feature")


class MatchSettings(StackSettings):
    """Which SAEs: by default those that the atlas shows."""


def requires(*configs: ModelConfig) -> str:
    """Why features of these models are not matched."""
    first, *others = configs
    return (
        "" if all(share_heads(first, cfg) for cfg in others) else f"has other layers or heads than {first.model_name}"
    )


def check(job: Job) -> None:
    """Raise ValueError for SAEs that are not the models', or that read other hooks."""
    from workbench.analyses.match.features import check_pair

    first, second = (own.model for own in job.models)
    check_pair(first, shown_stack(job, 0), second, shown_stack(job, 1))


def measure(job: Job) -> Mapping[str, pd.DataFrame]:
    """The matches of every feature, in both directions: the second model's first."""
    import pandas as pd

    from workbench.analyses.match.features import match_cells, match_features
    from workbench.models.sae_places import stack_slots

    first, second = job.models
    own = shown_stack(job, 1)
    found = match_features(second.model, own, first.model, shown_stack(job, 0), job.tokens, job.progress)
    parts = []
    for matches, name, other in ((found[0], second.name, first.name), (found[1], first.name, second.name)):
        keys = [
            (name, other, source.layer, -1 if source.head is None else source.head, feature)
            for source in own.info.sources
            for feature in range(own.config.d_sae)
        ]
        part = pd.DataFrame(keys, columns=["model", "other", "layer", "head", "feature"])
        parts.append(part.assign(match=match_cells(matches, other, stack_slots(own))))
    return {"match": pd.concat(parts, ignore_index=True)}


def merge(merged: Merged) -> Mapping[str, pd.DataFrame]:
    """The atlas with its column match filled; the reference's from the first of the others."""
    if "feature_atlas" not in merged.tables:
        return {}
    matches = merged.tables["match"].drop_duplicates(list(KEY))[[*KEY, "match"]]
    features = merged.tables["feature_atlas"].drop(columns="match")
    return {"feature_atlas": features.merge(matches, on=list(KEY), how="left").fillna({"match": ""})}


match = Analysis(
    name="match",
    summary="For each feature of a model the feature of another model that fires most alike on the same tokens.",
    settings=MatchSettings,
    reads=Windows(n_tokens=16_384),
    takes="pair",
    needs=("sae-train",),
    is_first_seed_only=True,
    requires=requires,
    tables=[
        Table(
            "match",
            key=("model", "other", "layer", "head", "feature"),
            columns=[
                Column(
                    "match",
                    "JSON [other model, head, feature, correlation]; empty for one that never fires",
                    kind="text",
                )
            ],
            meaning="One feature of a model, and the feature of the other model's SAEs of the same layer, of any head, "
            "whose activations correlate most with its own.",
            is_shown=False,
        )
    ],
    measure=measure,
    cost=cost,
    check=check,
    merge=merge,
)
