"""What `attention-patterns` takes, by formula."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from workbench.extend import Cost, TextSize

if TYPE_CHECKING:
    from workbench.models.config import ModelConfig


def cost(cfg: ModelConfig, settings: Any, text: TextSize) -> Cost:
    """The maps of one layer and one copy of them in float32, of mean maps the sums; then the examples, one after
    another, the maps of all layers in float64."""
    from workbench.analyses.attention.statistics import MAP_ELEMENTS
    from workbench.models.checks import choose
    from workbench.models.costs import forward_bytes, forward_flops, map_bytes, weights_bytes

    window = min(settings.window, text.n_ctx)
    n_together = min(text.n_windows, max(1, MAP_ELEMENTS // (cfg.n_heads * window**2)))
    n_drawn = 3 if settings.layers is None else len(choose("layers", settings.layers, cfg.n_layers))
    held = forward_bytes(cfg, n_together * window) + map_bytes(cfg, n_together, window, copied=8)
    held += 2 * 8 * n_drawn * cfg.n_heads * window**2
    n_examples = settings.n_sentences if settings.sentence is None else len(settings.sentence)
    length = min(settings.max_tokens, cfg.n_ctx)
    said_twice = min(2 * length, cfg.n_ctx) if settings.sentence is None and n_examples else length
    n_layers = cfg.n_layers if settings.layers is None else n_drawn
    held_of_examples = forward_bytes(cfg, said_twice) + map_bytes(cfg, 1, said_twice, copied=8)
    held_of_examples += 8 * n_layers * cfg.n_heads * said_twice**2
    flops = forward_flops(cfg, text.n_windows, window, unembedded=0)
    flops += forward_flops(cfg, n_examples + 1, length, unembedded=0)
    return Cost(flops=flops, bytes_on_device=weights_bytes(cfg) + max(held, held_of_examples))
