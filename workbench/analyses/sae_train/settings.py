"""Settings of SAEs: the dictionary, its training, its measuring, and what it is trained on. Loads no torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import product
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import Field, ValidationInfo, field_serializer, field_validator, model_validator

from workbench.extend import Integers, Names, Numbers, Settings

if TYPE_CHECKING:
    from workbench.models.config import ModelConfig

A_PAIR = "ln2.hook_normalized:hook_mlp_out"  # of which errors tell
OPTIONS = ("k", "widths", "gate_detach", "aux_coefficient")  # each is for the architectures that read it
SEVERAL = ("hook", "architecture", "activation", "expansion", "k")  # settings whose values make kinds of SAEs


class Kind(NamedTuple):
    """One kind of the SAEs that are trained side by side, which is a stack of its own."""

    hook: str
    """of transcoders IN:OUT"""
    architecture: str
    expansion: int
    k: float | None
    """None where nothing reads it"""
    activation: str | None = None
    """None where nothing reads it, or none is given"""

    @property
    def hooks(self) -> tuple[str, ...]:
        """The hook, or what a transcoder reads and what it reconstructs."""
        return hooks_of(self.hook)

    @property
    def is_penalised(self) -> bool:
        """Whether l1 makes it sparse, and not k alone."""
        return is_penalised(self.architecture, self.activation)

    def called(self, d_in: int) -> str:
        """Its name, that of its folder; a colon would be a host's in some commands, and is no character of a file's
        name on some systems."""
        own = ("-to-".join(self.hooks), self.architecture, self.activation, str(self.expansion * d_in))
        return "-".join(part for part in own if part) + ("" if self.k is None else f"-k{self.k:g}")


class TargetSettings(Settings):
    """On what, and how often."""

    layers: Integers | None = Field(
        default=None,
        description="layers, such as 0,2,5-7; by default all",
        json_schema_extra={"flags": ["--layer"]},
    )
    heads: Integers | None = Field(default=None, description="heads, such as 0,2,5-7; by default all")
    l1: Numbers = Field(
        default=(2.0,),
        description="sparsity coefficients, several of which make a sweep; 0 where k makes an SAE sparse",
        min_length=1,
    )
    seeds: Integers = Field(default=(0,), description="seeds of the SAEs, such as 0-2", min_length=1)
    hook: tuple[str, ...] = Field(
        default=("z",),
        description="z (one SAE per head, the default), z_concat (one per layer), or a hook of a block: "
        "hook_resid_post; for transcoders IN:OUT, such as ln2.hook_normalized:hook_mlp_out; several are fed by the "
        "same forward passes; repeatable",
        min_length=1,
    )
    shards: Path | None = Field(
        default=None, description="directory of a harvest of training text, whose activations are read instead"
    )


class DictionarySettings(Settings):
    """What an SAE is."""

    architecture: Names = Field(
        default=("relu",),
        description="relu, gated or jumprelu, which l1 makes sparse; topk, batchtopk or matryoshka, which k does; or a "
        "plug-in's; for a hook IN:OUT transcoder or skip_transcoder; several, such as relu,topk, train side by side",
        min_length=1,
    )
    activation: Names | None = Field(
        default=None,
        description="for transcoder and skip_transcoder: relu (by default) or jumprelu, which l1 makes sparse; topk or "
        "batchtopk, which k does; several, such as relu,topk, train side by side",
        min_length=1,
    )
    k: Numbers | None = Field(
        default=None,
        description="features kept per token, for topk, batchtopk and matryoshka, and transcoders with one of these; "
        "several, such as 8,16,32, make a sweep",
        min_length=1,
    )
    widths: Integers | None = Field(
        default=None,
        description="for matryoshka: numbers of first features that reconstruct by themselves, rising to d_sae, such "
        "as 64,256,512; by default d_sae/16, /8, /4, /2 and d_sae",
    )
    gate_detach: bool | None = Field(
        default=None,
        description="for gated: whether what the gates learn from leaves the decoder alone; by default it does",
    )
    aux_coefficient: float | None = Field(
        default=None,
        description="for matryoshka: weight of the dead features' reconstruction of what the living leave; by default "
        "1/32",
        ge=0,
    )
    expansion: Integers = Field(
        default=(8,),
        description="features per dimension of the input, d_sae / d_in; several, such as 8,16, train side by side",
        min_length=1,
    )
    use_unit_norm_decoder: bool = Field(
        default=False, description="hold decoder rows at norm 1; else l1 weighs each activation by its row's norm"
    )
    normalize: Literal["none", "mean_norm"] = Field(
        default="mean_norm",
        description="how inputs are scaled: mean_norm trains on x·√d_in/mean‖x‖, so that one l1 means the same for "
        "every head, and folds the scale away",
    )


class OptimisationSettings(Settings):
    """How it is trained."""

    n_train_tokens: int | None = Field(
        default=1_048_576,
        description="tokens an SAE is trained on, read again where there are fewer; with shards by default as many as "
        "count of theirs",
        ge=1,
        le=2**63 - 1,  # steps are counted in 64 bits
    )
    batch_size: int = Field(default=1024, description="tokens per step", ge=1)
    buffer_tokens: int = Field(default=32768, description="tokens shuffled together in memory", ge=1)
    lr: float = Field(default=3e-3, description="peak learning rate of Adam", gt=0)
    schedule: Numbers = Field(
        default=(0.1, 0.3),
        description="shares of steps, 0 to .5: the first, while lr and l1 rise; the last, while lr falls",
        min_length=2,
        max_length=2,
    )
    n_resamples: int = Field(
        default=2, description="times that dead features are resampled, in the first two thirds", ge=0
    )
    dead_alarm: float = Field(
        default=0.5, description="share of dead features above which an alarm is given; 1: none is", ge=0, le=1
    )
    use_bf16: bool = Field(default=False, description="multiply in bfloat16; weights stay float32")
    use_compile: bool | None = Field(
        default=None, description="compile the step's arithmetic; by default where it gains, in long bfloat16 trainings"
    )

    @field_validator("schedule")
    @classmethod
    def _are_shares(cls, shares: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0 <= share <= 0.5 for share in shares):
            raise ValueError(f"got {list(shares)}; expected shares of 0 to .5")
        return shares

    @model_validator(mode="after")
    def _a_batch_fits(self) -> OptimisationSettings:
        for name in ("buffer_tokens", "n_train_tokens"):
            n = getattr(self, name)
            if n is not None and n < self.batch_size:
                raise ValueError(f"{name}: got {n}; expected at least batch_size = {self.batch_size}")
        return self


class MeasuringSettings(Settings):
    """What it is measured on."""

    n_eval_tokens: int = Field(default=106_496, description="held-out tokens to measure on, at most", ge=1)
    n_ce_tokens: int = Field(default=8192, description="held-out tokens that ce_recovered is measured on", ge=2)
    include_special: bool = Field(
        default=False, description="train and measure on position 0 of each window and on special tokens as well"
    )


class HeadSaeSettings(MeasuringSettings, OptimisationSettings, DictionarySettings, TargetSettings):
    """What is trained, and how."""

    @field_validator("*", mode="before")
    @classmethod
    def _no_number_is_text(cls, value: Any, info: ValidationInfo) -> Any:
        numbers = (int, float, int | None, float | None)
        if isinstance(value, str) and cls.model_fields[str(info.field_name)].annotation in numbers:
            raise ValueError(f"got {value[:40]!r}; expected a number")
        return value

    @field_validator(*SEVERAL, mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any, info: ValidationInfo) -> Any:
        return listed(value) if info.field_name == "hook" or not isinstance(value, str) else value

    @field_serializer(*SEVERAL)
    def _a_list_of_one_is_one(self, value: tuple[Any, ...] | None) -> Any:
        return value[0] if value is not None and len(value) == 1 else value

    @model_validator(mode="before")
    @classmethod
    def _follow_others(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        named, activations = listed(given.get("architecture", "relu")), listed(given.get("activation")) or (None,)
        forms = [(str(name), own if own is None else str(own)) for name in named for own in activations]
        own: dict[str, Any] = {} if any(is_penalised(*form) for form in forms) else {"l1": (0.0,)}
        if given.get("shards") is not None:
            own["n_train_tokens"] = None
        return own | given

    @model_validator(mode="after")
    def _fit_together(self) -> HeadSaeSettings:
        check_numbers("seeds", self.seeds)
        self._check_partners()
        check_coefficients(self.l1, self.kinds)
        for name in ("hook", "architecture", "activation"):
            given = getattr(self, name) or ()
            if len(set(given)) < len(given):
                raise ValueError(f"{name}: got {list(given)}; expected each once")
        for name in ("expansion", "k"):
            given = getattr(self, name) or (1,)
            check_numbers(name, given)
            if min(given) <= 0:
                raise ValueError(f"{name}: got {list(given)}; expected numbers above 0")
        return self

    def _check_partners(self) -> None:
        """Raise ValueError for a hook that no architecture is for, or an architecture without a hook."""
        from sae.architectures import find_architecture  # torch

        for hook in self.hook:
            parts = hooks_of(hook)
            if len(parts) > 2 or (len(parts) > 1 and not all(parts)):
                raise ValueError(f"hook: got {hook!r}; expected a hook, or two as IN:OUT, such as {A_PAIR}")
        for is_pair in (True, False):
            hooks = [own for own in self.hook if (len(hooks_of(own)) > 1) == is_pair]
            architectures = [own for own in self.architecture if find_architecture(own).reads_pair == is_pair]
            if hooks and not architectures:
                wanted = "a transcoder's architecture" if is_pair else "an architecture that reads one hook"
                said = f"hook: got {', '.join(hooks)} for {', '.join(self.architecture)}"
                raise ValueError(f"{said}; expected {wanted} for it")
            if architectures and not hooks:
                wanted = f"a hook IN:OUT, such as {A_PAIR}," if is_pair else "a single hook, such as hook_mlp_out,"
                said = f"architecture: got {', '.join(architectures)} for hook {', '.join(self.hook)}"
                raise ValueError(f"{said}; expected {wanted} for it")

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds of SAEs: each hook with each architecture, transcoders with a hook IN:OUT and others with a single
        one, each expansion and, where they are read, each activation and each k."""
        from sae.architectures import find_architecture  # torch

        found = []
        for hook, architecture, expansion in product(self.hook, self.architecture, self.expansion):
            if find_architecture(architecture).reads_pair == (len(hooks_of(hook)) > 1):
                forms = [Kind(hook, architecture, expansion, None, own) for own in self._activations_of(architecture)]
                found += [form._replace(k=k) for form in forms for k in self.options_of(form)["k"] or (None,)]
        return tuple(found)

    def _activations_of(self, architecture: str) -> tuple[str | None, ...]:
        """As `options_of`."""
        from sae.architectures import find_architecture  # torch

        is_read = [name for name in self.architecture if "activation" in find_architecture(name).options]
        return (self.activation or (None,)) if architecture in is_read or not is_read else (None,)

    def options_of(self, kind: Kind) -> dict[str, Any]:
        """The options that a kind's architecture is given: those that it reads, and those that none of all does, which
        it refuses."""
        from sae.architectures import find_architecture  # torch

        forms = [(name, own) for name in self.architecture for own in self._activations_of(name)]
        read = {option for form in forms for option in find_architecture(*form).options}
        own = find_architecture(kind.architecture, kind.activation).options
        return {name: getattr(self, name) if name in own or name not in read else None for name in OPTIONS}

    def coefficients_of(self, kind: Kind) -> tuple[float, ...]:
        """The sweep of l1 of a kind: 0 alone where l1 makes nothing sparse."""
        return tuple(self.l1) if kind.is_penalised else (0.0,)


def hooks_of(hook: str) -> tuple[str, ...]:
    """The one hook, or the two of IN:OUT."""
    return tuple(hook.split(":"))


def listed(value: Any) -> Any:
    """The words of "a,b"; any other single value as a list of one."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(","))
    return value if value is None or isinstance(value, list | tuple) else (value,)


def check_coefficients(l1: Sequence[float], kinds: Sequence[Kind]) -> None:
    """Raise ValueError unless SAEs of one of these kinds can have each of these sparsity coefficients."""
    check_numbers("l1", l1)
    if any(l1) and not any(kind.is_penalised for kind in kinds):
        names = dict.fromkeys(" ".join(filter(None, (own.activation, own.architecture))) for own in kinds)
        raise ValueError(f"l1: got {list(l1)} for {', '.join(names)}, which k alone makes sparse; expected 0")


def is_penalised(architecture: str, activation: str | None = None) -> bool:
    """Whether l1 makes it sparse, and not k alone. Raises ValueError for what is not known."""
    from sae.architectures import find_architecture  # torch

    return find_architecture(architecture, activation).has_penalty


def check_numbers(what: str, given: Sequence[Any], kind: type = Real) -> None:
    """Raise ValueError unless these are finite numbers (or integers) ≥ 0, each once."""
    is_fit = all(isinstance(n, kind) and not isinstance(n, bool) and 0 <= n < math.inf for n in given)
    if not given or not is_fit or len(set(given)) < len(given):
        wanted = "finite numbers" if kind is Real else "integers"
        raise ValueError(f"{what}: got {list(given)}; expected {wanted} ≥ 0, each once")


def shown_l1(sweep: Iterable[float]) -> float:
    """The coefficient of a sweep that pages and claims show: the middle one, of two the lower; nan for an empty one.

    >>> shown_l1([4.0, 2.0, 2.0])
    2.0
    """
    ranked = sorted(set(sweep))
    return ranked[(len(ranked) - 1) // 2] if ranked else math.nan


def read_l1(sweep: Iterable[float]) -> float:
    """The coefficient of a sweep whose features are read one by one, as in the atlas: the middle one, of two the
    higher, which is the sparser; nan for an empty one.

    >>> read_l1([4.0, 2.0, 2.0])
    4.0
    """
    ranked = sorted(set(sweep))
    return ranked[len(ranked) // 2] if ranked else math.nan


def share_heads(a: ModelConfig, b: ModelConfig) -> bool:
    """Whether two models have the same layers and heads, so that a layer of one can stand beside the other's."""
    return (a.n_layers, a.n_heads) == (b.n_layers, b.n_heads)
