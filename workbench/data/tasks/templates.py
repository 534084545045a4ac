"""Templates of prompts: texts with named places that words from lists fill."""

from __future__ import annotations

import re
from collections.abc import Mapping

from pydantic import Field, model_validator

from workbench.data.pairs import Measure
from workbench.data.tasks.records import Pair, Prompt, Span
from workbench.runs import shorten
from workbench.runs.records import Frozen, nearest

PLACE = re.compile(r"\{(\w+)(?:\.(\w+))?(?:@(\w+))?\}")
Word = str | dict[str, str]


class Template(Frozen):
    """A pair of prompts with places {item}, {item.form} or {item@position}."""

    clean: str = Field(description="the prompt that the answer follows", min_length=1)
    corrupt: str = Field(description="the prompt that the foil follows, or neither", min_length=1)
    answer: str | tuple[str, ...] = Field(description="what may follow the clean prompt, the space before it included")
    foil: str | tuple[str, ...] = Field(description="what may follow the corrupt prompt")
    swap: tuple[tuple[str, str], ...] = Field(
        default=(),
        description="items that change places in the mirror; by default clean and corrupt, answer and foil do",
    )
    group: str = Field(default="", description="templates of one group are filled with the same words: one cluster")

    @property
    def texts(self) -> tuple[str, ...]:
        """All that has places."""
        return (self.clean, self.corrupt, *self.answers, *self.foils)

    @property
    def answers(self) -> tuple[str, ...]:
        """The answers as a list."""
        return (self.answer,) if isinstance(self.answer, str) else self.answer

    @property
    def foils(self) -> tuple[str, ...]:
        """The foils as a list."""
        return (self.foil,) if isinstance(self.foil, str) else self.foil


class TaskForm(Frozen):
    """A task as a TOML file has it.

    Raises:
        ValueError: (pydantic's ValidationError) for a place that no item has, an item of no list, a word that is empty
            or stands twice, positions that only one of the two prompts has, or several answers without
            probability_difference.
    """

    about: str = Field(default="", description="one sentence: what decides the answer")
    measure: Measure = Field(
        default="logit_difference",
        description="logit_difference of one answer and one foil, or probability_difference, summed over several",
    )
    words_of: str | None = Field(default=None, description="built-in task whose lists of words are added")
    words: dict[str, tuple[Word, ...]] = Field(
        default={}, description="lists of words; of several forms, tables such as { one = 'key', many = 'keys' }"
    )
    items: dict[str, str] = Field(default={}, description="item -> the list that it is drawn from; of one list, others")
    templates: tuple[Template, ...] = Field(description="pairs of prompts", min_length=1)

    @model_validator(mode="after")
    def _fits_together(self) -> TaskForm:
        if self.words_of is None:  # else when the lists are there
            check_form(self, self.words)
        return self


def check_form(form: TaskForm, words: Mapping[str, tuple[Word, ...]]) -> None:
    """Raise ValueError for lists, items and templates that do not fit together."""
    for name, own in words.items():
        _check_words(name, own)
    for item, name in form.items.items():
        if name not in words:
            raise ValueError(f"items.{shorten(item)}: no list {shorten(repr(name))}{nearest(name, set(words))}")
    for number, template in enumerate(form.templates):
        where = f"templates.{number}"
        for text in template.texts:
            _check_places(where, text, form.items, words)
        if not template.answers or not template.foils:
            raise ValueError(f"{where}: got no answer or no foil; expected at least one of each")
        if form.measure == "logit_difference" and (len(template.answers), len(template.foils)) != (1, 1):
            raise ValueError(
                f"{where}: got {len(template.answers)} answers and {len(template.foils)} foils; expected one of each, "
                "or measure = 'probability_difference'"
            )
        named = [
            {found[3] for found in PLACE.finditer(text) if found[3]} for text in (template.clean, template.corrupt)
        ]
        if odd := named[0] ^ named[1]:
            raise ValueError(f"{where}: the position {min(odd)!r} is in one prompt only; expected it in both")
        if unknown := {item for both in template.swap for item in both} - form.items.keys():
            raise ValueError(f"{where}: swap names {min(unknown)!r}, no item{nearest(min(unknown), set(form.items))}")


def fill(text: str, items: Mapping[str, Word], lists: Mapping[str, str]) -> Prompt:
    """A template's text with words in its places. lists: item -> the list that it is from."""
    out, spans, at = "", [], 0
    for found in PLACE.finditer(text):
        item, form, position = found.groups()
        out += text[at : found.start()]
        word = items[item]
        word = word if isinstance(word, str) else word[form]
        spans.append(Span(len(out), len(out) + len(word), lists[item], position or ""))
        out, at = out + word, found.end()
    return Prompt(out + text[at:], tuple(spans))


def fill_template(template: Template, items: Mapping[str, Word], lists: Mapping[str, str]) -> tuple[Pair, Pair]:
    """A pair and its mirror."""
    pair = _fill_pair(template, items, lists)
    if not template.swap:
        return pair, pair.mirrored()
    other = dict(items)
    for one, two in template.swap:
        other[one], other[two] = items[two], items[one]
    return pair, _fill_pair(template, other, lists)


def _fill_pair(template: Template, items: Mapping[str, Word], lists: Mapping[str, str]) -> Pair:
    answer, foil = (
        tuple(fill(text, items, lists).text for text in texts) for texts in (template.answers, template.foils)
    )
    clean, corrupt = (fill(text, items, lists) for text in (template.clean, template.corrupt))
    return Pair(clean, corrupt, answer, foil, template.clean, items)


def _check_words(name: str, words: tuple[Word, ...]) -> None:
    forms = [set(word) if isinstance(word, dict) else None for word in words]
    if any(own != forms[0] for own in forms):
        raise ValueError(f"words.{shorten(name)}: got words of different forms; expected the same of each")
    seen: set[str] = set()
    for word in words:
        texts = list(word.values()) if isinstance(word, dict) else [word]
        if not texts or any(not text or text != text.strip() for text in texts):
            raise ValueError(f"words.{shorten(name)}: got {word!r:.60}; expected text without white space around it")
        if (key := repr(word)) in seen:
            raise ValueError(f"words.{shorten(name)}: {word!r:.60} stands twice; expected each once")
        seen.add(key)


def _check_places(where: str, text: str, items: Mapping[str, str], words: Mapping[str, tuple[Word, ...]]) -> None:
    if set("{}") & set(PLACE.sub("", text)):
        raise ValueError(
            f"{where}: got {shorten(repr(text))}; expected places such as {{item}} or {{item.form@position}}"
        )
    positions = []
    for found in PLACE.finditer(text):
        item, form, position = found.groups()
        if item not in items:
            raise ValueError(f"{where}: no item {shorten(repr(item))}{nearest(item, set(items))}")
        first = words[items[item]][0] if words[items[item]] else ""
        known = set(first) if isinstance(first, dict) else set()
        if (form or "") not in (known or {""}):
            wanted = f"one of its forms: {', '.join(sorted(known))}" if known else "no form"
            raise ValueError(f"{where}: got {{{item}{'.' if form else ''}{form or ''}}}; expected {wanted}")
        positions += [position] if position else []
    if "end" in positions or len(set(positions)) < len(positions):
        raise ValueError(
            f"{where}: got the positions {positions}; expected each once, and end for the last token alone"
        )
