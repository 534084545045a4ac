"""What `sae-scores` takes, by formula."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from workbench.extend import Cost, TextSize

if TYPE_CHECKING:
    from workbench.models.config import ModelConfig


def cost(cfg: ModelConfig, settings: Any, text: TextSize) -> Cost:
    """Of SAEs as sae-train makes them by default, one for each head: both dictionaries on all tokens; of the spliced
    ones three forwards of the layers from each head's own on; of the labelled examples, everything that is read.
    """
    from workbench.analyses.ablate.engine import bytes_per_sequence
    from workbench.analyses.sae_scores.readings import PASSAGE_TOKENS
    from workbench.analyses.sae_train.evaluation import BLOCK_TOKENS, CONTROL_TOKENS, FORWARD_TOKENS, TOKENS_TOGETHER
    from workbench.analyses.sae_train.settings import HeadSaeSettings
    from workbench.models.checks import choose
    from workbench.models.costs import forward_bytes, forward_flops, weights_bytes

    layers, heads = choose("layers", settings.layers, cfg.n_layers), choose("heads", settings.heads, cfg.n_heads)
    n_saes, d_in, d_sae = len(layers) * len(heads), cfg.d_head, HeadSaeSettings().expansion[0] * cfg.d_head
    n_weights, itemsize = n_saes * (2 * d_in * d_sae + d_in + d_sae), max(4, cfg.dtype.itemsize)
    narrow = weights_bytes(cfg) * itemsize / cfg.dtype.itemsize if cfg.dtype.itemsize < itemsize else 0
    n_ctx, a_token = text.n_ctx, 4 * n_saes * d_in
    n_forward = min(text.n_tokens, max(n_ctx, FORWARD_TOKENS))
    collected = 4 * n_forward * a_token + forward_bytes(cfg, n_forward)
    a_block = 4 * n_saes * min(n_forward, BLOCK_TOKENS) * (3 * d_sae + 3 * d_in)
    n_spliced = max(1, min(TOKENS_TOGETHER // len(heads) // n_ctx, text.n_windows))
    kept, continued = bytes_per_sequence(cfg, n_ctx, len(layers), len(heads))
    spliced = n_spliced * (kept + len(heads) * continued + 6 * n_ctx * a_token) + a_block
    n_passages, n_words = 3 * settings.n_passages, settings.n_words if "absorption" in settings.parts else 0
    n_examples = max(n_passages if "probing" in settings.parts else 0, n_words)
    readings = 4 * n_saes * n_examples * (d_in + 2 * d_sae)
    n_passage_tokens = PASSAGE_TOKENS * n_passages if "probing" in settings.parts else 0
    flops = forward_flops(cfg, text.n_windows, n_ctx, unembedded=0)
    flops += 3 * n_saes * forward_flops(cfg, max(1, settings.n_splice_tokens // n_ctx), n_ctx) / 2
    flops += forward_flops(cfg, (n_passage_tokens + 20 * n_words) // n_ctx, n_ctx, unembedded=0)
    flops += 4.0 * n_weights * (text.n_tokens + settings.n_splice_tokens + n_passage_tokens + n_words)
    return Cost(
        flops=flops,
        bytes_in_memory=readings,
        bytes_on_device=weights_bytes(cfg) + narrow + 4 * 2 * n_weights
        + max(collected + max(a_block, min(CONTROL_TOKENS, text.n_tokens) * a_token), spliced),
    )  # fmt: skip
