"""What `paths` takes, by formula."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from workbench.extend import Cost, TextSize

if TYPE_CHECKING:
    from workbench.models.config import ModelConfig


def cost(cfg: ModelConfig, settings: Any, text: TextSize) -> Cost:
    """Of prompts of about 32 tokens that differ from the first: both runs for each layer of receivers, then of every
    path the layers behind its receiver; of a path to the logits nothing more."""
    from workbench.analyses.paths.edges import is_ahead
    from workbench.analyses.paths.parts import (
        make_receivers,
        make_senders,
        pair_bytes,
        plan_sizes,
        receivers_of,
        token_bytes,
    )
    from workbench.analyses.tasks.cost import PROMPT_TOKENS
    from workbench.models.costs import bytes_of, forward_flops, weights_bytes

    own, length = settings, min(PROMPT_TOKENS, cfg.n_ctx)
    senders = make_senders(cfg, own.senders, own.layers, own.heads)
    receivers, n_strongest = make_receivers(cfg, own.into, senders, own.per_query_head)
    for head in range(n_strongest):  # taken to be about the middle of the model
        receivers += receivers_of(cfg, cfg.n_layers // 2, head % cfg.n_heads, own.per_query_head)
    n_hows = len(own.direction) * len(own.position)
    a_pass = forward_flops(cfg, own.n_pairs, length, unembedded=own.n_pairs)
    layers = {receiver.layer for receiver in receivers}
    shares = sum(
        (1 - receiver.layer / cfg.n_layers) * sum(is_ahead(s, receiver, cfg.parallel_attn_mlp) for s in senders)
        for receiver in receivers
    )
    sizes = plan_sizes(cfg, length, own.n_pairs, len(senders), bytes_of(own.memory_gib))
    held = min(sizes.n_pairs, own.n_pairs) * pair_bytes(cfg, length, len(senders))
    held += sizes.n_tokens * token_bytes(cfg)
    return Cost(
        flops=n_hows * a_pass * (2 * (len(layers) + (n_strongest > 0)) + shares) + 2 * a_pass,
        bytes_on_device=weights_bytes(cfg) + held,
    )
