"""Next-token loss from the last residual, without ever holding all logits in float32."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

CHUNK_ELEMENTS = 1 << 23  # logits held at once, in elements: 32 MiB in float32, and near the best size for CPU caches


def softcap(logits: Tensor, cap: float) -> Tensor:
    """cap·tanh(logits / cap), or the logits themselves where cap ≤ 0."""
    return cap * torch.tanh(logits / cap) if cap > 0 else logits


def _chunks(n_rows: int, n_columns: int) -> int:
    return max(1, min(n_rows, CHUNK_ELEMENTS // n_columns))


def _weighted_loss(x: Tensor, W: Tensor, b: Tensor | None, targets: Tensor, cap: float, z: float):
    """Losses [rows] in float32, the capped logits' softmax pieces, and d cap / d raw where capped."""
    raw = (x @ W if b is None else torch.addmm(b.to(x.dtype), x, W)).float()
    logits = softcap(raw, cap)
    lse = torch.logsumexp(logits, dim=-1)
    loss = lse - logits.gather(1, targets[:, None]).squeeze(1)
    return logits, lse, loss + z * lse.square() if z else loss


class _LinearCrossEntropy(torch.autograd.Function):
    """Per-row loss of x W + b against targets; the backward recomputes each chunk's logits instead of keeping them."""

    @staticmethod
    def forward(ctx, x, W, b, targets, cap, z):  # type: ignore[override]
        step = _chunks(len(x), W.shape[1])
        losses = [
            _weighted_loss(x[i : i + step], W, b, targets[i : i + step], cap, z)[2] for i in range(0, len(x), step)
        ]
        ctx.save_for_backward(x, W, b, targets)
        ctx.settings = (cap, z, step)
        return torch.cat(losses)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[override]
        x, W, b, targets = ctx.saved_tensors
        cap, z, step = ctx.settings
        grad_x = torch.empty_like(x)
        grad_W = torch.zeros_like(W, dtype=torch.float32)
        grad_b = None if b is None else torch.zeros_like(b, dtype=torch.float32)
        for i in range(0, len(x), step):
            rows, g = slice(i, i + step), grad[i : i + step, None]
            logits, lse, _ = _weighted_loss(x[rows], W, b, targets[rows], cap, z)
            d = _logit_gradient(logits, lse, targets[rows], g, cap, z).to(x.dtype)
            grad_x[rows] = d @ W.T
            _add_product(grad_W, x[rows], d)
            if grad_b is not None:
                grad_b += d.float().sum(0)
        return grad_x, grad_W.to(W.dtype), None if grad_b is None else grad_b.to(b.dtype), None, None, None


class _MeanLinearCrossEntropy(torch.autograd.Function):
    """Weighted sum of row losses; gradients are made in the forward pass, where the logits already exist."""

    @staticmethod
    def forward(ctx, x, W, b, targets, weights, cap, z):  # type: ignore[override]
        step = _chunks(len(x), W.shape[1])
        total = torch.zeros((), dtype=torch.float32, device=x.device)
        grad_x = torch.empty_like(x)
        grad_W = torch.zeros_like(W, dtype=torch.float32)
        grad_b = None if b is None else torch.zeros_like(b, dtype=torch.float32)
        for i in range(0, len(x), step):
            rows = slice(i, i + step)
            logits, lse, loss = _weighted_loss(x[rows], W, b, targets[rows], cap, z)
            total += loss @ weights[rows]
            d = _logit_gradient(logits, lse, targets[rows], weights[rows, None], cap, z).to(x.dtype)
            grad_x[rows] = d @ W.T
            _add_product(grad_W, x[rows], d)
            if grad_b is not None:
                grad_b += d.float().sum(0)
        ctx.save_for_backward(grad_x, grad_W.to(W.dtype), None if grad_b is None else grad_b.to(b.dtype))
        return total

    @staticmethod
    def backward(ctx, grad):  # type: ignore[override]
        grad_x, grad_W, grad_b = ctx.saved_tensors
        scaled = [None if g is None else g * grad for g in (grad_x, grad_W, grad_b)]
        return *scaled, None, None, None, None


def _logit_gradient(logits: Tensor, lse: Tensor, targets: Tensor, weights: Tensor, cap: float, z: float) -> Tensor:
    """weights · d loss / d raw logits, [rows vocab], written over a fresh softmax."""
    slope = (1 - (logits / cap).square()) if cap > 0 else None
    d = torch.exp_(logits - lse[:, None])
    if z:
        d *= 1 + 2 * z * lse[:, None]
    d.scatter_add_(1, targets[:, None], torch.full_like(lse[:, None], -1.0))
    d *= weights
    return d if slope is None else d * slope


def _add_product(total: Tensor, x: Tensor, d: Tensor) -> None:
    """total += xᵀ d, summed over chunks in float32 also where x and d are bfloat16."""
    if x.dtype == torch.float32:
        total.addmm_(x.T, d)
    else:
        total += x.T @ d


def linear_cross_entropy(
    x: Float[Tensor, "rows d_model"],
    W_U: Float[Tensor, "d_model d_vocab"],
    targets: Int[Tensor, "rows"],
    *,
    b_U: Float[Tensor, "d_vocab"] | None = None,
    weights: Float[Tensor, "rows"] | None = None,
    soft_cap: float = -1.0,
    z_loss: float = 0.0,
    per_row: bool = False,
) -> Float[Tensor, ""] | Float[Tensor, "rows"]:
    """Return cross-entropy in nats of softmax(cap(x W_U + b_U)) against targets, plus z_loss·logsumexp².

    Logits exist for one chunk of rows at a time. `per_row` gives one loss a row and recomputes a chunk's logits in the
    backward pass; otherwise the result is Σ weights·loss (weights default to 1/rows) and gradients are made with the loss.
    Products run in x's dtype (the autocast dtype under autocast); the softmax is float32, float64 for float64 input.

    Args:
        x: residual after the final norm.
        W_U: unembedding; its dtype is brought to x's.
        targets: the token that follows each row.
        weights: share of each row in the mean, e.g. mask / mask.sum(); must not need a gradient.
        soft_cap: c of c·tanh(logit/c), ≤ 0 for none.
        z_loss: weight of logsumexp² (Chowdhery et al. 2022), 0 for none.
    """
    device_type = x.device.type
    if torch.is_autocast_enabled(device_type):
        x = x.to(torch.get_autocast_dtype(device_type))
    W = W_U.to(x.dtype)
    b = None if b_U is None else b_U.to(x.dtype)
    with torch.autocast(device_type, enabled=False):
        if x.dtype == torch.float64:  # the oracle's path: plain autograd, nothing fused
            logits = softcap(x @ W if b is None else x @ W + b, soft_cap)
            lse = torch.logsumexp(logits, dim=-1)
            loss = lse - logits.gather(1, targets[:, None]).squeeze(1) + z_loss * lse.square()
            if per_row:
                return loss
            return loss.mean() if weights is None else loss @ weights.double()
        if per_row:
            return _LinearCrossEntropy.apply(x, W, b, targets, soft_cap, z_loss)  # type: ignore[no-any-return]
        if weights is None:
            weights = torch.full((len(x),), 1 / max(1, len(x)), dtype=torch.float32, device=x.device)
        if not torch.is_grad_enabled():
            step = _chunks(len(x), W.shape[1])
            parts = [
                _weighted_loss(x[i : i + step], W, b, targets[i : i + step], soft_cap, z_loss)[2] @ weights[i : i + step]
                for i in range(0, len(x), step)
            ]
            return torch.stack(parts).sum()
        return _MeanLinearCrossEntropy.apply(x, W, b, targets, weights.float(), soft_cap, z_loss)  # type: ignore[no-any-return]
