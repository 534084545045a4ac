"""What `match` takes, by formula."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from workbench.extend import Cost, TextSize

if TYPE_CHECKING:
    from workbench.models.config import ModelConfig


def cost(cfg: ModelConfig, settings: Any, text: TextSize) -> Cost:
    """Of SAEs as sae-train makes them by default, one for each head of either model: the sums of every pair of features
    of a layer, in float64, and as much of one layer while they become correlations. Each model reads the tokens."""
    from workbench.analyses.sae_train.evaluation import BLOCK_TOKENS, FORWARD_TOKENS
    from workbench.analyses.sae_train.settings import HeadSaeSettings
    from workbench.models.costs import forward_bytes, forward_flops, weights_bytes

    n_saes, d_sae = cfg.n_layers * cfg.n_heads, HeadSaeSettings().expansion[0] * cfg.d_head
    n_tokens = min(text.n_tokens, max(text.n_ctx, FORWARD_TOKENS))
    stacks = 2 * 4 * 2 * n_saes * d_sae * cfg.d_head
    of_layer = 8 * (cfg.n_heads * d_sae) ** 2
    collected = 2 * 4 * 4 * n_tokens * n_saes * cfg.d_head + forward_bytes(cfg, n_tokens)
    a_block = 4 * 4 * n_saes * BLOCK_TOKENS * d_sae
    flops = forward_flops(cfg, text.n_windows, text.n_ctx, unembedded=0)
    flops += 2.0 * text.n_tokens * n_saes * d_sae * (cfg.d_head + cfg.n_heads * d_sae / 2)
    held = stacks + cfg.n_layers * of_layer + max(3 * of_layer, collected + a_block)
    return Cost(flops=flops, bytes_on_device=weights_bytes(cfg) + held)
