"""What a study is: which models, how many seeds of each, and which analyses with which settings."""

from __future__ import annotations

import difflib
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, field_validator, model_validator

from reports.study import AT
from workbench.analyses import find_analysis
from workbench.extend import Analysis, Settings
from workbench.runs import read_toml, shorten
from workbench.runs.records import Frozen, describe_errors
from workbench.training.boundaries import resolve_boundaries
from workbench.training.recipe import RECIPES, Recipe, apply_overrides, has_setting, load_recipe

STUDIES = RECIPES / "studies"
DEFAULT = "janus-nano"
DEFAULT_ANALYSES = ("sae-train", "ablate", "topology", "attention", "attention-patterns", "atlas", "match")
SIZE_LETTERS = f"{string.ascii_letters}{string.digits}._-"
# keys of older recipes -> what to write now
MOVED = {
    "sae_l1": "[settings.sae-train] l1 = …",
    "sae_seeds": "[settings.sae-train] seeds = …",
    "saes": "[settings.sae-train] …",
    "measure": "[settings.ANALYSIS] …, such as [settings.ablate] n_tokens = …",
}


class StudyRecipe(Frozen):
    """Models, seeds and analyses of one study."""

    name: str = Field(description="the study's own name", min_length=1)
    title: str = Field(default="", description="headline of the page; the name by default")
    description: str = Field(default="", description="one line")
    models: tuple[str, ...] = Field(
        description="training recipes, names or files; the first is the reference", min_length=1
    )
    n_seeds: int = Field(default=1, description="trainings of each model, from seeds 0, 1, …", ge=1)
    train: dict[str, Any] = Field(
        default_factory=dict, description="settings replaced in every training recipe, by path"
    )
    sizes: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="name of a size -> settings replaced in the training recipes that have them, by path; each model "
        "is then trained at each size, as MODEL@SIZE, and pairs are of one size",
    )
    analyses: tuple[str, ...] = Field(
        default=DEFAULT_ANALYSES, description="what every model is opened with, by name", min_length=1
    )
    pairs: tuple[tuple[str, str], ...] = Field(
        default=(),
        description="models that analyses of pairs compare, besides each one with the reference; the one that comes "
        "earlier in the study first",
    )
    roles: dict[str, str] = Field(
        default_factory=dict,
        description="role in the published claims -> name of the training recipe that plays it; empty: no ledger",
    )
    claims: tuple[str, ...] = Field(
        default=(), description="TOML files of further claims, which the ledger judges behind the published ones"
    )
    settings: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="analysis -> its settings, where they are not the defaults"
    )

    @model_validator(mode="before")
    @classmethod
    def _refuse_moved(cls, data: Any) -> Any:
        for key in data if isinstance(data, dict) else ():
            if key in MOVED:
                raise ValueError(f"{key}: settings lie with their analysis; expected {MOVED[key]}")
        return data

    @field_validator("analyses")
    @classmethod
    def _names_analyses(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(find_analysis(name).name for name in names)

    @field_validator("sizes")
    @classmethod
    def _names_sizes(cls, sizes: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for name in sizes:
            if not name or not set(name) <= set(SIZE_LETTERS):
                raise ValueError(f"got a size {shorten(repr(name))}; expected letters, digits, '.', '_' and '-'")
            for key, value in sizes[name].items():
                if isinstance(value, dict) and "." not in key:
                    raise ValueError(
                        f"{shorten(name)}: got a table {shorten(repr(key))}; expected paths in quotes, such as "
                        '"model.d_model" = 64'
                    )
        return sizes

    @field_validator("settings")
    @classmethod
    def _fits_analyses(cls, settings: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        found = {}
        for name, values in settings.items():
            analysis = find_analysis(name)
            try:
                analysis.settings.model_validate(values)
            except ValidationError as error:
                raise ValueError(f"{name}: {describe_errors(error, analysis.settings.model_fields)}") from None
            found[analysis.name] = values
        return found

    @model_validator(mode="after")
    def _fits_together(self) -> StudyRecipe:
        for what, names in (("models", self.models), ("analyses", self.analyses)):
            if len(set(names)) < len(names):
                raise ValueError(f"{what}: got {list(names)}; expected each once")
        if self.claims and not self.roles:
            raise ValueError(
                f"claims: got {list(self.claims)} without roles; expected roles, by which claims name the models"
            )
        for analysis in self.opened_with():
            for name in analysis.needs:
                if name not in self.analyses:
                    raise ValueError(f"analyses: {analysis.name!r} reads {name!r}; expected {name!r} among them")
        return self

    def opened_with(self) -> list[Analysis]:
        """The analyses, each behind those that it needs, else in the order of their names."""
        ordered: dict[str, Analysis] = {}

        def visit(name: str) -> None:
            analysis = find_analysis(name)
            for needed in analysis.needs:
                if needed in self.analyses:
                    visit(needed)
            ordered.setdefault(name, analysis)

        for name in sorted(self.analyses):
            visit(name)
        return list(ordered.values())

    def settings_of(self, analysis: str) -> Settings:
        """The settings of an analysis, defaults filled in."""
        return find_analysis(analysis).settings.model_validate(self.settings.get(analysis, {}))

    def train_recipes(self) -> list[Recipe]:
        """The training recipes of the models, in order and size by size, with the study's settings.

        Raises:
            ValueError: a recipe that does not exist, a setting that none or not all of them have, one of a size that
                none has, two of one name, a role for a model that is not there, or a pair of such, of one model, or
                the wrong way round.
        """
        recipes = [apply_overrides(load_recipe(name), self.train) for name in self.models]
        names = [recipe.name for recipe in recipes]
        if len(set(names)) < len(names):
            raise ValueError(f"models: their recipes are called {names}; expected each name once")
        for role, name in self.roles.items():
            if name not in names:
                raise ValueError(
                    f"roles.{shorten(role)}: got {shorten(repr(name))}; expected one of the models, {', '.join(names)}"
                )
        for pair in self.pairs:
            places = [names.index(name) for name in pair if name in names]
            if len(places) < 2 or places[0] >= places[1]:
                raise ValueError(
                    f"pairs: got {shorten(repr(list(pair)))}; expected two of the models in their order, "
                    f"{', '.join(names)}"
                )
        sized = [own for size in self.sizes for own in self._at_size(recipes, size)] if self.sizes else recipes
        return [resolve_boundaries(own) for own in sized]

    def _at_size(self, recipes: list[Recipe], size: str) -> list[Recipe]:
        """The training recipes at a size, each with those of its settings that it has."""
        has = {key: [has_setting(own, key) for own in recipes] for key in self.sizes[size]}
        for key, known in has.items():
            if key == "name" or not any(known):
                raise ValueError(
                    f"sizes.{shorten(size)}: got {shorten(repr(key))}; expected a setting that a model has"
                )
        found = []
        for i, own in enumerate(recipes):
            if AT in own.name:
                raise ValueError(f"sizes: got a model {shorten(repr(own.name))}; expected no {AT!r} in its name")
            changes = {key: value for key, value in self.sizes[size].items() if has[key][i]}
            try:
                found.append(apply_overrides(own, {"name": f"{own.name}{AT}{size}"} | changes))
            except ValueError as error:
                raise ValueError(f"sizes.{shorten(size)}: {error}") from None
        return found

    def size_of(self, model: str) -> str:
        """The size of a model of that name in the tables; "" in a study without sizes."""
        return model.partition(AT)[2] if self.sizes else ""

    def references(self, models: Sequence[str]) -> dict[str, str]:
        """Model -> the one that it is compared with: the first of its size."""
        first: dict[str, str] = {}
        return {name: first.setdefault(self.size_of(name), name) for name in models}

    def roles_at(self, size: str) -> dict[str, str]:
        """Role -> the model's name in the tables, at a size; "" in a study without sizes."""
        return {role: f"{name}{AT}{size}" if size else name for role, name in self.roles.items()}


def study_names() -> list[str]:
    """Names of the studies that come with the package, sorted."""
    return sorted(path.stem for path in STUDIES.glob("*.toml"))


def load_study(source: str | Path | StudyRecipe | None, overrides: Mapping[str, Any] | None = None) -> StudyRecipe:
    """The study of that name or TOML file (none: the default one), with settings replaced.

    overrides: paths to values; "train.KEY" is KEY of every training recipe ({"train.phases.0.n_steps": 10}),
    "settings.ANALYSIS.KEY" a setting of an analysis ({"settings.sae-train.batch_size": 256}), "sizes.SIZE.KEY" KEY of
    the training recipes at a size, other keys are the study's own.

    Raises:
        ValueError: a study that does not exist, is not TOML, or has an unknown or unfit key.
    """
    if isinstance(source, StudyRecipe):
        data, where = source.model_dump(mode="json"), source.name
    else:
        data, where = _read(DEFAULT if source is None else source)
    for key, value in (overrides or {}).items():
        _replace(data, key, value)
    return _parse(data, where)


def _read(source: str | Path) -> tuple[dict[str, Any], str]:
    names = study_names()
    path = STUDIES / f"{source}.toml" if str(source) in names else Path(source)
    if not path.is_file():
        near = difflib.get_close_matches(str(source), names, n=3, cutoff=0.4) or names
        raise ValueError(f"study: no study or file {shorten(repr(str(source)))}; nearest: {', '.join(near)}")
    data = read_toml(path, "study")
    # the config.toml of a study's directory holds the recipe as a table
    return (data["recipe"] if isinstance(data.get("recipe"), dict) else data), str(path)


def _replace(data: dict[str, Any], key: str, value: Any) -> None:
    head, _, rest = key.partition(".")
    if head in MOVED:
        raise ValueError(f"set {shorten(key)}: settings lie with their analysis; expected {MOVED[head]}")
    if head not in StudyRecipe.model_fields:
        near = difflib.get_close_matches(head, StudyRecipe.model_fields, n=3, cutoff=0.4) or StudyRecipe.model_fields
        raise ValueError(f"set {shorten(key)}: unknown key {shorten(repr(head))}; nearest: {', '.join(near)}")
    if not rest:
        data[head] = value
    elif head == "settings":
        name, _, setting = rest.partition(".")
        if not setting:
            raise ValueError(f"set {shorten(key)}: names no setting; expected settings.ANALYSIS.KEY")
        name = find_analysis(name).name
        own = data.get(head, {})
        data[head] = own | {name: own.get(name, {}) | {setting: value}}
    elif head in ("train", "roles"):
        data[head] = data.get(head, {}) | {rest: value}
    elif head == "sizes":
        size, _, setting = rest.partition(".")
        tables = data.get(head, {})
        below = tables.get(size, {}) if isinstance(tables, dict) else None
        if not setting or not isinstance(below, dict):
            raise ValueError(f"set {shorten(key)}: names no setting of a size; expected sizes.SIZE.KEY")
        data[head] = tables | {size: below | {setting: value}}
    else:
        raise ValueError(f"set {key}: {head!r} is a single value; expected a key that exists")


def _parse(data: Mapping[str, Any], where: str) -> StudyRecipe:
    try:
        return StudyRecipe.model_validate(data)
    except ValidationError as error:
        raise ValueError(f"{where}: {describe_errors(error, StudyRecipe.model_fields)}") from None
