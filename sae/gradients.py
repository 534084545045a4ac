"""Loss of a stack and its gradients, by hand, block by block.

A block is a few SAEs by a few hundred tokens, so that on a CPU its activations stay in the cache between the five
products of a step, and memory does not grow with the batch. Every sum over tokens is over all blocks, in the
parameters' dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.config import SAEConfig
from sae.stack import StackedSAE, check_input_index, decoder_norms, keep_top

# activations of one block; on a CPU 2 to 4 MB, the size of a core's second-level cache
_BLOCK_ACTS = {"cpu": 2**20}
_BLOCK_ACTS_ELSEWHERE = 2**27
_BLOCK_TOKENS = 256


class LossAndGradients(NamedTuple):
    """What one batch says of a stack; every mean is over the batch's tokens."""

    squared_error: Float[Tensor, " n_saes"]
    """Squared error summed over d_in, mean."""
    sparsity: Float[Tensor, " n_saes"]
    """Σ acts·‖W_dec row‖, mean; jumprelu: number of active features, mean."""
    n_active: Float[Tensor, "n_saes d_sae"]
    """Tokens on which the feature is active."""
    least_active: Float[Tensor, " n_saes"]
    """batchtopk: smallest positive activation; inf if there is none. Other architectures: inf."""
    gradients: dict[str, Tensor]
    """Gradient of squared_error + l1·sparsity for every parameter, by its name."""


class _Sums(NamedTuple):
    """Sums over a block's tokens; gradients in units of 2 / batch size."""

    squared_error: Tensor
    n_active: Tensor
    acts: Tensor
    least_active: Tensor
    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    residual: Tensor
    threshold: Tensor


def loss_and_gradients(
    sae: StackedSAE,
    x: Float[Tensor, "n_inputs tokens d_in"],
    l1: Float[Tensor, " n_saes"],
    input_index: Int[Tensor, " n_saes"] | Sequence[int] | int | None = None,
    *,
    use_bf16: bool = False,
    block_sums: Callable[..., _Sums] | None = None,
) -> LossAndGradients:
    """Loss of every SAE on x and its gradients, without autograd.

        loss = mean over tokens of ( Σ over d_in (recon − x)² + l1 · Σ acts · ‖W_dec row‖ )

    jumprelu has the number of active features in the place of the second sum, and the straight-through gradients of
    Rajamanoharan et al. 2024 (eq. 11, 12) for its threshold θ, with the rectangle kernel K of width ε:
    ∂z·[z>θ]/∂θ := −(θ/ε) K((z−θ)/ε), ∂[z>θ]/∂θ := −(1/ε) K((z−θ)/ε). They train log θ; here θ itself is the
    parameter, since a step of Adam on log θ is a factor and hardly moves a small start. topk and batchtopk pass the
    gradient through the features kept.

    `input_index[k]` names SAE k's slot in x (default: slot k), so a sweep does not copy its input. With `use_bf16` the
    products run in bfloat16 on weights rounded once; x − b_dec is taken before the rounding. `block_sums` stands in
    for the block's arithmetic (its compiled form).

    Raises ValueError for an x, l1 or input_index that does not fit.
    """
    config = sae.config
    if x.ndim != 3 or x.shape[1] == 0 or x.shape[2] != config.d_in or not x.is_floating_point():
        raise ValueError(
            f"loss_and_gradients: x has shape {tuple(x.shape)} and is {x.dtype}; "
            f"expected floating-point (n_inputs, tokens ≥ 1, {config.d_in})"
        )
    if l1.shape != (config.n_saes,):
        raise ValueError(f"loss_and_gradients: l1 has shape {tuple(l1.shape)}; expected ({config.n_saes},)")
    slots = check_input_index(input_index, config.n_saes, x.shape[0])
    with torch.no_grad():
        return _finish(sae, l1, x.shape[1], _sum_blocks(sae, x, l1, slots, use_bf16, block_sums or sum_block))


def sum_block(
    x: Float[Tensor, "s t d_in"],
    W_enc: Float[Tensor, "s d_in d_sae"],
    b_enc: Float[Tensor, "s d_sae"],
    W_dec: Float[Tensor, "s d_sae d_in"],
    b_dec: Float[Tensor, "s d_in"],
    penalty: Float[Tensor, "s d_sae"],
    threshold: Float[Tensor, "s d_sae"],
    architecture: str,
    k: float,
    apply_b_dec_to_input: bool,
    bandwidth: float,
) -> _Sums:
    """Sums of one block. W_enc and W_dec set the dtype of the products; `penalty` is half the sparsity coefficient of
    every feature, to stand in units of 2 / batch size as the residual does. Pure tensor arithmetic, so it compiles."""
    dtype, wide = W_enc.dtype, b_enc.dtype
    target = x.to(wide) - b_dec.unsqueeze(1)
    inputs = (target if apply_b_dec_to_input else x).to(dtype)
    pre = torch.bmm(inputs, W_enc).to(wide).add_(b_enc.unsqueeze(1))
    acts = _activate_in_training(pre, threshold, architecture, k)
    is_active = acts.sign()
    n_active = is_active.sum(dim=1)
    sum_acts = acts.sum(dim=1)
    least_active = sum_acts
    if architecture == "batchtopk":
        least_active = torch.where(acts > 0, acts, torch.inf).amin(dim=(1, 2))
    acts = acts.to(dtype)

    residual = torch.bmm(acts, W_dec).to(wide).sub_(target)
    squared_error = residual.square().sum(dim=(1, 2))
    sum_residual = residual.sum(dim=1)
    narrow = residual.to(dtype)
    grad_W_dec = torch.bmm(acts.mT, narrow)
    grad_acts = torch.bmm(narrow, W_dec.mT).to(wide)
    grad_threshold = sum_acts
    if architecture == "jumprelu":
        in_window = _is_positive(bandwidth / 2 - (pre - threshold.unsqueeze(1)).abs_())
        through = (threshold.unsqueeze(1) * grad_acts).add_(penalty.unsqueeze(1)).mul_(in_window)
        grad_threshold = through.sum(dim=1) * (-1 / bandwidth)
        grad_pre = grad_acts.mul_(is_active)
    else:
        grad_pre = grad_acts.add_(penalty.unsqueeze(1)).mul_(is_active)
    grad_b_enc = grad_pre.sum(dim=1)
    grad_W_enc = torch.bmm(inputs.mT, grad_pre.to(dtype))
    return _Sums(
        squared_error,
        n_active,
        sum_acts,
        least_active,
        grad_W_enc,
        grad_b_enc,
        grad_W_dec,
        sum_residual,
        grad_threshold,
    )


def split_evenly(n: int, most: int) -> list[slice]:
    """Consecutive slices that cover range(n), none longer than `most` (≥ 1), of at most two lengths."""
    n_parts = -(-n // max(1, most))
    bounds = [part * n // n_parts for part in range(n_parts + 1)]
    return [slice(a, b) for a, b in zip(bounds, bounds[1:], strict=False)]


def _activate_in_training(pre: Tensor, threshold: Tensor, architecture: str, k: float) -> Tensor:
    if architecture == "topk":
        return keep_top(pre, int(k))
    if architecture == "batchtopk":
        flat = pre.flatten(start_dim=1)
        return keep_top(flat, max(1, int(k * pre.shape[1]))).view_as(pre)
    if architecture == "jumprelu":
        return _is_positive(pre - threshold.unsqueeze(1)).mul_(pre)
    return pre.relu_()


def _is_positive(x: Tensor) -> Tensor:
    """1 where x > 0, else 0, written into x: several times faster on a CPU than a comparison, if not compiled."""
    return x.sign_().clamp_min_(0)


def _block_slices(config: SAEConfig, n_tokens: int, device_type: str) -> tuple[list[slice], list[slice]]:
    """SAEs and tokens of the blocks. batchtopk chooses among all tokens at once, so its blocks hold them all."""
    acts = _BLOCK_ACTS.get(device_type, _BLOCK_ACTS_ELSEWHERE)
    least_tokens = n_tokens if config.architecture == "batchtopk" else min(n_tokens, _BLOCK_TOKENS)
    sae_slices = split_evenly(config.n_saes, acts // (least_tokens * config.d_sae))
    widest = max(part.stop - part.start for part in sae_slices)
    return sae_slices, split_evenly(n_tokens, max(least_tokens, acts // (widest * config.d_sae)))


def _take_inputs(x: Tensor, slots: list[int], tokens: slice) -> Tensor:
    """x of these slots and tokens; a view where the slots are consecutive or all one, else a copy of this block."""
    first, n = slots[0], len(slots)
    if slots == list(range(first, first + n)):
        return x[first : first + n, tokens]
    if slots == [first] * n:
        return x[first, tokens].expand(n, -1, -1)
    return x[:, tokens][slots]


def _sum_blocks(
    sae: StackedSAE, x: Tensor, l1: Tensor, slots: list[int], use_bf16: bool, block_sums: Callable[..., _Sums]
) -> _Sums:
    config = sae.config
    W_enc, b_enc, W_dec, b_dec = sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec
    is_jumprelu = config.architecture == "jumprelu"
    threshold = sae.threshold if is_jumprelu else b_enc
    penalty = 0.5 * l1.to(b_enc).unsqueeze(1) * (torch.ones_like(b_enc) if is_jumprelu else decoder_norms(W_dec))
    products = torch.bfloat16 if use_bf16 else W_enc.dtype
    W_enc_narrow, W_dec_narrow = W_enc.to(products), W_dec.to(products)
    per_sae, per_feature = b_enc.new_zeros(config.n_saes), torch.zeros_like(b_enc)
    total = _Sums(
        per_sae,
        per_feature,
        per_feature.clone(),
        torch.full_like(per_sae, torch.inf),
        torch.zeros_like(W_enc),
        per_feature.clone(),
        torch.zeros_like(W_dec),
        torch.zeros_like(b_dec),
        per_feature.clone(),
    )
    sae_slices, token_slices = _block_slices(config, x.shape[1], x.device.type)
    for part in sae_slices:
        weights = [W_enc_narrow[part], b_enc[part], W_dec_narrow[part], b_dec[part], penalty[part], threshold[part]]
        for tokens in token_slices:
            sums = block_sums(
                _take_inputs(x, slots[part], tokens),
                *weights,
                config.architecture,
                float(config.k or 0),
                config.apply_b_dec_to_input,
                config.bandwidth,
            )
            for name, whole, addend in zip(_Sums._fields, total, sums, strict=True):
                if name == "least_active":
                    if config.architecture == "batchtopk":
                        torch.minimum(whole[part], addend, out=whole[part])
                elif name != "threshold" or is_jumprelu:
                    whole[part].add_(addend)
    return total


def _finish(sae: StackedSAE, l1: Tensor, n_tokens: int, sums: _Sums) -> LossAndGradients:
    """Means and gradients from the sums over all tokens."""
    config = sae.config
    scale = 2 / n_tokens
    gradients = {
        "W_enc": sums.W_enc.mul_(scale),
        "b_enc": sums.b_enc.mul_(scale),
        "W_dec": sums.W_dec.mul_(scale),
        "b_dec": sums.residual.mul_(scale),
    }
    if config.apply_b_dec_to_input:
        gradients["b_dec"] -= torch.einsum("ndf,nf->nd", sae.W_enc, gradients["b_enc"])
    if config.architecture == "jumprelu":
        sparsity = sums.n_active.sum(dim=-1) / n_tokens
        gradients["threshold"] = sums.threshold.mul_(scale)
    else:
        norms = decoder_norms(sae.W_dec)
        mean_acts = sums.acts / n_tokens
        sparsity = (mean_acts * norms).sum(dim=-1)
        # a zero row has no direction: its norm's subgradient 0 is taken
        pull = torch.where(norms > 0, l1.to(norms).unsqueeze(1) * mean_acts / norms, 0)
        gradients["W_dec"].addcmul_(pull.unsqueeze(-1), sae.W_dec)
    return LossAndGradients(sums.squared_error / n_tokens, sparsity, sums.n_active, sums.least_active, gradients)
