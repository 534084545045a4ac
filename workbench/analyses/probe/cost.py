"""What `probe` takes, by formula."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from workbench.extend import Cost, TextSize

if TYPE_CHECKING:
    from workbench.models.config import ModelConfig


def cost(cfg: ModelConfig, settings: Any, text: TextSize) -> Cost:
    """Every state of a batch; the states of text, and of one layer the distances that are held while neighbours are
    looked for; the mean states of all words. Prompts are short: their operations are left out."""
    from probes.neighbours import HELD_VALUES
    from workbench.analyses.probe.concept_tests import probe  # noqa: F401 - what it loads counts among the bytes in memory
    from workbench.analyses.probe.states import TOKENS_A_BATCH
    from workbench.data.concepts import read_concepts
    from workbench.models.costs import forward_bytes, forward_flops, weights_bytes

    n_states, itemsize = cfg.n_layers + 1, cfg.dtype.itemsize
    a_batch = TOKENS_A_BATCH * n_states * cfg.d_model * itemsize + forward_bytes(cfg, TOKENS_A_BATCH)
    n_points = min(settings.n_points, text.n_tokens)
    n_words = sum(len(one.all_words) for one in read_concepts())
    states = n_states * cfg.d_model * (max(4, itemsize) * n_points + 8 * n_words)
    neighbours = 8 * (2 * n_points * cfg.d_model + HELD_VALUES) if n_points else 0
    return Cost(
        flops=forward_flops(cfg, text.n_windows, text.n_ctx, unembedded=0),
        bytes_in_memory=states + neighbours,
        bytes_on_device=weights_bytes(cfg) + a_batch,
    )
