"""A folder's tokenizer as its tokenizer.json says, held against what transformers' class for the model makes of it.

From its fifth version on, transformers builds the tokenizers of many families anew, from the vocabulary of
tokenizer.json and rules of the class: splitting, normalisation and prefix space of the file are then not read.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from workbench.models.tokenizer_files import TOKENIZER, begin_ids, different_text, encode, read_tokenizer


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a Hugging Face folder, None where it has none: that of tokenizer.json, with a warning where
    transformers reads a text otherwise; without that file, what transformers makes of the others.

    Raises:
        ValueError: files that cannot be read.
    """
    if (folder / TOKENIZER).is_file():
        own = read_tokenizer(folder)
        if (difference := different_reading(folder, own)) is not None:
            warnings.warn(f"{folder}: {difference}; the reading of {TOKENIZER} is used", stacklevel=3)
        return own
    return _auto(folder) if any((folder / n).is_file() for n in ("tokenizer.model", "vocab.json")) else None


def different_reading(folder: Path, own: Any) -> str | None:
    """Where transformers reads a text otherwise than `own`, in words that give both, or why it cannot; else None."""
    try:
        theirs = _auto(folder)
    except ValueError as error:
        return str(error)
    if (text := different_text(own, theirs)) is not None:
        return f"{TOKENIZER} gives {text!r} the ids {encode(own, text)}, {type(theirs).__name__} {encode(theirs, text)}"
    if (ours := begin_ids(own)) != (other := begin_ids(theirs)):
        return f"a text begins with {ours or 'no token'}, by {type(theirs).__name__} with {other or 'no token'}"
    return None


def _auto(folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers and tokenizers raise many kinds, bare Exception among them
        reason = str(error).splitlines()[0]
        raise ValueError(f"transformers cannot read the tokenizer of {folder} ({reason})") from error
