"""What a recipe trains on: text packed once, its tokenizer, and the fixed windows that training is judged by."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Int64
from tokenizers import Tokenizer
from torch import Tensor

from workbench.data.corpus import read_documents, split_documents
from workbench.data.tokenizer import load_tokenizer
from workbench.data.tokens import TokenFile, held_out_windows, pack_cached
from workbench.training.recipe import DataConfig, Recipe


@dataclass(frozen=True)
class Feed:
    """Train and held-out tokens of one text, with the tokenizer that made them."""

    tokenizer: Tokenizer
    train: TokenFile
    held_out: TokenFile


def open_feed(data: DataConfig, cache: str | Path | None = None) -> Feed:
    """The packed text of a recipe, from the cache where it was packed before.

    Raises:
        ValueError: data or tokenizer that do not exist or cannot be read; a text too small to be split.
    """
    tokenizer = load_tokenizer(data.tokenizer)
    documents = read_documents(data.source, text_column=data.text_column)
    train, held_out = split_documents(documents, data.held_out_fraction)
    return Feed(tokenizer, pack_cached(train, tokenizer, cache), pack_cached(held_out, tokenizer, cache))


def check_feed(feed: Feed, recipe: Recipe) -> None:
    """Nothing; raises ValueError if the tokens do not fit the model, or there are too few of them."""
    d_vocab, n_ctx = recipe.model.d_vocab, recipe.model.n_ctx
    if feed.train.d_vocab > d_vocab:
        raise ValueError(
            f"tokenizer: {recipe.data.tokenizer} has {feed.train.d_vocab} entries; want at most d_vocab = {d_vocab}"
        )
    for what, tokens in (("train", feed.train), ("held-out", feed.held_out)):
        if tokens.n_tokens < n_ctx:
            raise ValueError(f"data: the {what} text has {tokens.n_tokens} tokens; want at least n_ctx = {n_ctx}")


def evaluation_windows(feed: Feed, recipe: Recipe) -> Int64[Tensor, "n n_ctx"]:
    """The fixed held-out windows, evenly spaced over the held-out text: the same for every model of the same data."""
    return held_out_windows(feed.held_out, recipe.model.n_ctx, recipe.data.n_held_out_windows)


def probe_windows(feed: Feed, recipe: Recipe) -> Int64[Tensor, "n n_ctx"]:
    """The fixed windows of the geometric monitor, evenly spaced over the held-out text."""
    return held_out_windows(feed.held_out, recipe.model.n_ctx, recipe.monitor.n_sequences)
