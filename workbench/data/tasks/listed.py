"""Prompts with answers and foils as someone listed them, without corrupt prompts or mirrors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, ValidationError

from workbench.data.pairs import PairTokens
from workbench.data.tasks.encoding import pad_behind
from workbench.models.tokenizer_files import encode, tokenizer_of
from workbench.models.transformer import check_tokenized
from workbench.runs import read_toml
from workbench.runs.records import Frozen, describe_errors


class PromptPair(Frozen):
    """A prompt with what goes on with it, and what might and does not."""

    prompt: str = Field(description="beginning of a text", min_length=1)
    answer: str = Field(description="what goes on with it, one token behind the prompt, a space before it included")
    foil: str = Field(description="what does not, one token behind the prompt")


class PromptPairs(Frozen):
    """Prompt pairs, as a file has them."""

    pairs: tuple[PromptPair, ...] = Field(description="prompts with answers and foils", min_length=1)


def read_pairs(file: str | Path) -> tuple[PromptPair, ...]:
    """The pairs of a TOML file: tables `[[pairs]]` of prompt, answer and foil.

    Raises:
        ValueError: naming the file, for one that is missing or not of this form.
    """
    try:
        return PromptPairs.model_validate(read_toml(Path(file), "pairs")).pairs
    except ValidationError as error:
        raise ValueError(f"pairs: {file}: {describe_errors(error)}") from None


def encode_pairs(model: Any, pairs: Sequence[PromptPair]) -> PairTokens:
    """The pairs in a model's vocabulary; the corrupt prompts are the clean ones.

    Raises:
        ValueError: a model without tokenizer, a prompt longer than the model's context, an answer or foil that is not
            one token behind its prompt, or both the same.
    """
    check_tokenized("pairs", model)
    prompts = [model.to_tokens(pair.prompt, truncate=False)[0].tolist() for pair in pairs]
    tokenizer, ids = tokenizer_of(model), []
    for pair, prompt in zip(pairs, prompts, strict=True):
        if len(prompt) > model.cfg.n_ctx:
            raise ValueError(
                f"prompt: {pair.prompt!r:.60} has {len(prompt)} tokens; expected at most {model.cfg.n_ctx}"
            )
        alone = encode(tokenizer, pair.prompt)
        both = [encode(tokenizer, pair.prompt + own) for own in (pair.answer, pair.foil)]
        for name, whole in zip(("answer", "foil"), both, strict=True):
            if len(whole) != len(alone) + 1 or whole[:-1] != alone:
                got = f"got {getattr(pair, name)!r:.40} behind {pair.prompt!r:.60}"
                raise ValueError(f"{name}: {got}; expected one token, such as ' is'")
        ids.append([whole[-1] for whole in both])
        if ids[-1][0] == ids[-1][1]:
            raise ValueError(f"foil: got {pair.foil!r:.40}, the answer itself; expected another token")
    tokens, is_token = pad_behind(prompts, 0)
    answers, foils = torch.tensor(ids).split(1, dim=1)
    ends = {"end": is_token.sum(dim=1) - 1}
    return PairTokens("pairs", tokens, tokens, is_token, answers, foils, torch.arange(len(ids)), ends)
