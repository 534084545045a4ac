"""Losses and KL of ablated final residuals beside the clean prediction, a block of logits at a time.

With logits linear in the final residual x, both need the logits only as log-partition functions:

    loss = lse(x) − x·W_U[target]          KL(base‖ablated) = lse(x) − lse(x₀) − (x − x₀)·(W_U p₀)

with x₀, p₀ the clean residual and prediction, so that p₀ is met once, as the vector W_U p₀.

Where a processor multiplies numbers rounded to bfloat16 several times faster (AMX), float32 models take the logits'
change δ·W_U, δ = x − x₀, from rounded numbers δ̃ and W̃, summed in float32:

    KL = ln Σ_v p₀[v] exp(δ·W_U[v]) − δ·(W_U p₀) ≈ ln Σ_v p₀[v] exp(δ̃·W̃[v]) − δ̃·(W̃ p₀)
    loss = loss₀ + KL + δ·(W_U p₀ − W_U[target])

What rounding does to the first order drops out of the difference; what is left is a relative error of KL of some 2⁻⁹ a
prediction, of either sign, and nothing else is rounded. Rows whose KL passes LARGE_KL are done again in float32.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.models import HookedLM
from workbench.models.cross_entropy import softcap
from workbench.models.transformer import State

BLOCK_ROWS = 1024  # predictions whose logits are made together; more gain nothing on a CPU
MAX_COLUMNS = 4096  # of the vocabulary, likewise
LARGE_KL = 0.02  # nats
MIN_ROUNDED = 8192  # tokens of a vocabulary from which rounding pays: smaller ones cost little, and gain few to average
_SAFE_LOGIT = 60.0  # e^60 times any vocabulary is far below float32's largest number


@dataclass(frozen=True)
class LinearPart:
    """The clean prediction in the form that logits linear in x allow; one row a scored position."""

    lse: Float[Tensor, " rows"]
    mean_writer: Float[Tensor, "rows d_model"]
    """W_U p₀: the unembedding averaged under the clean prediction"""
    rounded_mean: Float[Tensor, "rows d_model"] | None
    """the same of W_U rounded to bfloat16; None where changes of logits are not taken from rounded numbers"""
    target_writer: Float[Tensor, "rows d_model"]
    """W_U[target]"""
    target_bias: Float[Tensor, " rows"] | float
    is_tame: bool
    """no logit is so far from 0 that its exponential needs a shift"""


@dataclass(frozen=True)
class Reference:
    """The clean prediction at each scored position; rows run over batch, then position."""

    x: Float[Tensor, "rows d_model"]
    targets: Int[Tensor, " rows"]
    loss: Float[Tensor, " rows"]
    linear: LinearPart | None
    """None where logits are capped"""


def rounds_faster(W: Tensor) -> bool:
    """Whether changes of logits are to come from rounded numbers: where those multiply much faster than W as it is."""
    has_setting = hasattr(getattr(torch.backends.mkldnn, "matmul", None), "fp32_precision")
    has_tiles = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    is_large = W.device.type == "cpu" and W.dtype == torch.float32 and W.shape[1] >= MIN_ROUNDED
    return is_large and has_setting and has_tiles()


def reference(model: HookedLM, final: State, tokens: Int[Tensor, "batch pos"], logits_held: int) -> Reference:
    """What the ablated residuals of this batch are compared with."""
    x = model.ln_final(model.read_out(final))[:, :-1].flatten(0, 1)
    targets = tokens[:, 1:].flatten()
    if model.cfg.output_logits_soft_cap > 0:
        loss, _ = _compare_capped(model, x[None], x, targets, logits_held)
        return Reference(x, targets, loss[0], None)
    W, b = model.W_U, model.b_U
    lse, top = _shifted_log_partition(x, W, b, logits_held)
    mean = _wide(torch.zeros_like(x))
    rounded_mean = torch.zeros_like(mean) if rounds_faster(W) else None
    for columns in _columns(x, W, logits_held):
        part = W[:, columns]
        own = _rounded(part) if rounded_mean is not None else part
        for rows in _rows(x):
            p = _logits(x[rows], part, b, columns).sub_(lse[rows, None]).exp_().to(x.dtype)
            mean[rows] += p @ part.T
            if rounded_mean is not None:
                rounded_mean[rows] += p @ own.T
    bias = 0.0 if b is None else b[targets].to(lse.dtype)
    linear = LinearPart(lse, mean, rounded_mean, W.T[targets], bias, top < _SAFE_LOGIT)
    return Reference(x, targets, linear.lse - _dot(x, linear.target_writer) - bias, linear)


def at_rows(clean: Reference, rows: Int[Tensor, " n"]) -> Reference:
    """The clean prediction at these of its rows, which may repeat."""

    def taken(own: Any) -> Any:
        return own[rows] if isinstance(own, Tensor) else own

    linear = clean.linear
    if linear is not None:
        linear = replace(linear, **{own.name: taken(getattr(linear, own.name)) for own in fields(linear)})
    return Reference(clean.x[rows], clean.targets[rows], clean.loss[rows], linear)


def compare(
    model: HookedLM, x: Float[Tensor, "part rows d_model"], clean: Reference, logits_held: int
) -> tuple[Float[Tensor, "part rows"], Float[Tensor, "part rows"]]:
    """(loss, KL(base‖ablated)) of final residuals x at each scored position, nats; a part is an ablation."""
    of = clean.linear
    if of is None:
        return _compare_capped(model, x, clean.x, clean.targets, logits_held)
    W, b = model.W_U, model.b_U
    if of.rounded_mean is None:
        lse = _log_partition(x.flatten(0, 1), W, b, of.is_tame, logits_held).view(x.shape[:2])
        return lse - _dot(x, of.target_writer) - of.target_bias, (lse - of.lse) - _dot(x - clean.x, of.mean_writer)
    change = x - clean.x
    kl = _rounded_kl(change, clean, of, W, b, logits_held)
    loss = clean.loss + kl + _dot(change, of.mean_writer - of.target_writer)
    part, row = torch.where(~(kl <= LARGE_KL))  # an overflow is no number, and so is not small either
    if len(row):
        again, moved = x[part, row], change[part, row]
        lse = _log_partition(again, W, b, of.is_tame, logits_held)
        bias = of.target_bias[row] if isinstance(of.target_bias, Tensor) else of.target_bias
        kl[part, row] = (lse - of.lse[row]) - _dot(moved, of.mean_writer[row])
        loss[part, row] = lse - _dot(again, of.target_writer[row]) - bias
    return loss, kl


def loss_gradient(model: HookedLM, clean: Reference, logits_held: int) -> Float[Tensor, "rows d_model"]:
    """Gradient of each position's loss by its final residual x₀."""
    if clean.linear is not None:
        return clean.linear.mean_writer - clean.linear.target_writer
    W, b, cap = model.W_U, model.b_U, model.cfg.output_logits_soft_cap
    n, gradients = max(1, logits_held // (3 * W.shape[1])), []
    for rows, target in zip(clean.x.split(n), clean.targets.split(n), strict=True):
        leaf = rows.detach().requires_grad_()
        with torch.enable_grad():
            logits = leaf @ W.detach() if b is None else torch.addmm(b.detach(), leaf, W.detach())
            loss = torch.nn.functional.cross_entropy(softcap(_wide(logits), cap), target, reduction="sum")
        gradients.append(torch.autograd.grad(loss, leaf)[0])
    return torch.cat(gradients)


# --- logits, a block at a time


def _columns(x: Tensor, W: Tensor, logits_held: int) -> list[slice]:
    """Runs of the vocabulary of which two blocks of logits fit into `logits_held` elements."""
    step = max(1, min(MAX_COLUMNS, logits_held // (2 * max(1, min(BLOCK_ROWS, x.shape[-2])))))
    return [slice(i, min(i + step, W.shape[1])) for i in range(0, W.shape[1], step)]


def _rows(x: Tensor) -> list[slice]:
    n = x.shape[-2]
    return [slice(i, min(i + BLOCK_ROWS, n)) for i in range(0, n, BLOCK_ROWS)]


def _rounded(x: Tensor) -> Tensor:
    return x.bfloat16().to(x.dtype)


@contextlib.contextmanager
def _products_of_rounded_numbers() -> Iterator[None]:
    """Inside, float32 products may round their factors to bfloat16 first; ours are already."""
    setting = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = setting.fp32_precision
    setting.fp32_precision = "bf16"
    try:
        yield
    finally:
        setting.fp32_precision = before


def _rounded_kl(
    change: Float[Tensor, "part rows d_model"], clean: Reference, of: LinearPart, W: Tensor, b: Tensor | None, held: int
) -> Float[Tensor, "part rows"]:
    """KL by the changes of the logits, taken from rounded numbers."""
    assert of.rounded_mean is not None
    moved = _rounded(change)
    total = torch.zeros(change.shape[:2], dtype=torch.float64, device=change.device)
    for columns in _columns(change, W, held):
        own, rounded = W[:, columns], _rounded(W[:, columns])
        for rows in _rows(change):
            log_p = _logits(clean.x[rows], own, b, columns).sub_(of.lse[rows, None])
            for part in range(len(change)):
                with _products_of_rounded_numbers():
                    product = moved[part, rows] @ rounded
                total[part, rows] += product.add_(log_p).exp_().sum(-1)
    return total.log().to(change.dtype) - _dot(moved, of.rounded_mean)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner products over the last axis, summed in float32 at least."""
    return (_wide(a) * _wide(b)).sum(-1)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _logits(x: Tensor, W: Tensor, b: Tensor | None, columns: slice) -> Tensor:
    return _wide(x @ W if b is None else torch.addmm(b[columns], x, W))


def _log_partition(
    x: Float[Tensor, "rows d_model"], W: Tensor, b: Tensor | None, is_tame: bool, logits_held: int
) -> Float[Tensor, " rows"]:
    """logsumexp of x W + b; without the shift by the maximum where logits are tame, which saves two passes."""
    if not is_tame:
        return _shifted_log_partition(x, W, b, logits_held)[0]
    total = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    for columns in _columns(x, W, logits_held):
        for rows in _rows(x):
            total[rows] += _logits(x[rows], W[:, columns], b, columns).exp_().sum(-1)
    lse = total.log().to(torch.promote_types(x.dtype, torch.float32))
    if bool(lse.isfinite().all()):
        return lse
    return _shifted_log_partition(x, W, b, logits_held)[0]


def _shifted_log_partition(
    x: Float[Tensor, "rows d_model"], W: Tensor, b: Tensor | None, logits_held: int
) -> tuple[Float[Tensor, " rows"], float]:
    """(logsumexp of x W + b whatever its size, largest absolute logit)."""
    of_rows, top = [], 0.0
    for rows in _rows(x):
        parts = []
        for columns in _columns(x, W, logits_held):
            logits = _logits(x[rows], W[:, columns], b, columns)
            top = max(top, float(logits.abs().amax()))
            parts.append(torch.logsumexp(logits, -1))
        of_rows.append(torch.logsumexp(torch.stack(parts), 0))
    return torch.cat(of_rows), top


def _compare_capped(
    model: HookedLM, x: Float[Tensor, "part rows d_model"], x_clean: Tensor, targets: Tensor, logits_held: int
) -> tuple[Float[Tensor, "part rows"], Float[Tensor, "part rows"]]:
    """As `compare`, for logits that are capped and so not linear in x: the clean ones are made anew."""
    W, b, cap = model.W_U, model.b_U, model.cfg.output_logits_soft_cap
    n = max(1, logits_held // (3 * W.shape[1]))
    every = slice(None)
    losses, divergences = [], []
    for of_part in x:
        for rows, rows_clean, target in zip(of_part.split(n), x_clean.split(n), targets.split(n), strict=True):
            log_p = torch.log_softmax(softcap(_logits(rows, W, b, every), cap), -1)
            log_clean = torch.log_softmax(softcap(_logits(rows_clean, W, b, every), cap), -1)
            losses.append(-log_p.gather(1, target[:, None]).squeeze(1))
            divergences.append((log_clean.exp() * (log_clean - log_p)).sum(-1))
    return torch.cat(losses).view(x.shape[:2]), torch.cat(divergences).view(x.shape[:2])
