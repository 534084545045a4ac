"""Loss of a stack and its gradients, block by block.

A block is a few SAEs by a few hundred tokens, so that on a CPU its activations stay in the cache between the products
of a step, and memory does not grow with the batch. Every sum over tokens is over all blocks, in the parameters' dtype.
What a block computes is its architecture's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae.architecture import Batch, LossAndGradients
from sae.architectures import architecture_of
from sae.config import SAEConfig
from sae.stack import StackedSAE, check_input_index, check_target

# activations of one block; on a CPU 2 to 4 MB, the size of a core's second-level cache
_BLOCK_ACTS = {"cpu": 2**20}
_BLOCK_ACTS_ELSEWHERE = 2**27
_BLOCK_TOKENS = 256
BlockSums = Callable[..., dict[str, Tensor]]
"""`Architecture.sum_block`, or its compiled form."""


def loss_and_gradients(
    sae: StackedSAE,
    x: Float[Tensor, "n_inputs tokens d_in"],
    l1: Float[Tensor, " n_saes"],
    input_index: Int[Tensor, " n_saes"] | Sequence[int] | int | None = None,
    *,
    use_bf16: bool = False,
    block_sums: BlockSums | None = None,
    progress: float = 0.0,
    dead: Bool[Tensor, "n_saes d_sae"] | None = None,
    y: Float[Tensor, "n_inputs tokens d_out"] | None = None,
) -> LossAndGradients:
    """Loss of every SAE on x and its gradients, as its architecture's file says.

        loss = mean over tokens of ( Σ over d_in (recon − x)² + l1 · sparsity ) + auxiliary

    A transcoder's target is y, slot by slot of the same tokens as x, in the place of x.

    `input_index[k]` names SAE k's slot in x (default: slot k), so a sweep does not copy its input. With `use_bf16` the
    products run in bfloat16 on weights rounded once; x − b_dec is taken before the rounding. `block_sums` stands in
    for the block's arithmetic (its compiled form). `progress` is the share of the training that is done, `dead` the
    features that an auxiliary loss of dead ones is of.

    Raises ValueError for an x, y, l1 or input_index that does not fit, and for a y that is missing or that the SAEs do
    not read.
    """
    config, architecture = sae.config, sae.architecture
    if config.normalize_inputs is not None:
        raise ValueError(
            f"loss_and_gradients: got normalize_inputs = {config.normalize_inputs!r}; expected None, as in training"
        )
    if x.ndim != 3 or x.shape[1] == 0 or x.shape[2] != config.d_in or not x.is_floating_point():
        raise ValueError(
            f"loss_and_gradients: x has shape {tuple(x.shape)} and is {x.dtype}; "
            f"expected floating-point (n_inputs, tokens ≥ 1, {config.d_in})"
        )
    check_target("loss_and_gradients", config, x, y)
    if l1.shape != (config.n_saes,):
        raise ValueError(f"loss_and_gradients: l1 has shape {tuple(l1.shape)}; expected ({config.n_saes},)")
    slots = check_input_index(input_index, config.n_saes, x.shape[0])
    with torch.no_grad():
        batch = Batch(l1, sae.b_dec.new_full((), progress), dead)
        sums = _sum_blocks(sae, x, y, batch, slots, use_bf16, block_sums or architecture.sum_block)
        return architecture.finish(config, sae.tensors, l1, x.shape[1], sums)


def split_evenly(n: int, most: int) -> list[slice]:
    """Consecutive slices that cover range(n), none longer than `most` (≥ 1), of at most two lengths."""
    n_parts = -(-n // max(1, most))
    bounds = [part * n // n_parts for part in range(n_parts + 1)]
    return [slice(a, b) for a, b in zip(bounds, bounds[1:], strict=False)]


def block_slices(config: SAEConfig, n_tokens: int, device_type: str) -> tuple[list[slice], list[slice]]:
    """SAEs and tokens of the blocks, which hold all tokens where features are chosen among them."""
    acts, d_sae = _BLOCK_ACTS.get(device_type, _BLOCK_ACTS_ELSEWHERE), config.d_sae
    chooses = architecture_of(config).chooses_in_batch
    least_tokens = n_tokens if chooses else min(n_tokens, _BLOCK_TOKENS)
    sae_slices = split_evenly(config.n_saes, acts // (least_tokens * d_sae))
    widest = max(part.stop - part.start for part in sae_slices)
    return sae_slices, split_evenly(n_tokens, max(least_tokens, acts // (widest * d_sae)))


def _take_inputs(x: Tensor, slots: list[int], tokens: slice) -> Tensor:
    """x of these slots and tokens; a view where the slots are consecutive or all one, else a copy of this block."""
    first, n = slots[0], len(slots)
    if slots == list(range(first, first + n)):
        return x[first : first + n, tokens]
    if slots == [first] * n:
        return x[first, tokens].expand(n, -1, -1)
    return x[:, tokens][slots]


def _sum_blocks(
    sae: StackedSAE,
    x: Tensor,
    y: Tensor | None,
    batch: Batch,
    slots: list[int],
    use_bf16: bool,
    block_sums: BlockSums,
) -> dict[str, Tensor]:
    """The block's sums over all blocks, n_saes leading; of `least_active` the least."""
    config, w = sae.config, sae.tensors
    products = torch.bfloat16 if use_bf16 else sae.dtype
    given = {**w, **sae.architecture.prepare(config, w, batch.l1)}
    # matrices are what products read
    given = {name: tensor.to(products) if tensor.ndim == 3 else tensor for name, tensor in given.items()}
    totals: dict[str, Tensor] = {}
    sae_slices, token_slices = block_slices(config, x.shape[1], x.device.type)
    for part in sae_slices:
        weights = {name: tensor[part] for name, tensor in given.items()}
        own = Batch(batch.l1[part], batch.progress, None if batch.dead is None else batch.dead[part])
        for tokens in token_slices:
            if y is not None:
                own = own._replace(y=_take_inputs(y, slots[part], tokens))
            for name, addend in block_sums(config, weights, _take_inputs(x, slots[part], tokens), own).items():
                if name not in totals:
                    start = torch.inf if name == "least_active" else 0.0
                    totals[name] = sae.b_dec.new_full((config.n_saes, *addend.shape[1:]), start)
                whole = totals[name][part]
                torch.minimum(whole, addend, out=whole) if name == "least_active" else whole.add_(addend)
    return totals
