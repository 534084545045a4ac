"""What a model must beat: unigram and bigram predictions of the same held-out tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64
from torch import Tensor

from workbench.data.tokens import TokenFile

_CHUNK = 1 << 23  # pairs counted at once
MAX_TRAIN_TOKENS = 200_000_000  # beyond this neither baseline moves in the third digit, and pairs no longer fit


@dataclass(frozen=True)
class Baseline:
    """A baseline's figure on held-out tokens."""

    nats: float
    """mean per predicted token, in nats"""
    n_tokens: int
    """held-out tokens predicted"""


def ngram_baselines(train: TokenFile, held_out_tokens: Int64[Tensor, "n n_ctx"]) -> dict[str, Baseline]:
    """Cross-entropies and entropies over exactly the positions that a language model predicts: 1 … n_ctx−1 of each row.

    unigram: −mean ln p₁(w), p₁(w) = (c(w) + 1) / (N + V): train counts, add-one.
    bigram: −mean ln p₂(w|v), absolute discounting interpolated with p₁ (Ney, Essen & Kneser 1994):
        p₂(w|v) = max(c(v,w) − D, 0) / c(v) + D·n(v)/c(v) · p₁(w), n(v) the number of kinds of token seen after v,
        D = n₁/(n₁ + 2n₂) from the numbers of train pairs seen once and twice (½ if there are none);
        p₁(w) where v was never seen. Both sum to one over the vocabulary. Nothing is fitted on the held-out text.
    unigram_entropy, bigram_entropy: H(w) and H(w|v) = H(v,w) − H(v) of the held-out tokens themselves, from their own
        counts (plug-in): lower than the truth, the bigram far so where most pairs are seen once; no model's target.

    train: pairs across document ends count like any other, as they do for the model; the first 200M tokens are used.
    Raises ValueError if there is nothing to predict or a token is outside train's vocabulary.
    """
    if held_out_tokens.ndim != 2 or held_out_tokens.shape[0] < 1 or held_out_tokens.shape[1] < 2:
        raise ValueError(
            f"ngrams: held-out tokens have shape {tuple(held_out_tokens.shape)}; expected [n ≥ 1, n_ctx ≥ 2]"
        )
    held_out = held_out_tokens.cpu().numpy().astype(np.int64)
    d_vocab = train.d_vocab
    if held_out.min() < 0 or held_out.max() >= d_vocab:
        raise ValueError(
            f"ngrams: held-out tokens span {held_out.min()} … {held_out.max()}; expected 0 … {d_vocab - 1}"
        )
    previous, token = held_out[:, :-1].ravel(), held_out[:, 1:].ravel()
    stream = train.tokens[:MAX_TRAIN_TOKENS]
    counts = _unigram_counts(stream, d_vocab)
    p1 = (counts + 1) / (counts.sum() + d_vocab)
    p2 = _bigram_probabilities(stream, previous, token, p1)
    pairs = np.unique(previous * d_vocab + token, return_counts=True)[1]
    h_pair, h_previous = _entropy(pairs), _entropy(np.bincount(previous))
    nats = {
        "unigram": -np.log(p1[token]).mean(),
        "bigram": -np.log(p2).mean(),
        "unigram_entropy": _entropy(np.bincount(token)),
        "bigram_entropy": max(h_pair - h_previous, 0.0),
    }
    return {name: Baseline(nats=float(value), n_tokens=token.size) for name, value in nats.items()}


def _bigram_probabilities(
    stream: np.ndarray, previous: Int64[np.ndarray, " n"], token: Int64[np.ndarray, " n"], p1: np.ndarray
) -> np.ndarray:
    d_vocab = p1.size
    codes, counts = _pair_counts(stream, d_vocab)
    first = codes // d_vocab
    c_v = np.bincount(first, weights=counts, minlength=d_vocab)
    kinds_v = np.bincount(first, minlength=d_vocab)
    n_once, n_twice = (counts == 1).sum(), (counts == 2).sum()
    discount = n_once / (n_once + 2 * n_twice) if n_once else 0.5
    wanted = previous * d_vocab + token
    at = np.searchsorted(codes, wanted).clip(max=codes.size - 1)
    c_vw = np.where(codes[at] == wanted, counts[at], 0)
    seen = c_v[previous] > 0
    n_v = np.where(seen, c_v[previous], 1)
    backed_off = np.where(seen, discount * kinds_v[previous] / n_v, 1.0)
    return np.maximum(c_vw - discount, 0) / n_v + backed_off * p1[token]


def _chunks(stream: np.ndarray, overlap: int) -> Iterator[Int64[np.ndarray, " n"]]:
    for start in range(0, max(stream.size - overlap, 1), _CHUNK):
        yield stream[start : start + _CHUNK + overlap].astype(np.int64)


def _unigram_counts(stream: np.ndarray, d_vocab: int) -> Int64[np.ndarray, " d_vocab"]:
    total = np.zeros(d_vocab, dtype=np.int64)
    for chunk in _chunks(stream, overlap=0):
        total += np.bincount(chunk, minlength=d_vocab)
    return total


def _pair_counts(stream: np.ndarray, d_vocab: int) -> tuple[Int64[np.ndarray, " kinds"], Int64[np.ndarray, " kinds"]]:
    """(codes v·V + w in ascending order, their counts) of all pairs of neighbours."""
    codes, counts = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    for chunk in _chunks(stream, overlap=1):
        new, n_new = np.unique(chunk[:-1] * d_vocab + chunk[1:], return_counts=True)
        merged, place = np.unique(np.concatenate([codes, new]), return_inverse=True)
        total = np.zeros(merged.size, dtype=np.int64)
        np.add.at(total, place, np.concatenate([counts, n_new]))
        codes, counts = merged, total
    return codes, counts


def _entropy(counts: np.ndarray) -> float:
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log(p)).sum())
