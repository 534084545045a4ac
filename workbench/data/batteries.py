"""What text quality is measured with: prompts, words to count and batteries of items, as TOML files."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field, ValidationError, model_validator

from workbench.runs import read_toml, shorten
from workbench.runs.records import Frozen, describe_errors

EMBEDDED_PROMPTS = Path(__file__).parent / "prompts.toml"
EMBEDDED_RECALL = Path(__file__).parent / "recall.toml"
EMBEDDED_BATTERIES = tuple(Path(__file__).parent / f"{name}.toml" for name in ("grammar", "cause"))
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
                raise ValueError(f"{field}: got {shorten(repr(text))}; expected one {{name}} and one {{value}}")
        if not self.question.endswith(" {value}"):
            raise ValueError(
                f"question: got {shorten(repr(self.question))}; expected a sentence that ends in ' {{value}}'"
            )
        _check_strings("names", self.names)
        _check_strings("values", self.values)
        return self


class PairSet(Frozen):
    """One kind of minimal pairs: two beginnings, each with the words that go on with it and not with the other.

    Both beginnings of a scenario become an item, in which the other's words are wrong: words are right as often as they
    are wrong, and what does not look at the beginning is right in exactly half of the items.

    Raises:
        ValueError: (pydantic's ValidationError) for no scenario, text that is empty or has white space around it, a
            scenario with equal beginnings or equal words, or an item twice.
    """

    kind: str = Field(description="name in tables; in a file, that of its table", min_length=1)
    scenarios: tuple[tuple[str, str, str, str], ...] = Field(
        description="beginning, its words, the other beginning, its words", min_length=1
    )

    @model_validator(mode="after")
    def _are_pairs(self) -> PairSet:
        for row in self.scenarios:
            prompts, words = row[::2], row[1::2]
            _check_strings("scenarios", prompts)
            _check_strings("scenarios", words)
        _check_strings("scenarios", [f"{row[i]} {row[i + 1]}" for row in self.scenarios for i in (0, 2)])
        return self


ItemSet = RecallSet | PairSet


class Battery(Frozen):
    """Kinds of items that are measured together, and what they are called in tables."""

    name: str = Field(description="name of its measures; of a file, its stem", pattern=r"^[a-z][a-z0-9_]*$")
    sets: tuple[ItemSet, ...] = Field(description="its kinds", min_length=1)


@dataclass(frozen=True)
class Item:
    """The text in front of an answer, and two answers of which one is right."""

    battery: str
    kind: str
    scenario: int
    """items of one scenario share their words, and are no independent evidence"""
    prompt: str
    right: str
    wrong: str


def battery_items(battery: Battery) -> list[Item]:
    """Every scenario of every set: of minimal pairs two items, of recall eight.

    Scenario i of a recall set has names 2i and 2i + 1. Its values are v and v + 1 + (i div n_values), counted around
    the list, v = i mod n_values: neighbours first, then values ever further apart. The forms are who is told of first ×
    who has which value × who is asked about: each value is right as often as wrong, and as often the first told as the
    last.
    """
    scenarios = ((one.kind, forms) for one in battery.sets for forms in _scenarios(one))
    return [Item(battery.name, kind, number, *form) for number, (kind, forms) in enumerate(scenarios) for form in forms]


def _scenarios(one: ItemSet) -> Iterator[list[tuple[str, str, str]]]:
    """(text in front of the answer, right, wrong) of the items of each scenario."""
    if isinstance(one, PairSet):
        for prompt, words, other, others_words in one.scenarios:
            yield [(prompt, words, others_words), (other, others_words, words)]
        return
    n = len(one.values)
    for i in range(len(one.names) // 2):
        names = one.names[2 * i], one.names[2 * i + 1]
        values = one.values[i % n], one.values[(i + 1 + (i // n) % (n - 1)) % n]
        yield list(_forms(one, names, values))


def as_batteries(recall: Sequence[ItemSet] | None, others: Sequence[Battery] | None) -> tuple[Battery, ...]:
    """The recall battery and the others, those that come with the package for None; none for an empty list.

    Raises:
        ValueError: for what is no battery, and two of one name.
    """
    sets = read_recall() if recall is None else recall
    if isinstance(sets, str) or not all(isinstance(one, ItemSet) for one in sets):
        raise ValueError(f"recall: got {recall!r:.80}; expected what read_recall returns")
    given = read_batteries() if others is None else others
    if isinstance(given, str) or not all(isinstance(one, Battery) for one in given):
        raise ValueError(f"batteries: got {given!r:.80}; expected a list of what read_battery returns")
    own = (Battery(name="recall", sets=tuple(sets)),) if sets else ()
    _check_strings("batteries", [one.name for one in (*own, *given)])
    return (*own, *given)


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
    sets = tuple(_parse(lambda _: PromptSet, "prompts", path))
    _check_strings(f"prompts: {path}", [prompt for one in sets for prompt in one.prompts])
    return sets


def read_recall(path: str | Path = EMBEDDED_RECALL) -> tuple[ItemSet, ...]:
    """The recall battery of a TOML file, a table per kind; raises as `read_prompts`."""
    return tuple(_parse(_form_of, "recall", path))


def read_battery(path: str | Path) -> Battery:
    """The battery of a TOML file, a table per kind: of minimal pairs (`scenarios`), or as those of recall.

    It is called as the file is, without .toml.

    Raises:
        ValueError: as `read_prompts`; a name that is not of small letters, digits and _.
    """
    name, sets = Path(path).stem, tuple(_parse(_form_of, "battery", path))
    try:
        return Battery(name=name, sets=sets)
    except ValidationError:
        raise ValueError(
            f"battery: {path} is called {shorten(repr(name))}; expected small letters, digits and _, as in grammar.toml"
        ) from None


def read_batteries(paths: Sequence[str | Path] = ()) -> tuple[Battery, ...]:
    """The batteries beside recall: those that come with the package, each replaced by the file of its name if there is
    one, then the other files'; raises as `read_battery`."""
    own = {one.name: one for one in map(read_battery, EMBEDDED_BATTERIES)}
    given = [read_battery(path) for path in paths]
    _check_strings("battery", [one.name for one in given])
    return tuple((own | {one.name: one for one in given}).values())


def _form_of(table: dict[str, Any]) -> type[RecallSet] | type[PairSet]:
    return PairSet if "scenarios" in table else RecallSet


@cache
def read_markers() -> dict[str, tuple[str, ...]]:
    """The words that are counted by their form, by kind: discourse, dialogue."""
    return {one.kind: one.words for one in _parse(lambda _: MarkerSet, "markers", MARKERS)}


def _parse(form: Callable[[dict[str, Any]], type[Table]], what: str, path: str | Path) -> Iterator[Table]:
    for name, table in _read_tables(what, Path(path)).items():
        if not isinstance(table, dict):
            raise ValueError(
                f"{what}: {path}: {shorten(name)} is a {type(table).__name__}; expected a table [{shorten(name)}]"
            )
        try:
            yield form(table).model_validate(table | {"kind": name})
        except ValidationError as error:
            raise ValueError(f"{what}: {path}: [{shorten(name)}] {describe_errors(error)}") from None


def _read_tables(what: str, path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{what}: no file {str(path)!r}; expected a TOML file")
    tables = read_toml(path, what)
    if not tables:
        raise ValueError(f"{what}: {path} is empty; expected a table [name] for each kind")
    return tables


def _check_strings(what: str, strings: Sequence[str]) -> None:
    seen: set[str] = set()
    for text in strings:
        if not text or text != text.strip():
            raise ValueError(f"{what}: got {shorten(repr(text))}; expected text without white space around it")
        if text in seen:
            raise ValueError(f"{what}: {shorten(repr(text))} stands twice; expected each once")
        seen.add(text)
