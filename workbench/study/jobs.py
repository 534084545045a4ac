"""The jobs of a study: data that says what is to be done, of which models, and what has to be there first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reports.study import AT
from workbench.analyses import load_plugin
from workbench.extend import Analysis
from workbench.study.recipe import StudyRecipe
from workbench.training.recipe import Recipe, parse_recipe, phase_model

TRAIN, MODELS = "train", "models"  # the job that trains, and the directory of its results


@dataclass(frozen=True)
class PlannedJob:
    """One piece of a study's work: a training, or an analysis of its models."""

    kind: str
    """"train", or the name of an analysis"""
    models: tuple[tuple[str, int], ...]
    """(name of the training recipe, seed of the training) of each model, the reference of a pair first"""
    needs: tuple[str, ...] = ()
    """names of the jobs whose directories are read"""
    is_of_all: bool = False
    """of every model and seed of the study at once"""

    @property
    def model(self) -> str:
        """The model that the job is about: of a pair the second."""
        return self.models[-1][0]

    @property
    def seed(self) -> int:
        """The seed of its training."""
        return self.models[-1][1]

    @property
    def name(self) -> str:
        """The job's own name, and its directory within the study's."""
        subject = "all" if self.is_of_all else f"{'--'.join(name for name, _ in self.models)}-seed{self.seed}"
        return f"{MODELS if self.kind == TRAIN else self.kind}/{subject}"


@dataclass(frozen=True)
class Context:
    """What every job of a study shares."""

    recipe: StudyRecipe
    trainings: tuple[Recipe, ...]
    """the training recipe of each model"""
    directory: Path
    """the study's directory while it is made"""
    device: str = "auto"
    cache: Path | None = None
    """where packed tokens are kept; the user's cache if None"""
    n_threads: int = 1
    """CPU threads of every job: sums in float32, and so results, depend on it"""
    plugins: tuple[str, ...] = ()
    """files and modules that bring analyses and interventions, for processes that have not loaded them"""

    def __getstate__(self) -> dict[str, Any]:
        """For another process: recipes as plain data, since a plug-in's interventions are not known there yet."""
        return vars(self) | {"trainings": [own.model_dump(mode="json") for own in self.trainings]}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for source in state["plugins"]:
            load_plugin(source)
        vars(self).update(state | {"trainings": tuple(parse_recipe(own) for own in state["trainings"])})

    def training(self, model: str) -> Recipe:
        """The training recipe of a model."""
        return next(own for own in self.trainings if own.name == model)


def plan_jobs(recipe: StudyRecipe) -> list[PlannedJob]:
    """All jobs, each behind those it needs: seed by seed and model by model."""
    recipes, analyses = recipe.train_recipes(), recipe.opened_with()
    by_name = {own.name: own for own in recipes}
    pairs, jobs = paired(recipe, recipes), []
    for seed in range(recipe.n_seeds):
        for own in recipes:
            trained = PlannedJob(TRAIN, ((own.name, seed),))
            jobs.append(trained)
            for analysis in analyses:
                if seed > 0 and analysis.is_first_seed_only:
                    continue
                groups = {"pair": [pair for pair in pairs if pair[1] == own.name], "models": []}
                for names in groups.get(analysis.takes, [(own.name,)]):
                    if not why_not(analysis, [by_name[name] for name in names]):
                        jobs.append(_job(analysis, [(name, seed) for name in names]))
    every = [(own.name, seed) for seed in range(recipe.n_seeds) for own in recipes]
    for analysis in analyses:
        if analysis.takes == "models" and not why_not(analysis, recipes):
            jobs.append(_job(analysis, every))
    return jobs


def paired(recipe: StudyRecipe, recipes: Sequence[Recipe]) -> list[tuple[str, str]]:
    """The pairs that are compared, in the order of the study's models: each with the reference of its size, the first,
    and those it names, at every size."""
    names = [own.name for own in recipes]
    asked = {(first, name) for name, first in recipe.references(names).items() if name != first}
    ends = [f"{AT}{size}" for size in recipe.sizes] or [""]
    asked |= {(first + end, second + end) for first, second in recipe.pairs for end in ends}
    return [(first, second) for second in names for first in names if (first, second) in asked]


def _job(analysis: Analysis, models: Sequence[tuple[str, int]]) -> PlannedJob:
    read = [] if analysis.takes == "recipe" else [PlannedJob(TRAIN, (model,)).name for model in models]
    read += [PlannedJob(name, (model,)).name for name in analysis.needs for model in models]
    return PlannedJob(analysis.name, tuple(models), tuple(read), analysis.takes == "models")


def why_not(analysis: Analysis, recipes: Sequence[Recipe]) -> str:
    """Why an analysis does not hold for models, in a sentence's end; nothing if it does."""
    first = recipes[0]
    if analysis.takes == "pair" and analysis.reads is not None:
        apart = [own.name for own in recipes[1:] if not share_text(first, own)]
        if apart:
            return f"reads other tokens than {first.name}"
    return analysis.requires(*(phase_model(own, -1) for own in recipes))


def share_text(a: Recipe, b: Recipe) -> bool:
    """Whether two models read the same tokens, so that they can be compared token by token."""
    return (a.data, a.model.n_ctx, a.model.d_vocab) == (b.data, b.model.n_ctx, b.model.d_vocab)


def left_out(recipe: StudyRecipe) -> list[str]:
    """Sentences about what was asked for and cannot be done, for the page."""
    recipes, said = recipe.train_recipes(), []
    by_name = {own.name: own for own in recipes}
    for analysis in recipe.opened_with():
        groups = {"pair": paired(recipe, recipes), "models": [tuple(by_name)]}.get(
            analysis.takes, [(name,) for name in by_name]
        )
        for names in groups:
            if reason := why_not(analysis, [by_name[name] for name in names]):
                of = f" beside {names[0]}" if analysis.takes == "pair" else ""
                said.append(f"No {analysis.name} of {names[-1]}{of}: it {reason}.")
    return said
