"""The record of `ablate`: impact of every head on the loss, with intervals; also of layers, MLPs and pairs of heads."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator, model_validator

from workbench.analyses.ablate.cost import cost
from workbench.extend import Analysis, Column, Integers, Job, Names, Settings, Table, Windows

if TYPE_CHECKING:
    import pandas as pd

LOSSES, PAIR_LOSSES, FACTS = "sequence_losses.safetensors", "pair_losses.safetensors", "ablation.json"
COMPONENTS = ("head", "layer", "mlp")


class AblateSettings(Settings):
    """What is taken out, and how."""

    layers: Integers | None = Field(default=None, description="layers, such as 0,2,5-7; by default all")
    heads: Integers | None = Field(default=None, description="heads, such as 0,2,5-7; by default all")
    components: Names = Field(default=("head",), description="what to ablate: any of head,layer,mlp")
    pairs: str | None = Field(
        default=None,
        description="pairs of heads too: within (all pairs of each layer), or LAYER.HEAD pairs such as 0.1+0.3,2.0+3.1",
    )
    kind: Literal["zero", "mean", "resample"] = Field(default="zero", description="what takes an activation's place")
    n_resamples: int = Field(
        default=1, description="with kind resample: donor sequences for each sequence, averaged over", ge=1
    )
    n_bootstrap: int = Field(default=2000, description="draws of the intervals over sequences", ge=1)
    has_estimate: bool = Field(
        default=True, description="compute what the gradient alone says the impact would be, too"
    )
    dtype: str | None = Field(
        default=None,
        description="what to run in, by default float32; the error that bfloat16 or float16 brings to the impacts is "
        "measured",
    )
    memory_gib: float = Field(default=1.0, description="memory to use besides the weights, GiB", ge=0, le=1e6)

    @field_validator("components")
    @classmethod
    def _are_components(cls, components: tuple[str, ...]) -> tuple[str, ...]:
        if not components or set(components) - set(COMPONENTS) or len(set(components)) < len(components):
            raise ValueError(f"got {','.join(components)!r}; expected some of {','.join(COMPONENTS)}, each once")
        return components

    @field_validator("pairs")
    @classmethod
    def _are_pairs(cls, pairs: str | None) -> str | None:
        parse_pairs(pairs)
        return pairs

    @model_validator(mode="after")
    def _are_read(self) -> AblateSettings:
        given = self.model_fields_set
        if self.kind != "resample" and "n_resamples" in given:
            raise ValueError(f"n_resamples: got kind = {self.kind}, where nothing reads it; expected kind = resample")
        if "head" not in self.components and parse_pairs(self.pairs) != "within" and self.heads is not None:
            raise ValueError(
                f"heads: got components = {','.join(self.components)}, where nothing reads them; expected head among "
                "components"
            )
        return self

    @property
    def engine(self) -> dict[str, Any]:
        """The settings as the engine's arguments."""
        from workbench.models.costs import bytes_of

        own = self.model_dump(include={"layers", "heads", "kind", "components", "n_resamples", "has_estimate"})
        return own | {"memory_budget_bytes": bytes_of(self.memory_gib)}


def parse_pairs(text: str | None) -> str | list[tuple[tuple[int, int], tuple[int, int]]] | None:
    """ "within", or the pairs of "0.1+0.3,2.0+3.1" as ((layer, head), (layer, head)).

    >>> parse_pairs("0.1+0.3")
    [((0, 1), (0, 3))]
    """
    if text is None or text.strip() == "within":
        return text and "within"
    found = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,6})\.(\d{1,6})\s*\+\s*(\d{1,6})\.(\d{1,6})\s*", part)
        if match is None:
            raise ValueError(f"got {part.strip()!r}; expected within, or pairs such as 0.1+0.3,2.0+3.1")
        a, b, c, d = map(int, match.groups())
        found.append(((a, b), (c, d)))
    return found


def check(job: Job) -> None:
    """Raise the ValueErrors of the engine that need no forward pass."""
    from workbench.analyses.ablate.ablation import check_ablation
    from workbench.analyses.ablate.impacts import check_bootstrap
    from workbench.analyses.ablate.pairs import check_pairs

    own = job.settings.engine
    check_bootstrap(job.settings.n_bootstrap)
    model = _model(job)
    check_ablation(model, job.tokens, **{name: own[name] for name in own if name != "has_estimate"})
    if (pairs := _pairs(job, model)) is not None:
        limits = {name: own[name] for name in ("kind", "n_resamples", "memory_budget_bytes")}
        check_pairs(model, job.tokens, pairs, **limits)


def measure(job: Job) -> Mapping[str, pd.DataFrame]:
    """The losses of each sequence, batch by batch, kept as files from which a killed run goes on; then the tables."""
    from workbench.analyses.ablate.ablation import iterate_ablation, rounding_errors
    from workbench.analyses.ablate.pairs import PairLosses, iterate_pairs, join_pairs
    from workbench.analyses.ablate.records import SequenceLosses, join, to_bytes
    from workbench.runs import atomic_write

    own, seed, tokens, subject = job.settings.engine, job.seed, job.tokens, _model(job)
    pairs = _pairs(job, subject)
    share = 0.5 if pairs is not None else 1.0

    def heads(start: int) -> Iterator[Any]:
        tell = lambda done: job.progress(share * done)  # noqa: E731
        return iterate_ablation(subject, tokens, seed=seed, start=start, on_progress=tell, **own)

    losses = join(_batches(job.directory, "part_heads", SequenceLosses, len(tokens), heads))
    errors = rounding_errors(job.subject.model, subject, tokens, losses, seed=seed, **own)
    atomic_write(job.directory / LOSSES, to_bytes(losses))
    facts = {
        "n_ctx": tokens.shape[1],
        "dtype": str(subject.cfg.dtype).removeprefix("torch."),
        "error_pct": list(errors),
    }
    atomic_write(job.directory / FACTS, json.dumps(facts) + "\n")
    if pairs is not None:
        options = {name: own[name] for name in ("kind", "n_resamples", "memory_budget_bytes")}

        def both(start: int) -> Iterator[Any]:
            tell = lambda done: job.progress(share + share * done)  # noqa: E731
            return iterate_pairs(subject, tokens, pairs, seed=seed, start=start, on_progress=tell, **options)

        found = join_pairs(_batches(job.directory, "part_pairs", PairLosses, len(tokens), both))
        atomic_write(job.directory / PAIR_LOSSES, to_bytes(found))
    for part in sorted(job.directory.glob("part_*.safetensors"), reverse=True):
        part.unlink()
    return tabulate(job)


def tabulate(job: Job) -> Mapping[str, pd.DataFrame]:
    """The tables from the losses that `measure` left in the directory."""
    import numpy as np
    import torch
    from safetensors.torch import load_file

    from workbench.analyses.ablate.ablation import ablation_table, summary_table, without_blocks
    from workbench.analyses.ablate.pairs import PairLosses, pairs_table
    from workbench.analyses.ablate.records import SequenceLosses

    losses = SequenceLosses(**load_file(job.directory / LOSSES))
    facts = json.loads((job.directory / FACTS).read_text(encoding="utf-8"))
    n_ctx, dtype, errors = facts["n_ctx"], getattr(torch, facts["dtype"]), np.array(facts["error_pct"], dtype=float)
    about = {"kind": job.settings.kind, "name": job.subject.name, "n_bootstrap": job.settings.n_bootstrap}
    table = ablation_table(losses, n_ctx, seed=job.seed, **about, dtype=dtype, errors=errors)
    table = table.assign(seed=job.subject.seed)
    summarized = summary_table(table, losses, job.seed, n_bootstrap=job.settings.n_bootstrap)
    tables = {"ablation_results": table, "ablation_summary": summarized}
    if len(left_out := without_blocks(losses)):
        place = {"model": job.subject.name, "seed": job.subject.seed, "kind": job.settings.kind}
        tables["ablation_results_blocks"] = left_out.assign(**place)
    if (job.directory / PAIR_LOSSES).is_file():
        pairs = pairs_table(PairLosses(**load_file(job.directory / PAIR_LOSSES)), n_ctx, seed=job.seed, **about)
        tables["ablation_pairs"] = pairs.assign(seed=job.subject.seed)
    return tables


def say(directory: Path) -> dict[str, Any]:
    """What the tables say in a few words."""
    from reports.tables import read_table

    table: Any = read_table(directory, "ablation_results")
    summary: Any = read_table(directory, "ablation_summary")
    overall = summary[summary["layer"] == -1].set_index("measure")["value"]
    facts: dict[str, Any] = {}
    if "load_bearing_p" in overall and overall["load_bearing_p"].size == 1:
        top = table.loc[table[table["head"] >= 0]["impact_pct"].idxmax()]
        facts["top_head"] = f"{top['layer']}.{top['head']}"
        facts["load_bearing_p"] = float(overall["load_bearing_p"])
    if "rank_correlation" in overall and overall["rank_correlation"].size == 1:
        facts["estimate_rank_correlation"] = float(overall["rank_correlation"])
    if table["error_pct"].notna().any():
        facts["largest_error_pct"] = float(table["error_pct"].max())
    return facts


def _model(job: Job) -> Any:
    """The model in the dtype that it is run in."""
    from workbench.analyses.ablate.precision import in_precision

    return in_precision(job.subject.model, job.settings.dtype)


def _pairs(job: Job, model: Any) -> Any:
    from workbench.analyses.ablate.pairs import pairs_within_layers

    found = parse_pairs(job.settings.pairs)
    return pairs_within_layers(model, job.settings.layers, job.settings.heads) if found == "within" else found


def _batches(directory: Path, prefix: str, record: type, n: int, go_on: Callable[[int], Iterator[Any]]) -> list[Any]:
    """Losses of all n sequences, batch by batch, each batch kept as a file: where a killed run goes on."""
    from workbench.runs.resume_state import read_state, write_state

    parts, done = [], 0
    # a file is named for the sequences before it; behind a gap, which a kill leaves among removals, none is taken
    while (file := directory / f"{prefix}_{done:09d}.safetensors").is_file():
        tensors, _ = read_state(file)
        parts.append(record(**tensors))
        done += len(parts[-1].base)
    if done < n:
        for part in go_on(done):
            write_state(directory / f"{prefix}_{done:09d}.safetensors", asdict(part))
            done += len(part.base)
            parts.append(part)
    return parts


def _percent(*names: str) -> list[Column]:
    return [Column(name, unit="% of the base loss") for name in names]


ablate = Analysis(
    name="ablate",
    summary="Impact of every head on the loss, with intervals; also of layers, MLPs and pairs of heads.",
    settings=AblateSettings,
    reads=Windows(n_tokens=16_384),
    tables=[
        Table(
            "ablation_results",
            key=("model", "seed", "layer", "head", "kind"),
            columns=[
                Column("base_loss", "loss of the model as it is", unit="nats"),
                Column("ablated_loss", "loss without the part", unit="nats"),
                Column("impact_pct", "100·(ablated − base)/base", unit="% of the base loss"),
                *_percent("stderr", "ci_low", "ci_high"),
                Column("kl", "KL(base‖ablated) of the next-token prediction", unit="nats"),
                Column("n_tokens", "predictions", kind="integer"),
            ],
            trailing=[
                Column("component", "head, layer or mlp", kind="text"),
                Column("dtype", kind="text"),
                Column("n_sequences", kind="integer"),
                Column("n_ctx", "tokens per sequence", kind="integer"),
                Column("estimate_pct", "impact_pct by the gradient alone", unit="% of the base loss"),
                Column("error_pct", "measured error of a dtype narrower than float32", unit="% of the base loss"),
            ],
            meaning="One ablated head; head -1 is all heads together or, by component, the MLP. stderr is paired over "
            "sequences, ci_low and ci_high a 95 % bootstrap interval over sequences.",
            blocks=["base_loss", "ablated_loss", "impact_pct", "kl"],
        ),
        Table(
            "ablation_pairs",
            key=("model", "seed", "layer_a", "head_a", "layer_b", "head_b", "kind"),
            columns=[
                *_percent("impact_a_pct", "impact_b_pct", "joint_pct"),
                Column("interaction_pct", "joint_pct − impact_a_pct − impact_b_pct", unit="% of the base loss"),
                *_percent("stderr", "ci_low", "ci_high"),
                Column("kl", "KL(base‖without both)", unit="nats"),
                Column("n_tokens", "predictions", kind="integer"),
            ],
            meaning="Two heads ablated together; stderr and the interval are the interaction's.",
        ),
        Table(
            "ablation_summary",
            key=("model", "seed", "kind", "layer", "measure"),
            columns=[Column("value"), Column("n", "heads", kind="integer")],
            trailing=[
                Column("ci_low", "95 % interval of a margin over sequences"),
                Column("ci_high"),
                Column("n_permutations", "of a p, which is 1 / (n_permutations + 1) at least", kind="integer"),
            ],
            meaning="measure is gini, load_bearing_p, rank_correlation or top_margin (impact of the top head minus the "
            "runner-up's, in % of the base loss, paired over sequences); layer -1 is all layers.",
        ),
    ],
    measure=measure,
    over_training=True,
    tabulate=tabulate,
    cost=cost,
    check=check,
    facts=say,
    function="workbench.analyses.ablate.ablation:ablate",
)
