"""What the verbs that read a model share: the model, its tokens, and lists such as 0,2,5-7."""

from __future__ import annotations

import re
from typing import Any

from workbench.cli.errors import UsageError


def parse_list(text: str | None, what: str) -> list[int] | None:
    """The integers of "0,2,5-7", or None for None.

    Raises:
        UsageError: anything else, an empty list included.
    """
    if text is None:
        return None
    numbers: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if match is None:
            raise UsageError(f"{what}: got {text!r}; want numbers and ranges such as 0,2,5-7")
        first = int(match[1])
        last = int(match[2] or first)
        if last < first:
            raise UsageError(f"{what}: got {part.strip()!r}; want a range that rises")
        numbers += range(first, last + 1)
    return numbers


def open_subject(
    ckpt: str, device: str, dtype: str | None, data: str, n_sequences: int, n_ctx: int | None, seed: int
) -> tuple[Any, Any]:
    """(model, tokens [n_sequences n_ctx]): what a verb analyses."""
    from workbench.experiments.texts import analysis_tokens
    from workbench.models.load import load

    model = load(ckpt, device, dtype)
    return model, analysis_tokens(model, data, n_sequences=n_sequences, n_ctx=n_ctx, seed=seed)


def check_selection(model: Any, layers: list[int] | None, heads: list[int] | None = None) -> None:
    """Raise ValueError for a layer or head the model has not, before a verb makes its directory."""
    from workbench.experiments.subject import choose

    choose("layers", layers, model.cfg.n_layers)
    choose("heads", heads, model.cfg.n_heads)


def digest(tokens: Any) -> str:
    """Hex sha256 of the token ids: so that a resumed verb reads the same text."""
    import hashlib

    return hashlib.sha256(tokens.numpy().tobytes()).hexdigest()
