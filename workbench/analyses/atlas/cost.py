"""What `atlas` takes, by formula."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from workbench.extend import Cost, TextSize

if TYPE_CHECKING:
    from workbench.models.config import ModelConfig


def cost(cfg: ModelConfig, settings: Any, text: TextSize) -> Cost:
    """Of SAEs as sae-train makes them by default, one for each head: activations of a batch, laid out by sequence;
    the contexts and bins of every feature; the logits that an SAE's decoder rows write."""
    from workbench.analyses.atlas.features import ACTS_HELD
    from workbench.analyses.atlas.intervals import ELEMENTS_AT_ONCE, N_BINS, N_INTERVALS
    from workbench.analyses.sae_train.settings import HeadSaeSettings
    from workbench.models.costs import forward_bytes, forward_flops, weights_bytes

    n_saes, d_sae = cfg.n_layers * cfg.n_heads, HeadSaeSettings().expansion[0] * cfg.d_head
    n_features, width = n_saes * d_sae, 2 * settings.radius + 1
    n_tokens = min(text.n_tokens, max(text.n_ctx, min(4096, ACTS_HELD // n_features)))
    acts = 4 * n_tokens * n_features
    stack = 4 * 2 * n_features * cfg.d_head
    contexts = n_features * settings.n_contexts * (3 * 4 * width + 5 * 8)
    contexts += 8 * 8 * min(ELEMENTS_AT_ONCE, n_tokens * n_features)  # their places, bins and order, were all above 0
    contexts += n_features * (8 * N_BINS + N_INTERVALS * (4 * width + 2 * 8))
    logits = 4 * cfg.d_vocab * (2 * cfg.d_model + d_sae)
    collected = 4 * 4 * n_tokens * n_saes * cfg.d_head + forward_bytes(cfg, n_tokens)
    flops = forward_flops(cfg, text.n_windows, text.n_ctx, unembedded=0)
    flops += 2.0 * n_features * (text.n_tokens * cfg.d_head + cfg.d_model * (cfg.d_head + cfg.d_vocab))
    return Cost(flops=flops, bytes_on_device=weights_bytes(cfg) + stack + contexts + max(2 * acts + collected, logits))
