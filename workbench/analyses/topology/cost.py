"""What `topology` takes, by formula."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from workbench.extend import Cost, TextSize

if TYPE_CHECKING:
    from workbench.models.config import ModelConfig


def cost(cfg: ModelConfig, settings: Any, text: TextSize) -> Cost:
    """The maps of one layer and their copy in float64; of every layer the second moment of all heads' z, and four of
    its size while they are decomposed; and of each block of the text, whose sums lie behind those left out."""
    from workbench.analyses.topology.heads import MAP_ELEMENTS, blocks_for
    from workbench.models.checks import choose
    from workbench.models.costs import forward_bytes, forward_flops, map_bytes, weights_bytes

    n_ctx, width = text.n_ctx, cfg.n_heads * cfg.d_head
    n_together = min(text.n_windows, max(1, MAP_ELEMENTS // (cfg.n_heads * n_ctx**2)))
    n_layers = len(choose("layers", settings.layers, cfg.n_layers))
    a_batch = forward_bytes(cfg, n_together * n_ctx) + map_bytes(cfg, n_together, n_ctx, copied=8)
    n_blocks = max(blocks_for(cfg, text.n_windows, n_layers)) + 1
    held = n_layers if n_blocks == 1 else n_blocks * (n_layers + 1)
    moments = 8 * width**2 * (held + 4)
    flops = forward_flops(cfg, text.n_windows, n_ctx, unembedded=0) + 2.0 * text.n_tokens * n_layers * width**2
    return Cost(flops=flops, bytes_on_device=weights_bytes(cfg) + a_batch + moments)
