"""What a task is: a rule that makes pairs of prompts, and the pairs as text."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from workbench.data.pairs import Measure, PairTokens

if TYPE_CHECKING:
    from workbench.data.tasks.vocabulary import Vocabulary

MIN_PAIRS = 32
MIN_CLUSTERS = 8


class TaskUnavailable(ValueError):
    """A task that a model's vocabulary or context has not enough pairs for."""


@dataclass(frozen=True)
class Span:
    """Where a filler stands in a prompt, in characters."""

    start: int
    end: int
    list_name: str
    """of the word list that it is from"""
    position: str = ""
    """name of its place, if it has one"""


@dataclass(frozen=True)
class Prompt:
    """A text with the places of its fillers."""

    text: str
    spans: tuple[Span, ...] = ()


@dataclass(frozen=True)
class Pair:
    """Two prompts that differ in what decides the answer."""

    clean: Prompt
    corrupt: Prompt
    answer: tuple[str, ...]
    """what may follow the clean prompt, each one token behind it"""
    foil: tuple[str, ...]
    """what may follow the corrupt one"""
    template: str = ""
    items: Mapping[str, str | dict[str, str]] = field(default_factory=dict)
    """item of the template -> the word drawn for it, or its forms"""

    def mirrored(self) -> Pair:
        """The pair with clean and corrupt, answer and foil exchanged."""
        return Pair(self.corrupt, self.clean, self.foil, self.answer, self.template, self.items)


@dataclass(frozen=True)
class Task(ABC):
    """A rule that makes pairs of prompts."""

    name: str
    about: str = ""
    """one sentence: what decides the answer"""
    measure: Measure = "logit_difference"

    @abstractmethod
    def make(self, vocabulary: Vocabulary, n_pairs: int, rng: np.random.Generator) -> PairTokens:
        """At most n_pairs pairs, an even number, each beside its mirror.

        Raises:
            TaskUnavailable: fewer than MIN_PAIRS pairs or MIN_CLUSTERS clusters.
        """


def check_enough(pairs: PairTokens, why: str = "") -> PairTokens:
    """The pairs, if there are enough for an interval; raises TaskUnavailable as `Task.make`."""
    check_counts(pairs.name, len(pairs), len(pairs.clusters.unique()), why)
    return pairs


def check_counts(name: str, n_pairs: int, n_clusters: int, why: str = "") -> None:
    """Raise TaskUnavailable for too few pairs or clusters; why: what was left out."""
    if n_pairs < MIN_PAIRS or n_clusters < MIN_CLUSTERS:
        raise TaskUnavailable(
            f"task {name}: got {n_pairs} pairs in {n_clusters} clusters; expected at least {MIN_PAIRS} pairs in "
            f"{MIN_CLUSTERS} clusters{'; ' if why else ''}{why}"
        )
