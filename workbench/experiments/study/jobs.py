"""The jobs of a study: each reads what the jobs before it left on disk and writes one run directory.

A job is data and its work a function of (job, recipe, directory), so that an executor may run it anywhere that sees the
directory; this module runs them one after another in this process.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from jaxtyping import Int64
from torch import Tensor

from reports.tables import write_table
from sae.model import StackedSAE
from workbench.data.tokens import held_out_windows
from workbench.experiments.ablation.ablate import ablation_table, iterate_ablation, summary_table
from workbench.experiments.ablation.parts import join, to_bytes
from workbench.experiments.ablation.precision import as_float32
from workbench.experiments.attention import attention
from workbench.experiments.saes.atlas_features import atlas_features, match_cells, match_features
from workbench.experiments.saes.head_saes import find_stack, one_a_slot, sae_train
from workbench.experiments.study.recipe import StudyRecipe
from workbench.experiments.topology import topology_tables
from workbench.models import HookedLM
from workbench.models.load import load, weights_sha256
from workbench.runs import Run, atomic_write, open_run
from workbench.training import train
from workbench.training.feed import Feed, open_feed
from workbench.training.recipe import Phase, Recipe

Kind = Literal["train", "saes", "ablation", "topology", "attention", "features", "match"]
Show = Callable[[str], AbstractContextManager[Callable[[float], None]]]

DIRECTORIES = {
    "train": "models",
    "saes": "saes",
    "ablation": "ablation",
    "topology": "topology",
    "attention": "attention",
    "features": "features",
    "match": "match",
}
MATCH = "match.csv"
MATCH_TOKENS = 16_384  # held-out tokens that features of two models are matched on


@dataclass(frozen=True)
class Job:
    """One piece of a study's work."""

    kind: Kind
    model: str
    """name of the training recipe"""
    seed: int
    """seed of the training"""
    needs: tuple[str, ...] = ()
    """names of the jobs whose directories are read"""
    other: str = field(default="")
    """the second model of a match"""

    @property
    def subject(self) -> str:
        """Directory name of what the job is about."""
        return f"{self.model}-seed{self.seed}"

    @property
    def path(self) -> str:
        """The job's directory within the study's."""
        return f"{DIRECTORIES[self.kind]}/{self.subject}"

    @property
    def name(self) -> str:
        """The job's own name: its path."""
        return self.path


@dataclass(frozen=True)
class Context:
    """What every job of a study shares."""

    recipe: StudyRecipe
    directory: Path
    """the study's directory while it is made"""
    device: str = "auto"
    cache: Path | None = None
    """where packed tokens are kept; the user's cache if None"""


def plan_jobs(recipe: StudyRecipe, n_seeds: int) -> list[Job]:
    """All jobs, each behind those it needs: model by model and seed by seed, the matches with the reference last."""
    names = [own.name for own in recipe.train_recipes()]
    jobs = []
    for seed in range(n_seeds):
        for name in names:
            trained = Job("train", name, seed)
            of_model: list[Kind] = ["saes", "ablation", "topology", "attention"]
            jobs += [trained, *(Job(kind, name, seed, (trained.name,)) for kind in of_model)]
            # the atlas shows one seed: more would say the same thousands of times
            if seed == 0:
                jobs.append(Job("features", name, seed, (trained.name, Job("saes", name, seed).name)))
    if share_text(recipe.train_recipes()):
        for name in names[1:]:
            read = [Job(kind, own, 0).name for own in (names[0], name) for kind in ("train", "saes")]
            jobs.append(Job("match", name, 0, tuple(read), other=names[0]))
    return jobs


def share_text(recipes: Sequence[Recipe]) -> bool:
    """Whether all models read the same tokens, so that they can be compared token by token."""
    return len({(own.data.model_dump_json(), own.model.n_ctx) for own in recipes}) == 1


def run_jobs(jobs: Sequence[Job], context: Context, show: Show | None = None) -> None:
    """Run the jobs in their order; a finished one is checked and left as it is.

    show: gives a context manager for a label, whose function is told the share done.
    """
    done: set[str] = set()
    for number, job in enumerate(jobs):
        assert done.issuperset(job.needs), (job.name, job.needs)
        label = f"[{number + 1}/{len(jobs)}] {job.name}"
        # training draws a bar of its own
        with (show or _quietly)(label) if job.kind != "train" else contextlib.nullcontext(_tell_nobody) as tell:
            run_job(job, context, tell, is_shown=show is not None)
        done.add(job.name)


def run_job(job: Job, context: Context, tell: Callable[[float], None], *, is_shown: bool = False) -> None:
    """Do one job in its directory, or go on with it where it was left."""
    if job.kind == "train":
        _train(job, context, is_shown)
    elif job.kind == "saes":
        _train_saes(job, context, tell)
    else:
        work = {
            "ablation": _ablate,
            "topology": _measure_topology,
            "attention": _measure_attention,
            "features": _describe_features,
            "match": _match,
        }[job.kind]
        model = _load(job, context)
        config = {
            "verb": job.kind,
            "model": job.model,
            "other": job.other or None,
            "seed": job.seed,
            "weights_sha256": weights_sha256(model),
            "settings": _settings(job, context.recipe),
        }
        with open_run(context.directory / job.path, config, resume=True, device=model.cfg.device, seed=job.seed) as run:
            if not run.is_complete:
                work(job, context, model, run, tell)


def _settings(job: Job, recipe: StudyRecipe) -> dict[str, Any]:
    """The study's settings that a job's result depends on."""
    own = {
        "ablation": ("n_ablation_tokens",),
        "topology": ("n_topology_tokens",),
        "attention": ("n_topology_tokens",),
        "features": ("n_atlas_tokens", "n_contexts", "sae_l1", "sae_seeds", "saes"),
        "match": ("sae_l1", "sae_seeds", "saes"),
    }[job.kind]
    dump = recipe.model_dump(mode="json")
    return {key: dump[key] for key in own}


# --- what jobs read


def train_recipe(job: Job, context: Context) -> Recipe:
    """The training recipe of a job's model."""
    return next(own for own in context.recipe.train_recipes() if own.name == job.model)


def _load(job: Job, context: Context, name: str = "") -> HookedLM:
    """The trained model of a job, or the model called `name` of the same seed."""
    trained = Job("train", name or job.model, job.seed)
    return load(context.directory / trained.path, context.device)


def tokens_of(job: Job, context: Context, split: str, n_tokens: int) -> Int64[Tensor, "n n_ctx"]:
    """Windows of a model's text, evenly spaced: n_tokens of the held-out part or of what it was trained on."""
    recipe = train_recipe(job, context)
    feed = read_feed(recipe, context.cache)
    n_ctx = recipe.model.n_ctx
    return held_out_windows(feed.train if split == "train" else feed.held_out, n_ctx, max(1, n_tokens // n_ctx))


def read_feed(recipe: Recipe, cache: Path | None) -> Feed:
    """`open_feed`, remembered: reading and checking the text again for every job would cost more than some jobs."""
    readable = Recipe(name="feed", model=recipe.model, data=recipe.data, phases=(Phase(n_steps=1, batch_size=1),))
    return _remembered_feed(readable.model_dump_json(), cache)


@functools.lru_cache(maxsize=4)
def _remembered_feed(recipe: str, cache: Path | None) -> Feed:
    return open_feed(Recipe.model_validate_json(recipe), cache)


def shown_stack(job: Job, context: Context, name: str = "") -> StackedSAE:
    """The SAEs that pages show of a job's model: one a head, at the shown l1, of the first seed."""
    saes = Job("saes", name or job.model, job.seed)
    stack = find_stack(context.directory / saes.path)
    return one_a_slot(stack, context.recipe.shown_l1, context.recipe.sae_seeds[0])


# --- what jobs do


def _train(job: Job, context: Context, is_shown: bool) -> None:
    train(
        train_recipe(job, context),
        context.directory / job.path,
        seed=job.seed,
        device=context.device,
        resume=True,
        progress=is_shown,
        cache=context.cache,
    )


def _train_saes(job: Job, context: Context, tell: Callable[[float], None]) -> None:
    recipe = context.recipe
    model = _load(job, context)
    n_train = recipe.saes.n_train_tokens or 1 << 20
    sae_train(
        model,
        tokens_of(job, context, "train", n_train),
        l1=recipe.sae_l1,
        seeds=recipe.sae_seeds,
        out=context.directory / job.path,
        held_out=tokens_of(job, context, "held_out", recipe.n_eval_tokens),
        name=job.model,
        model_seed=job.seed,
        resume=True,
        on_progress=tell,
        **recipe.saes.model_dump(),
    )


def _ablate(job: Job, context: Context, model: HookedLM, run: Run, tell: Callable[[float], None]) -> None:
    tokens = tokens_of(job, context, "held_out", context.recipe.n_ablation_tokens)
    losses = join(list(iterate_ablation(as_float32(model), tokens, seed=job.seed, on_progress=tell)))
    table = ablation_table(losses, tokens.shape[1], kind="zero", seed=job.seed, name=job.model)
    write_table(table, run.path, "ablation_results")
    write_table(summary_table(table, losses, job.seed), run.path, "ablation_summary")
    atomic_write(run.path / "sequence_losses.safetensors", to_bytes(losses))


def _measure_topology(job: Job, context: Context, model: HookedLM, run: Run, tell: Callable[[float], None]) -> None:
    tokens = tokens_of(job, context, "held_out", context.recipe.n_topology_tokens)
    stats, cosines = topology_tables(model, tokens, seed=job.seed, name=job.model, on_progress=tell)
    write_table(stats, run.path, "topology_stats")
    write_table(cosines, run.path, "head_cosines")


def _measure_attention(job: Job, context: Context, model: HookedLM, run: Run, tell: Callable[[float], None]) -> None:
    tokens = tokens_of(job, context, "held_out", context.recipe.n_topology_tokens)
    table = attention(model, tokens, seed=job.seed, name=job.model, on_progress=tell)
    write_table(table, run.path, "attention_stats")


def _describe_features(job: Job, context: Context, model: HookedLM, run: Run, tell: Callable[[float], None]) -> None:
    recipe = context.recipe
    table = atlas_features(
        model,
        shown_stack(job, context),
        tokens_of(job, context, "held_out", recipe.n_atlas_tokens),
        n_contexts=recipe.n_contexts,
        name=job.model,
        seed=job.seed,
        on_progress=tell,
    )
    write_table(table, run.path, "feature_atlas")


def _match(job: Job, context: Context, model: HookedLM, run: Run, tell: Callable[[float], None]) -> None:
    """match.csv: model, other, layer, head, feature, match of every feature, in both directions."""
    own, theirs = shown_stack(job, context), shown_stack(job, context, job.other)
    tokens = tokens_of(job, context, "held_out", MATCH_TOKENS)
    found = match_features(model, own, _load(job, context, job.other), theirs, tokens, tell)
    parts = []
    for matches, name, other in ((found[0], job.model, job.other), (found[1], job.other, job.model)):
        keys = [
            (name, other, source.layer, -1 if source.head is None else source.head, feature)
            for source in own.info.sources
            for feature in range(own.config.d_sae)
        ]
        part = pd.DataFrame(keys, columns=["model", "other", "layer", "head", "feature"])
        parts.append(part.assign(match=match_cells(matches, other)))
    atomic_write(run.path / MATCH, pd.concat(parts).to_csv(index=False, lineterminator="\n"))


def _tell_nobody(share: float) -> None:
    """Nobody watches."""


@contextlib.contextmanager
def _quietly(label: str) -> Iterator[Callable[[float], None]]:
    yield _tell_nobody


def device_name(device: str) -> str:
    """The device in words, for the page."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    n = torch.get_num_threads()
    return f"{device}, {n} thread{'s' if n > 1 else ''}"
