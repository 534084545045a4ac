"""What `evaluate` takes, by formula."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from workbench.extend import Cost, TextSize

if TYPE_CHECKING:
    from workbench.models.config import ModelConfig


def cost(cfg: ModelConfig, settings: Any, text: TextSize) -> Cost:
    """A batch of windows and a chunk of its logits. Sliding windows read a text once for every `stride` tokens; int8
    weights are another model, which is packed and unpacked through copies, and read as often."""
    from workbench.analyses.evaluate.bits import STRIDE, TOKENS_TOGETHER
    from workbench.models.costs import counted, forward_bytes, forward_flops, loss_bytes, weights_bytes

    n_ctx, weights = text.n_ctx, weights_bytes(cfg)
    n_together = max(n_ctx, min(TOKENS_TOGETHER, text.n_tokens))
    held = forward_bytes(cfg, n_together) + loss_bytes(cfg, n_together)
    n_sliding = -(-text.n_tokens // (settings.stride or min(STRIDE, n_ctx)))
    flops = sum(forward_flops(cfg, n, n_ctx, unembedded=text.n_tokens) for n in (text.n_windows, n_sliding))
    if not settings.use_int8:
        return Cost(flops=flops, bytes_on_device=weights + held)
    packed = counted(cfg).n_parameters()  # a byte each, at most
    return Cost(2 * flops, bytes_in_memory=3 * packed, bytes_on_device=2 * weights + held, bytes_on_disk=packed)
