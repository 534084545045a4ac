"""Forward passes of prompts in which some nodes are exchanged: replaced by their activations on other prompts.

Many sets of nodes are stacked along the batch. A head is exchanged at its z and an MLP at its output, so that nothing
is assumed of how either enters the stream: it is exact behind norms, with grouped keys, in parallel blocks, under
attention residuals and in every effective layer of a recurrent model. Every other node is computed from what reaches
it; embeddings and positions are always those of the base prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from workbench.analyses.scrub.circuits import Nodes, node_mask
from workbench.data.pairs import PairTokens
from workbench.models.checks import Hook, check_hooks, check_read, device_of, is_whole, run_hooked, run_watched
from workbench.models.costs import TOKENS_TOGETHER, block_width, check_budget, more_on_a_gpu
from workbench.models.cross_entropy import softcap
from workbench.models.states import repeat_state


@dataclass(frozen=True)
class Exchange:
    """Which nodes are replaced."""

    nodes: Nodes
    is_complement: bool = False
    """whether it is all nodes but these"""

    @property
    def first_layer(self) -> int:
        """A layer before which nothing is replaced."""
        return 0 if self.is_complement or not self.nodes else min(node.layer for node in self.nodes)


def keeping(nodes: Nodes) -> Exchange:
    """Everything but these nodes is replaced: what scrubbing does to test a circuit."""
    return Exchange(nodes, is_complement=True)


@dataclass(frozen=True)
class Prompts:
    """Which prompts go through the model and which lend activations, pair by pair."""

    base: Int[Tensor, "pair pos"]
    source: Int[Tensor, "pair pos"]
    pairs: PairTokens
    """what effects are of, and where named positions are"""

    def take(self, rows: slice) -> Prompts:
        """Some of the pairs."""
        return Prompts(self.base[rows], self.source[rows], self.pairs.take(rows))

    @property
    def n_pos(self) -> int:
        """Positions, the filling behind shorter prompts included."""
        return self.base.shape[1]


# --- what fits into memory


@dataclass(frozen=True)
class Sizes:
    """Pairs whose source activations are held, and rows (of all sets) that go on together."""

    n_pairs: int
    n_rows: int


def row_bytes(cfg: Any, n_pos: int) -> tuple[int, int]:
    """(bytes of a pair's activations that are kept; of a row that goes on), weights apart."""
    itemsize, width_z = max(4, cfg.dtype.itemsize), cfg.n_heads * cfg.d_head
    ours = hasattr(cfg, "use_qk_norm")  # the generic path has no widths by formula
    width = block_width(cfg) if ours else 8 * cfg.d_model + 3 * (cfg.d_mlp or 4 * cfg.d_model) + 8 * width_z
    kept = cfg.n_layers * (width_z + 2 * cfg.d_model)
    logits = 3 * itemsize * cfg.d_vocab * (1 if ours else n_pos)
    maps = 0 if ours else 3 * itemsize * cfg.n_heads * n_pos**2
    masks = n_pos * cfg.n_layers * (cfg.n_heads + 1)
    return n_pos * itemsize * kept, n_pos * itemsize * (width + width_z + cfg.d_model) + logits + maps + masks


def plan_sizes(cfg: Any, n_pairs: int, n_pos: int, n_sets: int, budget: int) -> Sizes:
    """The cut that keeps what is held at once below `budget` bytes, weights apart.

    Raises:
        ValueError: a budget too small for one set of one pair.
    """
    kept, row = row_bytes(cfg, n_pos)
    check_budget(budget, kept + row, "one circuit and one pair")
    scale = more_on_a_gpu(cfg.device)
    together = max(1, min(scale * TOKENS_TOGETHER // n_pos, budget // 2 // row))
    held = max(1, min(n_pairs, together, (budget - min(together, n_pairs) * row) // kept))
    return Sizes(held, max(held, min(together, n_sets * held)))


# --- effects


def check_model(model: Any) -> None:
    """Raise ValueError for a model whose heads or MLPs cannot be replaced at hooks."""
    names = [name for layer in range(model.cfg.n_layers) for name in hook_names(layer)]
    check_hooks(model, names)
    if not is_whole(model):
        check_read(model, torch.zeros(1, 2, dtype=torch.int64), names)


def hook_names(layer: int) -> tuple[str, str]:
    """The hooks at which the heads and the MLP of a layer are replaced."""
    return f"blocks.{layer}.attn.hook_z", f"blocks.{layer}.hook_mlp_out"


@torch.no_grad()
def exchanged_effects(
    model: Any,
    prompts: Prompts,
    exchanges: Sequence[Exchange],
    budget: int,
    tell: Callable[[float], None] = lambda share: None,
) -> Float64[Tensor, "set pair"]:
    """The task's measure m behind each base prompt, with each set of nodes replaced by what it is on the source prompt.

    Args:
        exchanges: the sets; the empty one gives m of the base prompt as it is.
        budget: bytes to use beside the weights.
        tell: gets the share done.

    Raises:
        ValueError: a budget too small for one pair; a model without the hooks.
    """
    found = torch.full((len(exchanges), len(prompts.base)), torch.nan, dtype=torch.float64)
    sizes = plan_sizes(model.cfg, len(prompts.base), prompts.n_pos, len(exchanges), budget)
    order = sorted(range(len(exchanges)), key=lambda i: exchanges[i].first_layer)
    n_done = 0
    for start in range(0, len(prompts.base), sizes.n_pairs):
        rows = slice(start, start + sizes.n_pairs)
        batch = None  # not two at once
        batch = _Batch(model, prompts.take(rows))
        n_sets = max(1, sizes.n_rows // len(batch.prompts.base))
        for some in _chunks(order, exchanges, n_sets):
            found[some, rows] = batch.effects([exchanges[i] for i in some])
            n_done += len(some) * len(batch.prompts.base)
            tell(n_done / found.numel())
    return found


def _chunks(order: Sequence[int], exchanges: Sequence[Exchange], n: int) -> list[list[int]]:
    """At most n sets each, those of one first layer together."""
    found: list[list[int]] = []
    for i in order:
        if not found or len(found[-1]) == n or exchanges[found[-1][0]].first_layer != exchanges[i].first_layer:
            found.append([])
        found[-1].append(i)
    return found


class _Batch:
    """Some pairs with the activations of their source prompts, and the states of their base prompts as they are asked
    for, layer by layer upwards."""

    def __init__(self, model: Any, prompts: Prompts) -> None:
        self.model, self.prompts, self.n_layers = model, prompts, model.cfg.n_layers
        self.base, self.last = prompts.base.to(device_of(model)), prompts.pairs.last.to(device_of(model))
        names = [name for layer in range(self.n_layers) for name in hook_names(layer)]
        stop = self.n_layers if is_whole(model) else None
        self.lent = run_watched(model, prompts.source.to(device_of(model)), names, stop)
        self.state: Any = model.embed_state(self.base) if is_whole(model) else None
        self.layer = 0

    def effects(self, exchanges: Sequence[Exchange]) -> Float64[Tensor, "set pair"]:
        """m of every pair under each set; the sets begin at one layer."""
        n, first = len(exchanges), exchanges[0].first_layer
        hooks = [hook for layer in range(first, self.n_layers) for hook in self._hooks(layer, exchanges)]
        last = self.last.repeat(n)
        if is_whole(self.model):
            logits = self._go_on(first, n, hooks, last)
        else:
            whole = run_hooked(self.model, self.base.repeat(n, 1), hooks, return_type="logits")
            logits = whole[torch.arange(len(last), device=whole.device), last.to(whole.device)]
        logits = logits.unflatten(0, (n, -1))
        return torch.stack([self.prompts.pairs.effect(own).double().cpu() for own in logits])

    def _go_on(self, first: int, n: int, hooks: Sequence[Hook], last: Tensor) -> Float[Tensor, "row d_vocab"]:
        model = self.model
        if first > self.layer:
            self.state = model(self.state, start_at_layer=self.layer, stop_at_layer=first)
            self.layer = first
        hooked: AbstractContextManager[Any] = model.hooks(fwd_hooks=list(hooks)) if hooks else nullcontext()
        with hooked:
            state = model(repeat_state(self.state, n), start_at_layer=first, return_type=None)
        x = model.ln_final(model.read_out(state)[torch.arange(len(last), device=last.device), last])
        logits = x @ model.W_U.to(x.dtype)
        return softcap(logits if model.b_U is None else logits + model.b_U, model.cfg.output_logits_soft_cap)

    def _hooks(self, layer: int, exchanges: Sequence[Exchange]) -> list[Hook]:
        """Hooks of a layer at which some set replaces something."""
        n_heads, pairs = self.model.cfg.n_heads, self.prompts.pairs
        masks = [node_mask(own.nodes, layer, n_heads, pairs) ^ own.is_complement for own in exchanges]
        mask = torch.stack(masks).to(self.base.device)  # [set pair pos part]
        of_z, of_mlp = hook_names(layer)
        hooks: list[Hook] = []
        if bool(mask[..., :n_heads].any()):
            hooks.append((of_z, _replacing(mask[..., :n_heads, None], self.lent[of_z])))
        if bool(mask[..., n_heads].any()):
            hooks.append((of_mlp, _replacing(mask[..., n_heads, None], self.lent[of_mlp])))
        return hooks


def _replacing(is_replaced: Tensor, lent: Tensor) -> Callable[[Tensor, Any], Tensor]:
    def replace(activation: Tensor, hook: Any) -> Tensor:
        own = activation.unflatten(0, is_replaced.shape[:2])
        where, other = is_replaced.to(activation.device), lent.to(activation)
        return torch.where(where, other, own).flatten(0, 1)

    return replace
