"""The scores of SAEs in three parts: core, sparse probing, feature absorption."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pandas as pd
from jaxtyping import Int
from torch import Tensor

from sae.stack import StackedSAE
from workbench.analyses.ablate.impacts import check_bootstrap
from workbench.analyses.ablate.precision import as_float32
from workbench.analyses.feature_effects.effects import chosen_saes
from workbench.analyses.sae_scores.absorption import LEAD, absorption_table, letter_family
from workbench.analyses.sae_scores.core import Scored, core_table, open_scored
from workbench.analyses.sae_scores.probing import WORD_LEAD, probing_table
from workbench.analyses.sae_scores.readings import example_ids
from workbench.analyses.sae_scores.settings import MIN_PASSAGES, PARTS
from workbench.data.probing_tasks import word_families
from workbench.models.checks import as_list, checked_tokens
from workbench.models.tokenizer_files import tokenizer_of

SHARES = {"core": 0.6, "probing": 0.25, "absorption": 0.15}  # of the time, about


def sae_scores(
    model: Any,
    sae: StackedSAE,
    tokens: Int[Tensor, "n n_ctx"],
    layers: Sequence[int] | int | None = None,
    heads: Sequence[int] | int | None = None,
    *,
    parts: Sequence[str] = PARTS,
    n_splice_tokens: int = 8192,
    n_passages: int = 150,
    n_words: int = 1500,
    n_bootstrap: int = 2000,
    seed: int = 0,
    name: str | None = None,
    on_progress: Callable[[float], None] | None = None,
) -> dict[str, pd.DataFrame]:
    """The tables sae_core, sae_probing and sae_absorption, of the parts that are asked for: every SAE beside random
    directions of the same number, sparsity and fitted scale.

    Definitions: docs/definitions.md. A model without tokenizer has no probing and no absorption; a warning says so.

    Args:
        model: a `HookedLM`, or a TransformerLens model; run in float32 unless it is float64.
        sae: one SAE for each hook and head, of this model.
        tokens: held-out tokens, for the core; the random directions' bias and scale are fitted on part of them.
        layers, heads: which SAEs of the stack; all by default.
        parts: some of core, probing, absorption.
        n_splice_tokens: of the tokens, those on which losses are measured.
        n_passages: passages of each source of the embedded text, for probing.
        n_words: words of the tokenizer's vocabulary, for absorption.
        seed, name: fill the columns seed and model; the seed is also the control's and the bootstrap's.

    Raises:
        ValueError: SAEs that do not fit the model; tokens that do not fit; no SAE of these layers and heads; an unknown
            part; numbers out of range; a context too short for the words of probing or absorption.
    """
    numbers = {"n_splice_tokens": n_splice_tokens, "n_passages": n_passages, "n_words": n_words}
    check_scores(parts, n_bootstrap, **numbers)
    tokens = checked_tokens("sae-scores", model, tokens, min_ctx=2)
    check_prompts(model, parts, n_words)
    scored = open_scored(as_float32(model), chosen_saes(sae, layers, heads), tokens, seed)
    about = {"name": name or model.cfg.model_name, "seed": seed, "bootstrap_seed": seed, "n_bootstrap": n_bootstrap}
    return dict(iterate_tables(scored, tokens, tuple(parts), on_progress or (lambda share: None), **numbers, **about))


def check_scores(
    parts: Sequence[str], n_bootstrap: int, *, n_splice_tokens: int, n_passages: int, n_words: int
) -> None:
    """Raise ValueError for a part that is not known, or numbers out of range."""
    unknown = [part for part in as_list("parts", parts) if part not in PARTS]
    if unknown or not parts or len(set(parts)) < len(parts):
        raise ValueError(f"parts: got {list(parts)}; expected some of {', '.join(PARTS)}, each once")
    least = {"n_splice_tokens": 2, "n_passages": MIN_PASSAGES, "n_words": 1}
    for what, given in {"n_splice_tokens": n_splice_tokens, "n_passages": n_passages, "n_words": n_words}.items():
        if given < least[what]:
            raise ValueError(f"{what}: got {given}; expected at least {least[what]}")
    check_bootstrap(n_bootstrap)


def check_prompts(model: Any, parts: Sequence[str], n_words: int) -> None:
    """Raise ValueError for a context that is too short for the words of these parts."""
    if (tokenizer := tokenizer_of(model)) is None:
        return
    if "probing" in parts:
        for family in word_families():
            example_ids(model, family, WORD_LEAD)
    if "absorption" in parts and (letters := letter_family(tokenizer, n_words)).tasks:
        example_ids(model, letters, LEAD)


def possible_parts(model: Any, parts: Sequence[str]) -> list[str]:
    """The parts that this model can have, in their order: without tokenizer the core alone, which a warning says."""
    if tokenizer_of(model) is not None:
        return [part for part in PARTS if part in parts]
    if left_out := [part for part in parts if part != "core"]:
        warnings.warn(f"sae-scores: the model has no tokenizer; {' and '.join(left_out)} left out", stacklevel=3)
    return [part for part in parts if part == "core"]


def iterate_tables(
    scored: Scored,
    tokens: Int[Tensor, "n n_ctx"],
    parts: Sequence[str],
    tell: Callable[[float], None],
    *,
    n_splice_tokens: int,
    n_passages: int,
    n_words: int,
    n_bootstrap: int,
    name: str,
    seed: int,
    bootstrap_seed: int,
    done: Callable[[str], pd.DataFrame | None] = lambda table: None,
) -> Iterator[tuple[str, pd.DataFrame]]:
    """(name, table) of each part; `done` gives a table that is there already."""
    own = possible_parts(scored.model, parts)
    total, before = sum(SHARES[part] for part in own), 0.0
    drawn = {"n_bootstrap": n_bootstrap, "bootstrap_seed": bootstrap_seed}
    for part in own:
        of_part = lambda share, part=part, before=before: tell((before + share * SHARES[part]) / total)  # noqa: E731
        about: dict[str, Any] = {"name": name, "seed": seed, "tell": of_part}
        table = done(f"sae_{part}")
        if table is None and part == "core":
            table = core_table(scored, tokens, n_splice_tokens=n_splice_tokens, **drawn, **about)
        elif table is None and part == "probing":
            table = probing_table(scored, n_passages=n_passages, **drawn, **about)
        elif table is None:
            table = absorption_table(scored, n_words=n_words, **about)
        yield f"sae_{part}", table
        before += SHARES[part]
