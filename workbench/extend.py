"""What the author of an analysis or of an intervention imports.

An analysis: one file says what it is called, reads, takes, costs and writes. The verb, the Python function, the study's
job, `--dry-run`, `--resume`, the tables and the page follow from that.

    spectral_gap = Analysis(
        name="spectral-gap",
        summary="Ratio of neighbouring singular values of W_O, by layer.",
        settings=GapSettings,
        tables=[Table("spectral_gap", key=("model", "seed", "layer"), columns=[Column("gap", "σ_i / σ_{i+1}")])],
        measure=measure,
    )

An intervention acts on training: one file says what it watches, adds to the loss, reports and remembers.

    class MlpOrthogonality(Intervention):
        class Settings(Settings):
            weight: float = Field(default=0.01, description="weight of the term", ge=0)

        def watch(self, cfg):
            return [f"blocks.{layer}.hook_mlp_out" for layer in range(cfg.n_layers)]

        def terms(self, seen, context):
            ...
            return Terms(loss=self.settings.weight * loss, telemetry={"cos": loss.detach()})

Importing this module loads neither torch nor pandas.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, create_model

from reports.contract import Column, Table, with_twins

if TYPE_CHECKING:
    from types import ModuleType

    import pandas as pd
    import plotly.graph_objects as go
    import torch
    from jaxtyping import Float, Int64
    from torch import Tensor

    from workbench.models import HookedLM
    from workbench.models.config import ModelConfig
    from workbench.models.cross_entropy import Scalar

__all__ = [
    "Analysis", "Column", "Cost", "Documents", "Integers", "Intervention", "Job", "Merged", "Names", "Numbers",
    "Settings", "StepContext", "Subject", "Table", "Terms", "TextSize", "Windows",
]  # fmt: skip

Tables = Mapping[str, "pd.DataFrame"]
Figures = Sequence[Callable[["pd.DataFrame"], "go.Figure"]]
BYTES_PER_TOKEN = 4  # of English, about: how many tokens a text of so many bytes has


# --- settings


class Settings(BaseModel):
    """Settings of an analysis or an intervention, frozen; an unknown key is refused. Every field is a row of the
    documentation and, of an analysis, an option of the verb and a key of `[settings.NAME]` in a study's recipe; of an
    intervention, a key of its table in `[[phases.interventions]]`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    max_n_ctx: ClassVar[int | None] = None
    """tokens per window at most, where n_ctx is not given"""


def parse_integers(value: Any) -> Any:
    """The integers of "0,2,5-7"; None of "all"."""
    if not isinstance(value, str):
        return value
    if value.strip() == "all":
        return None
    numbers: list[int] = []
    for part in value.split(","):
        match = re.fullmatch(r"\s*(\d{1,6})\s*(?:-\s*(\d{1,6})\s*)?", part)
        if match is None:
            raise ValueError(f"got {value!r:.60}; expected all, or numbers and ranges such as 0,2,5-7")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise ValueError(f"got {part.strip()!r}; expected a range that rises")
        numbers += range(first, last + 1)
    return tuple(numbers)


def _parse_numbers(value: Any) -> Any:
    """The numbers of "1,2,4"."""
    if not isinstance(value, str):
        return value
    try:
        return tuple(float(part) for part in value.split(","))
    except ValueError:
        raise ValueError(f"got {value!r}; expected numbers such as 1,2,4") from None


def _parse_names(value: Any) -> Any:
    """The words of "a,b"."""
    return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else value


# lists as an option takes them ("0,2,5-7", "1,2,4", "a,b") and as TOML has them
Integers = Annotated[tuple[int, ...], BeforeValidator(parse_integers)]
Numbers = Annotated[tuple[float, ...], BeforeValidator(_parse_numbers)]
Names = Annotated[tuple[str, ...], BeforeValidator(_parse_names)]


# --- what is read


@dataclass(frozen=True)
class Windows:
    """Held-out text as windows of consecutive tokens that do not overlap, spread evenly over it: the one rule by which
    the verb on a model and the study's job of that model read the same. Gives the settings data, n_ctx and n_tokens,
    or n_sequences where that is what is counted."""

    n_tokens: int | None = None
    n_sequences: int | None = None


@dataclass(frozen=True)
class Documents:
    """Text as documents: the beginning of each, the same share of all. Gives the settings data, split and n_bytes."""

    n_bytes: int = 200_000


_DATA = (
    str | None,
    Field(
        default=None,
        description="text: embedded, a file, a folder or a hub name; by default what the model was trained on, or the "
        "embedded text where that is not known",
    ),
)
_N_CTX = (
    int | None,
    Field(
        default=None,
        description="tokens per window; by default the context that a run of ours was trained with, else the model's, "
        "at most 512",
        ge=2,
    ),
)
_SPLIT = (Literal["held_out", "train", "all"], Field(default="held_out", description="part of the text"))


def _reading_fields(reads: Windows | Documents | None) -> dict[str, Any]:
    if reads is None:
        return {}
    if isinstance(reads, Documents):
        n_bytes = (int, Field(default=reads.n_bytes, description="bytes of text, at most", ge=1))
        return {"data": _DATA, "split": _SPLIT, "n_bytes": n_bytes}
    fields: dict[str, Any] = {"data": _DATA, "n_ctx": _N_CTX}
    if reads.n_tokens is not None:
        fields["n_tokens"] = (int, Field(default=reads.n_tokens, description="held-out tokens, at most", ge=1))
    if reads.n_sequences is not None:
        fields["n_sequences"] = (int, Field(default=reads.n_sequences, description="held-out windows, at most", ge=1))
    return fields


@dataclass(frozen=True)
class TextSize:
    """How much text a cost is of."""

    n_windows: int
    n_ctx: int

    @property
    def n_tokens(self) -> int:
        """Tokens of all windows."""
        return self.n_windows * self.n_ctx


@dataclass(frozen=True)
class Cost:
    """What a measurement takes, by formula. Memory is the peak beyond what the libraries take, the model included."""

    flops: float = 0.0
    bytes_in_memory: float = 0.0
    """of the host, beside what is on the device"""
    bytes_on_device: float = 0.0
    """of the GPU; of the host as well where the device is the CPU"""
    bytes_on_disk: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        """One after the other: work and files add up, the larger peak remains."""
        return Cost(
            self.flops + other.flops,
            max(self.bytes_in_memory, other.bytes_in_memory),
            max(self.bytes_on_device, other.bytes_on_device),
            self.bytes_on_disk + other.bytes_on_disk,
        )


# --- what a measurement is given


@dataclass(frozen=True)
class Subject:
    """A model that is measured, as the rows name it."""

    model: HookedLM
    name: str
    seed: int
    """of its training; of a model that is no run of ours, the job's"""
    source: str = ""
    """as --ckpt names it"""


@dataclass(frozen=True)
class Job:
    """One measurement."""

    models: tuple[Subject, ...]
    settings: Any
    directory: Path
    """where to write what is no table, and the state from which a killed measurement goes on"""
    seed: int = 0
    """of everything random: the training's, unless another is asked for"""
    needs: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)
    """analysis that is read -> its directories, one for each model"""
    cache: Path | None = None
    """where packed tokens are kept; the user's cache by default"""
    device: str = "cpu"
    progress: Callable[[float], None] = lambda share: None
    """takes the share done, 0 to 1"""
    recipe: Any = None
    """of an analysis that takes a recipe: the training recipe"""

    given_tokens: Any = None
    """to read instead of the text that the settings name"""

    @property
    def subject(self) -> Subject:
        """The first model: the only one of an analysis that takes one."""
        return self.models[0]

    def within(self, directory: Path, progress: Callable[[float], None] | None = None) -> Job:
        """The same job in another directory; what was read of the text is kept."""
        own = replace(self, directory=directory, progress=progress or self.progress)
        read = {name: value for name, value in vars(self).items() if name in ("tokens", "texts")}
        vars(own).update(read)
        return own

    @cached_property
    def tokens(self) -> Int64[Tensor, "n n_ctx"]:
        """The held-out windows that the settings ask for, in the first model's vocabulary."""
        return self.windows() if self.given_tokens is None else self.given_tokens

    def windows(
        self, subject: Subject | None = None, split: str | None = None, n_tokens: int | None = None
    ) -> Int64[Tensor, "n n_ctx"]:
        """Windows of a model's text, spread evenly over it: as many as the settings ask for, or as n_tokens make, and
        no more than there are.

        Raises:
            ValueError: a model without tokenizer, a text that cannot be read or is shorter than a window, a window
                longer than the model's context.
        """
        from workbench.data.text_windows import spread_windows

        counts: dict[str, Any] = {"n_tokens": n_tokens}
        if n_tokens is None:
            counts = {name: getattr(self.settings, name, None) for name in ("n_tokens", "n_sequences")}
        model = (subject or self.subject).model
        part = split or getattr(self.settings, "split", "held_out")
        own = {"n_ctx": self.settings.n_ctx, "max_n_ctx": self.settings.max_n_ctx, "split": part, "cache": self.cache}
        return spread_windows(model, self.settings.data, **counts, **own)

    @cached_property
    def texts(self) -> list[str]:
        """The documents that the settings ask for: the beginning of each, the same share of all."""
        from workbench.data.text_windows import spread_documents, text_of
        from workbench.models.tokenizer_files import tokenizer_of

        own = self.settings
        if self.recipe is None:
            model = self.subject.model
            text, tokenizer = text_of(model, own.data), tokenizer_of(model)
        else:
            from workbench.data.corpus import as_trained
            from workbench.data.tokenizer import open_tokenizer

            data = self.recipe.data
            text = data.text if own.data is None else as_trained(own.data, data.text)
            tokenizer = open_tokenizer(data.tokenizer)
        return spread_documents(text, tokenizer, split=own.split, n_bytes=own.n_bytes)


@dataclass(frozen=True)
class Merged:
    """The tables of all models and seeds, for what only all of them together give."""

    tables: dict[str, pd.DataFrame]
    """by name; those of the analyses before this one in the order of the study among them"""
    settings: Any
    directories: tuple[Path, ...]
    """of the measurements, in the order of the tables' rows"""
    directory: Path
    """where files that are no table may be written"""
    configs: Mapping[str, ModelConfig]
    """model -> its configuration, the reference first"""
    references: Mapping[str, str] = field(default_factory=dict)
    """model -> the one that it is compared with, in a study of several sizes the first of its size; empty: the first"""

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """(reference, model) of every model that has another to be compared with, in their order."""
        first = next(iter(self.configs))
        found = [(self.references.get(name, first), name) for name in self.configs]
        return [pair for pair in found if pair[0] != pair[1]]


# --- the record


def _holds(*configs: ModelConfig) -> str:
    return ""


@dataclass(frozen=True)
class Analysis:
    """One analysis: everything that the workbench knows of it."""

    name: str
    """the one name: verb, study job, directory and Python function (`-` and `_` are the same)"""
    summary: str
    """one sentence, what it measures"""
    settings: type[Settings]
    tables: Sequence[Table]
    """those that are given, and behind each that declares `blocks` its twin"""
    measure: Callable[[Job], Tables]
    """the tables of the job's models; what is no table it writes into job.directory"""
    reads: Windows | Documents | None = None
    takes: Literal["model", "pair", "models", "recipe"] = "model"
    """how many models a job has: one; a reference and another; all; or a training recipe and no model"""
    needs: tuple[str, ...] = ()
    """analyses whose directories are read"""
    requires: Callable[..., str] = _holds
    """takes the config of each model; why the analysis does not hold for them, in a sentence, or nothing"""
    cost: Callable[[Any, Any, TextSize], Cost] | None = None
    """what one job takes: (the model's configuration, settings, size of the text) -> cost, by formulas such as those of
    `workbench.models.costs`, without the model; an analysis that takes a recipe is given the recipe"""
    figures: Figures | Mapping[str, Figures] = ()
    """of the first table, for the page, or of several by their names; tables without any are shown as they are"""
    merge: Callable[[Merged], Tables] | None = None
    """tables that only all models together give, or that change by it"""
    tabulate: Callable[[Job], Tables] | None = None
    """the tables again from what `measure` left in the directory, without the model"""
    check: Callable[[Job], None] | None = None
    """raises ValueError for what can be known to fail before a directory is made"""
    notes: Callable[[Any], Sequence[str]] = lambda settings: ()
    """sentences that a reader of the page needs beside its figures"""
    has_common_seed: bool = False
    """whether every model is measured with seed 0 (the same permutations) rather than with its training's"""
    over_training: bool = False
    """whether the verb follows a model over its training (--steps, --revisions): one table of all checkpoints, told
    apart by the column `step`; for an analysis of one model whose rows mean the same at every step"""
    is_first_seed_only: bool = False
    """whether a study measures the first seed of each model and no other"""
    noun: str = ""
    """what its result is called where another analysis needs it: the option --NOUN; the name by default"""
    source_help: str = ""
    """what that option takes, where it is more than a directory of the analysis"""
    facts: Callable[[Path], Mapping[str, Any]] | None = None
    """what the verb says beside the first table: (directory of the tables) -> name and value"""
    page: Callable[[Path, Path], Path] | None = None
    """draws a page of its own: (directory of the tables, file) -> file"""
    function: str = ""
    """`module:name` of the Python function, where it is more than `workbench.NAME(model, **settings) -> tables`"""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", self.name):
            raise ValueError(f"analysis: got the name {self.name!r}; expected lower-case words joined by dashes")
        object.__setattr__(self, "tables", with_twins(self.tables))
        if self.over_training:
            self._check_over_training()
        own = {
            name: value for name, value in _reading_fields(self.reads).items() if name not in self.settings.model_fields
        }
        if own:
            full = create_model(
                self.settings.__name__, __base__=self.settings, __doc__=self.settings.__doc__,
                __module__=self.settings.__module__, **own,
            )  # fmt: skip
            object.__setattr__(self, "settings", full)

    def _check_over_training(self) -> None:
        where = f"analysis: {self.name} is over training and"
        if self.takes != "model" or self.needs:
            raise ValueError(f'{where} takes {self.takes!r}, needs {self.needs}; expected takes="model" and no needs')
        if taken := sorted({"steps", "revisions"} & self.settings.model_fields.keys()):
            raise ValueError(f"{where} has the setting {taken[0]!r}; expected another name: it is the verb's")
        if taken := [own.name for own in self.tables if {"step", "revision"} & {*own.leading}]:
            raise ValueError(f"{where} has steps of its own in {taken[0]}; expected no column step or revision")

    @property
    def python_name(self) -> str:
        """The name as Python spells it."""
        return self.name.replace("-", "_")

    @property
    def option(self) -> str:
        """The option by which a verb takes this analysis's directories."""
        return f"--{self.noun or self.name}"


# --- interventions on training


@dataclass(frozen=True)
class StepContext:
    """The micro-batch that an intervention acts on."""

    model: HookedLM
    step: int | Tensor
    """of the phase, from 0; under a recorded CUDA graph a tensor"""
    n_steps: int
    """of the phase"""
    scalars: Mapping[str, Scalar] = field(default_factory=dict)
    """what the intervention's `schedule` gave for this step; under a recorded CUDA graph tensors, but for zeros"""
    generator: torch.Generator | None = None
    """seeded anew for each micro-batch; every random number of an intervention comes from it"""


@dataclass(frozen=True)
class Terms:
    """What an intervention adds to a micro-batch's loss, and what it reports."""

    loss: Float[Tensor, ""] | None = None
    """added to the loss; None: nothing is. Logged as `<name>.loss`"""
    telemetry: Mapping[str, Float[Tensor, ""]] = field(default_factory=dict)
    """scalars without gradient, logged as `<name>.<key>`: their means over micro-batches and processes, and over the
    steps since the row before. The keys must not depend on the data"""


_Settings = Settings  # by which the class below can name what its own attribute hides


class Intervention:
    """What acts on training in a phase. Its kind is the class's name in lower case with dashes.

    A method that is not overridden does nothing. None may read a tensor's value: on a GPU that would wait for the
    device, and under a recorded CUDA graph it cannot be.
    """

    Settings: ClassVar[type[_Settings]] = _Settings
    kind: ClassVar[str] = ""
    reads_weights: ClassVar[bool] = False
    """whether `terms` reads weights of the model, which FSDP has whole only within their block: refused there"""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.kind = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", cls.__name__).lower()
        own = cls.Settings
        about = "what its columns begin with, where a phase has two of one kind"
        # a dot or a comma would part the column, and a path of --set goes by index where there are digits
        name = Field(default=None, description=about, pattern=r"^[A-Za-z][A-Za-z0-9_-]*$")
        fields: dict[str, Any] = {
            "kind": (Literal[cls.kind], Field(default=cls.kind, description="which intervention this is")),
            "name": (str | None, name),
        }
        about_own = {"__doc__": own.__doc__ or cls.__doc__, "__module__": cls.__module__}
        cls.Settings = create_model(f"{cls.__name__}Settings", __base__=own, **about_own, **fields)
        cls.Settings.__qualname__ = f"{cls.__qualname__}.Settings"  # where pickle finds it

    def __init__(self, settings: Any) -> None:
        self.settings = settings

    @property
    def name(self) -> str:
        """What its columns in train_log.csv begin with: the name in the recipe, else the kind."""
        return self.settings.name or self.kind

    def check(self, cfg: ModelConfig) -> None:
        """Raise ValueError ("key: got …; expected …") for settings that do not fit a model."""

    # --- what happens in a forward pass

    def watch(self, cfg: ModelConfig) -> Sequence[str]:
        """Names of the hooks whose activations `terms` is given."""
        return ()

    def is_watching(self, context: StepContext) -> bool:
        """Whether the hooks are watched in this micro-batch; asked where watching costs (attention maps are formed
        only for who watches them)."""
        return True

    def reduce(self, hook: str, activation: Tensor, context: StepContext) -> Tensor:
        """What is kept of a watched activation, made within the forward pass: the activation itself by default."""
        return activation

    def changes(self, cfg: ModelConfig) -> Sequence[str]:
        """Names of the hooks whose activations `change` replaces."""
        return ()

    def change(self, hook: str, activation: Tensor, context: StepContext) -> Tensor:
        """What takes an activation's place in the forward pass of a training step; never of a measurement."""
        return activation

    def loss_options(self, context: StepContext) -> Mapping[str, Any]:
        """Options of the model's next-token loss: z_loss, entropy_bonus."""
        return {}

    def terms(self, seen: Mapping[str, Tensor], context: StepContext) -> Terms:
        """What is added to the loss and reported. seen: hook -> what `reduce` kept, empty where it is not watching."""
        return Terms()

    # --- over the steps of a phase

    def schedule(self, step: int, n_steps: int) -> Mapping[str, float]:
        """Numbers of a step, such as a weight, for `context.scalars`; logged as `<name>.<key>`."""
        return {}

    def observe(self, telemetry: Mapping[str, Tensor]) -> None:
        """Note the step's telemetry, means over micro-batches and processes: what a controller's next number is of."""

    def state_dict(self) -> dict[str, Any]:
        """What `schedule` depends on beside the step, as JSON holds it."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""


def interventions_of(module: ModuleType) -> list[type[Intervention]]:
    """The interventions that a module defines, and not those that it imports."""
    found = [value for value in vars(module).values() if isinstance(value, type) and issubclass(value, Intervention)]
    return [own for own in found if own.__module__ == module.__name__]
