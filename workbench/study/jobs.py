"""The jobs of a study: data that says what is to be done, of which model, and what has to be there first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from workbench.study.recipe import Analysis, StudyRecipe
from workbench.training.recipe import Recipe

Kind = Literal["train"] | Analysis

# analyses that read one trained model and nothing else
OF_A_MODEL: tuple[Analysis, ...] = (
    "saes", "ablation", "topology", "attention", "probe", "evaluation", "text_quality",
)  # fmt: skip
OF_RECURRENCE: tuple[Analysis, ...] = ("mechanisms", "ladder")
DIRECTORIES: Mapping[str, str] = MappingProxyType({"train": "models"})  # of the other kinds: the kind itself


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
    others: tuple[str, ...] = ()
    """the models that this one is compared with"""

    @property
    def subject(self) -> str:
        """Directory name of what the job is about."""
        return f"{self.model}-seed{self.seed}"

    @property
    def path(self) -> str:
        """The job's directory within the study's."""
        return f"{DIRECTORIES.get(self.kind, self.kind)}/{self.subject}"

    @property
    def name(self) -> str:
        """The job's own name: its path."""
        return self.path


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


def plan_jobs(recipe: StudyRecipe) -> list[Job]:
    """All jobs, each behind those it needs: model by model and seed by seed, the matches with the reference last."""
    recipes = recipe.train_recipes()
    reference, asked = recipes[0], set(recipe.analyses)
    jobs = []
    for seed in range(recipe.n_seeds):
        for own in recipes:
            trained = Job("train", own.name, seed)
            jobs.append(trained)
            jobs += [Job(kind, own.name, seed, (trained.name,)) for kind in OF_A_MODEL if kind in asked]
            # the atlas shows one seed: more would say the same thousands of times
            if "features" in asked and seed == 0:
                jobs.append(Job("features", own.name, seed, (trained.name, Job("saes", own.name, seed).name)))
            if "spectra" in asked:
                jobs.append(_spectra(own, recipe, recipes, seed))
            if own.model.extensions.recurrence is not None:
                needs: dict[str, tuple[str, ...]] = {"mechanisms": (trained.name,), "ladder": ()}
                jobs += [Job(kind, own.name, seed, needs[kind]) for kind in OF_RECURRENCE if kind in asked]
    if "match" in asked:
        for own in recipes[1:]:
            if share_text(reference, own) and share_heads(reference, own):
                read = [Job(kind, name, 0).name for name in (reference.name, own.name) for kind in ("train", "saes")]
                jobs.append(Job("match", own.name, 0, tuple(read), others=(reference.name,)))
    return jobs


def _spectra(own: Recipe, recipe: StudyRecipe, recipes: Sequence[Recipe], seed: int) -> Job:
    """The job on a model's weights: beside the reference and its partners of the same seed, where both read the same
    tokens."""
    partners = {recipes[0].name, *(first for first, second in recipe.pairs if second == own.name)} - {own.name}
    others = tuple(other.name for other in recipes if other.name in partners and share_text(other, own))
    trained = tuple(Job("train", name, seed).name for name in (*others, own.name))
    return Job("spectra", own.name, seed, trained, others)


def share_text(a: Recipe, b: Recipe) -> bool:
    """Whether two models read the same tokens, so that they can be compared token by token."""
    return (a.data, a.model.n_ctx, a.model.d_vocab) == (b.data, b.model.n_ctx, b.model.d_vocab)


def share_heads(a: Recipe, b: Recipe) -> bool:
    """Whether two models have the same layers and heads, so that a layer of one can stand beside the other's."""
    return (a.model.n_layers, a.model.n_heads) == (b.model.n_layers, b.model.n_heads)


def left_out(recipe: StudyRecipe) -> list[str]:
    """Sentences about what was asked for and cannot be done, for the page."""
    recipes, asked, said = recipe.train_recipes(), set(recipe.analyses), []
    reference, others = recipes[0], recipes[1:]
    apart = [own.name for own in others if not share_text(reference, own)]
    if apart and asked & {"match", "spectra"}:
        said.append(
            f"{_listed(apart)} read other tokens than {reference.name}: features are not matched, states not compared."
        )
    by_name = {own.name: own for own in recipes}
    for a, b in recipe.pairs if "spectra" in asked else ():
        if not share_text(by_name[a], by_name[b]):
            said.append(f"{a} and {b} read different tokens: their states are not compared.")
    uneven = [own.name for own in others if share_text(reference, own) and not share_heads(reference, own)]
    if uneven and "match" in asked:
        said.append(f"{_listed(uneven)} have other layers or heads than {reference.name}: features are not matched.")
    if asked & set(OF_RECURRENCE) and any(own.model.extensions.recurrence is None for own in recipes):
        plain = [own.name for own in recipes if own.model.extensions.recurrence is None]
        said.append(f"{_listed(plain)} have no depth recurrence: no mechanism of theirs is turned off.")
    return said


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
