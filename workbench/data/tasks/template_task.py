"""Tasks of templates: words are drawn that a vocabulary has as one token each, and every template filled with them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from workbench.data.pairs import PairTokens
from workbench.data.tasks.encoding import EncodedPair, LeftOut, encode_pair, find_places, follower, join_pairs
from workbench.data.tasks.records import Pair, Task, TaskUnavailable, check_counts
from workbench.data.tasks.templates import PLACE, TaskForm, Template, Word, check_form, fill, fill_template
from workbench.data.tasks.vocabulary import Vocabulary

DRAWS_PER_PAIR = 20  # at most, for each pair asked for: a draw of words that were drawn before is none
MANY = 10**6  # reasons why none of a template's pairs is left, before those why one is not
Words = Mapping[str, Sequence[Word]]


@dataclass(frozen=True)
class TemplateTask(Task):
    """A task of templates."""

    words: Words = field(default_factory=dict)
    items: Mapping[str, str] = field(default_factory=dict)
    """item -> the list of words that it is drawn from"""
    templates: tuple[Template, ...] = ()

    @classmethod
    def of_form(cls, name: str, form: TaskForm, words: Mapping[str, tuple[Word, ...]] | None = None) -> TemplateTask:
        """The task of a form. words: other lists, beside its own.

        Raises:
            ValueError: as `check_form`.
        """
        own = {**(words or {}), **form.words}
        check_form(form, own)
        return cls(name, form.about, form.measure, own, form.items, form.templates)

    def make(self, vocabulary: Vocabulary, n_pairs: int, rng: np.random.Generator) -> PairTokens:
        """As `Task.make`; pairs of one group of templates with the same words are a cluster."""
        if vocabulary.tokenizer is None:
            raise TaskUnavailable(f"task {self.name}: the model has no tokenizer; expected one, for prompts of words")
        left_out: Counter[str] = Counter()
        groups = [(group, self._usable(vocabulary, group, left_out)) for group in self._groups()]
        groups = [(group, usable) for group, usable in groups if usable is not None]
        made: list[EncodedPair] = []
        seen: set[str] = set()
        for draw in range(DRAWS_PER_PAIR * n_pairs if groups else 0):
            if len(made) >= n_pairs:
                break
            group, usable = groups[draw % len(groups)]
            if (items := self._draw(usable, rng)) is None:
                continue
            twos = [fill_template(template, items, self.items) for template in group]
            texts = {pair.clean.text for two in twos for pair in two}
            if seen.isdisjoint(texts):
                seen |= texts
                made += [own for two in twos for own in _encode_both(vocabulary, two, draw, left_out)]
        made = made[:n_pairs]
        why = "".join(f"left out: {reason}" for reason, _ in left_out.most_common(1))
        check_counts(self.name, len(made), len({own.cluster for own in made}), why)
        return join_pairs(self.name, made, self.measure)

    def _groups(self) -> list[list[Template]]:
        groups: dict[str, list[Template]] = {}
        for number, template in enumerate(self.templates):
            groups.setdefault(template.group or f"#{number}", []).append(template)
        return list(groups.values())

    def _usable(self, vocabulary: Vocabulary, group: Sequence[Template], left_out: Counter[str]) -> Words | None:
        """The words of each item of these templates that are one frequent token in all of them; None where a list has
        fewer than items are drawn from it."""
        used = {found[1] for template in group for text in template.texts for found in PLACE.finditer(text)}
        usable: dict[str, Sequence[Word]] = {}
        for item in sorted(used):
            words, name, reason = [], self.items[item], ""
            for word in self.words[name]:
                try:
                    self._check_word(vocabulary, group, item, word)
                    words.append(word)
                except LeftOut as error:
                    reason = str(error)
                    left_out[reason] += 1
            if len(words) < sum(self.items[other] == name for other in used):
                left_out[f"of {len(self.words[name])} {name} {len(words)} are one frequent token; {reason}"] += MANY
                return None
            usable[item] = words
        return usable

    def _check_word(self, vocabulary: Vocabulary, group: Sequence[Template], item: str, word: Word) -> None:
        """Raise LeftOut for a word that is not one frequent token where this item stands, with the first words of the
        other items' lists in their places."""
        items = {other: self.words[name][0] for other, name in self.items.items() if self.words[name]} | {item: word}
        marked = {other: "it" if other == item else "" for other in self.items}
        for template in group:
            prompts = [fill(text, items, marked) for text in (template.clean, template.corrupt)]
            for prompt in prompts:
                find_places(vocabulary, prompt, "it")
            for text in (*template.answers, *template.foils):
                filled = fill(text, items, marked)
                if any(span.list_name == "it" for span in filled.spans):
                    follower(vocabulary, filled.text, [prompt.text for prompt in prompts])

    def _draw(self, usable: Words, rng: np.random.Generator) -> dict[str, Word] | None:
        """A word for each item, those of one list all different; None where none is left."""
        items: dict[str, Word] = {}
        for item, words in usable.items():
            taken = [other for own, other in items.items() if self.items[own] == self.items[item]]
            free = [word for word in words if word not in taken]
            if not free:
                return None
            items[item] = free[int(rng.integers(len(free)))]
        return items


def _encode_both(
    vocabulary: Vocabulary, two: tuple[Pair, Pair], cluster: int, left_out: Counter[str]
) -> list[EncodedPair]:
    """A pair and its mirror, or neither."""
    try:
        return [encode_pair(vocabulary, pair, cluster) for pair in two]
    except LeftOut as error:
        left_out[str(error)] += 1
        return []
