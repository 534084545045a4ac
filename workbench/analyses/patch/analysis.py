"""The record of `patch`: what putting one prompt's activations into the other's forward pass does to the answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field

from workbench.analyses.patch.cost import cost
from workbench.analyses.patch.figures import draw_heads, draw_positions
from workbench.analyses.tasks.columns import COUNTS, GAP_LIMITS, SHARE
from workbench.analyses.tasks.jobs import drop_parts, find_status, open_pairs
from workbench.analyses.tasks.settings import MEMORY, POSITION, EffectSettings
from workbench.extend import Analysis, Column, Integers, Job, Names, Table

if TYPE_CHECKING:
    import pandas as pd

    from workbench.data.pairs import PairTokens


class PatchSettings(EffectSettings):
    """What is exchanged, and where."""

    site: Names = Field(
        default=("z",),
        description="activations, each by itself: some of resid_pre,resid_mid,resid_post,attn_out,mlp_out,z,q,k,v,"
        "rot_q,rot_k,pattern and, with attention residuals, sources",
    )
    position: Names = Field(default=("all",), description=f"an activation is exchanged {POSITION}")
    layers: Integers | None = Field(default=None, description="layers, such as 0,2,5-7; by default all")
    heads: Integers | None = Field(
        default=None, description="heads, such as 0,2,5-7; by default all; of k, v and rot_k key/value heads"
    )
    memory_gib: float = MEMORY

    @property
    def what(self) -> dict[str, Any]:
        """The settings as the engine's arguments."""
        from workbench.models.costs import bytes_of

        own = self.model_dump(include={"site", "position", "direction", "layers", "heads"})
        return own | {"memory_budget_bytes": bytes_of(self.memory_gib)}


def _open(job: Job) -> tuple[Any, PairTokens, Any]:
    """(the model as it is run, the pairs, what is patched and in which parts)."""
    from workbench.analyses.ablate.precision import as_float32
    from workbench.analyses.patch.patching import make_plan

    pairs, model = open_pairs(job), as_float32(job.subject.model)
    return model, pairs, make_plan(model, pairs, **job.settings.what)


def check(job: Job) -> None:
    """Raise the ValueErrors that need no forward pass."""
    _open(job)


def measure(job: Job) -> Mapping[str, pd.DataFrame]:
    """The table; the readings of each part (some pairs, in one direction, patched in one layer) are kept as files from
    which a killed run goes on."""
    from workbench.analyses.patch.patching import iterate_patching, patching_table, to_tensors
    from workbench.analyses.patch.records import LayerReadings
    from workbench.runs.resume_state import read_state, write_state

    model, pairs, plan = _open(job)
    parts: list[LayerReadings] = []
    while (file := job.directory / f"part_{len(parts):09d}.safetensors").is_file():
        parts.append(LayerReadings(**read_state(file)[0]))
    for part in iterate_patching(model, pairs, plan, start=len(parts)):
        write_state(job.directory / f"part_{len(parts):09d}.safetensors", to_tensors(part))
        parts.append(part)
        job.progress(len(parts) / len(plan.parts))
    about: dict[str, Any] = {"name": job.subject.name, "seed": job.subject.seed, "draw_seed": job.seed}
    about |= {"n_bootstrap": job.settings.n_bootstrap, "status": find_status(job, model, pairs)}
    table = patching_table(plan, parts, pairs, **about)
    drop_parts(job.directory)
    return {"patching": table}


def say(directory: Any) -> dict[str, Any]:
    """The gap, and the cell of the largest recovery."""
    from reports.tables import read_table

    table: Any = read_table(directory, "patching")
    facts: dict[str, Any] = {"gap": float(table["gap"].iloc[0]), "status": str(table["status"].iloc[0])}
    known = table[table["recovery"].notna()]
    if known.empty:
        return facts
    top = known.loc[known["recovery"].idxmax()]
    head = f".{top['head']}" if top["head"] >= 0 else ""
    facts["top_cell"] = f"{top['site']} {top['layer']}{head} at {top['position']}, {top['direction']}"
    facts["recovery"] = float(top["recovery"])
    return facts


patch = Analysis(
    name="patch",
    summary="What putting one prompt's activations into another's forward pass does to its answer, by layer and head.",
    settings=PatchSettings,
    tables=[
        Table(
            "patching",
            key=("model", "seed", "task", "site", "direction", "layer", "head", "position"),
            columns=[
                *SHARE,
                Column("p", "of effect = 0, adjusted for the cells of the site and direction", unit="1"),
                Column("effect", "mean change of m in the base"),
                Column("kl", "KL(clean‖patched) of the last token's prediction", unit="nats"),
                Column("delta_logprob", "change of the answer's log-probability", unit="nats"),
                Column("delta_prob", "change of the answer's probability", unit="1"),
                Column("gap", "mean m of the source − m of the base"),
                *GAP_LIMITS,
                *COUNTS,
            ],
            trailing=[
                Column("base_kl", "KL(clean‖base)", unit="nats"),
                Column("stands_there", "the task's names of a numbered position, the same in all pairs", kind="text"),
            ],
            meaning="One activation of a layer (of a head; head -1 is the whole site) at one position, or all, put "
            "from one prompt of each pair into the other; m is the task's measure, the answer less the "
            "foil. denoise: the clean prompt's into the corrupt one; noise: the reverse. ci_low, ci_high, "
            "gap_low and gap_high are 95 % bootstrap intervals over clusters of pairs.",
        )
    ],
    measure=measure,
    figures=(draw_heads, draw_positions),
    cost=cost,
    check=check,
    facts=say,
    notes=lambda settings: (
        "A recovery of 1: this activation alone makes the base answer as the other prompt does; of noise it is the "
        "share of the difference that is destroyed. Shares of several cells need not add up to 1.",
    ),
    function="workbench.analyses.patch.patching:patch",
)
