"""What text quality would take, before anything is sampled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from workbench.analyses.text_quality.continuations import ROWS_TOGETHER, encode_prompts
from workbench.analyses.text_quality.items import item_margins
from workbench.data.batteries import Battery, PromptSet, battery_items
from workbench.memory import planned_bytes
from workbench.models.generate import continue_prompts
from workbench.study.analysis_plans import fastest

N_TOKENS_TIMED = 8


def plan_text_quality(
    model: Any, prompts: Sequence[PromptSet], batteries: Sequence[Battery], *, n_samples: int, max_new_tokens: int
) -> dict[str, Any]:
    """Facts about `text_quality`; arguments and errors as there. A few tokens of one batch and a few items are timed;
    tagging is not, nor is what a tagger holds among the bytes in memory."""
    encoded = list(encode_prompts(model, prompts, max_new_tokens).values())
    items = {battery.name: battery_items(battery) for battery in batteries}
    n_rows = len(encoded) * n_samples
    batch = sorted(encoded, key=len)[: min(ROWS_TOGETHER, n_rows)]
    batch = (batch * ROWS_TOGETHER)[: min(ROWS_TOGETHER, n_rows)]
    n_timed = min(N_TOKENS_TIMED, max_new_tokens)
    uniforms = torch.zeros(len(batch), n_timed, dtype=torch.float64)
    a_batch = fastest(lambda: continue_prompts(model, batch, n_timed, uniforms), model.cfg.device)
    n_steps = n_timed + max(map(len, batch)) - min(map(len, batch))
    seconds = a_batch / n_steps * max_new_tokens * n_rows / len(batch)
    for own in items.values():
        few = own[:: max(1, len(own) // 16)]
        seconds += fastest(lambda few=few: item_margins(model, few), model.cfg.device) * len(own) / len(few)
    cfg = model.cfg
    # keys and values of the tokens that were not timed
    n_left = max(map(len, encoded)) + max_new_tokens - max(map(len, batch)) - n_timed
    cached = 2 * cfg.n_layers * len(batch) * n_left * cfg.kv_heads * cfg.d_head * cfg.dtype.itemsize
    return {
        "n_prompts": len(encoded),
        "n_continuations": n_rows,
        "n_tokens": n_rows * max_new_tokens,
        **{f"n_{name}_items": len(own) for name, own in items.items()},
        **planned_bytes(cfg.device, on_device=cached),
        "seconds": round(seconds, 1),
    }
