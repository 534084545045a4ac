"""What a study is: which models, how many seeds of each, and which analyses of what size."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from workbench.analyses.sae_train.settings import HeadSaeSettings
from workbench.models.config import Frozen, describe_errors
from workbench.runs import read_toml, shorten
from workbench.training.recipe import RECIPES, Recipe, apply_overrides, load_recipe

STUDIES = RECIPES / "studies"
DEFAULT = "janus-nano"
Analysis = Literal[
    "saes", "ablation", "topology", "attention", "features", "match", "spectra", "probe", "evaluation",
    "text_quality", "mechanisms", "ladder",
]  # fmt: skip
DEFAULT_ANALYSES: tuple[Analysis, ...] = ("saes", "ablation", "topology", "attention", "features", "match")


class Measure(Frozen):
    """How much text each analysis reads and how many draws it takes. Token counts are of windows of the model's n_ctx,
    as many as the text has at most; every table says how many it was."""

    n_eval_tokens: int = Field(default=106_496, description="held-out tokens that SAEs are measured on", ge=1)
    n_ablation_tokens: int = Field(default=16_384, description="held-out tokens of the ablations", ge=1)
    n_topology_tokens: int = Field(default=16_384, description="held-out tokens of topology and attention", ge=1)
    n_atlas_tokens: int = Field(default=65_536, description="held-out tokens that the atlas's contexts come from", ge=1)
    n_contexts: int = Field(default=8, description="contexts a feature in the atlas", ge=1)
    n_permutations: int = Field(default=9999, description="of every test of a concept probe", ge=1)
    n_points: int = Field(
        default=4096, description="held-out tokens of the intrinsic dimension; 0: it is not taken", ge=0
    )
    n_sequences: int = Field(default=64, description="held-out windows that two models' states are compared on", ge=4)
    n_bytes: int = Field(default=200_000, description="held-out text of bits per byte, at most", ge=1)
    n_samples: int = Field(default=4, description="continuations of each prompt", ge=1)
    n_new_tokens: int = Field(default=96, description="tokens of a continuation, at most", ge=1)
    use_int8: bool = Field(default=False, description="bits per byte of the weights after int8 and zlib as well")


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
    analyses: tuple[Analysis, ...] = Field(
        default=DEFAULT_ANALYSES, description="what every model is opened with", min_length=1
    )
    pairs: tuple[tuple[str, str], ...] = Field(
        default=(),
        description="models whose states and spectra are compared, besides each one's with the reference's; the one "
        "that comes earlier in the study first",
    )
    roles: dict[str, str] = Field(
        default_factory=dict,
        description="role in the published claims -> name of the training recipe that plays it; empty: no ledger",
    )
    claims: tuple[str, ...] = Field(
        default=(), description="TOML files of further claims, which the ledger judges behind the published ones"
    )
    sae_l1: tuple[Annotated[float, Field(ge=0)], ...] = Field(
        default=(2.0,), description="sparsity coefficients of the head SAEs", min_length=1
    )
    sae_seeds: tuple[int, ...] = Field(
        default=(0,), description="seeds of the head SAEs, the same for every model", min_length=1
    )
    saes: HeadSaeSettings = Field(
        default_factory=lambda: HeadSaeSettings(normalize="mean_norm"), description="how SAEs are trained and measured"
    )
    measure: Measure = Field(default_factory=Measure, description="how much text and how many draws analyses take")

    @model_validator(mode="after")
    def _fits_together(self) -> StudyRecipe:
        for what, names in (("models", self.models), ("analyses", self.analyses)):
            if len(set(names)) < len(names):
                raise ValueError(f"{what}: got {list(names)}; expected each once")
        for kind in ("features", "match"):
            if kind in self.analyses and "saes" not in self.analyses:
                raise ValueError(f"analyses: {kind!r} reads SAEs; expected 'saes' among them")
        if self.claims and not self.roles:
            raise ValueError(
                f"claims: got {list(self.claims)} without roles; expected roles, by which claims name the models"
            )
        if self.saes.k is not None and any(self.sae_l1):
            raise ValueError(
                f"sae_l1: got {list(self.sae_l1)} for {self.saes.architecture}, which k alone makes sparse; "
                f"expected [0]"
            )
        return self

    @property
    def shown_l1(self) -> float:
        """The coefficient that pages show of a sweep."""
        return middle_of_sweep(self.sae_l1)

    def train_recipes(self) -> list[Recipe]:
        """The training recipes of the models, in order, with the study's settings.

        Raises:
            ValueError: a recipe that does not exist, a setting that none or not all of them have, two of one name, a
                role for a model that is not there, or a pair of such, of one model, or the wrong way round.
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
                    f"pairs: got {shorten(repr(list(pair)))}; "
                    f"expected two of the models in their order, {', '.join(names)}"
                )
        return recipes


def middle_of_sweep(values: Iterable[float]) -> float:
    """The middle one of the values, each counted once: the lower of two; nan without any.

    >>> middle_of_sweep([4.0, 2.0, 2.0])
    2.0
    """
    ranked = sorted(set(values))
    return ranked[(len(ranked) - 1) // 2] if ranked else math.nan


# what a key may be called, at any depth
_KEYS = {*StudyRecipe.model_fields, *Measure.model_fields, *HeadSaeSettings.model_fields}


def study_names() -> list[str]:
    """Names of the studies that come with the package, sorted."""
    return sorted(path.stem for path in STUDIES.glob("*.toml"))


def load_study(source: str | Path | StudyRecipe | None, overrides: Mapping[str, Any] | None = None) -> StudyRecipe:
    """The study of that name or TOML file (none: the default one), with settings replaced.

    overrides: paths to values; "train.KEY" is KEY of every training recipe ({"train.phases.0.n_steps": 10}), other keys
    are the study's own ({"saes.batch_size": 256, "measure.n_contexts": 3}).

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
    if head not in StudyRecipe.model_fields:
        near = difflib.get_close_matches(head, StudyRecipe.model_fields, n=3, cutoff=0.4) or StudyRecipe.model_fields
        raise ValueError(f"set {shorten(key)}: unknown key {shorten(repr(head))}; nearest: {', '.join(near)}")
    if not rest:
        data[head] = value
    elif head in ("train", "saes", "measure", "roles"):
        data[head] = data.get(head, {}) | {rest: value}
    else:
        raise ValueError(f"set {key}: {head!r} is a single value; expected a key that exists")


def _parse(data: Mapping[str, Any], where: str) -> StudyRecipe:
    try:
        return StudyRecipe.model_validate(data)
    except ValidationError as error:
        raise ValueError(f"{where}: {describe_errors(error, _KEYS)}") from None
