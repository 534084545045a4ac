"""Items of a battery: whether a model finds the right of two answers likelier than the wrong one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from workbench.data.batteries import Item
from workbench.models.checks import device_of
from workbench.models.generate import last_logits
from workbench.models.tokenizer_files import begin_ids, tokenizer_of, unknown_id

LOGITS_TOGETHER = 1 << 24  # logits held at once, 64 MiB in float32
TOKENS_TOGETHER = 2048


@dataclass(frozen=True)
class EncodedItem:
    """A prompt and its two answers, right and wrong, as tokens."""

    prompt: tuple[int, ...]
    answers: tuple[tuple[int, ...], tuple[int, ...]]


def encode_item(tokenizer: Any, item: Item) -> EncodedItem:
    """An item's tokens, first what the tokenizer begins a text with.

    The space in front of an answer belongs to it. The prompt is tokenized alone and with each answer, and must be the
    beginning of both.

    Raises:
        ValueError: a tokenizer for which it is not, that lacks an answer, or that gives both the same tokens.
    """
    lead, unknown = begin_ids(tokenizer), unknown_id(tokenizer)
    head = tokenizer.encode(item.prompt, add_special_tokens=False)
    answers = []
    for answer in (item.right, item.wrong):
        whole = tokenizer.encode(f"{item.prompt} {answer}", add_special_tokens=False)
        own = tuple(whole[len(head) :])
        if whole[: len(head)] != head or not own or unknown in own:
            shown = tokenizer.convert_ids_to_tokens(whole)
            raise ValueError(
                f"{item.battery}: the tokenizer cannot place {answer!r} behind {item.prompt!r}, tokens {shown}; "
                "expected an answer whose tokens begin where it does"
            )
        answers.append(own)
    if answers[0] == answers[1]:
        raise ValueError(
            f"{item.battery}: {item.right!r} and {item.wrong!r} have the same tokens; expected other values"
        )
    return EncodedItem((*lead, *head), (answers[0], answers[1]))


def encode_items(model: Any, items: Sequence[Item]) -> list[EncodedItem]:
    """The items of one battery as the model reads them.

    Raises:
        ValueError: a model without tokenizer, an item longer than the model's context, and as `encode_item`.
    """
    tokenizer = tokenizer_of(model)
    if tokenizer is None:
        raise ValueError(f"{items[0].battery}: this model has no tokenizer; expected one, items are text")
    encoded = [encode_item(tokenizer, item) for item in items]
    # the last token of an answer is predicted, and not read
    longest = max(len(item.prompt) + len(answer) - 1 for item in encoded for answer in item.answers)
    if longest > model.cfg.n_ctx:
        raise ValueError(
            f"{items[0].battery}: an item has {longest} tokens; expected at most the model's n_ctx = {model.cfg.n_ctx}"
        )
    return encoded


@torch.no_grad()
def item_margins(
    model: Any, items: Sequence[Item], on_progress: Callable[[float], None] | None = None
) -> Float64[np.ndarray, " item"]:
    """ln p(right) − ln p(wrong) of every item of one battery: of answers of one token each, the difference of logits.

    An answer of several tokens has the sum of their log-probabilities.

    Raises:
        ValueError: as `encode_items`.
    """
    encoded = encode_items(model, items)
    # a row is read once however many answers it scores: what is read -> (item, which answer, the answer)
    rows: dict[tuple[tuple[int, ...], int], list[tuple[int, int, tuple[int, ...]]]] = {}
    for i, item in enumerate(encoded):
        for which, answer in enumerate(item.answers):
            rows.setdefault(((*item.prompt, *answer[:-1]), len(answer)), []).append((i, which, answer))
    scores = np.empty((len(items), 2))
    alike: dict[tuple[int, int], list[tuple[int, ...]]] = {}
    for tokens, n_last in rows:
        alike.setdefault((len(tokens), n_last), []).append(tokens)
    n_done = 0
    for (length, n_last), own in sorted(alike.items()):
        size = max(1, min(TOKENS_TOGETHER // length, LOGITS_TOGETHER // (n_last * model.cfg.d_vocab)))
        for start in range(0, len(own), size):
            batch = own[start : start + size]
            log_p = _last_log_probabilities(model, batch, n_last)
            for tokens, found in zip(batch, log_p, strict=True):
                for i, which, answer in rows[tokens, n_last]:
                    scores[i, which] = found[range(n_last), answer].sum()
            n_done += len(batch)
            if on_progress is not None:
                on_progress(n_done / len(rows))
    return scores[:, 0] - scores[:, 1]


def _last_log_probabilities(
    model: Any, batch: Sequence[tuple[int, ...]], n: int
) -> Float64[Tensor, "batch last d_vocab"]:
    """What each sequence's last n positions predict, as log-probabilities."""
    logits = last_logits(model, torch.tensor(batch, device=device_of(model)), n)
    return torch.log_softmax(logits.double(), -1).cpu()
