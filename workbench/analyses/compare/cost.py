"""What `compare` takes, by formula."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from workbench.extend import Cost, TextSize

if TYPE_CHECKING:
    from workbench.models.config import ModelConfig


def cost(cfg: ModelConfig, settings: Any, text: TextSize) -> Cost:
    """Of one model of the pair: every state of a batch, in float64 as well, and the mean states of all windows, of
    both models; then the spectra."""
    from workbench.analyses.probe.states import TOKENS_A_BATCH
    from workbench.analyses.spectra.cost import cost as cost_of_spectra
    from workbench.models.costs import forward_bytes, forward_flops, weights_bytes

    n_states, n_together = cfg.n_layers + 1, max(text.n_ctx, min(TOKENS_A_BATCH, text.n_tokens))
    a_batch = n_together * cfg.d_model * (n_states * cfg.dtype.itemsize + 8) + forward_bytes(cfg, n_together)
    means = 2 * 8 * n_states * text.n_windows * cfg.d_model
    states = Cost(
        flops=forward_flops(cfg, text.n_windows, text.n_ctx, unembedded=0),
        bytes_in_memory=means,
        bytes_on_device=weights_bytes(cfg) + a_batch,
    )
    return states + cost_of_spectra(cfg, settings, text)
