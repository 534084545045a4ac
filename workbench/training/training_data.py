"""What a recipe trains on: text packed once, its tokenizer, and the fixed windows that training is judged by."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Int64
from torch import Tensor

from workbench.data.corpus import read_parts
from workbench.data.nca_sampler import NCASampler
from workbench.data.tokenizer import open_tokenizer, vocabulary_size
from workbench.data.tokens import TokenFile, WindowSampler, held_out_windows, pack_cached
from workbench.models.tokenizer_files import separator_text
from workbench.training.objective import Batch
from workbench.training.recipe import Recipe, automata

SEEDS_APART = 1_000_003  # between the streams of two phases: a prime, so that small seeds do not meet
HELD_OUT_SEED = (1 << 61) - 1  # of the automata that judge: far from any seed that a person gives


@dataclass(frozen=True)
class Feed:
    """Train and held-out tokens of one text, with the tokenizer that made them."""

    tokenizer: Any
    """as a model carries it: see `open_tokenizer`"""
    train: TokenFile
    held_out: TokenFile

    @property
    def checksums(self) -> dict[str, str]:
        """sha256 of the tokens of each part: what a checkpoint knows its text by."""
        return {"train": self.train.tokens_sha256, "held-out": self.held_out.tokens_sha256}


def open_feed(recipe: Recipe, cache: str | Path | None = None) -> Feed:
    """The packed text of a recipe, from the cache where it was packed before, checked against the recipe's model.

    Raises:
        ValueError: data or tokenizer that do not exist or cannot be read; a text too small to be split or to fill one
            window; a tokenizer larger than the vocabulary.
    """
    data = recipe.data
    tokenizer = open_tokenizer(data.tokenizer)
    train, held_out = read_parts(data.text, separator_text(tokenizer))
    d_vocab, n_ctx = recipe.model.d_vocab, recipe.model.n_ctx
    if (size := vocabulary_size(tokenizer.backend_tokenizer)) > d_vocab:
        raise ValueError(f"tokenizer: {data.tokenizer} has {size} entries; expected at most d_vocab = {d_vocab}")
    feed = Feed(tokenizer, pack_cached(train, tokenizer, cache), pack_cached(held_out, tokenizer, cache))
    for what, tokens in (("train", feed.train), ("held-out", feed.held_out)):
        if tokens.n_tokens < n_ctx:
            raise ValueError(f"data: the {what} text has {tokens.n_tokens} tokens; expected at least n_ctx = {n_ctx}")
    return feed


class Source:
    """The batches of one phase: windows of the text, or automata; where it stands fits into JSON.

    Of `world_size` processes each gets its own rows of every batch; where they stand is the same for all.
    """

    def __init__(
        self, recipe: Recipe, index: int, feed: Feed, seed: int, device: str, rank: int = 0, world_size: int = 1
    ) -> None:
        phase, n_ctx = recipe.phases[index], recipe.model.n_ctx
        self._device = device
        seed += index * SEEDS_APART
        is_cuda = device.startswith("cuda")
        self._sampler: WindowSampler | NCASampler
        rows: dict[str, int] = {"rank": rank, "world_size": world_size}
        if phase.kind == "nca":
            self._sampler = NCASampler(automata(phase), n_ctx, phase.batch_size, seed, device=device, **rows)
        else:
            self._sampler = WindowSampler(feed.train, n_ctx, phase.batch_size, seed, pin_memory=is_cuda, **rows)

    def next_batch(self) -> Batch:
        """The next micro-batch, on the device."""
        drawn = self._sampler.next_batch()
        if isinstance(drawn, tuple):
            return Batch(drawn[0], drawn[1][:, 1:])
        return Batch(drawn.to(self._device, non_blocking=True))

    def state_dict(self) -> dict[str, Any]:
        """The sampler's."""
        return self._sampler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to `state`: next is the batch that would have followed it. Raises ValueError for another source."""
        self._sampler.load_state_dict(state)


def judging_batches(recipe: Recipe, index: int, feed: Feed, device: str) -> tuple[Batch, Batch]:
    """(held-out, probe): the fixed sequences of phase `index` for the held-out loss and for the monitor.

    Of the text, evenly spaced windows of its held-out part; of automata, sequences of a seed kept for this.
    """
    phase, n_probe = recipe.phases[index], recipe.monitor.n_sequences
    if phase.kind == "language":
        windows = (evaluation_windows(feed, recipe), probe_windows(feed, recipe))
        return Batch(windows[0].to(device)), Batch(windows[1].to(device))
    n = max(recipe.data.n_held_out_windows, n_probe)
    unseen = automata(phase).model_copy(update={"seed": HELD_OUT_SEED})  # never the seed that the phase trains on
    tokens, mask = NCASampler(unseen, recipe.model.n_ctx, n, HELD_OUT_SEED, device=device).next_batch()
    n_held_out = recipe.data.n_held_out_windows
    return Batch(tokens[:n_held_out], mask[:n_held_out, 1:]), Batch(tokens[:n_probe], mask[:n_probe, 1:])


def evaluation_windows(feed: Feed, recipe: Recipe) -> Int64[Tensor, "n n_ctx"]:
    """The fixed held-out windows, evenly spaced over the held-out text: the same for every model of the same data."""
    return held_out_windows(feed.held_out, recipe.model.n_ctx, recipe.data.n_held_out_windows)


def probe_windows(feed: Feed, recipe: Recipe) -> Int64[Tensor, "n n_ctx"]:
    """The fixed windows of the geometric monitor, evenly spaced over the held-out text."""
    return held_out_windows(feed.held_out, recipe.model.n_ctx, recipe.monitor.n_sequences)
