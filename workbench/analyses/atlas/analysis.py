"""The record of `atlas`: every feature of one SAE per head, on a page of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from workbench.analyses.atlas.cost import cost
from workbench.analyses.sae_train.shown import ShownSettings, shown_stack
from workbench.extend import Analysis, Column, Job, Table, Windows

if TYPE_CHECKING:
    import pandas as pd


class AtlasSettings(ShownSettings):
    """Which SAEs, and how much of each feature."""

    n_contexts: int = Field(default=8, description="contexts per feature", ge=1)
    radius: int = Field(default=10, description="tokens of a context on either side of its peak", ge=0)
    n_logits: int = Field(default=10, description="tokens per feature that it promotes, and that it suppresses", ge=0)
    n_neighbours: int = Field(default=5, description="nearest features per feature", ge=0)


def check(job: Job) -> None:
    """Raise ValueError for SAEs that are not there, or not the model's."""
    shown_stack(job, is_checked=False)


def measure(job: Job) -> Mapping[str, pd.DataFrame]:
    """feature_atlas, from one pass over the tokens."""
    from workbench.analyses.atlas.features import atlas_features

    own, subject = job.settings, job.subject
    counts = own.model_dump(include={"n_contexts", "radius", "n_logits", "n_neighbours"})
    about: dict[str, Any] = {"name": subject.name, "seed": subject.seed, "on_progress": job.progress}
    return {"feature_atlas": atlas_features(subject.model, shown_stack(job), job.tokens, **counts, **about)}


def draw(directory: Path, page: Path) -> Path:
    """The atlas of a directory's feature_atlas.csv."""
    from reports.atlas import write_atlas

    return write_atlas(directory, page)


atlas = Analysis(
    name="atlas",
    summary="Feature atlas of SAEs: where each feature fires and what it promotes; one HTML file that opens offline.",
    settings=AtlasSettings,
    reads=Windows(n_tokens=65_536),
    needs=("sae-train",),
    is_first_seed_only=True,
    tables=[
        Table(
            "feature_atlas",
            key=("model", "layer", "head", "feature"),
            columns=[
                Column("density", "tokens on which it fires", unit="1"),
                Column("max_act", "largest activation"),
                Column("mean_act", "mean over the tokens on which it fires"),
                Column("top_token", "of the largest activation", kind="text"),
                Column(
                    "top_contexts",
                    'JSON [{"tokens": [text], "acts": [number], "peak": place, "value": number}]; an act is null at a '
                    "position where features are not measured",
                    kind="text",
                ),
                Column("logit_promoted", "JSON [[token, value]]", kind="text"),
                Column("logit_suppressed", "JSON [[token, value]]", kind="text"),
            ],
            trailing=[
                Column("seed", kind="integer"),
                Column("dead", "whether it fires on no token"),
                Column("neighbours", "JSON [[feature, cosine]] of the same head", kind="text"),
                Column("match", "JSON [model, head, feature, correlation] in the same layer", kind="text"),
                Column(
                    "histogram",
                    'JSON {"zero": tokens, "width": of a bin, "counts": [tokens]} of the activations: bin i holds '
                    "those from i · width to (i + 1) · width, 0 apart; empty for a feature that never fires",
                    kind="text",
                ),
                Column(
                    "interval_contexts",
                    'JSON as of top_contexts, with "low" and "high": one context from each interval of the range of '
                    "activations",
                    kind="text",
                ),
                Column("l1", "sparsity coefficient"),
                Column("sae_seed", kind="integer"),
                Column("n_tokens", "of which density is the share", kind="integer"),
            ],
            meaning="One feature of an SAE; head -1 is the whole hook.",
        )
    ],
    measure=measure,
    cost=cost,
    check=check,
    page=draw,
    notes=lambda settings: (
        "The atlas shows the first seed and, of a sweep, the middle l1, the sparser of two. A feature’s match in the "
        "other model is the one of the same layer, of any head, whose activations correlate most with its own on the "
        "same tokens; the atlas shows it from a correlation of .5.",
    ),
)
