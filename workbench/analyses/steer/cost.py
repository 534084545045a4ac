"""What `steer` takes, by formula."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from workbench.extend import Cost, TextSize

if TYPE_CHECKING:
    from workbench.models.config import ModelConfig


def cost(cfg: ModelConfig, settings: Any, text: TextSize) -> Cost:
    """Of SAEs as sae-train makes them by default, one for each head: the gradient's estimate of every feature where
    none is named; then of each arm the windows' losses from the middle layer on, its continuations, and their losses.
    """
    from workbench.analyses.feature_effects.estimates import BLOCK_TOKENS, GRAPH_TOKENS
    from workbench.analyses.sae_train.settings import HeadSaeSettings
    from workbench.analyses.steer.arms import ROWS_TOGETHER, TOKENS_TOGETHER, plan_arms
    from workbench.analyses.steer.dose_curves import N_PROMPT_TOKENS
    from workbench.models.checks import choose
    from workbench.models.costs import block_width, cache_bytes, forward_bytes, forward_flops, loss_bytes, weights_bytes

    layers, heads = choose("layers", settings.layers, cfg.n_layers), choose("heads", settings.heads, cfg.n_heads)
    n_saes, d_sae = len(layers) * len(heads), HeadSaeSettings().expansion[0] * cfg.d_head
    n_arms = len(plan_arms(settings.forms, settings.alphas, settings.n_random, has_difference=True))
    n_features, length = max(1, len(settings.feature)), N_PROMPT_TOKENS + settings.max_new_tokens
    n_half = text.n_windows // 2
    n_graph = min(n_half * text.n_ctx, max(text.n_ctx, GRAPH_TOKENS))
    estimate = 0 if settings.feature else cfg.dtype.itemsize * n_graph * block_width(cfg) * (cfg.n_layers - min(layers))
    logits = 2 * 4 * min(1 << 24, n_graph * cfg.d_vocab)
    sampling = cache_bytes(cfg, ROWS_TOGETHER * length) + ROWS_TOGETHER * cfg.d_vocab * (3 * 4 + 2 * 8)
    sampling += forward_bytes(cfg, ROWS_TOGETHER * N_PROMPT_TOKENS)
    losses = forward_bytes(cfg, max(text.n_ctx, TOKENS_TOGETHER)) + loss_bytes(cfg, max(text.n_ctx, TOKENS_TOGETHER))
    stacks = 2 * 4 * n_saes * 2 * cfg.d_head * d_sae + 4 * 4 * BLOCK_TOKENS * len(heads) * d_sae
    flops = 4 * forward_flops(cfg, n_half, text.n_ctx)
    flops += (
        n_features
        * n_arms
        * (
            0.5 * forward_flops(cfg, min(n_half, settings.n_windows), text.n_ctx)
            + forward_flops(cfg, settings.n_prompts, length, unembedded=settings.n_prompts * settings.max_new_tokens)
            + forward_flops(cfg, settings.n_prompts, length)
        )
    )
    return Cost(flops=flops, bytes_on_device=weights_bytes(cfg) + stacks + max(estimate + logits, sampling, losses))
