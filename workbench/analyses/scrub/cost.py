"""What `scrub` takes, by formula."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from workbench.extend import Cost, TextSize

if TYPE_CHECKING:
    from workbench.models.config import ModelConfig

N_POS = 40  # positions of a pair's prompts, about: tasks are made only when a model is at hand
FOUND_NODES = 1 / 8  # share of all nodes that a search takes, about


def cost(cfg: ModelConfig, settings: Any, text: TextSize) -> Cost:
    """Of prompts of 40 tokens: forwards of both sides; half a forward for each head, and, of a search, for each node;
    whole ones for the circuits that it tries, for random ones and for those without each member, the circuit found
    being an eighth of all nodes.
    """
    from workbench.analyses.scrub.engine import plan_sizes, row_bytes
    from workbench.analyses.scrub.scrubbing import SETS_TOGETHER
    from workbench.analyses.scrub.search import tried_sizes
    from workbench.models.costs import bytes_of, forward_flops, weights_bytes

    itemsize = max(4, cfg.dtype.itemsize)
    narrow = weights_bytes(cfg) * itemsize / cfg.dtype.itemsize if cfg.dtype.itemsize < itemsize else 0
    n_pos, n_pairs = min(N_POS, cfg.n_ctx), settings.n_pairs
    n_nodes = cfg.n_layers * (cfg.n_heads + 1)
    n_heads = len(settings.heads) or cfg.n_layers * cfg.n_heads
    n_found = max(1, round(FOUND_NODES * n_nodes))
    n_tested = n_pairs * (4 + settings.n_random + n_found)
    if settings.circuits is None:  # half of the pairs to search on, half to test on
        n_tried = sum(1 for size in tried_sizes(n_nodes) if size <= n_found)
        n_tested = n_tested / 2 + n_pairs / 2 * (n_nodes / 2 + n_tried)
    n_forwards = 4 * n_pairs + n_tested + n_pairs * n_heads / 2
    a_pass = forward_flops(cfg, 1, n_pos, unembedded=1)
    budget = bytes_of(settings.memory_gib)
    kept, row = row_bytes(cfg, n_pos)
    sizes = plan_sizes(cfg, n_pairs, n_pos, SETS_TOGETHER, max(budget, kept + row))
    held = sizes.n_pairs * kept + sizes.n_rows * row
    gate = 2 * itemsize * min(1 << 26, n_pairs * n_pos * cfg.d_vocab)
    return Cost(flops=n_forwards * a_pass, bytes_on_device=weights_bytes(cfg) + narrow + max(held, gate))
