"""What text quality is measured with: prompts, words to count and the recall battery, as TOML files."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field, ValidationError, model_validator

from workbench.models.config import Frozen, describe_errors
from workbench.runs import read_toml, shorten

EMBEDDED_PROMPTS = Path(__file__).parent / "prompts.toml"
EMBEDDED_RECALL = Path(__file__).parent / "recall.toml"
MARKERS = Path(__file__).parent / "markers.toml"
Table = TypeVar("Table", bound=Frozen)


class PromptSet(Frozen):
    """Prompts of one kind.

    Raises:
        ValueError: (pydantic's ValidationError) for no prompt, one that is empty or ends in white space, or one twice.
    """

    kind: str = Field(description="name in tables; in a file, that of its table", min_length=1)
    prompts: tuple[str, ...] = Field(description="beginnings of texts, to be gone on with", min_length=1)

    @model_validator(mode="after")
    def _are_usable(self) -> PromptSet:
        _check_strings("prompts", self.prompts)
        return self


class MarkerSet(Frozen):
    """Words and phrases of one kind, counted by their form."""

    kind: str = Field(description="name of the table", min_length=1)
    words: tuple[str, ...] = Field(description="words or phrases in small letters", min_length=1)


class RecallSet(Frozen):
    """One kind of recall: what is said of two people, and the sentence whose last word one of them decides.

    Raises:
        ValueError: (pydantic's ValidationError) for templates without one {name} and one {value}, a question that does
            not end in {value}, fewer than two names or values, or one of them empty or twice.
    """

    kind: str = Field(description="name in tables; in a file, that of its table", min_length=1)
    statement: str = Field(description="what is said of a person, with one {name} and one {value}")
    question: str = Field(description="a sentence with one {name} that ends in {value}")
    names: tuple[str, ...] = Field(description="people; scenario i takes names 2i and 2i + 1", min_length=2)
    values: tuple[str, ...] = Field(description="what a person may have", min_length=2)

    @model_validator(mode="after")
    def _fits_together(self) -> RecallSet:
        for field in ("statement", "question"):
            text = getattr(self, field)
            if text.count("{name}") != 1 or text.count("{value}") != 1:
                raise ValueError(f"{field}: got {shorten(repr(text))}; want one {{name}} and one {{value}}")
        if not self.question.endswith(" {value}"):
            raise ValueError(f"question: got {shorten(repr(self.question))}; want a sentence that ends in ' {{value}}'")
        _check_strings("names", self.names)
        _check_strings("values", self.values)
        return self


@dataclass(frozen=True)
class RecallItem:
    """One question: the text in front of the answer, and the two values of which one is right."""

    kind: str
    scenario: int
    """items of one scenario share names and values, and are no independent evidence"""
    prompt: str
    right: str
    wrong: str


def recall_items(sets: Sequence[RecallSet]) -> list[RecallItem]:
    """Every scenario of every set in its eight forms.

    Scenario i has names 2i and 2i + 1. Its values are v and v + 1 + (i div n_values), counted around the list,
    v = i mod n_values: neighbours first, then values ever further apart. The forms are who is told of first × who has
    which value × who is asked about: each value is right as often as wrong, and as often the first told as the last.
    """
    if isinstance(sets, str) or not all(isinstance(one, RecallSet) for one in sets):
        raise ValueError(f"recall: got {sets!r:.80}; expected what read_recall returns")
    items, scenario = [], 0
    for one in sets:
        n = len(one.values)
        for i in range(len(one.names) // 2):
            names = one.names[2 * i], one.names[2 * i + 1]
            values = one.values[i % n], one.values[(i + 1 + (i // n) % (n - 1)) % n]
            items += [RecallItem(one.kind, scenario, *form) for form in _forms(one, names, values)]
            scenario += 1
    return items


def _forms(one: RecallSet, names: tuple[str, str], values: tuple[str, str]) -> Iterator[tuple[str, str, str]]:
    """(text in front of the answer, right, wrong) of the eight forms of a scenario."""
    for first, swapped, asked in itertools.product((0, 1), repeat=3):
        has = {name: values[i ^ swapped] for i, name in enumerate(names)}
        told = [_fill(one.statement, name, has[name]) for name in (names[first], names[1 - first])]
        question = one.question.removesuffix("{value}").replace("{name}", names[asked])
        yield " ".join([*told, question.rstrip(" ")]), has[names[asked]], has[names[1 - asked]]


def _fill(template: str, name: str, value: str) -> str:
    before, after = template.split("{name}")
    return before.replace("{value}", value) + name + after.replace("{value}", value)


def as_prompts(given: Sequence[PromptSet | str]) -> tuple[PromptSet, ...]:
    """The sets given, texts among them as one set of the kind "custom"; raises ValueError for what is neither, and as
    `PromptSet`."""
    if isinstance(given, str) or not all(isinstance(one, PromptSet | str) for one in given):
        raise ValueError(f"prompts: got {given!r:.80}; expected a list of texts or of what read_prompts returns")
    texts = tuple(one for one in given if isinstance(one, str))
    sets = tuple(one for one in given if isinstance(one, PromptSet))
    if not texts:
        return sets
    _check_strings("prompts", texts)
    return (*sets, PromptSet(kind="custom", prompts=texts))


def read_prompts(path: str | Path = EMBEDDED_PROMPTS) -> tuple[PromptSet, ...]:
    """The prompts of a TOML file, a table per kind; those that come with the package unless told otherwise.

    Raises:
        ValueError: a file that is not there, too large, not TOML or without a table; naming the table, every unknown,
            missing or unfit field; a prompt in two tables.
    """
    sets = tuple(_parse(PromptSet, "prompts", path))
    _check_strings(f"prompts: {path}", [prompt for one in sets for prompt in one.prompts])
    return sets


def read_recall(path: str | Path = EMBEDDED_RECALL) -> tuple[RecallSet, ...]:
    """The recall battery of a TOML file, a table per kind; raises as `read_prompts`."""
    return tuple(_parse(RecallSet, "recall", path))


@cache
def read_markers() -> dict[str, tuple[str, ...]]:
    """The words that are counted by their form, by kind: discourse, dialogue."""
    return {one.kind: one.words for one in _parse(MarkerSet, "markers", MARKERS)}


def _parse(kind: type[Table], what: str, path: str | Path) -> Iterator[Table]:
    for name, table in _read_tables(what, Path(path)).items():
        if not isinstance(table, dict):
            raise ValueError(
                f"{what}: {path}: {shorten(name)} is a {type(table).__name__}; want a table [{shorten(name)}]"
            )
        try:
            yield kind.model_validate(table | {"kind": name})
        except ValidationError as error:
            raise ValueError(f"{what}: {path}: [{shorten(name)}] {describe_errors(error)}") from None


def _read_tables(what: str, path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{what}: no file {str(path)!r}; want a TOML file")
    tables = read_toml(path, what)
    if not tables:
        raise ValueError(f"{what}: {path} is empty; want a table [name] for each kind")
    return tables


def _check_strings(what: str, strings: Sequence[str]) -> None:
    seen: set[str] = set()
    for text in strings:
        if not text or text != text.strip():
            raise ValueError(f"{what}: got {shorten(repr(text))}; want text without white space around it")
        if text in seen:
            raise ValueError(f"{what}: {shorten(repr(text))} stands twice; want each once")
        seen.add(text)
