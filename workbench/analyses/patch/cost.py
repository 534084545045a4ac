"""What `patch` takes, by formula."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from workbench.extend import Cost, TextSize

if TYPE_CHECKING:
    from workbench.models.config import ModelConfig


def cost(cfg: ModelConfig, settings: Any, text: TextSize) -> Cost:
    """Both prompts of every pair, prompts of about 32 tokens, and what goes on from each cell, cut as `plan_sizes` cuts
    it: the layers behind the cell's own, from the middle of the prompt on where it is at one position, and the logits
    of the last token."""
    from workbench.analyses.patch.sites import SITES, heads_of
    from workbench.analyses.patch.sizes import held_bytes, plan_sizes
    from workbench.analyses.tasks.cost import PROMPT_TOKENS
    from workbench.models.checks import choose
    from workbench.models.costs import bytes_of, forward_flops, weights_bytes

    wide = cfg.dtype.itemsize < 4
    run = cfg.model_copy(update={"dtype": _float32()}) if wide else cfg
    length, n = min(PROMPT_TOKENS, cfg.n_ctx), settings.n_pairs
    layers = choose("layers", settings.layers, cfg.n_layers)
    n_places = sum(length if name == "each" else 1 for name in settings.position)
    sites = [name for name in settings.site if name in SITES]
    n_cells = n_places * sum(len(heads_of(cfg, name, settings.heads)) for name in sites)
    sizes = plan_sizes(run, length, n, sites, bytes_of(settings.memory_gib))
    a_pass = forward_flops(cfg, n, length, unembedded=0)
    share = 1.0 if tuple(settings.position) == ("all",) else 0.5  # of a prompt, behind the position
    behind = sum(1 - (layer + 0.5) / cfg.n_layers for layer in layers)
    logits = 2.0 * cfg.d_model * cfg.d_vocab * n
    of_cells = len(settings.direction) * n_cells * (share * behind * a_pass + len(layers) * logits)
    readings = 3 * 8 * len(layers) * n_cells * n * len(settings.direction)
    held = held_bytes(run, sizes, length, n_cells, sites)
    weights = weights_bytes(cfg) + (weights_bytes(run) if wide else 0)
    return Cost(flops=4 * a_pass + of_cells, bytes_on_device=weights + held + readings, bytes_on_disk=readings)


def _float32() -> Any:
    from workbench.models.config import parse_dtype

    return parse_dtype("float32")
