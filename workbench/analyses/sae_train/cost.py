"""What `sae-train` takes, by formula."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from workbench.extend import Cost, TextSize

if TYPE_CHECKING:
    from workbench.models.config import ModelConfig


def cost(cfg: ModelConfig, settings: Any, text: TextSize) -> Cost:
    """The stack with gradients and Adam's two moments, and copies of stack and moments while the state is saved;
    the buffer of shuffled activations, or a shard; what measuring holds of a batch.

    A token takes 12 operations for each weight of an SAE that it trains, two products there and back, and 4 for each
    one that is measured, in the trained, the random and the shuffled dictionary.
    """
    from workbench.analyses.ablate.engine import bytes_per_sequence
    from workbench.analyses.sae_train.evaluation import BLOCK_TOKENS, CONTROL_TOKENS, FORWARD_TOKENS, TOKENS_TOGETHER
    from workbench.data.shards import open_shards
    from workbench.models.activations import choose_slots
    from workbench.models.costs import forward_bytes, forward_flops, hook_shapes, weights_bytes

    slots = choose_slots(cfg, settings.layers, "all" if settings.heads is None else settings.heads, settings.hook)
    (shape,) = hook_shapes(cfg, [slots[0].hook_name]).values()
    n_heads, d_in = (shape[0], shape[-1]) if slots[0].head is not None else (1, math.prod(shape))
    n_slots, n_each, d_sae = len(slots), len(settings.l1) * len(settings.seeds), settings.expansion * d_in
    n_saes, n_ctx = n_slots * n_each, text.n_ctx
    n_weights = n_saes * (2 * d_in * d_sae + d_in + d_sae)
    shards = None if settings.shards is None else open_shards(settings.shards)
    n_train = settings.n_train_tokens or (0 if shards is None else shards.n_tokens)
    # collected: a layer's activations, stacked, laid out anew, and those that count
    a_token, n_forward = 4 * n_slots * d_in, max(n_ctx, FORWARD_TOKENS)
    collected = 4 * n_forward * a_token + forward_bytes(cfg, n_forward)
    a_block = 4 * n_saes * BLOCK_TOKENS * (5 * d_sae + 3 * d_in)
    n_spliced = max(1, TOKENS_TOGETHER // n_heads // n_ctx)
    kept, continued = bytes_per_sequence(cfg, n_ctx, cfg.n_layers, n_heads)
    spliced = n_spliced * (kept + n_heads * continued + 2 * (1 + 2 * n_each) * n_ctx * a_token)
    training = 4 * (4 + 3) * n_weights + a_block
    measuring = 4 * 2 * n_weights + 4 * n_saes * CONTROL_TOKENS * d_in + max(spliced, collected + a_block)
    on_host, n_passes = 0, -(-n_train // n_ctx)
    buffer = settings.buffer_tokens * a_token * n_ctx // max(1, n_ctx - (not settings.include_special))
    if shards is not None:  # one as a file and as tensors
        on_host, n_passes, buffer = 2 * max(shard.bytes for shard in shards.shards), 0, 0
    flops = forward_flops(cfg, n_passes, n_ctx, unembedded=0) + 12.0 * n_train * n_weights
    flops += forward_flops(cfg, -(-settings.n_eval_tokens // n_ctx), n_ctx, unembedded=0)
    flops += 4.0 * n_weights * (2 * settings.n_eval_tokens + CONTROL_TOKENS)
    flops += 3 * n_saes * forward_flops(cfg, max(1, settings.n_ce_tokens // n_ctx), n_ctx) / 2
    return Cost(
        flops=flops,
        bytes_in_memory=on_host,
        bytes_on_device=weights_bytes(cfg) + buffer + max(training, collected, measuring),
        bytes_on_disk=4 * (1 + 3) * n_weights,  # the stack; while it trains, the state with its moments
    )
