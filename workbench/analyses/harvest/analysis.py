"""The record of `harvest`: activations at hooks, stored as shuffled, checksummed shards."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from workbench.analyses.harvest.cost import cost
from workbench.extend import Analysis, Integers, Job, Settings, Windows

if TYPE_CHECKING:
    import pandas as pd

    from workbench.analyses.harvest.storing import ShardPlan

WHOLE = "attn.hook_z"  # what is stored of layers where no hook is named


class HarvestSettings(Settings):
    """Which activations, of what text, in what form."""

    hook: tuple[str, ...] = Field(
        default=(), description="hook point; with layers, its name within a block, such as attn.hook_z; repeatable"
    )
    layers: Integers | Literal["all"] | None = Field(
        default=None, description="layers, such as 0,2,5-7, or all; without hooks their z is stored"
    )
    split: Literal["held_out", "train"] = Field(
        default="held_out", description="part of the text; train is for training SAEs"
    )
    store_dtype: str | None = Field(default=None, description="dtype of the shards, by default the model's")
    shard_bytes: int | None = Field(default=None, description="bytes of a shard, at most, by default 256 MiB", ge=1)
    batch_size: int | None = Field(
        default=None, description="sequences in a forward pass, by default about 8,192 tokens", ge=1
    )

    @model_validator(mode="after")
    def _names_hooks(self) -> HarvestSettings:
        if not self.hook and self.layers is None:
            raise ValueError("harvest: got neither hook nor layers; expected hooks, or layers (of whose z is stored)")
        return self

    def hooks(self, n_layers: int) -> list[str]:
        """The full names of the hooks, layer by layer."""
        if self.layers is None:
            return list(self.hook)
        layers = range(n_layers) if self.layers == "all" else self.layers
        return [f"blocks.{layer}.{name}" for layer in layers for name in self.hook or (WHOLE,)]


def check(job: Job) -> None:
    """Raise the ValueErrors of layers, hooks, their shapes and the dtype."""
    _plan(job)


def measure(job: Job) -> Mapping[str, pd.DataFrame]:
    """No table: the shards, in the job's directory."""
    from workbench.analyses.harvest.storing import write_shards

    write_shards(job.subject.model, _plan(job), job.directory, job.progress)
    return {}


def _plan(job: Job) -> ShardPlan:
    from workbench.analyses.harvest.storing import plan_shards
    from workbench.models.checks import choose

    own, model = job.settings, job.subject.model
    if own.layers is not None:
        choose("layers", None if own.layers == "all" else own.layers, model.cfg.n_layers)
    settings = {"dtype": own.store_dtype, "batch_size": own.batch_size, "seed": job.seed}
    if own.shard_bytes is not None:
        settings["shard_bytes"] = own.shard_bytes
    return plan_shards(model, job.tokens, own.hooks(model.cfg.n_layers), **settings)


def say(directory: Path) -> dict[str, Any]:
    """How much was stored, of all models together."""
    from workbench.data.shards import INDEX, open_shards

    found = [open_shards(path.parent) for path in sorted((*directory.glob(INDEX), *directory.glob(f"*/{INDEX}")))]
    files = [shard for own in found for shard in own.shards]
    return {
        "n_tokens": sum(own.n_tokens for own in found),
        "n_shards": len(files),
        "bytes_on_disk": sum(shard.bytes for shard in files),
        "hooks": list(dict.fromkeys(name for own in found for name in own.hooks)),
    }


harvest = Analysis(
    name="harvest",
    summary="Store activations as shuffled, checksummed shards.",
    settings=HarvestSettings,
    reads=Windows(n_sequences=64),
    tables=(),
    measure=measure,
    cost=cost,
    check=check,
    facts=say,
    function="workbench.analyses.harvest.storing:harvest",
)
