"""What a head's content share would be if its features fired without regard to a word's kind: labels permuted within
documents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

TIE_TOLERANCE = 1e-9  # shares are sums of fractions: closer ones are equal


@dataclass(frozen=True)
class LabelledTokens:
    """Of one document, the tokens that are of a content or a function word."""

    labels: Int64[np.ndarray, " token"]
    """1: content, 0: function"""
    weights: Float64[np.ndarray, "head used"]
    """what each token adds to each head's share if it is content, of those tokens that add anything"""
    used: Int64[np.ndarray, " used"]
    """which tokens these are"""


@dataclass(frozen=True)
class LabelNull:
    """The shares that permuted labels give."""

    mean: Float64[np.ndarray, " head"]
    """exact: each context counts as its document's rate"""
    std: Float64[np.ndarray, " head"]
    """over the permutations"""
    pvalue: Float64[np.ndarray, " head"]
    """two-sided, (b + 1)/(n + 1), b the permutations at least as far from the mean as what was observed"""


def permute_labels(
    documents: list[LabelledTokens],
    n_permutations: int,
    rng: np.random.Generator,
    on_progress: Callable[[float], None] | None = None,
) -> tuple[Float64[np.ndarray, " head"], LabelNull]:
    """(observed shares, their null): labels of content and function words are exchanged within each document, all heads
    and features seeing the same exchange, so that features which fire on one token stay tied."""
    n_heads = len(documents[0].weights)
    observed, mean, drawn = np.zeros(n_heads), np.zeros(n_heads), np.zeros((n_heads, n_permutations))
    for number, own in enumerate(documents):
        labels = own.labels.astype(np.int8)
        observed += own.weights @ labels[own.used]
        mean += own.weights.sum(axis=1) * labels.mean()
        permuted = rng.permuted(np.broadcast_to(labels, (n_permutations, len(labels))), axis=1)
        drawn += own.weights @ permuted[:, own.used].T.astype(np.float64)
        if on_progress is not None:
            on_progress((number + 1) / len(documents))
    distance = np.abs(drawn - mean[:, None])
    n_extreme = (distance >= np.abs(observed - mean)[:, None] - TIE_TOLERANCE).sum(axis=1)
    return observed, LabelNull(mean, drawn.std(axis=1, ddof=1), (n_extreme + 1) / (n_permutations + 1))
