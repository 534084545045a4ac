"""A recipe: everything that makes a model, as one frozen record read from TOML."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeGuard

import torch
from pydantic import BaseModel, Field, SerializeAsAny, ValidationError, field_validator, model_validator

from workbench.data.nca import PRESETS, NCAConfig, check_trajectory
from workbench.extend import Settings
from workbench.models.config import AttnRes, ModelConfig, check_size
from workbench.models.text_source import TextSource
from workbench.runs import read_toml, shorten
from workbench.runs.memory import check_memory
from workbench.runs.records import Frozen, describe_errors, join_faults, nearest, nearest_key, within
from workbench.training.interventions import find_intervention, make_interventions, parse_interventions
from workbench.training.monitor import MonitorConfig, check_rank_layers
from workbench.training.optimizers import OptimizerConfig
from workbench.training.schedules import Schedule, check_schedule

RECIPES = Path(__file__).parent.parent / "recipes"


class DataConfig(Frozen):
    """The text a model reads, and the part of it that is kept to judge it by."""

    source: str = Field(
        default="embedded", description="'embedded', a file, a folder, or a hub name NAME[:CONFIG[:SPLIT]]"
    )
    tokenizer: str = Field(
        default="embedded", description="'embedded' (4,096-entry BPE), 'gpt2', a file, a folder or a hub name"
    )
    text_column: str = Field(default="text", description="column of the text where documents are rows")
    documents: Literal["articles"] | None = Field(
        default=None,
        description="articles: rows are lines of WikiText, joined from one article's heading to the next; none: a "
        "document per row, or text file",
    )
    held_out_fraction: float = Field(
        default=0.05, description="share of documents never trained on, without a held_out_split", gt=0, lt=1
    )
    held_out_split: str | None = Field(
        default=None,
        description="official split kept to judge by (validation); none: a share of documents",
        min_length=1,
    )
    n_held_out_windows: int = Field(
        default=64, description="fixed windows of n_ctx tokens that the held-out loss is taken on", ge=1
    )

    @property
    def text(self) -> TextSource:
        """How the text is read and split."""
        return TextSource(self.source, self.text_column, self.held_out_fraction, self.documents, self.held_out_split)


# what stood in a phase before interventions did -> what to write in [[phases.interventions]]
OLDER_FORM = MappingProxyType(
    {
        "vsm": 'kind = "vsm" with on, controller, steering, group_size; and kind = "coherence" with its weight',
        "z_loss": 'kind = "z-loss" with its weight',
        "auxiliary": 'one each of kind = "temporal-difference", "gate-entropy", "thermodynamic", "compression" with '
        "its weight",
    }
)


class Phase(Frozen):
    """One stretch of training with one optimizer; a phase starts with fresh optimizer state."""

    name: str = Field(default="language", description="name in train_log.csv", min_length=1)
    kind: Literal["language", "nca"] = Field(default="language", description="tokens of the text, or of automata")
    n_steps: int = Field(description="optimizer steps", ge=1)
    batch_size: int = Field(description="sequences per micro-batch", ge=1)
    n_accumulation: int = Field(default=1, description="micro-batches per optimizer step", ge=1)
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig, description="what updates which weights")
    schedule: Schedule = Field(default_factory=Schedule, description="learning rate over the phase")
    clip_norm: float | None = Field(
        default=1.0, description="largest norm of the whole gradient; none: not clipped", gt=0
    )
    interventions: tuple[SerializeAsAny[Settings], ...] = Field(
        default=(), description="what acts on the training, in order: tables, each with its kind and settings"
    )
    attn_res: Literal["off", "carry", "reset", "freeze"] = Field(
        default="carry",
        description="routing of an AttnRes model: not used, kept from the phase before, re-initialised (learned "
        "boundaries are kept), or kept with learned boundaries made the nearest list and trained no further",
    )
    nca: NCAConfig | None = Field(
        default=None,
        description="which automata: a preset's name, or settings, in which `preset` names what they change; small if "
        "none; only with kind = nca",
    )
    eval_every: int = Field(default=200, description="steps between held-out losses", ge=1)
    log_every: int = Field(default=10, description="steps between rows of train_log.csv", ge=1)

    @model_validator(mode="before")
    @classmethod
    def _no_older_form(cls, given: Any) -> Any:
        if isinstance(given, dict) and (older := [key for key in OLDER_FORM if given.get(key) is not None]):
            said = "; ".join(f"{key}: write {OLDER_FORM[key]}" for key in older)
            raise ValueError(f"got the form of an earlier version ({said}); expected [[phases.interventions]]")
        return given

    @field_validator("interventions", mode="before")
    @classmethod
    def _of_their_kinds(cls, value: Any) -> Any:
        return parse_interventions(() if value is None else value)  # "none", as for other parts

    @field_validator("nca", mode="before")
    @classmethod
    def _of_that_name(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = {"preset": value}
        if not isinstance(value, dict) or "preset" not in value:
            return value
        if (name := value["preset"]) not in tuple(PRESETS):
            raise ValueError(f"nca: got {shorten(repr(name))}; expected settings, or one of {', '.join(PRESETS)}")
        return PRESETS[name].model_dump() | {key: of for key, of in value.items() if key != "preset"}

    @model_validator(mode="after")
    def _fits_together(self) -> Phase:
        check_schedule(self.schedule, self.n_steps, "schedule")
        if self.nca is not None and self.kind != "nca":
            raise ValueError(f'nca: got settings with kind = "{self.kind}"; expected kind = "nca"')
        return self


class CheckpointConfig(Frozen):
    """When the state is saved, besides at the end and on an interrupt."""

    every: int = Field(default=500, description="steps between checkpoints", ge=1)
    keep: int | None = Field(default=2, description="newest checkpoints kept; none: all", ge=1)


class Recipe(Frozen):
    """Model, data and phases of one training run.

    Raises:
        ValueError: (pydantic's ValidationError) for unknown keys, values out of range, parts that do not fit together.
    """

    name: str = Field(description="the recipe's own name; directories are called by it", min_length=1, max_length=200)
    description: str = Field(default="", description="one line for `workbench recipes`")
    model: ModelConfig = Field(description="the architecture, in TransformerLens's field names")
    data: DataConfig = Field(default_factory=DataConfig, description="text and tokenizer")
    phases: tuple[Phase, ...] = Field(description="stretches of training, in order", min_length=1)
    monitor: MonitorConfig = Field(default_factory=MonitorConfig, description="geometry during training")
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig, description="what is saved when")

    @field_validator("name")
    @classmethod
    def _names_a_directory(cls, name: str) -> str:
        if name.startswith(".") or not name.isprintable() or set(name) & set("/\\:"):
            raise ValueError(
                f"got {shorten(repr(name))}; expected what a directory may be called, no / \\ :, no dot in front"
            )
        return name

    @field_validator("model")
    @classmethod
    def _is_placed_by_the_trainer(cls, model: ModelConfig) -> ModelConfig:
        if model.dtype != torch.float32:
            got = str(model.dtype).removeprefix("torch.")
            raise ValueError(f"dtype: got {got}; expected none: weights are float32, or float64 with --dtype float64")
        if model.device != "cpu":
            raise ValueError(f"device: got {shorten(repr(model.device))}; expected none, and --device")
        return model

    @model_validator(mode="after")
    def _fits_together(self) -> Recipe:
        names = [phase.name for phase in self.phases]
        if len(set(names)) < len(names):
            raise ValueError(f"phases: their names are {names}; expected each name once")
        check_rank_layers(self.monitor, self.model)
        for i, phase in enumerate(self.phases):
            if self.model.n_ctx < 2:
                raise ValueError(f"model.n_ctx: got {self.model.n_ctx}; expected at least 2 for phases.{i}")
            if phase.kind == "nca":
                try:
                    check_trajectory(automata(phase), self.model.n_ctx)
                except ValueError as error:
                    raise ValueError(f"phases.{i}.{error}") from None
            if phase.attn_res == "freeze":
                check_freeze(self, i)
            for own in make_interventions(phase.interventions):
                try:
                    own.check(self.model)
                except ValueError as error:
                    raise ValueError(f"phases.{i}.interventions.{own.name}: {error}") from None
        return self


def check_freeze(recipe: Recipe, index: int) -> None:
    """Raise ValueError unless boundaries were learned in the phase before phase `index`."""
    attn_res = recipe.model.extensions.attn_res
    if attn_res is None or not attn_res.is_learned or index == 0 or recipe.phases[index - 1].attn_res == "off":
        raise ValueError(
            f'phases.{index}.attn_res: got "freeze" without boundaries learned in a phase before; expected '
            'boundaries = "learned" and such a phase, or "carry"'
        )


def automata(phase: Phase) -> NCAConfig:
    """The automata of a phase, the small ones where it names none."""
    return phase.nca or NCAConfig()


def phase_model(recipe: Recipe, index: int) -> ModelConfig:
    """The architecture during phase `index`: the recipe's, called as the recipe, with the name of its tokenizer or the
    automata's vocabulary, and without AttnRes where the phase turns it off."""
    cfg, phase = recipe.model, recipe.phases[index]
    attn_res: AttnRes | None = None if phase.attn_res == "off" else cfg.extensions.attn_res
    changes: dict[str, Any] = {"extensions": cfg.extensions.model_copy(update={"attn_res": attn_res})}
    changes |= {"model_name": recipe.name, "tokenizer_name": recipe.data.tokenizer}
    if phase.kind == "nca":
        changes |= {"d_vocab": automata(phase).d_vocab, "tokenizer_name": None}
    return cfg.model_copy(update=changes)


def n_tokens_per_step(recipe: Recipe, index: int) -> int:
    """Tokens that one optimizer step of phase `index` reads."""
    phase = recipe.phases[index]
    return phase.batch_size * phase.n_accumulation * recipe.model.n_ctx


def check_room(recipe: Recipe, device: str = "cpu", n_processes: int = 1) -> None:
    """Raise ValueError where memory cannot hold the model, or a process's share of a micro-batch: at the very
    least its tokens, and for every layer the residual stream that the backward pass needs."""
    cfg = recipe.model
    for i, phase in enumerate(recipe.phases):
        check_size(phase_model(recipe, i))
        n_rows = phase.batch_size // n_processes
        check_memory(
            f"a micro-batch of {n_rows:,} sequences of {cfg.n_ctx:,} tokens (phases.{i}.batch_size)",
            n_rows * cfg.n_ctx * (8 + 4 * cfg.d_model * cfg.n_layers),
            device,
        )


def recipe_names() -> list[str]:
    """Names of the built-in recipes, sorted; nano forms end in "-nano"."""
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def load_recipe(name: str | Path) -> Recipe:
    """The recipe of that name, in that TOML file, or in the config.toml of a run (its `recipe` table).

    A file with `base = "other"` holds only what differs from that recipe: a built-in name, or a file beside it.

    Raises:
        ValueError: for a name or file that does not exist, that is not TOML, for bases that lead back to themselves,
            and for every unknown or unfit key.
    """
    path = _recipe_file(name, Path())
    return parse_recipe(_read_with_base(path, ()), source=str(path))


def _recipe_file(name: str | Path, folder: Path) -> Path:
    """The file of a built-in recipe, or the file `name`, seen from `folder`."""
    names = recipe_names()
    path = RECIPES / f"{name}.toml" if str(name) in names else folder / name
    try:
        is_there = path.is_file()
    except OSError as error:  # a name that no file can have
        raise ValueError(
            f"recipe: {shorten(repr(str(name)))}: {error.strerror}; expected a recipe's name or a file"
        ) from None
    if not is_there:
        near = difflib.get_close_matches(str(name), names, n=3, cutoff=0.4)
        raise ValueError(f"recipe: no recipe or file {shorten(repr(str(name)))}; nearest: {', '.join(near or names)}")
    return path


def _read_with_base(path: Path, readers: tuple[Path, ...]) -> dict[str, Any]:
    """The settings of a recipe's file, laid over those of its base; `readers` are the files that led here."""
    data = read_toml(path, "recipe")
    if isinstance(data.get("recipe"), dict):
        data = data["recipe"]
    if "base" not in data:
        return data
    base = data.pop("base")
    if not isinstance(base, str):
        raise ValueError(f"{path}: base: got {shorten(repr(base))}; expected a recipe's name or a file")
    if "name" not in data:
        raise ValueError(f"{path}: name is missing; expected one of its own beside base = {shorten(repr(base))}")
    chain, base_file = (*readers, path.resolve()), _recipe_file(base, path.parent)
    if base_file.resolve() in chain:
        raise ValueError(f"{path}: base: got {shorten(repr(base))}, which is based on this file; expected another")
    return _lay_over(_read_with_base(base_file, chain), data)


def _lay_over(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`base` with `changes`: tables key by key, but a table of another `kind` in place of the base's, and "none" (TOML
    has no null) for no value. `phases`, where given, are all of the phases: each starts from the base's phase of that
    name; so are a phase's `interventions`, by name or kind. Other lists are replaced."""
    laid = dict(base)
    for key, value in changes.items():
        below = base.get(key)
        if key == "nca" and isinstance(below, str) and isinstance(value, dict):
            below = {"preset": below}
        if (
            isinstance(value, dict)
            and isinstance(below, dict)
            and value.get("kind", below.get("kind")) == below.get("kind")
        ):
            laid[key] = _lay_over(below, value)
        elif key in ("phases", "interventions") and _are_tables(value) and _are_tables(below):
            named = {_name_of(table): table for table in below}
            laid[key] = [_lay_over(_of_that_kind(named.get(_name_of(table), {}), table), table) for table in value]
        else:
            laid[key] = None if value == "none" else value
    return laid


def _of_that_kind(base: dict[str, Any], table: dict[str, Any]) -> dict[str, Any]:
    """The base's table, unless it says another kind."""
    return base if table.get("kind", base.get("kind")) == base.get("kind") else {}


def _name_of(table: Mapping[str, Any]) -> str:
    """What a phase or an intervention is called."""
    return str(table.get("name") or table.get("kind"))


def _are_tables(value: Any) -> TypeGuard[list[dict[str, Any]]]:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def parse_recipe(data: Mapping[str, Any], source: str = "recipe") -> Recipe:
    """The recipe that nested settings describe. Raises ValueError naming `source` and every wrong key."""
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        unknown = [item["loc"] for item in error.errors() if item["type"] == "extra_forbidden"]
        if unknown:
            said = [f"unknown key '{shorten('.'.join(map(str, at)))}'{nearest_key(Recipe, at)}" for at in unknown]
            raise ValueError(f"{source}: {join_faults(said)}") from None
        raise ValueError(f"{source}: {describe_errors(error)}") from None


def apply_overrides(recipe: Recipe, overrides: Mapping[str, Any]) -> Recipe:
    """The recipe with settings replaced, keys as paths: {"phases.0.n_steps": 10, "model.n_layers": 2}.

    Phases and interventions go by name or by index: `phases.language.interventions.vsm.steering`. A path may lead into
    a part that is absent (`phases.0.nca.n_colours`): the part is created with its defaults. Naming another
    `controller.kind` starts that controller from its defaults.

    Raises:
        ValueError: naming an unknown key and the nearest one, or what no longer fits together.
    """
    data = recipe.model_dump(mode="json")
    for key, value in overrides.items():
        _set(data, key.split("."), value, key)
    return parse_recipe(data, source="set")


def has_setting(recipe: Recipe, key: str) -> bool:
    """Whether `apply_overrides` knows that path in a recipe, whatever the value."""
    try:
        _set(recipe.model_dump(mode="json"), key.split("."), None, key)
    except ValueError:
        return False
    return True


def parse_override(text: str) -> tuple[str, Any]:
    """(key, value) of "key=value": the value as TOML reads it (10, 1e-3, true, [0, 2]), "none", or the bare word.

    Raises:
        ValueError: where there is no key or no "=".
    """
    key, equals, value = text.partition("=")
    key, value = key.strip(), value.strip()
    if not equals or not key:
        raise ValueError(f"set: got {shorten(repr(text))}; expected key=value")
    if value.lower() == "none":
        return key, None
    try:
        return key, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key, value
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"set: {key} cannot be read ({error}); expected a value as TOML writes it, or a word"
        ) from None


def _set(data: Any, parts: list[str], value: Any, key: str) -> None:
    records: list[type[BaseModel]] = [Recipe]
    for depth, part in enumerate(parts):
        is_last = depth == len(parts) - 1
        if isinstance(data, list):
            index: Any = _place(data, part, ".".join(parts[:depth]), key)
            if isinstance(data[index], dict) and "kind" in data[index] and parts[depth - 1] == "interventions":
                records = [find_intervention(data[index]["kind"]).Settings]
        elif isinstance(data, dict):
            index = part
            known = set(data).union(*(record.model_fields for record in records))
            if part in OLDER_FORM and part not in known:
                raise ValueError(f"set {shorten(key)}: write phases.….interventions.KIND.…, {OLDER_FORM[part]}")
            if part not in known:
                raise ValueError(f"set {shorten(key)}: unknown key {shorten(repr(part))}{nearest(part, known)}")
            if is_last and part == "kind" and depth and parts[-2] == "controller" and data.get(part) != value:
                data.clear()  # each controller has its own fields
            if not is_last and data.get(part) is None:
                data[part] = {}
        else:
            raise ValueError(f"set {key}: {'.'.join(parts[:depth])!r} is a single value; expected a key that exists")
        if is_last:
            data[index] = value
            return
        if not isinstance(data, list):  # a phase's or an intervention's name is no key
            records = within(records, part)
        data = data[index]


def _place(tables: list[Any], part: str, at: str, key: str) -> int:
    """The index of a phase or an intervention by its name or index."""
    names = [_name_of(table) for table in tables if isinstance(table, dict)]
    if part in names:
        return names.index(part)
    if not part.isdecimal() or int(part) >= len(tables):
        expected = f"an index from 0 to {len(tables) - 1}" if tables else "none, as there is none"
        expected += f", or one of {', '.join(names)}" if names else ""
        raise ValueError(f"set {shorten(key)}: got {shorten(repr(part))} after {at!r}; expected {expected}")
    return int(part)
