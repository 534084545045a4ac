"""What `monitor` takes, by formula."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from workbench.extend import Cost, TextSize

if TYPE_CHECKING:
    from workbench.models.config import ModelConfig

N_EVALUATIONS = 60  # of a logistic objective, about, for each penalty


def cost(cfg: ModelConfig, settings: Any, text: TextSize) -> Cost:
    """A forward pass of the tokens to the site, logistic probes of it and of the embedding on three fifths of them, and
    three or two times the continuations and the test texts."""
    from workbench.analyses.monitor.armed import N_PROMPT, ROWS_TOGETHER
    from workbench.analyses.monitor.building import MAX_N_CTX
    from workbench.analyses.monitor.examples import BATCH_TOKENS
    from workbench.analyses.monitor.quality import GRID_OF_C
    from workbench.models.costs import cache_bytes, forward_bytes, forward_flops, loss_bytes, weights_bytes

    n_ctx = settings.n_window or min(cfg.n_ctx, MAX_N_CTX)
    width = cfg.d_head if settings.head is not None else cfg.d_model
    n, n_training = settings.n_tokens, 0.6 * settings.n_tokens
    length, rows = N_PROMPT + settings.max_new_tokens, min(ROWS_TOGETHER, settings.n_continuations)
    n_written = settings.n_continuations * (2 if settings.action == "log" else 3)
    n_read = settings.n_continuations * (2 if settings.action in ("ablate", "steer") else 1)
    arrays = 4.0 * n * (2 * width + cfg.d_model)  # what is read, twice of a site, and the embedding
    fits = 3 * 8.0 * n_training * max(width, cfg.d_model)  # float64: the inputs, standardised, and a copy
    writing = cache_bytes(cfg, rows * length) + 3 * 4 * rows * cfg.d_vocab
    tokens = max(n_ctx, BATCH_TOKENS, ROWS_TOGETHER * length)
    reading = forward_bytes(cfg, tokens) + loss_bytes(cfg, tokens)
    flops = forward_flops(cfg, max(1, n // n_ctx), n_ctx, unembedded=0)
    flops += 4 * N_EVALUATIONS * n_training * len(GRID_OF_C) * (width + cfg.d_model)
    flops += forward_flops(cfg, n_written, length, unembedded=n_written * settings.max_new_tokens)
    flops += forward_flops(cfg, n_read, length)
    on_host = arrays + fits
    held = weights_bytes(cfg) + max(writing, reading)
    return Cost(
        flops=flops,
        bytes_in_memory=0.0 if cfg.device == "cpu" else on_host,
        bytes_on_device=weights_bytes(cfg) + max(writing, reading, on_host) if cfg.device == "cpu" else held,
    )
