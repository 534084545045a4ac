"""How patching is cut so that what is held at once stays below a budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from workbench.analyses.patch.sites import SITES
from workbench.models import ModelConfig
from workbench.models.costs import LOGITS_HELD, TOKENS_TOGETHER, block_width, check_budget, more_on_a_gpu


@dataclass(frozen=True)
class Sizes:
    """Pairs a batch, tokens (of all cells) that go on together, logits held at once."""

    n_pairs: int
    n_tokens: int
    logits_held: int


def plan_sizes(
    cfg: ModelConfig, n_ctx: int, n_pairs: int, sites: Sequence[str], budget: int, *, n_together: int | None = None
) -> Sizes:
    """The cut that keeps what is held at once (weights and tokens apart) below `budget` bytes.

    Args:
        n_ctx: tokens a prompt.
        n_together: tokens that go on together at most; by default what a CPU or a GPU gains from.

    Raises:
        ValueError: a budget too small for one cell of one pair.
    """
    scale = more_on_a_gpu(cfg.device)
    kept, continued = bytes_per_pair(cfg, n_ctx, sites), bytes_per_token(cfg)
    least = kept + n_ctx * continued + _logit_bytes(cfg, cfg.d_vocab)
    check_budget(budget, least, "one cell of one pair")
    logits_held = max(cfg.d_vocab, min(scale * LOGITS_HELD, budget // (8 * _logit_bytes(cfg, 1))))
    logits_held = min(logits_held, (budget - kept - n_ctx * continued) // _logit_bytes(cfg, 1))
    rest = budget - _logit_bytes(cfg, logits_held)
    wanted = max(n_ctx, scale * TOKENS_TOGETHER if n_together is None else n_together)
    batch = max(1, min(n_pairs, rest // 2 // kept, rest // 2 // (n_ctx * continued)))
    return Sizes(batch, max(batch * n_ctx, min(wanted, (rest - batch * kept) // continued)), logits_held)


def held_bytes(cfg: ModelConfig, sizes: Sizes, n_ctx: int, n_cells: int, sites: Sequence[str]) -> int:
    """What is held at once of pairs cut like this, which `plan_sizes` keeps below its budget."""
    n_together = min(sizes.n_tokens, sizes.n_pairs * n_ctx * n_cells)
    logits = min(sizes.logits_held, max(1, sizes.n_pairs * n_cells) * cfg.d_vocab)
    continued = n_together * bytes_per_token(cfg)
    return sizes.n_pairs * bytes_per_pair(cfg, n_ctx, sites) + continued + _logit_bytes(cfg, logits)


def bytes_per_pair(cfg: ModelConfig, n_ctx: int, sites: Sequence[str]) -> int:
    """Kept of both prompts: states between layers, keys and values, the sites of one layer, the predictions."""
    attn_res = cfg.extensions.attn_res
    streams = 1 if attn_res is None else 1 + (attn_res.streams == "attention") + attn_res.is_learned * attn_res.n_sums
    width_z, width_k = cfg.n_heads * cfg.d_head, cfg.kv_heads * cfg.d_head
    kept = cfg.n_layers * (streams * cfg.d_model + 2 * width_k)
    # of a layer: what each site shows, z as it is, and z under exchanged queries and keys
    of_sites = sum({"query": width_z, "key": width_k}.get(SITES[name].kind, cfg.d_model) for name in sites)
    of_layer = of_sites + width_z + 3 * cfg.d_model + (width_z * len(sites) + block_width(cfg)) // 2
    maps = 4 * cfg.n_heads * n_ctx**2 if "pattern" in sites else 0
    return cfg.dtype.itemsize * (2 * n_ctx * (kept + of_layer) + maps + 5 * cfg.d_vocab)


def bytes_per_token(cfg: ModelConfig) -> int:
    """Held by a token that goes on, at the widest point of a block, with the change that it began by."""
    return cfg.dtype.itemsize * (block_width(cfg) + 2 * cfg.d_model + 2 * cfg.kv_heads * cfg.d_head)


def _logit_bytes(cfg: ModelConfig, n: int) -> int:
    """Of logits, their log-probabilities and their products with the clean ones."""
    return 4 * max(4, cfg.dtype.itemsize) * n
