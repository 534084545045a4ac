"""What `mechanisms` takes, by formula."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from workbench.extend import Cost, TextSize

if TYPE_CHECKING:
    from workbench.models.config import ModelConfig


def cost(cfg: ModelConfig, settings: Any, text: TextSize) -> Cost:
    """The plain windows of `evaluate`, with the model as it is and with each mechanism off; models share weights."""
    from workbench.analyses.evaluate.bits import TOKENS_TOGETHER
    from workbench.analyses.mechanisms.switches import OFF
    from workbench.models.costs import forward_bytes, forward_flops, loss_bytes, weights_bytes

    recurrence = cfg.extensions.recurrence
    n_on = sum(getattr(recurrence, name) not in (off, "off") for name, off in OFF.items())
    n_together = max(text.n_ctx, min(TOKENS_TOGETHER, text.n_tokens))
    held = forward_bytes(cfg, n_together) + loss_bytes(cfg, n_together)
    flops = (1 + n_on) * forward_flops(cfg, text.n_windows, text.n_ctx)
    return Cost(flops=flops, bytes_on_device=weights_bytes(cfg) + held)
