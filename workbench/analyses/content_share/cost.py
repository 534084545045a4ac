"""What `content-share` takes, by formula."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from workbench.extend import BYTES_PER_TOKEN, Cost, TextSize

if TYPE_CHECKING:
    from workbench.models.config import ModelConfig

LABELLED = 0.8  # of tokens, those of content and function words, about
N_DOCUMENTS = 20  # that the text is, about
TAGGER = 100e6  # bytes of spaCy and its small English pipeline, measured
TAGGED = 3300  # bytes for each of a document's characters while it is tagged, measured


def cost(cfg: ModelConfig, settings: Any, text: TextSize) -> Cost:
    """Of SAEs as sae-train makes them by default, one for each head: activations of a batch; the peaks of every feature
    while they are sorted, those that stand in for a block's among them, and counts by block; the tagger, and a document
    in it; a document's permuted labels, the text counted as one of twenty documents.
    """
    from workbench.analyses.content_share.peaks import ACTS_HELD, DOCUMENTS_TOGETHER
    from workbench.analyses.sae_train.settings import HeadSaeSettings
    from workbench.data.blocks import N_BLOCKS
    from workbench.models.checks import choose
    from workbench.models.costs import forward_bytes, forward_flops, weights_bytes

    layers, heads = choose("layers", settings.layers, cfg.n_layers), choose("heads", settings.heads, cfg.n_heads)
    n_saes, d_sae = len(layers) * len(heads), HeadSaeSettings().expansion[0] * cfg.d_head
    n_features = n_saes * d_sae
    n_tokens = min(text.n_tokens, max(text.n_ctx, min(4096, ACTS_HELD // n_features)))
    acts = 4 * n_tokens * n_features
    collected = 3 * 4 * n_tokens * n_saes * cfg.d_head + forward_bytes(cfg, n_tokens)
    n_kept = settings.n_contexts + math.ceil(N_DOCUMENTS / N_BLOCKS)
    peaks = n_features * ((n_kept + DOCUMENTS_TOGETHER) * (4 + 8 + 8) + N_BLOCKS * (8 + 8)) * 2
    stack = 4 * 2 * n_features * cfg.d_head
    permuted = settings.n_permutations * LABELLED * text.n_tokens / N_DOCUMENTS * (1 + 1 + 8)
    tagged = TAGGED * BYTES_PER_TOKEN * text.n_tokens / N_DOCUMENTS
    flops = forward_flops(cfg, text.n_windows, text.n_ctx, unembedded=0)
    flops += 2.0 * n_features * text.n_tokens * cfg.d_head
    flops += 2.0 * n_saes * settings.n_permutations * LABELLED * text.n_tokens
    return Cost(
        flops=flops,
        bytes_in_memory=TAGGER + tagged + permuted,
        bytes_on_device=weights_bytes(cfg) + stack + peaks + 2 * acts + collected,
    )
