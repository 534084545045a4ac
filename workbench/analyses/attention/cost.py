"""What `attention` takes, by formula."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from workbench.extend import Cost, TextSize

if TYPE_CHECKING:
    from workbench.models.config import ModelConfig


def cost(cfg: ModelConfig, settings: Any, text: TextSize) -> Cost:
    """The maps of one layer and one copy of them in float32. Random tokens said twice have a pass of their own."""
    from workbench.analyses.attention.statistics import MAP_ELEMENTS, MAX_REPEAT
    from workbench.models.costs import forward_bytes, forward_flops, map_bytes, weights_bytes

    said_twice = 2 * min(cfg.n_ctx // 2, MAX_REPEAT)
    passes = [(text.n_windows, text.n_ctx), (settings.n_repeated, said_twice)]
    held = 0
    for n_windows, length in passes:
        n_together = min(n_windows, max(1, MAP_ELEMENTS // (cfg.n_heads * length**2)))
        held = max(held, forward_bytes(cfg, n_together * length) + map_bytes(cfg, n_together, length, copied=8))
    flops = sum(forward_flops(cfg, *size, unembedded=0) for size in passes)
    return Cost(flops=flops, bytes_on_device=weights_bytes(cfg) + held)
