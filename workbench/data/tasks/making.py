"""Pairs of prompts of a task, for a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from workbench.data.pairs import PairTokens
from workbench.data.tasks.reading import read_task
from workbench.data.tasks.records import MIN_PAIRS, Task
from workbench.data.tasks.vocabulary import Vocabulary, vocabulary_of


def make_pairs(
    model: Any,
    task: str | Path | Task,
    n_pairs: int = 128,
    seed: int = 0,
    *,
    vocabulary: Vocabulary | None = None,
    cache: str | Path | None = None,
) -> PairTokens:
    """Pairs of prompts of a task in a model's vocabulary, each beside its mirror, in which answer and foil are
    exchanged: what does not look at the prompt is right in exactly half of them.

    Fillers are one token in context and, where the text is known that the model was trained on, frequent in it; others
    are left out. Before a prompt comes what the tokenizer itself puts there. The same seed gives the same pairs to
    every model of one vocabulary and text.

    Args:
        task: a built-in one's name, a TOML file, or a task.
        n_pairs: at most; fewer where there are not as many different ones.
        vocabulary: of the model, where it is at hand.
        cache: where packed tokens of the training text are kept; the user's cache by default.

    Raises:
        TaskUnavailable: a ValueError, for fewer than 32 pairs or 8 clusters of pairs.
        ValueError: no such task, a file that is not of a task's form, n_pairs odd or less than 32, a model without
            tokenizer for a task of words.
    """
    if not isinstance(n_pairs, int) or n_pairs < MIN_PAIRS or n_pairs % 2:
        raise ValueError(f"n_pairs: got {n_pairs!r:.40}; expected an even number, at least {MIN_PAIRS}")
    own = task if isinstance(task, Task) else read_task(task)
    return own.make(vocabulary or vocabulary_of(model, cache), n_pairs, np.random.default_rng(seed))
