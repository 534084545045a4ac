"""What SAEs read at labelled examples: activations and features, averaged over a passage or at a word's last token."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from workbench.analyses.sae_scores.core import Scored, Tell
from workbench.analyses.sae_train.evaluation import BLOCK_TOKENS, FORWARD_TOKENS
from workbench.data.probing_tasks import Family
from workbench.models.activations import collect
from workbench.models.tokenizer_files import begin_ids, encode, tokenizer_of

PASSAGE_TOKENS = 64  # of a passage, at most
CHARACTERS_A_TOKEN = 8  # so many characters hold a token nearly always


@dataclass(frozen=True)
class Readings:
    """Of every SAE and example."""

    x: Float[np.ndarray, "sae example d_in"]
    """what is read"""
    acts: dict[str, Float[np.ndarray, "sae example d_sae"]]
    """features of each dictionary"""


def example_ids(model: Any, family: Family, lead: str) -> list[list[int]]:
    """The token ids of each example: of a passage its beginning; of a word, the lead and a space before it.

    Raises:
        ValueError: a word that ends behind the model's context.
    """
    tokenizer = tokenizer_of(model)
    begin, n_ctx = begin_ids(tokenizer), model.cfg.n_ctx
    if family.is_passage:
        n = min(PASSAGE_TOKENS, n_ctx) - len(begin)
        return [begin + encode(tokenizer, example.text)[:n] for example in family.examples]
    found = [begin + encode(tokenizer, f"{lead} {example.text}") for example in family.examples]
    if (longest := max(map(len, found), default=0)) > n_ctx:
        raise ValueError(f"sae-scores: the prompts of {family.name} take {longest} tokens; expected at most {n_ctx}")
    return found


@torch.no_grad()
def read_examples(scored: Scored, family: Family, lead: str, tell: Tell) -> Readings:
    """What every SAE reads of each example: the mean over its counted positions, or what stands at its last token.

    Memory: 4 bytes for each SAE, example, and dimension or feature of both dictionaries.
    """
    ids = example_ids(scored.model, family, lead)
    n, config = len(ids), scored.sae.config
    x = np.empty((config.n_saes, n, config.d_in), dtype=np.float32)
    acts = {name: np.empty((config.n_saes, n, config.d_sae), dtype=np.float32) for name in scored.dictionaries}
    alike: dict[int, list[int]] = defaultdict(list)
    for i, own in enumerate(ids):
        alike[len(own)].append(i)
    n_done = 0
    for length, rows in sorted(alike.items()):
        size = max(1, FORWARD_TOKENS // length)
        for batch in (rows[i : i + size] for i in range(0, len(rows), size)):
            tokens = torch.tensor([ids[i] for i in batch])
            weight = _weights(scored, tokens, family.is_passage)
            activations = collect(scored.model, tokens, scored.slots).unflatten(1, tuple(tokens.shape))
            _add_means(scored, activations, weight, batch, x, acts)
            n_done += len(batch)
            tell(n_done / n)
    return Readings(x, acts)


def _weights(scored: Scored, tokens: Tensor, is_passage: bool) -> Float[Tensor, "batch pos"]:
    """What each position counts in its example's mean."""
    if not is_passage:
        weight = torch.zeros(tokens.shape)
        weight[:, -1] = 1
        return weight
    is_counted = scored.positions.of(tokens).float()
    return is_counted / is_counted.sum(dim=1, keepdim=True).clamp_min(1)


def _add_means(
    scored: Scored,
    activations: Float[Tensor, "sae batch pos d_in"],
    weight: Float[Tensor, "batch pos"],
    batch: list[int],
    x: np.ndarray,
    acts: dict[str, np.ndarray],
) -> None:
    is_read = weight.any(dim=0)
    weight = weight[:, is_read]
    activations = activations[:, :, is_read.to(activations.device)]
    size = max(1, BLOCK_TOKENS // max(1, weight.shape[1]))
    for start in range(0, len(batch), size):
        rows, share = batch[start : start + size], weight[start : start + size].to(activations)
        own = activations[:, start : start + size]
        x[:, rows] = torch.einsum("sbpd,bp->sbd", own, share).cpu().numpy()
        for name, stack in scored.dictionaries.items():
            flat = own.flatten(1, 2).to(stack.W_dec.device)
            found = stack.encode(flat)
            if (scale := stack.output_scale(flat)) is not None:  # in the unit of what a feature adds
                found = found * scale.unsqueeze(-1)
            found = found.unflatten(1, tuple(own.shape[1:3]))
            acts[name][:, rows] = torch.einsum("sbpf,bp->sbf", found, share.to(found)).float().cpu().numpy()
