"""What `text-quality` takes, by formula."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from workbench.extend import Cost, TextSize

if TYPE_CHECKING:
    from workbench.models.config import ModelConfig


ITEM_TOKENS = 8  # of an item, about


def cost(cfg: ModelConfig, settings: Any, text: TextSize) -> Cost:
    """Keys and values of the continuations that grow together, their logits as probabilities, in float64 summed up; or
    the logits of a batch of items of a few tokens.

    Prompts are counted as 64 tokens long, or as what the context leaves. What a tagger holds is not counted.
    """
    from workbench.analyses.text_quality.continuations import ROWS_TOGETHER
    from workbench.analyses.text_quality.items import LOGITS_TOGETHER, TOKENS_TOGETHER
    from workbench.analyses.text_quality.quality import text_quality  # noqa: F401 - what it loads counts in memory
    from workbench.data.batteries import read_prompts
    from workbench.models.costs import cache_bytes, forward_bytes, forward_flops, weights_bytes

    sets = read_prompts() if settings.prompts is None else read_prompts(settings.prompts)
    n_rows = settings.n_samples * sum(len(one.prompts) for one in sets)
    n_new = settings.max_new_tokens
    length = n_new + max(1, min(64, cfg.n_ctx - n_new))
    n_together = min(ROWS_TOGETHER, n_rows)
    sampling = cache_bytes(cfg, n_together * length) + n_together * cfg.d_vocab * (3 * 4 + 2 * 8)
    asking = min(LOGITS_TOGETHER, TOKENS_TOGETHER // ITEM_TOKENS * cfg.d_vocab) * (4 + 2 * 8)
    asking += forward_bytes(cfg, TOKENS_TOGETHER)
    held = max(sampling + forward_bytes(cfg, n_together * (length - n_new)), asking)
    flops = forward_flops(cfg, n_rows, length, unembedded=n_rows * n_new)
    return Cost(flops=flops, bytes_on_device=weights_bytes(cfg) + held)
