"""What the ledger says of a claim's outcome, as data: sentences, the conditions under which each is said, and the
numbers that they quote.

    [remarks.basis]
    numbers.residual = { where = { basis = "residual" } }       # the claim's own effect, on other rows
    numbers.share = { ratio = ["residual", "effect"], times = 100 }
    cases = [
        { when = ["effect >= 0"], say = "Cosines do not even fall." },
        { when = ["share < 50"], say = "Of what heads write only {share:.0f} % of the fall is left." },
    ]

The first case is said whose conditions all hold; a condition on a number that was not measured does not hold, and a
sentence that quotes one is not said. Three numbers are always there: `effect` (treated / reference − 1 of a ratio,
treated − reference of a difference), `reference` and `treated` (means over seeds of the claim's own measure).
"""

from __future__ import annotations

import operator
import re
import string
from collections.abc import Collection
from types import MappingProxyType
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from workbench.runs import shorten
from workbench.runs.records import Frozen

Of = Literal[
    "effect", "reference", "treated", "each", "pair", "effect at matched l0", "ratio between seeds"
]  # fmt: skip
OF_MODELS = ("reference", "treated", "each", "pair")
OWN = ("effect", "reference", "treated")
UNITS = ("percent", "factor", "points", "plain")
FORMATS = (*UNITS, "p")  # p: "≤ .0005" where it is the least that the permutations can give
NAME = r"[a-z][a-z0-9_]*"
OPERATORS = MappingProxyType({"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge})
CONDITION = re.compile(rf"({NAME})(?: (<=?|>=?) ({NAME}|-?\d*\.?\d+))?")
LAYERS = re.compile(r"all|first|last|first third|last third|(\d+) of (\d+)")


def _check_layers(text: str) -> str:
    found = LAYERS.fullmatch(text or "all")
    if found is None:
        raise ValueError('expected all, first, last, first third, last third or "9 of 12"')
    if found[1] and int(found[1]) >= int(found[2]):
        raise ValueError("expected a layer, from 0, below the number of layers")
    return text


Layers = Annotated[str, AfterValidator(_check_layers)]


class Change(Frozen):
    """The claim's own measure, read elsewhere."""

    column: str = Field(default="", description="the claim's own unless given")
    where: dict[str, str | float | tuple[str, ...]] = Field(
        default_factory=dict, description="replaces the claim's own of those columns"
    )
    layers: Layers = Field(default="", description="the claim's own unless given")


class Number(Change):
    """A number that a remark quotes or tests: the claim's own measure unless the fields say otherwise."""

    of: Of = Field(
        default="effect",
        description="effect: treated against reference, as the claim's own; reference, treated: of that model; each: "
        "of the model of which a case is said (see `join`); pair: of the rows on both models, or on the claim's pairs, "
        "in a table with model_a and model_b; effect at matched l0: on fvu, along a sweep of l1; ratio between seeds: "
        "the measure of pairs, between seeds of one and the same model. The last two read no other field",
    )
    table: str = Field(default="", description="another table; `where` then stands alone, and `column` is needed")
    reduce: Literal["", "mean", "median", "list", "count"] = Field(
        default="",
        description="over the rows of all seeds at once; by default as the claim's measure, then the mean over seeds",
    )
    up_to: float | None = Field(default=None, description="with reduce: of values up to this alone")
    ratio: tuple[str, str] | None = Field(default=None, description="instead: the first number over the second")
    times: float = Field(default=1.0, description="factor on the number, as 100 for per cent")

    @model_validator(mode="after")
    def _fits_together(self) -> Number:
        if self.table and not self.column:
            raise ValueError(f"column: got none with table {shorten(repr(self.table))}; expected one of its columns")
        if self.reduce and self.of not in OF_MODELS:
            raise ValueError(f"reduce: got {self.reduce!r} with of = {self.of!r}; expected of = {', '.join(OF_MODELS)}")
        if self.up_to is not None and not self.reduce:
            raise ValueError(f"up_to: got {self.up_to:g} without reduce; expected both")
        return self


def names_in(text: str) -> list[str]:
    """The names of the numbers that a text quotes as {name} or {name:format}.

    Raises:
        ValueError: braces that do not pair, or a format that fits no number.
    """
    found = [(name, spec or "") for _, name, spec, _ in string.Formatter().parse(text) if name is not None]
    for name, spec in found:
        if spec not in FORMATS:
            try:
                format(1.0, spec)
            except ValueError:
                raise ValueError(
                    f"got {shorten(f'{{{name}:{spec}}}')}; expected a format of Python's for numbers, or one of "
                    f"{', '.join(FORMATS)}"
                ) from None
    return [name for name, _ in found]


def _check_names(text: str) -> str:
    names_in(text)
    return text


def _check_condition(text: str) -> str:
    if not CONDITION.fullmatch(text):
        raise ValueError('expected "NAME", or "NAME < NUMBER" with <, <=, > or >=')
    return text


Condition = Annotated[str, AfterValidator(_check_condition)]
Text = Annotated[str, AfterValidator(_check_names), Field(min_length=1)]


class Case(Frozen):
    """A sentence, or a part of one, and when it is said."""

    when: tuple[Condition, ...] = Field(
        default=(),
        description='conditions that all hold, "share < 50" or "effect >= reference"; "share" alone: it was measured',
    )
    say: Text = Field(description='the text; "{share:.0f}" quotes a number, as Python formats it or in a unit')


class Remark(Frozen):
    """What is said of a claim's outcome."""

    numbers: dict[str, Number] = Field(
        default_factory=dict, description="name -> a number that the sentences quote or test"
    )
    cases: tuple[Case, ...] = Field(
        default=(), description="the first one that holds is said; if none does, nothing is"
    )
    say: Text = Field(default="{case}", description="the whole, with what the cases say in the place of {case}")
    join: str = Field(
        default="",
        description="if given, a case is said of each of the two models, {role}, and this stands between them",
    )

    @model_validator(mode="after")
    def _names_what_is_there(self) -> Remark:
        known, lists = [*OWN], {name for name, number in self.numbers.items() if number.reduce == "list"}
        each: set[str] = set()
        for name, number in self.numbers.items():
            if not re.fullmatch(NAME, name) or name in (*OWN, "case", "role"):
                raise ValueError(f"numbers: got the name {shorten(repr(name))}; expected another, of a-z, 0-9 and _")
            _refuse_unknown(f"numbers.{name}.ratio", number.ratio or (), [own for own in known if own not in lists])
            if number.of == "each" and not self.join:
                raise ValueError(f"numbers.{name}.of: got 'each' without join; expected the text between two models")
            if number.of == "each" or each & set(number.ratio or ()):
                each.add(name)
            known.append(name)
        if self.join and not self.cases:
            raise ValueError(f"join: got {shorten(repr(self.join))} without cases; expected what is said of each model")
        single = [name for name in known if name not in lists]
        for i, case in enumerate(self.cases):
            for condition in case.when:
                names, sign = re.findall(rf"\b{NAME}", condition), " " in condition
                _refuse_unknown(f"cases.{i}.when", names, single if sign else known)
            _refuse_unknown(f"cases.{i}.say", names_in(case.say), [*known, *(["role"] if self.join else [])])
        of_all = [name for name in known if name not in each]
        _refuse_unknown("say", names_in(self.say), [*of_all, *(["case"] if self.cases else [])])
        return self


def _refuse_unknown(where: str, names: Collection[str], known: Collection[str]) -> None:
    """Raise ValueError for the first of the names that is not known."""
    for name in names:
        if name not in known:
            raise ValueError(f"{where}: got {shorten(repr(name))}; expected one of {', '.join(known)}")
