"""What `tasks` takes, by formula."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from workbench.extend import Cost, TextSize

if TYPE_CHECKING:
    from workbench.models.config import ModelConfig

PROMPT_TOKENS = 32  # of a prompt, about


def cost(cfg: ModelConfig, settings: Any, text: TextSize) -> Cost:
    """Two forward passes of each pair, of prompts of about 32 tokens, with all logits of those that go together; the
    logits behind every prompt are held. Counting the training text's tokens is not counted."""
    from workbench.analyses.tasks.gate import NUMBERS_TOGETHER
    from workbench.data.tasks import task_names
    from workbench.models.costs import forward_bytes, forward_flops, weights_bytes

    n_tasks, length = len(settings.tasks or task_names()), min(PROMPT_TOKENS, cfg.n_ctx)
    n_together = min(settings.n_pairs, max(1, NUMBERS_TOGETHER // (length * cfg.d_vocab)))
    logits = (cfg.dtype.itemsize * n_together * length + 3 * 4 * settings.n_pairs) * cfg.d_vocab
    flops = forward_flops(cfg, 2 * n_tasks * settings.n_pairs, length)
    return Cost(flops=flops, bytes_on_device=weights_bytes(cfg) + forward_bytes(cfg, n_together * length) + logits)
