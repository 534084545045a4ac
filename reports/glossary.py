"""The page's glossary: terms marked where they first occur in a section, each with its explanation."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from markupsafe import Markup, escape

FILE = Path(__file__).with_name("glossary.toml")


@dataclass(frozen=True)
class Term:
    """A term of the glossary."""

    key: str  # of its place on the page: "fvu"
    words: tuple[str, ...]  # how it is written; the first is its name
    text: str


@cache
def read_glossary() -> Mapping[str, Term]:
    """Return the terms by each of the words that they are written as."""
    table = tomllib.loads(FILE.read_text(encoding="utf-8"))
    terms = [Term(key, tuple(own["words"]), own["text"]) for key, own in table.items()]
    return {word: term for term in terms for word in term.words}


@cache
def _pattern() -> re.Pattern[str]:
    words = sorted(read_glossary(), key=len, reverse=True)  # "nuclear rank" before "rank"
    # "L0 H3" is a head of layer 0 and no L0
    return re.compile(rf"(?<![\w|.])(?:{'|'.join(map(re.escape, words))})(?![\w|(]|\.\w| H\d)")


class Glossary:
    """What one page has marked: the terms in the order of their first occurrence."""

    def __init__(self) -> None:
        self.used: dict[str, Term] = {}

    def marker(self) -> Callable[[str], Markup]:
        """Return the function that marks the terms of one section's texts, each where it comes first."""
        seen: set[str] = set()

        def mark(text: str) -> Markup:
            parts, end = [], 0
            for found in _pattern().finditer(text):
                term = read_glossary()[found[0]]
                if term.key in seen:
                    continue
                seen.add(term.key)
                self.used.setdefault(term.key, term)
                parts += [escape(text[end : found.start()]), _link(term, found[0])]
                end = found.end()
            return Markup("").join([*parts, escape(text[end:])])

        return mark

    def entries(self) -> list[Term]:
        """Return the terms that were marked, by name."""
        return sorted(self.used.values(), key=lambda term: term.words[0].lower())


def _link(term: Term, word: str) -> Markup:
    return Markup('<a class="term" href="#term-{key}" aria-describedby="term-{key}">{word}</a>').format(
        key=term.key, word=word
    )
