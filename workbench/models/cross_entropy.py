"""Next-token loss from the last residual, without ever holding all logits in float32."""

from __future__ import annotations

import math
import sys

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.models.alignment import n_missing, pad

# logits held at once, in elements: 128 MiB in float32; fewer chunks add up fewer gradients of W
CHUNK_ELEMENTS = 1 << 25
Scalar = float | Float[Tensor, ""]
PAD_LOGIT = -1e30  # exp is 0, and 0 times it is 0, as −∞ would not be
LARGEST_NATS = math.log(sys.float_info.max)  # 709.78; the exponential of more is no finite float64


def perplexity(nats: float) -> float:
    """exp of a mean loss in nats per token: from how many equally likely tokens a choice would be as uncertain.

    nan for nan; inf above 709.78 nats, where float64 holds no other number. It depends on the tokenizer: only models
    of one tokenizer, on one text, compare.

    >>> round(perplexity(2.925), 2)
    18.63
    """
    return math.inf if nats > LARGEST_NATS else math.exp(nats)


def softcap(logits: Tensor, cap: float) -> Tensor:
    """cap·tanh(logits / cap), or the logits themselves where cap ≤ 0."""
    return cap * torch.tanh(logits / cap) if cap > 0 else logits


def chunk_bytes(n_rows: int, d_vocab: int, product_bytes: int, soft_cap: float = -1.0) -> int:
    """What a chunk of logits takes at once while its gradients are made: itself in float32, where the products are
    narrower (`product_bytes` an element) what came out of one and what goes into the next, a soft cap's slope and the
    squares that it is made of."""
    narrow = 2 * product_bytes if product_bytes < 4 else 0
    return min(n_rows * d_vocab, CHUNK_ELEMENTS) * (4 + narrow + 8 * (soft_cap > 0))


def weighs(weight: Scalar) -> bool:
    """Whether a weight may be other than 0: a tensor's value is not read, which on a GPU would wait for it."""
    return isinstance(weight, Tensor) or weight != 0


def _slices(n_rows: int, n_columns: int) -> list[slice]:
    """Equal runs of rows, each of at most CHUNK_ELEMENTS logits."""
    n = -(-n_rows * n_columns // CHUNK_ELEMENTS)
    step = max(1, -(-n_rows // max(1, n)))
    return [slice(i, min(i + step, n_rows)) for i in range(0, n_rows, step)]


def _row_losses(
    x: Tensor, W: Tensor, b: Tensor | None, targets: Tensor, cap: float, z: float, bonus: Scalar = 0.0, n_pad: int = 0
):
    """(losses [rows], e, total, lse, slope, surprise).

    e = exp(logits − max), total = Σ e, slope = d capped / d raw or None, surprise = log p + H or None without a bonus.
    The last n_pad columns of W are no tokens: e is 0 there.
    """
    logits = (x @ W if b is None else torch.addmm(b, x, W)).float()
    slope = None
    if cap > 0:
        logits = logits.div_(cap).tanh_()
        slope = 1 - logits.square()
        logits *= cap
    if n_pad:
        logits[:, -n_pad:] = PAD_LOGIT
    picked = logits.gather(1, targets[:, None]).squeeze(1)
    top = logits.amax(-1)
    logits.sub_(top[:, None])
    surprise = logits.clone() if weighs(bonus) else None
    e = logits.exp_()
    total = e.sum(-1)
    lse = total.log() + top
    loss = lse - picked
    if z:
        loss = loss + z * lse.square()
    if surprise is not None:
        log_total = total.log()
        entropy = log_total - (e * surprise).sum(-1) / total
        loss = loss - bonus * entropy
        surprise += (entropy - log_total)[:, None]
    return loss, e, total, lse, slope, surprise


def _logit_gradient(
    e, total, lse, slope, surprise, targets: Tensor, weights: Tensor, z: float, bonus: Scalar
) -> Tensor:
    """weights · d loss / d raw logits, [rows vocab], written over e."""
    factor = 1 + 2 * z * lse if z else torch.ones_like(lse)
    if surprise is None:
        e *= (weights * factor / total)[:, None]
    else:  # d(−H)/d logit = p (log p + H)
        e *= surprise.mul_(bonus).add_(factor[:, None]).mul_((weights / total)[:, None])
    e.scatter_add_(1, targets[:, None], -weights[:, None])
    return e if slope is None else e.mul_(slope)


def _gradients(
    x: Tensor, W: Tensor, b: Tensor | None, targets: Tensor, weights: Tensor, cap: float, z: float, bonus: Scalar
):
    """(Σ weights·loss, grad x, grad W, grad b), one chunk of logits at a time."""
    d_vocab = W.shape[1]
    W, b, n_pad = _aligned(W, b)
    loss_sum = torch.zeros((), dtype=torch.float32, device=x.device)
    grad_x = torch.empty_like(x)
    grad_W: Tensor | None = None
    grad_b = None if b is None else torch.zeros_like(b, dtype=torch.float32)
    for rows in _slices(len(x), W.shape[1]):
        loss, e, total, lse, slope, surprise = _row_losses(x[rows], W, b, targets[rows], cap, z, bonus, n_pad)
        loss_sum += loss @ weights[rows]
        d = _logit_gradient(e, total, lse, slope, surprise, targets[rows], weights[rows], z, bonus)
        if grad_b is not None:
            grad_b += d.sum(0)
        d = d.to(x.dtype)
        grad_x[rows] = d @ W.T
        # [vocab d_model]: the order in which a tied or transposed W lies in memory
        part = d.T @ x[rows]
        grad_W = (
            part if grad_W is None else grad_W.add_(part) if grad_W.dtype == torch.float32 else grad_W.float() + part
        )
    assert grad_W is not None
    grad_W = grad_W[:d_vocab].T.to(W.dtype)
    return loss_sum, grad_x, grad_W, None if grad_b is None or b is None else grad_b[:d_vocab].to(b.dtype)


def _aligned(W: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor | None, int]:
    """W and b with as many columns of zeros as the device's products need, and how many."""
    n_pad = n_missing(W.shape[1], W)
    # by rows: the order in which a tied or transposed W lies in memory
    return pad(W.T, n_pad, 0).T, None if b is None else pad(b, n_pad, 0), n_pad


def _losses(
    x: Tensor, W: Tensor, b: Tensor | None, targets: Tensor, settings: tuple[float, float, Scalar]
) -> Float[Tensor, " rows"]:
    """The loss of every row."""
    W, b, n_pad = _aligned(W, b)
    slices = _slices(len(x), W.shape[1])
    return torch.cat([_row_losses(x[rows], W, b, targets[rows], *settings, n_pad)[0] for rows in slices])


class _LinearCrossEntropy(torch.autograd.Function):
    """Per-row loss of x W + b against targets; the backward recomputes each chunk's logits instead of keeping them."""

    @staticmethod
    def forward(ctx, x, W, b, targets, *settings):  # type: ignore[override]
        ctx.save_for_backward(x, W, b, targets)
        ctx.settings = settings
        return _losses(x, W, b, targets, settings)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[override]
        x, W, b, targets = ctx.saved_tensors
        _, *gradients = _gradients(x, W, b, targets, grad.float(), *ctx.settings)
        return *gradients, None, None, None, None


class _WeightedLinearCrossEntropy(torch.autograd.Function):
    """Weighted sum of row losses; gradients are made in the forward pass, where the logits already exist."""

    @staticmethod
    def forward(ctx, x, W, b, targets, weights, *settings):  # type: ignore[override]
        loss_sum, *gradients = _gradients(x, W, b, targets, weights, *settings)
        ctx.save_for_backward(*gradients)
        return loss_sum

    @staticmethod
    def backward(ctx, grad):  # type: ignore[override]
        return *(None if g is None else g * grad.to(g.dtype) for g in ctx.saved_tensors), None, None, None, None, None


def linear_cross_entropy(
    x: Float[Tensor, "rows d_model"],
    W_U: Float[Tensor, "d_model d_vocab"],
    targets: Int[Tensor, "rows"],
    *,
    b_U: Float[Tensor, "d_vocab"] | None = None,
    weights: Float[Tensor, "rows"] | None = None,
    soft_cap: float = -1.0,
    z_loss: float = 0.0,
    entropy_bonus: Scalar = 0.0,
    per_row: bool = False,
) -> Float[Tensor, ""] | Float[Tensor, "rows"]:
    """Return cross-entropy in nats of softmax(cap(x W_U + b_U)) against targets, plus z_loss·logsumexp², less
    entropy_bonus·H of the prediction.

    Logits exist for one chunk of rows at a time. `per_row` gives one loss a row and recomputes a chunk's logits in
    the backward pass; otherwise the result is Σ weights·loss (weights default to 1/rows) and the gradients are made
    with it. Products run in x's dtype (autocast's under autocast); the softmax is float32, float64 for float64 input.

    Args:
        x: residual after the final norm.
        W_U: unembedding; its dtype is brought to x's.
        targets: the token that follows each row.
        weights: share of each row in the mean, e.g. mask / mask.sum(); must not need a gradient.
        soft_cap: c of c·tanh(logit/c), ≤ 0 for none.
        z_loss: weight of logsumexp² (Chowdhery et al. 2022), 0 for none.
        entropy_bonus: weight of the prediction's entropy H = −Σ p ln p, which the loss is lessened by.
    """
    device_type = x.device.type
    if torch.is_autocast_enabled(device_type):
        x = x.to(torch.get_autocast_dtype(device_type))
    W = W_U.to(x.dtype)
    b = None if b_U is None else b_U.to(x.dtype)
    settings = (soft_cap, z_loss, entropy_bonus)
    with torch.autocast(device_type, enabled=False):
        if x.dtype == torch.float64:  # the oracle's path: plain autograd, nothing fused
            logits = softcap(x @ W if b is None else x @ W + b, soft_cap)
            lse = torch.logsumexp(logits, dim=-1)
            loss = lse - logits.gather(1, targets[:, None]).squeeze(1) + z_loss * lse.square()
            if weighs(entropy_bonus):
                log_p = logits - lse[:, None]
                loss = loss + entropy_bonus * (log_p.exp() * log_p).sum(-1)
            if per_row:
                return loss
            return loss.mean() if weights is None else loss @ weights.double()
        if per_row:
            return _LinearCrossEntropy.apply(x, W, b, targets, *settings)  # type: ignore[no-any-return]
        if weights is None:
            weights = torch.full((len(x),), 1 / max(1, len(x)), dtype=torch.float32, device=x.device)
        if not torch.is_grad_enabled():
            return _losses(x, W, b, targets, settings) @ weights
        return _WeightedLinearCrossEntropy.apply(x, W, b, targets, weights.float(), *settings)  # type: ignore[no-any-return]
