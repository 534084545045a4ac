"""What `attribute` takes, by formula."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from workbench.extend import Cost, TextSize

if TYPE_CHECKING:
    from workbench.models.config import ModelConfig


def cost(cfg: ModelConfig, settings: Any, text: TextSize) -> Cost:
    """Of prompts of about 32 tokens: two forward passes for what parts write and for the lens; a forward and a backward
    pass for the gradients of each direction, whose graph is held; for every exact cell the layers from its own on."""
    from workbench.analyses.attribute.sites import SITES, cells_of
    from workbench.analyses.patch.sizes import held_bytes, plan_sizes
    from workbench.analyses.tasks.cost import PROMPT_TOKENS
    from workbench.models.checks import choose
    from workbench.models.costs import MEMORY_BUDGET_BYTES, block_width, forward_flops, weights_bytes

    own, length = settings, min(PROMPT_TOKENS, cfg.n_ctx)
    cells = cells_of(cfg, [site for site in own.site if site in SITES], choose("layers", own.layers, cfg.n_layers))
    n_places = sum(length if name == "each" else 1 for name in own.position)
    a_pass = forward_flops(cfg, own.n_pairs, length, unembedded=own.n_pairs)
    n_passes = 4.0 + 2 * ("dla" in own.methods) + 2 * ("lens" in own.methods)
    gradients = ("atp" in own.methods or "atp_qk" in own.methods) + own.n_steps * ("atp_ig" in own.methods)
    n_passes += len(own.direction) * (1 + 3 * gradients)
    if "exact" in own.methods:
        n_passes += len(own.direction) * n_places * sum(1 - cell.layer / cfg.n_layers for cell in cells)
    itemsize, n_tokens = max(4, cfg.dtype.itemsize), own.n_pairs * length
    kept = n_tokens * itemsize * cfg.n_layers * cfg.d_model * (1 + 3 * len(own.site))
    graph = n_tokens * itemsize * cfg.n_layers * block_width(cfg) if gradients else 0
    running = 0
    if "exact" in own.methods and cells:
        sites = list(dict.fromkeys(cell.site for cell in cells))
        sizes = plan_sizes(cfg, length, own.n_pairs, sites, MEMORY_BUDGET_BYTES)
        running = held_bytes(cfg, sizes, length, n_places * len(cells) // cfg.n_layers, sites)
    return Cost(flops=n_passes * a_pass, bytes_on_device=weights_bytes(cfg) + max(kept + graph, running))
