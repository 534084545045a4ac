"""Concept sets: lists of words whose order, circle or map is known, as TOML files."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field, ValidationError, model_validator

from workbench.runs import read_toml, shorten
from workbench.runs.records import Frozen, describe_errors

EMBEDDED_SETS = Path(__file__).parent / "concepts.toml"
MIN_WORDS = 3  # fewer leave no correlation of distances, and no spread of directions
Topology = Literal["ordinal", "cyclic", "geographic", "paired", "free"]
TOPOLOGIES: tuple[str, ...] = get_args(Topology)
# what a topology takes besides words (paired: instead of them)
_TAKES = {
    "ordinal": {"positions"},
    "cyclic": {"positions", "period"},
    "geographic": {"latitudes", "longitudes"},
    "paired": {"pairs"},
    "free": set(),
}


class ConceptSet(Frozen):
    """Words that belong together, and how they lie to each other.

    Raises:
        ValueError: (pydantic's ValidationError) for fewer than 3 words (or pairs), a word twice, empty or with white
            space around it, and fields that the topology does not take, lacks, or that do not fit the words.
    """

    name: str = Field(description="name in tables; in a file, that of its table", min_length=1)
    category: str = Field(description="what each word is, singular: it fills {category} in the prompts", min_length=1)
    topology: Topology = Field(description="how the words lie: on a line, a circle, the globe, in pairs, or free")
    words: tuple[str, ...] = Field(default=(), description="the words, in their order; left out where pairs are given")
    pairs: tuple[tuple[str, str], ...] = Field(default=(), description="paired: [first, second] of each pair")
    positions: tuple[float, ...] = Field(default=(), description="ordinal, cyclic: place of each; 0, 1, 2 … if none")
    period: float | None = Field(default=None, description="cyclic: length of the circle; as many as words", gt=0)
    latitudes: tuple[float, ...] = Field(default=(), description="geographic: degrees north, −90 to 90")
    longitudes: tuple[float, ...] = Field(default=(), description="geographic: degrees east, −180 to 360")
    source: str = Field(default="", description="where the words or coordinates are from")

    @model_validator(mode="after")
    def _fits_together(self) -> ConceptSet:
        given = {name for name in set().union(*_TAKES.values()) if getattr(self, name) not in ((), None)}
        for name in sorted(given - _TAKES[self.topology]):
            raise ValueError(f'{name}: given for topology = "{self.topology}"; expected {_takers(name)}')
        if self.topology == "paired" and self.words:
            raise ValueError("words: given for a paired set; expected pairs alone")
        counted, what = (self.pairs, "pairs") if self.topology == "paired" else (self.words, "words")
        if len(counted) < MIN_WORDS:
            raise ValueError(f"{what}: got {len(counted)}; expected at least {MIN_WORDS}")
        _check_words(self.all_words)
        self._check_places()
        return self

    def _check_places(self) -> None:
        n = len(self.words)
        if self.positions and len(self.positions) != n:
            raise ValueError(f"positions: got {len(self.positions)} for {n} words; expected one each")
        if self.topology == "cyclic" and self.positions and self.period is None:
            raise ValueError("period: missing beside positions; expected the length of the circle they are on")
        if self.topology != "geographic":
            return
        for name, limits in (("latitudes", (-90, 90)), ("longitudes", (-180, 360))):
            degrees = getattr(self, name)
            if len(degrees) != n:
                raise ValueError(f"{name}: got {len(degrees)} for {n} words; expected one each")
            if not all(limits[0] <= value <= limits[1] for value in degrees):
                raise ValueError(f"{name}: got {min(degrees):g} … {max(degrees):g}; expected degrees from {limits}")

    @property
    def all_words(self) -> tuple[str, ...]:
        """Every word once; of pairs the firsts, then the seconds."""
        if self.topology != "paired":
            return self.words
        return tuple(first for first, _ in self.pairs) + tuple(second for _, second in self.pairs)


def read_concepts(path: str | Path = EMBEDDED_SETS) -> tuple[ConceptSet, ...]:
    """The concept sets of a TOML file, a table each; those that come with the package unless told otherwise.

    Raises:
        ValueError: a file that is not there, too large, not TOML or without a set; and naming the set, every unknown,
            missing or unfit field.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"concepts: no file {str(path)!r}; expected a TOML file of concept sets")
    tables = read_toml(path, "concepts")
    if not tables:
        raise ValueError(f"concepts: {path} is empty; expected a table [name] for each set")
    return tuple(parse_set(name, table, f"concepts: {path}") for name, table in tables.items())


def parse_set(name: str, table: Any, source: str = "concepts") -> ConceptSet:
    """The set that one table describes. Raises ValueError naming `source`, the set and every wrong field."""
    if not isinstance(table, dict):
        raise ValueError(f"{source}: {shorten(name)} is a {type(table).__name__}; expected a table [{shorten(name)}]")
    try:
        return ConceptSet.model_validate(table | {"name": name})
    except ValidationError as error:
        unknown = [str(item["loc"][0]) for item in error.errors() if item["type"] == "extra_forbidden"]
        if unknown:
            known = sorted(set(ConceptSet.model_fields) - {"name"})
            near = difflib.get_close_matches(unknown[0], known, n=3, cutoff=0.4) or known
            message = f"unknown key {shorten(repr(unknown[0]))}; nearest: {', '.join(near)}"
        else:
            message = describe_errors(error)
        raise ValueError(f"{source}: [{shorten(name)}] {message}") from None


def choose_sets(offered: Sequence[ConceptSet], names: Sequence[str] | None = None) -> tuple[ConceptSet, ...]:
    """The sets of these names, in the order asked for; all of them for None.

    Raises:
        ValueError: no set, a set offered or asked for twice, or a name that none of them has (the nearest are offered).
    """
    by_name = {one.name: one for one in offered}
    if len(by_name) < len(offered):
        twice = sorted({one.name for one in offered if sum(one.name == other.name for other in offered) > 1})
        raise ValueError(f"concepts: {', '.join(twice)} given twice; expected another name for one of them")
    wanted = list(by_name) if names is None else list(names)
    if not wanted:
        raise ValueError(f"sets: got none; expected some of {', '.join(by_name)}")
    if len(set(wanted)) < len(wanted):
        raise ValueError(f"sets: got {', '.join(wanted)}; expected each once")
    for name in wanted:
        if name not in by_name:
            near = difflib.get_close_matches(name, by_name, n=3, cutoff=0.4) or sorted(by_name)
            raise ValueError(f"sets: no concept set {name!r}; nearest: {', '.join(near)}")
    return tuple(by_name[name] for name in wanted)


def _takers(field: str) -> str:
    return " or ".join(f'"{topology}"' for topology, fields in _TAKES.items() if field in fields)


def _check_words(words: Sequence[str]) -> None:
    seen: dict[str, str] = {}
    for word in words:
        if not word or word != word.strip():
            raise ValueError(f"words: got {shorten(repr(word))}; expected words without white space around them")
        normal = unicodedata.normalize("NFC", word)
        if normal in seen:
            raise ValueError(f"words: {shorten(repr(word))} stands twice; expected each once")
        seen[normal] = word
