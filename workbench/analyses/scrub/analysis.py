"""The record of `scrub`: what a circuit keeps of a task while everything outside it is resampled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from workbench.analyses.scrub.cost import cost
from workbench.analyses.scrub.figures import draw_contributions, draw_kept_share, draw_necessity
from workbench.analyses.tasks.columns import MEASURED
from workbench.analyses.tasks.jobs import drop_parts, find_status, keeper, open_pairs
from workbench.analyses.tasks.settings import MEMORY, TaskSettings
from workbench.extend import Analysis, Column, Job, Names, Table

if TYPE_CHECKING:
    import pandas as pd


class ScrubSettings(TaskSettings):
    """Which circuits, and how they are put to the test."""

    circuits: Path | None = Field(
        default=None,
        description="TOML file of circuits, [[circuits]] with name, heads and mlps; by default one is found on half of "
        "the clusters and tested on the others",
    )
    share: float = Field(
        default=0.8, description="share of the gap that a circuit must keep for the search to stop", gt=0, le=1
    )
    by_position: bool = Field(
        default=False, description="whether the search takes each named position of a head or MLP by itself"
    )
    kind: Literal["corrupt", "other"] = Field(
        default="corrupt",
        description="what takes the place of what is outside: activations on the pair's own corrupt prompt, or, other, "
        "on that of another pair of equal length",
    )
    n_random: int = Field(default=20, description="random circuits of equal size beside each", ge=0)
    heads: Names = Field(
        default=(), description="heads whose necessity is measured, such as 1.4,9.3; by default every one"
    )
    n_bootstrap: int = Field(default=2000, description="draws of the intervals over clusters", ge=100)
    memory_gib: float = MEMORY

    @field_validator("heads")
    @classmethod
    def _are_heads(cls, heads: tuple[str, ...]) -> tuple[str, ...]:
        from workbench.analyses.scrub.circuits import parse_head

        if len({str(parse_head(text)) for text in heads}) < len(heads):
            raise ValueError(f"got {','.join(heads)}; expected each once")
        return heads


def _open(job: Job) -> tuple[Any, Any, Any]:
    """(pairs, circuits or None, heads). Raises ValueError for what cannot be scrubbed."""
    import numpy as np

    from workbench.analyses.scrub.circuits import check_nodes, every_node, parse_head, read_circuits
    from workbench.analyses.scrub.engine import check_model, plan_sizes
    from workbench.analyses.scrub.search import lenders

    own, model = job.settings, job.subject.model
    check_model(model)
    pairs = open_pairs(job)
    circuits = None if own.circuits is None else read_circuits(own.circuits)
    for circuit in circuits or ():
        check_nodes(f"circuits: {own.circuits}: {circuit.name}", circuit.nodes, model.cfg, pairs.positions)
    heads = [parse_head(text) for text in own.heads] or [own for own in every_node(model.cfg) if not own.is_mlp]
    check_nodes("heads", heads, model.cfg, pairs.positions)
    lenders(pairs, own.kind, np.random.default_rng(0))
    plan_sizes(model.cfg, len(pairs), pairs.clean.shape[1], 1, _budget(job))
    return pairs, circuits, heads


def check(job: Job) -> None:
    """Raise ValueError for a model without the hooks, circuits or heads that are not there, or unfit pairs."""
    _open(job)


def measure(job: Job) -> Mapping[str, pd.DataFrame]:
    """The three tables; m of every pair, part by part, is kept as files from which a killed run goes on."""
    from workbench.analyses.ablate.precision import as_float32
    from workbench.analyses.scrub import tables
    from workbench.analyses.scrub.circuits import EVERYTHING, FOUND, NOTHING
    from workbench.analyses.scrub.scrubbing import Options, Scrubber

    own, model = job.settings, as_float32(job.subject.model)
    pairs, circuits, heads = _open(job)
    options = Options(own.kind, own.share, own.by_position, own.n_random, job.seed, _budget(job))
    scrubber = Scrubber(model, pairs, options, keeper(job.directory), _teller(job, circuits))
    front = {"model": job.subject.name, "seed": job.subject.seed, "task": pairs.name}
    about: Any = (job.seed, own.n_bootstrap)
    rows: dict[str, list[dict[str, Any]]] = {"scrubbing": [], "scrubbing_members": [], "scrubbing_heads": []}
    status = find_status(job, model, pairs)
    if status == MEASURED and scrubber.is_defined(own.n_bootstrap):
        held = None
        if circuits is None:
            found, held = scrubber.search()
            circuits = (found,)
        tested = [scrubber.test(circuit, held) for circuit in circuits]
        for one in [*tested, *scrubber.controls(held)]:
            rows["scrubbing"].append(tables.circuit_row(one, *about))
            rows["scrubbing_members"] += tables.member_rows(one, *about)
        rows["scrubbing_heads"] = tables.head_rows(heads, scrubber.without_heads(heads), scrubber.ends, *about)
    else:
        names = [FOUND] if circuits is None else [circuit.name for circuit in circuits]
        status = tables.UNDEFINED if status == MEASURED else status
        rows["scrubbing"] = tables.unmeasured_rows(
            scrubber.ends, [*names, EVERYTHING, NOTHING], job.seed, own.n_bootstrap, status
        )
    drop_parts(job.directory)
    kind = {"kind": own.kind}
    return {
        table.name: tables.table([row | kind for row in rows[table.name]], front, [*table.leading, *LAST[table.name]])
        for table in scrub.tables
    }


def _budget(job: Job) -> int:
    from workbench.models.costs import bytes_of

    return bytes_of(job.settings.memory_gib)


def _teller(job: Job, circuits: Any) -> Callable[[str, float], None]:
    """Progress over the stages, each the same share."""
    names = [f"circuit_{own.name}" for own in circuits or ()] or ["nodes", "search", "circuit_found"]
    stages = ["clean", "base", *names, "circuit_everything", "circuit_nothing", "heads"]

    def tell(stage: str, share: float) -> None:
        at = stages.index("search" if stage.startswith("search_") else stage)
        job.progress((at + share) / len(stages))

    return tell


def say(directory: Path) -> dict[str, Any]:
    """What the first circuit keeps, and which head is load-bearing."""
    from reports.tables import read_table

    circuits: Any = read_table(directory, "scrubbing")
    first = circuits.iloc[0]
    said = {"circuit": first["circuit"], "status": first["status"]}
    if first["status"] == MEASURED:
        said |= {name: float(first[name]) for name in ("kept_share", "random_max", "p")}
        heads: Any = read_table(directory, "scrubbing_heads")
        top = heads.loc[heads["necessity"].idxmax()]
        said |= {"top_head": f"{top['layer']}.{top['head']}", "necessity": float(top["necessity"])}
        said["verdict"] = top["verdict"]
    return said


def _share(name: str, low: str, high: str, meaning: str) -> list[Column]:
    interval = Column(low, f"95 % interval of {name}, bootstrap over clusters", unit="1")
    return [Column(name, meaning, unit="1"), interval, Column(high, unit="1")]


KIND = Column("kind", "what takes the place of what is outside: corrupt or other", kind="text")
LAST = {
    "scrubbing": ("kind", "members"),
    "scrubbing_members": ("share_without", "kind"),
    "scrubbing_heads": ("kind",),
}

scrub = Analysis(
    name="scrub",
    summary="What a circuit keeps of a task while everything outside it is resampled, beside random circuits.",
    settings=ScrubSettings,
    tables=[
        Table(
            "scrubbing",
            key=("model", "seed", "task", "circuit"),
            columns=[
                *_share(
                    "kept_share", "ci_low", "ci_high",
                    "Σ (m of the clean prompt with everything outside resampled − m of the prompt that lends) / Σ gap",
                ),
                Column("gap", "mean over pairs of m of the clean prompt − m of the prompt that lends"),
                Column("gap_low", "95 % interval of gap, bootstrap over clusters"),
                Column("gap_high"),
                *_share(
                    "complement_share", "complement_low", "complement_high",
                    "kept share of everything but the circuit: what is left without it",
                ),
                Column("random_mean", "mean kept share of random circuits of equal size", unit="1"),
                Column("random_max", "largest of them", unit="1"),
                Column("p", "(1 + random circuits that keep at least as much)/(1 + random circuits)", unit="1"),
                Column("n_random", "random circuits", kind="integer"),
                Column("n_heads", "heads of the circuit", kind="integer"),
                Column("n_mlps", "MLPs of the circuit", kind="integer"),
                Column("n_pairs", "that it is tested on", kind="integer"),
                Column("n_clusters", "of those pairs", kind="integer"),
                Column("pairs", "all, or held out: none that the circuit was searched on", kind="text"),
                Column("status", "measured; task_absent: the gate is not passed; gap_undefined", kind="text"),
            ],
            trailing=[KIND, Column("members", "the circuit's heads and MLPs", kind="text")],
            meaning="One circuit on one task: nodes of it are computed from what reaches them, all others are "
            "replaced by their activations on another prompt; m is the task's measure, the answer less the "
            "foil. Embeddings and positions are those of the clean prompt. The rows everything and nothing "
            "are the whole model and no head or MLP of it.",
        ),
        Table(
            "scrubbing_members",
            key=("model", "seed", "task", "circuit", "member"),
            columns=[
                Column("layer", kind="integer"),
                Column("head", "-1 of an MLP", kind="integer"),
                *_share("contribution", "ci_low", "ci_high", "kept share of the circuit − that without the member"),
                Column("p", "of a contribution of 0, adjusted for all members (sign flips, max-T)", unit="1"),
            ],
            trailing=[Column("share_without", "kept share of the circuit without the member", unit="1"), KIND],
            meaning="One head or MLP of a circuit: whether the circuit needs it (minimality).",
        ),
        Table(
            "scrubbing_heads",
            key=("model", "seed", "task", "layer", "head"),
            columns=[
                *_share(
                    "necessity", "ci_low", "ci_high",
                    "share of the gap that is lost when this head alone is resampled and all else follows",
                ),
                Column("p", "of a necessity of 0, adjusted for all heads (sign flips, max-T)", unit="1"),
                Column(
                    "p_above",
                    "of the head that is needed most: largest adjusted p of not differing from another head",
                    unit="1",
                ),
                Column("verdict", "load-bearing, one of several, or not needed", kind="text"),
            ],
            trailing=[KIND],
            meaning="One head, resampled alone on all pairs. Load-bearing: needed (p ≤ .05), and more than every other "
            "head measured (p_above ≤ .05).",
        ),
    ],
    measure=measure,
    figures={
        "scrubbing": (draw_kept_share,),
        "scrubbing_members": (draw_contributions,),
        "scrubbing_heads": (draw_necessity,),
    },
    cost=cost,
    check=check,
    facts=say,
    notes=lambda settings: (
        "A circuit that was found was chosen on half of the clusters, and is tested on the other half alone.",
        "The rest of the network is never zeroed: outside nodes have activations of another prompt of the task.",
    ),
)  # fmt: skip
