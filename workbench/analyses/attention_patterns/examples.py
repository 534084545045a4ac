"""What every head looks at in a few example sentences, token by token."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.analyses.attention_patterns.settings import MAX_TOKENS, MIN_TOKENS, N_SENTENCES
from workbench.data.tokenizer import text_encoder
from workbench.models.checks import checked_tokens, choose, device_of, run_hooked
from workbench.models.tokenizer_files import begin_ids, special_ids, tokenizer_of

N_DECIMALS = 4  # of a weight
END = re.compile(r"[.!?]+[\"'”’)\]]*(?=\s)")  # where a sentence ends


@dataclass(frozen=True)
class Example:
    """Token ids that a model is shown."""

    ids: tuple[int, ...]
    """what the tokenizer puts before a text among them"""
    kind: str
    """given, sentence, window (of a text where no sentence was found), or said twice"""
    n_lead: int = 0
    """ids that the tokenizer puts before a text"""


def find_examples(
    model: Any,
    tokens: Int[Tensor, "n n_ctx"],
    *,
    sentence: Sequence[str] | None = None,
    n_sentences: int = N_SENTENCES,
    max_tokens: int = MAX_TOKENS,
) -> list[Example]:
    """The examples that a model is shown, each behind what its tokenizer puts before a text: the same for all models of
    one tokenizer and text.

    Of the windows, which are spread evenly over the text, the first sentence of at least `MIN_TOKENS` and at most
    max_tokens tokens is taken, from one window after another. Where too few have one (a text without full stops),
    windows' first max_tokens tokens take their place. The shortest example of at least `MIN_TOKENS` is shown again,
    said twice, where the model's context holds it: there an induction head attends to what followed a token before.

    Args:
        tokens: windows of text.
        sentence: texts to show instead, cut after max_tokens tokens; none is said twice.
        n_sentences: how many are taken from the text.

    Raises:
        ValueError: sentences for a model without tokenizer, or one that has no token.
    """
    tokenizer = tokenizer_of(model)
    lead = tuple(begin_ids(tokenizer)) if tokenizer is not None else ()
    room = min(max_tokens, model.cfg.n_ctx - len(lead))
    if sentence is not None:
        if tokenizer is None:
            raise ValueError("sentence: this model has no tokenizer; expected a model with one")
        found = [
            Example(tuple(text_encoder(tokenizer).encode(text, add_special_tokens=False).ids[:room]), "given")
            for text in sentence
        ]
        if empty := [text for text, own in zip(sentence, found, strict=True) if not own.ids]:
            raise ValueError(f"sentence: {empty[0]!r:.40} has no token; expected text")
    else:
        found = _of_text(model, tokens, n_sentences, room)
        long = [own for own in found if len(own.ids) >= MIN_TOKENS and len(lead) + 2 * len(own.ids) <= model.cfg.n_ctx]
        if long:
            found.append(Example(2 * min(long, key=lambda own: len(own.ids)).ids, "said twice"))
    return [Example((*lead, *own.ids), own.kind, len(lead)) for own in found]


def _of_text(model: Any, tokens: Tensor, n: int, room: int) -> list[Example]:
    found: list[Example] = []
    special = special_ids(tokenizer_of(model)) if tokenizer_of(model) is not None else frozenset()
    for window in tokens.tolist() if n and room >= MIN_TOKENS else []:
        if (ids := _first_sentence(token_texts(model, window), window, special, room)) is not None:
            if all(own.ids != ids for own in found):
                found.append(Example(ids, "sentence"))
            if len(found) == n:
                return found
    return found + [Example(tuple(window[:room]), "window") for window in tokens[: n - len(found)].tolist()]


def _first_sentence(
    texts: Sequence[str], ids: Sequence[int], special: frozenset[int], room: int
) -> tuple[int, ...] | None:
    """The ids of the first sentence that begins and ends with a token and is neither short nor long."""
    starts = [0]
    for text in texts:
        starts.append(starts[-1] + len(text))
    at = {start: token for token, start in reversed(list(enumerate(starts)))}  # of tokens without text the first
    ends = [found.end() for found in END.finditer("".join(texts))]
    for begin, end in pairwise(ends):
        if begin not in at or end not in at:
            continue
        first, last = at[begin], at[end]
        while first < last and not texts[first].strip():
            first += 1
        own = tuple(ids[first:last])
        if MIN_TOKENS <= len(own) <= room and not special & {*own} and texts[first].strip()[0].isupper():
            return own
    return None


def token_texts(model: Any, ids: Sequence[int]) -> list[str]:
    """The text of each token: all are decoded together and then cut, so that what they say joins to the whole text. A
    token that ends within a character has no text beyond the last whole one; a model without tokenizer shows ids."""
    tokenizer = getattr(model, "tokenizer", None)
    if tokenizer is None:
        return [f"[{token}]" for token in ids]

    def read(n: int) -> str:
        return tokenizer.decode(list(ids[:n]), skip_special_tokens=False, clean_up_tokenization_spaces=False)

    whole, ends = read(len(ids)), [0]
    for n in range(1, len(ids)):
        head = read(n)
        same = next(
            (at for at, (a, b) in enumerate(zip(head, whole, strict=False)) if a != b), min(len(head), len(whole))
        )
        ends.append(max(ends[-1], same))
    return [whole[a:b] for a, b in pairwise([*ends, len(whole)])]


def attention_examples(
    model: Any,
    examples: Sequence[Example],
    layers: Sequence[int] | int | None = None,
    *,
    seed: int = 0,
    name: str | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows of attention_sentences.csv and of attention_examples.csv.

    A row of the first per example: its tokens as JSON. A row of the second per (layer, head, example): `weights` is
    JSON, a list per query of a number per key from position 0 up to the query, four decimals. Without position 0 they
    are weights[q][k] / (1 − weights[q][0]), k ≥ 1.

    Args:
        layers: all by default; each must have heads.
        seed: fills the column seed.
        name: fills the column model; the config's name by default.

    Raises:
        ValueError: layers out of range, none, or without an attention map; ids that do not fit.
    """
    chosen = choose("layers", layers, model.cfg.n_layers)
    place = {"model": name or model.cfg.model_name, "seed": seed}
    sentences, rows = [], []
    for number, own in enumerate(examples):
        tokens = checked_tokens("attention_examples", model, torch.tensor([own.ids]))
        texts = json.dumps(token_texts(model, own.ids), ensure_ascii=False)
        counts = {"kind": own.kind, "n_lead": own.n_lead, "n_tokens": len(own.ids)}
        sentences.append(place | {"sentence": number} | counts | {"tokens": texts, "ids": json.dumps(own.ids)})
        maps: dict[int, Tensor] = {}
        hooks = [(f"blocks.{layer}.attn.hook_pattern", _keeper(maps, layer)) for layer in chosen]
        with torch.no_grad():
            run_hooked(model, tokens.to(device_of(model)), hooks, stop_at_layer=max(chosen) + 1, return_type=None)
        rows += [
            place
            | {
                "layer": layer,
                "head": head,
                "sentence": number,
                "n_tokens": len(own.ids),
                "weights": _triangle(own_map),
            }
            for layer in chosen
            for head, own_map in enumerate(maps[layer])
        ]
    columns = ["model", "seed", "sentence", "kind", "n_lead", "n_tokens", "tokens", "ids"]
    return pd.DataFrame(sentences, columns=columns), pd.DataFrame(
        rows, columns=["model", "seed", "layer", "head", "sentence", "n_tokens", "weights"]
    )


def _keeper(maps: dict[int, Tensor], layer: int) -> Any:
    def keep(pattern: Tensor, hook: object) -> None:
        maps[layer] = pattern[0].detach().cpu().double()

    return keep


def _triangle(pattern: Float[Tensor, "query key"]) -> str:
    """The lower triangle as JSON, without zeros behind the last decimal that counts."""
    rows = (row[: q + 1] for q, row in enumerate(pattern.tolist()))
    return "[" + ",".join("[" + ",".join(map(_short, row)) + "]" for row in rows) + "]"


def _short(weight: float) -> str:
    return f"{weight:.{N_DECIMALS}f}".rstrip("0").rstrip(".")
