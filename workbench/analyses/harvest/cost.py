"""What `harvest` takes, by formula."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from workbench.extend import Cost, TextSize

if TYPE_CHECKING:
    from workbench.models.config import ModelConfig


def cost(cfg: ModelConfig, settings: Any, text: TextSize) -> Cost:
    """A shard as tensors and once more as the bytes of its file, beside a batch's activations; on disk every number of
    every token, in the shards' dtype, without the files' headers.

    Raises:
        ValueError: hooks that the model lacks.
    """
    from workbench.analyses.harvest.storing import SHARD_BYTES, sequence_bytes
    from workbench.models.config import parse_dtype
    from workbench.models.costs import forward_bytes, forward_flops, hook_shapes, weights_bytes
    from workbench.models.streams import default_batch_size

    n_ctx = text.n_ctx
    shapes = hook_shapes(cfg, settings.hooks(cfg.n_layers), n_ctx)
    stored = cfg.dtype if settings.store_dtype is None else parse_dtype(settings.store_dtype)
    a_sequence, own = sequence_bytes(shapes, n_ctx, stored), sequence_bytes(shapes, n_ctx, cfg.dtype)
    n_a_shard = min(text.n_windows, max(1, (settings.shard_bytes or SHARD_BYTES) // a_sequence))
    n_together = min(n_a_shard, settings.batch_size or default_batch_size(cfg, n_ctx, list(shapes)))
    return Cost(
        flops=forward_flops(cfg, text.n_windows, n_ctx, unembedded=0),
        bytes_in_memory=2 * n_a_shard * a_sequence,
        bytes_on_device=weights_bytes(cfg) + n_together * own + forward_bytes(cfg, n_together * n_ctx),
        bytes_on_disk=text.n_windows * a_sequence,
    )
