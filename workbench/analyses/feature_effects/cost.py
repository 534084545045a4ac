"""What `feature-effects` takes, by formula."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from workbench.extend import Cost, TextSize

if TYPE_CHECKING:
    from workbench.models.config import ModelConfig


def cost(cfg: ModelConfig, settings: Any, text: TextSize) -> Cost:
    """Of SAEs as sae-train makes them by default, one for each head: a forward and a backward pass, whose graph is held
    from the first layer on; then for each feature that is ablated the layers from its own on and the logits, as if it
    fired in every sequence.
    """
    from workbench.analyses.feature_effects.estimates import BLOCK_TOKENS, GRAPH_TOKENS
    from workbench.analyses.sae_train.settings import HeadSaeSettings
    from workbench.models.checks import choose
    from workbench.models.costs import (
        LOGITS_HELD,
        TOKENS_TOGETHER,
        block_width,
        forward_flops,
        more_on_a_gpu,
        weights_bytes,
    )

    layers, heads = choose("layers", settings.layers, cfg.n_layers), choose("heads", settings.heads, cfg.n_heads)
    n_saes, d_sae = len(layers) * len(heads), HeadSaeSettings().expansion[0] * cfg.d_head
    itemsize = max(4, cfg.dtype.itemsize)
    narrow = weights_bytes(cfg) * itemsize / cfg.dtype.itemsize if cfg.dtype.itemsize < itemsize else 0
    n_graph = min(text.n_tokens, max(text.n_ctx, GRAPH_TOKENS))
    n_together = TOKENS_TOGETHER * more_on_a_gpu(cfg.device)
    n_batch = min(text.n_tokens, max(text.n_ctx, n_together))
    graph = n_graph * itemsize * block_width(cfg) * (cfg.n_layers - min(layers))
    # of the clean pass the states and activations of these layers and what predictions are compared by; of what goes
    # on a block, its final stream and the rows that are compared
    clean = n_batch * itemsize * (len(layers) * (cfg.d_model + cfg.n_heads * cfg.d_head) + 5 * cfg.d_model)
    further = n_batch * itemsize * (block_width(cfg) + 8 * cfg.d_model)
    acts = 4 * len(heads) * d_sae * (n_batch + 4 * BLOCK_TOKENS)
    logits = 3 * itemsize * min(LOGITS_HELD, n_batch * cfg.d_vocab)
    changes = 3 * 4 * settings.n_exact * len(heads) * n_batch
    tables = 8 * 4 * n_saes * d_sae
    stacks = 2 * 4 * n_saes * 2 * cfg.d_head * d_sae
    held = max(graph + logits, clean + further + logits + acts + changes)
    a_pass = forward_flops(cfg, text.n_windows, text.n_ctx)
    n_passes = (
        4 + (settings.kind != "zero") + len(heads) * settings.n_exact * sum(1 - at / cfg.n_layers for at in layers)
    )
    return Cost(
        flops=n_passes * a_pass + 6.0 * n_saes * d_sae * cfg.d_head * text.n_tokens,
        bytes_on_device=weights_bytes(cfg) + narrow + stacks + tables + held,
    )
